"""How state records and words about nodes spread: to each node directly, or over a mesh of neighbours.

In a mesh each record floods: whoever hears it first from a neighbour passes it on to all others, duplicates are
dropped, as in transport.memory. Without one each node hears each other after one way; that costs N events per record
in place of N times the neighbours, and a single one where all ways are alike.

A duplicate is counted, not carried, where that changes nothing: over a way that is a delay and nothing else, to a node
that has the message or to which it comes sooner from another. (Where that other dies on the way, the node misses one
record.)
"""

from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Final, Protocol

from scheduler.types import PeerState
from simulator.connection import Endpoint
from simulator.engine import stream
from simulator.messages import GOSSIP_OVERHEAD_BYTES, SEGMENT_BYTES, gossip
from transport.wire import HealthNotice, encode

SEEN_MAX: Final = 4096
"""Records remembered to drop duplicates."""
MESH_DEGREE: Final = 8
"""Control connections per node that the daemon's planner (transport.discovery) keeps."""
GOSSIP_CPU_S: Final = 0.006
"""Processor time per delivered gossip message on one x86 core, forwarding and duplicates included: 5 to 7 ms were
measured with py-libp2p 0.8.1, noise and its stock yamux, 5 to 20 nodes of 300 B messages; 2.4 to 2.9 ms with a leaner
muxer. A board takes several times as long."""

Key = tuple[str, int]
News = PeerState | HealthNotice


class Holder(Protocol):
    """Whoever has a Gossip."""

    @property
    def gossip(self) -> "Gossip":
        """Its gossip."""


def build_mesh(names: Iterable[str], *, degree: int = MESH_DEGREE, seed: str) -> dict[str, tuple[str, ...]]:
    """Return the neighbours of each node in a random connected mesh.

    Parameters
    ----------
    names : iterable of str
        Nodes.
    degree : int, default 8
        Neighbours that each is to have, at least 2; all others where there are no more. Some have one more or less.
    seed : str
        Seeds the draw.

    Notes
    -----
    Circles through all nodes in drawn orders, laid over one another: half of `degree` of them. One circle connects
    all; a union of random circles is an expander with high probability, so that news crosses it in about log N steps.

    Examples
    --------
    >>> mesh = build_mesh("abc", seed="7")
    >>> mesh["a"]
    ('b', 'c')
    """
    order = sorted(names)
    neighbours: dict[str, set[str]] = {name: set() for name in order}
    if len(order) - 1 <= degree:
        return {name: tuple([other for other in order if other != name]) for name in order}
    rng = stream(seed, "mesh", "")
    for circle in range(max(1, degree // 2)):
        rng.shuffle(order)
        for place, name in enumerate(order):
            # An odd degree has half a circle besides: every other pair.
            neighbours[name].add(order[place - 1])
            neighbours[order[place - 1]].add(name)
        if degree % 2 and circle == 0:
            for name, other in zip(order[::2], order[len(order) // 2 :: 2], strict=False):
                if name != other:
                    neighbours[name].add(other)
                    neighbours[other].add(name)
    return {name: tuple(sorted(neighbours[name])) for name in sorted(neighbours)}


def size_bytes(news: News) -> int:
    """Return the size of a gossip message."""
    return gossip(news) if isinstance(news, PeerState) else len(encode(news)) + GOSSIP_OVERHEAD_BYTES


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
    on_notice : callable, optional
        Told of each word about a node once, with its origin.
    epoch : int, default 1
        Boot counter of the node: its messages are not taken for those of an earlier life.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        on_state: Callable[[PeerState], None],
        peers: Mapping[str, Holder],
        on_notice: Callable[[str, HealthNotice], None] | None = None,
        *,
        epoch: int = 1,
    ) -> None:
        self._endpoint = endpoint
        self.on_state = on_state
        """Told of each record once."""
        self._on_notice = on_notice
        self._peers = peers
        self._forwards = endpoint.network.config.forwards_gossip
        self._neighbours: list[str] = []
        self._seen: dict[Key, float] = {}
        """When each message came, or is to come, in seconds."""
        self._sequence = epoch << 32
        self.home: tuple[str, ...] = ()
        """All that were ever made neighbours: where a process that returns finds the mesh again."""
        self.heard = 0
        """Messages heard, each once."""
        self.duplicates = 0
        """Messages that came, or would have come, once more."""

    @property
    def neighbours(self) -> tuple[str, ...]:
        """Those that are connected now, sorted."""
        return tuple(self._neighbours)

    def connect(self, peer: str) -> None:
        """Make a peer a neighbour; it has to do the same."""
        self._neighbours = sorted({*self._neighbours, peer})
        self.home = tuple(sorted({*self.home, peer}))

    def limit(self, audience: Iterable[str]) -> None:
        """Be heard by these nodes only from now on. An experiment, where no mesh forwards: no daemon does so."""
        self._peers = {name: self._peers[name] for name in audience}

    def publish(self, news: News) -> None:
        """Gossip a record, or a word about a node, to all nodes."""
        self._sequence += 1
        own = self._endpoint.name
        if self._forwards:
            key = (own, self._sequence)
            self._remember(key)
            self._forward(key, news, without="")
            return
        network = self._endpoint.network
        delay_s = network.common_delay_s()
        if delay_s is not None:
            # It reaches all at one instant: one event, and no record of the way to each of them.
            if not network.is_gone(own):
                network.engine.at(network.engine.now_s + delay_s, self._reach_all, news)
            return
        for peer, holder in self._peers.items():
            if peer != own:
                way = self._endpoint.to(peer)
                way.send_gossip(size_bytes(news) if way.is_limited else 0, holder.gossip.hear, own, news)

    def _reach_all(self, news: News) -> None:
        own, network = self._endpoint.name, self._endpoint.network
        for peer, holder in self._peers.items():
            if peer == own:
                continue
            if network.is_faulty:
                way = self._endpoint.to(peer)
                way.pass_on(way, holder.gossip.hear, (own, news))
            else:
                holder.gossip.hear(own, news)

    def hear(self, origin: str, news: News) -> None:
        """Take in what came straight from its node."""
        self.heard += 1
        if isinstance(news, PeerState):
            self.on_state(news)
        elif self._on_notice is not None:
            self._on_notice(origin, news)

    def expects(self, key: Key, due_s: float) -> bool:
        """Return whether a message that would come at a time is a duplicate then; otherwise expect it."""
        if self._seen.get(key, inf) <= due_s:
            self.duplicates += 1
            return True
        self._seen[key] = due_s
        return False

    def _remember(self, key: Key) -> None:
        self._seen[key] = -inf
        if len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]

    def _forward(self, key: Key, news: News, *, without: str) -> None:
        own, network = self._endpoint.name, self._endpoint.network
        now_s = network.engine.now_s
        for name in self._neighbours:
            if name in (without, key[0]):
                continue
            way = self._endpoint.to(name)
            there = self._peers[name].gossip
            if way.is_plain and not network.is_faulty and there.expects(key, now_s + way.link.delay_s):
                continue
            way.send_gossip(size_bytes(news) if way.is_limited else 0, there.hear_forwarded, key, news, own)

    def hear_forwarded(self, key: Key, news: News, forwarder: str) -> None:
        """Take in a message from a neighbour and pass it on."""
        if forwarder not in self._neighbours:
            return
        if self._seen.get(key) == -inf:
            self.duplicates += 1
            return
        self._remember(key)
        self._forward(key, news, without=forwarder)
        self.hear(key[0], news)

    def break_all(self) -> None:
        """Lose all neighbours, as a process does that dies."""
        neighbours, self._neighbours = self._neighbours, []
        for name in neighbours:
            self._endpoint.to(name).send(SEGMENT_BYTES, self._peers[name].gossip.forget, self._endpoint.name)

    def forget(self, peer: str) -> None:
        """Lose one neighbour."""
        self._neighbours = [name for name in self._neighbours if name != peer]
