"""Lanes to peers: a program at the other end of a real socket, and a peer on connections played by the test."""

import contextlib
import fcntl
import os
import random
import socket

import msgspec
import pytest
import trio
import trio.testing

from gridnode.driver import Driver
from gridnode.farlanes import LANES_MAX, SILENCE_MAX_S, FarLanes
from gridnode.lanes import LASTS_S, RUNS
from models import laneprotocol as protocol
from models.laneprotocol import ANSWER_MAX_BYTES, PASSED_MAX, LanePass, LaneRequest
from models.segments import Segment
from models.workerprotocol import LaneRun as RunAccount
from scheduler.config import CoreConfig
from scheduler.core import Core
from transport.wire import (
    FrameTooLargeError,
    LaneDone,
    LanePassed,
    LaneRun,
    PeerUnreachableError,
    Pong,
    RemoteProtocolError,
    TableRequest,
)

MODEL = "a" * 64
SEGMENT_BYTES = 8192
PROGRAMS = bytes(range(256)) * (SEGMENT_BYTES // 256)
"""What the program's memory holds."""

decode = msgspec.msgpack.Decoder(protocol.LaneDone | LanePass).decode


def make_segment():
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.write(descriptor, PROGRAMS)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return Segment(descriptor, SEGMENT_BYTES)


def key(number):
    return number.to_bytes(24, "big")


class Connection:
    """A connection to the peer, leased; the test says what comes on it."""

    peer = "peer"

    def __init__(self, way):
        self.way = way
        self.sent = []
        self.listener = None
        self.is_finished = False
        self.is_back = False
        self.flushing = trio.Event()
        self.may_leave = trio.Event()
        self.fault = None

    def send_nowait(self, message, payload=()):
        assert not self.is_back
        if self.way == "waits":
            raise trio.WouldBlock
        if self.way == "broken":
            raise PeerUnreachableError("broken")
        self.sent.append((message, b"".join(payload)))
        return self.way != "in part"

    async def flush(self):
        self.flushing.set()
        await self.may_leave.wait()
        if self.fault is not None:
            raise self.fault

    def listen(self, listener):
        if self.way == "no reader":
            return False
        self.listener = listener
        return True

    def finish(self):
        self.is_finished = True

    # What the peer does.

    def say(self, message, payload=b""):
        self.listener.heard(message, memoryview(payload))

    def done(self, number, *, service_s=0.0, body=b"result", payload=b"raw"):
        self.say(LaneDone(key=key(number), service_s=service_s, body=body), payload)

    def passed(self, number, *, is_unfit=False):
        self.say(LanePassed(key=key(number), is_unfit=is_unfit))

    @property
    def state(self):
        return ("kept" if self.is_finished else "closed") if self.is_back else "in use"


class Bench:
    """One lane, and what everybody was told."""

    def __init__(self, nursery, *, keeps=False):
        core = Core(CoreConfig(), node_id="n", epoch=1, rng=random.Random(1), now_s=0.0)
        self.blamed, self.alive, self.words = [], [], []
        self.way = "at once"
        self.connections = []
        self.lanes = FarLanes(
            data=self,
            driver=Driver(core, clock=trio.current_time),
            nursery=nursery,
            default_deadline_s=10.0,
            on_misbehaviour=lambda peer, what: self.blamed.append(peer),
            on_answer=self.alive.append,
        )
        self.segment = make_segment()
        self.near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near.setblocking(False)
        self.kept = far.dup() if keeps else None
        """Our end, which a program may keep."""
        self.lane = self.lanes.open("peer", MODEL, self.segment, far.detach(), self.words.append)

    # As the data plane.

    def take(self, peer):
        assert peer == "peer"
        if self.way == "none":
            return None
        self.connections.append(Connection(self.way))
        return self.connections[-1]

    def give_back(self, connection):
        assert not connection.is_back, "once"
        connection.is_back, connection.listener = True, None

    # As the program.

    def give(self, ticket):
        assert self.lane.give(ticket, runs=RUNS, lasts_s=LASTS_S)

    async def ask(self, number=1, *, ticket=1, offset=0, size=100, budget_s=2.0, body=b"body"):
        self.near.send(protocol.encode(LaneRequest(key(number), ticket, body, offset, size, budget_s)))
        await trio.testing.wait_all_tasks_blocked()

    def heard(self):
        """Return what has come: answers, and "end"."""
        answers = []
        while True:
            try:
                packet = self.near.recv(protocol.PACKET_MAX_BYTES)
            except BlockingIOError:
                return answers
            except ConnectionResetError:
                continue  # the kernel tells first that something was not read
            if not packet:
                return [*answers, "end"]
            answers.append(decode(packet))

    @property
    def line(self):
        """The connection in use."""
        return self.connections[-1]

    @property
    def states(self):
        return [connection.state for connection in self.connections]

    async def run(self, number=1, *, ticket=1, service_s=0.0):
        """Have one request run."""
        await self.ask(number, ticket=ticket)
        self.line.done(number, service_s=service_s)
        answer = self.heard()[-1]
        assert (type(answer), answer.key) == (protocol.LaneDone, key(number))


def at_lane(scenario, **options):
    """Run a scenario at a lane, and check that nothing is left of it."""
    seen = []

    async def main():
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery, **options)
            seen.append(bench)
            await trio.testing.wait_all_tasks_blocked()
            with bench.near, bench.kept or contextlib.nullcontext():
                await scenario(bench)
                nursery.cancel_scope.cancel()
        check_at_rest(bench)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return seen[0]


def check_at_rest(bench):
    assert "in use" not in bench.states
    assert [word.is_closed for word in bench.words].count(True) == 1
    assert bench.words[-1].is_closed
    assert bench.lane._line.fileno() == -1
    assert bench.lanes._open == 0
    bench.segment.close()


PASS, UNFIT = (LanePass(key(1), is_unfit) for is_unfit in (False, True))


# ---------------------------------------------------------------- a request's way


def test_a_request_goes_to_the_peer_and_its_answer_to_the_program():
    async def scenario(bench):
        bench.give(1)
        await bench.ask(7, offset=128, size=300, budget_s=2.5)
        run = LaneRun(key=key(7), model=MODEL, budget_s=2.5, body=b"body")
        assert bench.line.sent == [(run, PROGRAMS[128:428])]
        assert bench.heard() == []
        await trio.sleep(0.004)
        bench.line.done(7, service_s=0.001)
        [answer] = bench.heard()
        assert answer == protocol.LaneDone(key(7), b"result", b"raw", 0.001, pytest.approx(0.003))

    at_lane(scenario)


def test_a_request_without_a_budget_has_the_daemons():
    async def scenario(bench):
        bench.give(1)
        await bench.ask(budget_s=None)
        assert bench.line.sent[0][0].budget_s == 10.0

    at_lane(scenario)


def test_a_request_without_a_payload_has_none():
    async def scenario(bench):
        bench.give(1)
        await bench.ask(size=0)
        assert bench.line.sent[0][1] == b""
        bench.line.done(1)
        assert len(bench.heard()) == 1

    at_lane(scenario)


def test_a_ticket_is_good_for_so_many_runs_on_one_connection():
    async def scenario(bench):
        bench.give(1)
        for number in range(RUNS):
            assert bench.states == (["in use"] if number else [])
            assert not bench.words
            await bench.run(number)
        assert bench.states == ["kept"]
        [word] = bench.words
        assert [run.key for run in word.runs] == [key(number) for number in range(RUNS)]
        assert (word.ticket, word.was_cut, word.is_closed) == (1, False, False)
        await bench.ask()
        assert bench.heard() == [PASS]
        assert len(bench.connections) == 1

    at_lane(scenario)


def test_the_next_ticket_takes_a_connection_anew():
    async def scenario(bench):
        for ticket in (1, 2):
            bench.give(ticket)
            for number in range(RUNS):
                await bench.run(number, ticket=ticket)
        assert bench.states == ["kept", "kept"]
        assert [word.ticket for word in bench.words] == [1, 2]

    at_lane(scenario)


def test_what_was_run_is_told_when_the_ticket_is_over():
    async def scenario(bench):
        bench.give(1)
        await bench.ask(1, size=64, budget_s=None)
        await trio.sleep(0.005)
        bench.line.done(1, service_s=0.002, payload=b"12345")
        await bench.run(2)
        assert (bench.words, bench.alive) == ([], [])
        await trio.sleep(0.015)
        bench.lane.revoke(1)
        [word] = bench.words
        assert word.runs == (
            RunAccount(
                key=key(1),
                age_s=pytest.approx(0.02),
                service_s=0.002,
                transfer_s=pytest.approx(0.003),
                input_bytes=64,
                output_bytes=len(b"result" + b"12345"),
                budget_s=None,
            ),
            RunAccount(
                key=key(2),
                age_s=pytest.approx(0.015),
                service_s=0.0,
                transfer_s=0.0,
                input_bytes=100,
                output_bytes=len(b"result" + b"raw"),
                budget_s=2.0,
            ),
        )
        assert bench.alive == ["peer"], "it lives"

    assert len(at_lane(scenario).words) == 2


def test_a_peer_that_has_answered_nothing_is_not_said_to_live():
    async def scenario(bench):
        bench.give(1)
        await bench.ask()
        bench.line.passed(1)
        assert len(bench.words) == 1

    assert at_lane(scenario).alive == []


# ---------------------------------------------------------------- tickets


@pytest.mark.parametrize("ticket", [0, 1, 3, 2**62])
def test_a_ticket_that_was_not_given_is_worth_nothing(ticket):
    async def scenario(bench):
        await bench.ask(ticket=2)
        bench.give(2)
        await bench.ask(ticket=ticket)
        assert bench.heard() == [PASS, PASS]
        assert bench.connections == []
        await bench.run(ticket=2)

    at_lane(scenario)


def test_only_the_newest_ticket_counts():
    async def scenario(bench):
        bench.give(1)
        bench.give(2)
        await bench.ask(ticket=1)
        assert bench.heard() == [PASS]
        await bench.run(ticket=2)

    at_lane(scenario)


def test_no_ticket_is_no_ticket_though_none_is_in_use():
    async def scenario(bench):
        await bench.ask(ticket=0)
        assert bench.heard() == [PASS]
        bench.give(1)
        await bench.ask(ticket=0)
        assert bench.heard() == [PASS]

    assert at_lane(scenario).connections == []


def test_no_ticket_is_no_ticket_though_the_last_one_would_still_last():
    async def scenario(bench):
        bench.give(1)
        await bench.run(2)
        bench.lane.revoke(1)
        await bench.ask(1, ticket=0)
        assert bench.heard() == [PASS]

    at_lane(scenario)


def test_an_unused_ticket_lasts_for_ever():
    async def scenario(bench):
        bench.give(1)
        await trio.sleep(1000.0)
        await bench.run()

    at_lane(scenario)


def test_a_ticket_in_use_lasts_so_long_though_nobody_asks():
    async def scenario(bench):
        bench.give(1)
        await trio.sleep(3.0)
        await bench.run()
        begun_s = trio.current_time()
        await trio.sleep(LASTS_S * 0.99)
        assert bench.states == ["in use"]
        await trio.sleep_until(begun_s + LASTS_S * 1.01)
        assert bench.states == ["kept"]
        [word] = bench.words
        assert (len(word.runs), word.was_cut) == (1, False)
        assert word.runs[0].age_s == pytest.approx(LASTS_S)
        await bench.ask(2)
        assert bench.heard() == [LanePass(key(2), is_unfit=False)]
        await trio.sleep(10.0)
        assert len(bench.words) == 1

    at_lane(scenario)


def test_a_run_under_way_at_its_tickets_end_is_the_last_one_and_no_cut():
    async def scenario(bench):
        bench.give(1)
        await bench.run(1)
        await bench.ask(2)
        await trio.sleep(LASTS_S + SILENCE_MAX_S * 0.9)
        assert (bench.states, bench.words) == (["in use"], [])
        bench.line.done(2)
        assert [type(answer) for answer in bench.heard()] == [protocol.LaneDone]
        assert bench.states == ["kept"]
        [word] = bench.words
        assert (len(word.runs), word.was_cut) == (2, False)

    at_lane(scenario)


def test_another_ticket_takes_the_place_of_one_in_use():
    async def scenario(bench):
        bench.give(1)
        await bench.run(1)
        bench.give(2)
        await bench.ask(2, ticket=2)
        assert bench.states == ["kept", "in use"]
        assert [(word.ticket, len(word.runs), word.was_cut) for word in bench.words] == [(1, 1, False)]
        bench.line.done(2)
        await bench.ask(3, ticket=1)
        assert bench.heard()[-1] == LanePass(key(3), is_unfit=False)
        assert bench.states == ["kept", "kept"], "a program that goes back has used its ticket up"

    at_lane(scenario)


def test_a_request_at_the_very_end_of_its_ticket_is_passed():
    clock = trio.testing.MockClock()

    async def scenario():
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery)
            await trio.testing.wait_all_tasks_blocked()
            bench.give(1)
            await bench.run(2)
            bench.near.send(protocol.encode(LaneRequest(key(1), 1, b"", 0, 1, None)))
            clock.jump(LASTS_S)  # as below
            await trio.testing.wait_all_tasks_blocked()
            assert bench.heard() == [PASS]
            assert bench.states == ["kept"]
            assert [(word.ticket, len(word.runs), word.was_cut) for word in bench.words] == [(1, 1, False)]
            bench.near.close()
        check_at_rest(bench)

    trio.run(scenario, clock=clock)


def test_a_ticket_begun_at_the_very_end_of_the_one_before_lasts_as_long_as_any():
    clock = trio.testing.MockClock()

    async def scenario():
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery)
            await trio.testing.wait_all_tasks_blocked()
            bench.give(1)
            await bench.run(1)
            bench.give(2)
            bench.near.send(protocol.encode(LaneRequest(key(2), 2, b"", 0, 1, None)))
            clock.jump(LASTS_S)  # what has come and what is due are found in one look
            await trio.testing.wait_all_tasks_blocked()
            bench.line.done(2)
            await bench.run(3, ticket=2)
            assert bench.states == ["kept", "in use"]
            clock.jump(LASTS_S)
            await trio.testing.wait_all_tasks_blocked()
            assert [(word.ticket, len(word.runs), word.was_cut) for word in bench.words] == [
                (1, 1, False),
                (2, 2, False),
            ]
            bench.near.close()
        check_at_rest(bench)

    trio.run(scenario, clock=clock)


# ---------------------------------------------------------------- revocation


def test_a_ticket_that_is_taken_back_ends_at_once():
    async def scenario(bench):
        bench.give(1)
        await bench.run(1)
        bench.lane.revoke(1)
        assert bench.states == ["kept"]
        [word] = bench.words
        assert (word.ticket, len(word.runs), word.was_cut) == (1, 1, True)
        bench.lane.revoke(1)
        await bench.ask()
        assert bench.heard() == [PASS]
        assert len(bench.words) == 1

    at_lane(scenario)


def test_a_run_under_way_is_answered_though_its_ticket_is_taken_back():
    async def scenario(bench):
        bench.give(1)
        await bench.ask(1)
        bench.lane.revoke(1)
        assert (bench.states, bench.words) == (["in use"], [])
        bench.line.done(1)
        assert [type(answer) for answer in bench.heard()] == [protocol.LaneDone]
        assert bench.states == ["kept"]
        [word] = bench.words
        assert (len(word.runs), word.was_cut) == (1, True)

    at_lane(scenario)


def test_a_ticket_that_was_used_up_was_not_cut():
    async def scenario(bench):
        bench.give(1)
        for number in range(RUNS - 1):
            await bench.run(number)
        await bench.ask(100)
        bench.lane.revoke(1)
        bench.line.done(100)
        assert [word.was_cut for word in bench.words] == [False]

    at_lane(scenario)


def test_a_ticket_taken_back_before_its_use_is_worth_nothing():
    async def scenario(bench):
        bench.give(1)
        bench.lane.revoke(1)
        await bench.ask()
        assert bench.heard() == [PASS]
        assert (bench.connections, bench.words) == ([], [])

    at_lane(scenario)


def test_what_is_taken_back_is_that_ticket_and_older_ones():
    async def scenario(bench):
        bench.give(2)
        bench.lane.revoke(1)
        await bench.run(ticket=2)
        bench.lane.revoke(1)
        await bench.run(ticket=2)
        bench.give(3)
        bench.lane.revoke(2)
        assert [(word.ticket, word.was_cut) for word in bench.words] == [(2, True)]
        await bench.run(ticket=3)

    at_lane(scenario)


def test_a_cut_is_told_of_one_ticket_alone():
    async def scenario(bench):
        bench.give(1)
        await bench.run()
        bench.lane.revoke(1)
        bench.give(2)
        await bench.run(ticket=2)
        await trio.sleep(2 * LASTS_S)
        assert [word.was_cut for word in bench.words] == [True, False]

    assert not at_lane(scenario).words[-1].was_cut


# ---------------------------------------------------------------- a peer that does not answer as it should


@pytest.mark.parametrize("is_unfit", [False, True])
def test_a_run_that_the_peer_passes_is_passed_and_ends_the_ticket(is_unfit):
    async def scenario(bench):
        bench.give(1)
        await bench.run(2)
        await bench.ask(1)
        bench.line.passed(1, is_unfit=is_unfit)
        assert bench.heard() == [UNFIT if is_unfit else PASS]
        assert bench.states == ["kept"]
        [word] = bench.words
        assert ([run.key for run in word.runs], word.was_cut) == ([key(2)], True)

    assert at_lane(scenario).blamed == []


def test_a_peer_that_falls_silent_is_waited_for_so_long():
    async def scenario(bench):
        bench.give(1)
        await bench.run(2)
        await trio.sleep(0.07)
        await bench.ask(1)
        await trio.sleep(LASTS_S - 0.07 + SILENCE_MAX_S * 0.99)
        assert (bench.heard(), bench.states) == ([], ["in use"])
        await trio.sleep(SILENCE_MAX_S * 0.02)
        assert (bench.heard(), bench.states) == ([PASS], ["closed"])
        [word] = bench.words
        assert ([run.key for run in word.runs], word.was_cut) == ([key(2)], True)
        bench.give(2)
        await bench.run(ticket=2)

    assert at_lane(scenario).blamed == []


@pytest.mark.parametrize(
    "word",
    [
        LaneDone(key=key(9), service_s=0.0, body=b""),
        LanePassed(key=key(9), is_unfit=False),
        TableRequest(),
        Pong(nonce=1, reached=True, state=None),
        LaneRun(key=key(1), model=MODEL, budget_s=1.0, body=b""),
    ],
    ids=lambda word: type(word).__name__,
)
@pytest.mark.parametrize("is_asked", [True, False])
def test_who_says_something_else_is_blamed_and_its_connection_closed(word, is_asked):
    async def scenario(bench):
        bench.give(1)
        await bench.run(2)
        if is_asked:
            await bench.ask(1)
        bench.line.say(word)
        assert bench.blamed == ["peer"]
        assert bench.heard() == ([PASS] if is_asked else [])
        assert bench.states == ["closed"]
        [account] = bench.words
        assert ([run.key for run in account.runs], account.was_cut) == ([key(2)], True)
        bench.give(2)
        await bench.run(ticket=2)

    at_lane(scenario)


def test_an_answer_that_comes_twice_is_blamed():
    async def scenario(bench):
        bench.give(1)
        await bench.run(1)
        bench.line.done(1)
        assert (bench.blamed, bench.states, bench.heard()) == (["peer"], ["closed"], [])
        assert [len(word.runs) for word in bench.words] == [1], "it counts once"

    at_lane(scenario)


@pytest.mark.parametrize("is_done", [True, False])
def test_an_answer_before_all_was_asked_is_blamed_and_the_rest_does_not_leave(is_done):
    async def scenario(bench):
        bench.way = "in part"
        bench.give(1)
        await bench.ask(1)
        assert bench.line.flushing.is_set()
        bench.line.done(1) if is_done else bench.line.passed(1)
        assert (bench.blamed, bench.states, bench.heard()) == (["peer"], ["closed"], [PASS])
        assert [word.runs for word in bench.words] == [()]

    at_lane(scenario)


def test_a_payload_that_does_not_leave_at_once_is_sent_by_and_by():
    async def scenario(bench):
        bench.way = "in part"
        bench.give(1)
        for number in (1, 2):
            await bench.ask(number)
            bench.line.may_leave.set()
            await trio.testing.wait_all_tasks_blocked()
            bench.line.done(number)
        assert [type(answer) for answer in bench.heard()] == [protocol.LaneDone] * 2
        bench.lane.revoke(1)
        assert (bench.blamed, bench.states) == ([], ["kept"])

    at_lane(scenario)


def test_the_end_of_an_older_connections_sending_says_nothing_of_this_one():
    async def scenario(bench):
        bench.way = "in part"
        bench.give(1)
        await bench.ask(1)
        first = bench.line
        first.listener.broke(PeerUnreachableError("closed"))
        bench.give(2)
        await bench.ask(2, ticket=2)
        first.may_leave.set()
        await trio.testing.wait_all_tasks_blocked()
        bench.line.done(2)
        assert bench.blamed == ["peer"]

    at_lane(scenario)


@pytest.mark.parametrize("fault", [PeerUnreachableError("did not take it"), RemoteProtocolError("closed")])
def test_a_payload_that_does_not_leave_is_heard_of_by_the_lane_alone(fault):
    async def scenario(bench):
        bench.way = "in part"
        bench.give(1)
        await bench.ask(1)
        bench.line.fault = fault
        bench.line.may_leave.set()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.heard() == []
        bench.line.listener.broke(fault)
        assert bench.heard() == [PASS]
        assert bench.states == ["closed"]

    at_lane(scenario)


@pytest.mark.parametrize(
    ("error", "is_blamed"),
    [
        (PeerUnreachableError("closed"), False),
        (RemoteProtocolError("TLS failed"), True),
        (FrameTooLargeError("huge"), True),
    ],
)
@pytest.mark.parametrize("is_asked", [True, False])
def test_a_connection_that_breaks_ends_the_ticket_and_what_was_run_counts(error, is_blamed, is_asked):
    async def scenario(bench):
        bench.give(1)
        await bench.run(2)
        if is_asked:
            await bench.ask(1)
        bench.line.listener.broke(error)
        assert bench.blamed == (["peer"] if is_blamed else [])
        assert bench.heard() == ([PASS] if is_asked else [])
        assert bench.states == ["closed"]
        [word] = bench.words
        assert ([run.key for run in word.runs], word.was_cut) == ([key(2)], True)
        bench.give(2)
        await bench.run(ticket=2)

    at_lane(scenario)


def test_whoever_hears_of_a_breach_may_take_tickets_back():
    async def scenario(bench):
        bench.lanes.on_misbehaviour = lambda peer, what: bench.lane.revoke(99)
        bench.give(1)
        await bench.run(1)
        bench.line.say(TableRequest())
        assert bench.states == ["closed"]
        assert len(bench.words) == 1

    at_lane(scenario)


@pytest.mark.parametrize(("way", "states"), [("none", []), ("no reader", ["closed"])])
def test_without_a_connection_at_hand_the_ticket_is_spent_and_the_request_passed(way, states):
    async def scenario(bench):
        bench.way = way
        bench.give(1)
        await bench.ask()
        bench.way = "at once"
        await bench.ask()
        assert bench.heard() == [PASS, PASS]
        assert bench.states == states
        bench.give(2)
        await bench.run(ticket=2)

    at_lane(scenario)


@pytest.mark.parametrize("way", ["waits", "broken"])
def test_a_connection_that_does_not_take_a_run_is_not_kept(way):
    async def scenario(bench):
        bench.way = way
        bench.give(1)
        await bench.ask()
        assert bench.heard() == [PASS]
        assert bench.states == ["closed"]
        assert [(word.ticket, word.runs, word.was_cut) for word in bench.words] == [(1, (), True)]
        bench.way = "at once"
        bench.give(2)
        await bench.run(ticket=2)

    assert at_lane(scenario).blamed == []


@pytest.mark.parametrize("surplus", [0, 1])
def test_outputs_that_fit_no_packet_are_the_daemons(surplus):
    async def scenario(bench):
        bench.give(1)
        await bench.ask(1)
        bench.line.done(1, body=bytes(48 * 1024), payload=bytes(ANSWER_MAX_BYTES - 48 * 1024 + surplus))
        [answer] = bench.heard()
        assert answer == UNFIT if surplus else answer.key == key(1)
        await bench.run(2)
        bench.lane.revoke(1)
        assert [len(word.runs) for word in bench.words] == [1 + (not surplus)]

    at_lane(scenario)


def test_a_peer_cannot_have_run_longer_than_it_was_waited_for():
    async def scenario(bench):
        bench.give(1)
        await bench.ask(1)
        await trio.sleep(0.01)
        bench.line.done(1, service_s=5e5)
        [answer] = bench.heard()
        assert (answer.service_s, answer.transfer_s) == (pytest.approx(0.01), 0.0)
        bench.lane.revoke(1)
        [run] = bench.words[0].runs
        assert (run.service_s, run.transfer_s) == (pytest.approx(0.01), 0.0)

    at_lane(scenario)


# ---------------------------------------------------------------- a program that does not ask as it should


@pytest.mark.parametrize(
    ("offset", "size"), [(SEGMENT_BYTES, 1), (0, SEGMENT_BYTES + 1), (1, 1), (2**62, 0), (64, 2**62)]
)
def test_a_payload_outside_its_memory_is_unfit_and_costs_no_connection(offset, size):
    async def scenario(bench):
        bench.give(1)
        await bench.ask(1, offset=offset, size=size)
        assert bench.heard() == [UNFIT]
        assert bench.line.sent == []
        await bench.run(2)
        bench.lane.revoke(1)
        assert bench.states == ["kept"]

    at_lane(scenario)


@pytest.mark.parametrize(
    "packet",
    [
        b"\xc1",
        b"\x91" * 60_000,
        protocol.encode(["done", key(1), b"", b"", 0.0]),
        protocol.encode([key(1)[1:], 1, b"", 0, 1, None]),
        protocol.encode([key(1), -1, b"", 0, 1, None]),
        protocol.encode([key(1), 1, b"", 0, 1, float("nan")]),
        protocol.encode([key(1), 1, b"", 0, 1, 2e6]),
        protocol.encode([key(1), 1, bytes(48 * 1024 + 1), 0, 1, None]),
        b"\x96\xa4\xff\xff\xff\xff",
        b"\x97" + protocol.encode((key(1), 1, b"", 0, 1, None))[1:] + b"\x91" * 60_000,
        b"",
    ],
    ids=range(11),
)
@pytest.mark.parametrize("is_asked", [True, False])
def test_a_program_that_breaks_the_protocol_loses_its_lane(packet, is_asked):
    async def scenario(bench):
        bench.give(1)
        await bench.run(2)
        if is_asked:
            await bench.ask(1)
        bench.near.send(packet)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.heard() == ["end"]
        assert bench.states == ["closed" if is_asked else "kept"]
        [word] = bench.words
        assert (word.ticket, len(word.runs), word.is_closed) == (1, 1, True)

    at_lane(scenario)


def test_the_longest_body_fits_a_peers_bound():
    async def scenario(bench):
        bench.give(1)
        await bench.ask(1, body=bytes(48 * 1024))
        assert len(bench.line.sent[0][0].body) == 48 * 1024

    at_lane(scenario)


def test_a_program_that_does_not_wait_for_its_answer_loses_its_lane():
    async def scenario(bench):
        bench.give(1)
        await bench.ask(1)
        await bench.ask(2)
        assert len(bench.line.sent) == 1, "never two on the way"
        assert bench.heard() == ["end"]
        assert bench.states == ["closed"]

    at_lane(scenario)


@pytest.mark.parametrize("is_asked", [True, False])
@pytest.mark.parametrize("how", ["leaves", "says that it sends no more"])
def test_a_program_that_leaves_ends_the_lane(is_asked, how):
    async def scenario(bench):
        bench.give(1)
        await bench.run(2)
        if is_asked:
            await bench.ask(1)
        if how == "leaves":
            bench.near.close()
        else:
            bench.near.shutdown(socket.SHUT_WR)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.states == ["closed" if is_asked else "kept"]
        [word] = bench.words
        assert (word.ticket, len(word.runs), word.is_closed, word.was_cut) == (1, 1, True, False)
        assert not bench.lane.give(2, runs=RUNS, lasts_s=LASTS_S)

    at_lane(scenario)


def test_a_program_that_has_left_is_not_answered():
    async def scenario(bench):
        bench.give(1)
        await bench.ask(1)
        bench.near.close()
        bench.line.done(1)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.states == ["kept"]
        assert [len(word.runs) for word in bench.words] == [1], "it was run all the same"

    at_lane(scenario)


def test_so_many_requests_in_vain_end_a_lane():
    async def scenario(bench):
        for number in range(PASSED_MAX - 1):
            await bench.ask(number, ticket=9)
        bench.give(1)
        await bench.ask(50)
        bench.line.done(50)
        assert len(bench.heard()) == PASSED_MAX
        for number in range(PASSED_MAX - 1):
            await bench.ask(number, ticket=9)
        assert len(bench.heard()) == PASSED_MAX - 1
        assert bench.lanes._open == 1
        await bench.ask(51, ticket=9)
        assert bench.heard() == [LanePass(key(51), is_unfit=False), "end"], "the last is answered, too"
        assert bench.states == ["kept"]

    at_lane(scenario)


def test_a_program_that_reads_no_answers_loses_its_lane_though_it_kept_our_end():
    async def scenario(bench):
        bench.kept.setblocking(True)
        bench.kept.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        number = 0
        for ticket in range(1, 100):
            bench.give(ticket)
            while bench.lanes._open and number < RUNS * ticket:
                number += 1
                await bench.ask(number, ticket=ticket)
                bench.line.done(number, payload=bytes(3000))
                await trio.testing.wait_all_tasks_blocked()
            if not bench.lanes._open:
                break
        assert bench.words[-1].is_closed
        accounted = [run.key for word in bench.words for run in word.runs]
        assert accounted == [key(count) for count in range(1, number + 1)]

    at_lane(scenario, keeps=True)


def test_a_program_that_takes_its_request_back_cannot_make_us_wait():
    class Thief(trio.abc.Instrument):
        """Takes a packet when the loop has just found that there is one."""

        def after_io_wait(self, timeout):
            with contextlib.suppress(BlockingIOError):
                bench.kept.recv(protocol.PACKET_MAX_BYTES, socket.MSG_DONTWAIT)

    async def main():
        nonlocal bench
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery, keeps=True)
            bench.kept.setblocking(True)
            await trio.testing.wait_all_tasks_blocked()
            trio.lowlevel.add_instrument(thief := Thief())
            await bench.ask(1)
            trio.lowlevel.remove_instrument(thief)
            bench.kept.close()
            assert bench.heard() == ["end"]
            bench.near.close()
        check_at_rest(bench)

    bench = None
    trio.run(main)


def test_a_program_that_kept_our_end_cannot_make_us_wait():
    async def scenario(bench):
        bench.give(1)
        bench.kept.setblocking(True)
        await bench.run(1)
        bench.kept.shutdown(socket.SHUT_RDWR)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.words[-1].is_closed

    at_lane(scenario, keeps=True)


# ---------------------------------------------------------------- the end


@pytest.mark.parametrize("is_asked", [True, False])
def test_a_lane_that_is_closed_here_ends_with_its_account(is_asked):
    async def scenario(bench):
        bench.give(1)
        await bench.run(2)
        if is_asked:
            await bench.ask(1)
        bench.lane.close()
        bench.lane.close()
        assert not bench.lane.give(2, runs=RUNS, lasts_s=LASTS_S)
        await trio.testing.wait_all_tasks_blocked()
        assert bench.states == ["closed" if is_asked else "kept"]
        [word] = bench.words
        assert ([run.key for run in word.runs], word.is_closed) == ([key(2)], True)
        assert bench.heard() == ["end"]
        bench.lane.revoke(1)
        bench.lane.close()
        assert len(bench.words) == 1

    at_lane(scenario)


def test_what_has_come_when_a_lane_is_closed_is_not_looked_at():
    async def scenario(bench):
        bench.give(1)
        bench.near.send(protocol.encode(LaneRequest(key(1), 1, b"", 0, 1, None)))
        bench.lane.close()
        bench.segment.close()
        await trio.testing.wait_all_tasks_blocked()
        assert bench.connections == []
        assert bench.words[-1].is_closed

    at_lane(scenario)


def test_a_lane_may_be_closed_before_it_begins():
    async def main():
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery)
            bench.lane.close()
            bench.near.close()
        check_at_rest(bench)

    trio.run(main)


@pytest.mark.parametrize("when", ["before it begins", "idle", "ticket", "run", "sending"])
def test_a_lane_that_is_cancelled_leaves_nothing(when):
    async def main():
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery)
            if when != "before it begins":
                await trio.testing.wait_all_tasks_blocked()
                bench.give(1)
            if when in ("ticket", "run"):
                await bench.run(1)
            if when == "run":
                await bench.ask(2)
            if when == "sending":
                bench.way = "in part"
                await bench.ask(2)
            nursery.cancel_scope.cancel()
        with bench.near:
            assert bench.heard() == ["end"]
        assert bench.states == {"ticket": ["kept"], "run": ["closed"], "sending": ["closed"]}.get(when, [])
        assert sum(len(word.runs) for word in bench.words) == (when in ("ticket", "run"))
        check_at_rest(bench)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_overdue_lane_that_is_closed_looks_at_no_clock():
    async def scenario(bench):
        bench.give(1)
        await bench.ask(1)
        await trio.sleep(LASTS_S * 1.5)
        bench.near.close()
        await trio.sleep(2 * SILENCE_MAX_S)
        assert bench.states == ["closed"]
        assert len(bench.words) == 1

    at_lane(scenario)


# ---------------------------------------------------------------- all lanes


def is_open(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("kind", ["file", "pipe", "stream", "datagram", "inet"])
def test_only_a_lanes_end_is_served(kind):
    async def scenario(bench):
        ours = theirs = -1
        if kind == "file":
            theirs = os.open("/dev/null", os.O_RDONLY)
        elif kind == "pipe":
            ours, theirs = os.pipe()
        else:
            family = socket.AF_INET if kind == "inet" else socket.AF_UNIX
            theirs = socket.socket(family, socket.SOCK_STREAM if kind != "datagram" else socket.SOCK_DGRAM).detach()
        assert bench.lanes.open("peer", MODEL, bench.segment, theirs, bench.words.append) is None
        assert not is_open(theirs)
        assert bench.lanes._open == 1
        if ours >= 0:
            os.close(ours)

    at_lane(scenario)


def test_there_are_so_many_lanes_and_those_that_have_ended_take_no_room():
    async def scenario(bench):
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(LANES_MAX + 1)]
        ends = [far.detach() for _, far in pairs]
        words = []

        def open_one():
            return bench.lanes.open("peer", MODEL, bench.segment, ends.pop(), words.append)

        made = [open_one() for _ in range(LANES_MAX - 1)]
        assert None not in made
        last = ends[-1]
        assert open_one() is None
        assert not is_open(last)
        made[0].close()
        await trio.testing.wait_all_tasks_blocked()
        assert open_one() is not None
        for near, _ in pairs:
            near.close()
        await trio.testing.wait_all_tasks_blocked()
        assert [word.is_closed for word in words] == [True] * LANES_MAX

    at_lane(scenario)


def test_what_a_ticket_is_good_for_is_the_same_for_all():
    async def scenario(bench):
        with pytest.raises(AssertionError, match="alike"):
            bench.lane.give(1, runs=RUNS + 1, lasts_s=LASTS_S)
        with pytest.raises(AssertionError, match="alike"):
            bench.lane.give(1, runs=RUNS, lasts_s=2 * LASTS_S)

    at_lane(scenario)
