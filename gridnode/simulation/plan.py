"""What if: a fleet with fewer or more devices or cameras, under the arrivals that were recorded or foreseen.

Variants run under the same seeds as the fleet as it is, and the rates stay what they are there: a source given as a
share of the capacity keeps its jobs per second when devices go. A recording keeps its times; more cameras are copies of
it, begun elsewhere in it, so that its bursts do not fall together.
"""

import math
import re
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

import msgspec

from gridnode.simulation.compare import without_series
from gridnode.simulation.executors import Task, run_all, seeds_of
from gridnode.simulation.load import SimulationInputError
from simulator.fleet import source_rates_hz
from simulator.report import Bounds, bounds_of, differences, estimates
from simulator.scenario import CameraSource, NodeGroup, RatedSource, ReplaySource, Scenario, ScenarioError, Source
from simulator.scenariorules import check
from simulator.statistics import Estimate

CAMERAS: Final = "cameras"
"""Stands for all sources."""
GOLDEN: Final = (math.sqrt(5) - 1) / 2
"""Copies of a recording begin at multiples of this share of it: as far from one another as can be."""
_PART: Final = re.compile(r"([A-Za-z][A-Za-z0-9_.-]*?)\s*([+-])\s*(\d+(?:\.\d+)?)\s*(%?)")


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """More or less of something."""

    name: str
    """Of a group of nodes, a device, a source, or `cameras`."""
    amount: float
    """Below 0 for less."""
    is_share: bool
    """Whether the amount is a share of what there is; otherwise a number."""


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet and how it fares."""

    what_if: str
    """As asked for; empty for the fleet as it is."""
    nodes: int
    load: float
    bounds: Bounds
    values: dict[str, Estimate]
    """By quantity; `miss` is the share of the jobs without an answer within their deadline."""
    less_now: dict[str, Estimate]
    """Paired differences from the fleet as it is."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All variants, the fleet as it is first."""

    scenario: str
    about: str
    policy: str
    replications: int
    variants: tuple[Variant, ...]


def read_what_if(text: str) -> list[Change]:
    """Read changes such as `pi-4`, `fast+1,cameras+50%`.

    Raises
    ------
    SimulationInputError
        When it is none.

    Examples
    --------
    >>> [(each.name, each.amount, each.is_share) for each in read_what_if("fast+1, cameras-50%")]
    [('fast', 1.0, False), ('cameras', -0.5, True)]
    """
    changes = []
    for part in text.split(","):
        found = _PART.fullmatch(part.strip())
        if found is None:
            raise SimulationInputError(
                f"--what-if {part.strip()!r} is no change; write NAME-N, NAME+N or NAME+N%, such as pi-4 or cameras+50%"
            )
        amount = float(found[3]) * (1 if found[2] == "+" else -1)
        changes.append(Change(name=found[1], amount=amount / 100 if found[4] else amount, is_share=bool(found[4])))
    return changes


def with_times(scenario: Scenario, times_s: tuple[float, ...]) -> Scenario:
    """Return a scenario with recorded arrivals in place of those of its first source, which says the rest.

    Raises
    ------
    SimulationInputError
        When it has no source.
    """
    if not scenario.sources:
        raise SimulationInputError(f"{scenario.name} has no source; give one that says model, entries and deadline")
    first = scenario.sources[0]
    common = {name: getattr(first, name) for name in _COMMON}
    replay = ReplaySource(times_s=times_s, **common)
    end_s = first.start_s + times_s[-1]
    warm_up_s = min(scenario.warm_up_s, end_s / 10)
    return msgspec.structs.replace(
        scenario, sources=(replay,), duration_s=max(end_s * (1 + 1e-9), 1e-3), warm_up_s=warm_up_s
    )


_COMMON: Final = (
    "name", "entries", "entry_zipf", "models", "model_zipf", "rungs", "deadline_s", "priority", "input_bytes",
    "start_s", "then",
)  # fmt: skip


def frozen(scenario: Scenario) -> Scenario:
    """Return the scenario with rates in place of shares of the capacity."""
    sources: list[Source] = []
    for source, rate_hz in zip(scenario.sources, source_rates_hz(scenario), strict=True):
        if isinstance(source, CameraSource):
            source = msgspec.structs.replace(source, fps=rate_hz, load=None)
        elif isinstance(source, RatedSource):
            source = msgspec.structs.replace(source, rate_hz=rate_hz, load=None)
        sources.append(source)
    return msgspec.structs.replace(scenario, sources=tuple(sources))


def changed(scenario: Scenario, changes: Sequence[Change]) -> Scenario:
    """Return a frozen scenario with more or less of some things.

    Raises
    ------
    SimulationInputError
        A name means nothing, or nothing would be left.
    """
    for change in changes:
        scenario = _change(scenario, change)
    try:
        check(scenario)
    except ScenarioError as error:
        raise SimulationInputError(f"such a fleet cannot be: {error}") from None
    return scenario


def _change(scenario: Scenario, change: Change) -> Scenario:
    groups = [place for place, group in enumerate(scenario.nodes) if change.name in (group.name, group.device)]
    if groups:
        return msgspec.structs.replace(scenario, nodes=_nodes(scenario, groups[0], change))
    names = [source.name or f"source{place}" for place, source in enumerate(scenario.sources)]
    if change.name == CAMERAS or change.name in names:
        meant = [change.name in (CAMERAS, name) for name in names]
        sources = [
            new
            for source, is_meant in zip(scenario.sources, meant, strict=True)
            for new in (_sources(source, change) if is_meant else (source,))
        ]
        return msgspec.structs.replace(scenario, sources=tuple(sources))
    known = ", ".join(dict.fromkeys([*(group.name or group.device for group in scenario.nodes), *names, CAMERAS]))
    raise SimulationInputError(f"there is no {change.name!r} of which to take more or less; there are {known}")


def _nodes(scenario: Scenario, place: int, change: Change) -> tuple[NodeGroup, ...]:
    group = scenario.nodes[place]
    count = _counted(group.count, change)
    kept = (msgspec.structs.replace(group, count=count),) if count else ()
    nodes = (*scenario.nodes[:place], *kept, *scenario.nodes[place + 1 :])
    if not nodes:
        raise SimulationInputError(f"no node is left without {change.name}")
    return nodes


def _counted(now: int, change: Change) -> int:
    count = round(now * (1 + change.amount)) if change.is_share else now + round(change.amount)
    if count < 0 or (not change.is_share and change.amount != round(change.amount)):
        raise SimulationInputError(f"{change.name} has {now}; take a whole number of at most that away")
    return count


def _sources(source: Source, change: Change) -> tuple[Source, ...]:
    """Return a source with more or less of it; of a recording, with copies."""
    if isinstance(source, CameraSource):
        count = _counted(source.count, change)
        return (msgspec.structs.replace(source, count=count),) if count else ()
    if not change.is_share:
        raise SimulationInputError(f"the source {source.name or change.name!r} has no number of cameras; give N%")
    factor = 1 + change.amount
    if factor < 0:
        raise SimulationInputError(f"{change.name} cannot be less than none: {change.amount:.0%} were asked for")
    if factor == 0:
        return ()
    if isinstance(source, RatedSource):
        assert source.rate_hz is not None, "frozen sources have rates"
        return (msgspec.structs.replace(source, rate_hz=source.rate_hz * factor),)
    return _copies(source, factor)


def _copies(source: ReplaySource, factor: float) -> tuple[Source, ...]:
    """Return as many copies of a recording as there are wholes in a factor, and one that is thinned."""
    found: list[Source] = []
    number = 0
    while factor > 1e-9:
        keep = min(1.0, factor) * source.keep
        name = source.name if not number else f"{source.name or 'replay'}.copy{number}"
        times_s = _turned(source.times_s, number * GOLDEN % 1.0)
        found.append(msgspec.structs.replace(source, name=name, times_s=times_s, keep=keep))
        factor -= 1.0
        number += 1
    return tuple(found)


def _turned(times_s: tuple[float, ...], share: float) -> tuple[float, ...]:
    """Return times begun a share later, the beginning behind the end."""
    if not times_s or not share:
        return times_s
    span_s = times_s[-1]
    return tuple(sorted((at_s + share * span_s) % span_s if span_s else at_s for at_s in times_s))


def plan(
    scenario: Scenario,
    what_ifs: Sequence[str],
    *,
    policy: str | None = None,
    replications: int = 10,
    executor: Executor | None = None,
    jobs: int = 1,
    progress: Callable[[float], object] | None = None,
) -> Plan:
    """Run the fleet as it is, and each variant.

    Parameters
    ----------
    scenario : Scenario
        The fleet as it is, with what comes in.
    what_ifs : sequence of str
        See read_what_if.
    policy : str, optional
        In place of the scenario's.
    replications, executor, jobs, progress
        See compare.compare.

    Raises
    ------
    SimulationInputError
        A change means nothing, or something in the scenario is wrong.
    """
    base = frozen(scenario)
    variants = [("", base), *((text, changed(base, read_what_if(text))) for text in what_ifs)]
    chosen = policy or scenario.policy
    tasks = [
        Task(scenario=without_series(each), seed=seed, policy=chosen)
        for _, each in variants
        for seed in seeds_of(base, replications)
    ]
    found = run_all(tasks, executor=executor, jobs=jobs, progress=progress)
    runs = [found[place * replications : (place + 1) * replications] for place in range(len(variants))]
    return Plan(
        scenario=scenario.name,
        about=scenario.about,
        policy=chosen,
        replications=replications,
        variants=tuple(
            Variant(
                what_if=text,
                nodes=len(each.node_names),
                load=results[0].load,
                bounds=bounds_of(each),
                values=estimates(results),
                less_now=differences(results, runs[0]),
            )
            for (text, each), results in zip(variants, runs, strict=True)
        ),
    )
