"""What a node's answers about jobs tell its watch."""

import random

import pytest
import trio
import trio.testing

from gridnode.driver import Driver
from gridnode.watch import Watch
from scheduler.config import CoreConfig
from scheduler.core import Core
from transport.liveness import Liveness
from transport.liveness_events import NoticeReceived, PeersChanged, PeerSeen, Status
from transport.memory import MemoryNetwork
from transport.wire import HealthNotice


@pytest.mark.parametrize("answers", [True, False])
def test_who_answers_about_a_job_is_not_suspect_any_more(answers):
    async def main():
        now_s = trio.current_time()
        core = Core(CoreConfig(), node_id="me", epoch=1, rng=random.Random(1), now_s=now_s)
        live = Liveness("me", 1, random.Random(1))
        live.handle(PeersChanged(("a", "b")), now_s=now_s)
        for node in ("a", "b"):
            live.handle(PeerSeen(node=node, epoch=7, direct=False), now_s=now_s)
        accusation = HealthNotice(subject="a", epoch=7, incarnation=0, status=Status.SUSPECT.value)
        live.handle(NoticeReceived(origin="b", notice=accusation), now_s=now_s)
        assert live.status("a") is Status.SUSPECT
        planes = MemoryNetwork(random.Random(1)).join("me")
        watch = Watch(live, control=planes.control, data=planes.data, driver=Driver(core), undertaker=Undertaker())
        async with trio.open_nursery() as nursery:
            await nursery.start(watch.serve)
            if answers:
                watch.answered("a")
            watch.answered("b")
            watch.answered("nobody")
            assert watch.status("a") is (Status.ALIVE if answers else Status.SUSPECT)
            assert watch.status("b") is Status.ALIVE
            assert watch.status("nobody") is None
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock())


def test_a_record_that_tells_a_new_life_is_not_passed_over():
    async def main():
        now_s = trio.current_time()
        core = Core(CoreConfig(), node_id="me", epoch=1, rng=random.Random(1), now_s=now_s)
        live = Liveness("me", 1, random.Random(1))
        live.handle(PeerSeen(node="a", epoch=7, direct=False), now_s=now_s)
        live.handle(LeaveHeard, now_s=now_s)
        planes = MemoryNetwork(random.Random(1)).join("me")
        watch = Watch(live, control=planes.control, data=planes.data, driver=Driver(core), undertaker=Undertaker())
        async with trio.open_nursery() as nursery:
            await nursery.start(watch.serve)
            watch.seen("a", 7, direct=False)
            assert watch.status("a") is Status.LEFT
            watch.seen("a", 8, direct=False)
            assert (watch.status("a"), live.epoch("a")) == (Status.ALIVE, 8)
            watch.seen("a", 9, direct=False)
            assert live.epoch("a") == 9
            watch.seen("b", 1, direct=False)
            assert watch.status("b") is Status.ALIVE
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock())


LeaveHeard = NoticeReceived(
    origin="a", notice=HealthNotice(subject="a", epoch=7, incarnation=0, status=Status.LEFT.value)
)


class Undertaker:
    """Nobody dies here."""

    def peer_lost(self, node):
        raise AssertionError(node)

    def peer_returned(self, node):
        assert node in ("a", "b")
