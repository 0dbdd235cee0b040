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
byte left. By what rates and latencies differ from the wire's figures is a FlowModel: see simulator.flowmodels.
"""

from collections.abc import Callable, Iterable, Sequence
from math import inf
from typing import Any

from simulator.engine import Engine


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
