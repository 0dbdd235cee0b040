"""What lies between the nodes: ways with delay, jitter, loss and bandwidth; partition, silence and death.

Knows nodes by name and messages by size; what a message means is a call made at its destination. Without sharing the
semantics are those of transport.memory, the daemon's network on a virtual clock: a link delays and orders whole
messages as TCP shows them, each direction hands one message after the other to the line, and messages of one direction
never overtake one another.

With sharing (NetworkConfig.sharing) each connection is a lane of its own whose messages keep their order, and the
transfers of all lanes share the bandwidth of uplinks, downlinks and radio channels max-min fairly: see simulator.flows.
A message of one segment or less is no flow: it takes the time that its bytes take at the share it would get. Where a
way has no bandwidth, loss or jitter, a message costs one event, as without all this.
"""

import random
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from simulator.engine import Engine, stream
from simulator.flows import FlowModel, Flows, Resource, Uses
from simulator.links import TCP_SEGMENT_BYTES, Access, halved, joined, repetition_s
from simulator.links import Link as Link

Call = Callable[..., object]


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What connections cost, how gossip spreads, whether bandwidth is shared."""

    connect_round_trips: int = 3
    """TCP, TLS 1.3 with the confirmation byte, and Hello. 0: connections are there."""
    connect_timeout_s: float = 5.0
    """How long an attempt waits for a silent peer."""
    connect_cpu_s: float = 0.0
    """Processor time of a handshake on either side: the handshake takes longer by both, and so does what either
    machine serves meanwhile. See connection.HANDSHAKE_CPU_S."""
    handshake_bytes: tuple[tuple[int, int], ...] = ()
    """Bytes there and back of each round trip of a handshake; a segment each where not given. See
    connection.HANDSHAKE_BYTES."""
    idle_connections: int = 4
    """Idle connections kept per peer."""
    connections_per_peer: int | None = None
    """Connections asked for of one peer at once; further errands wait. None for no bound. See
    connection.DAEMON_POOL."""
    connections_max: int | None = None
    """The same of all peers; the one idle longest makes room."""
    idle_s: float | None = None
    """Time after which an idle connection is closed; None for never."""
    forwards_gossip: bool = False
    """Whether a node passes gossip on to its neighbours (a mesh); otherwise each node hears each other directly."""
    gossip_cpu_s: float = 0.0
    """Processor time that a gossip message takes of the machine of each node that hears it. See
    gossip.GOSSIP_CPU_S."""
    sharing: FlowModel | None = None
    """How concurrent transfers share bandwidth; None: each direction sends one message after the other."""
    media: Mapping[str, float] = {}
    """Bandwidth in bytes per second of the channels that `Access.medium` names."""
    is_metered: bool = False
    """Whether messages and their bytes are counted: sizes are computed for each then."""


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
        "_at",
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
        self._at = network.engine.at
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
            self._at(due_s, self._arrive, call, args)
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


class Network:
    """All directions, and what is wrong with them.

    Parameters
    ----------
    engine : Engine
        The clock.
    seed : str
        Seeds jitter and loss; one stream per direction.
    link : Link
        Every direction that set_link and attach do not change.
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
        self.flows = Flows(engine)
        """Transfers that share bandwidth."""
        self.is_faulty = False
        """Whether anything is partitioned or paused."""
        self._directions: dict[tuple[str, str], Direction] = {}
        self._links: dict[tuple[str, str], Link] = {}
        self._accesses: dict[str, Access] = {}
        self._resources: dict[tuple[str, str], Resource] = {}
        """Shared bandwidths: ("up", node), ("down", node), ("medium", name), or (source, target) of a link."""
        self._groups: dict[str, int] = {}
        self._paused: set[str] = set()
        self._gone: set[str] = set()
        self._held: list[tuple[Direction, Way, Call, tuple[Any, ...]]] = []

    # Links.

    def direction(self, source: str, target: str) -> Direction:
        """Return the way from one node to another."""
        found = self._directions.get((source, target))
        if found is None:
            found = Direction(self, source, target, is_cut=source in self._gone)
            self._directions[source, target] = found
            self._set(found)
        return found

    def set_link(self, a: str, b: str, link: Link) -> None:
        """Change the link between two nodes, both directions."""
        for source, target in ((a, b), (b, a)):
            self._links[source, target] = link
            self._set(self.direction(source, target))

    def attach(self, node: str, access: Access) -> None:
        """Give a node an access of its own, now or later; ways to and from it have its half from then on."""
        self._accesses[node] = access
        for direction in self._directions.values():
            if node in (direction.source, direction.target):
                self._set(direction)

    def _access(self, node: str) -> Access:
        return self._accesses.get(node) or halved(self.default)

    def _set(self, direction: Direction) -> None:
        """Make a direction what links and accesses say."""
        source, target = place = direction.source, direction.target
        is_direct = place in self._links
        if is_direct or not (source in self._accesses or target in self._accesses):
            link = self._links[place] if is_direct else self.default
            rates = {} if link.bytes_per_s is None else {place: (link.bytes_per_s, 1.0)}
            back = self._links.get((target, source), link).bytes_per_s
            if rates and back is not None:
                self._add(rates, (target, source), back, self._acknowledgements)
        else:
            link = joined(self._access(source), self._access(target))
            rates = self._access_rates(source, target)
        sharing = self.config.sharing
        if sharing is None:
            direction.set(link, (), 0.0)
            return
        uses = tuple([(self._resource(key, rate), weight) for key, (rate, weight) in rates.items() if weight])
        direction.set(link, uses, min(sharing.bound_bytes_s(link.delay_s), link.bound_bytes_s()))

    @property
    def _acknowledgements(self) -> float:
        return 0.0 if self.config.sharing is None else self.config.sharing.cross_traffic

    def _access_rates(self, source: str, target: str) -> dict[tuple[str, str], tuple[float, float]]:
        """Return what a byte from one node to another takes of which bandwidths."""
        sender, receiver, back = self._access(source), self._access(target), self._acknowledgements
        rates: dict[tuple[str, str], tuple[float, float]] = {}
        self._add(rates, ("up", source), sender.up_bytes_s, 1.0)
        self._add(rates, ("down", target), receiver.down_bytes_s, 1.0)
        self._add(rates, ("down", source), sender.down_bytes_s, back)
        self._add(rates, ("up", target), receiver.up_bytes_s, back)
        for access in (sender, receiver):
            if access.medium is not None:
                self._add(rates, ("medium", access.medium), self.config.media.get(access.medium), 1.0 + back)
        return rates

    @staticmethod
    def _add(
        rates: dict[tuple[str, str], tuple[float, float]], key: tuple[str, str], rate: float | None, weight: float
    ) -> None:
        if rate is not None:
            rates[key] = rate, rates.get(key, (0.0, 0.0))[1] + weight

    def _resource(self, key: tuple[str, str], bytes_per_s: float) -> Resource:
        sharing = self.config.sharing
        assert sharing is not None
        bytes_per_s *= sharing.bandwidth_factor
        found = self._resources.get(key)
        if found is None:
            found = self._resources[key] = Resource(bytes_per_s)
        elif found.bytes_per_s != bytes_per_s:
            self.flows.change(found, bytes_per_s)
        return found

    def traffic(self) -> dict[str, tuple[int, int]]:
        """Return the messages and bytes that each node has sent, where the network is metered."""
        found: dict[str, tuple[int, int]] = {}
        for direction in self._directions.values():
            messages, size_bytes = found.get(direction.source, (0, 0))
            found[direction.source] = messages + direction.messages, size_bytes + direction.bytes
        return found

    # What is wrong.

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

    def restore(self, node: str) -> None:
        """Let a removed node send again: another process in its place."""
        self._gone.discard(node)
        for direction in self._directions.values():
            if direction.source == node:
                direction.is_cut = False

    def is_gone(self, node: str) -> bool:
        """Return whether a node was removed."""
        return node in self._gone

    def is_blocked(self, source: str, target: str) -> bool:
        """Return whether nothing passes between two nodes now."""
        if source in self._paused or target in self._paused:
            return True
        apart = self._groups.get(source, -1) != self._groups.get(target, -1)
        return apart and source in self._groups and target in self._groups

    def hold(self, direction: Direction, way: Way, call: Call, args: tuple[Any, ...]) -> None:
        """Keep a message that cannot pass, as TCP's repetitions would."""
        self._held.append((direction, way, call, args))

    def _release(self) -> None:
        self.is_faulty = bool(self._groups or self._paused)
        held, self._held = self._held, []
        for _, way, call, args in held:
            way.put(0, call, args)
