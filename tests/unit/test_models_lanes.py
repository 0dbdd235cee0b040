"""The lanes of one worker as the daemon keeps them, with the worker played by the test."""

import fcntl
import functools
import math
import os
import socket

import pytest
import trio
import trio.testing

from models.lanes import LANES_MAX, REPORT_MAX_S, WorkerLanes
from models.mappings import Loans
from models.segments import Segment
from models.workerprotocol import (
    CloseLaneOrder,
    LaneBegun,
    LaneEnded,
    LaneRun,
    OpenLaneOrder,
    RevokeOrder,
    TicketOrder,
)

SIZE = 8192
RUN = LaneRun(key=b"k" * 24, age_s=0.5, service_s=0.1, input_bytes=3, output_bytes=4, budget_s=None)


def memory():
    descriptor = os.memfd_create("program", os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, SIZE)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor


class Far:
    """What a worker and a program's desk were told."""

    def __init__(self):
        self.orders = []
        self.has = []
        """Segments."""
        self.is_deaf = False
        self.words = []
        self.loans = Loans(lend=self.lend, end=self.end)
        self.lanes = WorkerLanes(self.tell, self.loans)

    def tell(self, order, *descriptors):
        if self.is_deaf:
            return False
        for descriptor in descriptors:
            os.fstat(descriptor)  # it is open
        self.orders.append(order)
        return True

    def lend(self, segment):
        self.has.append(segment.number)
        return True

    def end(self, number):
        self.has.remove(number)
        return True

    def open(self, segment):
        """Open a lane by a socket of its own; whatever becomes of it, the descriptor is not ours any more."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with near:
            near.setblocking(False)
            lane = self.lanes.open(segment, far.detach(), self.words.append)
            assert near.recv(1) == b"", "the daemon keeps no end of it"
        return lane


@pytest.fixture
def segment():
    made = Segment(memory(), SIZE)
    yield made
    made.close()


def ended(lane, ticket=0, *, runs=(), was_cut=False, is_closed=False):
    return LaneEnded(lane=lane.number, ticket=ticket, runs=tuple(runs), was_cut=was_cut, is_closed=is_closed)


# ---------------------------------------------------------------- opening


def test_a_lane_is_opened_over_memory_that_the_worker_has(segment):
    far = Far()
    lane = far.open(segment)
    assert far.orders == [OpenLaneOrder(lane=lane.number, segment=segment.number)]
    assert far.has == [segment.number]
    other = far.open(segment)
    assert other.number != lane.number
    assert far.has == [segment.number]


def test_a_worker_has_so_many_lanes(segment):
    far = Far()
    lanes = [far.open(segment) for _ in range(LANES_MAX)]
    assert all(lanes)
    assert far.open(segment) is None
    assert far.lanes.take_word(ended(lanes[0], is_closed=True))
    assert far.open(segment) is not None


def test_a_worker_that_cannot_be_told_gets_no_lane_and_no_loan(segment):
    far = Far()
    far.is_deaf = True
    assert far.open(segment) is None
    far.loans.forget(segment.number)
    assert far.has == [], "nothing holds it"


def test_no_lane_without_its_memory(segment):
    far = Far()
    segment.close()
    assert far.open(segment) is None
    assert far.orders == []


@pytest.mark.parametrize(
    "make",
    [
        memory,
        functools.partial(os.open, "/dev/null", os.O_RDONLY),
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).detach(),
        lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).detach(),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(),
    ],
    ids=["memory", "file", "stream", "datagrams", "network"],
)
def test_nothing_but_a_socket_for_sequenced_packets_becomes_a_lane(segment, make):
    far, descriptor = Far(), make()
    assert far.lanes.open(segment, descriptor, far.words.append) is None
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)
    assert far.orders == []
    far.loans.forget(segment.number)
    assert far.has == []


# ---------------------------------------------------------------- what the worker says


def test_tickets_and_accounts_go_their_way(segment):
    async def main():
        far = Far()
        lane = far.open(segment)
        del far.orders[:]
        assert lane.give(1, runs=2, lasts_s=0.5)
        assert far.lanes.take_word(LaneBegun(lane=lane.number, ticket=1))
        assert far.words == []
        lane.revoke(1)
        cut = ended(lane, 1, runs=[RUN], was_cut=True)
        assert far.lanes.take_word(cut)
        assert far.words == [cut]
        assert far.orders == [
            TicketOrder(lane=lane.number, ticket=1, runs=2, lasts_s=0.5),
            RevokeOrder(lane=lane.number, ticket=1),
        ]
        far.loans.forget(segment.number)
        assert far.has == [segment.number], "the lane reads it still"
        closed = ended(lane, is_closed=True)
        assert far.lanes.take_word(closed)
        assert far.words == [cut, closed]
        assert far.has == []

    trio.run(main, clock=trio.testing.MockClock())


def test_a_ticket_that_cannot_be_told_of_is_none(segment):
    async def main():
        far = Far()
        lane = far.open(segment)
        far.is_deaf = True
        assert not lane.give(1, runs=2, lasts_s=0.5)
        assert not far.lanes.take_word(LaneBegun(lane=lane.number, ticket=1))

    trio.run(main)


def test_words_about_no_lane_are_nonsense(segment):
    far = Far()
    assert not far.lanes.take_word(LaneBegun(lane=1, ticket=1))
    lane = far.open(segment)
    assert far.lanes.take_word(ended(lane, is_closed=True))
    assert not far.lanes.take_word(ended(lane, is_closed=True))
    assert len(far.words) == 1
    far.loans.forget(segment.number)
    assert far.has == [], "it was given back once"


@pytest.mark.parametrize(
    "says",
    [
        [LaneBegun(lane=1, ticket=3)],
        [LaneBegun(lane=1, ticket=0)],
        [LaneBegun(lane=1, ticket=-1)],
        [LaneBegun(lane=1, ticket=1), LaneBegun(lane=1, ticket=2)],
        [
            LaneBegun(lane=1, ticket=2),
            LaneEnded(lane=1, ticket=2, runs=(), was_cut=False, is_closed=False),
            LaneBegun(lane=1, ticket=2),
        ],
        [LaneEnded(lane=1, ticket=1, runs=(RUN,), was_cut=False, is_closed=False)],
        [LaneEnded(lane=1, ticket=0, runs=(), was_cut=False, is_closed=False)],
        [LaneEnded(lane=1, ticket=0, runs=(RUN,), was_cut=False, is_closed=True)],
        [LaneBegun(lane=1, ticket=1), LaneEnded(lane=1, ticket=2, runs=(), was_cut=False, is_closed=False)],
        [LaneBegun(lane=1, ticket=1), LaneEnded(lane=1, ticket=1, runs=(RUN,) * 3, was_cut=False, is_closed=False)],
    ],
)
def test_a_worker_accounts_for_tickets_that_it_has_and_for_each_once(segment, says):
    async def main():
        far = Far()
        lane = far.open(segment)
        assert lane.number == 1
        lane.give(1, runs=2, lasts_s=0.5)
        lane.give(2, runs=2, lasts_s=0.5)
        *fine, wrong = says
        assert all(far.lanes.take_word(word) for word in fine)
        told = len(far.words)
        assert not far.lanes.take_word(wrong)
        assert len(far.words) == told

    trio.run(main)


def test_with_the_worker_all_lanes_are_lost(segment):
    far = Far()
    one, _ = far.open(segment), far.open(segment)
    far.lanes.take_word(ended(one, is_closed=True))
    del far.words[:]
    far.lanes.lose()
    assert far.words == [None]
    far.lanes.lose()
    assert far.words == [None]


# ---------------------------------------------------------------- time


def keeping_time(segment, scenario):
    """Run a scenario beside keep_time; returns when the latter returned, or None where it did not."""
    returned = []

    async def main():
        far = Far()

        async def keep():
            await far.lanes.keep_time()
            returned.append(trio.current_time())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep)
            await trio.testing.wait_all_tasks_blocked()
            await scenario(far, far.open(segment))
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return returned[0] if returned else None


def closings(far):
    return [order for order in far.orders if isinstance(order, CloseLaneOrder)]


def test_a_lane_whose_run_does_not_end_is_closed_and_its_worker_judged_after_the_grace(segment):
    start = []

    async def scenario(far, lane):
        start.append(trio.current_time())
        lane.give(1, runs=2, lasts_s=0.5)
        far.lanes.take_word(LaneBegun(lane=lane.number, ticket=1))
        await trio.sleep(2 * 0.5 + REPORT_MAX_S - 0.01)
        assert closings(far) == []
        await trio.sleep(0.02)
        assert closings(far) == [CloseLaneOrder(lane=lane.number)]
        await trio.sleep(50.0)

    assert keeping_time(segment, scenario) == pytest.approx(start[0] + 2 * 0.5 + 2 * REPORT_MAX_S)


def test_an_account_in_time_is_the_end_of_the_matter(segment):
    async def scenario(far, lane):
        lane.give(1, runs=2, lasts_s=0.5)
        far.lanes.take_word(LaneBegun(lane=lane.number, ticket=1))
        await trio.sleep(2.9)
        far.lanes.take_word(ended(lane, 1, runs=[RUN]))
        await trio.sleep(100.0)
        assert closings(far) == []
        lane.give(2, runs=2, lasts_s=0.5)
        await trio.sleep(100.0)
        assert closings(far) == [], "a ticket may lie as long as its program likes"

    assert keeping_time(segment, scenario) is None


def test_a_lane_that_is_closed_has_its_grace_from_then_on(segment):
    async def scenario(far, lane):
        far.open(segment)
        await trio.sleep(5.0)
        lane.close()
        lane.close()
        assert closings(far) == [CloseLaneOrder(lane=lane.number)]
        await trio.sleep(REPORT_MAX_S - 0.01)
        far.lanes.take_word(ended(lane, is_closed=True))
        await trio.sleep(100.0)

    assert keeping_time(segment, scenario) is None


def test_a_word_does_not_prolong_the_grace_of_a_lane_that_is_to_end(segment):
    start = []

    async def scenario(far, lane):
        start.append(trio.current_time())
        lane.give(1, runs=2, lasts_s=10.0)
        lane.close()
        await trio.sleep(1.0)
        assert far.lanes.take_word(LaneBegun(lane=lane.number, ticket=1))
        assert far.lanes.take_word(ended(lane, 1))
        assert not math.isinf(lane.due_s)
        await trio.sleep(50.0)

    assert keeping_time(segment, scenario) == pytest.approx(start[0] + REPORT_MAX_S)
