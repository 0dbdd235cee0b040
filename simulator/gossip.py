"""How state records spread: to each node directly, or over a mesh of neighbours that pass them on.

In a mesh each record floods: whoever hears it first from a neighbour passes it to all others, duplicates are dropped,
as in transport.memory. Without one each node hears each other after one way; that costs N events per record in place
of N times the neighbours.
"""

from collections.abc import Callable, Mapping
from typing import Protocol

from scheduler.types import PeerState
from simulator.connection import Endpoint
from simulator.messages import SEGMENT_BYTES, gossip

SEEN_MAX = 4096
"""Records remembered to drop duplicates."""

Key = tuple[str, int]


class Holder(Protocol):
    """Whoever has a Gossip."""

    @property
    def gossip(self) -> "Gossip":
        """Its gossip."""


class Gossip:
    """Gossip of one node.

    Parameters
    ----------
    endpoint : Endpoint
        The node's place in the network.
    on_state : callable
        Told of each record once.
    peers : mapping of str to Holder
        All nodes of the world.
    """

    def __init__(self, endpoint: Endpoint, on_state: Callable[[PeerState], None], peers: Mapping[str, Holder]) -> None:
        self._endpoint = endpoint
        self._on_state = on_state
        self._peers = peers
        self._forwards = endpoint.network.config.forwards_gossip
        self._neighbours: list[str] = []
        self._seen: dict[Key, None] = {}
        self._sequence = 0

    def connect(self, peer: str) -> None:
        """Make a peer a neighbour; it has to do the same."""
        self._neighbours = sorted({*self._neighbours, peer})

    def publish(self, state: PeerState) -> None:
        """Gossip a record to all nodes."""
        self._sequence += 1
        key = (self._endpoint.name, self._sequence)
        if self._forwards:
            self._remember(key)
            self._forward(key, state, without="")
            return
        for peer, holder in self._peers.items():
            if peer != self._endpoint.name:
                way = self._endpoint.to(peer)
                way.send_gossip(gossip(state) if way.is_limited else 0, holder.gossip.hear, state)

    def hear(self, state: PeerState) -> None:
        """Take in a record that came straight from its node."""
        self._on_state(state)

    def _remember(self, key: Key) -> None:
        self._seen[key] = None
        if len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]

    def _forward(self, key: Key, state: PeerState, *, without: str) -> None:
        own = self._endpoint.name
        for name in self._neighbours:
            if name in (without, key[0]):
                continue
            way = self._endpoint.to(name)
            size = gossip(state) if way.is_limited else 0
            way.send_gossip(size, self._peers[name].gossip.hear_forwarded, key, state, own)

    def hear_forwarded(self, key: Key, state: PeerState, forwarder: str) -> None:
        """Take in a record from a neighbour and pass it on."""
        if forwarder in self._neighbours and key not in self._seen:
            self._remember(key)
            self._forward(key, state, without=forwarder)
            self._on_state(state)

    def break_all(self) -> None:
        """Lose all neighbours, as a process does that dies."""
        neighbours, self._neighbours = self._neighbours, []
        for name in neighbours:
            self._endpoint.to(name).send(SEGMENT_BYTES, self._peers[name].gossip.forget, self._endpoint.name)

    def forget(self, peer: str) -> None:
        """Lose one neighbour."""
        self._neighbours = [name for name in self._neighbours if name != peer]
