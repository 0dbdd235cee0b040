"""A load of what daemons recorded: a scenario with their jobs, and what became of these on the real devices.

Owns the sources and the account of what was observed; the fleet is gridnode.simulation.recordedfleet's, or that of a
scenario. Reads no file.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from gridnode.simulation.load import SimulationInputError, recorded_job
from gridnode.simulation.recorded import Recording
from gridnode.simulation.recordedfleet import fleet_of, names_of, safe
from gridnode.simulation.timeline import Merged, labels, on_one_clock
from simulator.scenario import Scenario
from simulator.scenariorules import check
from simulator.sources import RecordedJob, ReplaySource
from simulator.statistics import quantile
from simulator.values import ScenarioError

SETTLE_S: Final = 10.0
"""Time before the first recorded job, in which the simulated nodes get to know one another as the real ones did."""
SOURCE: Final = "jobs"
"""Head of the names of sources: jobs.NODE."""


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the recorded jobs, on the real devices."""

    jobs: int
    nodes: int
    """That recorded."""
    cameras: int
    """Streams, and the single requests of each node."""
    span_s: float
    """From the first job to the last."""
    miss: float
    """Share without an answer within its deadline."""
    refused: float
    """Share without an answer."""
    offloaded: float
    """Share of the answered that ran elsewhere than where they came in; NaN without any."""
    mean_s: float
    """Of the answered, from coming in to the answer; NaN without any."""
    p50_s: float
    p95_s: float
    p99_s: float


class RecordedLoad(msgspec.Struct, frozen=True, kw_only=True):
    """A scenario made of recordings."""

    scenario: Scenario
    observed: Observed
    notes: tuple[str, ...]
    """What was assumed, and what is missing."""


def load_of(
    recordings: Sequence[Recording],
    *,
    fleet: Scenario | None = None,
    align: str = "clock",
    spread: bool = False,
    last_s: float | None = None,
) -> RecordedLoad:
    """Make a scenario of recordings.

    Parameters
    ----------
    recordings : sequence of Recording
        One per node.
    fleet : Scenario, optional
        Whose nodes, models and network are taken, in place of the recorded ones.
    align : {"clock", "start"}
        See timeline.on_one_clock.
    spread : bool, default False
        Whether recorded nodes that the fleet does not have come in at its nodes in turn.
    last_s : float, optional
        Only so much of the end is taken, in seconds.

    Raises
    ------
    SimulationInputError
        They do not make a scenario.
    RecordingError
        They do not go together.
    """
    merged = on_one_clock(recordings, align=align)
    if last_s is not None:
        from_s = max(0.0, merged[-1][0] - last_s)
        merged = [(at_s - from_s, each, entry) for at_s, each, entry in merged if at_s >= from_s]
    names = names_of(recordings)
    span_s = merged[-1][0]
    notes = list(_losses(recordings))
    if fleet is None:
        fleet = fleet_of(recordings, merged, names, notes)
        merged = _runnable(merged, fleet, notes)
    else:
        names = labels(recordings)
    scenario = msgspec.structs.replace(
        fleet,
        sources=_sources(merged, names, fleet=fleet, spread=spread),
        duration_s=SETTLE_S + span_s * (1 + 1e-9) + 1e-3,
        warm_up_s=SETTLE_S,
    )
    try:
        check(scenario)
    except ScenarioError as error:
        raise SimulationInputError(f"the recorded jobs do not fit the fleet: {error.message}") from None
    return RecordedLoad(scenario=scenario, observed=_observed(merged, span_s), notes=tuple(notes))


# ---------------------------------------------------------------- what came in


def _runnable(merged: Merged, fleet: Scenario, notes: list[str]) -> Merged:
    """Leave out jobs that asked for what no node runs; the others' models get the names that they have in the fleet."""
    known = {model.name for model in fleet.models}
    found, missing = [], Counter[str]()
    for at_s, each, entry in merged:
        models = tuple([safe(model) for model in entry.models])
        if known.isdisjoint(models):
            missing[entry.models[0]] += 1
        else:
            found.append(
                (at_s, each, entry if models == entry.models else msgspec.structs.replace(entry, models=models))
            )
    notes += [
        f"{count} jobs asked for {model}, which no node runs; they are left out" for model, count in missing.items()
    ]
    return found


def _sources(merged: Merged, names: Mapping[str, str], *, fleet: Scenario, spread: bool) -> tuple[ReplaySource, ...]:
    """Return a source per node that recorded jobs, so that each keeps its draws when others go."""
    times: dict[str, list[float]] = {}
    jobs: dict[str, list[RecordedJob]] = {}
    for at_s, each, entry in merged:
        name = names[each.node]
        times.setdefault(name, []).append(at_s)
        jobs.setdefault(name, []).append(recorded_job(name, entry))
    homeless = [name for name in times if name not in fleet.node_names]
    turns = {name: fleet.node_names[number % len(fleet.node_names)] for number, name in enumerate(homeless)}
    return tuple(
        ReplaySource(
            name=f"{SOURCE}.{safe(name)}",
            entries=(name,) if name not in turns else "all",
            places={name: turns[name]} if spread and name in turns else {},
            start_s=SETTLE_S,
            times_s=tuple(times[name]),
            jobs=tuple(jobs[name]),
        )
        for name in times
    )


def _observed(merged: Merged, span_s: float) -> Observed:
    entries = [entry for _, _, entry in merged]
    answered = [entry for entry in entries if entry.executor]
    times_s = sorted([entry.sojourn_s for entry in answered])
    away = sum(entry.executor != each.node for _, each, entry in merged if entry.executor)
    count = len(entries)
    return Observed(
        jobs=count,
        nodes=len({each.node for _, each, _ in merged}),
        cameras=len({(each.node, entry.stream) for _, each, entry in merged}),
        span_s=span_s,
        miss=1.0 - sum(entry.is_in_time for entry in entries) / count,
        refused=1.0 - len(answered) / count,
        offloaded=away / len(answered) if answered else math.nan,
        mean_s=math.fsum(times_s) / len(times_s) if times_s else math.nan,
        p50_s=_quantile(times_s, 0.5),
        p95_s=_quantile(times_s, 0.95),
        p99_s=_quantile(times_s, 0.99),
    )


def _quantile(ordered: Sequence[float], share: float) -> float:
    return quantile(ordered, share) if ordered else math.nan


def _losses(recordings: Sequence[Recording]) -> Sequence[str]:
    """Tell what the recordings themselves are missing."""
    found = [f"{each.name}: {each.lost} jobs came in that were not recorded" for each in recordings if each.lost]
    found += [
        f"{each.name}: the last {each.cut_bytes} bytes are cut off, as by a crash"
        for each in recordings
        if each.cut_bytes
    ]
    found += [f"no job came in at {each.name}" for each in recordings if not each.jobs]
    return found
