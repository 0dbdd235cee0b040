"""Several runs in one record: estimates with intervals, differences under common random numbers, bounds beside them.

Owns the arithmetic from results to records; draws and writes nothing. All runs of a comparison have the same seeds, so
what one policy meets, every other meets too, and differences are taken run by run.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from simulator import fleet, recorded, wiring
from simulator.bounds import (
    NodeClass,
    OverloadError,
    burst_ceiling,
    goodput_ceiling,
    static_split,
    useful_hz,
    zero_queue_of_models_s,
    zero_queue_s,
)
from simulator.results import Result
from simulator.scenario import NodeGroup, Scenario
from simulator.sources import CameraSource, ReplaySource, Source, SquareSource
from simulator.splitting import static_split_of_models_s
from simulator.statistics import Estimate, estimate, paired, ratio
from simulator.workload import rates_hz, zipf

BYTES_PER_MBIT: Final = 1e6 / 8
QUANTITIES: Final[Mapping[str, str]] = {
    "mean_s": "mean sojourn time of the answered, seconds",
    "p50_s": "median",
    "p95_s": "95 % quantile",
    "p99_s": "99 % quantile",
    "within": "share of the submitted answered within the deadline",
    "miss": "share of the submitted not answered within the deadline",
    "goodput_hz": "answers within the deadline per second",
    "offloaded": "share of the answered that ran elsewhere than where it came in",
    "refused": "share of the submitted that ended without a result",
    "lost": "jobs lost; 0, or the grid broke its word",
}
"""What is estimated, and what it means."""


def quantity(result: Result, name: str) -> float:
    """Return one of QUANTITIES of a run; NaN where there was nothing to measure."""
    if name == "refused":
        return sum(result.refused.values()) / result.submitted if result.submitted else math.nan
    return float(getattr(result, name))


def estimates(results: Sequence[Result]) -> dict[str, Estimate]:
    """Estimate every quantity from replications."""
    return {name: estimate([quantity(each, name) for each in results]) for name in QUANTITIES}


# ---------------------------------------------------------------- bounds


class Bounds(msgspec.Struct, frozen=True, kw_only=True):
    """What stands beside the runs of a scenario; None where it cannot be computed, with the reason in `note`."""

    zero_queue_s: float | None = None
    """No policy's mean is below."""
    static_split_s: float | None = None
    """Mean of the best fixed shares, were arrivals Poisson and batches not made: no bound, but what needs no news."""
    goodput_ceiling: float | None = None
    """No policy answers a larger share within the deadline in the long run."""
    note: str = ""


def bounds_of(scenario: Scenario) -> Bounds:
    """Compute what can be said of a scenario without running it.

    Notes
    -----
    Mean rates over the counted time are taken, so for bursts the zero-queue bound holds but is far from what can be
    reached. Faults are not looked at: a fleet that is whole can only be better, save for a `slow` fault below 1.
    Transfers cost the delay and bandwidth of the cheapest way to a node; jitter, loss and handshakes only add.
    """
    if any(source.rungs or _has_rungs(source) for source in scenario.sources):
        return Bounds(note="no bounds: a source accepts several models")
    fleets, frames_hz = _fleets(scenario)
    if not fleets or not frames_hz:
        return Bounds(note="no bounds: nothing arrives")
    jobs_hz = sum(each.count * each.arrivals_hz for classes in fleets.values() for each in classes)
    has_stages = any(source.then is not None for source in scenario.sources)
    if len(fleets) > 1:
        # Executions per frame: the time of a frame is the sum over its stages.
        bound_s = zero_queue_of_models_s(fleets) * jobs_hz / frames_hz
        try:
            split_s = static_split_of_models_s(fleets) * jobs_hz / frames_hz
        except OverloadError as error:
            return Bounds(zero_queue_s=bound_s, note=f"no static split: {error}")
        return Bounds(zero_queue_s=bound_s, static_split_s=split_s)
    classes = next(iter(fleets.values()))
    deadlines = {deadline_s for source in scenario.sources for deadline_s in _deadlines_s(source)}
    ceiling = None
    # Of several deadlines the longest: nobody answers more jobs in time when some have less of it.
    if (deadline_s := max(deadlines)) < math.inf and not has_stages:
        ceiling = goodput_ceiling(classes, deadline_s=deadline_s)
        if len(scenario.sources) == 1 and isinstance(source := scenario.sources[0], SquareSource):
            ceiling = min(ceiling, _burst_ceiling(source, classes, deadline_s, jobs_hz))
    try:
        lower_s = zero_queue_s(classes) * jobs_hz / frames_hz
        split_s = static_split(classes).mean_s * jobs_hz / frames_hz
    except OverloadError as error:
        return Bounds(goodput_ceiling=ceiling, note=f"no bounds of the mean: {error}")
    return Bounds(zero_queue_s=lower_s, static_split_s=split_s, goodput_ceiling=ceiling)


def _burst_ceiling(source: SquareSource, classes: Sequence[NodeClass], deadline_s: float, mean_hz: float) -> float:
    burst_s, calm_s = source.burst_s, source.calm_s
    burst_hz, calm_hz = rates_hz(mean_hz, burst=source.burst, burst_s=burst_s, calm_s=calm_s)
    pieces = [(burst_s, burst_hz), (calm_s, calm_hz)]
    return burst_ceiling(pieces, capacity_hz=useful_hz(classes, deadline_s), deadline_s=deadline_s)


def _fleets(scenario: Scenario) -> tuple[dict[str, list[NodeClass]], float]:
    """Return the classes of nodes per model that is asked for, and frames per second in all."""
    came: dict[str, dict[str, float]] = {}
    frames_hz = 0.0
    for source, rate_hz in zip(scenario.sources, _mean_rates_hz(scenario), strict=True):
        frames_hz += rate_hz
        for name, share in _entry_shares(scenario, source).items():
            for model, need in fleet.work(scenario, source).items():
                at = came.setdefault(model, {})
                at[name] = at.get(name, 0.0) + rate_hz * share * need
    found: dict[str, list[NodeClass]] = {model: [] for model in came}
    for group in scenario.nodes:
        wholes = {model: _node_class(scenario, group, model) for model in came}
        # Nodes of a group may get different rates: then each is a class of its own, in all models alike.
        alike = Counter(tuple(round(coming.get(name, 0.0), 9) for coming in came.values()) for name in group.names)
        for rates, count in alike.items():
            for model, rate_hz in zip(came, rates, strict=True):
                found[model].append(msgspec.structs.replace(wholes[model], count=count, arrivals_hz=rate_hz))
    return found, frames_hz


def _has_rungs(source: Source) -> bool:
    return isinstance(source, ReplaySource) and any(len(job.models) > 1 for job in source.jobs)


def _deadlines_s(source: Source) -> set[float]:
    if isinstance(source, ReplaySource) and source.jobs:
        return {job.deadline_s for job in source.jobs}
    return {source.deadline_s}


def _entry_shares(scenario: Scenario, source: Source) -> dict[str, float]:
    """Return the share of a source's frames by the node where they come in."""
    if isinstance(source, ReplaySource) and source.jobs:
        return recorded.shares(scenario, source)[0]
    names = scenario.select(source.entries)
    return dict(zip(names, zipf(len(names), source.entry_zipf), strict=True))


def _mean_rates_hz(scenario: Scenario) -> list[float]:
    """Return the mean rate of frames of each source over the counted time."""
    rates = fleet.source_rates_hz(scenario)
    span_s = scenario.duration_s - scenario.warm_up_s
    found = []
    for source, rate_hz in zip(scenario.sources, rates, strict=True):
        begin_s, end_s = max(source.start_s, scenario.warm_up_s), min(source.end_s, scenario.duration_s)
        if isinstance(source, ReplaySource):
            times = [source.start_s + at_s / source.speed_up for at_s in source.times_s]
            found.append(source.keep * sum(begin_s <= at_s < end_s for at_s in times) / span_s)
            continue
        whole_hz = rate_hz * _cameras(source)
        found.append(whole_hz * max(0.0, end_s - begin_s) / span_s)
    return found


def _cameras(source: Source) -> float:
    return source.count * fleet.moving(source) if isinstance(source, CameraSource) else 1.0


def _node_class(scenario: Scenario, group: NodeGroup, model: str) -> NodeClass:
    spec = scenario.model(model)
    if model not in scenario.models_of(group):
        return NodeClass(count=group.count, service_s=math.inf, rate_hz=0.0)
    mean_s = fleet.mean_s(scenario, group, spec)
    best = max(size / factor for size, factor in enumerate(spec.batch or (1.0,), start=1))
    node = next(each for each in fleet.node_specs(scenario, scenario.core) if each.name == group.names[0])
    return NodeClass(
        count=group.count,
        service_s=mean_s,
        slots=group.slots,
        rate_hz=group.slots * best / mean_s,
        cv2=node.models[model].service.cv2,
        transfer_s=_transfer_s(scenario, group, model),
    )


def _transfer_s(scenario: Scenario, group: NodeGroup, model: str) -> float:
    """Return the least time that a move to a group costs, both ways."""
    spec = scenario.model(model)
    costs = []
    for other in scenario.nodes:
        if other is group and group.count == 1:
            continue
        there, back = wiring.way(scenario, other, group), wiring.way(scenario, group, other)
        cost_s = there.delay_s + back.delay_s
        for link, size in ((there, fleet.input_bytes(spec)), (back, spec.output_bytes)):
            cost_s += size / link.bytes_per_s if link.bytes_per_s is not None else 0.0
        costs.append(cost_s)
    return min(costs, default=0.0)


# ---------------------------------------------------------------- policies side by side


class PolicyRow(msgspec.Struct, frozen=True, kw_only=True):
    """One policy."""

    policy: str
    values: dict[str, Estimate]
    """By quantity."""
    less_first: dict[str, Estimate]
    """Paired differences from the first policy; an interval without 0 is a difference."""
    mean_over_oracle: Estimate | None
    """Ratio of the means; None without the oracle."""
    mean_over_bound: float | None
    """Mean over the zero-queue bound."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Policies on one scenario under the same seeds."""

    scenario: str
    about: str
    seeds: tuple[str, ...]
    load: float
    bounds: Bounds
    rows: tuple[PolicyRow, ...]


def compare(scenario: Scenario, seeds: Sequence[str], results: Mapping[str, Sequence[Result]]) -> Comparison:
    """Put policies side by side.

    Parameters
    ----------
    scenario : Scenario
        That ran.
    seeds : sequence of str
        Of the replications.
    results : mapping of str to sequence of Result
        Replications by policy, the one to compare with first, all in the order of the seeds.
    """
    policies = list(results)
    first = results[policies[0]]
    oracle = results.get("oracle")
    bounds = bounds_of(scenario)
    rows = []
    for policy, runs in results.items():
        values = estimates(runs)
        over_oracle = None
        if oracle is not None and all(each.answered for each in (*runs, *oracle)):
            over_oracle = ratio([each.mean_s for each in runs], [each.mean_s for each in oracle])
        rows.append(
            PolicyRow(
                policy=policy,
                values=values,
                less_first=differences(runs, first),
                mean_over_oracle=over_oracle,
                mean_over_bound=None if not bounds.zero_queue_s else values["mean_s"].mean / bounds.zero_queue_s,
            )
        )
    return Comparison(
        scenario=scenario.name,
        about=scenario.about,
        seeds=tuple(seeds),
        load=first[0].load,
        bounds=bounds,
        rows=tuple(rows),
    )


def differences(runs: Sequence[Result], base: Sequence[Result]) -> dict[str, Estimate]:
    """Return the paired differences of every quantity."""
    return {
        name: paired([quantity(each, name) for each in runs], [quantity(each, name) for each in base])
        for name in QUANTITIES
    }
