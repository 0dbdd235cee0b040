"""Comparisons, sweeps, plans: many runs under the same seeds, here or elsewhere."""

from concurrent.futures import Executor, Future

import pytest

from gridnode.cli.main import main
from gridnode.simulation.compare import compare
from gridnode.simulation.executors import Task, run_all, run_task, seeds_of
from gridnode.simulation.load import SimulationInputError, load
from gridnode.simulation.plan import plan, with_times
from gridnode.simulation.sweep import read_vary, sweep
from gridnode.simulation.whatif import changed, frozen, read_what_if
from simulator.fleet import source_rates_hz
from simulator.report import QUANTITIES

SHORT = {"duration_s": 4, "warm_up_s": 1}


class Inline(Executor):
    """Runs at once, in this thread; counts."""

    def __init__(self):
        self.submitted = 0

    def submit(self, fn, /, *arguments, **options):
        self.submitted += 1
        future = Future()
        try:
            future.set_result(fn(*arguments, **options))
        except Exception as error:  # a pool hands on whatever was raised
            future.set_exception(error)
        return future


@pytest.fixture(scope="module")
def pilot():
    return load("pilot", SHORT)


def test_runs_elsewhere_are_those_that_are_run_here(pilot):
    tasks = [Task(scenario=pilot, seed=seed, policy=policy) for policy in ("capd", "oracle") for seed in ("1", "2")]
    there = Inline()
    assert run_all(tasks, executor=there) == run_all(tasks)
    assert there.submitted == 4


def test_a_worker_takes_and_gives_bytes(pilot):
    import msgspec

    data = msgspec.msgpack.encode(Task(scenario=pilot, seed="1", policy="capd"))
    assert isinstance(run_task(data), bytes)


@pytest.mark.parametrize("executor", [None, Inline()])
def test_an_unknown_policy_is_the_callers_error(pilot, executor):
    with pytest.raises(SimulationInputError, match="nope"):
        run_all([Task(scenario=pilot, seed="1", policy="nope")], executor=executor)


def test_progress_goes_from_0_to_1(pilot):
    shares = []
    run_all([Task(scenario=pilot, seed=seed, policy="random") for seed in ("1", "2")], progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_policies_meet_the_same_arrivals(pilot):
    found = compare(pilot, ["capd", "random"], replications=2)
    submitted = {tuple(run.submitted for run in runs) for runs in found.results.values()}
    assert len(submitted) == 1
    assert [row.policy for row in found.comparison.rows] == ["capd", "random", "oracle"]
    assert found.results["capd"][0].open_jobs is not None  # the first is measured over time
    assert found.results["capd"][1].open_jobs is None


def test_a_policy_that_is_named_twice_runs_once(pilot):
    found = compare(pilot, ["capd", "capd"], replications=1, oracle=False)
    assert list(found.results) == ["capd"]


def test_a_sweep_runs_every_combination():
    found = sweep("pilot", {"sources.0.load": [0.2, 0.4], "nodes.pi.count": [4, 8]}, changes=SHORT, replications=1)
    assert [tuple(point.parameters.values()) for point in found.points] == [(0.2, 4), (0.2, 8), (0.4, 4), (0.4, 8)]
    assert all(set(point.values) == set(QUANTITIES) for point in found.points)


@pytest.mark.parametrize("text", ["", "key", "key=", "=1", "key=1,,2"])
def test_a_variation_without_values_is_refused(text):
    with pytest.raises(SimulationInputError, match="--vary"):
        read_vary(text)


def test_too_many_combinations_are_refused():
    with pytest.raises(SimulationInputError, match="10000"):
        sweep("pilot", {"seed": list(range(101)), "duration_s": list(range(100))})


# ---------------------------------------------------------------- what if


def test_devices_go_and_the_arrivals_stay(pilot):
    base = frozen(pilot)
    fewer = changed(base, read_what_if("fast-1"))
    assert len(fewer.node_names) == len(base.node_names) - 1
    assert source_rates_hz(fewer) == pytest.approx(source_rates_hz(pilot))


def test_cameras_come_and_go(pilot):
    base = frozen(pilot)
    assert source_rates_hz(changed(base, read_what_if("cameras+50%"))) == pytest.approx(
        [1.5 * rate for rate in source_rates_hz(base)]
    )
    cameras = frozen(load("smart_city", SHORT))
    now = sum(source.count for source in cameras.sources)
    assert sum(source.count for source in changed(cameras, read_what_if("cameras+3")).sources) == now + 3 * len(
        cameras.sources
    )


def test_more_of_a_recording_is_a_copy_begun_elsewhere(pilot):
    recorded = with_times(pilot, (0.0, 1.0, 2.0, 10.0))
    more = changed(frozen(recorded), read_what_if("cameras+150%"))
    first, second, third = more.sources
    assert first.times_s == (0.0, 1.0, 2.0, 10.0)
    assert len(second.times_s) == 4
    assert second.times_s != first.times_s
    assert (second.keep, third.keep) == (1.0, pytest.approx(0.5))
    less = changed(frozen(recorded), read_what_if("cameras-25%"))
    assert less.sources[0].keep == pytest.approx(0.75)


def test_a_recording_takes_the_place_of_the_first_source(pilot):
    recorded = with_times(pilot, (0.0, 1.0, 30.0))
    assert recorded.duration_s == pytest.approx(30.0)
    assert recorded.sources[0].deadline_s == pilot.sources[0].deadline_s
    assert recorded.warm_up_s < recorded.duration_s


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("pi", "NAME-N"),
        ("foo-1", "there are pi, fast, source0, cameras"),
        ("pi-17", "pi has 16"),
        ("pi-0.5", "whole number"),
        ("cameras+3", "N%"),
        ("cameras-150%", "less than none"),
        ("pi-16,fast-4", "no node is left"),
    ],
)
def test_a_change_that_cannot_be_says_why(pilot, text, said):
    with pytest.raises(SimulationInputError, match=said):
        changed(frozen(pilot), read_what_if(text))


def test_a_plan_says_what_each_variant_misses():
    # Half the fast nodes cannot bear the load: deadlines are missed, and the paired interval knows it.
    scenario = load("pilot", {"duration_s": 8, "warm_up_s": 1, "sources.0.deadline_s": 0.2})
    found = plan(scenario, ["fast-2"], replications=2)
    now, fewer = found.variants
    assert now.what_if == ""
    assert fewer.nodes == now.nodes - 2
    assert fewer.values["miss"].mean > now.values["miss"].mean + 0.2
    assert fewer.less_now["miss"].mean == pytest.approx(fewer.values["miss"].mean - now.values["miss"].mean)


# ---------------------------------------------------------------- the commands


SET = ["--set", "duration_s=3", "--set", "warm_up_s=1", "--jobs", "1", "--replications", "2"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "pilot", "--policy", "capd", "--policy", "random"],
        ["sweep", "pilot", "--vary", "sources.0.load=0.2,0.4"],
        ["plan", "pilot", "--what-if", "fast-1"],
    ],
)
def test_commands_print_a_table_or_json_and_write_files(arguments, capsys, tmp_path):
    assert main(["simulate", *arguments, *SET]) == 0
    assert "±" in capsys.readouterr().out
    assert main(["simulate", *arguments, *SET, "--json", "--out", str(tmp_path)]) == 0
    import json

    assert json.loads(capsys.readouterr().out)
    assert {path.suffix for path in tmp_path.iterdir()} >= {".csv", ".json"}


def test_a_run_writes_its_report(capsys, tmp_path):
    assert main(["simulate", "run", "pilot", *SET[:4], "--out", str(tmp_path)]) == 0
    assert (tmp_path / "report.html").exists()


def test_a_recorded_trace_is_planned_with(capsys, tmp_path):
    trace = tmp_path / "trace.csv"
    trace.write_text("TIMESTAMP,x\n" + "".join(f"2023-11-16 18:15:{number:02d}.5,1\n" for number in range(20)))
    assert main(["simulate", "plan", "pilot", "--trace", str(trace), "--what-if", "cameras+100%", "--jobs", "1"]) == 0
    assert "cameras+100%" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["compare", "pilot", "--policy", "nope"],
        ["compare", "nowhere"],
        ["sweep", "pilot", "--vary", "sources.0.loda=1,2"],
        ["plan", "pilot", "--what-if", "foo-1"],
    ],
)
def test_wrong_usage_is_2(arguments, capsys):
    assert main(["simulate", *arguments, *SET]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_seeds_of_replications_follow_from_the_scenarios(pilot):
    assert seeds_of(pilot, 3) == ("1.1", "1.2", "1.3")
