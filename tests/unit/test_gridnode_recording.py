"""What a daemon records of its jobs is bounded, whole after a crash, and never worth a job."""

import errno
import os
import threading
from pathlib import Path

import msgspec
import pytest
import trio
import trio.testing

from gridnode.config import Config, TraceConfig, load_config
from gridnode.errors import ConfigError
from gridnode.jobtable import Answer
from gridnode.recording import FLUSH_S, RETRY_S, Machine, Recorder
from gridnode.sandbox import _jump
from gridnode.servicesample import KEPT_MAX, ServiceSample
from gridnode.simulation.recorded import RecordingError, read_recording
from gridnode.tracebuffer import WAITING_MAX_BYTES
from gridnode.tracefile import DiskTraceFile, MemoryTraceFile, TraceFileError, before
from gridnode.tracerecords import (
    ANSWERED,
    DeviceRecord,
    Header,
    JobRecord,
    LostRecord,
    Measured,
    ModelRecord,
    NodeRecord,
    Way,
)
from scheduler.types import Capability, Job

HEADER = Header(
    node="me", name="board0", software="0", epoch=1, grid_s=0.0, clock_s=0.0, policy="capd", executor="onnxruntime"
)
MODEL = Capability(model="d1", mean_s=0.3, p95_s=0.4, memory_bytes=7, load_s=1.5)
MACHINE = Machine(slots=2, cpu_share=0.5, threads=1, slow_down=1.0, models=(MODEL,), rtts_s={"peer": 0.002})
ANSWER = Answer(model="d1", node="peer", hops=1, waiting_s=0.1, service_s=0.2, body=b"", payload=b"xyz")
OWN = Answer(model="d1", node="me", hops=0, waiting_s=0.0, service_s=0.25, body=b"ab", payload=b"c")


def job(number, *, entry="me", hops=0, models=("d1",), deadline_s=None, **more):
    return Job(
        key=number.to_bytes(24, "big"),
        entry=entry,
        hops=hops,
        priority=2,
        input_bytes=1000 + number,
        arrival_s=100.0 + number,
        deadline_s=102.0 + number if deadline_s is None else deadline_s,
        models=models,
        **more,
    )


def recorder(file, *, limit_bytes=1 << 20, grid_s=lambda: 5000.0, machine=MACHINE, **more):
    return Recorder(
        file,
        limit_bytes=limit_bytes,
        header=HEADER,
        machine=lambda: machine,
        model_name={"d1": "tiny", "d2": "large"}.__getitem__,
        node_name={"me": "board0", "peer": "box"}.__getitem__,
        grid_s=grid_s,
        secret=b"secret",
        **more,
    )


def live(made, act):
    """Have a recorder live through something, on a clock that jumps but waits for threads, and write all of it."""
    clock = trio.testing.MockClock()

    async def main():
        async with trio.open_nursery() as around:
            around.start_soon(_jump, clock)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(made.serve)
                await trio.sleep(0.1)
                await act(made)
                nursery.cancel_scope.cancel()
            around.cancel_scope.cancel()

    trio.run(main, clock=clock)
    return made


async def ten(made):
    for number in range(10):
        made.answered(job(number), ANSWER, now_s=100.5 + number)


def disk(path, most_bytes=1 << 20):
    return DiskTraceFile(path, most_bytes=most_bytes)


def read(tmp_path, file):
    """Read what lies in a memory file."""
    path = tmp_path / "read.trace"
    path.write_bytes(file.data)
    if file.before:
        before(path).write_bytes(file.before)
    return read_recording(path)


def test_outcomes_of_own_programs_are_recorded_and_nothing_personal(tmp_path):
    path = tmp_path / "deep" / "jobs.trace"

    async def act(made):
        made.answered(job(1), ANSWER, now_s=101.5)
        made.ended(job(2, models=("d2", "d1"), stream="door", client="uid 7"), "deadline", now_s=102.25)
        made.answered(job(3, entry="other"), OWN, now_s=104.0)
        made.ended(job(4, hops=1), "expired", now_s=105.0)
        made.answered(job(4, hops=1), OWN, now_s=105.0)  # home again
        made.ended(job(5, deadline_s=float("inf"), tenant="them"), "cancelled", now_s=106.0)

    live(recorder(disk(path)), act)
    found = read_recording(path)
    assert (found.node, found.name, found.policy, found.slots) == ("me", "board0", "capd", 2)
    first, second, third = sorted(found.jobs, key=lambda entry: entry.input_bytes)
    assert (first.models, first.outcome, first.model, first.executor) == (("tiny",), ANSWERED, "tiny", "peer")
    assert (first.priority, first.budget_s, first.input_bytes, first.output_bytes) == (2, 2.0, 1001, 3)
    assert (first.sojourn_s, first.waiting_s, first.service_s, first.hops) == (0.5, 0.1, 0.2, 1)
    assert first.is_in_time
    assert (second.outcome, second.executor, second.models, second.model) == ("deadline", "", ("large", "tiny"), "")
    assert len(second.stream) == 12
    assert third.budget_s == float("inf")
    assert found.names == {"peer": "box"}
    assert found.rtts_s == (0.002,)
    data = path.read_bytes()
    assert not any(word in data for word in (b"door", b"uid", b"them", b"xyz"))
    assert path.stat().st_mode & 0o077 == 0


def test_a_node_says_what_its_models_cost_it(tmp_path):
    file = MemoryTraceFile()

    async def act(made):
        for number in range(100):
            answer = msgspec.structs.replace(OWN, service_s=0.2 + number / 1000)
            made.answered(job(number, entry="other", hops=1), answer, now_s=300.0)

    live(recorder(file), act)
    tiny = read(tmp_path, file).models["tiny"]
    assert (tiny.runs, tiny.memory_bytes, tiny.load_s) == (100, 7, 1.5)
    assert tiny.mean_s == pytest.approx(0.2495)
    assert (tiny.quantiles_s[0], tiny.quantiles_s[-1], len(tiny.quantiles_s)) == (0.2, pytest.approx(0.299), 33)


def test_only_what_ran_here_by_lanes_tells_what_models_cost_here(tmp_path):
    file = MemoryTraceFile()

    async def act(made):
        made.ran_by_lane(job(1), output_bytes=3, service_s=0.5, transfer_s=0.0, executor="me")
        made.ran_by_lane(job(2), output_bytes=3, service_s=0.1, transfer_s=0.25, executor="peer")
        made.executed("d1", 0.75)  # for a peer's lane: its job is that node's to tell of

    live(recorder(file), act)
    found = read(tmp_path, file)
    tiny = found.models["tiny"]
    assert (tiny.runs, tiny.mean_s) == (2, pytest.approx(0.625))
    own, away = found.jobs
    assert (own.executor, own.hops, own.service_s, own.sojourn_s, own.outcome) == ("me", 0, 0.5, 0.5, ANSWERED)
    assert (away.executor, away.hops, away.service_s, away.sojourn_s) == ("peer", 1, 0.1, pytest.approx(0.35))


def test_a_model_that_nobody_asked_for_counts_as_it_was_measured(tmp_path):
    file = MemoryTraceFile()
    live(recorder(file), ten)
    assert read(tmp_path, file).models["tiny"].mean_s == 0.3


def test_a_sample_is_bounded():
    sample = ServiceSample("s")
    for number in range(10 * KEPT_MAX):
        sample.add(float(number))
    assert sample.count == 10 * KEPT_MAX
    assert len(sample._kept) == KEPT_MAX
    assert sample.quantiles_s()[16] == pytest.approx(5 * KEPT_MAX, rel=0.2)


def test_the_clock_that_is_set_late_dates_the_whole_life(tmp_path):
    # A board wakes in 1970 and hears the time after its fifth job; the distances of its monotonic clock hold.
    file, clock = MemoryTraceFile(), [0.0]

    async def act(made):
        for number in range(10):
            now_s = 100.0 + number
            clock[0] = now_s if number < 5 else 1e9 + now_s
            made.answered(job(number, deadline_s=1e6), ANSWER, now_s=now_s)

    live(recorder(file, grid_s=lambda: clock[0], clock=lambda: 100.0), act)
    times_s = [entry.at_s for entry in read(tmp_path, file).jobs]
    assert times_s == pytest.approx([1e9 + 100.0 + number for number in range(10)])


def test_both_files_together_keep_the_bound(tmp_path, caplog):
    path, limit_bytes = tmp_path / "jobs.trace", 1 << 15
    made = recorder(disk(path, limit_bytes), limit_bytes=limit_bytes)
    sizes = []

    async def act(made):
        for _ in range(30):
            for number in range(40):
                made.answered(job(number), ANSWER, now_s=200.0)
            await trio.sleep(FLUSH_S + 0.1)
            sizes.append([each.stat().st_size for each in (path, before(path)) if each.exists()])

    with caplog.at_level("INFO"):
        live(made, act)
    assert "trace_rotated" in caplog.text
    assert len(sizes[-1]) == 2
    assert all(0 < size <= limit_bytes for pair in sizes for size in pair)
    # Each file can be read without the other.
    both = len(read_recording(path).jobs)
    before(path).unlink()
    assert 0 < len(read_recording(path).jobs) < both < 1200
    assert made.statistics() == msgspec.structs.replace(made.statistics(), jobs=1200, lost=0, is_failing=False)


def test_a_start_goes_on_in_the_same_file(tmp_path):
    path = tmp_path / "jobs.trace"
    for _ in range(3):
        live(recorder(disk(path)), ten)
    assert len(read_recording(path).jobs) == 30
    assert not before(path).exists()


@pytest.mark.parametrize("tail", [b"", b"\0" * 4096])
def test_what_a_crash_cut_off_is_left_out_and_mended_at_the_next_start(tmp_path, tail):
    path = tmp_path / "jobs.trace"
    live(recorder(disk(path)), ten)
    path.write_bytes(path.read_bytes()[:-5] + tail)
    cut = read_recording(path)
    assert len(cut.jobs) == 9
    assert cut.cut_bytes > 0
    live(recorder(disk(path)), ten)
    mended = read_recording(path)
    assert (len(mended.jobs), mended.cut_bytes) == (19, 0)


def test_a_damaged_file_is_kept_and_not_cut(tmp_path):
    path = tmp_path / "jobs.trace"
    live(recorder(disk(path)), ten)
    damaged = path.read_bytes()[:-5] + b"\xc1" * 100
    path.write_bytes(damaged)
    live(recorder(disk(path)), ten)
    assert before(path).read_bytes() == damaged
    with pytest.raises(RecordingError, match=r"jobs.trace.1, byte \d+: .*head -c"):
        read_recording(path)
    before(path).unlink()
    assert len(read_recording(path).jobs) == 10


def test_a_slow_disk_costs_records_and_neither_memory_nor_time(tmp_path, caplog):
    gate = threading.Event()
    gate.set()

    class Slow(MemoryTraceFile):
        def append(self, data):
            gate.wait(10)
            super().append(data)

    file = Slow()

    async def act(made):
        gate.clear()
        for number in range(60_000):
            made.ended(job(number), "deadline", now_s=1e6)
        assert made._buffer.waiting_bytes <= WAITING_MAX_BYTES
        assert made.statistics().lost > 1000
        gate.set()

    with caplog.at_level("WARNING"):
        made = live(recorder(file, limit_bytes=1 << 30), act)
    assert made.statistics().jobs + made.statistics().lost == 60_000
    assert read(tmp_path, file).lost == made.statistics().lost
    assert "trace_jobs_left_out" in caplog.text


def test_a_disk_that_hangs_does_not_hold_up_the_end():
    gate = threading.Event()

    class Hanging(MemoryTraceFile):
        def append(self, data):
            gate.wait(20)

    # The thread that hangs is real, so is the clock.
    async def main():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(recorder(Hanging()).serve)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        gate.set()

    monkey = pytest.MonkeyPatch()
    monkey.setattr("gridnode.recording.LAST_WRITE_S", 0.1)
    with monkey.context():
        trio.run(main)
    monkey.undo()


def test_a_full_disk_is_one_alarm_and_the_trace_goes_on_when_there_is_room(tmp_path, caplog):
    file = MemoryTraceFile(room_bytes=4000)

    async def act(made):
        await trio.sleep(FLUSH_S)
        for _ in range(5):
            await ten(made)
            await trio.sleep(FLUSH_S + 0.1)
        assert made.statistics().is_failing
        await trio.sleep(3 * RETRY_S)
        assert caplog.text.count("trace_failed") == 1
        file.room_bytes = None
        await trio.sleep(RETRY_S + FLUSH_S)
        assert not made.statistics().is_failing
        await ten(made)

    with caplog.at_level("INFO"):
        made = live(recorder(file), act)
    assert "No space left on device" in caplog.text
    assert "trace_resumed" in caplog.text
    found = read(tmp_path, file)
    assert len(found.jobs) == made.statistics().jobs
    assert found.lost == made.statistics().lost > 0
    assert len(found.jobs) + found.lost == 60


def test_a_start_in_a_file_that_is_nearly_full_begins_another(tmp_path):
    path, limit_bytes = tmp_path / "jobs.trace", 1 << 15

    live(recorder(disk(path, limit_bytes), limit_bytes=limit_bytes), ten)
    padding = msgspec.msgpack.encode(["pad", "x" * (limit_bytes - path.stat().st_size - 100)])
    path.write_bytes(path.read_bytes() + padding)
    live(recorder(disk(path, limit_bytes), limit_bytes=limit_bytes), ten)
    assert limit_bytes - 100 <= before(path).stat().st_size <= limit_bytes
    assert path.stat().st_size < 5000
    assert len(read_recording(path).jobs) == 20


def test_a_disk_that_fails_is_looked_at_once_a_minute():
    looks = []

    class Gone(MemoryTraceFile):
        def open(self):
            looks.append("look")
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    async def act(made):
        await trio.sleep(10 * RETRY_S)

    live(recorder(Gone()), act)
    assert 8 <= len(looks) <= 11


def test_half_a_write_is_taken_back(tmp_path, monkeypatch):
    path, real = tmp_path / "jobs.trace", os.write
    calls = []

    def full(file, data):
        calls.append(len(data))
        if len(calls) % 2:
            return real(file, data[:7])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = disk(path)
    file.open()
    file.append(b"\x91\x01")
    with monkeypatch.context() as patch:
        patch.setattr("gridnode.tracefile.os.write", full)
        with pytest.raises(OSError, match="No space"):
            file.append(b"\x92\x01\x02" * 5)
    file.append(b"\x91\x02")
    file.close()
    assert path.read_bytes() == b"\x91\x01\x91\x02"


def test_what_is_no_trace_is_left_alone(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("dear diary")
    with pytest.raises(TraceFileError, match="is no trace and is left alone"):
        disk(path).open()
    live(recorder(disk(path)), ten)
    assert path.read_text() == "dear diary"
    older = before(tmp_path / "jobs.trace")
    older.write_text("mine")
    with pytest.raises(TraceFileError, match=r"jobs.trace.1 is no trace"):
        disk(tmp_path / "jobs.trace").open()
    with pytest.raises(TraceFileError, match="no plain file"):
        disk(Path(os.devnull)).open()


def test_two_daemons_do_not_share_a_file(tmp_path):
    first = disk(tmp_path / "jobs.trace")
    first.open()
    with pytest.raises(TraceFileError, match="another daemon"):
        disk(tmp_path / "jobs.trace").open()
    first.close()


def test_a_place_that_cannot_be_written_ends_nothing(tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    made = live(recorder(disk(blocked / "jobs.trace")), ten)
    assert made.statistics().lost == 10
    assert "trace_failed" in caplog.text
    assert blocked.read_text() == "no folder"


def test_the_configuration_names_it():
    assert Config().trace == TraceConfig(path="")
    config = load_config(
        None, environment={"GRIDNODE_TRACE__PATH": "jobs.trace"}, flags={"trace": {"max_bytes": 1 << 20}}
    )
    assert config.trace == TraceConfig(path="jobs.trace", max_bytes=1 << 20)
    with pytest.raises(ConfigError, match=r"trace.max_bytes.*1048576"):
        load_config(None, environment={}, flags={"trace": {"max_bytes": 5}})
    with pytest.raises(ConfigError, match="did you mean 'path'"):
        load_config(None, environment={}, flags={"trace": {"paht": "x"}})


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ("header", Header),
        ("`model`", ModelRecord),
        ("`node`", NodeRecord),
        ("`job`", JobRecord),
        ("`device`", DeviceRecord),
        ("`device`", Measured),
        ("`device`", Way),
        ("`lost`", LostRecord),
    ],
)
def test_the_format_is_written_down(row, record):
    text = (Path(__file__).parent.parent.parent / "docs" / "traces.md").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {row}")]
    places = [line.find(f"`{field}`", len(row) + 2) for field in record.__struct_fields__]
    assert -1 not in places
    if record is not DeviceRecord:  # its models and ways are told between
        assert places == sorted(places) or record in (Measured, Way)


def test_the_settings_are_written_down():
    text = (Path(__file__).parent.parent.parent / "docs" / "traces.md").read_text()
    assert f"max_bytes = {TraceConfig().max_bytes} " in text
    assert all(f"\n{field} = " in text for field in TraceConfig.__struct_fields__)
