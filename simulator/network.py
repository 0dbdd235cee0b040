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

from collections.abc import Iterable
from typing import Any

from simulator.config import NetworkConfig
from simulator.engine import Engine
from simulator.flows import Flows, Resource
from simulator.links import Access, Link, halved, joined
from simulator.ways import Call, Direction, Way


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

    def common_delay_s(self) -> float | None:
        """Return the delay of every way, in seconds, where all are alike and nothing but a delay; None otherwise."""
        if self._links or self._accesses or self.config.sharing is not None or self.config.is_metered:
            return None
        link = self.default
        if link.jitter_s or link.jitter or link.loss or link.gossip_loss or link.bytes_per_s is not None:
            return None
        return link.delay_s

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
