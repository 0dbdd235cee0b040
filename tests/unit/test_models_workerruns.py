"""The runs of one worker, without a worker: the test speaks for it."""

import fcntl
import math
import os

import pytest
import trio
import trio.testing

from models.executor import Place, RunDeadlineError, RunOutcome, RunRequest, WorkerLostError
from models.mappings import Loans
from models.segments import Segment
from models.sharedmemory import SharedMemory
from models.tensors import BadInputError, InferenceError
from models.workerprotocol import Done, Failed
from models.workerruns import GRACE_MIN_S, WorkerRuns


class Bench:
    """Runs with two slots, what was told of them, and what was cancelled."""

    def __init__(self):
        self.cancelled = []
        self.told = []
        self.memory = SharedMemory.create(2)
        self.lent, self.returned = [], []
        self.loans = Loans(lend=self.note(self.lent), end=self.note(self.returned))
        self.runs = WorkerRuns("m", 2, self.memory, loans=self.loans, cancel=self.cancelled.append)
        self.runs.free_all()

    def note(self, numbers):
        def take(what):
            numbers.append(getattr(what, "number", what))
            return True

        return take

    def open(self, payload=b"abc", *, deadline_s=math.inf, send=True):
        slot = self.runs.take_nowait()
        assert slot is not None
        request = RunRequest(body=b"", payload=payload, deadline_s=deadline_s)
        run = self.runs.open(slot, request, on_end=self.told.append)
        self.runs.fill(run)
        if send:
            self.runs.sent(run, now_s=trio.current_time())
        return run

    def done(self, run, output=b"xyz"):
        self.memory.output(run.slot)[: len(output)] = output
        return Done(run=run.number, body=b"body", payload_bytes=len(output), service_s=0.1)


def on_bench(test):
    def wrapped():
        async def main():
            bench = Bench()
            async with trio.open_nursery() as nursery:
                await test(bench, nursery)
                nursery.cancel_scope.cancel()
            bench.runs.close(WorkerLostError("gone"))

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))

    wrapped.__name__ = test.__name__
    return wrapped


@on_bench
async def test_an_answer_is_told_at_once_and_frees_the_slot(bench, nursery):
    run = bench.open(b"abc")
    assert bytes(bench.memory.input(run.slot)[:3]) == b"abc"
    assert bench.runs.take_answer(bench.done(run))
    [outcome] = bench.told
    assert isinstance(outcome, RunOutcome)
    assert (outcome.body, bytes(outcome.payload), outcome.service_s) == (b"body", b"xyz", 0.1)
    assert (bench.runs.running, bench.runs.done) == (0, 1)
    assert {bench.runs.take_nowait(), bench.runs.take_nowait(), bench.runs.take_nowait()} == {0, 1, None}


@pytest.mark.parametrize(("kind", "error"), [("input", BadInputError), ("model", InferenceError)])
def test_a_failure_names_whose_fault_it_is(kind, error):
    @on_bench
    async def test(bench, nursery):
        run = bench.open()
        assert bench.runs.take_answer(Failed(run=run.number, kind=kind, reason="why", service_s=0.0))
        assert type(bench.told[0]) is error
        assert bench.runs.errors == 1

    test()


@on_bench
async def test_answers_that_make_no_sense_are_refused(bench, nursery):
    run = bench.open(send=False)
    assert not bench.runs.take_answer(bench.done(run)), "it was not sent"
    bench.runs.sent(run, now_s=trio.current_time())
    too_large = Done(run=run.number, body=b"", payload_bytes=bench.memory.region_bytes + 1, service_s=0.0)
    assert not bench.runs.take_answer(too_large)
    assert bench.runs.take_answer(bench.done(run))
    assert not bench.runs.take_answer(bench.done(run)), "it was answered"
    assert len(bench.told) == 1


@on_bench
async def test_a_deadline_ends_a_run_and_its_slot_stays_the_workers_until_it_answers(bench, nursery):
    nursery.start_soon(bench.runs.keep_time)
    await trio.testing.wait_all_tasks_blocked()
    run = bench.open(deadline_s=trio.current_time() + 1.0)
    other = bench.open(deadline_s=trio.current_time() + 5.0)
    await trio.sleep(1.1)
    assert [type(outcome) for outcome in bench.told] == [RunDeadlineError]
    assert bench.cancelled == [run.number]
    assert (bench.runs.running, bench.runs.terminated, bench.runs.take_nowait()) == (2, 1, None)
    assert bench.runs.take_answer(bench.done(run))
    assert (len(bench.told), bench.runs.running, bench.runs.take_nowait()) == (1, 1, run.slot)
    assert bench.runs.take_answer(bench.done(other))
    assert isinstance(bench.told[1], RunOutcome)


@on_bench
async def test_time_is_kept_only_until_an_abandoned_run_is_beyond_its_grace(bench, nursery):
    run = bench.open()
    bench.runs.abandon(run)
    began_s = trio.current_time()
    await bench.runs.keep_time()
    assert trio.current_time() - began_s == pytest.approx(GRACE_MIN_S)
    assert bench.told == [], "who abandons a run is not told of it"


@on_bench
async def test_a_run_in_the_hands_of_a_thread_keeps_its_slot_and_costs_the_worker_nothing(bench, nursery):
    nursery.start_soon(bench.runs.keep_time)
    run = bench.open(deadline_s=trio.current_time() + 1.0, send=False)
    run.is_copying = True
    await trio.sleep(100.0)
    assert [type(outcome) for outcome in bench.told] == [RunDeadlineError]
    assert (bench.cancelled, bench.runs.running) == ([], 1)
    bench.runs.copied(run)
    assert (bench.runs.running, run.has_ended) == (0, True)


@on_bench
async def test_slots_go_to_those_who_wait_in_turn_and_nobody_overtakes_them(bench, nursery):
    first, second = bench.open(), bench.open()
    got = []

    async def wait(name):
        got.append((name, await bench.runs.take()))

    nursery.start_soon(wait, "a")
    await trio.testing.wait_all_tasks_blocked()
    nursery.start_soon(wait, "b")
    await trio.testing.wait_all_tasks_blocked()
    assert bench.runs.waiting == 2
    bench.runs.take_answer(bench.done(second))
    assert bench.runs.take_nowait() is None
    bench.runs.take_answer(bench.done(first))
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(got) == [("a", second.slot), ("b", first.slot)]


@on_bench
async def test_a_lost_worker_ends_all_runs_and_lets_those_go_who_wait(bench, nursery):
    run, abandoned = bench.open(), bench.open()
    bench.runs.abandon(abandoned)
    got = []

    async def wait():
        got.append(await bench.runs.take())

    nursery.start_soon(wait)
    await trio.testing.wait_all_tasks_blocked()
    bench.runs.close(WorkerLostError("gone"))
    await trio.testing.wait_all_tasks_blocked()
    assert [str(outcome) for outcome in bench.told] == ["gone"]
    assert (got, bench.runs.take_nowait(), run.has_ended) == ([None], None, True)


@on_bench
async def test_memory_is_let_go_of_once_no_thread_writes_to_it(bench, nursery):
    run = bench.open(send=False)
    run.is_copying = True
    bench.runs.close(WorkerLostError("gone"))
    assert bench.memory.input(run.slot)[0] == ord("a")
    bench.runs.copied(run)
    with pytest.raises(ValueError, match="released"):
        bench.memory.input(run.slot)


@on_bench
async def test_a_payload_in_lent_memory_is_given_back_with_the_slot_and_copied_where_it_cannot_be_mapped(
    bench, nursery
):
    descriptor = os.memfd_create("program", os.MFD_ALLOW_SEALING)
    os.pwrite(descriptor, b"payload", 64)
    os.ftruncate(descriptor, 4096)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    segment = Segment(descriptor, 4096)
    request = RunRequest(body=b"", payload=segment.piece(64, 7), deadline_s=math.inf, place=Place(segment, 64))

    def begin():
        run = bench.runs.open(bench.runs.take_nowait(), request, on_end=bench.told.append)
        lent = bench.runs.lend(run)
        bench.runs.sent(run, now_s=trio.current_time())
        return run, lent

    run, lent = begin()
    assert (lent, run.segment, bench.lent) == (True, segment.number, [segment.number])
    bench.loans.forget(segment.number)
    assert bench.returned == []
    assert bench.runs.take_answer(bench.done(run))
    assert bench.returned == [segment.number]

    run, lent = begin()
    assert lent
    assert bench.runs.reclaim(run.number + 1) is None
    assert bench.runs.reclaim(run.number) is run
    assert bench.runs.reclaim(run.number) is None, "it is not lent any more"
    bench.runs.fill(run)
    assert bytes(bench.memory.input(run.slot)[:7]) == b"payload"
    assert bench.runs.take_answer(bench.done(run))
    assert bench.returned == [segment.number] * 2
    run, lent = begin()
    assert not lent
    segment.close()
