"""The new node's own hand in joining a grid: from a token to a state directory that a daemon can start from.

Owns what is written where, and in which order: grid.json comes last, so that a half-made node is not taken for one,
and a join that broke off may be repeated with the same token and the same key. The rules of trust are
transport.joining's.
"""

from collections.abc import Callable, Iterable
from typing import Final

import msgspec
import trio

from gridnode.admitting import ROOT_FILE
from gridnode.credentials import GridFile
from gridnode.errors import StateDirectoryError
from gridnode.gridsetup import write_grid_file
from gridnode.statedir import StateDirectory
from models.manifest import ModelError
from models.trust import TrustClient
from transport.cards import NodeCard, read_card
from transport.certificates import GridTrust, NothingRevoked
from transport.files import StateFileError, read_bounded, write_atomically
from transport.gridtime import GridTime
from transport.identity import NodeKey
from transport.joining import JoinGrant, join
from transport.tokens import TokenError, parse_token
from transport.wire import TransportError

BOOTSTRAP_MAX: Final = 16
"""Control planes remembered from the door: a few answer, and the address book grows from there."""
NAME_FILE: Final = "name"
"""Holds the name given at the joining; node.name in the configuration goes before it."""
NAME_MAX_BYTES: Final = 128


class JoinError(StateDirectoryError):
    """The node did not join; the message says whose fault it is and what to do."""


class Joined(msgspec.Struct, frozen=True, kw_only=True):
    """What `gridnode join` did."""

    node: str
    grid_id: str
    grid_name: str
    roles: tuple[str, ...]
    certificate_expires_s: float
    """Seconds since 1970."""
    known_nodes: tuple[str, ...]
    """Names of nodes whose cards came along."""


async def join_grid(state: StateDirectory, token_text: str, *, name: str, clock: Callable[[], float]) -> Joined:
    """Join a grid and write the node's files.

    Parameters
    ----------
    state : StateDirectory
        Made where it is missing; must hold no node of a grid.
    token_text : str
        From ``gridnode invite``.
    name : str
        Host label for people.
    clock : callable
        The system clock, in seconds since 1970.

    Raises
    ------
    JoinError
        The token is of no use, no door answers, or a file cannot be written.
    """
    if state.grid.exists():
        raise JoinError(f"{state.path} holds a node of a grid already; choose another --state-dir or remove it")
    try:
        token = parse_token(token_text)
        key = await trio.to_thread.run_sync(_prepare, state, name)
        grid_time = GridTime.load(clock, state.grid_time)
        grant = await join(token, key, name=name, grid_time=grid_time)
        doors = tuple(f"{address.host}:{address.port}" for address in token.addresses)
        return await trio.to_thread.run_sync(_write, state, grant, grid_time, doors)
    except TokenError as error:
        raise JoinError(f"not joined: {error}") from error
    except (TransportError, StateFileError, ModelError) as error:
        raise JoinError(f"not joined: {error}; the same token can be tried again until it expires") from error


def given_name(state: StateDirectory) -> str:
    """Return the name a node was given when it joined; empty for none. Raises StateDirectoryError."""
    try:
        data = read_bounded(state.path / NAME_FILE, max_bytes=NAME_MAX_BYTES)
    except StateFileError as error:
        raise StateDirectoryError(str(error)) from error
    return "" if data is None else data.decode("ascii", "replace").strip()


def _prepare(state: StateDirectory, name: str) -> NodeKey:
    """Make the directory, name and key, or take the key of a join that broke off."""
    state.create()
    write_atomically(state.path / NAME_FILE, f"{name}\n".encode())
    return NodeKey.load(state.node_key) if state.node_key.exists() else NodeKey.create(state.node_key)


def _write(state: StateDirectory, grant: JoinGrant, grid_time: GridTime, doors: tuple[str, ...]) -> Joined:
    """Write everything, grid.json last."""
    trust = GridTrust(grant.ca_pem, grant.grid_id, revocations=NothingRevoked(), grid_time=grid_time)
    cards = list(_good_cards(grant.bundle.cards, trust))
    client = TrustClient(state.trust, grant.grid_id)
    root = grant.bundle.files.get(ROOT_FILE)
    if root is not None:
        client.bootstrap(root)
    write_atomically(state.authority, grant.ca_pem)
    write_atomically(state.certificate, grant.chain_pem)
    write_atomically(state.cards, msgspec.msgpack.encode([card.encoded for card in cards]))
    grid_time.save()
    grid_name = client.status(grid_time.now_s()).grid_name
    bootstrap = tuple(_bootstrap(cards))[:BOOTSTRAP_MAX]
    write_grid_file(state, GridFile(name=grid_name, grid_id=grant.grid_id, bootstrap=bootstrap, doors=doors))
    return Joined(
        node=grant.certificate.node,
        grid_id=grant.grid_id,
        grid_name=grid_name,
        roles=tuple(grant.certificate.roles),
        certificate_expires_s=grant.certificate.not_after_s,
        known_nodes=tuple(card.name for card in cards),
    )


def _good_cards(encoded: Iterable[bytes], trust: GridTrust) -> Iterable[NodeCard]:
    """Read the cards from the door; one that is not good (expired meanwhile) is left out."""
    for card in encoded:
        try:
            yield read_card(card, trust)
        except TransportError:
            continue


def _bootstrap(cards: Iterable[NodeCard]) -> Iterable[str]:
    """Return control planes to dial, best first, each node's first address."""
    for card in cards:
        if card.control:
            address = card.control[0]
            yield f"{card.node}@{address.host}:{address.port}"
