"""What peers send by lanes: a real core, driver and desk, with a worker and peers played by the test."""

import random

import msgspec
import pytest
import trio
import trio.testing

from gridnode.driver import Driver
from gridnode.hands import DaemonHands
from gridnode.jobtable import JobEntry, JobTable
from gridnode.laneruns import RUN_MAX_S, LaneRuns
from gridnode.lanes import SERVICE_MAX_S, LaneDesk
from gridnode.modelmemory import ModelMemory
from gridnode.report import Report
from models.executor import RunDeadlineError, RunOutcome, WorkerLostError
from models.tensors import BadInputError, InferenceError
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.events import DrainRequested, JobArrived, ModelChanged, OfferReceived
from scheduler.types import Capability, Job
from transport.wire import (
    PAYLOAD_MAX_BYTES,
    JobCancel,
    LaneDone,
    LanePassed,
    LaneRun,
    PeerUnreachableError,
    RemoteProtocolError,
    TableRequest,
)

MODEL, SLOW, COLD = "a" * 64, "b" * 64, "c" * 64


def key(number):
    return number.to_bytes(24, "big")


def run(number=1, *, model=MODEL, budget_s=5.0):
    return LaneRun(key=key(number), model=model, budget_s=budget_s, body=b"body")


def done(number=1, *, service_s=0.001):
    return LaneDone(key=key(number), service_s=service_s, body=b"result")


def passed(number=1, *, is_unfit=False):
    return LanePassed(key=key(number), is_unfit=is_unfit)


class Line:
    """A connection of a peer's; the test says what comes on it."""

    def __init__(self, peer="asker", way="at once"):
        self.peer = peer
        self.way = way
        self.sent = []
        self.unread_frames = []
        self.finished = 0
        self.rooms = []
        self.may_leave = trio.Event()
        self.fault = None
        self.say, self._heard = trio.open_memory_channel(10)

    def send_nowait(self, message, payload=()):
        assert self.finished, "the peer may begin another exchange as soon as it has its answer"
        if self.way == "broken":
            raise PeerUnreachableError("broken")
        if self.way == "waits":
            raise trio.WouldBlock
        self.sent.append((message, b"".join(payload)))
        return self.way == "at once"

    async def flush(self):
        await self.may_leave.wait()
        if self.fault is not None:
            raise self.fault

    def take_room(self):
        return self.rooms.pop() if self.rooms else None

    async def receive(self):
        try:
            return await self._heard.receive()
        except trio.EndOfChannel:
            raise PeerUnreachableError("closed") from None

    def unread(self, message, payload):
        self.unread_frames.append(message)

    def finish(self):
        self.finished += 1

    @property
    def answers(self):
        return [message for message, _ in self.sent]


class Worker:
    """An executor whose runs end when the test says so."""

    def __init__(self):
        self.runs = []
        self.stopped = 0
        self.is_free = True

    def begin(self, digest, request, on_end):
        if not self.is_free:
            return None
        self.runs.append((digest, request, on_end))
        return lambda: self._stop(on_end)

    def _stop(self, on_end):
        self.runs = [run for run in self.runs if run[2] is not on_end]
        self.stopped += 1

    def end(self, outcome=None):
        outcome = outcome or RunOutcome(body=b"result", payload=bytearray(b"raw"), service_s=0.001)
        self.runs.pop(0)[2](outcome)


class Room:
    """Memory that a payload was received in."""

    def __init__(self):
        self.released = 0

    def release(self):
        self.released += 1


class Samples:
    """Takes note of service times, as a recorder."""

    def __init__(self):
        self.executions = []

    def executed(self, model, service_s):
        self.executions.append((model, service_s))


class Bench:
    def __init__(self, nursery, *, recorder=None, **config):
        self.nursery = nursery
        self.report, self.worker, self.jobs = Report(), Worker(), JobTable()
        self.core = Core(msgspec.convert(config, CoreConfig), node_id="n", epoch=1, rng=random.Random(1), now_s=0.0)
        self.driver = Driver(self.core)
        self.desk = LaneDesk(
            node="n",
            core=self.core,
            driver=self.driver,
            executor=self.worker,
            report=self.report,
            recorder=None,
            default_deadline_s=10.0,
            slots=1,
        )
        self.runs = LaneRuns(
            core=self.core,
            driver=self.driver,
            executor=self.worker,
            desk=self.desk,
            report=self.report,
            recorder=recorder,
            nursery=nursery,
        )
        self.over = []
        self.runs.on_over = lambda: self.over.append(self.runs.is_silent)
        self.hands = DaemonHands(
            node="n",
            jobs=self.jobs,
            driver=self.driver,
            executor=self.worker,
            outbound=None,
            inbound=self,
            residents=None,
            mouth=self,
            report=self.report,
            lanes=self.desk,
            nursery=nursery,
            on_drained=lambda: None,
        )

    def advertise(self, action):
        """Serve as the hands' mouth."""

    def rule(self, action):
        """Serve as the hands' inbound."""

    def submit(self):
        """Have a job of this node's own run."""
        handle, now_s = self.jobs.mint(), trio.current_time()
        job = Job(
            key=key(1000 + handle), entry="n", input_bytes=1, arrival_s=now_s, deadline_s=now_s + 5.0, models=(MODEL,)
        )
        self.jobs.add(
            JobEntry(handle=handle, job=job, body=b"", payload=(b"x",), responder=self, is_hasty=True, lane=None)
        )
        self.driver.post(JobArrived(handle=handle, job=job, origin=None))

    def answer(self, answer, state):
        """Serve as whoever waits for a job."""

    async def serve(self, line, message, payload=b"", *, faults=None):
        """Serve a connection in a task; returns when nothing more happens."""

        async def task():
            try:
                await self.runs.serve(line, message, memoryview(payload))
            except (PeerUnreachableError, RemoteProtocolError) as error:
                if faults is None:
                    raise
                faults.append(error)

        self.nursery.start_soon(task)
        await trio.testing.wait_all_tasks_blocked()

    async def say(self, line, message, payload=b""):
        line.say.send_nowait((message, memoryview(payload)))
        await trio.testing.wait_all_tasks_blocked()


def at_bench(scenario, **options):
    async def main():
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery, **options)
            nursery.start_soon(bench.driver.run, bench.hands)
            await trio.testing.wait_all_tasks_blocked()
            entries = [
                Capability(model=model, mean_s=mean_s, p95_s=mean_s, memory_bytes=1, load_s=0.0)
                for model, mean_s in ((MODEL, SERVICE_MAX_S), (SLOW, SERVICE_MAX_S * 1.01), (COLD, 0.001))
            ]
            loaded = frozenset([MODEL, SLOW])
            bench.driver.post(ModelChanged(table_digest=b"t" * 8, capabilities=tuple(entries), loaded=loaded))
            await scenario(bench)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# ---------------------------------------------------------------- what is run


def test_a_run_that_would_begin_at_once_does_and_is_answered_in_the_call_that_ends_it():
    async def scenario(bench):
        await trio.sleep(3.0)
        line = Line()
        await bench.serve(line, run(budget_s=0.5), b"payload")
        [(digest, request, _)] = bench.worker.runs
        assert (digest, request.body, bytes(request.payload), request.place) == (MODEL, b"body", b"payload", None)
        assert request.deadline_s == pytest.approx(3.5)
        assert (line.sent, bench.runs.is_silent) == ([], False)
        bench.worker.end()
        assert line.sent == [(done(), b"raw")]
        assert line.finished
        assert bench.runs.is_silent
        assert bench.over == [True]

    at_bench(scenario)


def test_one_run_follows_another_on_a_connection():
    async def scenario(bench):
        line = Line()
        await bench.serve(line, run(1))
        for number in (2, 3):
            bench.worker.end()
            await bench.say(line, run(number))
        bench.worker.end(RunOutcome(body=b"result", payload=bytearray(), service_s=0.001))
        assert line.sent == [(done(1), b"raw"), (done(2), b"raw"), (done(3), b"")]

    at_bench(scenario)


def test_a_run_has_no_longer_than_any_short_one_needs():
    async def scenario(bench):
        await bench.serve(Line(), run(budget_s=1e6))
        assert bench.worker.runs[0][1].deadline_s == pytest.approx(trio.current_time() + RUN_MAX_S)

    at_bench(scenario)


def test_runs_of_a_peer_are_counted_and_can_be_explained():
    samples = Samples()

    async def scenario(bench):
        line = Line()
        await bench.serve(line, run(7))
        bench.worker.end(RunOutcome(body=b"", payload=bytearray(), service_s=0.25))
        seen, report = bench.core.statistics(), bench.report.snapshot()
        assert (seen.jobs_received, seen.jobs_executed, seen.replies) == (1, 1, 1)
        assert (seen.jobs_arrived, seen.jobs_offloaded) == (0, 0)
        assert (report.executed, report.by_lane, report.offloaded, report.p50_s) == (1, 1, 0, 0.25)
        [decision] = bench.core.decisions()
        assert (decision.key, decision.chosen, decision.model) == (key(7), "n", MODEL)
        assert decision.reason == "by a peer's lane"
        assert samples.executions == [(MODEL, 0.25)]

    at_bench(scenario, recorder=samples)


def test_a_run_takes_the_tickets_of_programs_here_back():
    async def scenario(bench):
        told = []
        bench.desk.begun = told.append
        line = Line()
        await bench.serve(line, run(model=SLOW))
        assert told == []
        await bench.say(line, run(2))
        assert told == [None]

    at_bench(scenario)


# ---------------------------------------------------------------- what is passed


@pytest.mark.parametrize("model", [SLOW, COLD, "d" * 64])
def test_other_models_than_short_ones_that_are_loaded_are_passed(model):
    async def scenario(bench):
        assert not bench.runs.takes(model)
        assert bench.runs.takes(MODEL)
        line = Line()
        await bench.serve(line, run(model=model))
        assert line.sent == [(passed(), b"")]
        assert bench.worker.runs == []
        await bench.say(line, run(2))
        assert len(bench.worker.runs) == 1

    at_bench(scenario)


def test_a_node_with_a_job_of_its_own_passes():
    async def scenario(bench):
        bench.submit()
        line = Line()
        await bench.serve(line, run(1))
        assert line.answers == [passed(1)]
        bench.worker.end()
        await bench.say(line, run(2))
        bench.worker.end()
        assert line.answers == [passed(1), done(2)]

    at_bench(scenario)


def test_a_node_that_keeps_room_for_a_peers_job_passes():
    async def scenario(bench):
        job = Job(key=key(5), entry="o", hops=1, input_bytes=1, arrival_s=0.0, deadline_s=9.0, models=(MODEL,))
        bench.driver.post(OfferReceived(offer=1, peer="o", job=job, state=None, sender_estimate_s=None))
        line = Line()
        await bench.serve(line, run())
        assert line.answers == [passed()]

    at_bench(scenario)


def test_a_draining_node_passes():
    async def scenario(bench):
        bench.driver.post(DrainRequested())
        line = Line()
        await bench.serve(line, run())
        assert line.answers == [passed()]

    at_bench(scenario)


def test_a_policy_that_moves_jobs_without_a_gain_passes():
    async def scenario(bench):
        line = Line()
        await bench.serve(line, run())
        assert line.answers == [passed()]

    at_bench(scenario, placement={"policy": "max_spare"})


def test_without_a_free_worker_a_run_is_passed():
    async def scenario(bench):
        bench.worker.is_free = False
        line = Line()
        await bench.serve(line, run())
        assert line.answers == [passed()]
        assert bench.runs.is_silent

    at_bench(scenario)


def test_one_run_is_under_way_whoever_asks():
    async def scenario(bench):
        first, second = Line("one"), Line("two")
        await bench.serve(first, run(1))
        await bench.serve(second, run(2))
        assert second.answers == [passed(2)]
        bench.worker.end()
        assert first.answers == [done(1)]
        await bench.say(second, run(3))
        bench.worker.end()
        assert second.answers == [passed(2), done(3)]

    at_bench(scenario)


@pytest.mark.parametrize(
    ("outcome", "is_unfit"),
    [
        (WorkerLostError("gone"), False),
        (BadInputError("shape"), True),
        (InferenceError("operator"), True),
        (RunDeadlineError("late"), True),
        (RunOutcome(body=b"", payload=bytearray(PAYLOAD_MAX_BYTES + 1), service_s=0.1), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_fails_is_passed_and_nothing_else_told_of_it(outcome, is_unfit):
    async def scenario(bench):
        line = Line()
        await bench.serve(line, run())
        bench.worker.end(outcome)
        assert line.sent == [(passed(is_unfit=is_unfit), b"")]
        assert bench.core.statistics().jobs_received == bench.report.by_lane == 0
        assert bench.over == [True]
        await bench.say(line, run(2))
        bench.worker.end()
        assert line.answers[1:] == [done(2)]

    at_bench(scenario)


def test_outputs_as_large_as_any_are_sent():
    async def scenario(bench):
        line = Line()
        await bench.serve(line, run())
        bench.worker.end(RunOutcome(body=b"result", payload=bytearray(PAYLOAD_MAX_BYTES), service_s=0.001))
        assert line.answers == [done()]

    at_bench(scenario)


# ---------------------------------------------------------------- where payloads lie


@pytest.mark.parametrize("ends", ["done", "failed", "passed", "lost", "connection"])
def test_a_payloads_room_is_given_back_once_with_the_run(ends):
    async def scenario(bench):
        line, room = Line(), Room()
        line.rooms.append(room)
        if ends == "passed":
            bench.worker.is_free = False
        await bench.serve(line, run(), faults=[])
        assert room.released == (ends == "passed")
        if ends == "done":
            bench.worker.end()
        elif ends == "failed":
            bench.worker.end(BadInputError(""))
        elif ends == "lost":
            bench.worker.end(WorkerLostError(""))
        line.say.close()
        await trio.testing.wait_all_tasks_blocked()
        assert room.released == 1

    at_bench(scenario)


def test_a_payload_is_read_where_it_was_received():
    async def scenario(bench):
        memory = ModelMemory(lambda segment: segment.close())
        loan, line = memory.take(MODEL, 5000), Line()
        line.rooms.append(loan)
        await bench.serve(line, run(), loan.view)
        assert bench.worker.runs[0][1].place == loan.place
        bench.worker.runs[0][1].payload.release()
        bench.worker.end()
        assert memory.take(MODEL, 5000).place.offset == loan.place.offset
        memory.close()

    at_bench(scenario)


# ---------------------------------------------------------------- a peer that does not ask as it should


@pytest.mark.parametrize(
    "message", [run(2), TableRequest(), JobCancel(key=key(1))], ids=lambda word: type(word).__name__
)
@pytest.mark.parametrize("when", ["run", "answer"])
def test_a_peer_that_does_not_wait_for_its_answer_breaks_the_protocol(message, when):
    async def scenario(bench):
        line, faults = Line(way="in part"), []
        await bench.serve(line, run(1), faults=faults)
        if when == "answer":
            bench.worker.end()
            assert not bench.runs.is_silent
        await bench.say(line, message)
        assert [type(fault) for fault in faults] == [RemoteProtocolError]
        assert line.unread_frames == []
        assert bench.worker.stopped == (when == "run")
        line.may_leave.set()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.runs.is_silent
        assert bench.over[-1]

    at_bench(scenario)


def test_anything_else_after_the_answer_is_left_to_the_next_exchange():
    async def scenario(bench):
        line, faults = Line(), []
        await bench.serve(line, run(1), faults=faults)
        bench.worker.end()
        await bench.say(line, TableRequest())
        assert (line.unread_frames, faults) == ([TableRequest()], [])
        await bench.serve(line, run(model=COLD), faults=faults)
        await bench.say(line, JobCancel(key=key(1)))
        assert (line.unread_frames[1:], faults) == ([JobCancel(key=key(1))], [])

    at_bench(scenario)


def test_a_connection_that_ends_after_the_answer_is_no_fault():
    async def scenario(bench):
        line, faults = Line(), []
        await bench.serve(line, run(), faults=faults)
        bench.worker.end()
        line.say.close()
        await trio.testing.wait_all_tasks_blocked()
        assert faults == []
        assert line.unread_frames == []

    at_bench(scenario)


def test_a_connection_that_ends_under_a_run_terminates_it_and_it_does_not_count():
    async def scenario(bench):
        line, faults = Line(), []
        await bench.serve(line, run(), faults=faults)
        line.say.close()
        await trio.testing.wait_all_tasks_blocked()
        assert [type(fault) for fault in faults] == [PeerUnreachableError]
        assert (bench.worker.stopped, bench.worker.runs) == (1, [])
        assert bench.over == [True]
        assert bench.core.statistics().jobs_received == bench.report.by_lane == 0
        other = Line("other")
        await bench.serve(other, run(2))
        bench.worker.end()
        assert other.answers == [done(2)]

    at_bench(scenario)


def test_another_connections_end_leaves_a_run_alone():
    async def scenario(bench):
        line, other, faults = Line(), Line("other"), []
        await bench.serve(line, run())
        await bench.serve(other, run(2), faults=faults)
        other.say.close()
        await trio.testing.wait_all_tasks_blocked()
        assert (bench.worker.stopped, faults) == (0, [])
        bench.worker.end()
        assert line.answers == [done()]

    at_bench(scenario)


@pytest.mark.parametrize("way", ["broken", "waits"])
def test_an_answer_that_cannot_be_sent_is_dropped(way):
    async def scenario(bench):
        line = Line(way=way)
        await bench.serve(line, run())
        bench.worker.end()
        assert line.sent == []
        assert bench.runs.is_silent

    at_bench(scenario)


def test_a_flood_of_runs_is_passed_one_by_one():
    async def scenario(bench):
        line = Line()
        bench.submit()
        await bench.serve(line, run(0))
        for number in range(1, 200):
            await bench.say(line, run(number))
        assert line.answers == [passed(number) for number in range(200)]
        assert bench.runs.is_silent

    at_bench(scenario)


# ---------------------------------------------------------------- answers that do not leave at once


@pytest.mark.parametrize("is_run", [True, False])
@pytest.mark.parametrize("fault", [None, PeerUnreachableError("does not read")])
def test_a_long_answer_is_sent_by_and_by_and_awaited_by_a_drain(is_run, fault):
    async def scenario(bench):
        line, faults = Line(way="in part"), []
        line.fault = fault
        await bench.serve(line, run(model=MODEL if is_run else COLD), faults=faults)
        if is_run:
            bench.worker.end()
        await trio.testing.wait_all_tasks_blocked()
        assert not bench.runs.is_silent
        assert not any(bench.over)
        line.may_leave.set()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.runs.is_silent
        assert bench.over[-1]
        assert faults == []
        if fault is None:
            await bench.say(line, run(2))
            assert len(bench.worker.runs) == 1

    at_bench(scenario)


def test_an_answer_after_the_nodes_end_needs_no_task():
    async def main():
        line = Line(way="in part")
        async with trio.open_nursery() as around:
            async with trio.open_nursery() as nursery:
                bench = Bench(nursery)
                bench.nursery = around
                bench.core.handle(
                    ModelChanged(
                        table_digest=b"t" * 8,
                        capabilities=(Capability(model=MODEL, mean_s=0.001, p95_s=0.001, memory_bytes=1, load_s=0.0),),
                        loaded=frozenset([MODEL]),
                    ),
                    now_s=trio.current_time(),
                )
                await bench.serve(line, run(1))
                nursery.cancel_scope.cancel()
            bench.worker.end()
            assert line.answers == [done(1)]
            await bench.say(line, run(2, model=COLD))
            assert line.answers[1:] == [passed(2)]
            around.cancel_scope.cancel()

    trio.run(main)


def test_serving_that_is_cancelled_leaves_nothing():
    async def scenario(bench):
        line, room = Line(), Room()
        line.rooms.append(room)
        with trio.move_on_after(1.0):
            await bench.runs.serve(line, run(), memoryview(b""))
        assert (bench.worker.stopped, room.released) == (1, 1)
        assert bench.runs.is_silent

    at_bench(scenario)


def test_sending_that_is_cancelled_is_over():
    async def main():
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery)
            await bench.serve(Line(way="in part"), run())
            assert not bench.runs.is_silent
            nursery.cancel_scope.cancel()
        assert bench.runs.is_silent
        assert bench.over == [True]

    trio.run(main)
