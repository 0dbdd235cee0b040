"""``gridnode status | peers | explain``: what a daemon tells of itself."""

import argparse
import time
from typing import TYPE_CHECKING, Any, TypeVar

from gridnode.cli.options import add_json, add_socket, connect
from gridnode.cli.output import console, print_json
from gridnode.errors import ProtocolError

if TYPE_CHECKING:
    from gridnode.client import Grid
    from gridnode.status import PeerStatus

T = TypeVar("T")

WATCH_S = 1.0
"""Time between two looks of --watch."""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group's commands."""
    status = commands.add_parser("status", help="how the daemon of this machine is")
    status.set_defaults(run=show_status)
    peers = commands.add_parser("peers", help="the other nodes, as this one sees them")
    peers.add_argument("--watch", action="store_true", help="look again every second, until Ctrl-C")
    peers.set_defaults(run=show_peers)
    explain = commands.add_parser("explain", help="why a job went where it went")
    explain.add_argument(
        "key", nargs="?", default="", metavar="KEY", help="the job's key in hex, or its beginning; `submit --json` "
        "prints it (default: the last jobs of this node)"
    )  # fmt: skip
    explain.set_defaults(run=explain_job)
    for parser in (status, peers, explain):
        add_socket(parser)
        add_json(parser)


def read_record(document: object, kind: type[T]) -> T:
    """Turn a daemon's document into a record; raises ProtocolError where it does not fit."""
    import msgspec

    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        raise ProtocolError(f"the daemon's answer does not fit: {error}; install the same release on both") from error


def read_list(document: dict[str, Any], kind: type[T]) -> list[T]:
    """Turn a daemon's list into records."""
    return [read_record(item, kind) for item in document.get("items", [])]


def show_status(options: argparse.Namespace) -> int:
    """Run `gridnode status`."""
    with connect(options) as grid:
        document = grid.status()
    if options.json:
        print_json(document)
        return 0
    from gridnode.cli.tables import status_view
    from gridnode.status import NodeStatus

    console().print(status_view(read_record(document, NodeStatus), now_s=_now_s()))
    return 0


def show_peers(options: argparse.Namespace) -> int:
    """Run `gridnode peers`."""
    with connect(options) as grid:
        if options.watch and not options.json:
            return _watch(grid)
        if not options.json:
            _print_peers(_peers(grid))
            return 0
        while True:
            print_json(grid.peers().get("items", []))
            if not options.watch:
                return 0
            time.sleep(WATCH_S)


def _watch(grid: "Grid") -> int:
    """Draw the peers anew until the user has seen enough; without a terminal, one table after the other."""
    from rich.live import Live

    from gridnode.cli.tables import peers_table

    screen = console()
    if not screen.is_terminal:
        while True:
            _print_peers(_peers(grid))
            screen.print()
            time.sleep(WATCH_S)
    try:
        with Live(console=screen, auto_refresh=False, screen=True) as live:
            while True:
                live.update(peers_table(_peers(grid), columns=screen.width, now_s=_now_s()), refresh=True)
                time.sleep(WATCH_S)
    except KeyboardInterrupt:
        return 0


def _peers(grid: "Grid") -> "list[PeerStatus]":
    from gridnode.status import PeerStatus

    return read_list(grid.peers(), PeerStatus)


def _print_peers(peers: "list[PeerStatus]") -> None:
    from gridnode.cli.tables import peers_table

    screen = console()
    if not peers:
        screen.print("no other node is known; add one with 'gridnode invite' here and 'gridnode join TOKEN' there")
        return
    screen.print(peers_table(peers, columns=screen.width, now_s=_now_s()))


def explain_job(options: argparse.Namespace) -> int:
    """Run `gridnode explain`."""
    with connect(options) as grid:
        document = grid.ask("explain", options.key)
    if options.json:
        print_json(document.get("items", []))
        return 0
    from gridnode.cli.tables import decisions_view
    from gridnode.status import DecisionStatus

    console().print(decisions_view(read_list(document, DecisionStatus)))
    return 0


def _now_s() -> float:
    return time.time()
