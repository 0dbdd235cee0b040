"""Links between nodes with delay, jitter, loss and bandwidth, as transport.memory has them for the daemon.

A link delays and orders whole messages; one direction between two nodes is one queue for the bytes of all its
connections. Gossip takes the delay of its link and no bandwidth: state records are small and rare.

Knows nodes by name and messages by size.
"""

import random
from typing import Final

import msgspec

from simulator.engine import Call, Engine

SEGMENT_BYTES: Final = 64
"""Size of what opens, accepts or closes a connection."""


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One direction between two nodes."""

    delay_s: float = 0.0005
    """One way, in seconds."""
    jitter_s: float = 0.0
    """Most that is added to the delay, uniformly, in seconds. Messages of one direction never overtake one another."""
    gossip_loss: float = 0.0
    """Share of gossip messages that vanish, 0 to 1."""
    bytes_per_s: float | None = None
    """Bandwidth; None for unlimited."""


class _Way:
    """What the network keeps of one direction."""

    __slots__ = ("_engine", "_name", "_rng", "idle_from_s", "last_due_s", "link")

    def __init__(self, engine: Engine, name: str, link: Link) -> None:
        self._engine = engine
        self._name = name
        self._rng: random.Random | None = None
        self.link = link
        self.last_due_s = 0.0
        self.idle_from_s = 0.0

    def draw(self) -> float:
        """Draw from 0 to 1; the stream is only made when one is wanted, since there are many directions."""
        if self._rng is None:
            self._rng = self._engine.stream("link", self._name)
        return self._rng.random()

    def delay_s(self) -> float:
        """Return the delay of one message in seconds."""
        link = self.link
        return link.delay_s + (self.draw() * link.jitter_s if link.jitter_s else 0.0)


class Wire:
    """Carries calls between nodes.

    Parameters
    ----------
    engine : Engine
        The clock.
    link : Link
        Every direction that `set_link` does not change.
    """

    def __init__(self, engine: Engine, link: Link) -> None:
        self.engine = engine
        self._default = link
        self._ways: dict[tuple[str, str], _Way] = {}
        self._gone: set[str] = set()
        self.bytes_sent = 0
        """Bytes of all messages but gossip."""

    def set_link(self, a: str, b: str, link: Link) -> None:
        """Change the link between two nodes, both directions."""
        self._way(a, b).link = link
        self._way(b, a).link = link

    def remove(self, node: str) -> None:
        """Drop everything that a node sends from now on; what it sent before still arrives."""
        self._gone.add(node)

    def is_gone(self, node: str) -> bool:
        """Return whether a node was removed."""
        return node in self._gone

    @property
    def refusal_s(self) -> float:
        """Time in which the machine of a dead process refuses a connection, in seconds."""
        return 2 * self._default.delay_s

    def send(self, source: str, target: str, size_bytes: int, call: Call) -> None:
        """Make a call at the target once a message of this size has reached it."""
        if source in self._gone:
            return
        way = self._way(source, target)
        link = way.link
        self.bytes_sent += size_bytes
        sent_s = self.engine.now_s
        if link.bytes_per_s is not None:
            sent_s = max(sent_s, way.idle_from_s) + size_bytes / link.bytes_per_s
            way.idle_from_s = sent_s
        way.last_due_s = max(sent_s + way.delay_s(), way.last_due_s)
        self.engine.at(way.last_due_s, call)

    def gossip(self, source: str, target: str, call: Call) -> None:
        """Make a call at the target after the link's delay, unless the message is lost."""
        if source in self._gone:
            return
        way = self._way(source, target)
        if way.link.gossip_loss > 0.0 and way.draw() < way.link.gossip_loss:
            return
        self.engine.after(way.delay_s(), call)

    def _way(self, source: str, target: str) -> _Way:
        way = self._ways.get((source, target))
        if way is None:
            way = self._ways[source, target] = _Way(self.engine, f"{source}>{target}", self._default)
        return way
