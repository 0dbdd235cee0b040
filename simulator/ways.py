"""One direction between two nodes, and the lanes of its connections: when a message arrives that is sent now.

Knows messages by size; what a message means is a call made at its destination. What is partitioned, paused or gone is
the network's to say.
"""

import random
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

from simulator.engine import stream
from simulator.flows import Uses
from simulator.links import TCP_SEGMENT_BYTES, Link, repetition_s

if TYPE_CHECKING:
    from simulator.network import Network

Call = Callable[..., object]


class Way(Protocol):
    """Something that messages go through in order."""

    @property
    def is_limited(self) -> bool:
        """Whether sizes matter."""

    def send(self, size_bytes: int, call: Call, *args: Any) -> None:  # noqa: ANN401
        """Make a call at the target once a message of this size has reached it."""

    def put(self, size_bytes: int, call: Call, args: tuple[Any, ...]) -> None:
        """Put a message on its way, also one that was held when its source was removed."""


class Direction:
    """One direction between two nodes, with draws of its own."""

    __slots__ = (
        "_bound_bytes_s",
        "_delay_s",
        "_engine",
        "_idle_from_s",
        "_is_plain",
        "_lane",
        "_last_due_s",
        "_network",
        "_rng",
        "_stalled_until_s",
        "_uses",
        "bytes",
        "is_cut",
        "is_limited",
        "link",
        "messages",
        "source",
        "target",
    )

    def __init__(self, network: "Network", source: str, target: str, *, is_cut: bool) -> None:
        self._network = network
        self._engine = network.engine
        self.source = source
        self.target = target
        self.is_cut = is_cut
        """Whether the source is gone, so that nothing leaves."""
        self.messages = 0
        self.bytes = 0
        """Sent, where the network is metered."""
        self._rng: random.Random | None = None
        self._idle_from_s = 0.0
        self._last_due_s = 0.0
        self._stalled_until_s = 0.0
        self._lane: Lane | None = None

    def set(self, link: Link, uses: Uses, bound_bytes_s: float) -> None:
        """Be another link from now on."""
        self.link = link
        self._uses = uses
        self._bound_bytes_s = bound_bytes_s
        self._delay_s = link.delay_s
        is_metered = self._network.config.is_metered
        self.is_limited = link.bytes_per_s is not None or bool(uses) or link.loss > 0.0 or is_metered
        """Whether sizes matter here."""
        self._is_plain = not (self.is_limited or link.jitter_s or link.jitter)
        if uses and self._lane is None:
            self._lane = Lane(self)

    @property
    def is_plain(self) -> bool:
        """Whether this is a constant delay and nothing else."""
        return self._is_plain

    def lane(self) -> "Direction | Lane":
        """Return a way of its own for a connection; the direction itself where all share its order."""
        return Lane(self) if self._uses else self

    def _draws(self) -> random.Random:
        if self._rng is None:
            self._rng = stream(self._network.seed, "link", f"{self.source}/{self.target}")
        return self._rng

    def send(self, size_bytes: int, call: Call, *args: Any) -> None:  # noqa: ANN401
        """Make a call at the target once a message of this size has reached it."""
        if self.is_cut:
            return
        if self._is_plain:
            due_s = self._engine.now_s + self._delay_s
            if due_s < self._last_due_s:
                due_s = self._last_due_s
            else:
                self._last_due_s = due_s
            self._engine.at(due_s, self._arrive, call, args)
        else:
            self.put(size_bytes, call, args)

    def put(self, size_bytes: int, call: Call, args: tuple[Any, ...]) -> None:
        """Put a message on its way, also one that was held when its source was removed."""
        if self._lane is not None:
            self._lane.put(size_bytes, call, args)
            return
        self.count(size_bytes)
        sent_s = self._engine.now_s
        rate = self.link.bytes_per_s
        if rate is not None:
            sent_s = max(sent_s, self._idle_from_s) + size_bytes / rate
            self._idle_from_s = sent_s
        due_s = max(self.delayed_s(sent_s + self._delay_s, size_bytes), self._last_due_s)
        self._last_due_s = due_s
        self._engine.at(due_s, self._arrive, call, args)

    def count(self, size_bytes: int) -> None:
        """Count a message."""
        self.messages += 1
        self.bytes += size_bytes

    def delayed_s(self, due_s: float, size_bytes: int) -> float:
        """Draw when a message arrives that is due at a time but for jitter and loss, in seconds."""
        link = self.link
        if link.jitter_s:
            due_s += self._draws().random() * link.jitter_s
        if link.jitter and self._engine.now_s >= self._stalled_until_s:
            rng = self._draws()
            due_s += sum([each.draw_s(rng) for each in link.jitter])
            self._stalled_until_s = self._engine.now_s + link.coherence_s
        if link.loss:
            due_s += repetition_s(self._draws(), size_bytes, loss=link.loss, rtt_s=link.rtt_s)
        return due_s

    def send_gossip(self, size_bytes: int, call: Call, *args: Any) -> None:  # noqa: ANN401
        """Send what may be lost."""
        if not self.is_cut and (not self.link.gossip_loss or self._draws().random() >= self.link.gossip_loss):
            self.send(size_bytes, call, *args)

    def transfer(self, size_bytes: int, call: Call, *args: Any) -> None:  # noqa: ANN401
        """Make a call when the last byte of a transfer has left; bandwidth is shared."""
        self._network.flows.start(size_bytes, self._uses, call, *args, bound_bytes_s=self._bound_bytes_s)

    def small_s(self, size_bytes: int) -> float:
        """Return the time in which the bytes of a small message leave, in seconds."""
        return size_bytes / min([resource.share_bytes_s() / weight for resource, weight in self._uses])

    def flow_delay_s(self) -> float:
        """Return the delay of a transfer's last byte, in seconds."""
        sharing = self._network.config.sharing
        return self._delay_s * (1.0 if sharing is None else sharing.latency_factor)

    def _arrive(self, call: Call, args: tuple[Any, ...]) -> None:
        if self._network.is_faulty:
            self.pass_on(self, call, args)
        else:
            call(*args)

    def pass_on(self, way: Way, call: Call, args: tuple[Any, ...]) -> None:
        """Make a message's call, or hold it while nothing passes; it goes on through the same way then."""
        if self._network.is_faulty and self._network.is_blocked(self.source, self.target):
            self._network.hold(self, way, call, args)
        else:
            call(*args)


class Lane:
    """The messages of one connection in one direction where bandwidth is shared: in order, one transfer at a time."""

    __slots__ = ("_direction", "_engine", "_is_busy", "_last_due_s", "_waiting")

    def __init__(self, direction: Direction) -> None:
        self._direction = direction
        self._engine = direction._engine
        self._waiting: deque[tuple[int, Call, tuple[Any, ...]]] = deque()
        self._is_busy = False
        self._last_due_s = 0.0

    @property
    def is_limited(self) -> bool:
        """Whether sizes matter here: they do."""
        return True

    def send(self, size_bytes: int, call: Call, *args: Any) -> None:  # noqa: ANN401
        """Make a call at the target once a message of this size has reached it."""
        if not self._direction.is_cut:
            self.put(size_bytes, call, args)

    def put(self, size_bytes: int, call: Call, args: tuple[Any, ...]) -> None:
        """Put a message on its way, also one that was held when its source was removed."""
        self._direction.count(size_bytes)
        if self._is_busy:
            self._waiting.append((size_bytes, call, args))
        else:
            self._begin(size_bytes, call, args)

    def _begin(self, size_bytes: int, call: Call, args: tuple[Any, ...]) -> None:
        direction = self._direction
        if size_bytes > TCP_SEGMENT_BYTES:
            self._is_busy = True
            direction.transfer(size_bytes, self._sent, size_bytes, call, args)
        else:
            self._deliver(size_bytes, direction.small_s(size_bytes) + direction.link.delay_s, call, args)

    def _sent(self, size_bytes: int, call: Call, args: tuple[Any, ...]) -> None:
        self._is_busy = False
        self._deliver(size_bytes, self._direction.flow_delay_s(), call, args)
        while self._waiting and not self._is_busy:
            self._begin(*self._waiting.popleft())

    def _deliver(self, size_bytes: int, delay_s: float, call: Call, args: tuple[Any, ...]) -> None:
        due_s = self._direction.delayed_s(self._engine.now_s + delay_s, size_bytes)
        due_s = self._last_due_s = max(due_s, self._last_due_s)
        self._engine.at(due_s, self._direction.pass_on, self, call, args)
