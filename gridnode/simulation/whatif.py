"""Changes of a scenario: more or fewer devices, cameras and sources, as a planner writes them.

Knows nothing of runs. Rates stay what they are when devices go (`frozen`). A recording keeps its times; more cameras
are copies of what was recorded, begun elsewhere in it, so that its bursts do not fall together. Where a node goes that
recorded jobs came in at, its programs are taken to connect to the nodes that are left, in turn.
"""

import itertools
import math
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from gridnode.simulation.load import SimulationInputError
from simulator.fleet import source_rates_hz
from simulator.recorded import unplaced
from simulator.scenario import NodeGroup, Scenario
from simulator.scenariorules import check
from simulator.sources import CameraSource, RatedSource, RecordedJob, ReplaySource, Source
from simulator.values import ScenarioError

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
    scenario = _rehomed(scenario)
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


def _rehomed(scenario: Scenario) -> Scenario:
    """Give recorded jobs whose node is gone another one, the nodes that are left in turn."""
    left = scenario.node_names
    turns = itertools.cycle(left)
    sources: list[Source] = []
    for source in scenario.sources:
        if isinstance(source, ReplaySource) and source.jobs:
            places = {name: place for name, place in source.places.items() if place in left}
            entries = source.entries if scenario.select(source.entries) else "all"
            source = msgspec.structs.replace(source, places=places, entries=entries)
            homes = {name: next(turns) for name in unplaced(scenario, source)}
            source = msgspec.structs.replace(source, places=places | homes)
        sources.append(source)
    return msgspec.structs.replace(scenario, sources=tuple(sources))


def _nodes(scenario: Scenario, place: int, change: Change) -> tuple[NodeGroup, ...]:
    group = scenario.nodes[place]
    count = _counted(group.count, change)
    if (
        group.count == 1
        and count > 1
        and any(isinstance(each, ReplaySource) and each.jobs for each in scenario.sources)
    ):
        # The recorded node keeps its name, at which its jobs come in; those like it are new.
        new = msgspec.structs.replace(group, name=f"{group.names[0]}.new", count=count - 1)
        return (*scenario.nodes, new)
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
    if isinstance(source, ReplaySource) and source.jobs and not change.is_share:
        return _cameras(source, change)
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


def _cameras(source: ReplaySource, change: Change) -> tuple[Source, ...]:
    """Return a recording with more or fewer cameras: copies in turn of those that there are, or without the last ones.

    A camera is what has a stream of its own; requests without one count as one camera.
    """
    streams = list(dict.fromkeys([job.stream for job in source.jobs]))
    count = _counted(len(streams), change)
    if count <= len(streams):
        return (_part_of(source, streams[:count]),) if count else ()
    copies = [
        _turned(
            _part_of(source, [streams[number % len(streams)]]), number + 1, kind="camera", span_s=source.times_s[-1]
        )
        for number in range(count - len(streams))
    ]
    return (source, *copies)


def _part_of(source: ReplaySource, streams: Sequence[str]) -> ReplaySource:
    """Return the jobs of some streams."""
    kept = [number for number, job in enumerate(source.jobs) if job.stream in streams]
    return msgspec.structs.replace(
        source,
        times_s=tuple([source.times_s[number] for number in kept]),
        jobs=tuple([source.jobs[number] for number in kept]),
    )


def _copies(source: ReplaySource, factor: float) -> tuple[Source, ...]:
    """Return as many copies of a recording as there are wholes in a factor, and one that is thinned."""
    found: list[Source] = []
    number = 0
    while factor > 1e-9:
        copy = _turned(source, number, kind="copy", span_s=source.times_s[-1]) if number else source
        found.append(msgspec.structs.replace(copy, keep=min(1.0, factor) * source.keep))
        factor -= 1.0
        number += 1
    return tuple(found)


def _turned(source: ReplaySource, number: int, *, kind: str, span_s: float) -> ReplaySource:
    """Return a copy that begins elsewhere in a recording of that length, its beginning behind its end."""
    later_s = number * GOLDEN % 1.0 * span_s
    times_s = [(at_s + later_s) % span_s if span_s else at_s for at_s in source.times_s]
    order = sorted(range(len(times_s)), key=times_s.__getitem__)
    jobs = [_of_a_copy(source.jobs[place], number) for place in order] if source.jobs else []
    return msgspec.structs.replace(
        source,
        name=f"{source.name or 'replay'}.{kind}{number}",
        times_s=tuple([times_s[place] for place in order]),
        jobs=tuple(jobs),
    )


def _of_a_copy(job: RecordedJob, number: int) -> RecordedJob:
    """Return a job of another camera: frames of two cameras must not take one another's place."""
    return msgspec.structs.replace(job, stream=f"{job.stream}.{number}") if job.stream else job
