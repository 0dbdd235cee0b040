"""A scenario's fleet: what its nodes serve and how fast, the links between them, what it could serve in all.

Turns records of `scenario` into those that `world` takes. Runs nothing.
"""

import math
from collections.abc import Iterator
from typing import Final

import msgspec

from scheduler.config import CoreConfig
from scheduler.types import Capability
from simulator import recorded
from simulator.devices import DEVICES, MODELS, Device
from simulator.distributions import Constant, Empirical, Erlang, Exponential, Gamma, Lognormal, ServiceTime
from simulator.scenario import ModelSpec, NodeGroup, Scenario
from simulator.sources import CameraSource, RatedSource, ReplaySource, Source
from simulator.specs import ModelProfile, NodeSpec
from simulator.values import ScenarioError
from simulator.workload import zipf

INPUT_BYTES: Final = 150_528
"""Of a request of an unknown model: 224 x 224 pixels of 3 bytes."""
CV: Final = 0.05
"""Variation of service times on an unknown device: inference alone on a machine is nearly constant."""
_P95_NORMAL: Final = 1.645
"""Standard deviations from the mean to the 95 % quantile of a normal distribution: what a node tells of its tail."""


def mean_s(scenario: Scenario, group: NodeGroup, model: ModelSpec) -> float:
    """Return the mean service time of a model on the nodes of a group, in seconds.

    Raises
    ------
    ScenarioError
        When neither the scenario nor simulator.devices has it.
    """
    found = model.mean_s.get(group.device)
    measured = model.measured_s.get(group.device)
    if found is None and measured is not None:
        found = Empirical(measured).mean_s
    if found is None:
        device, name = DEVICES.get(group.device), model.profile or model.name
        if device is None or name not in device.service_s:
            path = ("models", scenario.models.index(model), "mean_s")
            raise ScenarioError(_unknown(group.device, device, name), path)
        found = device.service_s[name].value
    return found / group.speed


def _unknown(wanted: str, device: Device | None, model: str) -> str:
    if device is None:
        return f"nothing for the device {wanted!r}; add it, or take one of {', '.join(DEVICES)}"
    return f"nothing for the device {wanted!r}, known for {', '.join(device.service_s)} and not for {model!r}; add it"


def input_bytes(model: ModelSpec) -> int:
    """Return the size of a request: the scenario's, else that of the model's profile, else a picture of 224 x 224."""
    if model.input_bytes is not None:
        return model.input_bytes
    figures = MODELS.get(model.profile or model.name)
    return INPUT_BYTES if figures is None else round(figures.input_bytes.value)


def service_time(model: ModelSpec, mean_s: float, cv: float) -> ServiceTime:
    """Return the distribution of a model's service times around a mean in seconds, with a coefficient of variation."""
    match model.service:
        case "exponential":
            return Exponential(mean_s)
        case "empirical":
            return Empirical(model.values).scaled(mean_s)
        case _ if model.service == "constant" or cv == 0.0:
            return Constant(mean_s)
        case "erlang":
            return Erlang(mean_s, max(1, round(1.0 / cv**2)))
        case "gamma":
            return Gamma(mean_s, cv)
        case _:
            return Lognormal(mean_s, cv)


def node_specs(scenario: Scenario, config: CoreConfig) -> Iterator[NodeSpec]:
    """Yield the nodes."""
    for group in scenario.nodes:
        models = scenario.models_of(group)
        profiles = {name: _profile(scenario, group, scenario.model(name)) for name in models}
        loaded = None if group.loaded is None else frozenset(group.loaded)
        for name in group.names:
            yield NodeSpec(name=name, models=profiles, loaded=loaded, config=_own_config(config, group))


def _own_config(config: CoreConfig, group: NodeGroup) -> CoreConfig:
    queue = config.queue
    if group.slots != 1:
        queue = msgspec.structs.replace(queue, slots=group.slots)
    if group.memory_bytes is not None:
        queue = msgspec.structs.replace(queue, model_memory_bytes=group.memory_bytes)
    return config if queue is config.queue else msgspec.structs.replace(config, queue=queue)


def _profile(scenario: Scenario, group: NodeGroup, model: ModelSpec) -> ModelProfile:
    """Return what a model costs on a group's nodes: what the scenario leaves open is looked up under the device."""
    mean = mean_s(scenario, group, model)
    device, name = DEVICES.get(group.device), model.profile or model.name
    figures = MODELS.get(name)
    cv = model.cv if model.cv is not None else device.cv.value if device is not None else CV
    measured = model.measured_s.get(group.device)
    service = service_time(model, mean, cv) if measured is None else Empirical(measured).scaled(mean)
    memory_bytes = model.memory_bytes
    if memory_bytes is None:
        memory_bytes = 0 if figures is None else round(figures.memory_bytes.value)
    load_s = model.load_s
    if load_s is None:
        load_s = device.load_s(name) if device is not None and figures is not None else 0.0
    capability = Capability(
        model=model.name,
        mean_s=mean,
        p95_s=mean * (1.0 + _P95_NORMAL * math.sqrt(service.cv2)),
        memory_bytes=memory_bytes,
        load_s=load_s,
        max_batch=model.max_batch,
    )
    warm_up = model.warm_up
    if warm_up is None:
        warm_up = device.warm_up.value if device is not None else 1.0
    return ModelProfile(capability=capability, service=service, warm_up=warm_up, batch=model.batch)


# ---------------------------------------------------------------- what it could serve


def work(scenario: Scenario, source: Source) -> dict[str, float]:
    """Return how many executions of each model a frame of a source needs on average."""
    needs = _first_needs(scenario, source)
    stage, reached = source.then, 1.0
    while stage is not None:
        reached *= stage.probability
        needs[stage.model] = needs.get(stage.model, 0.0) + reached
        stage = stage.then
    return {model: need for model, need in needs.items() if need > 0.0}


def _first_needs(scenario: Scenario, source: Source) -> dict[str, float]:
    """Return the share of a source's frames by the model that they ask for first."""
    needs: dict[str, float] = {}
    rest = 1.0
    if isinstance(source, ReplaySource) and source.jobs:
        needs = recorded.shares(scenario, source)[1]
        rest = needs.pop("", 0.0)
    models = source.models or (scenario.models[0].name,)
    shares = [1.0] if source.rungs else zipf(len(models), source.model_zipf)
    for model, share in zip(models, shares, strict=False):
        needs[model] = needs.get(model, 0.0) + rest * share
    return needs


def capacity_hz(scenario: Scenario, source: Source) -> float:
    """Return the frames of a source that the fleet could serve per second, were all its nodes always busy.

    Nodes count that can run every model a frame may need; batches are not thought of.
    """
    needs = work(scenario, source)
    total = 0.0
    for group in scenario.nodes:
        if set(needs) <= set(scenario.models_of(group)):
            each = sum([need * mean_s(scenario, group, scenario.model(model)) for model, need in needs.items()])
            total += group.count * group.slots / each
    return total


def source_rates_hz(scenario: Scenario) -> list[float]:
    """Return the mean rate of each source: all its jobs, but of cameras those of one while it sends.

    Raises
    ------
    ScenarioError
        When a load is given and no node could serve it.
    """
    return [_rate_hz(scenario, source, number) for number, source in enumerate(scenario.sources)]


def _rate_hz(scenario: Scenario, source: Source, number: int) -> float:
    if isinstance(source, ReplaySource):
        return 0.0
    if isinstance(source, RatedSource):
        given, cameras = source.rate_hz, 1.0
    else:
        given, cameras = source.fps, source.count * moving(source)
    if given is not None:
        return given
    assert source.load is not None, "the rules of scenarios hold: a rate or a load"
    capacity = capacity_hz(scenario, source)
    if not capacity:
        path = ("sources", number, "load")
        raise ScenarioError("no node can run all that a job of this source may need; give a rate", path)
    return source.load * capacity / cameras


def moving(source: CameraSource) -> float:
    """Return the share of the time in which a camera sends."""
    return 1.0 if source.on_s is None else source.on_s / (source.on_s + source.off_s)


def offered(scenario: Scenario, rates_hz: list[float]) -> tuple[float, float]:
    """Return the jobs of all sources per second, and the share of the fleet that they need.

    A source counts for its share of the counted time; of a replay the recorded arrivals do.
    """
    span_s = scenario.duration_s - scenario.warm_up_s
    jobs_hz = load = 0.0
    for source, rate_hz in zip(scenario.sources, rates_hz, strict=True):
        begin_s, end_s = max(source.start_s, scenario.warm_up_s), min(source.end_s, scenario.duration_s)
        if isinstance(source, ReplaySource):
            times = [source.start_s + at_s / source.speed_up for at_s in source.times_s]
            mean_hz = source.keep * sum([begin_s <= at_s < end_s for at_s in times]) / span_s
        else:
            all_hz = rate_hz * source.count * moving(source) if isinstance(source, CameraSource) else rate_hz
            mean_hz = all_hz * max(0.0, end_s - begin_s) / span_s
        jobs_hz += mean_hz
        capacity = capacity_hz(scenario, source)
        load += mean_hz / capacity if capacity else math.nan
    return jobs_hz, load
