"""The fleet that daemons recorded, as a scenario: nodes, measured service times, links, settings. Reads no file.

What the recordings do not say is assumed and told in notes: one slot and the observed service times for a node that
recorded nothing, a network with one middle.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from gridnode.simulation.load import SimulationInputError
from gridnode.simulation.recorded import Recording
from gridnode.simulation.timeline import Merged, labels
from scheduler.config import CoreConfig
from scheduler.types import SchedulerError
from scheduler.variants import configure
from simulator.report import BYTES_PER_MBIT
from simulator.scenario import LinkSpec, ModelSpec, NetworkSpec, NodeGroup, Scenario
from simulator.statistics import quantile

RUNS_MIN: Final = 10
"""Executions from which on their distribution says more than the measurement before the model was offered."""
NEAREST: Final = 0.1
"""Least distance of a node from the middle of the network, as a share of that of a middling one."""
CLEARLY: Final = 0.2
"""Share of the time on the way from which on it is told apart what the payload took: noise is of a tenth."""
_NAME_MAX: Final = 40
"""Characters of a node's name that are kept, so that copies of it have room for a tail."""
_ALIEN: Final = re.compile(r"[^A-Za-z0-9_.-]")


def names_of(recordings: Sequence[Recording]) -> dict[str, str]:
    """Return the name in a scenario of each node that recorded or answered, by PeerID."""
    names = {node: safe(name) for node, name in labels(recordings).items()}
    for each in recordings:
        for node, name in each.names.items():
            if node not in names:
                plain = safe(name)
                names[node] = plain if plain not in names.values() else f"{plain}.{node[-8:]}"
    return names


def safe(name: str) -> str:
    """Return a name as scenarios allow it.

    Examples
    --------
    >>> safe("3rd floor")
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


def fleet_of(recordings: Sequence[Recording], merged: Merged, names: Mapping[str, str], notes: list[str]) -> Scenario:
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
    first, links = recordings[0], _links(recordings, notes)
    return Scenario(
        name="recorded",
        about=f"{len(costs)} nodes as they were recorded",
        models=models,
        nodes=tuple(
            NodeGroup(
                device=names[node],
                slots=slots.get(node, 1),
                link=links.get(node),
                models=tuple([name for name in known if name in {safe(each) for each in own}]),
            )
            for node, own in costs.items()
        ),
        network=NetworkSpec(link=links.get("", LinkSpec())),
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
                name=safe(model),
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


def _links(recordings: Sequence[Recording], notes: list[str]) -> dict[str, LinkSpec]:
    """Return what lies between each node that knows and the middle of the network, by PeerID; "" is a middling node.

    A round trip is twice the distances of both ends from the middle. So the round trip of a node, halved, is its own
    distance and that of a middling peer; of a middling node that is twice its own.
    """
    seen = {each.node: _way(each) for each in recordings}
    halves_s = {node: way[0] / 2 for node, way in seen.items() if way is not None}
    if not halves_s:
        notes.append(f"no round trip was measured: nodes are taken to be {2e3 * LinkSpec().latency_s:g} ms apart")
        return {}
    middling_s = quantile(sorted(halves_s.values()), 0.5) / 2
    links = {"": LinkSpec(latency_s=middling_s)}
    for node, way in seen.items():
        distance_s = halves_s.get(node, 2 * middling_s) - middling_s
        up_bytes_s = None if way is None else way[1]
        links[node] = LinkSpec(
            latency_s=max(distance_s, NEAREST * middling_s),
            up_mbit_s=None if up_bytes_s is None else up_bytes_s / BYTES_PER_MBIT,
        )
    return links


def _way(recording: Recording) -> tuple[float, float | None] | None:
    """Return a node's median round trip to its peers and the rate of its uplink in bytes per second, where it shows.

    The jobs that a peer answered tell: what was neither waiting nor service there was the way. Where that took clearly
    longer than the round trip which the node learned from small messages, the payload did. Where such jobs are too few,
    the learned round trip is taken.
    """
    learned_s = sorted(recording.rtts_s)
    small_s = quantile(learned_s, 0.5) if learned_s else None
    away = [job for job in recording.jobs if job.hops == 1 and job.executor and job.executor != recording.node]
    if len(away) < RUNS_MIN:
        return None if small_s is None else (small_s, None)
    rests_s = sorted([max(0.0, job.sojourn_s - job.waiting_s - job.service_s) for job in away])
    rest_s = quantile(rests_s, 0.5)
    if small_s is None or rest_s - small_s < CLEARLY * rest_s:
        return rest_s, None
    return small_s, quantile(sorted([float(job.input_bytes) for job in away]), 0.5) / (rest_s - small_s) or None


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
