"""Arguments that several commands share, and their meaning. Light: imported by every command."""

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gridnode.errors import GridError

if TYPE_CHECKING:
    from gridnode.client import Grid

PATIENCE_S: Final = 2.0
"""How long a command waits for a daemon that is just starting; a person waits at the prompt."""

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|)")
_UNIT_S: Final = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class UsageError(GridError):
    """The command was called in a way that makes no sense."""


def duration_s(text: str) -> float:
    """Read a duration such as 90, 500ms, 30s, 15m, 1h or 2d; returns seconds.

    Examples
    --------
    >>> duration_s("1h"), duration_s("2.5m")
    (3600.0, 150.0)
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None or float(match[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write it like 30s, 15m, 1h or 2d")
    return float(match[1]) * _UNIT_S[match[2]]


def positive(text: str) -> float:
    """Read a number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return number


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json."""
    parser.add_argument("--json", action="store_true", help="print JSON for programs instead of text for people")


def add_socket(parser: argparse.ArgumentParser) -> None:
    """Add --socket."""
    parser.add_argument(
        "--socket",
        action="append",
        metavar="PATH",
        help="Unix socket of the daemon; may be given several times, the preferred first (default: GRIDNODE_SOCKET, "
        "else the daemon of this machine)",
    )


def add_state_dir(parser: argparse.ArgumentParser) -> None:
    """Add --state-dir."""
    parser.add_argument(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="the node's keys and state (default: GRIDNODE_STATE_DIR, else by user)",
    )


def add_owner_dir(parser: argparse.ArgumentParser) -> None:
    """Add --owner-dir."""
    parser.add_argument(
        "--owner-dir",
        type=Path,
        metavar="DIR",
        help="the grid owner's keys; may be on a stick that is taken away afterwards (default: owner/ in the state "
        "directory)",
    )


def state_dir(options: argparse.Namespace) -> Path:
    """Return the state directory that is meant."""
    from gridnode.config import default_state_dir

    given: Path | None = options.state_dir
    return given if given is not None else default_state_dir(os.environ)


def owner_dir(options: argparse.Namespace) -> Path:
    """Return the owner's folder that is meant."""
    given: Path | None = options.owner_dir
    return given if given is not None else state_dir(options) / "owner"


def connect(options: argparse.Namespace, *, patience_s: float = PATIENCE_S) -> "Grid":
    """Return a client of the daemon that is meant; nothing is sent yet."""
    from gridnode.client import Grid

    return Grid(options.socket or None, patience_s=patience_s)
