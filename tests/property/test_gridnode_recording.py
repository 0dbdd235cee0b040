"""What a recorder writes is read back, whatever it was; what was not written by one is refused, whatever it is."""

import math

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from gridnode.errors import GridError
from gridnode.jobtable import Answer
from gridnode.recording import Machine, Recorder
from gridnode.simulation.recorded import read_recording
from gridnode.tracefile import MemoryTraceFile
from gridnode.tracerecords import Header
from scheduler.types import Capability, Job, Reason

HEADER = Header(
    node="me", name="board", software="0", epoch=1, grid_s=0.0, clock_s=0.0, policy="capd", executor="onnxruntime"
)
MODEL = Capability(model="m0", mean_s=0.3, p95_s=0.4, memory_bytes=7, load_s=1.5)
MACHINE = Machine(slots=2, cpu_share=0.5, threads=1, slow_down=1.0, models=(MODEL,), rtts_s={"n1": 0.002})
GRID_S = 2e9

seconds = st.floats(0, 1e5)
sizes = st.integers(0, 64 << 20)
models = st.lists(st.sampled_from([f"m{number}" for number in range(12)]), min_size=1, max_size=8, unique=True)
jobs = st.builds(
    dict,
    models=models.map(tuple),
    priority=st.integers(0, 3),
    input_bytes=sizes,
    arrival_s=st.floats(0, 1e6),
    budget_s=st.one_of(st.floats(1e-3, 1e5), st.just(math.inf)),
    stream=st.text(max_size=20),
    newest_wins=st.booleans(),
    sojourn_s=seconds,
)
answers = st.builds(
    Answer,
    model=st.sampled_from(["m0", "m5"]),
    node=st.sampled_from(["me", "n1", "n2"]),
    hops=st.integers(0, 2),
    waiting_s=st.one_of(seconds, st.just(math.nan)),  # peers say it
    service_s=seconds,
    body=st.binary(max_size=9),
    payload=st.binary(max_size=9),
)
outcomes = st.one_of(answers, st.sampled_from([each.value for each in Reason]))


def make(file, limit_bytes=1 << 15):
    return Recorder(
        file,
        limit_bytes=limit_bytes,
        header=HEADER,
        machine=lambda: MACHINE,
        model_name=lambda digest: f"name of {digest}",
        node_name=lambda node: f"name of {node}",
        grid_s=lambda: GRID_S,
        secret=b"s",
    )


def record(made, number, said, outcome):
    arrival_s = said["arrival_s"]
    kept = {name: value for name, value in said.items() if name not in ("arrival_s", "budget_s", "sojourn_s")}
    deadline_s = arrival_s + said["budget_s"]
    job = Job(key=number.to_bytes(24, "big"), entry="me", arrival_s=arrival_s, deadline_s=deadline_s, **kept)
    now_s = arrival_s + said["sojourn_s"]
    if isinstance(outcome, Answer):
        made.answered(job, outcome, now_s=now_s)
    else:
        made.ended(job, outcome, now_s=now_s)


def written(story):
    """Return what a recorder wrote of some jobs, both files together."""
    file = MemoryTraceFile()
    made = make(file)

    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(made.serve)
            await trio.testing.wait_all_tasks_blocked(0.001)
            for number, (said, outcome) in enumerate(story):
                record(made, number, said, outcome)
            nursery.cancel_scope.cancel()

    trio.run(main)
    return file


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("property") / "jobs.trace"


@given(story=st.lists(st.tuples(jobs, outcomes), max_size=30))
def test_all_that_is_recorded_is_read_back(path, story):
    path.write_bytes(written(story).data)
    found = read_recording(path)
    assert (len(found.jobs), found.lost, found.cut_bytes) == (len(story), 0, 0)
    by_input = sorted(found.jobs, key=lambda job: (job.input_bytes, job.sojourn_s))
    expected = sorted(story, key=lambda item: (item[0]["input_bytes"], item[0]["sojourn_s"]))
    for job, (said, _) in zip(by_input, expected, strict=True):
        assert (job.input_bytes, job.sojourn_s) == pytest.approx((said["input_bytes"], said["sojourn_s"]), abs=1e-6)
    counts = sorted(
        (job.models, job.priority, job.newest_wins, bool(job.stream), job.outcome, job.executor, job.hops)
        for job in found.jobs
    )
    assert counts == sorted(
        (
            tuple(f"name of {model}" for model in said["models"]),
            said["priority"],
            said["newest_wins"],
            bool(said["stream"]),
            "answered" if isinstance(outcome, Answer) else outcome,
            outcome.node if isinstance(outcome, Answer) else "",
            outcome.hops if isinstance(outcome, Answer) else 0,
        )
        for said, outcome in story
    )


STORY = [
    (
        {"models": ("m0",), "priority": 1, "input_bytes": number, "arrival_s": 1.0 + number, "budget_s": 2.0,
         "stream": "s", "newest_wins": False, "sojourn_s": 0.5},
        Answer(model="m0", node="n1", hops=1, waiting_s=0.0, service_s=0.25, body=b"", payload=b"x"),
    )
    for number in range(10)
]  # fmt: skip
WHOLE = written(STORY).data


@given(length=st.integers(0, len(WHOLE)))
@example(length=0)
def test_a_file_cut_off_anywhere_is_read_up_to_there_or_refused_in_its_header(path, length):
    path.write_bytes(WHOLE[:length])
    found = read(path)
    if isinstance(found, str):
        assert length < 300
        return
    again = written(STORY[: len(found.jobs)]).data
    assert len(again) - 100 <= length + 200
    assert [job.input_bytes for job in found.jobs] == list(range(len(found.jobs)))


def read(path):
    """Return a recording, or what is said against it."""
    try:
        return read_recording(path)
    except GridError as error:
        return str(error)


@given(data=st.binary(max_size=200), keep=st.integers(0, len(WHOLE)))
def test_garbage_is_refused_or_read_and_never_an_exception_of_another_kind(path, data, keep):
    for each in (data, WHOLE[:keep] + data, data + WHOLE[keep:]):
        path.write_bytes(each)
        found = read(path)
        assert not isinstance(found, str) or path.name in found


@given(place=st.integers(0, len(WHOLE) - 1), byte=st.integers(0, 255))
def test_a_flipped_byte_is_read_or_named(path, place, byte):
    path.write_bytes(WHOLE[:place] + bytes([byte]) + WHOLE[place + 1 :])
    found = read(path)
    if isinstance(found, str):
        assert path.name in found
    else:
        assert len(found.jobs) <= len(STORY)
        msgspec.json.encode(found)
