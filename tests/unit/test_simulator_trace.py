"""A trace shows every job from end to end and every execution on a slot, and changes nothing."""

import json
from collections import Counter, defaultdict
from itertools import pairwise

import msgspec
import pytest

from gridnode.simulation.load import load
from gridnode.simulation.run import run_traced
from simulator.runner import Run, run
from simulator.scenariotext import parse
from simulator.trace import Tracer

TEXT = """name = "traced"
duration_s = 20
warm_up_s = 0

[[models]]
name = "m"
mean_s = {board = 0.2, server = 0.02}

[[nodes]]
device = "board"
count = 3

[[nodes]]
device = "server"
slots = 2

[[sources]]
kind = "poisson"
load = 1.1
deadline_s = 0.4
"""


def traced(limit=100_000):
    tracer = Tracer(limit)
    under_way = Run(parse(TEXT), observers=[tracer])
    tracer.watch(under_way.world.nodes)
    result = under_way.finish()
    return result, json.loads(b"".join(tracer.pieces(result)))


def test_every_job_has_a_begin_and_an_end():
    result, document = traced()
    jobs = [event for event in document["traceEvents"] if event.get("cat") == "job"]
    begun = {event["id"]: event["ts"] for event in jobs if event["ph"] == "b"}
    ended = {event["id"]: event["ts"] for event in jobs if event["ph"] == "e"}
    assert begun.keys() == ended.keys()
    assert len(begun) == result.submitted
    assert all(ended[key] >= begun[key] for key in begun)
    outcomes = Counter(event["args"]["outcome"] for event in jobs if event["ph"] == "e")
    assert outcomes.pop("answered") == result.answered
    assert outcomes == result.refused


def test_executions_do_not_overlap_on_a_slot():
    _, document = traced()
    lanes = defaultdict(list)
    for event in document["traceEvents"]:
        if event["ph"] == "X":
            lanes[event["pid"], event["tid"]].append((event["ts"], event["ts"] + event["dur"]))
    assert {lane for lane in lanes if lane[0] == 4} == {(4, 1), (4, 2)}
    assert {lane[1] for lane in lanes if lane[0] < 4} == {1}
    for spans in lanes.values():
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(spans)))


def test_a_trace_is_bounded_and_changes_nothing():
    result, document = traced(limit=50)
    assert len({event["id"] for event in document["traceEvents"] if event["ph"] == "b"}) <= 50
    assert document["otherData"]["jobs"] == 50
    plain = run(parse(TEXT))
    assert msgspec.json.encode(plain) == msgspec.json.encode(result)


# ---------------------------------------------------------------- the format


def read_trace(data):
    """Read a trace as chrome://tracing does, by the Trace Event Format; returns it by kind of event.

    Names of processes and threads come before what they name, times are whole microseconds, complete events of one
    lane nest, begins and ends of one id alternate and keep their name, instants have a scope, counters have numbers.
    """
    document = json.loads(data)
    assert isinstance(document["traceEvents"], list)
    assert document["displayTimeUnit"] in ("ms", "ns")
    found, names, open_ids, stacks = defaultdict(list), {}, {}, defaultdict(list)
    last_us = {}
    for event in document["traceEvents"]:
        kind, lane = event["ph"], (event["pid"], event["tid"])
        assert all(type(part) is int and part >= 0 for part in lane), event
        found[kind].append(event)
        if kind == "M":
            assert event["name"] in ("process_name", "process_sort_index", "thread_name"), event
            if event["name"].endswith("_name"):
                names[event["name"], event["pid"], event["tid"] if event["name"] == "thread_name" else None] = event[
                    "args"
                ]["name"]
            continue
        assert type(event["ts"]) is int, event
        assert event["ts"] >= 0, event
        assert event["name"], event
        assert ("process_name", event["pid"], None) in names, event
        assert ("thread_name", *lane) in names, event
        if kind == "X":
            assert type(event["dur"]) is int, event
            assert event["dur"] >= 0, event
            assert event["ts"] >= last_us.get(lane, 0), "complete events of a lane are in their order"
            last_us[lane] = event["ts"]
            ends = stacks[lane]
            while ends and ends[-1] <= event["ts"]:
                ends.pop()
            assert not ends or event["ts"] + event["dur"] <= ends[-1], "complete events of a lane nest"
            ends.append(event["ts"] + event["dur"])
        elif kind == "b":
            key = event["cat"], event["id"]
            assert key not in open_ids, "an id begins once before it ends"
            open_ids[key] = event
        elif kind == "e":
            begun = open_ids.pop((event["cat"], event["id"]))
            assert (begun["name"], begun["pid"]) == (event["name"], event["pid"])
            assert begun["ts"] <= event["ts"]
        elif kind == "i":
            assert event["s"] in ("t", "p", "g")
        elif kind == "C":
            assert event["args"]
            assert all(type(value) in (int, float) for value in event["args"].values())
        else:
            raise AssertionError(f"unknown kind of event: {event}")
    assert not open_ids
    return found


FAULTS = """
[[faults]]
kind = "crash"
nodes = ["board0"]
at_s = 5
back_after_s = 3

[[faults]]
kind = "pause"
nodes = ["board1"]
at_s = 9
for_s = 4
"""


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"nodes.board.slots": 4, "models.0.max_batch": 2, "models.0.batch": [1, 1.2]},
        {"policy": "capd(hedge=0.2)", "sources.0.load": 0.5},
        {"nodes.board.loaded": [], "models.0.load_s": 0.5, "sources.0.deadline_s": 1e12},
    ],
)
def test_a_trace_keeps_the_format_whatever_happens(changes):
    tracer = Tracer(100_000)
    under_way = Run(parse(TEXT + FAULTS, changes), observers=[tracer])
    tracer.watch(under_way.world.nodes)
    result = under_way.finish()
    found = read_trace(b"".join(tracer.pieces(result)))
    assert set(found) == {"M", "X", "b", "e", "i", "C"}
    assert len(found["b"]) == result.answered + sum(result.refused.values())


def test_loads_of_models_are_bounded_too():
    thrash = {
        "nodes.server.memory_bytes": 10,
        "nodes.server.loaded": ["m"],
        "models.0.memory_bytes": 8,
        "policy": "local_only",
    }
    second = '\n[[models]]\nname = "n"\nmean_s = {board = 0.2, server = 0.02}\nmemory_bytes = 8\nload_s = 0.1\n'
    scenario = parse(TEXT + second, thrash | {"sources.0.models": ["m", "n"]})
    tracer = Tracer(5)
    under_way = Run(scenario, observers=[tracer])
    tracer.watch(under_way.world.nodes)
    found = read_trace(b"".join(tracer.pieces(under_way.finish())))
    assert sum(event["name"].startswith("loads") for event in found["i"]) == 5


def test_a_trace_file_is_as_large_as_is_said(tmp_path):
    """About 700 bytes a job, and 100 a value of a series."""
    scenario = load("pilot", {"duration_s": 12, "warm_up_s": 2, "measure.trace_jobs": 1000})
    outcome = run_traced(scenario, tmp_path / "trace.json")
    data = (tmp_path / "trace.json").read_bytes()
    found = read_trace(data)
    assert len(found["b"]) == 1000
    assert len(found["C"]) == len(outcome.result.nodes) * scenario.measure.series_points
    assert len(data) < 800 * 1000 + 110 * len(found["C"])
