"""``gridnode grid create | renew | revoke | status``, ``invite`` and ``join``: who belongs to the grid."""

import argparse
import contextlib
import socket
import time
from pathlib import Path
from typing import Any, Final

from gridnode.cli.options import (
    UsageError,
    add_json,
    add_owner_dir,
    add_socket,
    add_state_dir,
    connect,
    duration_s,
    owner_dir,
    state_dir,
)
from gridnode.cli.output import console, note, print_json, span
from gridnode.errors import DaemonUnreachableError

NAME_MAX: Final = 63
END_MIN: Final = 6
"""Shortest end of a PeerID that is taken for it; tables show eight characters."""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group's commands."""
    grid = commands.add_parser("grid", help="make a grid, see it, put nodes out of it").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    create = grid.add_parser("create", help="make a new grid with this node as its first member")
    create.add_argument("name", metavar="NAME", help="what people call the grid")
    create.set_defaults(run=create_grid)
    renew = grid.add_parser("renew", help="renew what the owner signs: every two months, on an admit node")
    renew.set_defaults(run=renew_grid)
    revoke = grid.add_parser("revoke", help="put a node out of the grid, for good")
    revoke.add_argument("node", metavar="NODE", help="its name, or its PeerID or the end of it, see 'gridnode peers'")
    revoke.set_defaults(run=revoke_node)
    status = grid.add_parser("status", help="the grid and its members, as this node sees them")
    status.set_defaults(run=show_grid)
    invite = commands.add_parser("invite", help="make a token for one new node (on an admit node)")
    invite.add_argument("--roles", default="serve,submit", metavar="LIST", help="what it may do (default: %(default)s)")
    invite.add_argument(
        "--expires", type=duration_s, default=3600.0, metavar="TIME", help="how long the token holds (default: 1h)"
    )
    invite.set_defaults(run=make_invite)
    join = commands.add_parser("join", help="join a grid with a token")
    join.add_argument("token", metavar="TOKEN", help="from 'gridnode invite'; - reads it from standard input")
    join.add_argument("--name", help="what people call this node (default: the host's name)")
    join.set_defaults(run=join_grid)
    for parser in (create, renew, join):
        add_state_dir(parser)
    for parser in (create, renew):
        add_owner_dir(parser)
    for parser in (renew, revoke, status, invite):
        add_socket(parser)
    for parser in (create, renew, revoke, status, invite, join):
        add_json(parser)


def create_grid(options: argparse.Namespace) -> int:
    """Run `gridnode grid create`."""
    from gridnode.gridsetup import create_grid as create
    from gridnode.statedir import StateDirectory

    folder, owner = state_dir(options), owner_dir(options)
    state = StateDirectory(folder)
    grid_id = create(state, owner, options.name, now_s=_now_s())
    if options.json:
        print_json({"name": options.name, "grid_id": grid_id, "state_dir": str(folder), "owner_dir": str(owner)})
        return 0
    screen = console()
    screen.print(f"grid [bold]{options.name}[/] is made, id {grid_id[:16]}")
    screen.print(f"  node   {folder}")
    screen.print(f"  owner  {owner}  (keys that sign for the grid: keep a copy, take them offline)")
    screen.print("next: 'gridnode run' here, then 'gridnode invite' for each further node", style="dim")
    return 0


def renew_grid(options: argparse.Namespace) -> int:
    """Run `gridnode grid renew`. A daemon need not run; one that does is told to look."""
    from gridnode.renewal import renew_grid as renew
    from gridnode.statedir import StateDirectory

    renewed = renew(StateDirectory(state_dir(options)), owner_dir(options), clock=_now_s)
    with contextlib.suppress(DaemonUnreachableError), connect(options) as grid:
        grid.ask("reload_trust")
    if options.json:
        print_json(renewed)
        return 0
    now_s = _now_s()
    screen = console()
    screen.print(f"this node may admit and renew others for {span(renewed.admit_expires_s - now_s)} from now on")
    screen.print(f"the grid's signed state holds for {span(renewed.state_expires_s - now_s)}")
    return 0


def revoke_node(options: argparse.Namespace) -> int:
    """Run `gridnode grid revoke`."""
    with connect(options) as grid:
        target = find_node(options.node, own=grid.status(), peers=grid.peers().get("items", []))
        document = grid.ask("revoke", target)
    if options.json:
        print_json(document)
        return 0
    console().print(
        f"{options.node} is put out of the grid (list version {document['version']}); the news travels by itself"
    )
    return 0


def find_node(text: str, *, own: dict[str, Any], peers: list[dict[str, Any]]) -> str:
    """Return the PeerID of the node that is meant by a name, a PeerID or its end; raises UsageError.

    A PeerID that this node has not met is taken as it is: a stolen device may never have been seen here.
    """
    if text in (own["name"], own["node"]):
        raise UsageError(f"{text!r} is the node asked, which cannot put itself out; do it on another node")
    found = [peer["node"] for peer in peers if text == peer["name"] or _is_end(text, peer["node"])]
    if len(found) > 1:
        raise UsageError(f"{len(found)} nodes are meant by {text!r}; give the PeerID, see 'gridnode peers --json'")
    if found:
        return str(found[0])
    if len(text) == len(own["node"]) and text.startswith(own["node"][:4]):
        return text
    known = ", ".join(sorted(peer["name"] for peer in peers)) or "none"
    raise UsageError(f"no node {text!r} is known; known are: {known}; one never seen here needs its whole PeerID")


def _is_end(text: str, node: str) -> bool:
    return len(text) >= END_MIN and node.endswith(text)


def show_grid(options: argparse.Namespace) -> int:
    """Run `gridnode grid status`."""
    with connect(options) as grid:
        status, peers = grid.status(), grid.peers().get("items", [])
    if options.json:
        fields = ("grid_name", "grid_id", "root_version", "timestamp_version", "trust_expires_s", "trust_expired")
        print_json({**{field: status.get(field) for field in fields}, "members": len(peers) + 1, "peers": peers})
        return 0
    from gridnode.cli.status import read_record
    from gridnode.cli.tables import peers_table
    from gridnode.status import NodeStatus, PeerStatus

    own = read_record(status, NodeStatus)
    others = [read_record(peer, PeerStatus) for peer in peers]
    alive = sum(peer.status == "alive" for peer in others)
    screen, now_s = console(), _now_s()
    screen.print(f"grid [bold]{own.grid_name}[/]  {own.grid_id[:16]}  {alive + 1} of {len(others) + 1} nodes alive")
    expiry = "[bold red]expired[/]" if own.trust_expired else f"{span(own.trust_expires_s - now_s)} left"
    screen.print(f"  signed state: root {own.root_version}, version {own.timestamp_version}, {expiry}")
    screen.print(f"  seen by {own.name}, roles {', '.join(own.roles)}")
    if others:
        screen.print()
        screen.print(peers_table(others, columns=screen.width, now_s=now_s))
    return 0


def make_invite(options: argparse.Namespace) -> int:
    """Run `gridnode invite`. The token alone goes to standard output, so that a script can pass it on."""
    import msgspec

    roles = [role.strip() for role in options.roles.split(",") if role.strip()]
    wish = msgspec.json.encode({"roles": roles, "life_s": options.expires}).decode()
    with connect(options) as grid:
        document = grid.ask("invite", wish)
    if options.json:
        print_json(document)
        return 0
    print(document["token"])
    note(f"holds for {span(options.expires)} and one node; there: gridnode join TOKEN, then gridnode run")
    return 0


def join_grid(options: argparse.Namespace) -> int:
    """Run `gridnode join`."""
    import sys

    import trio

    from gridnode.joining import join_grid as join
    from gridnode.statedir import StateDirectory

    token = sys.stdin.read() if options.token == "-" else options.token
    folder: Path = state_dir(options)
    name = node_name(options.name)

    async def go() -> object:
        return await join(StateDirectory(folder), token, name=name, clock=time.time)

    joined = trio.run(go)
    if options.json:
        print_json(joined)
        return 0
    from gridnode.joining import Joined

    assert isinstance(joined, Joined)
    screen = console()
    screen.print(f"joined grid [bold]{joined.grid_name or joined.grid_id[:16]}[/] as {name}, {joined.node}")
    screen.print(f"  roles {', '.join(joined.roles)}; knows {', '.join(joined.known_nodes) or 'no node yet'}")
    screen.print("next: gridnode run", style="dim")
    return 0


def node_name(given: str | None) -> str:
    """Return a host label; raises UsageError for what cannot be one."""
    name = given if given is not None else socket.gethostname().split(".")[0]
    if not name or len(name) > NAME_MAX or not all(c.isascii() and (c.isalnum() or c in "._-") for c in name):
        raise UsageError(f"name {name!r} must be 1 to {NAME_MAX} letters, digits, dots, dashes; give one with --name")
    return name


def _now_s() -> float:
    return time.time()
