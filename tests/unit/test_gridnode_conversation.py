"""An executor answers in the call that makes the answer, and leaves what comes next to the next exchange."""

import random

import msgspec
import pytest
import trio
import trio.testing

from gridnode.conversation import Conversation
from gridnode.driver import Driver
from gridnode.jobtable import Answer, Failure, JobTable
from gridnode.lanes import SERVICE_MAX_S
from gridnode.modelmemory import ModelMemory
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.types import Reason
from transport.wire import JobCancel, JobFailed, JobHeader, PeerUnreachableError, RemoteProtocolError, TableRequest


class Line:
    """A connection that takes messages in one way, and on which a test says what comes."""

    peer = "asker"

    def __init__(self, way="at once"):
        self.way = way
        self.sent = []
        self.unread_frames = []
        self.finished = 0
        self.rooms = []
        self.say, self._heard = trio.open_memory_channel(10)

    def send_nowait(self, message, payload=()):
        if self.way == "broken":
            raise PeerUnreachableError("broken")
        if self.way == "waits":
            raise trio.WouldBlock
        self.sent.append(type(message))
        self.last = message
        return self.way == "at once"

    async def flush(self):
        await trio.lowlevel.checkpoint()
        self.sent.append("flushed")

    async def send(self, message, payload=()):
        await trio.lowlevel.checkpoint()
        self.sent.append(type(message))

    def take_room(self):
        return self.rooms.pop() if self.rooms else None

    async def receive(self):
        try:
            return await self._heard.receive(), memoryview(b"")
        except trio.EndOfChannel:
            raise PeerUnreachableError("closed") from None

    def unread(self, message, payload):
        self.unread_frames.append(message)

    def finish(self):
        self.finished += 1


def key(number):
    return number.to_bytes(24, "big")


def header(number):
    return JobHeader(key=key(number), entry="asker", hops=1, budget_s=5.0, models=("0" * 64,), input_bytes=0, body=b"")


def run_talk(scenario, way="at once", jobs_open=2, **options):
    """Run a scenario beside a conversation about some jobs; it is given the line, the table and how to end a job."""

    async def main():
        core = Core(CoreConfig(), node_id="n", epoch=1, rng=random.Random(1), now_s=0.0)
        table, line = JobTable(), Line(way)
        async with trio.open_nursery() as nursery:
            talk = Conversation(
                line, jobs=table, driver=Driver(core, clock=trio.current_time), node="n", nursery=nursery, **options
            )
            for number in range(1, jobs_open + 1):
                talk.admit(header(number), b"")

            def end(handle, result=None):
                if result is not None:
                    table.get(handle).responder.answer(result, core.state_record(now_s=trio.current_time()))
                    return
                failure = Failure(reason=Reason.MODEL_FAILED.value, message="")
                entry = table.get(handle)
                entry.responder.fail(failure, core.state_record(now_s=trio.current_time()), estimate_s=None)

            nursery.start_soon(talk.run)
            await trio.testing.wait_all_tasks_blocked()
            await scenario(line, end, talk)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    ("way", "sent"),
    [
        ("waits", ["flushed", JobFailed, JobFailed]),
        ("at once", [JobFailed, JobFailed]),
        ("in part", [JobFailed, "flushed", JobFailed]),
    ],
)
def test_answers_leave_in_order_however_the_connection_takes_them(way, sent):
    async def scenario(line, end, talk):
        end(1)
        assert not line.finished
        end(2)
        assert line.finished == (way == "at once")
        await trio.testing.wait_all_tasks_blocked()
        assert line.sent == sent
        assert line.finished
        assert talk.is_over
        line.say.send_nowait(TableRequest())
        await trio.testing.wait_all_tasks_blocked()
        assert [type(message) for message in line.unread_frames] == [TableRequest], "that is the next exchange's"

    run_talk(scenario, way)


@pytest.mark.parametrize(
    ("service_s", "takes", "said"),
    [(SERVICE_MAX_S, True, True), (SERVICE_MAX_S, False, False), (SERVICE_MAX_S * 1.01, True, False)],
)
def test_a_result_says_whether_runs_like_it_would_be_taken_by_a_lane(service_s, takes, said):
    asked = []

    async def scenario(line, end, talk):
        answer = Answer(model="a" * 64, node="n", hops=1, waiting_s=0.0, service_s=service_s, body=b"", payload=b"")
        end(1, answer)
        assert line.last.takes_lanes is said
        assert set(asked) <= {"a" * 64}
        end(2)
        line.say.close()

    run_talk(scenario, takes_lanes=lambda model: asked.append(model) or takes)


def test_a_result_says_nothing_of_lanes_where_nobody_knows():
    async def scenario(line, end, talk):
        end(1, Answer(model="a" * 64, node="n", hops=1, waiting_s=0.0, service_s=0.0, body=b"", payload=b""))
        assert not line.last.takes_lanes
        end(2)
        line.say.close()

    run_talk(scenario)


def test_a_cancel_that_crossed_the_last_answer_is_left_to_the_next_exchange():
    async def scenario(line, end, talk):
        end(1)
        line.say.send_nowait(JobCancel(key=key(1)))
        line.say.send_nowait(JobCancel(key=key(2)))
        await trio.testing.wait_all_tasks_blocked()
        assert line.unread_frames == []
        end(2)
        line.say.send_nowait(JobCancel(key=key(2)))
        await trio.testing.wait_all_tasks_blocked()
        assert line.unread_frames == [JobCancel(key=key(2))]

    run_talk(scenario)


def test_a_connection_that_ends_after_the_last_answer_is_no_loss():
    async def scenario(line, end, talk):
        end(1)
        end(2)
        line.say.close()

    run_talk(scenario)


def test_a_connection_that_ends_before_is_a_loss():
    async def scenario(line, end, talk):
        end(1)
        line.say.close()

    with pytest.raises(ExceptionGroup) as caught:
        run_talk(scenario)
    assert caught.group_contains(PeerUnreachableError)


def test_anything_but_a_cancel_while_a_job_is_served_breaks_the_protocol():
    async def scenario(line, end, talk):
        line.say.send_nowait(TableRequest())

    with pytest.raises(ExceptionGroup) as caught:
        run_talk(scenario)
    assert caught.group_contains(RemoteProtocolError, match="TableRequest")


def test_an_answer_to_a_connection_that_broke_is_dropped():
    async def scenario(line, end, talk):
        end(1)
        end(2)
        assert talk.is_over
        line.say.close()

    run_talk(scenario, "broken")


@pytest.mark.parametrize("models", [1, 2])
def test_a_payload_is_read_in_place_by_its_own_models_worker_alone_and_let_go_at_the_end(models):
    async def main():
        core = Core(CoreConfig(), node_id="n", epoch=1, rng=random.Random(1), now_s=0.0)
        table, line = JobTable(), Line()
        memory = ModelMemory(lambda segment: segment.close())
        loan = memory.take("m", 5000)
        line.rooms.append(loan)
        async with trio.open_nursery() as nursery:
            talk = Conversation(
                line, jobs=table, driver=Driver(core, clock=trio.current_time), node="n", nursery=nursery
            )
            wanted = tuple(str(number) * 64 for number in range(models))
            talk.admit(msgspec.structs.replace(header(1), models=wanted, input_bytes=5000), loan.view)
            assert table.get(1).place == (loan.place if models == 1 else None)
            nursery.start_soon(talk.run)
            await trio.testing.wait_all_tasks_blocked()
            other = memory.take("m", 5000)
            assert other.place.offset != loan.place.offset
            table.get(1).responder.fail(
                Failure(reason=Reason.MODEL_FAILED.value, message=""), core.state_record(now_s=0.0), estimate_s=None
            )
            assert memory.take("m", 5000).place.offset == loan.place.offset, "its room is free again"
            line.say.close()
        memory.close()

    trio.run(main)
