"""A program's end of a lane, with a worker played by the test at the other end of a real socket."""

import socket

import msgspec
import pytest

from gridnode import lane as program
from gridnode.control import JobDone, Ticket
from gridnode.errors import ProtocolError
from gridnode.jobs import BUDGET_MAX_S, Job, Options, Request
from gridnode.lane import Lane
from models import laneprotocol as worker

KEY = b"c" * 16 + bytes(8)
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


def job(number=1, *, model="street", options=OPTIONS, deadline_s=None, payload=b"frame"):
    request = Request(model=model, body=b"body", parts=(payload,), payload_bytes=len(payload), options=options)
    return Job(b"c" * 16 + number.to_bytes(8, "big"), request, opened_s=0.0, deadline_s=deadline_s)


def ticket(number=1, *, runs=2, lasts_s=1000.0, depth=1, least_budget_s=0.0):
    return Ticket(
        lane=0, ticket=number, runs=runs, lasts_s=lasts_s, depth=depth, lanes=1, least_budget_s=least_budget_s
    )


def takes(lane, job, now_s=0.0):
    """Tell whether a job may be sent, behind others if need be."""
    return lane.has_ticket(now_s) and lane.takes(job, now_s, may_queue=True)


@pytest.fixture
def lane():
    made = Lane(0, "street", OPTIONS, USUAL)
    made.other.settimeout(5.0)
    yield made
    made.close()


def asked(lane):
    """Return the next request, as the worker reads it."""
    return worker.decode_request(lane.other.recv(worker.PACKET_MAX_BYTES))


def reply(lane, answer):
    lane.other.send(worker.encode(answer))


# ---------------------------------------------------------------- a lane's use


def test_without_a_ticket_nothing_is_sent(lane):
    assert not takes(lane, job())
    assert not lane.was_used
    assert lane.receive() is None


def test_a_peers_answer_says_how_far_it_came(lane):
    lane.usual = msgspec.structs.replace(USUAL, node="n2", node_name="yard", hops=1)
    lane.take_ticket(ticket())
    lane.send(job(), 0, 0.0)
    reply(lane, worker.LaneDone(job().key, b"result", b"", 0.125, 0.5))
    answer = lane.receive()[2]
    assert (answer.node, answer.node_name, answer.hops) == ("n2", "yard", 1)
    assert (answer.waiting_s, answer.service_s, answer.transfer_s, answer.total_s) == (0.0, 0.125, 0.5, 0.625)


def test_a_ticket_is_good_for_so_many_jobs_one_at_a_time(lane):
    lane.take_ticket(ticket(7, runs=2))
    assert lane.was_used
    first, second = job(1), job(2)
    assert takes(lane, first)
    assert lane.send(first, 4096, 0.0)
    assert asked(lane) == worker.LaneRequest(first.key, 7, b"body", 4096, 5, None)
    assert not takes(lane, second), "one is under way"
    assert lane.receive() is None
    reply(lane, worker.LaneDone(first.key, b"result", b"raw", 0.125))
    done, place, answer, payload = lane.receive()
    assert (done, place, payload) == (first, 4096, b"raw")
    assert answer == msgspec.structs.replace(
        USUAL, key=first.key, waiting_s=0.0, service_s=0.125, transfer_s=0.0, total_s=0.125, body=b"result"
    )
    lane.send(second, 0, 0.0)
    assert asked(lane).ticket == 7
    reply(lane, worker.LaneDone(second.key, b"", b"", 0.0))
    assert lane.receive()[0] is second
    assert not takes(lane, job(3)), "the ticket is used up"
    lane.take_ticket(ticket(8, runs=1))
    assert takes(lane, job(3))


def test_a_job_with_little_time_left_is_the_daemons(lane):
    lane.take_ticket(ticket(least_budget_s=0.5))
    assert not takes(lane, job(deadline_s=100.0), 99.75)
    assert takes(lane, job(deadline_s=100.0), 99.5)
    assert takes(lane, job(), 99.9), "the daemon's default is long enough"


def test_the_time_left_goes_with_the_request(lane):
    lane.take_ticket(ticket())
    lane.send(job(deadline_s=100.0), 0, 97.5)
    assert asked(lane).budget_s == 2.5
    reply(lane, worker.LaneDone(job().key, b"", b"", 0.0))
    assert lane.receive()
    lane.send(job(deadline_s=1e12), 0, 97.5)
    assert asked(lane).budget_s == BUDGET_MAX_S


def test_a_pass_ends_the_ticket_but_not_the_lane(lane):
    lane.take_ticket(ticket(runs=9))
    one = job()
    lane.send(one, 64, 0.0)
    reply(lane, worker.LanePass(one.key, is_unfit=False))
    assert lane.receive() == (one, 64, None, b""), "its payload lies there still"
    assert not lane.is_unfit
    assert not takes(lane, job(2))
    lane.take_ticket(ticket(2))
    assert takes(lane, job(2))


def test_a_request_that_does_not_fit_is_said_to_be_unfit(lane):
    lane.take_ticket(ticket())
    lane.send(job(), 0, 0.0)
    reply(lane, worker.LanePass(job().key, is_unfit=True))
    assert lane.receive()[2] is None
    assert lane.is_unfit


def test_what_answers_say_of_the_model_follows_the_daemons_latest(lane):
    lane.usual = msgspec.structs.replace(USUAL, model="street-large", model_digest="e" * 64)
    lane.take_ticket(ticket())
    lane.send(job(), 0, 0.0)
    reply(lane, worker.LaneDone(job().key, b"", b"", 0.0))
    answer = lane.receive()[2]
    assert (answer.model, answer.model_digest) == ("street-large", "e" * 64)


# ---------------------------------------------------------------- a worker that is not to be trusted


@pytest.mark.parametrize(
    "packet",
    [
        b"\xc1",
        worker.encode(worker.LaneDone(b"w" * 24, b"", b"", 0.0)),
        worker.encode(worker.LanePass(b"w" * 24, False)),
        worker.encode(["done", b"short", b"", b"", 0.0]),
        worker.encode(["new", KEY, b"", b"", 0.0]),
        worker.encode(["done", KEY, b"", b""]),
        worker.encode(["pass", KEY]),
        b"\x95\xa4\xff\xff\xff\xff",
        worker.encode(worker.LaneDone(KEY, b"", bytes(program.PACKET_MAX_BYTES), 0.0)),
        b"\x91" * 60_000,
    ],
)
def test_nonsense_is_told_from_an_answer(lane, packet):
    lane.take_ticket(ticket())
    lane.send(job(0), 0, 0.0)
    lane.other.send(packet)
    with pytest.raises(ProtocolError):
        lane.receive()


def test_an_answer_to_nothing_is_nonsense(lane):
    reply(lane, worker.LaneDone(KEY, b"", b"", 0.0))
    with pytest.raises(ProtocolError, match="not asked"):
        lane.receive()


def test_the_same_answer_twice_is_nonsense(lane):
    lane.take_ticket(ticket())
    lane.send(job(0), 0, 0.0)
    reply(lane, worker.LaneDone(KEY, b"", b"", 0.0))
    reply(lane, worker.LaneDone(KEY, b"", b"", 0.0))
    assert lane.receive()
    with pytest.raises(ProtocolError):
        lane.receive()


def test_a_lane_whose_worker_has_gone_says_so(lane):
    lane.take_ticket(ticket())
    lane.other.close()
    with pytest.raises(ConnectionResetError, match="ended"):
        lane.receive()
    with pytest.raises(BrokenPipeError):
        lane.send(job(), 128, 0.0)
    assert not lane.under_way, "it is the caller's"


def test_what_the_socket_does_not_take_is_not_under_way(lane):
    lane.take_ticket(ticket(runs=10_000, depth=10_000))
    sent = 0
    while lane.send(job(sent), sent, 0.0):
        sent += 1
        assert sent < 10_000
    assert [place for _, place, _ in lane.under_way] == list(range(sent))
    assert asked(lane).key == job(0).key
    assert lane.send(job(sent), sent, 0.0), "and no run is lost by it"
    assert lane.under_way[-1][1:] == (sent, 1)


def test_a_closed_lane_has_no_socket(lane):
    lane.close()
    assert (lane.socket.fileno(), lane.other.fileno()) == (-1, -1)
    lane.close()


# ---------------------------------------------------------------- both definitions


def test_both_ends_define_the_same_records():
    for name in ("LaneRequest", "LaneDone", "LanePass"):
        mine, theirs = getattr(program, name), getattr(worker, name)
        assert mine.__struct_fields__ == theirs.__struct_fields__
        assert mine.__struct_config__.tag == theirs.__struct_config__.tag
        assert mine.__struct_config__.array_like
        assert theirs.__struct_config__.array_like
    assert program.PACKET_MAX_BYTES == worker.PACKET_MAX_BYTES
    assert program.Key == worker.Key


@pytest.mark.parametrize(
    ("fields", "is_request"),
    [
        ((KEY, 3, b"body", 4096, 77, 2.5), True),
        ((KEY, 3, b"", 0, 0, None), True),
        ((KEY, 2**62, b"", 2**62, 0, BUDGET_MAX_S), True),
        ((KEY, b"body", b"payload", 0.25), False),
        ((KEY, True), False),
        ((KEY, False), False),
    ],
)
def test_what_one_end_encodes_the_other_decodes(fields, is_request):
    if is_request:
        packet = msgspec.msgpack.encode(program.LaneRequest(*fields))
        assert worker.decode_request(packet) == worker.LaneRequest(*fields)
        assert worker.encode(worker.LaneRequest(*fields)) == packet
        return
    name = "LaneDone" if len(fields) == 4 else "LanePass"
    packet = worker.encode(getattr(worker, name)(*fields))
    assert packet == msgspec.msgpack.encode(getattr(program, name)(*fields))
    decoded = msgspec.msgpack.decode(packet, type=program.LaneDone | program.LanePass)
    assert decoded == getattr(program, name)(*fields)


def test_the_largest_answer_and_the_largest_outputs_fit_a_packet():
    packet = worker.encode(worker.LaneDone(KEY, b"b" * 15_000, bytes(worker.OUTPUT_MAX_BYTES), 1e-3))
    assert len(packet) <= program.PACKET_MAX_BYTES


def test_a_lane_is_a_pair_of_sockets_for_packets_of_which_ours_never_waits(lane):
    assert lane.socket.getblocking() is False
    assert (lane.other.family, lane.other.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET)
