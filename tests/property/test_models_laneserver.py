"""Whatever a program sends by a lane, the worker's end neither raises nor hangs, and runs no more than was given."""

import contextlib
import socket
from unittest import mock

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from models import laneprotocol as protocol
from models import laneserver
from models.laneprotocol import PASSED_MAX
from models.laneserver import LaneServer
from models.workerprotocol import LaneBegun, LaneEnded

RUNS = 2

keys = st.binary(min_size=24, max_size=24)
requests = st.builds(
    protocol.LaneRequest,
    key=keys,
    ticket=st.integers(0, 3),
    body=st.sampled_from([b"", b"fits", b"fails", b"long"]),
    offset=st.integers(0, 2**63 - 1),
    payload_bytes=st.integers(0, 2**63 - 1),
    budget_s=st.none() | st.floats(0, 1e6),
).map(protocol.encode)
wrong = st.tuples(
    st.binary(max_size=30),
    st.integers(-1, 2**64 - 1),
    st.binary(max_size=10),
    st.integers(-1, 2**64 - 1),
    st.integers(-1, 2**64 - 1),
    st.none() | st.floats(),
).map(protocol.encode)
fine = st.sampled_from([0, 4, 4, PASSED_MAX]).flatmap(
    lambda least: st.lists(requests, min_size=least, max_size=least + 2)
)
packets = st.tuples(fine, st.lists(st.one_of(wrong, st.binary(max_size=100)), max_size=1), fine).map(
    lambda parts: [packet for part in parts for packet in part]
)
decode = msgspec.msgpack.Decoder(protocol.LaneDone | protocol.LanePass).decode


def answer(request, output, server):
    if request.body == b"fails":
        return None
    return request.body, protocol.OUTPUT_MAX_BYTES if request.body == b"long" else 3


def received(near):
    """Yield the answers that came before the end; the kernel tells first that some packets were not read."""
    while True:
        with contextlib.suppress(ConnectionResetError):
            packet = near.recv(protocol.PACKET_MAX_BYTES)
            if not packet:
                return
            yield decode(packet)


def serve(packets, orders, *, runs=RUNS, lasts_s=60.0, answer=answer):
    """Serve a program that sends some packets and then no more; returns what it and the daemon were told."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told = []
    server = LaneServer(1, far, answer=lambda request, output: answer(request, output, server), tell=told.append)
    with near:
        near.setblocking(False)
        for ticket, is_revoked in orders:
            server.give(ticket, runs=runs, lasts_s=lasts_s)
            if is_revoked:
                server.revoke(ticket)
        for packet in packets:
            near.send(packet)
        near.shutdown(socket.SHUT_WR)
        server.serve()
        assert far.fileno() == -1
        answers = list(received(near))
    return told, answers


@given(packets, st.sampled_from([[False, False], [False], [False, True], [True, False], [True], []]))
@settings(max_examples=100, deadline=None)
def test_a_lane_ends_in_order_whatever_comes_by_it(packets, revoked):
    with mock.patch.object(laneserver, "TICKET_WAIT_MAX_S", 0.0):  # no ticket is on its way
        told, answers = serve(packets, list(enumerate(revoked, 1)))
    assert isinstance(told[-1], LaneEnded)
    assert [word.is_closed for word in told if isinstance(word, LaneEnded)].count(True) == 1
    assert told[-1].is_closed
    done = [each.key for each in answers if isinstance(each, protocol.LaneDone)]
    accounted = [run.key for word in told if isinstance(word, LaneEnded) for run in word.runs]
    assert accounted[: len(done)] == done, "all that was answered is told, in order"
    assert len(accounted) - len(done) <= 1, "and at most the one whose answer nobody read"
    newest = len(revoked)
    begun = [word.ticket for word in told if isinstance(word, LaneBegun)]
    assert begun in ([], [newest]), "only the newest ticket is worth anything"
    assert begun == [] or not revoked[-1]
    assert len(accounted) <= RUNS * len(begun)
    for word in told:
        if isinstance(word, LaneEnded):
            assert word.ticket in (0, newest)
            assert len(word.runs) <= RUNS
    in_row = 0
    for each in answers:
        in_row = 0 if isinstance(each, protocol.LaneDone) else in_row + 1
        assert in_row <= PASSED_MAX


class Clock:
    """Takes the place of the module ``time``."""

    def __init__(self):
        self.now_s = 0.0

    def perf_counter(self):
        return self.now_s


moments = st.sampled_from(["none", "revoke", "give", "give and revoke the old one", "close"])


@given(
    st.lists(st.sampled_from([1, 1, 1, 1, 2]), min_size=1, max_size=20),
    st.lists(moments, max_size=20),
    st.integers(1, 12),
    st.integers(1, 12),
)
@settings(max_examples=200, deadline=None)
def test_what_waits_is_answered_in_order_and_run_only_on_a_good_ticket(tickets, during, runs, lasts_s):
    """All requests are in the socket at once; each run lasts a second, and meanwhile the daemon says something."""
    clock, ran, revoked, given, closed = Clock(), [], [0], [1], []

    def run(request, output, server):
        newest = max([ticket for ticket, _ in ran], default=0)
        assert newest <= request.ticket <= given[-1], "tickets are used in order, and only those that were given"
        assert request.ticket > revoked[-1], "nothing is begun on a ticket that was taken back"
        assert not closed, "nor by a lane that was closed"
        on_it = [began_s for ticket, began_s in ran if ticket == request.ticket]
        assert len(on_it) < runs
        assert not on_it or clock.now_s < on_it[0] + lasts_s
        ran.append((request.ticket, clock.now_s))
        clock.now_s += 1.0
        match during[len(ran) - 1] if len(ran) <= len(during) else "none":
            case "revoke":
                revoked.append(given[-1])
                server.revoke(given[-1])
            case "give" if given[-1] == 1:
                given.append(2)
                server.give(2, runs=runs, lasts_s=lasts_s)
            case "give and revoke the old one" if given[-1] == 1:
                revoked.append(1)
                server.revoke(1)
                given.append(2)
                server.give(2, runs=runs, lasts_s=lasts_s)
            case "close":
                closed.append(True)
                server.close()
        return b"", 0

    packets = [
        protocol.encode(protocol.LaneRequest(number.to_bytes(24, "big"), ticket, b"", 0, 0, None))
        for number, ticket in enumerate(tickets)
    ]
    with mock.patch.object(laneserver, "TICKET_WAIT_MAX_S", 0.0), mock.patch.object(laneserver, "time", clock):
        told, answers = serve(packets, [(1, False)], runs=runs, lasts_s=lasts_s, answer=run)
    numbers = [int.from_bytes(each.key, "big") for each in answers]
    assert numbers == list(range(len(answers)))
    assert closed or len(answers) == len(tickets), "each is answered"
    done = [each for each in answers if isinstance(each, protocol.LaneDone)]
    assert len(ran) - len(done) == len(closed)
    accounted = [(word.ticket, run.key) for word in told if isinstance(word, LaneEnded) for run in word.runs]
    assert [ticket for ticket, _ in accounted] == [ticket for ticket, _ in ran], "all that ran is told, on its ticket"
    assert [key for _, key in accounted][: len(done)] == [each.key for each in done]
    begun = [word.ticket for word in told if isinstance(word, LaneBegun)]
    assert begun == sorted(set(begun))
    ended = [word.ticket for word in told if isinstance(word, LaneEnded) and word.ticket]
    assert ended == begun
