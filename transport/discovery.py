"""Which control connections a node keeps: whom to dial next, whom to let go. A pure planner.

Events with a time go in, dials and disconnections come out; the daemon carries them out and reports. It knows no
socket, and liveness is not its business: a peer that is dead simply fails to be dialled.

The mesh is meant to be sparse: gossip needs few connections per node, and each costs a message. Below the low mark
the planner dials several peers at once, up to the wanted number; above the high mark it lets random ones go. From
time to time it takes up one peer it has no connection to, a bootstrap node by preference, and drops another: so two
islands that each have connections enough still find together after a partition, and no clique stays closed.

Each peer has a backoff of its own, doubling from half a second to a cap, with jitter over the whole range above half
of it, so that nodes that lost the same peer do not return in step. A hungry node (below the low mark) caps it lower.
"""

import random
from collections.abc import Sequence
from typing import Final

import msgspec

from transport.addressbook import ADDRESSES_MAX, Address, BookEntry
from transport.base import Dial
from transport.discovery_events import (
    Action,
    AddressesLearned,
    DialFailed,
    DialPeer,
    DialSucceeded,
    DiscoveryStatistics,
    DropPeer,
    Event,
    NeighboursChanged,
    PeerForgotten,
    PeerRevived,
    TimerFired,
)

_NEVER: Final = float("inf")


class DiscoveryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many connections to keep and how eagerly."""

    wanted: int = 8
    """Connections the planner fills up to."""
    low: int = 6
    """Below this several dials run at once and backoffs are short."""
    high: int = 12
    """Above this connections are let go."""
    dials_max: int = 3
    """Dials under way at once: each costs a handshake on a board that has better to do."""
    backoff_s: float = 0.5
    """First pause after a failed dial."""
    backoff_max_s: float = 30.0
    """Longest pause between two dials of a peer."""
    hungry_backoff_max_s: float = 8.0
    """Longest pause while connections are below low: a healed partition must join within seconds."""
    settle_s: float = 10.0
    """How long a peer that was let go is not dialled, so that the mesh does not flap."""
    exchange_s: float = 30.0
    """Mean time between two exchanges of a neighbour."""
    bootstrap_s: float = 60.0
    """While hungry, how often the bootstrap nodes' backoffs are forgotten."""
    peers_max: int = 512
    """Peers in the address book; the one with most failures, then the longest not connected, goes first."""


class _Peer:
    """A peer of the book, and when it may be dialled."""

    __slots__ = ("addresses", "connected_s", "failures", "not_before_s")

    def __init__(self, addresses: tuple[Address, ...], connected_s: float = 0.0, failures: int = 0) -> None:
        self.addresses = addresses
        self.connected_s = connected_s
        self.failures = failures
        self.not_before_s = -_NEVER


class Discovery:
    """Planner of one node's control connections.

    Parameters
    ----------
    node : str
        PeerID of this node, which is never dialled.
    bootstrap : sequence of Dial
        Nodes that are always known, from the join token or the configuration.
    rng : random.Random
        Source of jitter and of random choices.
    book : sequence of BookEntry
        Peers of the last run, see transport.addressbook.
    """

    def __init__(
        self,
        node: str,
        bootstrap: Sequence[Dial],
        rng: random.Random,
        config: DiscoveryConfig | None = None,
        *,
        book: Sequence[BookEntry] = (),
    ) -> None:
        self._node = node
        self._rng = rng
        self._config = config or DiscoveryConfig()
        self._peers: dict[str, _Peer] = {}
        self._bootstrap: dict[str, tuple[Address, ...]] = {}
        for dial in bootstrap:
            if dial.node != node:
                known = self._bootstrap.get(dial.node, ())
                self._bootstrap[dial.node] = (*known, Address(dial.host, dial.port))[:ADDRESSES_MAX]
        for entry in book[: self._config.peers_max]:
            if entry.node != node:
                # Failures of the last run say little of today; the order of the book is kept by connected_s.
                self._peers[entry.node] = _Peer(entry.addresses, entry.connected_s)
        for name, addresses in self._bootstrap.items():
            self._peers.setdefault(name, _Peer(addresses))
        self._neighbours: frozenset[str] = frozenset()
        self._dialling: set[str] = set()
        self._extra: str | None = None
        """Peer dialled for an exchange; when it connects, another goes."""
        self._now_s = -_NEVER
        self._actions: list[Action] = []
        self._isolated_since_s: float | None = None
        self._exchange_at_s = _NEVER
        self._bootstrap_at_s = _NEVER
        self._dials = 0
        self._dials_failed = 0
        self._exchanges = 0

    # ------------------------------------------------------------ interface

    def handle(self, event: Event, *, now_s: float) -> list[Action]:
        """Take an event and return what is to be done, in order.

        Parameters
        ----------
        now_s : float
            Local monotonic time in seconds; must not go back.
        """
        assert now_s >= self._now_s, f"time went back from {self._now_s} to {now_s}"
        if self._isolated_since_s is None and not self._neighbours:
            self._isolated_since_s = now_s
        if self._exchange_at_s == _NEVER:
            self._exchange_at_s = now_s + self._config.exchange_s * self._rng.uniform(0.5, 1.5)
            self._bootstrap_at_s = now_s + self._config.bootstrap_s
        self._now_s = now_s
        self._actions = []
        match event:
            case AddressesLearned():
                self._on_addresses(event)
            case NeighboursChanged():
                self._on_neighbours(event)
            case DialFailed():
                self._on_failed(event.node)
            case DialSucceeded():
                self._on_succeeded(event)
            case PeerRevived():
                self._forgive(event.node)
            case PeerForgotten():
                self._on_forgotten(event.node)
            case TimerFired():
                pass
        self._plan()
        return self._actions

    def next_deadline_s(self) -> float:
        """Return when a TimerFired is due; infinity before the first event."""
        due_s = min(self._exchange_at_s, self._bootstrap_at_s)
        if self._room() > 0:
            waiting = (p.not_before_s for n, p in self._peers.items() if self._is_free(n) and p.addresses)
            due_s = min(due_s, min(waiting, default=_NEVER))
        return due_s

    def book(self) -> tuple[BookEntry, ...]:
        """Return what is worth keeping over a restart, most recently connected first."""
        entries = [
            BookEntry(node=n, addresses=p.addresses, connected_s=p.connected_s, failures=p.failures)
            for n, p in self._peers.items()
            if p.addresses
        ]
        return tuple(sorted(entries, key=lambda entry: (-entry.connected_s, entry.node)))

    def statistics(self) -> DiscoveryStatistics:
        """Return counters and how well connected the node is."""
        since_s = self._isolated_since_s
        return DiscoveryStatistics(
            neighbours=len(self._neighbours),
            dialling=len(self._dialling),
            known=len(self._peers),
            isolated_s=None if since_s is None else self._now_s - since_s,
            dials=self._dials,
            dials_failed=self._dials_failed,
            exchanges=self._exchanges,
        )

    # ------------------------------------------------------------ events

    def _on_addresses(self, event: AddressesLearned) -> None:
        addresses = event.addresses[:ADDRESSES_MAX]
        if event.node == self._node or not addresses:
            return
        peer = self._peers.get(event.node)
        if peer is not None and peer.addresses != addresses:
            peer.addresses = addresses
            self._forgive(event.node)
        elif peer is None and self._make_room():
            self._peers[event.node] = _Peer(addresses)

    def _make_room(self) -> bool:
        if len(self._peers) < self._config.peers_max:
            return True
        loose = [n for n in self._peers if self._is_free(n) and n not in self._bootstrap]
        if not loose:
            return False
        del self._peers[min(loose, key=lambda n: (-self._peers[n].failures, self._peers[n].connected_s, n))]
        return True

    def _on_neighbours(self, event: NeighboursChanged) -> None:
        now = frozenset(event.nodes) - {self._node}
        for node in now - self._neighbours:
            peer = self._peers.get(node)
            if peer is not None:
                peer.failures = 0
                peer.connected_s = max(peer.connected_s, event.grid_time_s)
        for node in sorted(self._neighbours - now):
            peer = self._peers.get(node)
            if peer is not None:
                # Jitter: many lost it in the same instant.
                peer.not_before_s = max(peer.not_before_s, self._now_s + self._pause_s(0))
        self._neighbours = now
        if now:
            self._isolated_since_s = None
        elif self._isolated_since_s is None:
            self._isolated_since_s = self._now_s

    def _on_failed(self, node: str) -> None:
        self._dialling.discard(node)
        self._dials_failed += 1
        if self._extra == node:
            self._extra = None
        peer = self._peers.get(node)
        if peer is not None:
            peer.not_before_s = self._now_s + self._pause_s(peer.failures)
            peer.failures += 1

    def _on_succeeded(self, event: DialSucceeded) -> None:
        self._dialling.discard(event.node)
        peer = self._peers.get(event.node)
        if peer is not None:
            peer.failures = 0
            peer.connected_s = max(peer.connected_s, event.grid_time_s)
        self._neighbours = self._neighbours | {event.node}
        self._isolated_since_s = None
        if self._extra == event.node:
            self._extra = None
            self._exchanges += 1
            if len(self._neighbours) > self._config.wanted:
                self._drop_one("exchanged", keep=event.node)

    def _forgive(self, node: str) -> None:
        peer = self._peers.get(node)
        if peer is not None:
            peer.failures = 0
            peer.not_before_s = -_NEVER

    def _on_forgotten(self, node: str) -> None:
        self._peers.pop(node, None)
        self._bootstrap.pop(node, None)

    # ------------------------------------------------------------ planning

    def _is_hungry(self) -> bool:
        return len(self._neighbours) < self._config.low

    def _is_free(self, node: str) -> bool:
        return node not in self._neighbours and node not in self._dialling

    def _room(self) -> int:
        """Return how many dials may start now."""
        missing = self._config.wanted - len(self._neighbours) - len(self._dialling)
        slots = (self._config.dials_max if self._is_hungry() else 1) - len(self._dialling)
        return min(missing, slots)

    def _pause_s(self, failures: int) -> float:
        cap_s = self._config.hungry_backoff_max_s if self._is_hungry() else self._config.backoff_max_s
        pause_s = min(cap_s, self._config.backoff_s * 2.0 ** min(failures, 16))
        return pause_s * self._rng.uniform(0.5, 1.0)

    def _plan(self) -> None:
        if self._bootstrap_at_s <= self._now_s:
            self._bootstrap_at_s = self._now_s + self._config.bootstrap_s
            if self._is_hungry():
                for node in self._bootstrap:
                    self._forgive(node)
        while len(self._neighbours) > self._config.high:
            self._drop_one("too many connections")
        while self._room() > 0 and (chosen := self._choose()) is not None:
            self._dial(chosen, "below the wanted number")
        if self._exchange_at_s <= self._now_s:
            self._exchange()

    def _choose(self) -> str | None:
        """Return whom to dial: a bootstrap node while isolated, then who failed least, then anyone."""
        due = [n for n in sorted(self._peers) if self._is_free(n) and self._peers[n].not_before_s <= self._now_s]
        if not due:
            return None
        alone = not self._neighbours
        return min(
            due, key=lambda n: (not (alone and n in self._bootstrap), self._peers[n].failures, self._rng.random())
        )

    def _exchange(self) -> None:
        self._exchange_at_s = self._now_s + self._config.exchange_s * self._rng.uniform(0.5, 1.5)
        free = [n for n in sorted(self._peers) if self._is_free(n)]
        if self._extra is not None or not free or len(self._dialling) >= self._config.dials_max:
            return
        anchors = [n for n in free if n in self._bootstrap]
        # Half of the time a bootstrap node: those are what all islands have in common.
        self._extra = self._rng.choice(anchors if anchors and self._rng.random() < 0.5 else free)
        self._dial(self._extra, "exchange")

    def _dial(self, node: str, reason: str) -> None:
        peer = self._peers[node]
        addresses = peer.addresses
        if node in self._bootstrap:
            addresses = tuple(dict.fromkeys((*addresses, *self._bootstrap[node])))
        address = addresses[peer.failures % len(addresses)]
        self._dialling.add(node)
        self._dials += 1
        self._actions.append(DialPeer(dial=Dial(node=node, host=address.host, port=address.port), reason=reason))

    def _drop_one(self, reason: str, *, keep: str | None = None) -> None:
        node = self._rng.choice(sorted(self._neighbours - {keep}))
        self._neighbours = self._neighbours - {node}
        if node in self._peers:
            self._peers[node].not_before_s = self._now_s + self._config.settle_s
        self._actions.append(DropPeer(node=node, reason=reason))
