"""A grid of real daemons records its jobs; the simulator replays them, and plans with them."""

import json
import os
import stat
import subprocess
import sys

import pytest

from gridnode.errors import JobRejectedError
from gridnode.simulation.load import load
from gridnode.simulation.recorded import read_recording
from simulator.runner import run

pytestmark = pytest.mark.slow

RECORD = ("trace.path=jobs.trace",)
REPLAY = """name = "replayed"
duration_s = 600
warm_up_s = 0

[[models]]
name = "tiny"
mean_s = {n1 = 0.01, n2 = 0.01}

[[nodes]]
device = "n1"

[[nodes]]
device = "n2"

[[sources]]
kind = "replay"
file = ["n1.trace", "n2.trace"]
"""


def simulate(*words):
    command = [sys.executable, "-P", "-m", "gridnode", "simulate", *map(str, words)]
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GRIDNODE_")}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=inherited)


def test_what_a_grid_recorded_is_replayed_and_planned_with(make_grid, tmp_path, model_input, check_log):
    grid = make_grid(tmp_path)
    first = grid["n1"].start(settings=RECORD).wait_ready()
    second = grid.join("n2").start(settings=RECORD, share=0.5).wait_ready()
    first.wait_peers(1)
    second.wait_peers(1)
    frame = {"x": model_input}
    with first.client() as client:
        done = list(client.stream([frame] * 30, model="tiny", deadline_s=10.0, mode="all", name="door"))
        assert len(done) == 30
        with pytest.raises(JobRejectedError):
            client.infer("tiny", frame, deadline_s=1e-4)
    with second.client() as client:
        handles = [client.submit("tiny", frame, deadline_s=10.0, priority=0) for _ in range(20)]
        assert all(handle.result() for handle in handles)
    traces = []
    for daemon in (first, second):
        assert daemon.stop() == 0
        check_log(daemon)
        traces.append((tmp_path / f"{daemon.name}.trace", daemon.state.path / "jobs.trace"))
        assert stat.S_IMODE(traces[-1][1].stat().st_mode) == 0o600
    for copy, path in traces:
        copy.write_bytes(path.read_bytes())

    one, two = (read_recording(copy) for copy, _ in traces)
    assert (one.name, two.name, one.lost, two.cut_bytes) == ("n1", "n2", 0, 0)
    assert [len(one.jobs), len(two.jobs)] == [31, 20]
    frames = [job for job in one.jobs if job.stream]
    assert len(frames) == 30
    assert len({job.stream for job in frames}) == 1
    assert b"door" not in traces[0][1].read_bytes()
    (refused,) = [job for job in one.jobs if not job.stream]
    assert refused.outcome in ("deadline", "expired")
    assert all(job.is_in_time and job.input_bytes > 100_000 and job.output_bytes > 0 for job in frames)
    assert {job.priority for job in two.jobs} == {0}
    assert {job.executor for job in (*one.jobs, *two.jobs)} <= {"", one.node, two.node}
    assert one.models["tiny"].runs > 0
    executed = one.models["tiny"].runs + two.models["tiny"].runs
    assert executed == 50

    scenario = tmp_path / "replay.toml"
    scenario.write_text(REPLAY)
    result = run(load(str(scenario)))
    assert [node.submitted for node in result.nodes] == [31, 20]
    assert (result.answered, sum(result.refused.values()), result.lost) == (50, 1, 0)

    paths = [copy for copy, _ in traces]
    planned = simulate("plan", "--trace", *paths, "--what-if", "n2-1", "--replications", "2", "--jobs", "1", "--json")
    assert planned.returncode == 0, planned.stderr
    found = json.loads(planned.stdout)
    assert (found["observed"]["jobs"], found["observed"]["nodes"], found["observed"]["cameras"]) == (51, 2, 3)
    now, alone = found["variants"]
    assert (now["nodes"], alone["nodes"]) == (2, 1)
    assert now["values"]["miss"]["mean"] == pytest.approx(1 / 51)
    # The fleet as it is comes near what happened: nothing waited for long there.
    assert 0.2 < now["values"]["mean_s"]["mean"] / found["observed"]["mean_s"] < 2.0


def test_a_crash_costs_seconds_and_a_file_of_somebody_else_costs_nothing(make_grid, tmp_path, model_input, wait_until):
    grid = make_grid(tmp_path)
    path = tmp_path / "elsewhere" / "jobs.trace"
    node = grid["n1"].start(settings=(f"trace.path={path}",)).wait_ready()
    node.infer()
    wait_until(lambda: b"answered" in path.read_bytes())
    node.kill()
    node.start(settings=(f"trace.path={path}",)).wait_ready()
    node.infer()
    assert node.stop() == 0
    assert [job.outcome for job in read_recording(path).jobs] == ["answered", "answered"]
    path.write_text("dear diary")
    node.start(settings=(f"trace.path={path}",)).wait_ready()
    assert node.infer().node == "n1"
    assert "trace_failed" in node.log_text()
    assert "is no trace and is left alone" in node.log_text()
    assert node.stop() == 0
    assert path.read_text() == "dear diary"
