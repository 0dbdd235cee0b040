"""What each mechanism of capd is worth: the pilot fleet with one of them off at a time, paired by seed.

Three loads without deadlines (mean and p99 of the sojourn time), and load 1.3 with budgets of 0.5 s (answered in time,
and the share of what was accepted that came too late). Prints a Markdown table; docs/experiments/ablation.md has one.
About 20 minutes on one core, a third of it with the compiled copy (`make accelerated`, PYTHONPATH=.venv/accelerated).

Usage: .venv/bin/python benches/policy_ablation.py [--replications N] [--seconds S] [--processes N]
"""

import argparse
from concurrent.futures import ProcessPoolExecutor

from gridnode.simulation.load import load
from simulator.runner import run
from simulator.statistics import estimate, paired

POLICIES = {
    "all": "capd",
    "no correction for jobs on their way": "capd(inflight=no)",
    "no states on replies": "capd(piggyback=no)",
    "no records on change": "capd(on_change=no)",
    "no reversion of old records": "capd(reversion=0)",
    "no weight of waits": "capd(wait_weight=0)",
    "no hysteresis": "capd(hysteresis=0)",
    "no reconsideration": "capd(reconsider=no)",
    "no window": "capd(window=no)",
    "no trust": "capd(trust=no)",
    "no stealing": "capd(steal=no)",
    "no slack": "capd(slack=1)",
    "no shedding": "capd(shed=no)",
    "no expiry": "capd(expire=no)",
    "d = 1": "capd(d=1)",
    "d = 2": "capd(d=2)",
    "d = 5": "capd(d=5)",
    "all peers (d = 4096)": "capd(d=4096)",
    "active set of 8": "capd(active=8)",
    "at most one hop": "capd(hops=1)",
    "second copies, 2 %": "capd(hedge=0.02)",
}
LOADS = (0.7, 0.85, 0.95)
OVERLOAD = {
    "sources.0.load": 1.3,
    "core.placement.shedding": True,
    "core.placement.expire": True,
    "core.placement.default_deadline_s": 5.0,
    "core.queue.bound_s": 2.0,
    "sources.0.deadline_s": 0.5,
}


def simulate(policy, changes, seed):
    """Run one replication; returns plain numbers."""
    result = run(load("pilot", dict(changes)), seed=f"ablation/{seed}", policy=policy)
    ended = sum(count for reason, count in result.refused.items() if reason in ("expired", "lost"))
    accepted = result.answered + ended
    return {
        "mean": result.mean_s * 1e3,
        "p99": result.p99_s * 1e3,
        "good": 100.0 * (result.answered - result.late) / result.submitted,
        "missed": 100.0 * (ended + result.late) / accepted,
    }


def cell(runs, base, key):
    """Write a mean, and its paired difference to capd as it is, where that is sure."""
    ours = [each[key] for each in runs]
    text = f"{estimate(ours).mean:.1f}"
    if runs is base:
        return text
    found = paired(ours, [each[key] for each in base])
    sure = abs(found.mean) > found.half
    return f"{text} ({found.mean:+.1f})" if sure else text


def main():
    """Run all and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--replications", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=80.0)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    columns = [{"sources.0.load": each, "duration_s": options.seconds} for each in LOADS]
    columns.append(OVERLOAD | {"duration_s": options.seconds})
    with ProcessPoolExecutor(options.processes) as pool:
        asked = {
            name: [
                [pool.submit(simulate, policy, tuple(changes.items()), seed) for seed in range(options.replications)]
                for changes in columns
            ]
            for name, policy in POLICIES.items()
        }
        heads = [*[f"load {each}: mean, p99 ms" for each in LOADS], "load 1.3: in time %, missed %"]
        print(f"| | {' | '.join(heads)} |")
        print("|---" * 5 + "|")
        keys = [*[("mean", "p99")] * len(LOADS), ("good", "missed")]
        base = [[future.result() for future in runs] for runs in asked["all"]]
        for name, of_name in asked.items():
            found = base if name == "all" else [[future.result() for future in runs] for runs in of_name]
            cells = [
                ", ".join(cell(runs, first, key) for key in pair)
                for runs, first, pair in zip(found, base, keys, strict=True)
            ]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
