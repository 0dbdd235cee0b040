"""Sizes of simulated messages are those of the encoder, to the byte."""

from hypothesis import given
from hypothesis import strategies as st

from gridnode.translate import job_to_wire, state_to_wire
from gridnode.translate import table_digest as daemon_digest
from scheduler.types import Capability, Job, PeerState
from simulator import messages
from transport import wire
from transport.framing import PREFIX_BYTES

counts = st.one_of(*[st.integers(0, 2**bits) for bits in (6, 8, 9, 16, 17, 33, 50)])
names = st.text(min_size=1, max_size=40)
keys = st.binary(min_size=24, max_size=24)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)
lengths = st.sampled_from([0, 1, 40, 255, 256, 3000, 40_000])

states = st.builds(
    PeerState,
    node_id=names,
    epoch=counts,
    sequence=counts,
    backlog_s=st.floats(0, 1e6),
    slots=st.integers(1, 65535),
    running_until_s=st.floats(0, 1e6),
    slow_down=st.floats(1, 100),
    warm=counts,
    memory_free_bytes=counts,
    draining=st.booleans(),
    power_class=st.integers(0, 2),
    table_digest=st.binary(min_size=8, max_size=8),
)
jobs = st.builds(
    Job,
    key=keys,
    attempt=st.integers(0, 300),
    entry=names,
    hops=st.integers(0, 2),
    visited=st.lists(names, max_size=16).map(tuple),
    client=st.text(max_size=40),
    tenant=st.text(max_size=300),
    priority=st.integers(0, 3),
    stream=st.text(max_size=40),
    frame=counts,
    newest_wins=st.booleans(),
    input_bytes=st.integers(0, 2**26),
    output_bytes=st.sampled_from([0, 4096, 70_000]),
    arrival_s=st.just(0.0),
    deadline_s=st.floats(0, 100),
    models=st.lists(digests, min_size=1, max_size=8).map(tuple),
    parent=st.none() | keys,
)


def frame_bytes(message, payload=0):
    return PREFIX_BYTES + len(wire.encode(message)) + payload


@given(job=jobs, state=states, body=lengths)
def test_a_job_and_an_offer(job, state, body):
    header = job_to_wire(job, bytes(body), now_s=0.0)
    sent = wire.JobSend(job=header, estimate_s=0.5, state=state_to_wire(state))
    offered = wire.JobOffer(job=header, estimate_s=0.5, state=state_to_wire(state))
    assert messages.job_send(job, state, body) == frame_bytes(sent, job.input_bytes)
    assert messages.job_offer(job, state, body) == frame_bytes(offered)


@given(key=keys, attempt=st.integers(0, 300), state=states, covered=st.lists(keys, max_size=40))
def test_reports(key, attempt, state, covered):
    record = state_to_wire(state)
    accepted = wire.JobAccepted(key=key, attempt=attempt, covered=tuple(covered), state=record)
    assert messages.job_accepted(key, attempt, covered, state) == frame_bytes(accepted)
    progress = wire.JobProgress(key=key, attempt=attempt, state=record)
    assert messages.job_progress(key, attempt, state) == frame_bytes(progress)
    assert messages.offer_accepted(key, state) == frame_bytes(wire.OfferAccepted(key=key, state=record))
    assert messages.job_payload(key, 99) == frame_bytes(wire.JobPayload(key=key), 99)
    assert messages.job_cancel(key) == frame_bytes(wire.JobCancel(key=key))
    assert messages.gossip(state) == len(wire.encode(record)) + messages.GOSSIP_OVERHEAD_BYTES


@given(
    key=keys,
    attempt=st.integers(0, 300),
    state=states,
    text=st.text(max_size=400),
    estimate_s=st.none() | st.floats(0, 1e6),
    body=lengths,
)
def test_outcomes(key, attempt, state, text, estimate_s, body):
    record = state_to_wire(state)
    refused = wire.JobRefused(key=key, attempt=attempt, reason="deadline", estimate_s=estimate_s, state=record)
    assert messages.job_refused(key, attempt, "deadline", estimate_s, state) == frame_bytes(refused)
    failed = wire.JobFailed(key=key, attempt=attempt, reason="lost", message=text, state=record)
    assert messages.job_failed(key, attempt, "lost", text, state) == frame_bytes(failed)
    result = wire.JobResult(
        key=key,
        attempt=attempt,
        model="c" * 64,
        node="n",
        hops=2,
        waiting_s=0.0,
        service_s=1.0,
        body=bytes(body),
        state=record,
    )
    assert messages.job_result(key, attempt, state, answer=("c" * 64, "n", 2, body, 7)) == frame_bytes(result, 7)


@given(state=states, models=st.lists(digests, max_size=20), room=st.integers(1, 64))
def test_steals(state, models, room):
    record = state_to_wire(state)
    asked = wire.StealRequest(models=tuple(models), room=room, state=record)
    assert messages.steal_request(tuple(models), room, state) == frame_bytes(asked)
    assert messages.steal_answer(room, state) == frame_bytes(wire.StealAnswer(granted=room, state=record))


@given(state=states, nonce=st.integers(0, 2**53))
def test_probes(state, nonce):
    assert messages.ping(nonce) == frame_bytes(wire.Ping(nonce=nonce))
    pong = wire.Pong(nonce=nonce, reached=True, state=state_to_wire(state))
    assert messages.pong(nonce, state) == frame_bytes(pong)


def test_tables():
    entry = Capability(
        model="d" * 64, mean_s=0.1, p95_s=0.2, memory_bytes=10**9, load_s=1.0, max_batch=4, providers=("CPU",)
    )
    assert messages.table_digest((entry,)) == daemon_digest((entry,))
    assert frame_bytes(wire.TableRequest()) == messages.TABLE_REQUEST_BYTES
