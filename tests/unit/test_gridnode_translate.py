"""Wire to scheduler and back, with literal values; the round trips are in tests/property."""

from gridnode.translate import (
    job_from_wire,
    job_to_wire,
    reason_from_wire,
    state_from_wire,
    state_to_wire,
    table_digest,
    table_from_wire,
    table_to_wire,
)
from scheduler.types import Capability, CapabilityTable, Job, PeerState, Reason
from transport.wire import CapabilityRecord, StateRecord, Table, decode_state, encode


def job(**changes):
    fields = {
        "key": bytes(24), "entry": "e", "input_bytes": 5, "arrival_s": 10.0, "deadline_s": 12.0, "models": ("0" * 64,)
    }  # fmt: skip
    return Job(**fields | changes)


def state(**changes):
    fields = {
        "node_id": "n", "epoch": 1, "sequence": 2, "backlog_s": 0.5, "slots": 1, "running_until_s": 0.0,
        "slow_down": 1.0, "warm": 0, "memory_free_bytes": 9, "draining": False, "power_class": 0,
        "table_digest": bytes(8),
    }  # fmt: skip
    return PeerState(**fields | changes)


def test_a_deadline_travels_as_what_is_left_of_it():
    header = job_to_wire(job(), b"body", now_s=11.5)
    assert header.budget_s == 0.5
    assert job_from_wire(header, now_s=1000.0).deadline_s == 1000.5


def test_a_deadline_that_passed_travels_as_nothing_left_and_one_without_end_as_the_most_the_wire_holds():
    assert job_to_wire(job(), b"", now_s=99.0).budget_s == 0.0
    assert job_to_wire(job(deadline_s=float("inf")), b"", now_s=0.0).budget_s == 1e6


def test_values_out_of_the_wires_range_are_fitted_into_it():
    odd = state(backlog_s=-1e-9, running_until_s=1e9, slow_down=0.5, warm=2**70, memory_free_bytes=-1)
    record = decode_state(encode(state_to_wire(odd)))
    assert (record.backlog_s, record.running_until_s, record.slow_down) == (0.0, 1e6, 1.0)
    assert record.memory_free_bytes == 0


def test_a_node_that_knows_no_table_yet_says_that_it_can_run_nothing():
    record = decode_state(encode(state_to_wire(state(table_digest=b""))))
    assert record.table_digest == table_digest(())


def test_a_peer_that_claims_no_slots_has_one():
    record = StateRecord(1, "n", 1, 1, 0.0, 0, 0.0, 1.0, 0, 0, False, 0, bytes(8))
    assert state_from_wire(record).slots == 1


def test_each_reason_is_understood_and_an_unknown_one_is_tried_elsewhere():
    for reason in Reason:
        assert reason_from_wire(reason.value) is reason
    for text in ("", "new_in_version_9", "deadline "):
        assert reason_from_wire(text) is Reason.LOST


def test_a_table_is_sorted_as_the_warm_bits_expect():
    entries = tuple(CapabilityRecord(letter * 64, 1.0, 1.0, 1, 0.0, 1, ()) for letter in "ca")
    table = table_from_wire(Table(node="n", digest=bytes(8), entries=entries))
    assert [entry.model[0] for entry in table.entries] == ["a", "c"]


def test_the_digest_names_the_content():
    one = Capability(model="a" * 64, mean_s=1.0, p95_s=2.0, memory_bytes=3, load_s=0.5, providers=("CPU",))
    other = Capability(model="a" * 64, mean_s=1.1, p95_s=2.0, memory_bytes=3, load_s=0.5, providers=("CPU",))
    assert len(table_digest([one])) == 8
    assert table_digest([one]) == table_digest([one])
    assert len({table_digest([]), table_digest([one]), table_digest([other]), table_digest([one, other])}) == 4
    table = CapabilityTable(node_id="n", digest=table_digest([one]), entries=(one,))
    assert table_from_wire(table_to_wire(table)) == table
