"""Traces of daemons are read whole or refused with a remedy, and replayed as they were."""

import json
import math

import msgspec
import pytest

from gridnode.cli.main import main
from gridnode.simulation.load import SimulationInputError, load
from gridnode.simulation.plan import plan
from gridnode.simulation.recorded import RecordingError, read_recording
from gridnode.simulation.recordedload import load_of
from gridnode.simulation.timeline import on_one_clock
from gridnode.simulation.whatif import changed, frozen, read_what_if
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
    Way,
)
from scheduler.config import CoreConfig
from simulator.runner import Run, run

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


def test_a_replayed_job_is_the_recorded_one(traces):
    frame = record(0.0, priority=3, output_bytes=777, input_bytes=333, stream="aa", newest_wins=True, budget_s=1.5)
    write(traces / "a.trace", header(), TINY, frame, record(9.0, output_bytes=0))
    text = SCENARIO.replace('["a.trace", "b.trace"]', '"a.trace"').replace('"tiny"\n', '"tiny"\noutput_bytes = 55\n')
    under_way = Run(load(scenario(traces, text)))
    jobs = []
    for at_s in (0.01, 9.01):
        under_way.advance(at_s)
        (client,) = under_way.world.open
        jobs.append(client.job)
    first, second = jobs
    assert (first.entry, first.models, first.priority, first.input_bytes) == ("board0", ("tiny",), 3, 333)
    assert (first.output_bytes, first.stream, first.frame, first.newest_wins) == (777, "aa", 1, True)
    assert first.deadline_s - first.arrival_s == pytest.approx(1.5)
    assert (second.output_bytes, second.stream, second.frame) == (55, "", 0)


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
        ([header(), TINY, record(1.0, priority=4)], r"byte \d+: a job with a size or a priority that is none"),
        ([header(), TINY, record(1.0, input_bytes=-1)], r"byte \d+: a job with a size or a priority that is none"),
        ([header(), "text"], r"byte \d+: "),
        ([header(), TINY, header("B")], "are of different nodes; put each"),
    ],
)
def test_a_file_that_cannot_be_read_says_where_and_what_to_do(tmp_path, records, said):
    path = write(tmp_path / "x.trace", *records)
    with pytest.raises(RecordingError, match=said) as caught:
        read_recording(path)
    assert "x.trace" in str(caught.value)


def test_a_budget_that_was_lost_in_the_digits_of_the_clock_is_a_budget(tmp_path):
    assert 0 < read_recording(write(tmp_path / "x", header(), TINY, record(1.0, budget_s=0.0))).jobs[0].budget_s < 1e-6


def test_a_folder_is_no_trace(tmp_path):
    with pytest.raises(RecordingError, match="cannot be read: Is a directory"):
        read_recording(tmp_path)
    with pytest.raises(RecordingError, match="cannot be read: No such file"):
        read_recording(tmp_path / "none")


def test_a_node_is_in_a_record(tmp_path):
    node = NodeRecord(number=0, name="box", node="P")
    found = read_recording(write(tmp_path / "x", header(), TINY, node, record(1.0, executor=0, model=0)))
    assert (found.names, found.jobs[0].executor, found.jobs[0].model) == ({"P": "box"}, "P", "tiny")


# ---------------------------------------------------------------- fleets and plans


def account(runs=100, mean_s=0.2, slots=1, rtt_s=None):
    measured = Measured(
        model=0, mean_s=9.0, p95_s=9.0, memory_bytes=0, load_s=0.0, max_batch=1, runs=runs, total_s=mean_s * runs,
        quantiles_s=tuple(mean_s * (0.9 + number / 160) for number in range(33)),
    )  # fmt: skip
    ways = () if rtt_s is None else (Way(node=0, rtt_s=rtt_s),)
    return DeviceRecord(at_s=0.0, slots=slots, cpu_share=1.0, threads=1, slow_down=1.0, models=(measured,), ways=ways)


@pytest.fixture
def street(tmp_path):
    """A slow board with two cameras of 2 frames/s and a fast box without; the board is just able to serve one."""
    at_s = [number * 0.5 for number in range(60)]
    box = NodeRecord(number=0, name="box", node="BOX")
    frames = [
        record(at + phase, stream=stream, budget_s=0.6, executor=0, model=0, service_s=0.05)
        for at in at_s
        for phase, stream in ((0.0, "north"), (0.2, "south"))
    ]
    board = write(
        tmp_path / "board.trace", header("BOARD", "board"), TINY, box, account(mean_s=0.4, rtt_s=0.008), *frames
    )
    other = write(tmp_path / "box.trace", header("BOX", "box"), TINY, account(mean_s=0.05, slots=2))
    return board, other


def fleet(*paths, **options):
    return load_of([read_recording(path) for path in paths], **options)


def test_a_fleet_is_what_was_recorded_of_it(street):
    found = fleet(*street)
    scenario = found.scenario
    assert scenario.node_names == ("board", "box")
    assert [group.slots for group in scenario.nodes] == [1, 2]
    (model,) = scenario.models
    assert model.mean_s == {"board": pytest.approx(0.4), "box": pytest.approx(0.05)}
    assert len(model.measured_s["board"]) == 33
    assert (model.input_bytes, model.output_bytes) == (100, 5)
    # 8 ms there and back: 2 ms from either end to the middle.
    assert [group.link.latency_s for group in scenario.nodes] == [0.002, 0.002]
    assert (scenario.network.link.latency_s, scenario.nodes[0].link.up_mbit_s) == (0.002, None)
    assert found.notes == ("no job came in at box",)
    assert (found.observed.jobs, found.observed.cameras, found.observed.nodes) == (120, 2, 1)
    assert (found.observed.miss, found.observed.offloaded) == (0.0, 1.0)
    result = run(scenario)
    assert result.submitted == 120
    assert [node.submitted for node in result.nodes] == [120, 0]
    assert result.within > 0.95


def test_a_node_without_a_recording_is_known_by_its_answers(street):
    found = fleet(street[0])
    assert found.scenario.node_names == ("board", "box")
    assert found.scenario.models[0].mean_s["box"] == pytest.approx(0.05)
    assert "box recorded no trace: its service times are those of the 120 jobs" in found.notes[0]


def test_only_the_end_may_be_taken(street):
    found = fleet(*street, last_s=5.0)
    assert found.observed.jobs == 21
    assert found.scenario.sources[0].times_s[0] == pytest.approx(0.1, abs=0.11)


def test_links_are_those_that_the_nodes_learned(tmp_path):
    other = NodeRecord(number=0, name="x", node="X")
    for number, rtt_s in enumerate([0.010, 0.010, 0.050]):
        path = tmp_path / f"{number}.trace"
        write(path, header(f"P{number}", f"n{number}"), TINY, other, account(rtt_s=rtt_s), record(0.0))
    found = fleet(*sorted(tmp_path.iterdir())).scenario
    # A middling node is a quarter of its round trip from the middle; the far one 25 ms less that of its middling peers.
    assert [group.link.latency_s for group in found.nodes] == pytest.approx([0.0025, 0.0025, 0.0225])
    assert [group.link.up_mbit_s for group in found.nodes] == [None] * 3


@pytest.mark.parametrize(
    ("rtt_s", "latency_s", "up_mbit_s"), [(0.010, 0.0025, 80.0), (0.045, 0.0125, None), (None, 0.0125, None)]
)
def test_what_jobs_took_on_the_way_says_more_than_small_messages(tmp_path, rtt_s, latency_s, up_mbit_s):
    # 50 ms on the way for 400 kB: with 10 ms for small messages the uplink takes 40 ms, 10 MB/s.
    other = NodeRecord(number=0, name="x", node="X")
    away = [record(float(n), hops=1, executor=0, model=0, sojourn_s=0.35, input_bytes=400_000) for n in range(10)]
    path = write(tmp_path / "x", header(), TINY, other, account(rtt_s=rtt_s), *away)
    link = fleet(path).scenario.nodes[0].link
    assert (link.latency_s, link.up_mbit_s) == (pytest.approx(latency_s), up_mbit_s and pytest.approx(up_mbit_s))


def test_nodes_of_one_name_and_strange_names_are_told_apart(tmp_path):
    first = write(tmp_path / "1", header("PEER0001", "3rd floor"), TINY, account(), record(0.0))
    second = write(tmp_path / "2", header("PEER0002", "3rd floor"), TINY, account(), record(1.0))
    assert fleet(first, second).scenario.node_names == ("n3rd_floor.PEER0001", "n3rd_floor.PEER0002")


def test_the_recorded_settings_hold_where_they_are_understood(tmp_path):
    settings = {"placement": {"slack": 0.5}}
    path = write(tmp_path / "x", header(scheduler=settings, policy="jsq(d=2)"), TINY, account(rtt_s=None), record(0.0))
    scenario = fleet(path).scenario
    assert (scenario.core.placement.slack, scenario.core.explain, scenario.policy) == (0.5, False, "jsq(d=2)")
    write(path, header(scheduler={"nonsense": 1}, policy="of tomorrow"), TINY, account(), record(0.0))
    found = fleet(path)
    assert (found.scenario.core, found.scenario.policy) == (CoreConfig(explain=False), "capd")
    told = "\n".join(found.notes)
    assert "its scheduler settings are not of this version" in told
    assert "capd is taken" in told


def test_what_no_node_runs_is_left_out_and_told(tmp_path):
    other = ModelRecord(number=1, name="gone", digest="d1")
    path = write(tmp_path / "x", header(), TINY, other, account(), record(0.0), record(1.0, models=(1,)))
    found = fleet(path)
    assert "1 jobs asked for gone, which no node runs" in found.notes[-1]
    assert run(found.scenario).submitted == 1
    with pytest.raises(SimulationInputError, match="name no model that any node runs"):
        fleet(write(tmp_path / "y", header(), TINY, record(0.0)))


def test_another_fleet_takes_recorded_jobs_by_name_or_in_turn(street):
    pilot = load("pilot", {"models.0.name": "tiny"})
    with pytest.raises(SimulationInputError, match=r"board are none of them; .*spread"):
        fleet(street[0], fleet=pilot)
    found = fleet(street[0], fleet=pilot, spread=True)
    assert len(found.scenario.node_names) == len(pilot.node_names)
    assert found.scenario.sources[0].places == {"board": pilot.node_names[0]}


def what_if(scenario, text):
    return changed(frozen(scenario), read_what_if(text))


def test_more_cameras_are_copies_begun_elsewhere_with_streams_of_their_own(street):
    scenario = fleet(*street).scenario
    now, first, second, third = what_if(scenario, "cameras+3").sources
    assert now == scenario.sources[0]
    assert {job.stream for job in first.jobs} == {"north.1"}
    assert {job.stream for job in second.jobs} == {"south.2"}
    assert {job.stream for job in third.jobs} == {"north.3"}
    assert len(first.times_s) == 60
    assert list(first.times_s) == sorted(first.times_s)
    assert first.times_s != third.times_s
    assert run(what_if(scenario, "cameras+3")).submitted == 300
    (less,) = what_if(scenario, "jobs.board-1").sources
    assert {job.stream for job in less.jobs} == {"north"}
    assert what_if(scenario, "cameras-2").sources == ()
    with pytest.raises(SimulationInputError, match="cameras has 2"):
        what_if(scenario, "cameras-3")


def test_a_half_more_is_a_thinned_copy_with_streams_of_its_own(street):
    _, copy = what_if(fleet(*street).scenario, "cameras+50%").sources
    assert copy.keep == pytest.approx(0.5)
    assert {job.stream for job in copy.jobs} == {"north.1", "south.1"}


def test_jobs_of_a_device_that_goes_come_in_elsewhere(street):
    left = what_if(fleet(*street).scenario, "board-1")
    assert left.node_names == ("box",)
    assert run(left).submitted == 120


def test_a_new_device_leaves_the_recorded_one_its_name_and_jobs(street):
    more = what_if(fleet(*street).scenario, "box+2,board+1")
    assert more.node_names == ("board", "box", "box.new0", "box.new1", "board.new")
    result = run(more)
    assert [node.submitted for node in result.nodes] == [120, 0, 0, 0, 0]


def test_a_plan_says_what_happened_and_what_would(street, capsys):
    arguments = ["simulate", "plan", "--trace", *map(str, street), "--jobs", "1", "--replications", "2"]
    assert main([*arguments, "--what-if", "box-1", "--what-if", "cameras+1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["observed"]["jobs"] == 120
    assert found["notes"] == ["no job came in at box"]
    now, alone, more = found["variants"]
    assert now["values"]["miss"]["mean"] < 0.05
    # The board alone serves 2.5 of 4 frames per second.
    assert alone["values"]["miss"]["mean"] > 0.3
    assert more["load"] == pytest.approx(1.5 * now["load"], rel=0.01)


def test_a_plan_is_shown(street, capsys):
    assert main(["simulate", "plan", "--trace", str(street[0]), "--jobs", "1", "--replications", "2"]) == 0
    out = capsys.readouterr().out
    assert "recorded: 120 jobs of 2 cameras at 1 node in 29.7 s" in out
    assert "as it is" in out
    assert "box recorded no trace" in out


def test_a_recorded_fleet_takes_other_values(street, capsys):
    arguments = ["simulate", "plan", "--trace", *map(str, street), "--jobs", "1", "--replications", "1", "--json"]
    assert main([*arguments, "--set", "policy=local_only", "--set", "nodes.board.slots=2"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["policy"] == "local_only"
    assert main([*arguments, "--set", "nodes.board.slots=0"]) == 2
    assert "--set: nodes[0].slots: 0; it must be a whole number at least 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to plan with; give a scenario, or what daemons recorded"),
        (["pilot"], "required: --what-if"),
        (["--trace", "nowhere"], "nowhere cannot be read: No such file"),
        (["--trace", "BOARD", "BOARD"], "are of one node, board"),
        (["pilot", "--trace", "BOARD"], "board are none of them"),
        (["--trace", "BOARD", "--last", "0"], "'0' is no number of seconds above 0"),
        (["--trace", "BOARD", "--what-if", "door-1"], "there is no 'door'"),
    ],
)
def test_a_plan_that_cannot_be_made_says_why(street, capsys, arguments, said):
    words = [str(street[0]) if word == "BOARD" else word for word in arguments]
    try:
        code = main(["simulate", "plan", *words, "--jobs", "1", "--replications", "1"])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert said in capsys.readouterr().err


def test_a_plan_that_would_fill_the_memory_says_what_to_take_less_of(street, monkeypatch):
    scenario = fleet(*street).scenario
    monkeypatch.setattr("gridnode.simulation.plan.SENT_MAX_BYTES", 100_000)
    with pytest.raises(SimulationInputError, match=r"40 runs of this recording are 0 MiB.*--last SECONDS"):
        plan(scenario, ["box-1"], replications=20, jobs=2)
