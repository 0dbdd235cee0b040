"""The simulator beside real daemons: one fleet, the same arrivals, several loads; what comes out of either.

Five daemons run on loopback as an operator would start them, with the emulated executor: service times are waited out,
so a small machine can be a fleet. This proves scheduling, gossip and what a message costs; it proves nothing about
devices, whose service times are given. Three constants are measured first, on the idle grid: what a job loses between
client and daemon, what an execution loses inside of a daemon (decisions, timers that fire late), and what a move adds.
The simulator gets them, and nothing else of the daemons.
"""

import platform
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
import psutil
import trio

from gridnode.client import AsyncGrid
from gridnode.demo.stage import NodePlan, Stage
from gridnode.demo.theatre import perform
from gridnode.errors import GridError
from gridnode.results import Timings
from gridnode.simulation.calibration import Calibration, Costs, LoadReport, Seen, Times, report_of
from simulator.engine import stream
from simulator.results import Result
from simulator.runner import run
from simulator.scenario import LinkSpec, ModelSpec, NetworkSpec, NodeGroup, Scenario
from simulator.sources import ReplaySource
from simulator.statistics import quantile
from simulator.workload import Poisson

MODEL: Final = "street-small"
"""Published, fetched and checked, but never computed."""
FLEET: Final[Mapping[str, tuple[int, float]]] = {"slow": (1, 0.2), "middle": (2, 0.1), "fast": (2, 0.05)}
"""Number and mean service time in seconds: 65 jobs/s in all. A job costs daemons and client some
milliseconds of processor time, so this keeps two cores less than half busy."""
CV: Final = 0.1
"""Of the service times."""
LOADS: Final = (0.3, 0.6, 0.85)
"""Shares of what the fleet can serve."""
PAYLOAD_BYTES: Final = 20_000
"""Of a request: a small picture."""
DEADLINE_S: Final = 10.0
"""Long enough that nothing is refused: times are compared, not losses."""
WARM_S: Final = 5.0
"""Of each load, not counted: both find their balance."""
PROBES: Final = 12
"""Jobs per node that measure the constants, one at a time."""
SEEDS: Final = 20
"""Simulations per load: their scatter tells how much chance is in one run of the daemons."""


class CalibrationOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for."""

    seconds: float = 60.0
    """Per load."""
    loads: tuple[float, ...] = LOADS
    seed: str = "1"
    keep: Path | None = None


def node_names() -> list[str]:
    """Return the fleet's nodes, slowest first; the last makes the grid."""
    return [name for device in FLEET for name in names_of(device)]


def names_of(device: str) -> tuple[str, ...]:
    """Return the nodes of a device."""
    return NodeGroup(device=device, count=FLEET[device][0]).names


def capacity_hz() -> float:
    """Return what the fleet can serve."""
    return sum(count / mean_s for count, mean_s in FLEET.values())


def arrivals(load: float, seconds: float, seed: str) -> dict[str, list[float]]:
    """Draw when jobs come in at each node: Poisson, the same rate at all."""
    names = node_names()
    rate_hz = load * capacity_hz() / len(names)
    found = {}
    for name in names:
        times = Poisson(rate_hz).times_s(stream(seed, "calibrate", f"{load}/{name}"), 0.0)
        found[name] = _until(times, seconds)
    return found


def _until(times: Iterable[float], end_s: float) -> list[float]:
    kept = []
    for at_s in times:
        if at_s >= end_s:
            break
        kept.append(at_s)
    return kept


# ---------------------------------------------------------------- the simulator's side


def scenario_of(times_s: Mapping[str, Sequence[float]], *, seconds: float, warm_s: float, costs: Costs) -> Scenario:
    """Return the same fleet and arrivals as a scenario.

    Parameters
    ----------
    times_s : mapping of str to sequence of float
        Arrivals per node.
    seconds, warm_s : float
        Length, and what does not count of it.
    costs : Costs
        As measured.
    """
    model = ModelSpec(
        name=MODEL,
        input_bytes=PAYLOAD_BYTES,
        output_bytes=200,
        mean_s={device: mean_s + costs.execution_s for device, (_, mean_s) in FLEET.items()},
        service="gamma",
        cv=CV,
        memory_bytes=0,
        load_s=0.0,
    )
    return Scenario(
        name="calibrate",
        duration_s=seconds,
        warm_up_s=warm_s,
        models=(model,),
        nodes=tuple(NodeGroup(device=device, count=count) for device, (count, _) in FLEET.items()),
        # Two halves of a way, two ways.
        network=NetworkSpec(link=LinkSpec(latency_s=costs.move_s / 4)),
        sources=tuple(
            ReplaySource(name=node, entries=(node,), times_s=tuple(each), deadline_s=DEADLINE_S)
            for node, each in times_s.items()
            if each
        ),
    )


def simulate(scenario: Scenario, *, socket_s: float) -> tuple[list[Times], list[Result]]:
    """Run a scenario under several seeds."""
    results = [run(scenario, seed=str(number)) for number in range(1, SEEDS + 1)]
    times = [
        Times(mean_s=each.mean_s + socket_s, p50_s=each.p50_s + socket_s, p95_s=each.p95_s + socket_s)
        for each in results
    ]
    return times, results


# ---------------------------------------------------------------- the daemons' side


async def calibrate(
    options: CalibrationOptions,
    *,
    say: Callable[[str], object],
    progress: Callable[[float], object] | None = None,
) -> Calibration:
    """Run daemons and simulator; takes as long as all loads and about half a minute more.

    Parameters
    ----------
    options : CalibrationOptions
        What was asked for.
    say : callable
        Told each step.
    progress : callable, optional
        Told of the share that is done, 0 to 1.

    Raises
    ------
    GridError
        The grid does not stand, or nothing was answered.
    """
    return await perform(
        lambda folder: _Calibration(options, folder, say, progress).run(),
        keep=options.keep,
        prefix="gridnode-calibrate-",
    )


class _Calibration:
    """One calibration in a folder."""

    def __init__(
        self,
        options: CalibrationOptions,
        folder: Path,
        say: Callable[[str], object],
        progress: Callable[[float], object] | None,
    ) -> None:
        self._options = options
        self._say = say
        self._progress = progress
        self._stage = Stage(folder, say=lambda step: None, show=lambda waits: None, plans=_plans(folder), model=MODEL)
        self._grids: dict[str, AsyncGrid] = {}
        self._payload = _picture()

    async def run(self) -> Calibration:
        """Build the grid, run all loads, stop."""
        options = self._options
        try:
            self._say(f"five daemons start: {', '.join(node_names())}")
            await self._stage.build()
            async with AsyncGrids(self._stage) as self._grids:
                costs = await self._probe()
                reports = []
                for number, load in enumerate(options.loads):
                    self._say(f"load {load:g} for {options.seconds:g} s")
                    reports.append(await self._compare(load, costs, done=number / len(options.loads)))
        finally:
            await self._stage.stop()
        return Calibration(
            seconds=options.seconds,
            machine=f"{platform.machine()}, CPython {platform.python_version()}",
            cores=psutil.cpu_count() or 1,
            costs=costs,
            loads=tuple(reports),
        )

    async def _probe(self) -> Costs:
        """Measure the costs with jobs that find the grid idle."""
        home: list[Timings] = []
        moved: list[Timings] = []
        for _ in range(PROBES):
            for grid in self._grids.values():
                result = await grid.infer(MODEL, self._payload, deadline_s=DEADLINE_S)
                (moved if result.hops else home).append(result.timings)
        if not home or not moved:
            raise GridError("the idle grid moved all jobs or none; see the logs of the daemons (--keep)")
        socket_s = _median([each.client_s - each.total_s for each in home])
        execution_s = _median([each.total_s - each.service_s for each in home])
        move_s = _median([each.client_s - each.service_s for each in moved]) - socket_s - execution_s
        return Costs(socket_s=socket_s, execution_s=execution_s, move_s=max(0.0, move_s))

    async def _compare(self, load: float, costs: Costs, *, done: float) -> LoadReport:
        seconds = self._options.seconds
        warm_s = min(WARM_S, seconds / 4)
        times_s = arrivals(load, seconds, self._options.seed)
        cpu_s = self._cpu_s()
        fed = _Feeding(self._grids, self._payload, times_s, warm_s)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._tell, done)
            await fed.run()
            nursery.cancel_scope.cancel()
        cpu = (self._cpu_s() - cpu_s) / fed.took_s
        if not fed.seen:
            raise GridError(f"no job of load {load:g} was answered: {fed.failures.most_common(1)}")
        scenario = scenario_of(times_s, seconds=seconds, warm_s=warm_s, costs=costs)
        times, results = await trio.to_thread.run_sync(lambda: simulate(scenario, socket_s=costs.socket_s))
        return report_of(
            load, fed.seen, times, results, names=node_names(), failed=fed.failures.total(), cpu=cpu, late_s=fed.late_s
        )

    async def _tell(self, done: float) -> None:
        """Tell the progress while a load is on."""
        begun_s = trio.current_time()
        while self._progress is not None:
            share = min(1.0, (trio.current_time() - begun_s) / self._options.seconds)
            self._progress(done + share / len(self._options.loads))
            await trio.sleep(0.25)

    def _cpu_s(self) -> float:
        """Return the processor time of the client and of all daemons with their children."""
        total = 0.0
        for pid in (None, *(node.daemon.pid for node in self._stage.nodes)):
            used = psutil.Process(pid).cpu_times()
            total += used.user + used.system
        return total


class AsyncGrids:
    """One client per node of a stage, open for the length of a block."""

    def __init__(self, stage: Stage) -> None:
        self._grids = {node.name: AsyncGrid([node.socket]) for node in stage.nodes}

    async def __aenter__(self) -> dict[str, AsyncGrid]:
        for grid in self._grids.values():
            await grid.__aenter__()
        return self._grids

    async def __aexit__(self, *_: object) -> None:
        for grid in reversed(self._grids.values()):
            await grid.__aexit__(None, None, None)


class _Feeding:
    """One load: jobs are sent when they are due, whatever became of earlier ones."""

    def __init__(
        self,
        grids: Mapping[str, AsyncGrid],
        payload: bytes,
        times_s: Mapping[str, Sequence[float]],
        warm_s: float,
    ) -> None:
        self._grids = grids
        self._payload = payload
        self._times_s = times_s
        self._warm_s = warm_s
        self.seen: list[Seen] = []
        self.failures: Counter[str] = Counter()
        self._late_s: list[float] = []
        self.took_s = 0.0

    @property
    def late_s(self) -> list[float]:
        """How late jobs were sent, ascending."""
        return sorted(self._late_s)

    async def run(self) -> None:
        """Send all, wait for all outcomes."""
        begun_s = trio.current_time()
        async with trio.open_nursery() as outcomes:
            for name, times_s in self._times_s.items():
                outcomes.start_soon(self._send, name, times_s, begun_s, outcomes)
        self.took_s = trio.current_time() - begun_s

    async def _send(self, name: str, times_s: Sequence[float], begun_s: float, outcomes: trio.Nursery) -> None:
        for at_s in times_s:
            await trio.sleep_until(begun_s + at_s)
            outcomes.start_soon(self._see_through, name, begun_s + at_s, at_s >= self._warm_s)

    async def _see_through(self, name: str, due_s: float, counts: bool) -> None:
        sent_s = trio.current_time()
        try:
            result = await self._grids[name].infer(MODEL, self._payload, deadline_s=DEADLINE_S)
        except GridError as error:
            self.failures[type(error).__name__] += 1
            return
        if counts:
            self._late_s.append(sent_s - due_s)
            self.seen.append(Seen(trio.current_time() - sent_s, name, result.node))


def _plans(folder: Path) -> list[NodePlan]:
    """Write a device profile per device; return the nodes."""
    plans = []
    for device, (_, mean_s) in FLEET.items():
        path = folder / f"{device}.toml"
        path.write_text(f'[models."{MODEL}"]\nmean_s = {mean_s}\ncv = {CV}\n', encoding="utf-8")
        settings = ("runtime.executor=emulated", f"runtime.profile={path}")
        plans += [NodePlan(name=name, settings=settings) for name in names_of(device)]
    return plans


def _picture() -> bytes:
    """Return a request's payload: a small picture, filled up to its size behind its end, as JPEG allows."""
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (320, 320), (90, 120, 90)).save(buffer, "JPEG")
    return buffer.getvalue().ljust(PAYLOAD_BYTES, b"\0")


def _median(values: Sequence[float]) -> float:
    return quantile(sorted(values), 0.5)
