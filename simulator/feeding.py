"""The sources of a scenario as streams of jobs that arrive at a world. Knows laws and entries, not what comes of one.

Every stream has draws of its own for times and for choices, seeded by the source's name and its entry or camera, so
that another policy, another node or another source shifts none of them (common random numbers).
"""

import hashlib
import random
from collections.abc import Callable, Iterator
from math import inf

from simulator.engine import stream
from simulator.fleet import input_bytes
from simulator.recorded import known_models, places
from simulator.scenario import Scenario
from simulator.sources import (
    CameraSource,
    GammaSource,
    MmppSource,
    PoissonSource,
    RatedSource,
    RecordedJob,
    ReplaySource,
    Source,
    SquareSource,
    Stage,
)
from simulator.specs import JobSpec
from simulator.workload import (
    Arrivals,
    Camera,
    Draw,
    GammaRenewal,
    Mmpp,
    MovingHotSpot,
    Poisson,
    Replay,
    SquareWave,
    rates_hz,
    zipf,
)
from simulator.world import World

Rated = PoissonSource | GammaSource | MmppSource | SquareSource
Chosen = tuple[str, JobSpec, tuple[JobSpec, ...]]
Choose = Callable[[random.Random, float], Chosen]
_KEY_BYTES = 16
"""Of a client's id in a job's key."""


class Feed:
    """One stream of jobs.

    Parameters
    ----------
    world : World
        Where they arrive.
    name : str
        Seeds its draws.
    law : Arrivals
        Times.
    choose : callable
        Given draws and a time, the node, what is asked for, and what follows.
    start_s, end_s : float
        Span of the arrivals, in seconds.
    """

    __slots__ = ("_choose", "_client", "_count", "_end_s", "_rng", "_times", "_world")

    def __init__(
        self,
        world: World,
        name: str,
        law: Arrivals,
        choose: Choose,
        *,
        start_s: float,
        end_s: float,
    ) -> None:
        self._world = world
        self._times: Iterator[float] = law.times_s(stream(world.seed, "arrivals", name), start_s)
        self._rng = stream(world.seed, "choices", name)
        self._choose = choose
        self._end_s = end_s
        self._client = hashlib.sha256(name.encode()).digest()[:_KEY_BYTES]
        self._count = 0
        self._wait()

    def _wait(self) -> None:
        at_s = next(self._times, inf)
        if at_s < self._end_s:
            self._world.engine.at(at_s, self._arrive)

    def _arrive(self) -> None:
        world, rng = self._world, self._rng
        self._count += 1
        entry, spec, stages = self._choose(rng, world.engine.now_s)
        key = self._client + self._count.to_bytes(8, "big")
        world.submit(entry, spec, key=key, frame=self._count if spec.stream else 0, stages=stages)
        self._wait()


class Menu:
    """What a source asks for: models, and the stages that follow.

    Parameters
    ----------
    scenario : Scenario
        With the models.
    source : Source
        With their shares.
    name : str, default ""
        Of the stream, where the jobs are frames.
    """

    def __init__(self, scenario: Scenario, source: Source, name: str = "") -> None:
        models = source.models or (scenario.models[0].name,)
        lists = [models] if source.rungs else [(model,) for model in models]
        self._specs = [self._spec(scenario, source, each, name) for each in lists]
        self._draw = Draw(zipf(len(lists), source.model_zipf))
        self._stages: list[tuple[float, JobSpec]] = []
        stage = source.then
        while stage is not None:
            self._stages.append((stage.probability, self._stage(scenario, source, stage)))
            stage = stage.then

    @staticmethod
    def _spec(scenario: Scenario, source: Source, models: tuple[str, ...], name: str) -> JobSpec:
        model = scenario.model(models[0])
        return JobSpec(
            models=models,
            input_bytes=input_bytes(model) if source.input_bytes is None else source.input_bytes,
            output_bytes=model.output_bytes,
            budget_s=source.deadline_s,
            priority=source.priority,
            stream=name,
            newest_wins=isinstance(source, CameraSource) and source.newest_wins,
        )

    @staticmethod
    def _stage(scenario: Scenario, source: Source, stage: Stage) -> JobSpec:
        model = scenario.model(stage.model)
        return JobSpec(
            models=(stage.model,),
            input_bytes=input_bytes(model) if stage.input_bytes is None else stage.input_bytes,
            output_bytes=model.output_bytes,
            budget_s=source.deadline_s,
            priority=source.priority,
        )

    def choose(self, rng: random.Random) -> tuple[JobSpec, tuple[JobSpec, ...]]:
        """Draw the model of a job, and whether and how far it has a sequel; all of it when it arrives."""
        return self._specs[self._draw(rng)], self.sequel(rng)

    def sequel(self, rng: random.Random) -> tuple[JobSpec, ...]:
        """Draw whether and how far a job has a sequel."""
        if not self._stages:
            return ()
        stages = []
        for probability, stage in self._stages:
            if rng.random() >= probability:
                break
            stages.append(stage)
        return tuple(stages)


def feed_all(world: World, scenario: Scenario, mean_hz: list[float]) -> None:
    """Begin all sources of a scenario.

    Parameters
    ----------
    world : World
        Where jobs arrive.
    scenario : Scenario
        With the sources.
    mean_hz : list of float
        Rate of each: of cameras that of one while it sends; ignored for replays.
    """
    for number, (source, rate_hz) in enumerate(zip(scenario.sources, mean_hz, strict=True)):
        name = source.name or f"source{number}"
        if isinstance(source, CameraSource):
            _feed_cameras(world, scenario, source, name, rate_hz)
        elif isinstance(source, ReplaySource):
            _feed_recording(world, scenario, source, name)
        elif source.together or source.hot_spot is not None:
            _feed_together(world, scenario, source, name, _law(source, rate_hz))
        else:
            _feed_each(world, scenario, source, name, rate_hz)


def _law(source: Rated, rate_hz: float) -> Arrivals:
    match source:
        case PoissonSource():
            return Poisson(rate_hz)
        case GammaSource():
            return GammaRenewal(rate_hz, source.cv)
        case MmppSource() | SquareSource():
            burst_s, calm_s = source.burst_s, source.calm_s
            burst_hz, calm_hz = rates_hz(rate_hz, burst=source.burst, burst_s=burst_s, calm_s=calm_s)
            law = Mmpp if isinstance(source, MmppSource) else SquareWave
            return law(burst_hz=burst_hz, calm_hz=calm_hz, burst_s=burst_s, calm_s=calm_s)


def _feed_together(world: World, scenario: Scenario, source: Source, name: str, law: Arrivals) -> None:
    """Have one law make the arrivals of all entries."""
    entries = scenario.select(source.entries)
    draw = Draw(zipf(len(entries), source.entry_zipf))
    spot = source.hot_spot if isinstance(source, RatedSource) else None
    hot = None if spot is None else MovingHotSpot(draw, count=len(entries), share=spot.share, every_s=spot.every_s)
    menu = Menu(scenario, source)

    def choose(rng: random.Random, at_s: float) -> Chosen:
        entry = entries[draw(rng) if hot is None else hot(rng, at_s)]
        return entry, *menu.choose(rng)

    end_s = min(source.end_s, scenario.duration_s)
    Feed(world, name, law, choose, start_s=source.start_s, end_s=end_s)


def _feed_recording(world: World, scenario: Scenario, source: ReplaySource, name: str) -> None:
    """Replay times, or jobs with all that was recorded of them."""
    law = Replay(recorded_s=source.times_s, speed_up=source.speed_up, keep=source.keep)
    if not source.jobs:
        _feed_together(world, scenario, source, name, law)
        return
    kept = [*law.kept(stream(world.seed, "arrivals", name))]
    law = Replay(recorded_s=tuple([source.times_s[number] for number in kept]), speed_up=source.speed_up)
    choose = _recorded(scenario, source, [source.jobs[number] for number in kept])
    end_s = min(source.end_s, scenario.duration_s)
    Feed(world, name, law, choose, start_s=source.start_s, end_s=end_s)


def _recorded(scenario: Scenario, source: ReplaySource, jobs: list[RecordedJob]) -> Choose:
    """Return what gives recorded jobs one after the other."""
    at, menu, coming = places(scenario, source), Menu(scenario, source), iter(jobs)
    known = frozenset([model.name for model in scenario.models])
    outputs = {model.name: model.output_bytes for model in scenario.models}

    def choose(rng: random.Random, _: float) -> Chosen:
        job = next(coming)
        models = known_models(job, known)
        if models:
            stages = menu.sequel(rng)
        else:
            drawn, stages = menu.choose(rng)
            models = drawn.models
        spec = JobSpec(
            models=models,
            input_bytes=job.input_bytes if source.input_bytes is None else source.input_bytes,
            output_bytes=job.output_bytes or outputs[models[0]],
            budget_s=job.deadline_s,
            priority=job.priority,
            stream=job.stream,
            newest_wins=job.newest_wins,
        )
        return at[job.entry], spec, stages

    return choose


def _feed_each(world: World, scenario: Scenario, source: Rated, name: str, rate_hz: float) -> None:
    """Give each entry a law of its own."""
    entries = scenario.select(source.entries)
    menu, end_s = Menu(scenario, source), min(source.end_s, scenario.duration_s)
    for entry, share in zip(entries, zipf(len(entries), source.entry_zipf), strict=True):
        law = _law(source, rate_hz * share)
        Feed(world, f"{name}/{entry}", law, _at(entry, menu), start_s=source.start_s, end_s=end_s)


def _feed_cameras(world: World, scenario: Scenario, source: CameraSource, name: str, rate_hz: float) -> None:
    """Spread cameras over the entries."""
    entries = scenario.select(source.entries)
    draw, rng = Draw(zipf(len(entries), source.entry_zipf)), stream(world.seed, "entries", name)
    law = Camera(rate_hz, source.jitter_s, source.aligned, source.on_s, source.off_s)
    end_s = min(source.end_s, scenario.duration_s)
    for number in range(source.count):
        entry = entries[draw(rng) if source.entry_zipf else number % len(entries)]
        each = f"{name}/{number}"
        menu = Menu(scenario, source, each if source.stream else "")
        Feed(world, each, law, _at(entry, menu), start_s=source.start_s, end_s=end_s)


def _at(entry: str, menu: Menu) -> Choose:
    """Return what gives all jobs to one node."""
    return lambda rng, _: (entry, *menu.choose(rng))
