"""Nodes that record: each job once, at the node where it came in, whatever way it went, and what it cost where."""

import numpy as np
import trio

from gridnode.simulation.recorded import read_recording
from gridnode.simulation.recordedload import load_of
from gridnode.tracerecords import ANSWERED
from simulator.runner import run

X = {"x": np.zeros(1000, np.uint8)}
FLAGS = {"trace": {"path": "jobs.trace"}}


def test_each_job_is_recorded_once_where_it_came_in_however_it_went(run_grid, tmp_path):
    counts = {"slow": 40, "mid": 5}

    async def scenario(sandbox):
        async with trio.open_nursery() as nursery:
            for name, count in counts.items():
                nursery.start_soon(submit, sandbox, name, count)
        for name in ("slow", "mid", "fast"):
            statistics = sandbox.nodes[name].running.parts.recorder.statistics()
            assert (statistics.lost, statistics.is_failing) == (0, False)
        metrics = sandbox.nodes["slow"].running.insight.metrics()
        assert {"gridnode_trace_failing 0", "gridnode_trace_jobs_lost_total 0"} <= set(metrics.splitlines())

    async def submit(sandbox, name, count):
        async with sandbox.program(name) as grid, trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(one, grid, number)

    async def one(grid, number):
        await trio.sleep(0.02 * number)
        await grid.infer("m", X, deadline_s=20.0)

    run_grid(scenario, flags=FLAGS)
    found = {name: read_recording(tmp_path / name / "jobs.trace") for name in ("slow", "mid", "fast")}
    assert {name: len(each.jobs) for name, each in found.items()} == counts | {"fast": 0}
    assert all(job.outcome == ANSWERED for each in found.values() for job in each.jobs)
    # Who says that it answered is who says that it executed.
    executors = [job.executor for each in found.values() for job in each.jobs]
    assert len(set(executors)) > 1
    for each in found.values():
        runs = each.models["m"].runs
        assert runs == executors.count(each.node)
    # What each node says of itself is its speed, and a simulation of it all comes to the same jobs.
    means_s = {name: each.models["m"].mean_s for name, each in found.items()}
    assert means_s["slow"] > means_s["mid"] > means_s["fast"]
    load = load_of(list(found.values()))
    result = run(load.scenario)
    assert {node.name: node.submitted for node in result.nodes if node.submitted} == counts
    assert (result.answered, result.lost) == (45, 0)
