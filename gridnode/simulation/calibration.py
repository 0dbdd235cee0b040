"""What a calibration says: daemons and simulator side by side, per load. Owns records and their arithmetic."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from simulator.results import Result
from simulator.statistics import quantile, variance

GOAL: Final = 0.1
"""Difference of mean and p95 that is aimed at, as a share of what the daemons took."""
STALL_MAX_S: Final = 0.05
"""Shortest service time of the fleet, in seconds: a machine that stood still for longer made the daemons late, and
nothing else can be said of the load."""
SIGMA95: Final = 1.96
"""Standard deviations around the mean of a normal distribution that hold 95 % of it."""


class Times(msgspec.Struct, frozen=True, kw_only=True):
    """Sojourn times as clients see them, in seconds."""

    mean_s: float
    p50_s: float
    p95_s: float


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """What part of the jobs a node served, 0 to 1."""

    node: str
    daemon: float
    simulator: float


class Costs(msgspec.Struct, frozen=True, kw_only=True):
    """Medians of jobs that find the grid idle, in seconds."""

    socket_s: float
    """Between client and daemon, both ways: added to every simulated time."""
    execution_s: float
    """Inside of a daemon beyond the service time; it holds the slot, so the simulator's service times are longer by
    it."""
    move_s: float
    """What a move adds, both ways; half of it is the simulator's delay each way."""


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """One load."""

    load: float
    jobs: int
    """Counted."""
    failed: int
    """Jobs that the daemons did not answer, by whatever error."""
    daemon: Times
    simulator: Times
    """Means over the seeds."""
    difference: Times
    """Simulator over daemon, less 1: 0.05 is 5 % above."""
    noise: Times
    """Half width of the range, relative to the mean, that holds 95 % of single runs in the simulator: differences below
    it mean nothing."""
    shares: tuple[Share, ...]
    moved_daemon: float
    """Share of the jobs that ran elsewhere than where they came in."""
    moved_simulator: float
    cpu: float
    """Processors that daemons and client kept busy on average; the machine has `cores`."""
    lateness_s: float
    """95 % of the jobs were sent at most this late by the client: a sign of a busy machine."""
    stall_s: float
    """The latest of all; see STALL_MAX_S."""


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """All loads."""

    proves: str = "scheduling and network fidelity; not device fidelity: service times are given to both"
    seconds: float
    """Per load, the warm-up included."""
    machine: str
    cores: int
    costs: Costs
    loads: tuple[LoadReport, ...]

    @property
    def worst(self) -> float:
        """Largest difference of mean or p95, without sign."""
        return max(max(abs(each.difference.mean_s), abs(each.difference.p95_s)) for each in self.loads)


class Seen(msgspec.Struct, frozen=True):
    """An answered job."""

    sojourn_s: float
    entry: str
    node: str


# ---------------------------------------------------------------- side by side


def report_of(
    load: float,
    seen: Sequence[Seen],
    times: Sequence[Times],
    results: Sequence[Result],
    *,
    names: Sequence[str],
    failed: int,
    cpu: float,
    late_s: Sequence[float],
) -> LoadReport:
    """Put a load's answers beside its simulations; shares are of the nodes named."""
    took = sorted(each.sojourn_s for each in seen)
    daemon = Times(mean_s=math.fsum(took) / len(took), p50_s=quantile(took, 0.5), p95_s=quantile(took, 0.95))
    mean, noise = _each(_mean, times), _each(_scatter, times)
    executed = Counter(each.node for each in seen)
    count = len(results)
    return LoadReport(
        load=load,
        jobs=len(seen),
        failed=failed,
        daemon=daemon,
        simulator=mean,
        difference=Times(
            mean_s=mean.mean_s / daemon.mean_s - 1,
            p50_s=mean.p50_s / daemon.p50_s - 1,
            p95_s=mean.p95_s / daemon.p95_s - 1,
        ),
        noise=noise,
        shares=tuple(
            Share(
                node=name,
                daemon=executed[name] / len(seen),
                simulator=sum(each.shares.get(name, 0.0) for each in results) / count,
            )
            for name in names
        ),
        moved_daemon=sum(each.entry != each.node for each in seen) / len(seen),
        moved_simulator=sum(each.offloaded for each in results) / count,
        cpu=cpu,
        lateness_s=quantile(late_s, 0.95),
        stall_s=late_s[-1],
    )


def _each(of: Callable[[Sequence[float]], float], times: Sequence[Times]) -> Times:
    return Times(
        mean_s=of([each.mean_s for each in times]),
        p50_s=of([each.p50_s for each in times]),
        p95_s=of([each.p95_s for each in times]),
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _scatter(values: Sequence[float]) -> float:
    """Return the half width, relative to the mean, of the range that holds 95 % of the values."""
    return SIGMA95 * math.sqrt(variance(values)) / _mean(values)
