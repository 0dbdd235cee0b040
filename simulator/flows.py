"""Concurrent transfers that share bandwidth: a fluid model, max-min fair.

Owns rates and ends of transfers, and knows nothing of messages. A transfer is a *flow* over *resources*: a node's
uplink, the target's downlink, a radio channel that many share. At each instant the rates are max-min fair: no flow
could go faster without slowing one that is not faster. When a flow begins or ends, only the flows that are tied to it
by common resources (its connected component) are computed anew.

Notes
-----
Semantics. Two are found in the literature and in SimGrid: shares without regard of round trip times, and shares in
inverse proportion to them, as old TCPs tend to. Here **each flow weighs the same, whatever its round trip**. A grid's
links are short and alike, and today's congestion controls (CUBIC: RFC 9438, section 5.8; BBR) are made to have little
bias; the other semantics would also make a rate depend on the delays of links that are not its bottleneck.

A flow takes bandwidth from the moment at which its first byte leaves; its last byte arrives a latency after its last
byte left. Factors of SimGrid's models (its documentation, "Models"; Velho and Legrand 2009) are a named FlowModel:
LV08 stretches latencies by 13.01 to stand for TCP's slow start, uses 97 % of a bandwidth (headers), and lets
acknowledgements take 5 % of the way back. CM02 has no factors. Both bound a flow by a TCP window of 4194304 bytes per
round trip.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any, Final

import msgspec

from simulator.engine import Engine

TCP_WINDOW_BYTES: Final = 4_194_304
"""Largest TCP window in SimGrid's models, and Linux's default upper bound of one (net.ipv4.tcp_wmem)."""


class FlowModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far a flow is from the wire's figures."""

    name: str = "ideal"
    latency_factor: float = 1.0
    """On latencies, for a whole transfer."""
    bandwidth_factor: float = 1.0
    """Share of a bandwidth that payload can use."""
    cross_traffic: float = 0.0
    """What a flow takes of the way back, as a share of its rate: acknowledgements."""
    window_bytes: int | None = None
    """Most bytes under way in a round trip of twice the latency; None for unlimited."""

    def bound_bytes_s(self, latency_s: float) -> float:
        """Return the highest rate of one flow over a latency (one way, in seconds), in bytes per second."""
        if self.window_bytes is None or latency_s <= 0.0:
            return inf
        return self.window_bytes / (2.0 * latency_s)


IDEAL: Final = FlowModel()
CM02: Final = FlowModel(name="cm02", window_bytes=TCP_WINDOW_BYTES)
LV08: Final = FlowModel(
    name="lv08", latency_factor=13.01, bandwidth_factor=0.97, cross_traffic=0.05, window_bytes=TCP_WINDOW_BYTES
)
POOLED: Final = FlowModel(name="pooled", bandwidth_factor=0.97, cross_traffic=0.05, window_bytes=TCP_WINDOW_BYTES)
"""LV08 without its factor on latencies, which stands for the slow start of a fresh connection: the daemon keeps its
connections open, so that their windows have grown."""
MODELS: Final = {model.name: model for model in (IDEAL, CM02, LV08, POOLED)}
"""By name, as in a scenario."""


class Resource:
    """Something with a bandwidth that flows share.

    Parameters
    ----------
    bytes_per_s : float
        Bandwidth in bytes per second, > 0.
    """

    __slots__ = ("bytes_per_s", "flows")

    def __init__(self, bytes_per_s: float) -> None:
        if not bytes_per_s > 0.0:
            raise ValueError(f"a bandwidth is {bytes_per_s} bytes/s; it must be above 0, or None where sizes are free")
        self.bytes_per_s = bytes_per_s
        self.flows: dict[Flow, float] = {}
        """Flows over it, with what each takes per byte of its own."""

    def share_bytes_s(self) -> float:
        """Return what one more flow would about get, in bytes per second."""
        return self.bytes_per_s / (1 + len(self.flows))


Uses = tuple[tuple[Resource, float], ...]
"""Resources of a flow, each once, with what it takes there per byte."""


class Flow:
    """A transfer under way."""

    __slots__ = ("_number", "_since_s", "args", "bound_bytes_s", "call", "left_bytes", "rate_bytes_s", "uses")

    def __init__(
        self, size_bytes: float, uses: Uses, bound_bytes_s: float, call: Callable[..., object], args: tuple[Any, ...]
    ) -> None:
        self.left_bytes = float(size_bytes)
        self.uses = uses
        self.bound_bytes_s = bound_bytes_s
        self.call = call
        self.args = args
        self.rate_bytes_s = 0.0
        self._since_s = 0.0
        self._number = 0

    def go(self, engine: Engine, rate_bytes_s: float, end: Callable[["Flow"], object]) -> None:
        """Take a rate from now on, and have the end come when it does; nothing changes where the rate is the same."""
        if rate_bytes_s == self.rate_bytes_s:
            return
        now_s = engine.now_s
        self.left_bytes = max(0.0, self.left_bytes - self.rate_bytes_s * (now_s - self._since_s))
        self.rate_bytes_s = rate_bytes_s
        self._since_s = now_s
        if self._number:
            engine.cancel(self._number)
        self._number = engine.at(now_s + self.left_bytes / rate_bytes_s, end, self)


class Flows:
    """All flows of a network.

    Parameters
    ----------
    engine : Engine
        The clock.

    Examples
    --------
    >>> engine = Engine()
    >>> flows, wire = Flows(engine), Resource(1e6)
    >>> flows.start(1e6, ((wire, 1.0),), print, "one megabyte")
    >>> flows.start(2e6, ((wire, 1.0),), print, "two megabytes")
    >>> engine.run(2.0)
    one megabyte
    1
    >>> engine.run(3.0)
    two megabytes
    1
    """

    __slots__ = ("_engine", "begun")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.begun = 0
        """Flows so far."""

    def start(
        self,
        size_bytes: float,
        uses: Uses,
        call: Callable[..., object],
        *args: Any,  # noqa: ANN401
        bound_bytes_s: float = inf,
    ) -> None:
        """Begin a transfer.

        Parameters
        ----------
        size_bytes : float
            Payload, in bytes, > 0.
        uses : tuple of (Resource, float)
            What it goes over, at least one.
        call : callable
            Made with the arguments that follow when the last byte has left.
        bound_bytes_s : float, default infinity
            Highest rate, in bytes per second.
        """
        flow = Flow(size_bytes, uses, bound_bytes_s, call, args)
        self.begun += 1
        is_alone = True
        for resource, weight in uses:
            is_alone = is_alone and not resource.flows
            resource.flows[flow] = weight
        if is_alone:
            rate = min([resource.bytes_per_s / weight for resource, weight in uses])
            flow.go(self._engine, min(rate, bound_bytes_s), self._end)
        else:
            self._share([flow])

    def change(self, resource: Resource, bytes_per_s: float) -> None:
        """Give a resource another bandwidth, in bytes per second, > 0."""
        resource.bytes_per_s = Resource(bytes_per_s).bytes_per_s
        self._share(resource.flows)

    def _end(self, flow: Flow) -> None:
        rest: dict[Flow, None] = {}
        for resource, _ in flow.uses:
            del resource.flows[flow]
            rest.update(dict.fromkeys(resource.flows))
        if rest:
            self._share(rest)
        flow.call(*flow.args)

    def _share(self, changed: Iterable[Flow]) -> None:
        engine, end = self._engine, self._end
        for flow, rate in fair_rates(component(changed)):
            flow.go(engine, rate, end)


def component(flows: Iterable[Flow]) -> list[Flow]:
    """Return all flows that are tied to some by common resources, those included, each once."""
    found = dict.fromkeys(flows)
    seen: set[Resource] = set()
    waiting = list(found)
    while waiting:
        for resource, _ in waiting.pop().uses:
            if resource not in seen:
                seen.add(resource)
                fresh = [flow for flow in resource.flows if flow not in found]
                found.update(dict.fromkeys(fresh))
                waiting += fresh
    return list(found)


def fair_rates(flows: Sequence[Flow]) -> list[tuple[Flow, float]]:
    """Return the max-min fair rates of flows, in bytes per second.

    Notes
    -----
    Progressive filling (Bertsekas and Gallager, Data Networks, section 6.5.2): all rates rise together until a
    resource is full or a flow has its bound; its flows stay there and the others go on. A component is closed: no
    other flow takes of its resources.
    """
    spare: dict[Resource, list[float]] = {}  # bandwidth left; taken per unit of rate by open flows; their number
    for flow in flows:
        for resource, weight in flow.uses:
            left = spare.setdefault(resource, [resource.bytes_per_s, 0.0, 0])
            left[1] += weight
            left[2] += 1
    open_flows = dict.fromkeys(flows)
    found: list[tuple[Flow, float]] = []
    while open_flows:
        level = min([left[0] / left[1] for left in spare.values()], default=inf)
        bound = min([flow.bound_bytes_s for flow in open_flows])
        if bound <= level:
            level = bound
            full = [flow for flow in open_flows if flow.bound_bytes_s <= level]
        else:
            tight = {resource: None for resource, left in spare.items() if left[0] / left[1] <= level}
            full = [flow for flow in open_flows if any(resource in tight for resource, _ in flow.uses)]
        for flow in full:
            del open_flows[flow]
            found.append((flow, level))
            for resource, weight in flow.uses:
                left = spare[resource]
                left[0] = max(0.0, left[0] - weight * level)
                left[1] -= weight
                left[2] -= 1
                if not left[2]:
                    del spare[resource]
    return found


# ---------------------------------------------------------------- cases by hand


class WireCase(msgspec.Struct, frozen=True):
    """A link of a case, shared by both directions."""

    bytes_per_s: float
    latency_s: float = 0.0


class FlowCase(msgspec.Struct, frozen=True):
    """A transfer of a case."""

    size_bytes: float
    links: tuple[str, ...]
    start_s: float = 0.0


def transfer_times_s(links: Mapping[str, WireCase], flows: Sequence[FlowCase], model: FlowModel) -> list[float]:
    """Return when each transfer is complete at its target.

    Parameters
    ----------
    links : mapping of str to WireCase
        By name.
    flows : sequence of FlowCase
        What is sent, and over which links.
    model : FlowModel
        Factors.

    Returns
    -------
    list of float
        Times in seconds from 0, in the order of `flows`.

    Examples
    --------
    >>> wire = {"wire": WireCase(125_000.0, 0.01)}
    >>> round(transfer_times_s(wire, [FlowCase(100_000, ("wire",))], LV08)[0], 6)
    0.996079
    """
    engine = Engine()
    network = Flows(engine)
    wires = {name: Resource(link.bytes_per_s * model.bandwidth_factor) for name, link in links.items()}
    done = [inf] * len(flows)

    def finish(number: int, latency_s: float) -> None:
        done[number] = engine.now_s + latency_s

    for number, flow in enumerate(flows):
        latency_s = sum(links[name].latency_s for name in flow.links)
        uses = tuple([(wires[name], 1.0 + model.cross_traffic) for name in flow.links])
        start = partial(network.start, flow.size_bytes, uses, bound_bytes_s=model.bound_bytes_s(latency_s))
        engine.at(flow.start_s, start, finish, number, latency_s * model.latency_factor)
    engine.run()
    return done


class FlowCheck(msgspec.Struct, frozen=True, kw_only=True):
    """A case whose result is known."""

    name: str
    links: dict[str, WireCase]
    flows: tuple[FlowCase, ...]
    model: FlowModel
    expected_s: tuple[float, ...]
    source: str

    def times_s(self) -> list[float]:
        """Run it; returns the times in seconds in the order of `expected_s`."""
        return transfer_times_s(self.links, self.flows, self.model)


_LV08_ALONE = FlowModel(name="lv08 without acknowledgements", latency_factor=13.01, bandwidth_factor=0.97)
_MEGABIT = {"wire": WireCase(125_000.0, 0.01)}
_MEGABYTE = {"wire": WireCase(1e6, 0.01)}
_TWO = (FlowCase(1e6, ("wire",)), FlowCase(2e6, ("wire",)))
_SIMGRID = "SimGrid 3.32, run beside; its documentation, Models, has the formula"

FLOW_CHECKS: Final = (
    FlowCheck(
        name="flow: LV08, 100 kB over 1 Mb/s, 10 ms",
        links=_MEGABIT,
        flows=(FlowCase(100_000, ("wire",)),),
        model=LV08,
        expected_s=(0.996079,),
        source=_SIMGRID,
    ),
    FlowCheck(
        name="flow: the same without acknowledgements",
        links=_MEGABIT,
        flows=(FlowCase(100_000, ("wire",)),),
        model=_LV08_ALONE,
        expected_s=(0.954842,),
        source=_SIMGRID,
    ),
    FlowCheck(
        name="flow: CM02, 1 MB and 2 MB share 1 MB/s",
        links=_MEGABYTE,
        flows=_TWO,
        model=CM02,
        expected_s=(2.010, 3.010),
        source=_SIMGRID,
    ),
    FlowCheck(
        name="flow: LV08 without acknowledgements, 1 MB and 2 MB share 1 MB/s",
        links=_MEGABYTE,
        flows=_TWO,
        model=_LV08_ALONE,
        # .1301 + 2 / .97 and .1301 + 3 / .97, to more digits than SimGrid prints
        expected_s=(0.1301 + 2 / 0.97, 0.1301 + 3 / 0.97),
        source=_SIMGRID,
    ),
    FlowCheck(
        name="flow: max-min, three flows over 10 and 4 MB/s",
        links={"left": WireCase(10e6), "right": WireCase(4e6)},
        flows=(
            FlowCase(80e6, ("left",)),
            FlowCase(20e6, ("left", "right")),
            FlowCase(20e6, ("right",)),
        ),
        model=CM02,
        expected_s=(10.0, 10.0, 10.0),
        source="by hand: 8, 2 and 2 MB/s; SimGrid 3.32 agrees",
    ),
    FlowCheck(
        name="flow: TCP window of 4194304 B caps 10 GiB over 10 GB/s, 1 ms",
        links={"wire": WireCase(10e9, 0.001)},
        flows=(FlowCase(10 * 2**30, ("wire",)),),
        model=CM02,
        expected_s=(5.12 + 0.001,),
        source="by hand: 4194304 B / 2 ms, and the latency; SimGrid's documentation, Models",
    ),
)
"""Flow-level cases; each must come out within a microsecond."""
