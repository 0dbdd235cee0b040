"""A job leaves in the call that decides it, and its answer is taken in the call that reads it."""

import random
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from gridnode.config import HANDOVER_TIMEOUT_S
from gridnode.driver import Driver
from gridnode.jobtable import JobEntry, JobTable
from gridnode.outbound import Outbound
from gridnode.translate import state_to_wire
from scheduler.actions import Send
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.events import Accepted, Nacked, ReplyReceived, SendFailed
from scheduler.types import Job
from transport.wire import (
    JobAccepted,
    JobCancel,
    JobRefused,
    JobResult,
    JobSend,
    PeerUnreachableError,
    RemoteProtocolError,
    TableRequest,
)

KEY = b"k" * 24


class Line:
    """A connection that takes messages in one way, and on which a test says what comes."""

    peer = "executor"

    def __init__(self, way):
        self.way = way
        self.sent = []
        self.listener = None
        self.is_finished = False
        self.say, self._heard = trio.open_memory_channel(10)

    def send_nowait(self, message, payload=()):
        if self.way == "waits":
            raise trio.WouldBlock
        if self.way == "broken":
            raise PeerUnreachableError("broken")
        self.sent.append(type(message))
        return self.way != "in part"

    async def flush(self):
        await trio.lowlevel.checkpoint()
        self.sent.append("flushed")

    async def send(self, message, payload=()):
        await trio.lowlevel.checkpoint()
        self.sent.append(type(message))

    def listen(self, listener):
        if self.way == "no reader":
            return False
        self.listener = listener
        return True

    async def receive(self):
        return await self._heard.receive(), memoryview(b"")

    def finish(self):
        self.is_finished = True


class Plane:
    """Hands out one connection."""

    def __init__(self, line):
        self.line = line
        self.back = []

    def take(self, peer):
        return self.line

    def give_back(self, exchange):
        self.back.append(exchange.is_finished)

    @asynccontextmanager
    async def exchange(self, peer):
        yield self.line
        self.back.append(self.line.is_finished)


class Program:
    """Takes the answer of the one job."""

    def __init__(self, driver):
        self._driver = driver
        self.answers = []
        self.words = []

    def answer(self, answer, state):
        self.answers.append((answer.body, len(self._driver._inbox)))
        self.words.append("answer")


class Bench:
    """An Outbound with one job, and what it told whom."""

    def __init__(self, way, nursery, *, is_awaited=True):
        self.core = Core(CoreConfig(), node_id="n", epoch=1, rng=random.Random(1), now_s=0.0)
        self.driver = Driver(self.core, clock=trio.current_time)  # it does not run: what is posted stays
        self.line = Line(way)
        self.plane = Plane(self.line)
        self.blamed = []
        self.state = self.core.state_record(0.0)
        job = Job(key=KEY, entry="n", visited=("n",), deadline_s=9.0, models=("m" * 64,), input_bytes=0, arrival_s=0.0)
        self.program = Program(self.driver)
        self.entry = JobEntry(handle=1, job=job, body=b"", payload=(), responder=self.program, is_hasty=True)
        self.outbound = Outbound(
            node="n",
            data=self.plane,
            jobs=JobTable(),
            driver=self.driver,
            nursery=nursery,
            own_state=lambda: self.state,
            on_unreachable=lambda peer: None,
            on_misbehaviour=lambda peer, what: self.blamed.append(peer),
            is_awaited=lambda command: is_awaited and command == 7,
            before_answer=lambda *words: self.program.words.append(words),
        )
        action = Send(reason="", handle=1, peer="executor", command=7, job=job, estimate_s=0.1)
        self.outbound.start(action, self.entry)

    def result(self, key=KEY, **changes):
        fields = {"node": "executor", "hops": 1, "waiting_s": 0.0, "service_s": 0.1}
        state = state_to_wire(self.state)
        return JobResult(key=key, attempt=0, model="m" * 64, body=b"result", state=state, **fields | changes)

    @property
    def posted(self):
        return [type(event) for event, _ in self.driver._inbox]


def with_bench(scenario, way="at once", **options):
    async def main():
        async with trio.open_nursery() as nursery:
            bench = Bench(way, nursery, **options)
            await scenario(bench)
            assert bench.outbound.errands == 0
            assert bench.outbound.covered("executor", [KEY]) == ()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_job_is_sent_and_its_answer_taken_without_a_task():
    async def scenario(bench):
        assert bench.line.sent == [JobSend]
        assert bench.outbound.errands == 1
        assert bench.outbound.covered("executor", [KEY]) == (7,)
        accepted = JobAccepted(key=KEY, attempt=0, covered=(), state=state_to_wire(bench.state))
        bench.line.listener.heard(accepted, memoryview(b""))
        assert bench.plane.back == []
        bench.line.listener.heard(bench.result(), memoryview(b""))
        assert bench.posted == [Accepted, ReplyReceived]
        assert bench.plane.back == [True]

    with_bench(scenario)


@pytest.mark.parametrize("is_awaited", [True, False])
def test_a_program_is_answered_before_the_accounts_if_the_core_waits_for_it(is_awaited):
    async def scenario(bench):
        bench.line.listener.heard(bench.result(), memoryview(b""))
        assert bench.program.answers == ([(b"result", 0)] if is_awaited else [])
        assert bench.entry.is_answered == is_awaited
        assert bench.posted == [ReplyReceived]

    with_bench(scenario, is_awaited=is_awaited)


@pytest.mark.parametrize(
    ("changes", "takes_lanes"),
    [
        ({"takes_lanes": True}, True),
        ({}, False),
        ({"takes_lanes": True, "node": "another"}, False),
        ({"takes_lanes": True, "node": "n"}, False),
    ],
)
def test_who_gives_tickets_hears_of_an_answer_before_the_program_and_a_peer_speaks_for_itself(changes, takes_lanes):
    async def scenario(bench):
        bench.line.listener.heard(bench.result(**changes), memoryview(b"raw"))
        (entry, answer, takes), last = bench.program.words
        assert (entry, takes, last) == (bench.entry, takes_lanes, "answer")
        assert (answer.node, answer.hops, bytes(answer.payload)) == (changes.get("node", "executor"), 1, b"raw")

    with_bench(scenario)


def test_a_program_that_has_its_answer_is_not_answered_again():
    async def scenario(bench):
        bench.entry.is_answered = True
        bench.line.listener.heard(bench.result(), memoryview(b""))
        assert (bench.program.answers, bench.program.words) == ([], [])

    with_bench(scenario)


def test_a_refusal_is_an_outcome():
    async def scenario(bench):
        refused = JobRefused(key=KEY, attempt=0, reason="full", estimate_s=None, state=state_to_wire(bench.state))
        bench.line.listener.heard(refused, memoryview(b""))
        assert bench.posted == [Nacked]
        assert bench.plane.back == [True]

    with_bench(scenario)


@pytest.mark.parametrize("what", ["another key", "another message", "broken record"])
def test_who_breaks_the_protocol_is_blamed_and_its_connection_not_kept(what):
    async def scenario(bench):
        if what == "broken record":
            bench.line.listener.broke(RemoteProtocolError("TLS failed"))
        else:
            message = bench.result(key=b"x" * 24) if what == "another key" else TableRequest()
            bench.line.listener.heard(message, memoryview(b""))
        assert bench.blamed == ["executor"]
        assert bench.posted == [SendFailed]
        assert bench.plane.back == [False]
        bench.line.listener.broke(PeerUnreachableError("closed on this side"))
        assert bench.posted == [SendFailed], "once"

    with_bench(scenario)


def test_a_connection_that_breaks_is_nobodys_fault():
    async def scenario(bench):
        bench.line.listener.broke(PeerUnreachableError("gone"))
        assert bench.blamed == []
        assert bench.posted == [SendFailed]
        assert bench.plane.back == [False]

    with_bench(scenario)


@pytest.mark.parametrize("is_answered", [True, False])
def test_a_cancel_is_told_and_its_answer_awaited_for_a_while(is_answered):
    async def scenario(bench):
        assert bench.outbound.cancel(7)
        assert bench.outbound.cancel(7), "twice is once"
        await trio.testing.wait_all_tasks_blocked()
        assert bench.line.sent == [JobSend, JobCancel]
        if is_answered:
            bench.line.listener.heard(bench.result(), memoryview(b""))
        else:
            await trio.sleep(HANDOVER_TIMEOUT_S - 0.1)
            assert bench.posted == []
            await trio.sleep(0.2)
        assert bench.posted == [ReplyReceived if is_answered else SendFailed]
        assert bench.plane.back == [is_answered]
        assert not bench.outbound.cancel(7)

    with_bench(scenario)


def test_a_cancel_that_meets_the_answer_is_not_sent():
    async def scenario(bench):
        bench.outbound.cancel(7)
        bench.line.listener.heard(bench.result(), memoryview(b""))
        await trio.testing.wait_all_tasks_blocked()
        assert bench.line.sent == [JobSend], "the connection may be another's by now"

    with_bench(scenario)


@pytest.mark.parametrize(
    ("way", "sent"),
    [("in part", [JobSend, "flushed"]), ("no reader", [JobSend]), ("waits", [JobSend]), ("broken", [JobSend])],
)
def test_what_has_to_wait_waits_in_a_task(way, sent):
    async def scenario(bench):
        bench.line.say.send_nowait(bench.result())
        await trio.testing.wait_all_tasks_blocked()
        assert bench.line.sent == sent
        assert bench.posted == [ReplyReceived]
        assert bench.plane.back[-1]

    with_bench(scenario, way)
