"""Traces of daemons are read whole or refused with a remedy, and replayed as they were."""

import math

import msgspec
import pytest

from gridnode.simulation.load import SimulationInputError, load
from gridnode.simulation.recorded import RecordingError, on_one_clock, read_recording
from gridnode.tracerecords import (
    ANSWERED,
    NOBODY,
    DeviceRecord,
    Header,
    JobRecord,
    LostRecord,
    Measured,
    ModelRecord,
    NodeRecord,
)
from simulator.runner import run

encode = msgspec.msgpack.encode

SCENARIO = """name = "replayed"
duration_s = 20
warm_up_s = 0

[[models]]
name = "tiny"
mean_s = {board = 0.05}

[[models]]
name = "big"
mean_s = {board = 0.2}

[[nodes]]
device = "board"
count = 2

[[sources]]
kind = "replay"
file = ["a.trace", "b.trace"]
"""


def header(node="A", name="board0", **more):
    common = {"software": "0", "epoch": 1, "grid_s": 1000.0, "clock_s": 50.0, "policy": "capd", "executor": "emulated"}
    return Header(node=node, name=name, **common | more)


def record(at_s, *, grid_s=None, models=(0,), budget_s=2.0, stream="", **more):
    common = {"priority": 1, "input_bytes": 100, "output_bytes": 5, "newest_wins": False, "sojourn_s": 0.3}
    common |= {"waiting_s": 0.1, "service_s": 0.2, "hops": 0, "executor": NOBODY, "model": NOBODY, "outcome": ANSWERED}
    grid_s = 1000.0 + at_s if grid_s is None else grid_s
    return JobRecord(at_s=at_s, grid_s=grid_s, models=models, budget_s=budget_s, stream=stream, **common | more)


TINY = ModelRecord(number=0, name="tiny", digest="d0")


def write(path, *records):
    path.write_bytes(b"".join(map(encode, records)))
    return path


@pytest.fixture
def traces(tmp_path):
    """Two nodes: one saw two requests, the other three frames of a camera, half a second later."""
    write(tmp_path / "a.trace", header(), TINY, record(0.0), record(4.0, priority=0, budget_s=None))
    frames = [record(0.5 + number, stream="aa", newest_wins=True) for number in range(3)]
    write(tmp_path / "b.trace", header("B", "board1"), TINY, *frames)
    return tmp_path


def scenario(folder, text=SCENARIO):
    path = folder / "replay.toml"
    path.write_text(text)
    return str(path)


def test_several_nodes_are_put_on_one_clock(traces):
    recordings = [read_recording(traces / name) for name in ("b.trace", "a.trace")]
    merged = on_one_clock(recordings, align="clock")
    assert [(round(at_s, 6), each.name) for at_s, each, _ in merged] == [
        (0.0, "board0"),
        (0.5, "board1"),
        (1.5, "board1"),
        (2.5, "board1"),
        (4.0, "board0"),
    ]
    together = on_one_clock(recordings, align="start")
    assert [round(at_s, 6) for at_s, _, _ in together] == [0.0, 0.0, 1.0, 2.0, 4.0]


def test_recordings_of_different_times_do_not_go_together_unless_asked_for(traces):
    write(traces / "b.trace", header("B", "board1", grid_s=9e6), TINY, record(0.0, grid_s=9e6))
    recordings = [read_recording(traces / name) for name in ("a.trace", "b.trace")]
    with pytest.raises(RecordingError, match=r"8998996 s after .*a.trace ended.*align"):
        on_one_clock(recordings, align="clock")
    assert len(on_one_clock(recordings, align="start")) == 3


def test_one_node_twice_is_refused(traces):
    recordings = [read_recording(traces / "a.trace")] * 2
    with pytest.raises(RecordingError, match="are of one node, board0"):
        on_one_clock(recordings, align="clock")


def test_a_scenario_replays_all_that_was_recorded(traces):
    loaded = load(scenario(traces))
    (source,) = loaded.sources
    assert source.times_s == pytest.approx((0.0, 0.5, 1.5, 2.5, 4.0))
    first, second, *_, last = source.jobs
    assert (first.entry, first.models, first.deadline_s, first.stream) == ("board0", ("tiny",), 2.0, "")
    assert (second.entry, second.stream, second.newest_wins) == ("board1", "aa", True)
    assert (last.entry, last.deadline_s, last.priority) == ("board0", math.inf, 0)
    result = run(loaded)
    assert (result.submitted, result.answered) == (5, 5)
    assert [node.submitted for node in result.nodes] == [2, 3]


def test_the_scenario_may_say_where_recorded_nodes_are(traces):
    text = SCENARIO + 'places = {board0 = "board1", board1 = "board0"}\n'
    assert [node.submitted for node in run(load(scenario(traces, text))).nodes] == [3, 2]
    text = SCENARIO.replace("count = 2", "count = 1") + "spread = true\n"
    assert [node.submitted for node in run(load(scenario(traces, text))).nodes] == [5]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("count = 2", 'name = "other"\ncount = 2', r"line 18: sources\[0\].entries: the recorded nodes board0, board1"),
        ('"tiny"', '"small"', r"line 17: sources\[0\].models: the recorded models tiny are none .*\(small, big\)"),
        ("b.trace", "c.trace", r"line 19: sources\[0\].file: .*c.trace cannot be read: No such file"),
        ('"b.trace"]', '"b.trace"]\nplaces = {board0 = "x"}', r"line 20: sources\[0\].places.board0: 'x' is no node"),
        ('"b.trace"]', '"b.trace"]\nalign = "x"', r"line 20: sources\[0\].align: 'x'; .*clock, start"),
    ],
)
def test_what_does_not_fit_names_line_key_and_remedy(traces, old, new, said):
    with pytest.raises(SimulationInputError, match=r"replay.toml: " + said):
        load(scenario(traces, SCENARIO.replace(old, new)))


def test_models_that_are_not_there_may_be_replaced(traces):
    text = SCENARIO.replace('"tiny"', '"small"') + 'models = ["big"]\ninput_bytes = 7\n'
    result = run(load(scenario(traces, text)))
    assert result.answered == 5
    assert result.stages.service_s == pytest.approx(0.2, rel=0.2)


def test_measured_service_times_are_drawn_as_they_are():
    from simulator.fleet import node_specs
    from simulator.scenario import ModelSpec, NodeGroup, Scenario

    model = ModelSpec(name="m", measured_s={"a": (0.1, 0.3), "b": (0.1, 0.3)}, mean_s={"b": 0.4})
    fleet = Scenario(name="s", models=(model,), nodes=(NodeGroup(device="a"), NodeGroup(device="b")))
    first, second = (spec.models["m"] for spec in node_specs(fleet, fleet.core))
    assert (first.capability.mean_s, first.service.values_s) == (pytest.approx(0.2), (0.1, 0.3))
    assert second.service.values_s == pytest.approx((0.2, 0.6))


# ---------------------------------------------------------------- files


def test_facts_of_the_newest_account_count(tmp_path):
    def device(at_s, runs):
        measured = Measured(
            model=0, mean_s=0.5, p95_s=0.6, memory_bytes=3, load_s=1.0, max_batch=1, runs=runs,
            total_s=0.25 * runs, quantiles_s=(0.2, 0.3) if runs else (),
        )  # fmt: skip
        return DeviceRecord(at_s=at_s, slots=2, cpu_share=1.0, threads=1, slow_down=1.0, models=(measured,), ways=())

    path = write(
        tmp_path / "x", header(), TINY, device(0.0, 0), device(60.0, 8), record(1.0), LostRecord(at_s=2.0, jobs=3),
        header(epoch=2), TINY, device(0.0, 0),
    )  # fmt: skip
    found = read_recording(path)
    assert (found.slots, found.lost, len(found.jobs)) == (2, 3, 1)
    # The daemon has just begun anew and has executed nothing: what it knew before is better than nothing.
    assert (found.models["tiny"].mean_s, found.models["tiny"].runs) == (0.25, 8)


def test_what_a_newer_version_adds_is_passed_over(tmp_path):
    longer = [*msgspec.to_builtins(record(1.0)), "more"]
    found = read_recording(write(tmp_path / "x", header(), TINY, ["weather", 1, 2], longer))
    assert len(found.jobs) == 1


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([], "is empty"),
        ([{"a": 1}], "is no trace of a daemon"),
        ([{"gridnode_trace": 99}], "byte 0: version 99 of the format, this program reads 1; install the newer release"),
        ([{"gridnode_trace": 1}], r"byte 0: .*missing required field `node`"),
        ([header(), ["job", 1]], r"byte \d+: .*"),
        ([header(), record(1.0)], r"byte \d+: number 0, which was not told before"),
        ([header(), TINY, TINY], r"byte \d+: number 0 where 1 was due"),
        ([header(), TINY, record(math.nan)], r"byte \d+: a job with a time that is none; the file is damaged.*head -c"),
        ([header(), TINY, record(1.0, budget_s=-1.0)], r"byte \d+: a job with a time"),
        ([header(), "text"], r"byte \d+: "),
        ([header(), TINY, header("B")], "are of different nodes; put each"),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_what_to_do(tmp_path, records, said):
    path = write(tmp_path / "x.trace", *records)
    with pytest.raises(RecordingError, match=said) as caught:
        read_recording(path)
    assert "x.trace" in str(caught.value)


def test_a_folder_is_no_trace(tmp_path):
    with pytest.raises(RecordingError, match="cannot be read: Is a directory"):
        read_recording(tmp_path)
    with pytest.raises(RecordingError, match="cannot be read: No such file"):
        read_recording(tmp_path / "none")


def test_a_node_is_in_a_record(tmp_path):
    node = NodeRecord(number=0, name="box", node="P")
    found = read_recording(write(tmp_path / "x", header(), TINY, node, record(1.0, executor=0, model=0)))
    assert (found.names, found.jobs[0].executor, found.jobs[0].model) == ({"P": "box"}, "P", "tiny")
