"""The lanes of one connection: when there are to be more, and which of them a request goes by."""

import msgspec
import pytest

from gridnode.control import JobDone, Ticket
from gridnode.jobs import Job, Options, Request
from gridnode.lane import Lane
from gridnode.lanebook import LULL_JOBS, PAUSE_AFTER_LANE, ROW_BEFORE_LANE, LaneBook, Row
from models import laneprotocol as worker

OPTIONS = Options(priority=2, tenant="shop")
USUAL = JobDone(
    key=b"u" * 24,
    model="street",
    model_digest="d" * 64,
    node="n1",
    node_name="gate",
    hops=0,
    waiting_s=0.5,
    service_s=0.1,
    transfer_s=0.25,
    total_s=0.9,
    body=b"usual",
)


def key(number):
    return b"c" * 16 + number.to_bytes(8, "big")


def job(number=1, *, model="street", options=OPTIONS, deadline_s=None):
    request = Request(model=model, body=b"body", parts=(b"frame",), payload_bytes=5, options=options)
    return Job(key(number), request, opened_s=0.0, deadline_s=deadline_s)


# ---------------------------------------------------------------- when a lane is worth opening


def rows(count, *, row=None, model="street", options=OPTIONS, node="n1"):
    """Have so many requests answered, one after another; returns the row, and what it said of the last."""
    if row is None:
        row = Row()
        row.node = "n1"
    said = None
    for _ in range(count):
        row.note_request(job(model=model, options=options))
        said = row.note_answer(msgspec.structs.replace(USUAL, key=key(1), node=node))
    return row, said


def test_a_lane_is_opened_after_so_many_answers_to_requests_of_one_kind():
    row, said = rows(ROW_BEFORE_LANE - 1)
    assert said is None
    assert rows(1, row=row)[1] == ("street", OPTIONS)
    assert rows(1, row=row)[1] == ("street", OPTIONS), "it is said until one is there"


@pytest.mark.parametrize("other", [{"model": "other"}, {"options": Options()}])
def test_another_kind_begins_the_row_anew(other):
    row, _ = rows(ROW_BEFORE_LANE - 1)
    rows(1, row=row, **other)
    assert rows(ROW_BEFORE_LANE - 1, row=row)[1] is None
    assert rows(1, row=row)[1] == ("street", OPTIONS)


def test_a_peers_answers_count_like_the_daemons_own():
    assert rows(ROW_BEFORE_LANE - 1, node="n2")[1] is None
    assert rows(ROW_BEFORE_LANE, node="n2")[1] is not None


def test_answers_of_another_node_begin_the_row_anew():
    row, said = rows(ROW_BEFORE_LANE - 1, node="n2")
    assert said is None
    assert rows(ROW_BEFORE_LANE - 1, row=row)[1] is None
    assert rows(1, row=row)[1] is not None


def test_another_nodes_answers_do_not_shorten_a_pause():
    row = Row()
    row.count = -PAUSE_AFTER_LANE
    rows(1, row=row, node="n2")
    rows(1, row=row)
    assert row.count == 2 - PAUSE_AFTER_LANE


def test_streams_get_no_lane():
    options = Options(stream="gate")
    assert rows(3 * ROW_BEFORE_LANE, options=options)[1] is None


def test_a_pause_after_a_lane_of_no_use_counts_answers_of_all_kinds():
    row, _ = rows(ROW_BEFORE_LANE)
    row.count = -PAUSE_AFTER_LANE
    rows(PAUSE_AFTER_LANE // 2, row=row)
    rows(PAUSE_AFTER_LANE // 2, row=row, model="other")
    assert row.count == 0
    assert rows(ROW_BEFORE_LANE - 1, row=row, model="other")[1] is None
    assert rows(1, row=row, model="other")[1] == ("other", OPTIONS)


def test_answers_to_what_was_asked_before_another_kind_do_not_count():
    row = Row()
    row.node = "n1"
    for number in range(1, 40):
        row.note_request(job(number))
    row.note_request(job(40, model="other"))
    for number in range(1, 40):
        assert row.note_answer(msgspec.structs.replace(USUAL, key=key(number))) is None
    assert row.note_answer(msgspec.structs.replace(USUAL, key=key(40), model="other")) is None
    assert row.count == 1


# ---------------------------------------------------------------- which lane a request goes by


class Shelf:
    """A book with lanes in it, whose workers are played by the test."""

    def __init__(self):
        self.book = LaneBook()
        self.lanes = []
        self.number = 0

    def add(self, count=1, *, model="street"):
        for _ in range(count):
            lane = Lane(len(self.lanes), model, OPTIONS, USUAL)
            self.lanes.append(lane)
            self.book.add(lane)

    def ticket(self, lane, number=1, *, lanes, runs=1000, depth=16, lasts_s=1000.0):
        """Have a lane given a ticket."""
        ticket = Ticket(
            lane=lane, ticket=number, runs=runs, lasts_s=lasts_s, depth=depth, lanes=lanes, least_budget_s=0.0
        )
        return self.book.take_ticket(ticket)

    def submit(self, *, now_s=0.0, **how):
        """Have a job sent; returns the number of its lane, None where it is the daemon's."""
        self.number += 1
        one = job(self.number, **how)
        lane = self.book.choose(one, now_s)
        if lane is None:
            return None
        assert lane.send(one, 0, now_s)
        return lane.number

    def submitted(self, count, **how):
        return [self.submit(**how) for _ in range(count)]

    def answer(self, lane, *, is_pass=False):
        """Have the worker answer the first request of a lane."""
        lane = self.lanes[lane]
        one, _, _ = lane.under_way[0]
        lane.other.send(
            worker.encode(worker.LanePass(one.key, False) if is_pass else worker.LaneDone(one.key, b"", b"", 0.0))
        )
        assert lane.receive()[0] is one

    def warm(self, *lanes):
        """Have a request of each lane answered, so that others may go behind one another."""
        for lane in lanes:
            assert self.lanes[lane].send(job(999), 0, 0.0)
            self.answer(lane)

    def close(self):
        for lane in self.lanes:
            lane.close()


@pytest.fixture
def shelf():
    made = Shelf()
    yield made
    made.close()


def test_without_lanes_or_tickets_all_is_the_daemons(shelf):
    assert shelf.submit() is None
    assert not shelf.book.has("street")
    shelf.add()
    assert shelf.book.has("street")
    assert not shelf.book.has("other")
    assert shelf.submitted(3) == [None, None, None]


def test_a_request_goes_by_the_lane_with_the_least_under_way(shelf):
    shelf.add(3)
    for lane in range(3):
        shelf.ticket(lane, lanes=3)
    shelf.warm(0, 1, 2)
    assert shelf.submitted(7) == [0, 1, 2, 0, 1, 2, 0]
    shelf.answer(1)
    shelf.answer(1)
    assert shelf.submitted(4) == [1, 1, 1, 2]


def test_only_requests_like_a_lanes_others_come_by_it(shelf):
    shelf.add()
    shelf.ticket(0, lanes=1)
    assert shelf.submit(options=Options(priority=2)) is None
    assert shelf.submit(options=Options(priority=2, tenant="shop", raw_outputs=True)) is None
    assert shelf.submit(model="other") is None
    assert shelf.submit(options=Options(priority=2, tenant="shop")) == 0


def test_lanes_for_other_models_are_others(shelf):
    shelf.add()
    shelf.add(model="other")
    shelf.ticket(0, lanes=1)
    shelf.ticket(1, lanes=1)
    assert [lane.number for lane in shelf.book] == [0, 1]
    assert shelf.submit(model="other") == 1
    assert shelf.submit() == 0


def test_nothing_goes_behind_others_before_all_lanes_are_there(shelf):
    shelf.add()
    shelf.ticket(0, lanes=2)
    shelf.warm(0)
    assert shelf.submitted(3) == [0, None, None]
    shelf.add()
    assert shelf.submitted(2) == [0, 0], "the daemon has been asked, the other lane's ticket is on its way"
    shelf.ticket(1, lanes=2)
    assert shelf.submitted(3) == [1, 0, 0], "how long its answers are is not known yet"


def test_a_ticket_for_one_lane_lets_nothing_wait(shelf):
    shelf.add()
    shelf.ticket(0, lanes=1, depth=1)
    shelf.warm(0)
    assert shelf.submitted(3) == [0, None, None]


def test_the_daemon_is_asked_once_for_each_lane_without_a_ticket(shelf):
    shelf.add(3)
    shelf.ticket(0, lanes=3, depth=100)
    shelf.warm(0)
    assert shelf.submitted(6) == [None, None, 0, 0, 0, 0]
    shelf.book.answered(key(1))
    assert shelf.submitted(LULL_JOBS + 2) == [0] * LULL_JOBS + [None, 0], "and again now and then"
    shelf.ticket(1, lanes=3)
    shelf.book.answered(key(2))  # the one that was asked in the lull's wake is at the daemon still
    assert None not in shelf.submitted(3 * LULL_JOBS), "one lane has none, and one is asked for"


def test_while_all_lanes_have_tickets_the_daemon_is_not_asked(shelf):
    shelf.add(2)
    for lane in (0, 1):
        shelf.ticket(lane, lanes=2)
    shelf.warm(0, 1)
    assert None not in shelf.submitted(30)
    assert shelf.submitted(4) == [0, 1, None, None], "but for what is too much"


def test_lanes_that_there_may_not_be_want_no_tickets(shelf):
    shelf.add(2)
    shelf.ticket(0, lanes=2)
    shelf.ticket(0, 2, lanes=1, depth=1)
    for _ in range(3 * LULL_JOBS):
        assert shelf.submit() == 0, "the daemon would take the ticket back"
        shelf.answer(0)


def test_an_answer_to_what_was_not_asked_for_a_ticket_is_no_lull(shelf):
    shelf.add(2)
    shelf.ticket(0, lanes=2)
    shelf.warm(0)
    assert shelf.submit() is None
    shelf.book.answered(key(77))
    assert shelf.submit() == 0
    shelf.book.answered(key(1))
    shelf.book.answered(key(1))
    assert shelf.submitted(LULL_JOBS + 1) == [0] * LULL_JOBS + [None]


def test_requests_of_other_kinds_do_not_ask_for_tickets(shelf):
    shelf.add(2)
    shelf.ticket(0, lanes=2)
    shelf.warm(0)
    assert shelf.submitted(5, options=Options()) == [None] * 5
    assert shelf.submitted(2) == [None, 0]


def test_a_pass_has_the_daemon_asked(shelf):
    shelf.add()
    shelf.ticket(0, lanes=1)
    shelf.warm(0)
    assert shelf.submitted(3) == [0, 0, 0]
    shelf.answer(0, is_pass=True)
    assert shelf.submitted(2) == [None, None]


# ---------------------------------------------------------------- how many lanes there are


def test_there_may_be_as_many_lanes_as_the_newest_ticket_says(shelf):
    shelf.add()
    assert not shelf.book.may_grow("street"), "none has come"
    assert shelf.ticket(0, lanes=3) is shelf.lanes[0]
    assert shelf.book.may_grow("street")
    shelf.add(2)
    assert not shelf.book.may_grow("street")
    shelf.ticket(1, lanes=4)
    assert shelf.book.may_grow("street")
    shelf.ticket(0, 2, lanes=1)
    assert not shelf.book.may_grow("street")


def test_a_ticket_for_a_lane_that_has_ended_is_worth_nothing(shelf):
    shelf.add()
    assert shelf.ticket(7, lanes=1) is None
    shelf.book.remove(shelf.lanes[0])
    assert shelf.ticket(0, lanes=1) is None
    assert list(shelf.book) == []
    assert not shelf.book.has("street")


def test_a_lane_that_is_refused_is_not_offered_again_soon(shelf):
    shelf.add(2)
    shelf.ticket(0, lanes=2)
    shelf.book.remove(shelf.lanes[1])
    assert shelf.book.row.count == -PAUSE_AFTER_LANE
    shelf.ticket(0, 2, lanes=2)
    assert not shelf.book.may_grow("street")
    shelf.warm(0)
    assert shelf.submitted(2) == [0, None], "and nothing waits behind others"
    shelf.book.row.count = 0
    assert shelf.book.may_grow("street")


def test_a_lane_that_was_used_is_followed_by_another(shelf):
    shelf.add(2)
    for lane in (0, 1):
        shelf.ticket(lane, lanes=2)
    shelf.book.remove(shelf.lanes[1])
    assert shelf.book.may_grow("street")


def test_an_unfit_request_keeps_further_lanes_away(shelf):
    shelf.add(2)
    for lane in (0, 1):
        shelf.ticket(lane, lanes=2)
    shelf.lanes[1].is_unfit = True
    shelf.book.remove(shelf.lanes[1])
    assert not shelf.book.may_grow("street")
    shelf.lanes[0].is_unfit = True
    shelf.book.remove(shelf.lanes[0])
    assert shelf.book.row.count == -PAUSE_AFTER_LANE


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_when_all_lanes_end_with_their_worker_a_row_earns_others(shelf, order):
    shelf.add(2)
    shelf.ticket(0, lanes=2)
    for lane in order:  # the second one has not been used yet
        shelf.book.remove(shelf.lanes[lane])
    assert shelf.book.row.count == 0


def test_a_first_lane_without_a_ticket_was_of_no_use(shelf):
    shelf.add()
    shelf.book.remove(shelf.lanes[0])
    assert shelf.book.row.count == -PAUSE_AFTER_LANE


def test_what_was_asked_for_lanes_that_have_ended_is_forgotten_with_its_answer(shelf):
    shelf.add()
    assert shelf.submitted(3) == [None] * 3
    shelf.book.remove(shelf.lanes[0])
    shelf.add(2)
    shelf.ticket(1, lanes=2)
    shelf.warm(1)
    for number in (1, 2, 3):
        shelf.book.answered(key(number))
    assert shelf.submitted(2) == [None, 1], "neither a lull nor asked for these"
    assert not [each for each in shelf.book._asked if each in {key(1), key(2), key(3)}]
