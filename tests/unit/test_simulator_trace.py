"""A trace shows every job from end to end and every execution on a slot, and changes nothing."""

import json
from collections import Counter, defaultdict
from itertools import pairwise

import msgspec

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
        assert all(before[1] <= after[0] + 1e-2 for before, after in pairwise(sorted(spans)))


def test_a_trace_is_bounded_and_changes_nothing():
    result, document = traced(limit=50)
    assert len({event["id"] for event in document["traceEvents"] if event["ph"] == "b"}) <= 50
    assert document["otherData"]["jobs"] == 50
    plain = run(parse(TEXT))
    assert msgspec.json.encode(plain) == msgspec.json.encode(result)
