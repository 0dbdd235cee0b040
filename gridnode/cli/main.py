"""The ``gridnode`` command: parser, dispatch, exit codes.

Owns what every command has in common. Each group's module adds its own commands and imports what is heavy only when
one of them runs, so that ``gridnode --help`` answers at once.

Exit codes: 0 done; 1 failed; 2 wrong usage, configuration or input; 3 no daemon answers; 4 the grid refused the work,
a later try may succeed; 130 interrupted.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Final

from gridnode import __version__
from gridnode._siblings import check_siblings
from gridnode.cli.options import UsageError
from gridnode.errors import ConfigError, DaemonUnreachableError, GridError, InvalidInputError, JobRejectedError

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
NO_DAEMON: Final = 3
REFUSED: Final = 4
INTERRUPTED: Final = 130

_EPILOG: Final = """\
exit codes: 0 done, 1 failed, 2 wrong usage, configuration or input, 3 no daemon answers,
4 the grid refused the work (try again later), 130 interrupted
"""
_GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "demo": ("demo",),
    "grid": ("grid", "invite", "join"),
    "run": ("run", "config"),
    "status": ("status", "peers", "explain"),
    "submit": ("submit",),
    "model": ("model",),
    "simulate": ("simulate",),
    "doctor": ("doctor",),
}
"""Modules of this package, and the commands that each adds."""


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """Return the parser of all commands, or only of those in one's group: a daemon has no use for the others."""
    parser = argparse.ArgumentParser(
        prog="gridnode",
        description="A decentralised compute grid for AI inference at the edge.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"gridnode {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    chosen = [group for group, names in _GROUPS.items() if command in names]
    for group in chosen or _GROUPS:
        import_module(f"gridnode.cli.{group}").add_commands(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; argparse exits by itself with 2 on wrong usage."""
    given = sys.argv[1:] if arguments is None else arguments
    options = build_parser(given[0] if given else "").parse_args(given)
    try:
        check_siblings()
        code: int = options.run(options)
        sys.stdout.flush()
    except GridError as error:
        return _fail(error)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BaseExceptionGroup as group:
        # trio gives Ctrl-C to whichever task runs, so it may come out of a nursery.
        if group.subgroup(KeyboardInterrupt) is None:
            raise
        sys.stderr.write("interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has left, as `head` does; nothing more can be written, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return code


def exit_code(error: GridError) -> int:
    """Return the exit code that belongs to an error."""
    match error:
        case DaemonUnreachableError():
            return NO_DAEMON
        case ConfigError() | InvalidInputError() | UsageError():
            return WRONG_USAGE
        case JobRejectedError():
            return REFUSED
        case _:
            return FAILED


def _fail(error: GridError) -> int:
    """Say in one line what went wrong and what to do."""
    sys.stderr.write("error: " + " ".join(str(error).split()) + "\n")
    return exit_code(error)
