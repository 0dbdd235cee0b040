"""What one node says of jobs, states and tables, another understands as it was meant."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gridnode.translate import (
    job_from_wire,
    job_to_wire,
    state_from_wire,
    state_to_wire,
    table_digest,
    table_from_wire,
    table_to_wire,
)
from scheduler.types import Capability, CapabilityTable, Job, PeerState
from transport.wire import JobSend, Table, decode_data, decode_state, encode

counts = st.integers(0, 2**53)
seconds = st.floats(0, 1e6)
names = st.text("123456789abcdef", min_size=1, max_size=52)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)

states = st.builds(
    PeerState,
    node_id=names,
    epoch=counts,
    sequence=counts,
    backlog_s=seconds,
    slots=st.integers(1, 65535),
    running_until_s=seconds,
    slow_down=st.floats(1, 1e6),
    warm=st.integers(0, 2**63 - 1),
    memory_free_bytes=counts,
    draining=st.booleans(),
    power_class=st.integers(0, 15),
    table_digest=st.binary(min_size=8, max_size=8),
)
jobs = st.builds(
    Job,
    key=st.binary(min_size=24, max_size=24),
    attempt=st.integers(0, 65535),
    entry=names,
    hops=st.integers(0, 8),
    visited=st.lists(names, max_size=16).map(tuple),
    client=st.text(max_size=32),
    tenant=st.text(max_size=64),
    priority=st.integers(0, 3),
    stream=st.text(max_size=64),
    frame=counts,
    newest_wins=st.booleans(),
    input_bytes=st.integers(0, 64 << 20),
    output_bytes=st.integers(0, 64 << 20),
    arrival_s=st.just(100.0),
    deadline_s=st.floats(100.0, 1e5),
    models=st.lists(digests, min_size=1, max_size=8).map(tuple),
    parent=st.none() | st.binary(min_size=24, max_size=24),
)
capabilities = st.builds(
    Capability,
    model=digests,
    mean_s=seconds,
    p95_s=seconds,
    memory_bytes=counts,
    load_s=seconds,
    max_batch=st.integers(1, 4096),
    providers=st.lists(st.text(max_size=20), max_size=4).map(tuple),
)


@given(states)
def test_a_state_comes_over_as_it_was(state):
    record = msgspec.convert(msgspec.to_builtins(state_to_wire(state)), type(state_to_wire(state)))
    assert state_from_wire(record) == state


@given(states)
def test_a_state_fits_its_bound_and_decodes(state):
    assert state_from_wire(decode_state(encode(state_to_wire(state)))) == state


@given(jobs, st.binary(max_size=100), states, st.floats(0, 1e9))
def test_a_job_comes_over_with_its_remaining_time(job, body, state, other_clock_s):
    header = job_to_wire(job, body, now_s=100.0)
    message = decode_data(encode(JobSend(job=header, estimate_s=0.0, state=state_to_wire(state))))
    received = job_from_wire(message.job, now_s=other_clock_s)
    assert message.job.body == body
    left_s = received.deadline_s - received.arrival_s
    assert abs(left_s - (job.deadline_s - 100.0)) < 1e-6
    same = msgspec.structs.replace(received, arrival_s=job.arrival_s, deadline_s=job.deadline_s)
    assert same == job


@given(st.lists(capabilities, max_size=8, unique_by=lambda entry: entry.model))
def test_a_table_comes_over_sorted_under_its_digest(entries):
    ordered = tuple(sorted(entries, key=lambda entry: entry.model))
    table = CapabilityTable(node_id="n", digest=table_digest(ordered), entries=ordered)
    message = decode_data(encode(table_to_wire(table)))
    assert isinstance(message, Table)
    received = table_from_wire(message)
    assert received == table
    assert table_digest(received.entries) == table.digest
