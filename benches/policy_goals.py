"""What capd reaches, goal by goal: replications of scenarios under several policies, beside oracle and bounds.

Every comparison is paired: policies see the same arrivals and service times under the same seed. Prints one line per
goal and writes everything as JSON. The whole takes about half an hour on two cores, a fifth of it with the compiled
core (`make accelerated`, then `PYTHONPATH=.venv/accelerated .venv/bin/python -P benches/policy_goals.py`).

Usage: .venv/bin/python benches/policy_goals.py [--replications N] [--only WORD ...] [--json FILE]
"""

import argparse
import gc
import itertools
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cache

from gridnode.simulation.load import load
from simulator import bounds
from simulator.gossip import build_mesh
from simulator.runner import Run, run
from simulator.statistics import estimate, paired, ratio

PI, FAST = "sources.0.load", "network.link.latency_s"
SHED = {
    "core.placement.shedding": True,
    "core.placement.expire": True,
    "core.placement.default_deadline_s": 5.0,
    "core.queue.bound_s": 2.0,
    "sources.0.deadline_s": 0.5,
}
"""Back to the defaults of a node, with half a second for each job."""


def simulate(task):
    """Run one task: (scenario, changes, policy, seed); returns plain numbers."""
    name, changes, policy, seed = task
    scenario = load(name, dict(changes))
    began = time.process_time()
    result = run(scenario, seed=f"goal/{seed}", policy=policy)
    return {
        "mean": result.mean_s,
        "p95": result.p95_s,
        "p99": result.p99_s,
        "within": result.within,
        "goodput_hz": result.goodput_hz,
        "answered": result.answered,
        "submitted": result.submitted,
        "late": result.late,
        "ended": sum(result.refused.get(reason, 0) for reason in ("expired", "lost")),
        "lost": result.lost,
        "unfinished": result.unfinished,
        "violations": result.violations,
        "shares": result.shares,
        "heard_hz": max(node.heard_hz for node in result.nodes),
        "counted_s": result.counted_s,
        "cpu_s": time.process_time() - began,
    }


class Bench:
    """Runs replications, each once however often it is asked for."""

    def __init__(self, pool, replications):
        self._pool = pool
        self.replications = replications
        self.lines = []

    @cache  # noqa: B019 - lives as long as the script
    def _runs(self, name, changes, policy, replications):
        return [self._pool.submit(simulate, (name, changes, policy, seed)) for seed in range(replications)]

    def ask(self, name, policy="capd", replications=None, **options):
        """Begin the replications of a scenario."""
        changes = tuple(sorted(options.get("changes", {}).items()))
        return self._runs(name, changes, policy, replications or self.replications)

    def grow(self, count, seconds, policy="capd", *, replications=1, audience=0, changes=()):
        """Return the results of the pilot fleet at another size."""
        changes = tuple(dict(changes).items())
        seeds = range(min(replications, self.replications))
        tasks = [(count, seconds, policy, changes, audience, seed) for seed in seeds]
        return [future.result() for future in [self._pool.submit(simulate_grown, task) for task in tasks]]

    def get(self, *args, **options):
        """Return the results of the replications."""
        return [future.result() for future in self.ask(*args, **options)]

    def tell(self, goal, wanted, got, ok):
        """Print and keep a line."""
        self.lines.append({"goal": goal, "wanted": wanted, "got": got, "ok": bool(ok)})
        print(f"{'ok    ' if ok else 'MISSED'}  {goal:58s} {wanted:22s} {got}", flush=True)


def column(runs, key):
    return [each[key] for each in runs]


def mean(runs, key):
    return estimate(column(runs, key)).mean


def text(found, digits=2, unit=""):
    """Write an estimate with its 95 % interval."""
    return f"{found.mean:.{digits}f} +- {found.half:.{digits}f}{unit}"


def ms(runs, key="mean"):
    found = estimate(column(runs, key))
    return f"{found.mean * 1e3:.1f} +- {found.half * 1e3:.1f} ms"


def at(value, **more):
    return {"sources.0.load": value, **more}


def ratio_to_oracle(bench):
    ours, theirs = bench.get("pilot"), bench.get("pilot", "oracle")
    mean_ratio = ratio(column(ours, "mean"), column(theirs, "mean"))
    p99_ratio = ratio(column(ours, "p99"), column(theirs, "p99"))
    got = f"{text(mean_ratio)} ({ms(ours)} / {ms(theirs)})"
    bench.tell("load .7: mean / greedy oracle", "<= 1.4", got, mean_ratio.mean <= 1.4)
    got = f"{text(p99_ratio)} ({ms(ours, 'p99')} / {ms(theirs, 'p99')})"
    bench.tell("load .7: p99 / greedy oracle", "<= 2.5", got, p99_ratio.mean <= 2.5)


def ratio_to_max_spare(bench):
    ours = bench.get("pilot")
    for hops in (1, 3):
        theirs = bench.get("pilot", f"max_spare(hops={hops})")
        found = ratio(column(theirs, "mean"), column(ours, "mean"))
        got = f"{text(found, 1)}x ({ms(theirs)})"
        bench.tell(f"load .7: mean of max_spare(hops={hops}) / ours", ">= 10", got, found.mean >= 10)


def gossip_period(bench):
    reference = mean(bench.get("pilot"), "mean")
    spread = {}
    for period_s in (0.25, 0.5, 1.0, 2.0, 5.0, 10.0):
        runs = bench.get("pilot", changes={"core.advert.period_s": period_s})
        spread[period_s] = mean(runs, "mean") / reference - 1
    worst = max(abs(each) for each in spread.values())
    got = ", ".join(f"{period:g} s {share:+.1%}" for period, share in spread.items())
    bench.tell("gossip period .25 to 10 s: mean", "within +-10 %", got, worst <= 0.1)


def high_load(bench):
    for value, factor in ((0.85, 1.1), (0.95, None)):
        ours, theirs = bench.get("pilot", changes=at(value)), bench.get("pilot", "oracle", changes=at(value))
        got = f"{ms(ours)} / {ms(theirs)}"
        bench.tell(f"load {value}: mean", "<= oracle's", got, mean(ours, "mean") <= mean(theirs, "mean"))
        split_s = bounds.static_split(pilot_classes(value)).mean_s
        if factor is not None:
            share = mean(ours, "mean") / split_s
            got = f"{share:.2f} (split {split_s * 1e3:.1f} ms)"
            bench.tell(f"load {value}: mean / best static split", f"<= {factor}", got, share <= factor)


def pilot_classes(value):
    """Return the pilot fleet for the bounds, with the two ways of the network as the transfer."""
    capacity_hz = 16 / 0.263 + 4 / 0.0113
    each_hz = value * capacity_hz / 20
    common = {"cv2": 0.04, "arrivals_hz": each_hz, "transfer_s": 0.014}
    return [
        bounds.NodeClass(count=16, service_s=0.263, **common),
        bounds.NodeClass(count=4, service_s=0.0113, **common),
    ]


def overload(bench):
    runs = bench.get("pilot", changes={**SHED, **at(1.3)})
    ceiling = bounds.goodput_ceiling(pilot_classes(1.3), deadline_s=0.5)
    share = estimate([each["within"] / ceiling for each in runs])
    missed = estimate([(each["late"] + each["ended"]) / (each["answered"] + each["ended"]) for each in runs])
    got = f"{share.mean:.1%} +- {share.half:.1%} (ceiling {ceiling:.1%} of what comes)"
    bench.tell("load 1.3, 500 ms: goodput / ceiling", ">= 92 %", got, share.mean >= 0.92)
    bench.tell(
        "load 1.3, 500 ms: accepted that miss", "< 1 %", f"{missed.mean:.2%} +- {missed.half:.2%}", missed.mean < 0.01
    )


def bursts(bench):
    runs = bench.get("bursts")
    within = estimate(column(runs, "within"))
    capacity_hz = 16 / 0.263 + 4 / 0.0113
    ceiling = bounds.burst_ceiling(
        [(2.0, 1.8 * capacity_hz), (8.0, 0.3 * capacity_hz)], capacity_hz=capacity_hz, deadline_s=0.5
    )
    got = f"{within.mean:.1%} +- {within.half:.1%} (ceiling {ceiling:.1%})"
    bench.tell("bursts of 3x for 2 of 10 s, mean .6: within 500 ms", ">= 85 %", got, within.mean >= 0.85)


def grown(count, seconds):
    """Return the changes for the pilot fleet at another size, under load once its nodes have met.

    A node hears 8 records a second however many there are, and 32 first ones while a grid starts. Under full load from
    the first moment on, slow nodes would fill their queues with what they do not know whom to give, and take minutes to
    empty them.
    """
    met_s = max(10.0, 0.1 * count)
    return {
        "nodes.pi.count": count * 4 // 5,
        "nodes.fast.count": count // 5,
        "sources.0.start_s": met_s,
        "warm_up_s": met_s + 5.0,
        "duration_s": met_s + 5.0 + seconds,
        "measure.series_points": 0,
    }


KNOWING = {"network.connect_round_trips": 0, "core.estimate.rtt_prior_s": 0.007}
"""The oracle of large fleets has its connections open and knows the round trip. It spreads jobs over so many pairs of
nodes that a short run would show the making of connections, 10 ms each, and be kind to us."""


def simulate_grown(task):
    """Run one task: (nodes, seconds, policy, changes, audience, seed); also counts what one node hears when.

    An audience of K has each record heard by K nodes alone: the bounded neighbourhood, in place of a longer period.
    """
    count, seconds, policy, changes, audience, seed = task
    gc.disable()  # as in simulator_speed: a run makes no garbage in cycles
    scenario = load("pilot", {**grown(count, seconds), **dict(changes)})
    began = time.process_time()
    under_way = Run(scenario, seed=f"goal/{seed}", policy=policy)
    nodes = under_way.world.nodes
    if audience:
        for name, others in build_mesh(nodes, degree=audience, seed=f"goal/{seed}").items():
            nodes[name].gossip.limit(others)
    heard = [0]
    while not under_way.is_over:
        under_way.advance(under_way.world.engine.now_s + 1.0)
        heard.append(sum(node.heard for node in nodes.values()) / count)
    gc.enable()
    summary = under_way.world.metrics.summary()
    last = int(scenario.duration_s)
    first = last - min(last - int(scenario.warm_up_s), 30)
    return {
        "mean": summary.mean_s,
        "p99": summary.p99_s,
        "heard_hz": (heard[last] - heard[first]) / (last - first),
        "start_hz": max(b - a for a, b in itertools.pairwise(heard)),
        "cpu_s": time.process_time() - began,
    }


def hundred(bench):
    ours, theirs = bench.get("pilot", changes=grown(100, 50)), bench.get("pilot", "oracle", changes=grown(100, 50))
    found = ratio(column(ours, "mean"), column(theirs, "mean"))
    got = f"{text(found)} ({ms(ours)} / {ms(theirs)})"
    bench.tell("100 nodes, load .7: mean / greedy oracle", "<= 1.6", got, found.mean <= 1.6)


def liar(bench):
    for does in ("drop", "delay"):
        changes = {"faults.0.does": does}
        base = bench.get("liar", changes={"faults": ()})
        runs = bench.get("liar", changes=changes)
        lost = sum(column(runs, "lost")) + sum(column(runs, "unfinished"))
        share = max(each["shares"].get("fast0", 0.0) for each in runs)
        worse = ratio(column(runs, "p99"), column(base, "p99"))
        bench.tell(f"liar that {does}s: lost", "0", str(lost), lost == 0)
        bench.tell(f"liar that {does}s: its share after 10 s", "< 2 %", f"at most {share:.2%}", share < 0.02)
        bench.tell(f"liar that {does}s: p99 / without", "<= 2", f"{text(worse)} ({ms(runs, 'p99')})", worse.mean <= 2)


def one_more_slow_node(bench):
    """One slower node more, same arrivals: the interval of the paired difference must not lie above zero."""
    base = bench.get("pilot_plus", changes={"nodes.extra.models": ()})
    for speed in (1.0, 0.3, 0.1):
        runs = bench.get("pilot_plus", changes={"nodes.extra.speed": speed})
        for key in ("mean", "p99"):
            found = paired(column(runs, key), column(base, key))
            got = f"{found.mean * 1e3:+.2f} +- {found.half * 1e3:.2f} ms"
            bench.tell(f"one node more, Pi x {speed:g}: {key}", "interval not above 0", got, found.low <= 0)


def smart_city(bench):
    for nodes in (1, 3, 5):
        runs = bench.get("smart_city", changes={"nodes.gpu.count": nodes, "sources.0.load": 0.9})
        within = estimate(column(runs, "within"))
        got = f"{within.mean:.2%} +- {within.half:.2%}"
        wanted, ok = (">= 99 %", within.mean >= 0.99) if nodes == 5 else ("(for comparison)", True)
        bench.tell(f"smart city, {nodes} GPU nodes, load .9: within 30 ms", wanted, got, ok)
    rates = {}
    for nodes in (1, 5):
        runs = bench.get("smart_city", changes={"nodes.gpu.count": nodes, "sources.0.load": 1.2})
        rates[nodes] = mean(runs, "goodput_hz")
    share = rates[5] / (5 * rates[1])
    got = f"{share:.1%} ({rates[5]:.0f} / {rates[1]:.0f} frames/s)"
    bench.tell("smart city: frames/s of 5 nodes / 5 x one's", ">= 98 %", got, share >= 0.98)


def scaling(bench):
    shares = {}
    for count, seconds, knowing, replications in SIZES:
        ours = bench.grow(count, seconds, replications=replications)
        theirs = bench.grow(count, knowing, "oracle", replications=replications, changes=KNOWING)
        shares[count] = mean(ours, "mean") / mean(theirs, "mean")
        heard_hz, start_hz = max(column(ours, "heard_hz")), max(column(ours, "start_hz"))
        got = f"{shares[count]:.2f} ({mean(ours, 'mean') * 1e3:.1f} / {mean(theirs, 'mean') * 1e3:.1f} ms)"
        got += f", p99 {mean(ours, 'p99') * 1e3:.0f} ms, heard {heard_hz:.1f}/s, at most {start_hz:.0f} in a second"
        got += f"; {ours[0]['cpu_s']:.0f} + {theirs[0]['cpu_s']:.0f} CPU-s"
        bench.tell(f"{count} nodes: mean / oracle, records heard", "<= 8/s", got, heard_hz <= 8.5)
    first, last = SIZES[0][0], SIZES[-1][0]
    growth = shares[last] / shares[first]
    bench.tell(f"growth of mean / oracle from {first} to {last} nodes", "<= 1.3", f"{growth:.2f}", growth <= 1.3)


SIZES = ((10, 100, 100, 10), (100, 30, 20, 3), (500, 10, 5, 1), (1000, 6, 3, 1), (2000, 5, 2, 1))
"""Nodes, seconds counted of ours and of the oracle, most replications."""


def neighbourhood(bench):
    """A record heard by some alone, more often, against one heard by all: 8 per second and node either way."""
    for count, seconds, replications in ((200, 20, 2), (1000, 6, 1)):
        for audience in (16, 32, 64, 0):
            for active in (8, 32):
                changes = {"core.peers.active": active}
                runs = bench.grow(count, seconds, replications=replications, audience=audience, changes=changes)
                got = f"{mean(runs, 'mean') * 1e3:.1f} ms, p99 {mean(runs, 'p99') * 1e3:.0f} ms"
                got += f", heard {mean(runs, 'heard_hz'):.1f}/s"
                of = f"{audience or 'all'} hear a record, {active} active"
                bench.tell(f"{count} nodes, {of}", "(for comparison)", got, True)


GOALS = (
    ratio_to_oracle,
    ratio_to_max_spare,
    gossip_period,
    high_load,
    overload,
    bursts,
    hundred,
    liar,
    one_more_slow_node,
    smart_city,
    scaling,
    neighbourhood,
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--replications", type=int, default=10)
    parser.add_argument("--only", nargs="*", default=[], help="words of the goals' names, such as overload")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    wanted = [goal for goal in GOALS if not options.only or any(word in goal.__name__ for word in options.only)]
    if not wanted:
        sys.exit(f"no goal matches; there are {', '.join(goal.__name__ for goal in GOALS)}")
    began = time.monotonic()
    with ProcessPoolExecutor(options.workers) as pool:
        bench = Bench(pool, options.replications)
        for goal in wanted:
            goal(bench)
    print(f"{options.replications} replications, {time.monotonic() - began:.0f} s")
    if options.json:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        document = {"commit": commit.stdout.strip(), "replications": options.replications, "goals": bench.lines}
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(document, file, indent=1)
    sys.exit(0 if all(line["ok"] for line in bench.lines) or math.isnan(began) else 1)


if __name__ == "__main__":
    main()
