"""What no placement can beat, and what the best placement without news can do; computed, not simulated.

Four figures stand beside the results of a run:

* `zero_queue_s`: mean sojourn time if nobody ever waited. A lower bound of every policy's mean.
* `static_split`: mean of the best fixed shares, each node an M/G/1 queue of its own. What weights found in advance
  can do; a policy with news should be below it.
* `goodput_ceiling`: share of jobs that can be answered in time when more comes than fits.
* `burst_ceiling`: the same for arrivals that come in bursts.

Nodes are described by classes of equal ones. A job that is served where it comes in costs no transfer; elsewhere it
costs its class's. Arrivals at a class are those of its nodes' own clients.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from simulator.theory import erlang_c

_SPLIT_STEPS: Final = 200
"""Bisection steps: more than a double has bits, whatever the first bracket."""
_ASCENT_STEPS: Final = 4_000
"""Steps of the ascent to the bound of several models; every step gives a valid bound, so more only sharpen it."""
_ASCENT_SHRINK: Final = 0.996
"""Factor on the step from one to the next: 4,000 of them go down to 1e-7 of the first."""


class NodeClass(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Equal nodes, as one model sees them."""

    count: int
    """Nodes, >= 1."""
    service_s: float
    """Mean service time of one job alone, > 0."""
    slots: int = 1
    """Jobs served at once by one node."""
    rate_hz: float | None = None
    """Most jobs per second of one node; None for slots / service_s. Larger where it serves batches."""
    cv2: float = 0.0
    """Squared coefficient of variation of the service time."""
    arrivals_hz: float = 0.0
    """Jobs per second that come in at one of these nodes."""
    transfer_s: float = 0.0
    """Time a job loses, both ways together, when it comes in elsewhere and runs here."""

    @property
    def capacity_hz(self) -> float:
        """Return the jobs per second that one node can serve."""
        return self.slots / self.service_s if self.rate_hz is None else self.rate_hz


class OverloadError(ValueError):
    """More comes than the fleet can serve: there is no stationary mean."""


def capacity_hz(fleet: Sequence[NodeClass]) -> float:
    """Return the jobs per second that a fleet can serve."""
    return math.fsum([each.count * each.capacity_hz for each in fleet])


def _arrivals_hz(fleet: Sequence[NodeClass]) -> float:
    total_hz, most_hz = math.fsum([each.count * each.arrivals_hz for each in fleet]), capacity_hz(fleet)
    if total_hz >= most_hz:
        raise OverloadError(f"{total_hz:.4g} jobs/s come and the fleet serves at most {most_hz:.4g}; lower the load")
    return total_hz


# ---------------------------------------------------------------- nobody waits


def zero_queue_s(fleet: Sequence[NodeClass]) -> float:
    """Return the least mean sojourn time if no job ever waited, in seconds: one model.

    Raises
    ------
    OverloadError
        When more comes than the fleet can serve.

    Notes
    -----
    A transport problem with a closed solution: the first jobs of a node up to its own arrivals cost its service time,
    those beyond cost the transfer too; these pieces are filled in the order of their cost. Every policy's jobs are
    such a filling (no node serves more than its capacity), and waiting only adds, so it is a lower bound.

    Examples
    --------
    >>> fast = NodeClass(count=1, service_s=0.01, arrivals_hz=30.0)
    >>> slow = NodeClass(count=1, service_s=0.1, arrivals_hz=30.0)
    >>> round(zero_queue_s([fast, slow]), 6)
    0.01
    """
    left_hz = total_hz = _arrivals_hz(fleet)
    pieces = []
    for each in fleet:
        own_hz = min(each.arrivals_hz, each.capacity_hz)
        pieces.append((each.service_s, each.count * own_hz))
        pieces.append((each.service_s + each.transfer_s, each.count * (each.capacity_hz - own_hz)))
    cost = 0.0
    for cost_s, room_hz in sorted(pieces):
        taken_hz = min(left_hz, room_hz)
        cost += cost_s * taken_hz
        left_hz -= taken_hz
    return cost / total_hz


def zero_queue_of_models_s(fleets: Mapping[str, Sequence[NodeClass]]) -> float:
    """Return a lower bound of the mean sojourn time over several models that share the nodes, in seconds.

    Parameters
    ----------
    fleets : mapping of str to sequence of NodeClass
        The same classes in the same order for each model, with that model's times and arrivals. A class that has not
        got a model has an infinite service time for it.

    Returns
    -------
    float
        A valid lower bound, and the best of its kind up to the accuracy of the ascent (1e-3 in the tests).

    Notes
    -----
    The linear programme shares each class's time among models. Its dual is used: for any price w >= 0 of a node's
    time, every job costs at least min over classes of (service + transfer + w x time), less what all time there is
    would earn at that price. Each set of prices gives a bound, so an ascent that stops early is still right. Jobs are
    taken to be served where they come in whenever that is cheaper, without looking whether there is room: that too
    can only lower the bound.
    """
    classes = [list(fleet) for fleet in fleets.values()]
    total_hz = math.fsum([each.count * each.arrivals_hz for fleet in classes for each in fleet])
    prices = [0.0] * len(classes[0])
    best = -math.inf
    # A price is seconds of delay per second of node time; none above the worst delay over the least time makes sense.
    known = [each for fleet in classes for each in fleet if each.service_s < math.inf]
    size = max(each.service_s for each in known) * max(each.capacity_hz for each in known)
    for _ in range(_ASCENT_STEPS):
        value, used = _dual(classes, prices)
        best = max(best, value / total_hz)
        length = math.sqrt(math.fsum([each * each for each in used])) or 1.0
        size *= _ASCENT_SHRINK
        prices = [max(0.0, price + size * each / length) for price, each in zip(prices, used, strict=True)]
    return best


def _dual(classes: Sequence[Sequence[NodeClass]], prices: Sequence[float]) -> tuple[float, list[float]]:
    """Return the bound, times jobs per second, at these prices, and its slope: node time wanted beyond what is."""
    nodes = classes[0]
    value = -math.fsum([price * each.count for price, each in zip(prices, nodes, strict=True)])
    used = [-float(each.count) for each in nodes]
    for fleet in classes:
        # Time of a node that one job takes: less than its service time where several are served at once.
        priced = [
            each.service_s + price / each.capacity_hz if each.service_s < math.inf else math.inf
            for price, each in zip(prices, fleet, strict=True)
        ]
        away = min(range(len(fleet)), key=lambda index: priced[index] + fleet[index].transfer_s)
        for index, each in enumerate(fleet):
            jobs_hz = each.count * each.arrivals_hz
            is_here = priced[index] <= priced[away] + fleet[away].transfer_s
            chosen = index if is_here else away
            value += jobs_hz * (priced[index] if is_here else priced[away] + fleet[away].transfer_s)
            used[chosen] += jobs_hz / fleet[chosen].capacity_hz if jobs_hz else 0.0
    return value, used


# ---------------------------------------------------------------- fixed shares


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """The best fixed shares."""

    mean_s: float
    """Mean sojourn time over all jobs."""
    rates_hz: tuple[float, ...]
    """Jobs per second given to each node of each class."""


def static_split(fleet: Sequence[NodeClass]) -> Split:
    """Return the fixed shares with the least mean sojourn time: one model.

    Raises
    ------
    OverloadError
        When more comes than the fleet can serve.

    Notes
    -----
    Each node gets Poisson arrivals at its share of the rate and is an M/G/1 queue (Pollaczek-Khinchine); with several
    slots Erlang's waiting time times (1 + cv2) / 2 (Lee and Longton 1959, an approximation). The time spent per second
    is convex in each rate, so the best shares have equal slopes: bisection on that slope. The slope of a node jumps by
    the transfer time where its own clients' jobs are used up.

    Examples
    --------
    >>> even = static_split([NodeClass(count=2, service_s=1.0, cv2=1.0, arrivals_hz=0.5)])
    >>> round(even.mean_s, 6)
    2.0
    """
    total_hz = _arrivals_hz(fleet)
    low, high = 0.0, 1.0
    while _given_hz(fleet, high) < total_hz:
        high *= 2.0
    for _ in range(_SPLIT_STEPS):
        middle = (low + high) / 2.0
        if _given_hz(fleet, middle) < total_hz:
            low = middle
        else:
            high = middle
    rates = _fit([_rate_hz(each, low) for each in fleet], [_rate_hz(each, high) for each in fleet], fleet, total_hz)
    spent = math.fsum([each.count * _spent(each, rate) for each, rate in zip(fleet, rates, strict=True)])
    return Split(mean_s=spent / total_hz, rates_hz=tuple(rates))


def _given_hz(fleet: Sequence[NodeClass], slope: float) -> float:
    return math.fsum([each.count * _rate_hz(each, slope) for each in fleet])


def _fit(low: list[float], high: list[float], fleet: Sequence[NodeClass], total_hz: float) -> list[float]:
    """Mix the rates on both sides of a jump so that they add up: where slopes are equal any mix is as good."""
    below = math.fsum([each.count * rate for each, rate in zip(fleet, low, strict=True)])
    above = math.fsum([each.count * rate for each, rate in zip(fleet, high, strict=True)])
    share = 0.0 if above <= below else (total_hz - below) / (above - below)
    return [a + share * (b - a) for a, b in zip(low, high, strict=True)]


def _spent(node: NodeClass, rate_hz: float) -> float:
    """Return the seconds that jobs spend per second at one node, on their way to it included."""
    if rate_hz <= 0.0:
        return 0.0
    moved_hz = max(0.0, rate_hz - node.arrivals_hz)
    return rate_hz * (node.service_s + _waiting_s(node, rate_hz)) + moved_hz * node.transfer_s


def _waiting_s(node: NodeClass, rate_hz: float) -> float:
    load = rate_hz / node.capacity_hz
    waiting_s = erlang_c(servers=node.slots, load=load) / (node.slots / node.service_s * (1.0 - load))
    return waiting_s * (1.0 + node.cv2) / 2.0


def _rate_hz(node: NodeClass, slope: float) -> float:
    """Return the rate at which one more job per second costs one node this many seconds per second."""
    low, high = 0.0, node.capacity_hz * (1.0 - 1e-12)
    for _ in range(100):
        middle = (low + high) / 2.0
        if _slope(node, middle) < slope:
            low = middle
        else:
            high = middle
    return low


def _slope(node: NodeClass, rate_hz: float) -> float:
    """Return the derivative of _spent; to the right of the jump where the own arrivals end."""
    step = 1e-6 * min(rate_hz, node.capacity_hz - rate_hz)
    if step <= 0.0:
        return node.service_s
    queue = (rate_hz + step) * _waiting_s(node, rate_hz + step) - (rate_hz - step) * _waiting_s(node, rate_hz - step)
    return node.service_s + queue / (2.0 * step) + (node.transfer_s if rate_hz >= node.arrivals_hz else 0.0)


# ---------------------------------------------------------------- too much


def useful_hz(fleet: Sequence[NodeClass], deadline_s: float) -> float:
    """Return the jobs per second that nodes can serve whose service, with the transfer, fits the deadline at all."""
    own = [
        each.count * min(each.capacity_hz, each.arrivals_hz)
        for each in fleet
        if each.service_s <= deadline_s < each.service_s + each.transfer_s
    ]
    every = [each.count * each.capacity_hz for each in fleet if each.service_s + each.transfer_s <= deadline_s]
    return math.fsum(own + every)


def goodput_ceiling(fleet: Sequence[NodeClass], *, deadline_s: float) -> float:
    """Return the largest share of jobs that can be answered in time, whatever refuses the others.

    Examples
    --------
    >>> round(goodput_ceiling([NodeClass(count=1, service_s=0.1, arrivals_hz=13.0)], deadline_s=0.5), 4)
    0.7692
    """
    coming_hz = math.fsum([each.count * each.arrivals_hz for each in fleet])
    return min(1.0, useful_hz(fleet, deadline_s) / coming_hz)


def burst_ceiling(pieces: Sequence[tuple[float, float]], *, capacity_hz: float, deadline_s: float) -> float:
    """Return the largest share of jobs in time when arrivals repeat a pattern of rates.

    Parameters
    ----------
    pieces : sequence of (float, float)
        Duration in seconds and arrivals per second of each piece of one period.
    capacity_hz : float
        Jobs per second that can be served in time at all (`useful_hz`).
    deadline_s : float
        From arrival to answer.

    Notes
    -----
    The fluid of one pooled server: with equal deadlines it is best to keep a queue of what fits the deadline, capacity
    x deadline, and to refuse what is beyond. Two periods are gone through, the second is counted; queues of a period
    with a mean below capacity repeat from then on.

    Examples
    --------
    >>> round(burst_ceiling([(2.0, 1.8), (8.0, 0.3)], capacity_hz=1.0, deadline_s=0.5), 4)
    0.8167
    """
    bound = capacity_hz * deadline_s
    queued = lost = 0.0
    for _ in range(2):
        lost = 0.0
        for duration_s, rate_hz in pieces:
            grown = queued + (rate_hz - capacity_hz) * duration_s
            lost += max(0.0, grown - bound)
            queued = min(bound, max(0.0, grown))
    return 1.0 - lost / math.fsum([duration_s * rate_hz for duration_s, rate_hz in pieces])
