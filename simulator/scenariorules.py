"""What must hang together in a scenario beyond each value's own range. Decides nothing else."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

from simulator.faultspecs import PartitionFault
from simulator.fleet import mean_s
from simulator.recorded import unknown_models, unplaced
from simulator.runner import core_config
from simulator.scenario import NODES_MAX, Scenario
from simulator.sources import BurstySource, CameraSource, RatedSource, ReplaySource, Source
from simulator.values import ScenarioError
from simulator.wiring import access


def check(scenario: Scenario) -> None:
    """Check what hangs together in a scenario.

    Raises
    ------
    ScenarioError
        The author's fault: the first rule that is broken, with the path of its key.
    """
    for path, message in _broken(scenario):
        raise ScenarioError(message, path)


_Broken = Iterator[tuple[tuple[str | int, ...], str]]


def _broken(scenario: Scenario) -> _Broken:
    """Yield what is wrong, in the order of the file."""
    if scenario.warm_up_s >= scenario.duration_s:
        duration_s = scenario.duration_s
        yield (
            ("warm_up_s",),
            f"{scenario.warm_up_s:g} s; it must be below duration_s ({duration_s:g}), or nothing counts",
        )
    yield from _told(partial(core_config, scenario))
    yield from _broken_fleet(scenario)
    if scenario.network.mesh_degree == 1:
        yield ("network", "mesh_degree"), "1; pairs are no mesh: give 2 or more, or 0 for none"
    models = {model.name for model in scenario.models}
    for number, source in enumerate(scenario.sources):
        yield from _broken_source(scenario, source, ("sources", number), models)
    for number, fault in enumerate(scenario.faults):
        parts = fault.groups if isinstance(fault, PartitionFault) else (fault.nodes,)
        key = "groups" if isinstance(fault, PartitionFault) else "nodes"
        for part in parts:
            yield from _broken_selection(scenario, part, ("faults", number, key))


def _broken_fleet(scenario: Scenario) -> _Broken:
    known = [model.name for model in scenario.models]
    for number, model in enumerate(scenario.models):
        path = ("models", number)
        if known.index(model.name) != number:
            yield (*path, "name"), f"{model.name!r} is the name of an earlier model; each needs its own"
        if model.batch and (model.batch[0] != 1 or len(model.batch) != model.max_batch):
            yield (*path, "batch"), f"{len(model.batch)} factors; max_batch ({model.max_batch}) are needed, the first 1"
        if model.service == "empirical" and not model.values:
            yield (*path, "values"), "nothing given; an empirical distribution needs at least one value"
    total = 0
    taken: set[str] = set()
    for number, group in enumerate(scenario.nodes):
        total += group.count
        prefix = group.name or group.device
        if taken & set(group.names):
            yield ("nodes", number, "name"), f"{prefix!r} makes names that an earlier group has; give another name"
        taken.update(group.names)
        for key, listed in (("models", group.models), ("loaded", group.loaded)):
            for each in listed or ():
                if each not in known:
                    yield ("nodes", number, key), f"no model is named {each!r}; there are {', '.join(known)}"
        if group.medium is not None and group.medium not in scenario.network.media_mbit_s:
            media = ", ".join(scenario.network.media_mbit_s) or "none"
            yield ("nodes", number, "medium"), f"no channel is named {group.medium!r}; network.media_mbit_s has {media}"
        for model in scenario.models:
            if model.name in scenario.models_of(group):
                yield from _told(partial(mean_s, scenario, group, model))
        yield from _told(partial(access, scenario, group))
    if total > NODES_MAX:
        yield ("nodes",), f"{total} nodes in all; at most {NODES_MAX} are simulated"


def _told(look: Callable[[], object]) -> _Broken:
    """Yield what a look-up of a profile finds missing."""
    try:
        look()
    except ScenarioError as error:
        yield error.path, error.message


def _broken_selection(scenario: Scenario, wanted: tuple[str, ...] | str, path: tuple[str | int, ...]) -> _Broken:
    for each in (wanted,) if isinstance(wanted, str) else wanted:
        if not scenario.select(each):
            groups = ", ".join(dict.fromkeys(group.name or group.device for group in scenario.nodes))
            yield path, f"{each!r} means no node; there are all, the groups {groups}, and patterns of node names"


def _broken_source(scenario: Scenario, source: Source, path: tuple[str | int, ...], models: set[str]) -> _Broken:
    listed = ", ".join(sorted(models))
    yield from _broken_selection(scenario, source.entries, (*path, "entries"))
    for model in source.models:
        if model not in models:
            yield (*path, "models"), f"no model is named {model!r}; there are {listed}"
    stage, place = source.then, (*path, "then")
    while stage is not None:
        if stage.model not in models:
            yield (*place, "model"), f"no model is named {stage.model!r}; there are {listed}"
        stage, place = stage.then, (*place, "then")
    if source.end_s <= source.start_s:
        yield (*path, "end_s"), f"{source.end_s:g}; it must be above start_s ({source.start_s:g})"
    if isinstance(source, RatedSource | CameraSource):
        key = "fps" if isinstance(source, CameraSource) else "rate_hz"
        given = source.fps if isinstance(source, CameraSource) else source.rate_hz
        if (given is None) == (source.load is None):
            both = "neither is given" if given is None else "both are given"
            yield (*path, key), f"{both}; give either {key} or load"
    if isinstance(source, BurstySource) and source.burst * source.burst_s > source.burst_s + source.calm_s:
        most = (source.burst_s + source.calm_s) / source.burst_s
        yield (
            (*path, "burst"),
            f"{source.burst:g}; at most (burst_s + calm_s) / burst_s = {most:g}, where calms are empty",
        )
    if isinstance(source, ReplaySource):
        yield from _broken_replay(scenario, source, path)


def _broken_replay(scenario: Scenario, source: ReplaySource, path: tuple[str | int, ...]) -> _Broken:
    if bool(source.file) == bool(source.times_s):
        yield (*path, "file"), "give either a file or times_s"
    if any(later < earlier for earlier, later in pairwise(source.times_s)):
        yield (*path, "times_s"), "not ascending; sort them"
    for name, place in source.places.items():
        if place not in scenario.node_names:
            yield (
                (*path, "places", name),
                f"{place!r} is no node of the scenario; its names are such as " + ", ".join(scenario.node_names[:3]),
            )
    if not source.jobs:
        return
    if len(source.jobs) != len(source.times_s):
        yield (*path, "jobs"), f"{len(source.jobs)} of them and {len(source.times_s)} times; one belongs to each"
    homeless = unplaced(scenario, source)
    if homeless:
        listed = ", ".join(homeless[:5]) + (", ..." if len(homeless) > 5 else "")
        yield (
            (*path, "entries"),
            f"the recorded nodes {listed} are none of them; say where their jobs come in, in "
            'places = {recorded = "node"}, or spread = true',
        )
    unknown = unknown_models(scenario, source)
    if unknown:
        listed = ", ".join(model.name for model in scenario.models)
        yield (
            (*path, "models"),
            f"the recorded models {', '.join(unknown[:5])} are none of the scenario's ({listed}); add them, or give "
            "the models to ask for in their place",
        )
