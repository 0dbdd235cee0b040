"""A scenario of what daemons recorded: their fleet with its measured service times, and what came in there.

Owns the step from recordings to a scenario; reads no file. What the recordings do not say is assumed and told in notes:
one slot and the observed service times for a node that recorded nothing, a network in which all are equally far apart.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from gridnode.simulation.load import SimulationInputError, recorded_job
from gridnode.simulation.recorded import Recording
from gridnode.simulation.timeline import Merged, labels, on_one_clock
from scheduler.config import CoreConfig
from scheduler.types import SchedulerError
from scheduler.variants import configure
from simulator.scenario import (
    LinkSpec,
    ModelSpec,
    NetworkSpec,
    NodeGroup,
    RecordedJob,
    ReplaySource,
    Scenario,
    ScenarioError,
)
from simulator.scenariorules import check
from simulator.statistics import quantile

SETTLE_S: Final = 10.0
"""Time before the first recorded job, in which the simulated nodes get to know one another as the real ones did."""
RUNS_MIN: Final = 10
"""Executions from which on their distribution says more than the measurement before the model was offered."""
SOURCE: Final = "jobs"
"""Head of the names of sources: jobs.NODE."""
_NAME_MAX: Final = 40
"""Characters of a node's name that are kept, so that copies of it have room for a tail."""
_ALIEN: Final = re.compile(r"[^A-Za-z0-9_.-]")


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
    names = _names(recordings)
    span_s = merged[-1][0]
    notes = list(_losses(recordings))
    if fleet is None:
        fleet = _fleet(recordings, merged, names, notes)
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
        models = tuple([_safe(model) for model in entry.models])
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
            name=f"{SOURCE}.{_safe(name)}",
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


# ---------------------------------------------------------------- the fleet


def _names(recordings: Sequence[Recording]) -> dict[str, str]:
    """Return the name in a scenario of each node that recorded or answered, by PeerID."""
    names = {node: _safe(name) for node, name in labels(recordings).items()}
    for each in recordings:
        for node, name in each.names.items():
            if node not in names:
                safe = _safe(name)
                names[node] = safe if safe not in names.values() else f"{safe}.{node[-8:]}"
    return names


def _safe(name: str) -> str:
    """Return a name as scenarios allow it.

    Examples
    --------
    >>> _safe("3rd floor")
    'n3rd_floor'
    """
    text = _ALIEN.sub("_", name)[:_NAME_MAX]
    return text if text[:1].isalpha() else f"n{text}"


class _Cost(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs on a node."""

    mean_s: float
    values_s: tuple[float, ...]
    """Its distribution; empty where too little is known."""
    memory_bytes: int = 0
    load_s: float = 0.0


def _fleet(recordings: Sequence[Recording], merged: Merged, names: Mapping[str, str], notes: list[str]) -> Scenario:
    """Return the recorded nodes, and those that answered, with what is known of them."""
    costs = {each.node: _told_costs(each) for each in recordings}
    slots = {each.node: each.slots for each in recordings}
    for node, seen in _seen_costs(merged, known=costs).items():
        costs[node] = seen
        jobs = sum(entry.executor == node for _, _, entry in merged)
        notes.append(
            f"{names[node]} recorded no trace: its service times are those of the {jobs} jobs that it answered, one "
            "at a time; record there too, to know what else it did"
        )
    models = _models(costs, merged, names)
    if not models:
        raise SimulationInputError(
            "the traces name no model that any node runs; record until a job is answered, or give a scenario"
        )
    known = [model.name for model in models]
    first = recordings[0]
    return Scenario(
        name="recorded",
        about=f"{len(costs)} nodes as they were recorded",
        models=models,
        nodes=tuple(
            NodeGroup(
                device=names[node],
                slots=slots.get(node, 1),
                models=tuple([name for name in known if name in {_safe(each) for each in own}]),
            )
            for node, own in costs.items()
        ),
        network=NetworkSpec(link=_link(recordings, notes)),
        policy=_policy(first, notes),
        core=_core(first, notes),
    )


def _told_costs(recording: Recording) -> dict[str, _Cost]:
    return {
        name: _Cost(
            mean_s=facts.mean_s,
            values_s=_positive(facts.quantiles_s) if facts.runs >= RUNS_MIN else (),
            memory_bytes=facts.memory_bytes,
            load_s=facts.load_s,
        )
        for name, facts in recording.models.items()
        if facts.mean_s > 0.0
    }


def _seen_costs(merged: Merged, *, known: Mapping[str, object]) -> dict[str, dict[str, _Cost]]:
    """Return what can be told of nodes without a recording, from the jobs that they answered."""
    times: dict[str, dict[str, list[float]]] = {}
    for _, _, entry in merged:
        if entry.executor and entry.executor not in known and entry.service_s > 0.0:
            times.setdefault(entry.executor, {}).setdefault(entry.model, []).append(entry.service_s)
    return {
        node: {
            model: _Cost(
                mean_s=math.fsum(values_s) / len(values_s),
                values_s=_thinned(sorted(values_s)) if len(values_s) >= RUNS_MIN else (),
            )
            for model, values_s in models.items()
        }
        for node, models in sorted(times.items())
    }


_VALUES_MAX: Final = 33
"""Values that stand for a distribution, as in a daemon's own account."""


def _thinned(ordered: Sequence[float]) -> tuple[float, ...]:
    if len(ordered) <= _VALUES_MAX:
        return tuple(ordered)
    last = len(ordered) - 1
    return tuple([ordered[round(step * last / (_VALUES_MAX - 1))] for step in range(_VALUES_MAX)])


def _positive(values_s: Sequence[float]) -> tuple[float, ...]:
    return tuple([value for value in values_s if value > 0.0])


def _models(
    costs: Mapping[str, Mapping[str, _Cost]], merged: Merged, names: Mapping[str, str]
) -> tuple[ModelSpec, ...]:
    """Return every model that some node runs, with what it costs on each."""
    inputs: dict[str, list[float]] = {}
    outputs: dict[str, list[float]] = {}
    for _, _, entry in merged:
        inputs.setdefault(entry.models[0], []).append(float(entry.input_bytes))
        if entry.output_bytes:
            outputs.setdefault(entry.model, []).append(float(entry.output_bytes))
    found = []
    for model in sorted({name for own in costs.values() for name in own}):
        at = {names[node]: own[model] for node, own in costs.items() if model in own}
        found.append(
            ModelSpec(
                name=_safe(model),
                mean_s={name: cost.mean_s for name, cost in at.items()},
                measured_s={name: cost.values_s for name, cost in at.items() if cost.values_s},
                input_bytes=_median(inputs.get(model, [])),
                output_bytes=_median(outputs.get(model, [])) or _OUTPUT_BYTES,
                memory_bytes=max(cost.memory_bytes for cost in at.values()),
                load_s=max(cost.load_s for cost in at.values()),
                warm_up=1.0,
            )
        )
    return tuple(found)


_OUTPUT_BYTES: Final = 4096
"""Of a result of which none was seen."""


def _median(values: Sequence[float]) -> int | None:
    return round(quantile(sorted(values), 0.5)) if values else None


def _link(recordings: Sequence[Recording], notes: list[str]) -> LinkSpec:
    """Return what lies between a node and the middle of the network: a quarter of the median round trip."""
    rtts_s = sorted([rtt_s for each in recordings for rtt_s in each.rtts_s])
    if not rtts_s:
        link = LinkSpec()
        notes.append(f"no round trip was measured: nodes are taken to be {2e3 * link.latency_s:g} ms apart, one way")
        return link
    return LinkSpec(latency_s=quantile(rtts_s, 0.5) / 4)


def _core(recording: Recording, notes: list[str]) -> CoreConfig:
    """Return the configuration that a node decided with."""
    try:
        core = msgspec.convert(dict(recording.scheduler), CoreConfig)
    except msgspec.ValidationError as error:
        notes.append(
            f"{recording.name}: its scheduler settings are not of this version ({error}); the defaults are taken"
        )
        core = CoreConfig()
    return msgspec.structs.replace(core, explain=False)


def _policy(recording: Recording, notes: list[str]) -> str:
    try:
        configure(CoreConfig(), recording.policy)
    except SchedulerError as error:
        notes.append(f"{recording.name}: {error}; capd is taken")
        return "capd"
    return recording.policy
