"""A program's end of a lane, with a worker played by the test at the other end of a real socket."""

import socket

import msgspec
import pytest

from gridnode import lane as program
from gridnode.control import JobDone, Ticket
from gridnode.errors import ProtocolError
from gridnode.jobs import BUDGET_MAX_S, Job, Options, Request
from gridnode.lane import ANSWERS_MAX_BYTES, QUEUED_BUDGET_MIN_S, Lane
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


# ---------------------------------------------------------------- several requests under way


def send(lane, *numbers, now_s=0.0):
    """Send jobs, which the lane must take; returns them."""
    jobs = [job(number) for number in numbers]
    for each in jobs:
        assert takes(lane, each, now_s)
        assert lane.send(each, 0, now_s)
    return jobs


def answered(lane, number, *, payload=b""):
    """Have a job answered, and take the answer."""
    reply(lane, worker.LaneDone(job(number).key, b"", payload, 0.0))
    found, _, done, _ = lane.receive()
    assert found.key == done.key == job(number).key


def begin(lane, *, payload=b"", **how):
    """Give a ticket, and have a first answer."""
    lane.take_ticket(ticket(**{"runs": 100, "depth": 16} | how))
    send(lane, 0)
    answered(lane, 0, payload=payload)


def test_before_the_first_answer_none_goes_behind_another(lane):
    lane.take_ticket(ticket(runs=100, depth=16))
    send(lane, 1)
    assert not takes(lane, job(2)), "nobody knows how long answers are"
    answered(lane, 1)
    send(lane, 2, 3)


def test_so_many_go_behind_one_another_and_are_answered_in_order(lane):
    begin(lane, depth=3)
    first, second, third = send(lane, 1, 2, 3)
    assert not takes(lane, job(4))
    assert [each for each, _, _ in lane.under_way] == [first, second, third]
    answered(lane, 1)
    send(lane, 4)
    assert not takes(lane, job(5))
    for number in (2, 3, 4):
        answered(lane, number)
    assert not lane.under_way


def test_the_newest_ticket_says_how_many_may_be_under_way(lane):
    begin(lane, depth=3)
    send(lane, 1, 2)
    lane.take_ticket(ticket(2, runs=9, depth=2))
    assert not takes(lane, job(3))
    lane.take_ticket(ticket(3, runs=9, depth=4))
    send(lane, 3, 4)
    assert not takes(lane, job(5))


def test_answers_out_of_order_are_nonsense(lane):
    begin(lane)
    send(lane, 1, 2)
    reply(lane, worker.LaneDone(job(2).key, b"", b"", 0.0))
    with pytest.raises(ProtocolError, match="not asked"):
        lane.receive()


def test_nothing_goes_behind_others_where_that_is_not_wanted(lane):
    begin(lane)
    assert lane.takes(job(1), 0.0, may_queue=False)
    send(lane, 1)
    assert not lane.takes(job(2), 0.0, may_queue=False)
    assert lane.takes(job(2), 0.0, may_queue=True)


def test_what_has_less_than_a_second_goes_behind_nothing(lane):
    begin(lane)
    short, long = job(1, deadline_s=0.5), job(2, deadline_s=QUEUED_BUDGET_MIN_S)
    assert takes(lane, short)
    send(lane, 3)
    assert not takes(lane, short)
    assert takes(lane, long)
    assert not takes(lane, long, 0.25)
    lane.take_ticket(ticket(2, runs=9, depth=16, least_budget_s=1.5))
    assert not takes(lane, long), "a ticket may ask for more"


@pytest.mark.parametrize(
    ("payload_bytes", "room"), [(10, 16), (ANSWERS_MAX_BYTES // 4, 3), (40_000, 2), (worker.OUTPUT_MAX_BYTES, 1)]
)
def test_no_more_go_than_answers_find_room_in_the_socket(lane, payload_bytes, room):
    begin(lane, payload=bytes(payload_bytes))
    send(lane, *range(1, room + 1))
    assert not takes(lane, job(99))
    for number in range(1, room + 1):  # the worker would not wait
        lane.other.setblocking(False)
        reply(lane, worker.LaneDone(job(number).key, b"", bytes(payload_bytes), 0.0))


@pytest.mark.parametrize("payload_bytes", [*range(0, 8192, 512), *range(8192, worker.OUTPUT_MAX_BYTES, 2048)])
def test_the_socket_holds_half_as_many_answers_again_as_may_be_to_come(lane, payload_bytes):
    begin(lane, payload=bytes(payload_bytes), depth=48)
    number = 1
    while takes(lane, job(number)):
        send(lane, number)
        number += 1
    lane.other.setblocking(False)
    for _ in range((len(lane.under_way) * 3 + 1) // 2):
        reply(lane, worker.LaneDone(KEY, b"", bytes(payload_bytes), 0.0))


def test_the_longest_answer_counts_not_the_last(lane):
    begin(lane, payload=bytes(40_000))
    send(lane, 1)
    answered(lane, 1)
    send(lane, 2, 3)
    assert not takes(lane, job(4))


def test_a_ticket_used_up_by_what_is_under_way_is_none(lane):
    begin(lane, runs=3)
    send(lane, 1, 2)
    assert not lane.has_ticket(0.0)
    answered(lane, 1)
    assert not lane.has_ticket(0.0)


def test_a_ticket_ends_so_long_after_its_first_run_for_what_goes_behind_others(lane):
    lane.take_ticket(ticket(runs=100, depth=16, lasts_s=10.0))
    assert lane.has_ticket(1e9), "it has not begun"
    send(lane, 0, now_s=500.0)
    answered(lane, 0)
    assert lane.has_ticket(509.75)
    send(lane, 1, now_s=509.75)
    assert lane.has_ticket(509.75), "the next is begun a run later, as far as is known"
    send(lane, 2, now_s=509.75)
    assert lane.has_ticket(509.75)
    send(lane, 3, now_s=509.75)
    assert not lane.has_ticket(509.75)
    assert not lane.has_ticket(512.0)
    for number in (1, 2, 3):
        answered(lane, number)
    assert lane.has_ticket(512.0), "the worker tells the daemon that it is over"


def test_a_new_ticket_has_all_its_time(lane):
    begin(lane, lasts_s=10.0)
    lane.take_ticket(ticket(2, runs=9, depth=16, lasts_s=10.0))
    send(lane, 1, now_s=20.0)
    assert lane.has_ticket(29.75)
    assert not lane.has_ticket(30.0)


def passed(lane, number, *, is_unfit=False):
    reply(lane, worker.LanePass(job(number).key, is_unfit))
    return lane.receive()


def test_a_pass_of_an_older_ticket_does_not_end_the_new_one(lane):
    begin(lane)
    first, second = send(lane, 1, 2)
    lane.take_ticket(ticket(2, runs=9, depth=16))
    (third,) = send(lane, 3)
    assert [asked(lane).ticket for _ in range(4)] == [1, 1, 1, 2]
    assert passed(lane, 1) == (first, 0, None, b"")
    assert lane.has_ticket(0.0)
    assert passed(lane, 2) == (second, 0, None, b"")
    assert lane.has_ticket(0.0)
    assert passed(lane, 3) == (third, 0, None, b"")
    assert not lane.has_ticket(0.0)


def test_what_waits_behind_a_pass_is_under_way_still(lane):
    begin(lane)
    first, second = send(lane, 1, 2)
    assert passed(lane, 1)[0] is first
    assert not lane.has_ticket(0.0)
    assert [each for each, _, _ in lane.under_way] == [second]
    answered(lane, 2)
    assert not lane.has_ticket(0.0)


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
