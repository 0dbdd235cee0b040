"""Simulations with real processes: a pool, a cluster of Dask, five daemons beside the simulator."""

import json
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
CALIBRATION_S = 240.0
"""Longest wait for a calibration of two loads; it takes about a minute."""


POOL = """
from gridnode.simulation.executors import Task, run_all
from gridnode.simulation.load import load

if __name__ == "__main__":
    scenario = load("pilot", {"duration_s": 5, "warm_up_s": 1})
    tasks = [Task(scenario=scenario, seed=seed, policy="capd") for seed in ("1", "2", "3")]
    assert run_all(tasks, jobs=2) == run_all(tasks)
    print("equal")
"""


def test_processes_give_what_this_one_gives(tmp_path):
    run_script(tmp_path, POOL)


CLUSTER = """
import distributed

from gridnode.simulation.compare import compare
from gridnode.simulation.executors import Task, run_all
from gridnode.simulation.load import load

if __name__ == "__main__":
    scenario = load("pilot", {"duration_s": 5, "warm_up_s": 1})
    tasks = [Task(scenario=scenario, seed=seed, policy="capd") for seed in ("1", "2", "3")]
    # Workers are processes of their own, as on other machines.
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, host="127.0.0.1", dashboard_address=None
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor(pure=False)
        assert run_all(tasks, executor=executor) == run_all(tasks)
        there = compare(scenario, ["capd"], replications=2, executor=executor)
        assert there == compare(scenario, ["capd"], replications=2)
    print("equal")
"""


def test_a_cluster_of_dask_gives_what_this_process_gives(tmp_path):
    pytest.importorskip("distributed")
    run_script(tmp_path, CLUSTER)


def test_a_sweep_on_a_scheduler_and_a_worker_of_dask_gives_what_this_machine_gives(tmp_path, wait_until):
    """As docs/simulator.md says: `dask scheduler`, `dask worker`, `--dask ADDRESS`."""
    pytest.importorskip("distributed")
    place = tmp_path / "scheduler.json"
    common = ["--scheduler-file", str(place), "--host", "127.0.0.1"]
    sweep = ["sweep", "pilot", "--vary", "sources.0.load=0.3,0.6", "--policy", "capd", "--policy", "jsq(d=2)"]
    sweep += ["--set", "duration_s=5", "--set", "warm_up_s=1", "--replications", "2", "--json"]
    with (
        running(tmp_path, "dask", "scheduler", *common, "--port", "0", "--dashboard-address", "127.0.0.1:0"),
        running(tmp_path, "dask", "worker", *common, "--nthreads", "1", "--nworkers", "1", "--no-dashboard"),
    ):
        wait_until(lambda: place.read_text().endswith("}"), 60.0)
        address = json.loads(place.read_text())["address"]
        assert address.startswith("tcp://127.0.0.1:")
        there = simulate(*sweep, "--dask", address)
        refused = simulate(*sweep, "--policy", "nope", "--dask", address)
    here = simulate(*sweep, "--jobs", "1")
    assert (there.returncode, here.returncode) == (0, 0), there.stderr + here.stderr
    assert json.loads(there.stdout) == json.loads(here.stdout)
    assert len(json.loads(there.stdout)["points"]) == 4
    assert (refused.returncode, refused.stderr[:7]) == (2, "error: ")


@contextmanager
def running(folder, *arguments):
    """Run a module's command while the block runs."""
    with (folder / f"{arguments[1]}.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", *arguments], stdout=log, stderr=log, env=os.environ | {"PYTHONPATH": str(ROOT)}
        )
        try:
            yield
        finally:
            process.terminate()
            process.wait(CALIBRATION_S)


def simulate(*arguments):
    return subprocess.run(
        [sys.executable, "-P", "-m", "gridnode", "simulate", *arguments],
        capture_output=True,
        text=True,
        timeout=CALIBRATION_S,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )


def run_script(folder, text):
    """Run a program in a process of its own: pools and clusters leave helpers behind in the one that began them."""
    script = folder / "program.py"
    script.write_text(text)
    done = subprocess.run(
        [sys.executable, "-P", script],
        capture_output=True,
        text=True,
        timeout=CALIBRATION_S,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "equal"


def test_the_simulator_is_near_real_daemons(tmp_path):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GRIDNODE_")}
    command = [sys.executable, "-P", "-m", "gridnode", "simulate", "calibrate", "--seconds", "10", "--json"]
    done = subprocess.run(
        [*command, "--load", "0.3", "--load", "0.6", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=CALIBRATION_S,
        env=inherited | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "not device fidelity" in found["proves"]
    assert [each["load"] for each in found["loads"]] == [0.3, 0.6]
    for each in found["loads"]:
        assert each["failed"] == 0
        assert sum(share["daemon"] for share in each["shares"]) == pytest.approx(1.0)
        # A busy machine makes daemons late, never early: far below the simulator would mean that it is wrong.
        assert each["difference"]["mean_s"] < 0.25
        if each["stall_s"] < 0.05:
            assert each["difference"]["mean_s"] > -0.4
    assert {path.name for path in tmp_path.iterdir()} == {"calibration.csv", "calibration.json", "report.html"}
