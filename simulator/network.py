"""What lies between the nodes: links with delay, jitter, loss and bandwidth; partition, silence and death.

Knows nodes by name and messages by size; what a message means is a call made at its destination. The semantics are
those of transport.memory, the daemon's network on a virtual clock: a link delays and orders whole messages as TCP
shows them, each direction hands one message after the other to the line, and messages of one direction never overtake
one another. `Direction.send` is the one place where bandwidth is shared: sharing between flows (max-min) replaces its
serialisation and nothing else.
"""

import random
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from simulator.engine import Engine, stream


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One direction between two nodes."""

    delay_s: float = 0.0005
    """One way."""
    jitter_s: float = 0.0
    """Most that is added to the delay, uniformly."""
    gossip_loss: float = 0.0
    """Share of gossip messages that vanish, 0 to 1. Streams lose nothing."""
    bytes_per_s: float | None = None
    """Bandwidth; None for unlimited."""


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What connections cost, and how gossip spreads."""

    connect_round_trips: int = 3
    """TCP, TLS 1.3 with the confirmation byte, and Hello. 0: connections are there."""
    connect_timeout_s: float = 5.0
    """How long an attempt waits for a silent peer."""
    idle_connections: int = 4
    """Idle connections kept per peer."""
    forwards_gossip: bool = False
    """Whether a node passes gossip on to its neighbours (a mesh); otherwise each node hears each other directly."""


class Direction:
    """One direction of a link, with draws of its own."""

    __slots__ = ("_engine", "_idle_from_s", "_last_due_s", "_network", "_rng", "is_cut", "link", "source", "target")

    def __init__(self, network: "Network", source: str, target: str, link: Link, *, is_cut: bool) -> None:
        self._network = network
        self._engine = network.engine
        self.source = source
        self.target = target
        self.link = link
        self.is_cut = is_cut
        """Whether the source is gone, so that nothing leaves."""
        self._rng: random.Random | None = None
        self._idle_from_s = 0.0
        self._last_due_s = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether sizes matter here."""
        return self.link.bytes_per_s is not None

    def _draw(self) -> float:
        if self._rng is None:
            self._rng = stream(self._network.seed, "link", f"{self.source}/{self.target}")
        return self._rng.random()

    def send(self, size_bytes: int, call: Callable[..., object], *args: Any) -> None:  # noqa: ANN401
        """Make a call at the target once a message of this size has reached it."""
        if not self.is_cut:
            self.put(size_bytes, call, args)

    def put(self, size_bytes: int, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Put a message on its way, also one that was held when its source was removed."""
        link, sent_s = self.link, self._engine.now_s
        if link.bytes_per_s is not None:
            sent_s = max(sent_s, self._idle_from_s) + size_bytes / link.bytes_per_s
            self._idle_from_s = sent_s
        due_s = sent_s + link.delay_s
        if link.jitter_s:
            due_s += self._draw() * link.jitter_s
        if due_s < self._last_due_s:
            due_s = self._last_due_s
        self._last_due_s = due_s
        self._engine.at(due_s, self._arrive, call, args)

    def send_gossip(self, size_bytes: int, call: Callable[..., object], *args: Any) -> None:  # noqa: ANN401
        """Send what may be lost."""
        if not self.is_cut and (not self.link.gossip_loss or self._draw() >= self.link.gossip_loss):
            self.send(size_bytes, call, *args)

    def _arrive(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        if self._network.is_faulty and self._network.is_blocked(self.source, self.target):
            self._network.hold(self, call, args)
        else:
            call(*args)


class Network:
    """All directions, and what is wrong with them.

    Parameters
    ----------
    engine : Engine
        The clock.
    seed : str
        Seeds jitter and loss; one stream per direction.
    link : Link
        Every direction that set_link does not change.
    config : NetworkConfig
        What connections cost.
    """

    def __init__(
        self, engine: Engine, *, seed: str, link: Link | None = None, config: NetworkConfig | None = None
    ) -> None:
        self.engine = engine
        self.seed = seed
        self.default = link or Link()
        self.config = config or NetworkConfig()
        self.is_faulty = False
        """Whether anything is partitioned or paused."""
        self._directions: dict[tuple[str, str], Direction] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._groups: dict[str, int] = {}
        self._paused: set[str] = set()
        self._gone: set[str] = set()
        self._held: list[tuple[Direction, Callable[..., object], tuple[Any, ...]]] = []

    def direction(self, source: str, target: str) -> Direction:
        """Return the way from one node to another."""
        found = self._directions.get((source, target))
        if found is None:
            link = self._links.get((source, target), self.default)
            found = Direction(self, source, target, link, is_cut=source in self._gone)
            self._directions[source, target] = found
        return found

    def set_link(self, a: str, b: str, link: Link) -> None:
        """Change the link between two nodes, both directions."""
        for source, target in ((a, b), (b, a)):
            self._links[source, target] = link
            self.direction(source, target).link = link

    def partition(self, *groups: Iterable[str]) -> None:
        """Let nothing pass between nodes of different groups until heal; a node in no group reaches everyone."""
        self._groups = {node: i for i, group in enumerate(groups) for node in group}
        self._release()

    def heal(self) -> None:
        """End the partition; what was held arrives now."""
        self.partition()

    def pause(self, node: str) -> None:
        """Hold everything to and from a node, as for a stopped process."""
        self._paused.add(node)
        self.is_faulty = True

    def resume(self, node: str) -> None:
        """Let a paused node go on."""
        self._paused.discard(node)
        self._release()

    def remove(self, node: str) -> None:
        """Drop everything that a node sends from now on; what it sent before still arrives."""
        self._gone.add(node)
        self._paused.discard(node)
        self._held = [held for held in self._held if held[0].target != node]
        for direction in self._directions.values():
            direction.is_cut |= direction.source == node

    def is_gone(self, node: str) -> bool:
        """Return whether a node was removed."""
        return node in self._gone

    def is_blocked(self, source: str, target: str) -> bool:
        """Return whether nothing passes between two nodes now."""
        if source in self._paused or target in self._paused:
            return True
        apart = self._groups.get(source, -1) != self._groups.get(target, -1)
        return apart and source in self._groups and target in self._groups

    def hold(self, direction: Direction, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        """Keep a message that cannot pass, as TCP's repetitions would."""
        self._held.append((direction, call, args))

    def _release(self) -> None:
        self.is_faulty = bool(self._groups or self._paused)
        held, self._held = self._held, []
        for direction, call, args in held:
            direction.put(0, call, args)
