"""Hours in minutes: a grid of three real daemons under mixed load while nodes are killed, paused, restarted and joined.

What is counted: requests without an outcome (0), answers for cancelled or answered requests (0), broken promises of the
core (0), tracebacks in the logs (0); and for each process that lived through the run its memory (RSS, and PSS, which
shares common pages fairly), open descriptors, threads and trio tasks over time, as a slope per hour with its 95 %
confidence interval from a straight line through all samples after the warm-up. A leak shows as a slope whose interval
lies above zero; caches that fill (cards of nodes that came by, decisions remembered) show early and level off, so the
slope of the second half is printed beside it.

Load: one camera at a steady rate; programs that come, send a few jobs and go, some in the middle of a job; cancelled
jobs, requests that make no sense, clients that speak no protocol, queries and metrics scrapes.

Usage: .venv/bin/python benches/soak.py [--minutes N] [--rate FPS] [--seed S] [--json FILE] [--keep FOLDER]
"""

import argparse
import io
import json
import math
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import psutil
import trio
from PIL import Image

from gridnode.client import AsyncGrid
from gridnode.demo.stage import MODEL, DemoNode, NodePlan, Stage
from gridnode.errors import DaemonUnreachableError, GridError
from gridnode.joining import join_grid

SAMPLE_S = 3.0
WARM_UP_S = 90.0
"""Left out of the slopes: imports, pools and allocators fill."""
FAULT_EVERY_S = (6.0, 14.0)
LATECOMERS_MAX = 8
"""Identities that join in a run; afterwards those known come back."""
DEADLINE_S = 6.0
OUTCOME_S = 30.0
"""A request without result or named error after so long is lost."""
QUANTITIES = ("rss_mib", "pss_mib", "descriptors", "threads", "tasks")


class Tally:
    """What became of the requests."""

    def __init__(self) -> None:
        self.sent = self.answered = self.lost = self.cancelled = self.late_answers = 0
        self.errors: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.nodes: Counter[str] = Counter()

    async def see_through(self, outcome: Callable[[], Awaitable[object]]) -> None:
        """Count one request."""
        self.sent += 1
        with trio.move_on_after(OUTCOME_S) as scope:
            try:
                result = await outcome()
            except GridError as error:
                self.errors[f"{type(error).__name__} {getattr(error, 'reason', '')}".strip()] += 1
            else:
                self.answered += 1
                self.nodes[getattr(result, "node", "")] += 1
        if scope.cancelled_caught:
            self.lost += 1


class Series:
    """Samples of one process over its life."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid
        self.rows: list[tuple[float, ...]] = []
        """(seconds since the start, then QUANTITIES)."""


class Load:
    """Programs that use the grid."""

    def __init__(self, stage: Stage, tally: Tally, rng: random.Random, rate_hz: float, end_s: float) -> None:
        self._stage = stage
        self._tally = tally
        self._rng = rng
        self._rate_hz = rate_hz
        self._end_s = end_s
        """On trio's clock: nothing is sent later, and each request sent gets its outcome."""
        noise = np.random.default_rng(7)
        self._pictures = [_jpeg(noise, size) for size in ((320, 320), (640, 360), (1280, 720))]

    async def camera(self) -> None:
        """Send at a steady rate into the slowest node; another entry is known."""
        sockets = [str(self._stage.entry.socket), str(self._stage.founder.socket)]
        async with AsyncGrid(sockets) as grid, trio.open_nursery() as nursery:
            while trio.current_time() < self._end_s:
                picture = self._rng.choice(self._pictures)
                nursery.start_soon(
                    self._tally.see_through,
                    lambda picture=picture: grid.infer(MODEL, picture, deadline_s=DEADLINE_S),
                )
                self._tally.late_answers = max(self._tally.late_answers, grid.late_answers)
                await trio.sleep(self._rng.expovariate(self._rate_hz))

    async def programs(self) -> None:
        """Come, send a little, go; sometimes with jobs under way."""
        while trio.current_time() < self._end_s:
            await trio.sleep(self._rng.uniform(0.2, 1.0))
            first, second = self._rng.sample([self._stage.entry, self._stage.founder], 2)
            async with AsyncGrid([str(first.socket), str(second.socket)]) as grid:
                if self._rng.random() < 0.2:
                    await self._leave_early(grid)
                    continue
                async with trio.open_nursery() as nursery:
                    for _ in range(self._rng.randint(1, 4)):
                        picture = self._rng.choice(self._pictures)
                        nursery.start_soon(
                            self._tally.see_through,
                            lambda picture=picture: grid.infer(MODEL, picture, deadline_s=DEADLINE_S),
                        )

    async def _leave_early(self, grid: AsyncGrid) -> None:
        """Submit, cancel some, and go while the others run."""
        try:
            handles = [await grid.submit(MODEL, self._pictures[0], deadline_s=DEADLINE_S) for _ in range(4)]
        except GridError as error:
            self._tally.errors[f"{type(error).__name__} at submit"] += 1
            return
        await trio.sleep(self._rng.uniform(0.0, 0.05))
        for handle in handles[:2]:
            self._tally.cancelled += handle.cancel()

    async def nonsense(self) -> None:
        """Ask for what cannot be had, speak no protocol, look at everything."""
        while trio.current_time() < self._end_s:
            await trio.sleep(self._rng.uniform(0.5, 1.5))
            node = self._rng.choice([self._stage.entry, self._stage.founder])
            try:
                async with AsyncGrid([str(node.socket)], patience_s=1.0) as grid:
                    match self._rng.randrange(5):
                        case 0:
                            await grid.infer("no-such-model", self._pictures[0])
                        case 1:
                            await grid.infer(MODEL, self._pictures[0][:100], deadline_s=DEADLINE_S)
                        case 2:
                            await grid.infer(MODEL, {"nothing": np.zeros(3)}, deadline_s=DEADLINE_S)
                        case 3:
                            await grid.peers()
                            await grid.models()
                        case _:
                            await self._garbage(node)
            except GridError:
                continue

    async def _garbage(self, node: DemoNode) -> None:
        """Send random bytes to the socket for programs and to the data port."""
        try:
            local = await trio.open_unix_socket(str(node.socket))
            async with local:
                await local.send_all(self._rng.randbytes(self._rng.randint(1, 2000)))
            host, _, port = (await node.ask("status"))["data_address"].rpartition(":")
            remote = await trio.open_tcp_stream(host, int(port))
            async with remote:
                await remote.send_all(self._rng.randbytes(self._rng.randint(1, 2000)))
        except (OSError, trio.BrokenResourceError, DaemonUnreachableError):
            return


def _jpeg(noise: np.random.Generator, size: tuple[int, int]) -> bytes:
    width, height = size
    coarse = noise.integers(0, 256, (height // 20, width // 20, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(coarse).resize(size).save(stream, "JPEG", quality=85)
    return stream.getvalue()


class Faults:
    """What happens to the nodes beside the entry and the founder, which live through the run."""

    def __init__(self, stage: Stage, tally: Tally, rng: random.Random) -> None:
        self._stage = stage
        self._tally = tally
        self._rng = rng
        self._late: list[DemoNode] = []

    async def run(self) -> None:
        """One fault after the other."""
        while True:
            await trio.sleep(self._rng.uniform(*FAULT_EVERY_S))
            fault = self._rng.choice([self._kill, self._pause, self._pause_entry, self._restart, self._come_and_go])
            self._tally.faults[fault.__name__.strip("_")] += 1
            await fault()

    async def _kill(self) -> None:
        middle = self._stage.node("middle")
        await trio.to_thread.run_sync(middle.daemon.kill)
        await trio.sleep(self._rng.uniform(0.5, 5.0))
        middle.start()
        await self._wait_up(middle)

    async def _restart(self) -> None:
        middle = self._stage.node("middle")
        await middle.daemon.stop()
        middle.start()
        await self._wait_up(middle)

    async def _pause(self) -> None:
        await self._stop_and_continue(self._stage.node("middle"), self._rng.uniform(0.5, 12.0))

    async def _pause_entry(self) -> None:
        """Shorter than the camera's deadline: its jobs are answered by the node itself afterwards."""
        await self._stop_and_continue(self._stage.entry, self._rng.uniform(0.2, 2.0))

    async def _stop_and_continue(self, node: DemoNode, pause_s: float) -> None:
        pid = (await node.ask("status"))["node"] and pid_of(node)
        os.kill(pid, signal.SIGSTOP)
        try:
            await trio.sleep(pause_s)
        finally:
            os.kill(pid, signal.SIGCONT)

    async def _come_and_go(self) -> None:
        """Let a node join, or one that was here come back; it works for a while and leaves, by order or by force."""
        if len(self._late) < LATECOMERS_MAX:
            node = DemoNode(
                NodePlan(name=f"late{len(self._late)}", cpu_share=0.5),
                self._stage.founder.state.path.parent,
                entries=self._stage.sockets,
            )
            token = (await self._stage.founder.ask("invite", json.dumps({"life_s": 60.0})))["token"]
            await join_grid(node.state, token, name=node.name, clock=time.time)
            self._late.append(node)
            self._stage.nodes.append(node)
        else:
            node = self._rng.choice(self._late)
        node.start()
        await self._wait_up(node)
        await trio.sleep(self._rng.uniform(2.0, 10.0))
        if self._rng.random() < 0.5:
            await node.daemon.stop()
        else:
            await trio.to_thread.run_sync(node.daemon.kill)

    async def _wait_up(self, node: DemoNode) -> None:
        with trio.fail_after(60.0):
            while not await node.is_able():
                node.daemon.check()
                await trio.sleep(0.2)


def pid_of(node: DemoNode) -> int:
    """Return the process id that a node's lock tells."""
    return int((node.state.path / "lock").read_text())


class Sampler:
    """Looks at all processes of the nodes that live through the run."""

    def __init__(self, nodes: list[DemoNode], began_s: float) -> None:
        self._nodes = nodes
        self._began_s = began_s
        self._series: dict[int, Series] = {}

    @property
    def series(self) -> list[Series]:
        """All processes seen, by name."""
        return sorted(self._series.values(), key=lambda series: (series.name, series.pid))

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            for node in self._nodes:
                try:
                    status = await node.ask("status")
                    tasks = await trio.to_thread.run_sync(read_tasks, status["metrics_address"])
                except (GridError, OSError):
                    continue  # stopped just now
                self._take(node.name, pid_of(node), tasks)
                for worker in status["workers"]:
                    self._take(f"{node.name}/{worker['model']}", worker["pid"], math.nan)
            await trio.sleep(SAMPLE_S)

    def _take(self, name: str, pid: int, tasks: float) -> None:
        try:
            process = psutil.Process(pid)
            memory = process.memory_full_info()
            row = (memory.rss / 2**20, memory.pss / 2**20, process.num_fds(), process.num_threads(), tasks)
        except psutil.Error:
            return
        series = self._series.setdefault(pid, Series(name, pid))
        series.rows.append((time.monotonic() - self._began_s, *row))


def read_tasks(address: str) -> float:
    """Return the number of trio tasks from a daemon's metrics."""
    import urllib.request

    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("gridnode_tasks "):
                return float(line.split()[1])
    return math.nan


def slope_per_hour(rows: list[tuple[float, float]]) -> tuple[float, float]:
    """Return slope and half the width of its 95 % confidence interval, both per hour; NaN for fewer than 10 samples."""
    if len(rows) < 10:
        return math.nan, math.nan
    times, values = zip(*rows, strict=True)
    mean_t, mean_v = statistics.fmean(times), statistics.fmean(values)
    spread = sum((t - mean_t) ** 2 for t in times)
    slope = sum((t - mean_t) * (v - mean_v) for t, v in rows) / spread
    residual = sum((v - mean_v - slope * (t - mean_t)) ** 2 for t, v in rows)
    return slope * 3600, 1.96 * math.sqrt(residual / (len(rows) - 2) / spread) * 3600


def describe(series: Series, end_s: float) -> dict[str, object]:
    """Return first, last and slopes of one process."""
    found: dict[str, object] = {"name": series.name, "pid": series.pid, "samples": len(series.rows)}
    for index, quantity in enumerate(QUANTITIES, start=1):
        rows = [(row[0], row[index]) for row in series.rows if row[0] >= WARM_UP_S and not math.isnan(row[index])]
        if not rows:
            continue
        slope, half = slope_per_hour(rows)
        late, late_half = slope_per_hour([row for row in rows if row[0] >= (WARM_UP_S + end_s) / 2])
        found[quantity] = {
            "first": statistics.median(value for _, value in rows[:5]),
            "last": statistics.median(value for _, value in rows[-5:]),
            "most": max(value for _, value in rows),
            "slope_per_hour": slope,
            "ci95": half,
            "slope_per_hour_2nd_half": late,
            "ci95_2nd_half": late_half,
        }
    return found


async def soak(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Run it and return the figures."""
    rng = random.Random(options.seed)
    tally = Tally()
    stage = Stage(folder, say=lambda step: print(f"  {step}", flush=True), show=lambda _progress: None)
    try:
        await stage.build()
        began_s = time.monotonic()
        end_s = trio.current_time() + options.minutes * 60
        load = Load(stage, tally, random.Random(rng.random()), options.rate, end_s)
        sampler = Sampler([stage.entry, stage.founder], began_s)
        async with trio.open_nursery() as around:
            around.start_soon(sampler.run)
            around.start_soon(report_progress, tally, sampler, began_s)
            async with trio.open_nursery() as trouble:
                trouble.start_soon(Faults(stage, tally, random.Random(rng.random())).run)
                async with trio.open_nursery() as programs:
                    for service in (load.camera, load.programs, load.programs, load.nonsense):
                        programs.start_soon(service)
                trouble.cancel_scope.cancel()
            await trio.sleep(3 * SAMPLE_S)  # what is left must go
            around.cancel_scope.cancel()
        figures = await read_end(stage, tally)
        figures["minutes"] = options.minutes
        figures["processes"] = [describe(series, options.minutes * 60) for series in sampler.series]
    finally:
        with trio.CancelScope(shield=True):
            await stage.stop()
    return figures


def count_tracebacks(folder: Path) -> dict[str, int]:
    """Return how often each daemon's log tells of a bug."""
    texts = {path.name: path.read_text(errors="replace") for path in sorted(folder.glob("*.log"))}
    words = ("Traceback", "ResourceWarning", "never awaited")
    return {name: sum(map(text.count, words)) for name, text in texts.items()}


async def read_end(stage: Stage, tally: Tally) -> dict[str, object]:
    """Return the counts at the end, and what the nodes say of themselves."""
    nodes = {}
    for node in (stage.entry, stage.node("middle"), stage.founder):
        try:
            status = await node.ask("status")
        except DaemonUnreachableError:
            continue  # killed a moment before the end
        held = ("invariant_violations", "late_answers", "queue_length", "running", "away", "epoch", "peers_alive")
        nodes[node.name] = {name: status[name] for name in held}
    return {
        "sent": tally.sent,
        "answered": tally.answered,
        "errors": dict(tally.errors),
        "lost": tally.lost,
        "cancelled": tally.cancelled,
        "late_answers_at_the_client": tally.late_answers,
        "faults": dict(tally.faults),
        "answered_by": dict(tally.nodes),
        "nodes": nodes,
    }


async def report_progress(tally: Tally, sampler: Sampler, began_s: float) -> None:
    """Print a line a minute."""
    while True:
        await trio.sleep(60)
        memory = ", ".join(
            f"{series.name} {series.rows[-1][1]:.1f}" for series in sampler.series if "/" not in series.name
        )
        print(
            f"  {time.monotonic() - began_s:5.0f} s  sent {tally.sent}, answered {tally.answered}, "
            f"errors {sum(tally.errors.values())}, lost {tally.lost}; RSS MiB: {memory}",
            flush=True,
        )


def print_report(figures: dict) -> None:
    counts = ("sent", "answered", "errors", "lost", "cancelled", "late_answers_at_the_client", "faults", "answered_by")
    for name in counts:
        print(f"{name:>28}  {figures[name]}")
    for name, status in figures["nodes"].items():
        print(f"{name:>28}  {status}")
    print(f"{'tracebacks':>28}  {figures['tracebacks']}")
    print(f"\n{'process':<20} {'':<12} {'first':>8} {'last':>8} {'most':>8} {'slope/h':>9} {'+-':>8} {'2nd half':>9}")
    for process in figures["processes"]:
        for quantity in QUANTITIES:
            found = process.get(quantity)
            if found is not None:
                print(
                    f"{process['name']:<20} {quantity:<12} {found['first']:8.1f} {found['last']:8.1f} "
                    f"{found['most']:8.1f} {found['slope_per_hour']:9.2f} {found['ci95']:8.2f} "
                    f"{found['slope_per_hour_2nd_half']:9.2f} +- {found['ci95_2nd_half']:.2f}"
                )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the run (default 10)")
    parser.add_argument("--rate", type=float, default=6.0, help="pictures per second of the camera (default 6)")
    parser.add_argument("--seed", default="7", help="seeds load and faults (default 7)")
    parser.add_argument("--nice", type=int, default=10, help="niceness of everything (default 10)")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--keep", type=Path, help="work in this folder and leave it, logs and all")
    options = parser.parse_args()
    os.nice(options.nice)
    folder = options.keep or Path(tempfile.mkdtemp(prefix="gridnode-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        figures = trio.run(soak, options, folder)
        figures["tracebacks"] = count_tracebacks(folder)
    finally:
        if options.keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    figures["commit"] = commit.stdout.strip()
    figures["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    print(f"\n{figures['machine']}, commit {figures['commit']}, {options.minutes:g} minutes, seed {options.seed}\n")
    print_report(figures)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + "\n")
    violations = sum(status["invariant_violations"] for status in figures["nodes"].values())
    bad = figures["lost"] + violations + sum(figures["tracebacks"].values())
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
