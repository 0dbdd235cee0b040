"""An executor stops listening to a connection before it sends the last answer: what comes next is another exchange."""

import random

import pytest
import trio
import trio.testing

from gridnode.conversation import Conversation
from gridnode.driver import Driver
from gridnode.jobtable import Failure, JobTable
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.types import Reason
from transport.wire import JobFailed, JobHeader


class Line:
    """A connection on which nothing comes; it notes whether somebody listens while a message leaves."""

    peer = "asker"

    def __init__(self, way):
        self.way = way
        self.is_listened_to = False
        self.sent = []

    def send_nowait(self, message, payload=()):
        if self.way == "waits":
            raise trio.WouldBlock
        self.sent.append((type(message), "in the call"))
        return self.way == "at once"

    async def flush(self):
        self.sent.append(("rest", self.is_listened_to))
        await trio.lowlevel.checkpoint()

    async def receive(self):
        self.is_listened_to = True
        try:
            await trio.sleep_forever()
        finally:
            self.is_listened_to = False

    async def send(self, message, payload=()):
        self.sent.append((type(message), self.is_listened_to))
        await trio.lowlevel.checkpoint()  # where a listener would take the peer's next job, were there one


def header(number):
    return JobHeader(
        key=number.to_bytes(24, "big"), entry="asker", hops=1, budget_s=5.0, models=("0" * 64,), input_bytes=0, body=b""
    )


@pytest.mark.parametrize(
    ("way", "sent"),
    [
        ("waits", [(JobFailed, False), (JobFailed, False)]),
        ("at once", [(JobFailed, "in the call"), (JobFailed, "in the call")]),
        ("in part", [(JobFailed, "in the call"), ("rest", False), (JobFailed, "in the call"), ("rest", False)]),
    ],
)
def test_nobody_listens_any_more_when_an_answer_has_left(way, sent):
    async def main():
        core = Core(CoreConfig(), node_id="n", epoch=1, rng=random.Random(1), now_s=0.0)
        jobs, line = JobTable(), Line(way)
        conversation = Conversation(line, jobs=jobs, driver=Driver(core, clock=trio.current_time), node="n")
        for number in (1, 2):
            conversation.admit(header(number), b"")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conversation.run)
            for handle in (1, 2):
                await trio.testing.wait_all_tasks_blocked()
                entry = jobs.get(handle)
                failure = Failure(reason=Reason.MODEL_FAILED.value, message="")
                entry.responder.fail(failure, core.state_record(now_s=trio.current_time()), estimate_s=None)
                await trio.testing.wait_all_tasks_blocked()
                assert line.is_listened_to == (handle == 1)
        assert line.sent == sent

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
