"""The comparison with peers: its arithmetic, its tables, its verdicts and its models."""

import doctest
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from benches.peers import __main__ as command
from benches.peers import figures, goals, openinference, processes, run, tables, topologies, workloads
from benches.peers.ways import PeerError, Way, check, flood_by_futures, flood_by_threads
from benches.peers.workloads import Workload

ROOT = Path(__file__).resolve().parents[2]


class Asked:
    """Requests whose right answer is their number."""

    workload = Workload("n", "slice", 4, "uint8", (4,))

    def is_right(self, number, answer):
        return int(answer) == number


def document(**parts):
    """Return a run that measured what is given and nothing else."""
    whole = {"latency": {}, "throughput": {}, "standing": {}, "grid": {}, "fleet": {}}
    return whole | parts


def verdicts(run_of):
    return {judgement.what: judgement for judgement in goals.judge(run_of)}


# ---------------------------------------------------------------- arithmetic


def test_examples_in_the_docstrings_hold():
    for module in (figures, tables):
        found = doctest.testmod(module)
        assert found.attempted > 0
        assert found.failed == 0


def test_p50_is_the_median_of_rounds_and_p99_is_of_all_calls():
    series = figures.Series(times_s=[[0.001] * 99 + [0.5], [0.002] * 100, [0.009] * 100], cpu_s=[0.003, 0.001, 0.002])
    row = series.row()
    assert row["p50_ms"] == pytest.approx(2.0)
    assert row["p99_ms"] == pytest.approx(9.0)
    assert row["cpu_ms"] == pytest.approx(2.0)
    assert row["calls"] == 300


def test_a_ratio_compares_within_rounds_so_that_a_slow_round_does_not_count():
    assert figures.ratio([1.0, 10.0, 1.0], [2.0, 20.0, 2.0]) == 0.5


def test_every_way_is_first_equally_often():
    ways = ["a", "b", "c"]
    assert sorted(figures.rotated(ways, turn)[0] for turn in range(6)) == ["a", "a", "b", "b", "c", "c"]


def test_a_round_of_no_ways_is_empty():
    """All of a phase may have failed to start."""
    assert figures.rotated([], 3) == []


def test_ratios_to_a_way_that_took_no_part_are_left_out():
    rows = {"local": {}, "grpc": {}}
    figures.with_ratios(rows, {"local": [1.0], "grpc": [4.0]}, bases={"vs_grpc": "grpc", "vs_socket": "socket"})
    assert rows == {"local": {"vs_grpc": 0.25}, "grpc": {"vs_grpc": 1.0}}


# ---------------------------------------------------------------- verdicts


def test_a_goal_over_several_sizes_is_judged_by_the_worst():
    latency = {size: {"local": {"vs_grpc": 0.2}} for size in goals.SMALL}
    latency["slice-600kb"] = {"local": {"vs_grpc": 0.34}}
    judged = verdicts(document(latency=latency))["local, transport only 10-600 kB, p50 vs gRPC"]
    assert (judged.measured, judged.verdict) == ("0.34x", "met")
    assert "slice-10kb 0.20" in judged.detail


@pytest.mark.parametrize(("ratio", "verdict"), [(1.05, "stretch met"), (1.1, "met"), (1.12, "met"), (1.13, "missed")])
def test_less_is_better_for_latency(ratio, verdict):
    run_of = document(latency={"squeezenet": {"local": {"vs_inprocess": ratio}}})
    assert verdicts(run_of)["local, squeezenet 600 kB, p50 vs in-process"].verdict == verdict


@pytest.mark.parametrize(
    ("rates", "verdict"), [((0.99, 0.96), "stretch met"), ((0.99, 0.91), "met"), ((1.2, 0.8), "missed")]
)
def test_more_is_better_for_requests_per_second(rates, verdict):
    row = {"rps_8_vs_inprocess": rates[0], "rps_32_vs_inprocess": rates[1]}
    run_of = document(throughput={"squeezenet": {"local": row}})
    assert verdicts(run_of)["requests/s squeezenet, 8 and 32 in flight, vs in-process"].verdict == verdict


def test_a_goal_that_needs_a_missing_figure_is_not_judged():
    latency = {size: {"local": {"vs_grpc": 0.2}} for size in goals.SMALL[:2]}
    failed = {"slice-600kb": {"local": {"error": "lost"}}}
    found = verdicts(document(latency=latency | failed))
    assert {judgement.verdict for judgement in found.values()} == {"not measured"}


def test_a_goal_says_which_way_is_better():
    said = {judgement.what: judgement.goal for judgement in goals.judge(document())}
    assert said["local, squeezenet 600 kB, p50 vs in-process"] == "<= 1.12x"
    assert said["requests/s squeezenet, 8 and 32 in flight, vs in-process"] == ">= 0.9x"


def test_idle_processor_time_is_judged_in_percent_of_a_core():
    found = verdicts(document(fleet={"5": {"idle_cpu": 0.0019}, "20": {"idle_cpu": 0.03}}))
    assert found["idle CPU per node with 5 peers"].measured == "0.19 %"
    assert found["idle CPU per node with 5 peers"].verdict == "stretch met"
    assert found["idle CPU per node with 20 peers"].verdict == "missed"


# ---------------------------------------------------------------- tables


def whole_run():
    """Return a small run as JSON holds it."""
    row = {"p50_ms": 0.2, "p99_ms": 1.0, "cpu_ms": 0.3, "vs_grpc": 0.25, "vs_grpc_tls": 0.2, "vs_inprocess": 30.0}
    latency = {"slice-10kb": {"grpc": row | {"vs_grpc": 1.0}, "remote": row, "zenoh": {"error": "ZError: gone"}}}
    found = {
        "ways": {
            name: {"label": name, "encrypted": "no", "between": 1} for name in ("grpc", "remote", "zenoh", "local")
        },
        "workloads": {"slice-10kb": {"kind": "slice", "request_bytes": 10_000}},
        "phases": {"main": {"latency": latency, "throughput": {}}},
        "standing": {"local": {"cold_s": 1.0, "pss_mb": 88.8, "idle_cpu": 0.01, "processes": 2}},
        "grid": {"local_s": 1.0, "remote_s": 1.5},
        "fleet": {},
    }
    return json.loads(json.dumps(found))


def test_what_is_encrypted_between_machines_is_compared_with_the_encrypted_peer():
    [latency, *_] = tables.all_tables(whole_run())
    cells = {row[0]: row[latency.columns.index("p50/gRPC")] for row in latency.rows}
    assert cells == {"grpc": "1.00x", "remote": "0.20x (TLS)", "zenoh": "-"}


def test_a_way_that_failed_is_said_under_its_table():
    [latency, *_] = tables.all_tables(whole_run())
    assert latency.note == "zenoh: ZError: gone"
    assert "Errors: zenoh: ZError: gone" in tables.markdown([latency], heading="")


def test_markdown_has_one_line_per_row_and_aligns_figures_to_the_right():
    table = tables.Table("t", ("way", "ms"), (("a|b", "1"), ("c", "2")))
    assert tables.markdown([table], heading="h").splitlines() == [
        "h",
        "",
        "### t",
        "",
        "| way | ms |",
        "|---|---:|",
        "| a\\|b | 1 |",
        "| c | 2 |",
    ]


def test_only_what_stands_between_the_markers_is_replaced():
    text = f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n"
    new = tables.replace_between_markers(text, "\nfigures\n\n")
    assert new == f"before\n{tables.BEGIN}\n\nfigures\n\n{tables.END}\nafter\n"
    assert tables.replace_between_markers(new, "figures") == new


@pytest.mark.parametrize(
    "text", ["nothing", tables.BEGIN, f"{tables.END} {tables.BEGIN}", f"{tables.BEGIN * 2}{tables.END}"]
)
def test_a_file_without_a_place_for_figures_is_refused(text):
    with pytest.raises(tables.MarkerError, match="the file needs one line"):
        tables.replace_between_markers(text, "figures")


def test_the_report_has_its_place_for_figures():
    tables.replace_between_markers((ROOT / "docs" / "BENCHMARKS.md").read_text(), "figures")


def test_tables_are_drawn_with_verdicts_in_words():
    from rich.console import Console

    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115 - closed below
    with console.file:
        tables.draw(console, [tables.goals_table(goals.judge(document()))])
    assert console.export_text().count("not measured") == len(goals.GOALS)


# ---------------------------------------------------------------- the command line


def test_a_name_that_does_not_exist_is_answered_with_those_that_do():
    with pytest.raises(ValueError, match="no way 'grcp'; there are: inprocess,"):
        command.make_plan(command.parser().parse_args(["--only", "grcp"]))


def test_sizes_and_ways_are_taken_in_any_case_and_in_the_order_of_the_tables():
    plan = command.make_plan(
        command.parser().parse_args(["--only", "local,gRPC", "--sizes", "150kB", "--models", "none"])
    )
    assert plan.only == ("grpc", "local")
    assert plan.workloads == ("slice-150kb",)


def test_every_way_can_be_loaded_and_says_what_a_table_needs():
    for name in run.WAYS:
        way = run.way_class(name)
        assert way.name == name
        assert way.label
        assert way.encrypted
        assert name == "inprocess" or way.between >= 0
    in_phases = {name for members in run.PHASES.values() for name in members}
    assert in_phases == set(run.WAYS)


def test_a_peer_that_is_not_installed_is_named_with_its_extra():
    class Absent(Way):
        name = "absent"
        needs = ("no_such_module",)
        extra = "bench-absent"

    assert Absent.missing() == "not installed: no_such_module; pip install -e '.[bench-absent]'"


# ---------------------------------------------------------------- asking


def test_a_wrong_answer_ends_a_flood():
    def call(number):
        return np.int64(number if number < 3 else -1)

    with pytest.raises(PeerError, match="wrong answer to request 3"):
        flood_by_threads([call], Asked(), 5.0)
    with pytest.raises(PeerError, match="wrong answer"):
        flood_by_futures(lambda number: lambda: call(number), Asked(), 2, 5.0)


def test_a_flood_of_futures_keeps_so_many_in_flight_and_counts_refusals_apart():
    open_now, most = 0, 0

    def submit(number):
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)

        def wait():
            nonlocal open_now
            open_now -= 1
            if number % 2:
                raise TimeoutError("full")
            return np.int64(number)

        return wait

    flood = flood_by_futures(submit, Asked(), 3, 0.02, (TimeoutError,))
    assert most == 3
    assert open_now == 0
    assert flood.answered > 0
    assert sum(flood.refused.values()) > 0
    assert set(flood.refused) == {"TimeoutError: full"}


def test_answers_are_compared_to_the_bit_or_within_rounding_as_their_kind_demands(tmp_path):
    workloads.prepare(tmp_path, ["slice-10kb"])
    requests = workloads.Requests(tmp_path, "slice-10kb")
    head = np.frombuffer(requests.raw[1], np.uint8)[: topologies.HEAD_BYTES]
    check("way", requests, 1, head)
    check("way", requests, 5, head)  # asked in turn, again and again
    with pytest.raises(PeerError, match="way: wrong answer to request 2"):
        check("way", requests, 2, head)


def test_a_binary_request_of_the_open_inference_protocol_is_read_back():
    class One:
        workload = Workload("m", "network", 16, "float32", (1, 4))
        raw = (np.arange(4, dtype="<f4").tobytes(),)

    body, headers = openinference.binary_request(One(), 0)
    head_bytes = int(headers[openinference.LENGTH_HEADER])
    head = json.loads(body[:head_bytes])
    assert head["inputs"][0]["shape"] == [1, 4]
    assert body[head_bytes:] == One.raw[0]
    answer = json.dumps({"outputs": [{"name": "y"} | {k: v for k, v in head["inputs"][0].items() if k != "name"}]})
    read = openinference.binary_tensor(answer.encode() + One.raw[0], len(answer))
    assert read.tolist() == [[0.0, 1.0, 2.0, 3.0]]


# ---------------------------------------------------------------- processes


def test_processes_are_found_by_their_mark_even_when_their_parent_has_gone():
    mark = f"test-{os.getpid()}"
    script = (
        "import subprocess,sys; p=subprocess.Popen(['sleep','60'],stdout=subprocess.DEVNULL); print(p.pid, flush=True)"
    )
    environment = processes.child_environment(mark)
    done = subprocess.run(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment, check=True
    )
    orphan = int(done.stdout)
    try:
        assert processes.family(mark) == [orphan]
        assert processes.pss_bytes([orphan]) > 10_000
    finally:
        os.kill(orphan, signal.SIGKILL)


def test_processor_time_of_another_process_is_what_it_says_itself():
    script = (
        "import time,sys\nwhile time.process_time() < 0.05: pass\n"
        "print(time.process_time(), flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        said_s = float(child.stdout.readline())
        assert said_s <= processes.cpu_s([child.pid]) < said_s + 0.05
        child.stdin.close()
    assert processes.cpu_s([child.pid]) == 0.0


# ---------------------------------------------------------------- models


@pytest.mark.parametrize(
    ("make", "parameters"),
    # SqueezeNet 1.1 as its authors count; MobileNet v2 has 3,504,872 with two terms for each of the 17,056 channels of
    # its batch normalisations, and one where they are folded into the convolutions.
    [(topologies.squeezenet, 1_235_496), (topologies.mobilenet, 3_504_872 - 17_056)],
)
def test_a_network_has_the_parameters_of_its_paper_and_runs(make, parameters):
    model = make()
    assert topologies.parameters(model) == parameters
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).random((1, 3, topologies.SIDE, topologies.SIDE), dtype=np.float32)
    [y] = session.run(None, {"x": x})
    assert y.shape == (1, topologies.CLASSES)
    assert np.isfinite(y).all()
    assert 1e-3 < np.abs(y).max() < 1e3
    assert make() == model  # drawn from a fixed seed


def test_the_slice_model_returns_the_first_bytes():
    session = onnxruntime.InferenceSession(topologies.slice_model(100).SerializeToString())
    x = np.arange(100, dtype=np.uint8)
    assert np.array_equal(session.run(None, {"x": x})[0], x[:16])


# ---------------------------------------------------------------- all of it


@pytest.mark.slow
def test_a_small_run_measures_four_ways_and_leaves_nothing_behind(tmp_path):
    """In-process, a bare socket, gRPC and the local way; every answer is checked on the way."""
    words = ["--only", "inprocess,socket,grpc,local", "--sizes", "10kb", "--models", "none", "--parts", "latency"]
    words += ["--rounds", "2", "--calls", "5", "--json", str(tmp_path / "out.json")]
    environment = dict(os.environ) | {"TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "benches.peers", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    rows = found["phases"]["main"]["latency"]["slice-10kb"]
    assert list(rows) == ["inprocess", "socket", "grpc", "local"]
    assert all(row["calls"] == 10 and row["p50_ms"] > 0 and row["cpu_ms"] > 0 for row in rows.values()), rows
    assert rows["grpc"]["vs_grpc"] == 1.0
    assert "gridnode local" in done.stdout
    left = [path.name for path in tmp_path.iterdir() if path.name.startswith("bench-peers-")]
    assert left == []
