"""How fast the simulator is: its kernel beside SimPy, the pilot fleet with gossip, network and capd, and large fleets.

    kernel   M/M/8 at load 0.8: tasks per CPU-second of simulator.stations on simulator.engine and of SimPy's Resource,
             interleaved, and their ratio; goal: >= 5
    pilot    20 nodes (16 boards of 263 ms, 4 servers of 11.3 ms), load 0.7, capd: simulated requests per CPU-second,
             with the daemon's core class, the start counted; goal: >= 50,000. After `make accelerated` the compiled
             copy of the same sources takes turns with the plain one
    fleets   the same mix at N = 10 to 1,000 nodes: CPU time per request once all know all; goal: grows no faster than
             log N
    large    1,000 nodes, 60 simulated seconds at load 0.7 after the minute in which they meet, counted too: CPU time
             and memory of a process of its own, also with the compiled copy where there is one; goals: <= 120 s and
             <= 1.5 GB

CPU time is counted, not wall time. Every figure is the median over the rounds, which take turns. `--json FILE` keeps
all of it with machine and commit; `--out FILE.csv` the points of the fleets, `--plot FILE.svg` draws them.

Usage: .venv/bin/python benches/simulator_speed.py [kernel|pilot|fleets|large ...] [--rounds N] [--json F]
                                                   [--out CSV] [--plot SVG]
"""

import argparse
import csv
import gc
import json
import math
import os
import platform
import random
import resource
import runpy
import statistics
import subprocess
import sys
import time
from functools import partial
from importlib.metadata import version
from pathlib import Path

import simpy

from scheduler.config import CoreConfig, PlacementConfig, QueueConfig
from simulator.distributions import Lognormal
from simulator.engine import Engine, stream
from simulator.links import Link
from simulator.specs import JobSpec, NodeSpec, profile
from simulator.stations import Station
from simulator.theory import mmc_waiting_s
from simulator.workload import Poisson
from simulator.world import World

ROOT = Path(__file__).resolve().parent.parent
SERVERS, LOAD = 8, 0.8
TASKS = 100_000
SLOW_S, FAST_S = 0.263, 0.0113
SIZES = (10, 20, 50, 100, 200, 500, 1000)
START_S = 8.0
"""Simulated time in which a fleet that has met settles under load."""
REQUESTS = 20_000
"""About so many per fleet, so that small and large ones have the same weight of chance."""


def kernel_waiting(seed: str) -> float:
    """Run the tasks on our engine; returns the mean waiting time."""
    engine = Engine()
    service, arrivals = stream(seed, "service", "bench"), stream(seed, "arrivals", "bench")
    station = Station(engine, servers=SERVERS, draw_service=partial(service.expovariate, 1.0))
    gap = partial(arrivals.expovariate, SERVERS * LOAD)

    def arrive(left: int) -> None:
        station.arrive()
        if left > 1:
            engine.at(engine.now_s + gap(), arrive, left - 1)

    engine.at(0.0, arrive, TASKS)
    engine.run()
    return station.waiting_s / TASKS


def simpy_waiting(seed: str) -> float:
    """Run the same tasks as SimPy's documentation would: a process each, a Resource with so many servers."""
    environment = simpy.Environment()
    servers = simpy.Resource(environment, capacity=SERVERS)
    service, arrivals = random.Random(f"{seed}/service"), random.Random(f"{seed}/arrivals")
    waiting = 0.0

    def task():
        nonlocal waiting
        arrived = environment.now
        with servers.request() as request:
            yield request
            waiting += environment.now - arrived
            yield environment.timeout(service.expovariate(1.0))

    def source():
        for _ in range(TASKS):
            environment.process(task())
            yield environment.timeout(arrivals.expovariate(SERVERS * LOAD))

    environment.process(source())
    environment.run()
    return waiting / TASKS


def timed(call, *args):
    """Return CPU seconds of a call, and its result."""
    gc.collect()
    started = time.process_time()
    result = call(*args)
    return time.process_time() - started, result


def met_s(nodes: int) -> float:
    """Return when so many nodes have met, in seconds: a large grid starts at 32 first records per second."""
    return 0.0 if nodes <= 64 else nodes / 16.0


def fleet(nodes: int, *, seconds: float, seed: str) -> World:
    """Make the mixed fleet: a fifth servers, arrivals alike at all nodes."""
    fast = max(1, nodes // 5)
    means_s = [SLOW_S] * (nodes - fast) + [FAST_S] * fast
    # No job is refused or given up: every request costs what a request costs.
    placement = PlacementConfig(shedding=False, expire=False, default_deadline_s=1e6)
    config = CoreConfig(explain=False, placement=placement, queue=QueueConfig(bound_s=1e5))
    specs = [
        NodeSpec(name=f"n{number:04d}", models={"m": profile("m", Lognormal(mean_s, 0.2), mean_s=mean_s)})
        for number, mean_s in enumerate(means_s)
    ]
    world = World(specs, seed=seed, config=config, link=Link(delay_s=0.007))
    world.start()
    rate_hz = 0.7 * math.fsum([1.0 / mean_s for mean_s in means_s]) / nodes
    job = JobSpec(models=("m",), input_bytes=20_000, budget_s=1e4)
    begin_s = met_s(nodes)
    for spec in specs:
        world.feed(spec.name, Poisson(rate_hz=rate_hz), job, start_s=begin_s + 0.5, end_s=begin_s + seconds)
    return world


def run_out(world: World, until_s: float) -> int:
    """Simulate until a time and on until all requests have their answers; gossip alone is not counted to requests."""
    events = world.run(until_s)
    while world.open and world.engine.now_s < until_s + 30.0:
        events += world.run(world.engine.now_s + 0.25)
    return events


def run_fleet(nodes: int, seconds: float, seed: str) -> dict:
    """Simulate a fleet and return what it cost: its start, when all hear of all, apart from what requests cost then."""
    # A run makes no garbage in cycles (56 objects in 52,000 requests); looking for some takes a third of large runs.
    gc.disable()
    built_s, world = timed(lambda: fleet(nodes, seconds=seconds, seed=seed))
    start_s, _ = timed(world.run, met_s(nodes) + START_S)
    before = world.metrics.summary().submitted
    ran_s, events = timed(run_out, world, met_s(nodes) + seconds)
    summary = world.metrics.summary()
    requests = summary.submitted - before
    cpu_s = built_s + start_s + ran_s
    return {
        "nodes": nodes,
        "seconds": seconds,
        "requests": summary.submitted,
        "unfinished": summary.unfinished,
        "mean_ms": 1e3 * summary.mean_s,
        "p99_ms": 1e3 * summary.p99_s,
        "cpu_s": cpu_s,
        "start_cpu_s": built_s + start_s,
        "us_per_request": 1e6 * ran_s / requests,
        "events_per_request": events / requests,
        "requests_per_cpu_s": summary.submitted / cpu_s,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def alone(nodes: int, seconds: float, seed: str, *, copy: Path = ROOT) -> dict:
    """Simulate a fleet in a process of its own, so that its memory is its own, with the packages of this copy."""
    program = f"import json, simulator_speed as s; print(json.dumps(s.run_fleet({nodes}, {seconds}, {seed!r})))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(copy), str(ROOT / "benches")])}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def compiled_copy() -> Path | None:
    """Return where the compiled copy of the present sources is; None when there is none."""
    accelerate = runpy.run_path(str(ROOT / "packaging" / "accelerate.py"))
    made_of = accelerate["TARGET"] / "fingerprint"
    is_there = made_of.exists() and made_of.read_text() == accelerate["fingerprint"](ROOT)
    return accelerate["TARGET"] if is_there else None


def bench_kernel(rounds: int) -> dict:
    ours, theirs = [], []
    for number in range(rounds):
        spent, waiting = timed(kernel_waiting, f"bench/{number}")
        ours.append((TASKS / spent, waiting))
        spent, waiting = timed(simpy_waiting, f"bench/{number}")
        theirs.append((TASKS / spent, waiting))
        print(f"  round {number + 1}: ours {ours[-1][0]:,.0f}, SimPy {theirs[-1][0]:,.0f} tasks/CPU-s", flush=True)
    ratios = [a / b for (a, _), (b, _) in zip(ours, theirs, strict=True)]
    found = {
        "tasks_per_cpu_s": statistics.median(rate for rate, _ in ours),
        "simpy_tasks_per_cpu_s": statistics.median(rate for rate, _ in theirs),
        "simpy": version("simpy"),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "waiting_s": statistics.fmean(waiting for _, waiting in ours),
        "simpy_waiting_s": statistics.fmean(waiting for _, waiting in theirs),
        "theory_waiting_s": mmc_waiting_s(servers=SERVERS, load=LOAD),
    }
    print(
        f"M/M/8: {found['tasks_per_cpu_s']:,.0f} tasks/CPU-s, SimPy {found['simpy']} "
        f"{found['simpy_tasks_per_cpu_s']:,.0f}: {found['ratio']:.2f}x (goal 5); waiting {found['waiting_s']:.4f} and "
        f"{found['simpy_waiting_s']:.4f}, theory {found['theory_waiting_s']:.4f}"
    )
    return found


def bench_pilot(rounds: int) -> dict:
    copies = {"plain": ROOT}
    compiled = compiled_copy()
    if compiled is not None:
        copies["compiled"] = compiled
    runs: dict[str, list[dict]] = {name: [] for name in copies}
    for number in range(rounds):
        for name, copy in copies.items():
            runs[name].append(alone(20, 100.0, f"bench/{number}", copy=copy))
    rates = {name: statistics.median(run["requests_per_cpu_s"] for run in each) for name, each in runs.items()}
    told = ", ".join(f"{rate:,.0f} {name}" for name, rate in rates.items())
    print(f"pilot fleet: {told} requests/CPU-s (goal 50,000), mean {runs['plain'][0]['mean_ms']:.1f} ms")
    if compiled is None:
        print("  ('make accelerated' adds the compiled copy)")
    elif any(a["mean_ms"] != b["mean_ms"] for a, b in zip(runs["plain"], runs["compiled"], strict=True)):
        raise SystemExit("error: the compiled copy does something else than the plain one")
    return {"requests_per_cpu_s": rates, "runs": runs}


def bench_fleets(rounds: int) -> dict:
    copies = {"plain": ROOT, "compiled": compiled_copy()}
    bound = math.log(SIZES[-1]) / math.log(SIZES[0])
    found: dict[str, dict] = {}
    for name, copy in copies.items():
        if copy is None:
            continue
        points = [point(nodes, rounds, name, copy) for nodes in SIZES]
        first, last = points[0]["us_per_request"], points[-1]["us_per_request"]
        slope = (last - first) / math.log(SIZES[-1] / SIZES[0])
        print(
            f"{name}: cost per request from N = 10 to 1,000: {last / first:.2f}x, log N grows {bound:.1f}x; "
            f"{slope:.1f} us per e-fold",
            flush=True,
        )
        found[name] = {"points": points, "ratio": last / first, "log_ratio": bound}
    return found


def point(nodes: int, rounds: int, name: str, copy: Path) -> dict:
    """Measure what a request costs in a fleet of this size."""
    fast = max(1, nodes // 5)
    seconds = START_S + max(2.0, REQUESTS / (0.7 * ((nodes - fast) / SLOW_S + fast / FAST_S)))
    costs = [alone(nodes, seconds, f"bench/{number}", copy=copy) for number in range(max(1, rounds // 2))]
    cost = statistics.median(each["us_per_request"] for each in costs)
    print(
        f"  {name}, N = {nodes}: {cost:.0f} us per request, {costs[0]['events_per_request']:.1f} events, "
        f"start {costs[0]['start_cpu_s']:.1f} CPU-s, {costs[0]['peak_mb']:.0f} MB",
        flush=True,
    )
    return {"nodes": nodes, "us_per_request": cost, "runs": costs}


def plot(fleets: dict, path: Path) -> None:
    """Draw the cost of a request over the size of the fleet, beside what grows with log N from the smallest on."""
    # Here, so that it is in no process whose memory is measured.
    import matplotlib
    from matplotlib import pyplot

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "gridnode"
    figure, axes = pyplot.subplots(figsize=(7.0, 4.0), layout="constrained")
    for (name, each), colour in zip(fleets.items(), ("#1f6feb", "#d9730d"), strict=False):
        costs = [found["us_per_request"] for found in each["points"]]
        axes.plot(SIZES, costs, "o-", color=colour, label=name)
        grown = [costs[0] * math.log(nodes) / math.log(SIZES[0]) for nodes in SIZES]
        axes.plot(SIZES, grown, ":", color=colour, label=f"{name}: log N")
    axes.set(xscale="log", xlabel="nodes", ylabel="processor time per request, µs", ylim=(0, None))
    axes.set_xticks(SIZES, [f"{nodes:,}" for nodes in SIZES], minor=False)
    axes.minorticks_off()
    axes.grid(axis="y", alpha=0.3)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def bench_large() -> dict:
    copies = {"plain": ROOT, "compiled": compiled_copy()}
    runs = {}
    for name, copy in copies.items():
        if copy is not None:
            found = runs[name] = alone(1000, 60.0, "bench/large", copy=copy)
            print(
                f"1,000 nodes, 60 s, load 0.7, {name}: {found['cpu_s']:.0f} CPU-s (goal 120), "
                f"{found['peak_mb']:.0f} MB (goal 1,500), {found['requests']:,} requests, "
                f"{found['us_per_request']:.0f} us each, "
                f"mean {found['mean_ms']:.1f} ms",
                flush=True,
            )
    return runs


def commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="kernel, pilot, fleets, large; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--out", type=Path, help="CSV of the cost per request by size of the fleet")
    parser.add_argument("--plot", type=Path, help="SVG or PNG of the same")
    options = parser.parse_args()
    parts = options.parts or ["kernel", "pilot", "fleets", "large"]
    found: dict = {"commit": commit(), "python": platform.python_version(), "machine": platform.machine()}
    if "kernel" in parts:
        found["kernel"] = bench_kernel(options.rounds)
    if "pilot" in parts:
        found["pilot"] = bench_pilot(options.rounds)
    if "fleets" in parts:
        found["fleets"] = bench_fleets(options.rounds)
    if "large" in parts:
        found["large"] = bench_large()
    if options.json:
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    if options.out and "fleets" in found:
        with options.out.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("copy", "nodes", "us_per_request"))
            for name, each in found["fleets"].items():
                writer.writerows((name, found["nodes"], found["us_per_request"]) for found in each["points"])
    if options.plot and "fleets" in found:
        plot(found["fleets"], options.plot)


if __name__ == "__main__":
    main()
