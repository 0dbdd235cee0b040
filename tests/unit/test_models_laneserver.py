"""A lane's end in the worker, with a program and a daemon played by the test; the sockets are real."""

import os
import queue
import socket
import struct
import threading

import msgspec
import pytest

from gridnode.lane import ANSWERS_MAX_BYTES
from models import laneprotocol as protocol
from models import laneserver
from models.laneprotocol import ANSWER_MAX_BYTES, PASSED_MAX
from models.laneserver import LOOK_S, LaneServer
from models.workerprotocol import LANE_RUNS_MAX, LaneBegun, LaneEnded, LaneRun

LONG_S = 60.0
decode = msgspec.msgpack.Decoder(protocol.LaneDone | protocol.LanePass).decode


def key(number):
    return b"c" * 16 + number.to_bytes(8, "big")


class Clock:
    """Takes the place of the module ``time``."""

    def __init__(self):
        self.now_s = 0.0

    def perf_counter(self):
        return self.now_s


class Changed(threading.Condition):
    """Tells when somebody waits for a ticket."""

    def __init__(self):
        super().__init__()
        self.is_awaited = threading.Event()

    def wait_for(self, predicate, timeout=None):
        self.is_awaited.set()
        return super().wait_for(predicate, timeout)


class Lane:
    """A lane being served, the program at its other end, and what the daemon is told."""

    def __init__(self):
        self.near, self.far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near.settimeout(5.0)
        self.told = queue.Queue()
        self.outputs = {}
        """By body: what the model makes of it; else its body and nothing raw."""
        self.during = lambda: None
        """Called while the model runs."""
        self.server = LaneServer(3, self.far, answer=self.answer, tell=self.told.put)
        self.thread = threading.Thread(target=self.server.serve)

    def answer(self, request, output):
        self.during()
        answer = self.outputs.get(request.body, (b"<" + request.body + b">", b""))
        if answer is None:
            return None
        body, raw = answer
        output[: len(raw)] = raw
        return body, len(raw)

    def send(self, number, ticket, *, body=b"body", payload_bytes=0, budget_s=None):
        request = protocol.LaneRequest(key(number), ticket, body, 0, payload_bytes, budget_s)
        self.near.send(protocol.encode(request))

    def ask(self, number, ticket, **how):
        self.send(number, ticket, **how)
        answer = decode(self.near.recv(protocol.PACKET_MAX_BYTES))
        assert answer.key == key(number)
        return answer

    def runs(self, number, ticket, **how):
        """Ask, and tell whether the answer is a result."""
        return isinstance(self.ask(number, ticket, **how), protocol.LaneDone)

    def next_told(self):
        return self.told.get(timeout=5.0)

    def end_of_ticket(self, ticket, *, runs, was_cut=False):
        """Take the account of a ticket that is over while the lane is not."""
        word = self.next_told()
        assert isinstance(word, LaneEnded)
        assert (word.lane, word.ticket, word.was_cut, word.is_closed) == (3, ticket, was_cut, False)
        assert [run.key for run in word.runs] == [key(number) for number in runs]

    def end_of_lane(self, ticket=0, *, runs=(), was_cut=False):
        """Take the last account; the lane is over and its socket closed."""
        word = self.next_told()
        assert isinstance(word, LaneEnded)
        assert (word.lane, word.ticket, word.was_cut, word.is_closed) == (3, ticket, was_cut, True)
        assert [run.key for run in word.runs] == [key(number) for number in runs]
        self.thread.join(5.0)
        assert not self.thread.is_alive()
        assert self.far.fileno() == -1
        assert self.told.empty()


@pytest.fixture
def made():
    lane = Lane()
    yield lane
    lane.near.close()
    if lane.thread.ident is not None:
        lane.thread.join(5.0)
    lane.far.close()


@pytest.fixture
def lane(made):
    made.thread.start()
    return made


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(laneserver, "time", clock)
    return clock


# ---------------------------------------------------------------- a ticket's life


def test_runs_on_a_ticket_are_answered_and_told_once_it_is_used_up(clock, lane):
    def during():
        clock.now_s += 0.25

    lane.during, lane.outputs[b"one"] = during, (b"result", b"raw")
    lane.server.give(1, runs=2, lasts_s=LONG_S)
    first = lane.ask(1, 1, body=b"one", payload_bytes=100, budget_s=2.5)
    assert first == protocol.LaneDone(key(1), b"result", b"raw", 0.25)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    clock.now_s = 1.0
    second = lane.ask(2, 1, body=b"two", payload_bytes=7)
    assert second == protocol.LaneDone(key(2), b"<two>", b"", 0.25)
    told = lane.next_told()
    assert told == LaneEnded(
        lane=3,
        ticket=1,
        runs=(
            LaneRun(key=key(1), age_s=1.25, service_s=0.25, input_bytes=100, output_bytes=9, budget_s=2.5),
            LaneRun(key=key(2), age_s=0.25, service_s=0.25, input_bytes=7, output_bytes=5, budget_s=None),
        ),
        was_cut=False,
        is_closed=False,
    )
    assert lane.ask(3, 1) == protocol.LanePass(key(3), is_unfit=False), "it is used up"
    assert lane.told.empty()


def test_a_ticket_may_come_a_moment_later_than_the_request_on_it(made, monkeypatch):
    monkeypatch.setattr(laneserver, "TICKET_WAIT_MAX_S", 5.0)
    made.server._changed = Changed()
    made.thread.start()
    made.send(1, 1)
    assert made.server._changed.is_awaited.wait(5.0)
    made.server.give(1, runs=2, lasts_s=LONG_S)
    assert isinstance(decode(made.near.recv(protocol.PACKET_MAX_BYTES)), protocol.LaneDone)
    assert made.next_told() == LaneBegun(lane=3, ticket=1)


def test_what_was_never_given_is_no_ticket(lane):
    assert lane.ask(1, 1) == protocol.LanePass(key(1), is_unfit=False)
    assert not lane.runs(2, 0)
    lane.server.give(1, runs=2, lasts_s=LONG_S)
    assert not lane.runs(3, 2)
    assert not lane.runs(4, 0)
    assert lane.told.empty()
    assert lane.runs(5, 1), "the good one is good all the same"


def test_a_ticket_lasts_so_long_from_its_first_run_on(clock, lane):
    clock.now_s = 100.0
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    clock.now_s = 1000.0
    assert lane.runs(1, 1)
    clock.now_s = 1059.5
    assert lane.runs(2, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    clock.now_s = 1060.0
    assert not lane.runs(3, 1)
    lane.end_of_ticket(1, runs=(1, 2))
    assert not lane.runs(4, 0)


def test_the_end_of_a_ticket_is_told_without_a_further_request(lane):
    lane.server.give(1, runs=9, lasts_s=0.02)
    assert lane.runs(1, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_ticket(1, runs=(1,))
    assert not lane.runs(2, 1)
    lane.server.give(2, runs=9, lasts_s=LONG_S)
    assert lane.runs(3, 2), "the lane lives on"


def test_only_a_ticket_in_use_bounds_how_long_a_program_is_waited_for(lane):
    def patience():
        seconds, rest = struct.unpack("ll", lane.far.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16))
        return seconds + rest / 1e6

    seen = []
    lane.during = lambda: seen.append(patience())
    assert patience() == 0.0, "for ever, that is"
    lane.server.give(1, runs=1, lasts_s=60.5)
    assert lane.runs(1, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_ticket(1, runs=(1,))
    assert seen == [pytest.approx(LOOK_S, abs=0.02)], "it looks now and then whether the ticket is over"
    lane.server.give(2, runs=1, lasts_s=LOOK_S / 2)
    assert lane.runs(2, 2)
    assert seen[1:] == [pytest.approx(LOOK_S / 2, abs=0.02)]
    assert lane.next_told() == LaneBegun(lane=3, ticket=2)
    lane.end_of_ticket(2, runs=(2,))
    assert patience() == 0.0


def test_a_ticket_taken_back_from_a_program_that_asks_no_more_is_told_soon(lane):
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    assert lane.runs(1, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.server.revoke(1)
    lane.end_of_ticket(1, runs=(1,), was_cut=True)


def test_on_a_revoked_ticket_nothing_more_is_run(lane):
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    assert lane.runs(1, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.server.revoke(1)
    assert lane.ask(2, 1) == protocol.LanePass(key(2), is_unfit=False)
    lane.end_of_ticket(1, runs=(1,), was_cut=True)
    lane.server.give(2, runs=9, lasts_s=LONG_S)
    assert lane.runs(3, 2)
    assert lane.next_told() == LaneBegun(lane=3, ticket=2)


def test_a_ticket_revoked_before_its_first_use_is_worth_nothing(lane):
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    lane.server.revoke(1)
    assert not lane.runs(1, 1)
    lane.near.close()
    lane.end_of_lane()


def test_a_run_in_hand_goes_on_though_its_ticket_is_revoked(lane):
    lane.during = lambda: lane.server.revoke(1)
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    assert lane.runs(1, 1)
    assert not lane.runs(2, 1)


def test_the_last_run_of_a_ticket_that_is_revoked_meanwhile_was_not_cut(lane):
    lane.during = lambda: lane.server.revoke(1)
    lane.server.give(1, runs=1, lasts_s=LONG_S)
    assert lane.runs(1, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_ticket(1, runs=(1,))


def test_a_stale_ticket_is_worth_nothing(lane):
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    lane.server.give(2, runs=9, lasts_s=LONG_S)
    assert not lane.runs(1, 1)
    assert lane.runs(2, 2)


def test_a_newer_ticket_ends_the_one_in_use(lane):
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    assert lane.runs(1, 1)
    lane.server.give(2, runs=2, lasts_s=LONG_S)
    assert lane.runs(2, 1), "until it is used itself"
    assert lane.runs(3, 2)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_ticket(1, runs=(1, 2))
    assert lane.next_told() == LaneBegun(lane=3, ticket=2)
    assert not lane.runs(4, 1)
    assert lane.runs(5, 2), "the older one takes nothing from it"
    lane.end_of_ticket(2, runs=(3, 5))


# ---------------------------------------------------------------- several requests in the socket at once


class Gate:
    """Holds each run until it is let go on."""

    def __init__(self):
        self.begun = threading.Semaphore(0)
        self.go_on = threading.Semaphore(0)

    def __call__(self):
        self.begun.release()
        assert self.go_on.acquire(timeout=5.0)


@pytest.fixture
def gate(made):
    made.during = gate = Gate()
    return gate


def answers(lane, count):
    """Return the numbers of what was run, and of what was passed, in the order of their answers."""
    found = [decode(lane.near.recv(protocol.PACKET_MAX_BYTES)) for _ in range(count)]
    return [(int.from_bytes(each.key[16:], "big"), isinstance(each, protocol.LaneDone)) for each in found]


def test_requests_that_wait_are_run_in_order(lane):
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    for number in range(6):
        lane.send(number, 1, body=b"%d" % number)
    for number in range(6):
        answer = decode(lane.near.recv(protocol.PACKET_MAX_BYTES))
        assert (answer.key, answer.body) == (key(number), b"<%d>" % number)


@pytest.mark.parametrize("waiting", [1, 15])
def test_a_ticket_that_is_taken_back_passes_all_that_waits_at_once(lane, gate, waiting):
    lane.server.give(1, runs=99, lasts_s=LONG_S)
    for number in range(1 + waiting):
        lane.send(number, 1)
    assert gate.begun.acquire(timeout=5.0)
    lane.server.revoke(1)
    gate.go_on.release()
    assert answers(lane, 1 + waiting) == [(0, True), *((number, False) for number in range(1, 1 + waiting))]
    assert not gate.begun.acquire(blocking=False), "one run at most ends after that"
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_ticket(1, runs=(0,), was_cut=True)
    gate.go_on.release()
    lane.server.give(2, runs=99, lasts_s=LONG_S)
    assert lane.runs(50, 2), "the lane lives on"


def test_a_ticket_that_ends_passes_all_that_waits(clock, lane):
    def during():
        clock.now_s += 10.0

    lane.during = during
    lane.server.give(1, runs=99, lasts_s=LONG_S)
    for number in range(10):
        lane.send(number, 1)
    assert answers(lane, 10) == [(number, number < 6) for number in range(10)]
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_ticket(1, runs=range(6))
    assert clock.now_s == 60.0


def test_a_ticket_that_is_used_up_passes_all_that_waits(lane):
    lane.server.give(1, runs=2, lasts_s=LONG_S)
    for number in range(5):
        lane.send(number, 1)
    assert answers(lane, 5) == [(0, True), (1, True), (2, False), (3, False), (4, False)]
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_ticket(1, runs=(0, 1))


@pytest.mark.parametrize("waiting", [1, 3])
def test_a_pass_tells_that_the_ticket_is_over_before_anybody_looks(lane, monkeypatch, waiting):
    monkeypatch.setattr(laneserver, "LOOK_S", LONG_S)
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    assert lane.runs(1, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.server.revoke(1)
    for number in range(2, 2 + waiting):
        lane.send(number, 1)
    lane.end_of_ticket(1, runs=(1,), was_cut=True)


def test_what_waits_on_an_older_ticket_is_run_before_the_new_one_begins(lane, gate):
    lane.server.give(1, runs=99, lasts_s=LONG_S)
    for number in range(3):
        lane.send(number, 1)
    assert gate.begun.acquire(timeout=5.0)
    lane.server.give(2, runs=99, lasts_s=LONG_S)
    for number in range(3, 5):
        lane.send(number, 2)
    lane.send(5, 1)
    for _ in range(5):
        gate.go_on.release()
    assert answers(lane, 6) == [(number, number < 5) for number in range(6)], "an older one is no good any more"
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_ticket(1, runs=(0, 1, 2))
    assert lane.next_told() == LaneBegun(lane=3, ticket=2)


def test_a_ticket_taken_back_takes_nothing_from_the_next_one(lane, gate):
    lane.server.give(1, runs=99, lasts_s=LONG_S)
    for number in range(3):
        lane.send(number, 1)
    assert gate.begun.acquire(timeout=5.0)
    lane.server.revoke(1)
    lane.server.give(2, runs=99, lasts_s=LONG_S)
    lane.send(3, 2)
    for _ in range(2):
        gate.go_on.release()
    assert answers(lane, 4) == [(0, True), (1, False), (2, False), (3, True)]


def test_what_waits_when_its_ticket_was_never_given_waits_for_it_once(lane, monkeypatch):
    monkeypatch.setattr(laneserver, "TICKET_WAIT_MAX_S", 0.0)
    lane.server.give(1, runs=99, lasts_s=LONG_S)
    lane.server.revoke(1)
    for number in range(16):
        lane.send(number, 1)
    assert answers(lane, 16) == [(number, False) for number in range(16)]
    assert lane.told.empty()


def test_an_unfit_request_between_others_costs_them_nothing(lane):
    lane.outputs[b"odd"] = None
    lane.server.give(1, runs=99, lasts_s=LONG_S)
    for number in range(4):
        lane.send(number, 1, body=b"odd" if number == 1 else b"body")
    assert answers(lane, 4) == [(0, True), (1, False), (2, True), (3, True)]


def test_a_program_that_leaves_with_requests_waiting_has_them_run_no_more(lane, gate):
    lane.server.give(1, runs=99, lasts_s=LONG_S)
    for number in range(8):
        lane.send(number, 1)
    assert gate.begun.acquire(timeout=5.0)
    lane.near.close()
    gate.go_on.release()
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_lane(1, runs=(0,))
    assert not gate.begun.acquire(blocking=False)


def test_a_lane_that_is_closed_with_requests_waiting_runs_them_no_more(lane, gate):
    lane.server.give(1, runs=99, lasts_s=LONG_S)
    for number in range(8):
        lane.send(number, 1)
    assert gate.begun.acquire(timeout=5.0)
    lane.server.close()
    gate.go_on.release()
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_lane(1, runs=(0,))
    assert not gate.begun.acquire(blocking=False)


@pytest.mark.parametrize("raw_bytes", [10, 3_000, 8_000, 40_000, protocol.OUTPUT_MAX_BYTES])
def test_as_many_answers_as_a_program_may_leave_unread_find_room(lane, raw_bytes):
    lane.outputs[b"body"] = (b"", b"r" * raw_bytes)
    count = min(16, ANSWERS_MAX_BYTES // (raw_bytes + 50))
    lane.server.give(1, runs=count, lasts_s=LONG_S)
    for number in range(count):
        lane.send(number, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_ticket(1, runs=range(count))
    assert answers(lane, count) == [(number, True) for number in range(count)]


# ---------------------------------------------------------------- what does not fit


def test_a_request_that_fails_is_unfit_and_no_run_but_uses_its_ticket(lane):
    lane.outputs[b"odd"] = None
    lane.server.give(1, runs=2, lasts_s=LONG_S)
    assert lane.ask(1, 1, body=b"odd") == protocol.LanePass(key(1), is_unfit=True)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    assert lane.runs(2, 1)
    lane.end_of_ticket(1, runs=(2,))


@pytest.mark.parametrize("surplus", [0, 1])
def test_an_answer_that_would_not_fit_a_packet_is_the_daemons(lane, surplus):
    raw = b"r" * protocol.OUTPUT_MAX_BYTES
    lane.outputs[b"long"] = (b"b" * (ANSWER_MAX_BYTES - len(raw) + surplus), raw)
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    answer = lane.ask(1, 1, body=b"long")
    if surplus:
        assert answer == protocol.LanePass(key(1), is_unfit=True)
    else:
        assert answer.payload == raw


@pytest.mark.parametrize(
    "packet",
    [
        b"\xc1",
        protocol.encode([key(1), 1, b"", 0, 0]),
        protocol.encode([b"short", 1, b"", 0, 0, None]),
        protocol.encode([key(1), -1, b"", 0, 0, None]),
        protocol.encode([key(1), 1, b"", -64, 0, None]),
        protocol.encode([key(1), 1, b"", 0, -1, None]),
        protocol.encode([key(1), 1, b"", 0, 0, float("nan")]),
        protocol.encode([key(1), 1, b"", 0, 0, float("inf")]),
        protocol.encode([key(1), 1, b"x" * protocol.PACKET_MAX_BYTES, 0, 0, None]),
        b"\x91" * 60_000,
        b"",
    ],
)
def test_malformed_packets_end_the_lane_and_its_runs_are_told(lane, packet):
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    assert lane.runs(1, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.near.send(packet)
    assert lane.near.recv(protocol.PACKET_MAX_BYTES) == b""
    lane.end_of_lane(1, runs=(1,))


def test_a_program_that_does_not_listen_loses_its_lane(lane):
    for number in range(PASSED_MAX):
        assert not lane.runs(number, 1)
    assert lane.near.recv(1) == b""
    lane.end_of_lane()


def test_a_run_between_makes_a_program_one_that_listens(lane):
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    for number in range(PASSED_MAX - 1):
        assert not lane.runs(number, 0)
    assert lane.runs(50, 1)
    for number in range(PASSED_MAX - 1):
        assert not lane.runs(number, 0)
    assert lane.runs(51, 1)


# ---------------------------------------------------------------- the end of a lane


def test_a_program_that_leaves_ends_the_lane(lane):
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    assert lane.runs(1, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.near.close()
    lane.end_of_lane(1, runs=(1,))


def test_after_a_ticket_was_cut_the_end_of_the_lane_was_not(lane):
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    assert lane.runs(1, 1)
    lane.server.revoke(1)
    assert not lane.runs(2, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_ticket(1, runs=(1,), was_cut=True)
    lane.near.close()
    lane.end_of_lane()


def test_a_program_that_leaves_during_its_run_is_told_of_all_the_same(lane):
    lane.during = lane.near.close
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    lane.send(1, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_lane(1, runs=(1,))


def test_a_program_that_does_not_read_its_answers_ends_the_lane(lane):
    lane.outputs[b"body"] = (b"", b"r" * 40_000)
    lane.server.give(1, runs=LANE_RUNS_MAX, lasts_s=LONG_S)

    def flood():
        for number in range(LANE_RUNS_MAX):
            lane.send(number, 1)

    with pytest.raises((BrokenPipeError, ConnectionResetError)):
        flood()
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    ended = lane.next_told()
    assert ended.is_closed
    assert 1 < len(ended.runs) < 100
    lane.thread.join(5.0)
    assert not lane.thread.is_alive()


def test_a_lane_is_closed_from_another_thread_while_it_waits(lane):
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    assert lane.runs(1, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.server.close()
    assert lane.near.recv(1) == b""
    lane.end_of_lane(1, runs=(1,))
    lane.server.close()


def test_a_lane_that_is_closed_during_a_run_ends_with_it(lane):
    lane.during = lane.server.close
    lane.server.give(1, runs=9, lasts_s=LONG_S)
    lane.send(1, 1)
    assert lane.next_told() == LaneBegun(lane=3, ticket=1)
    lane.end_of_lane(1, runs=(1,))
    assert lane.near.recv(1) == b""


def test_a_program_cannot_make_the_worker_spin_by_the_end_it_has_kept(made):
    kept = os.dup(made.far.fileno())
    try:
        made.during = lambda: os.set_blocking(kept, False)
        made.server.give(1, runs=9, lasts_s=LONG_S)
        made.thread.start()
        assert made.runs(1, 1)
        assert made.next_told() == LaneBegun(lane=3, ticket=1)
        made.end_of_lane(1, runs=(1,))
    finally:
        os.close(kept)
