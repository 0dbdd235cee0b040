"""Whatever a worker sends by a lane, a program's end raises what it says and nothing else, and never hangs."""

import contextlib

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from gridnode.control import JobDone, Ticket
from gridnode.errors import ProtocolError
from gridnode.jobs import Job, Options, Request
from gridnode.lane import Lane
from models import laneprotocol as worker

KEY = b"c" * 24
USUAL = JobDone(
    key=KEY,
    model="street",
    model_digest="d" * 64,
    node="n1",
    node_name="gate",
    hops=0,
    waiting_s=0.0,
    service_s=0.1,
    transfer_s=0.0,
    total_s=0.1,
    body=b"",
)

keys = st.one_of(st.just(KEY), st.just(KEY), st.binary(min_size=24, max_size=24), st.binary(max_size=30))
some = st.binary(max_size=20)
answers = st.one_of(
    st.builds(worker.LaneDone, key=keys, body=some, payload=some, service_s=st.floats()),
    st.builds(worker.LanePass, key=keys, is_unfit=st.booleans()),
).map(worker.encode)
wrong = st.lists(
    st.one_of(st.sampled_from(["done", "pass"]), st.binary(max_size=30), st.floats(), st.booleans(), st.integers(0, 9)),
    max_size=7,
).map(msgspec.msgpack.encode)
packets = st.lists(st.one_of(answers, answers, wrong, st.binary(max_size=100)), max_size=8)


@given(packets, st.booleans(), st.lists(st.booleans(), max_size=8), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_an_answer_is_the_awaited_one_or_an_error(packets, has_gone, sends, depth):
    request = Request(model="street", body=b"", payload_bytes=1)
    lane = Lane(0, "street", Options(), USUAL)
    with contextlib.closing(lane), contextlib.suppress(OSError, ProtocolError):
        lane.take_ticket(Ticket(lane=0, ticket=1, runs=4, lasts_s=9.0, depth=depth, lanes=1, least_budget_s=0.0))
        for packet in packets:
            lane.other.send(packet)
        if has_gone:
            lane.other.close()
        sent = []
        for number in range(len(packets) + 1):
            job = Job(KEY, request, opened_s=0.0, deadline_s=None)
            if number >= len(sends) or sends[number]:
                if lane.has_ticket(0.0) and lane.takes(job, 0.0, may_queue=True) and lane.send(job, number, 0.0):
                    sent.append(job)
                assert len(lane.under_way) <= depth
            assert [job for job, _, _ in lane.under_way] == sent
            answer = lane.receive()
            if answer is None:
                continue
            found, _, done, payload = answer
            assert found is sent.pop(0), "they are answered in order"
            if done is None:
                assert not lane.has_ticket(0.0), "a pass is the ticket's end"
                assert payload == b""
            else:
                assert (done.key, done.node, done.model) == (KEY, "n1", "street")
