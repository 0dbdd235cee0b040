"""Executions that begin and end within a call, with a worker played by the test."""

import random

import pytest
import trio
import trio.testing

from gridnode.driver import Driver
from gridnode.hands import DaemonHands
from gridnode.jobtable import Answer, Failure, JobEntry, JobTable
from gridnode.lanes import LaneDesk
from gridnode.report import Report
from models.executor import RunDeadlineError, RunOutcome, WorkerLostError
from models.tensors import BadInputError, InferenceError
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.events import CancelRequested, JobArrived, ModelChanged
from scheduler.types import Capability, Job

MODEL = "a" * 64
DONE = RunOutcome(body=b"body", payload=bytearray(b"out"), service_s=0.1)


class Worker:
    """An executor with one slot; its runs end when the test says so."""

    def __init__(self):
        self.on_end = None
        self.begun = []
        self.stopped = 0
        self.takes_any = True

    def begin(self, digest, request, on_end):
        if self.on_end is not None or not self.takes_any:
            return None
        self.begun.append(request.body)
        self.on_end = on_end
        return self.stop

    def stop(self):
        self.stopped += 1
        self.on_end = None

    def end(self, outcome):
        on_end, self.on_end = self.on_end, None
        on_end(outcome)

    async def run(self, digest, requests, *, on_started):
        on_started()
        await trio.lowlevel.checkpoint()
        return [DONE] * len(requests)


class Asker:
    """Whoever waits for a job."""

    def __init__(self):
        self.heard = []

    def answer(self, answer, state):
        self.heard.append(answer)

    def fail(self, failure, state, *, estimate_s):
        self.heard.append(failure)


class Desk:
    def __init__(self, nursery, worker):
        self.jobs = JobTable()
        core = Core(CoreConfig(), node_id="n", epoch=1, rng=random.Random(1), now_s=0.0)
        self.driver = Driver(core)
        self.report = Report()
        self.hands = DaemonHands(
            node="n",
            jobs=self.jobs,
            driver=self.driver,
            executor=worker,
            outbound=None,
            inbound=None,
            residents=None,
            mouth=self,
            report=self.report,
            lanes=LaneDesk(
                node="n",
                core=core,
                driver=self.driver,
                executor=worker,
                report=self.report,
                recorder=None,
                default_deadline_s=10.0,
                slots=1,
            ),
            nursery=nursery,
            on_drained=None,
        )

    def advertise(self, action):
        pass

    def submit(self, body):
        """Have a job arrive; returns its handle and who waits for it."""
        asker, handle = Asker(), self.jobs.mint()
        now_s = trio.current_time()
        job = Job(
            key=handle.to_bytes(24, "big"),
            entry="n",
            input_bytes=1,
            arrival_s=now_s,
            deadline_s=now_s + 5.0,
            models=(MODEL,),
        )
        self.jobs.add(JobEntry(handle=handle, job=job, body=body, payload=(b"x",), responder=asker))
        self.driver.post(JobArrived(handle=handle, job=job, origin=None))
        return handle, asker


def at_desk(scenario):
    async def main():
        worker = Worker()
        async with trio.open_nursery() as nursery:
            desk = Desk(nursery, worker)
            nursery.start_soon(desk.driver.run, desk.hands)
            await trio.testing.wait_all_tasks_blocked()
            capability = Capability(model=MODEL, mean_s=0.1, p95_s=0.1, memory_bytes=1, load_s=0.0)
            desk.driver.post(ModelChanged(table_digest=b"t" * 8, capabilities=(capability,), loaded=frozenset([MODEL])))
            await scenario(desk, worker)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_job_begins_in_the_call_in_which_it_arrives_and_is_answered_in_the_call_that_ends_it():
    async def scenario(desk, worker):
        _, first = desk.submit(b"1")
        _, second = desk.submit(b"2")
        assert worker.begun == [b"1"]
        worker.end(DONE)
        [answer] = first.heard
        assert isinstance(answer, Answer)
        assert (answer.body, bytes(answer.payload), answer.service_s, answer.node) == (b"body", b"out", 0.1, "n")
        assert worker.begun == [b"1", b"2"], "the next one needs no task either"
        worker.end(DONE)
        assert len(second.heard) == 1
        assert (len(desk.jobs), desk.report.executed) == (0, 2)

    at_desk(scenario)


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (BadInputError("odd"), "bad_input"),
        (InferenceError("odd"), "model_failed"),
        (RunDeadlineError("odd"), "expired"),
    ],
)
def test_an_error_of_a_run_is_the_end_of_its_job(outcome, reason):
    async def scenario(desk, worker):
        _, asker = desk.submit(b"1")
        desk.driver.now_s = 5.0 if reason == "expired" else 0.0
        worker.end(outcome)
        [failure] = asker.heard
        assert isinstance(failure, Failure)
        assert (failure.reason, failure.message) == (reason, "odd")

    at_desk(scenario)


def test_at_a_jobs_deadline_its_run_is_stopped():
    async def scenario(desk, worker):
        _, asker = desk.submit(b"1")
        await trio.sleep(5.1)
        assert [failure.reason for failure in asker.heard] == ["expired"]
        assert worker.stopped == 1

    at_desk(scenario)


def test_a_cancelled_run_is_stopped_and_makes_room_for_the_next():
    async def scenario(desk, worker):
        handle, asker = desk.submit(b"1")
        desk.submit(b"2")
        desk.driver.post(CancelRequested(handle=handle))
        assert worker.stopped == 1
        assert [failure.reason for failure in asker.heard] == ["cancelled"]
        assert worker.begun == [b"1", b"2"]

    at_desk(scenario)


def test_a_lost_worker_costs_a_retry():
    async def scenario(desk, worker):
        _, asker = desk.submit(b"1")
        worker.end(WorkerLostError("gone"))
        assert (asker.heard, worker.begun) == ([], [b"1", b"1"])
        worker.end(DONE)
        assert len(asker.heard) == 1

    at_desk(scenario)


def test_what_cannot_begin_at_once_gets_a_task():
    async def scenario(desk, worker):
        worker.takes_any = False
        _, asker = desk.submit(b"1")
        assert asker.heard == []
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(asker.heard[0], Answer)
        assert worker.begun == []

    at_desk(scenario)
