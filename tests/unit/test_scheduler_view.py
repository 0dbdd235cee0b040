import math

import msgspec
import pytest

from scheduler.config import CoreConfig, EstimateConfig, PeersConfig
from scheduler.jobs import Carriage, JobRecord, Shipment
from scheduler.peer import Liveness
from scheduler.types import Capability, CapabilityTable, Job, PeerState
from scheduler.view import View

DIGEST = b"12345678"


def make_state(node_id="b", *, sequence=1, epoch=1, **fields):
    values = {
        "node_id": node_id,
        "epoch": epoch,
        "sequence": sequence,
        "backlog_s": 0.0,
        "slots": 1,
        "running_until_s": 0.0,
        "slow_down": 1.0,
        "warm": 1,
        "memory_free_bytes": 0,
        "draining": False,
        "power_class": 0,
        "table_digest": DIGEST,
    }
    return PeerState(**{**values, **fields})


def make_table(node_id="b", *, digest=DIGEST, mean_s=0.1, models=("m",)):
    entries = tuple(
        Capability(model=model, mean_s=mean_s, p95_s=mean_s, memory_bytes=1, load_s=1.0) for model in models
    )
    return CapabilityTable(node_id=node_id, digest=digest, entries=entries)


@pytest.fixture
def view():
    made = View("a", CoreConfig())
    made.merge(make_state(), now_s=0.0)
    made.learn_table(make_table())
    return made


def test_an_older_record_changes_nothing(view):
    assert view.merge(make_state(sequence=3, backlog_s=1.0), now_s=1.0)
    assert not view.merge(make_state(sequence=2, backlog_s=9.0), now_s=2.0)
    assert view.get("b").state.backlog_s == 1.0
    assert view.get("b").heard_s == 1.0


def test_an_old_record_reverts_to_the_mean_of_its_node(view):
    for sequence in range(2, 200):
        view.merge(make_state(sequence=sequence, backlog_s=0.1), now_s=sequence / 10)
    view.merge(make_state(sequence=200, backlog_s=0.5), now_s=20.0)
    peer = view.get("b")
    mean_s = peer.mean_wait_s
    assert mean_s == pytest.approx(0.1, abs=0.02)
    tau_s = EstimateConfig().reversion_services * 0.05
    assert peer.expected_wait_s(0.05, 20.0) == pytest.approx(0.5)
    assert peer.expected_wait_s(0.05, 20.0 + tau_s) == pytest.approx(mean_s + (0.5 - mean_s) / math.e)
    assert peer.expected_wait_s(0.05, 30.0) == pytest.approx(mean_s)


def test_many_records_within_a_moment_are_one_piece_of_news(view):
    for sequence in range(2, 200):
        view.merge(make_state(sequence=sequence, backlog_s=2.0), now_s=0.0)
    assert view.get("b").mean_wait_s == 0.0


def test_reversion_can_be_switched_off():
    view = View("a", CoreConfig(estimate=EstimateConfig(reversion_services=0.0)))
    view.merge(make_state(), now_s=0.0)
    view.merge(make_state(sequence=2, backlog_s=0.5), now_s=1.0)
    assert view.get("b").expected_wait_s(0.05, 1e6) == 0.5


def test_a_free_slot_means_no_wait(view):
    view.merge(make_state(sequence=2, slots=2, backlog_s=0.5), now_s=1.0)
    assert view.get("b").wait_s == 0.0
    view.merge(make_state(sequence=3, slots=2, backlog_s=0.5, running_until_s=0.1), now_s=1.0)
    assert view.get("b").wait_s == 0.5


def test_a_reboot_counts_more_than_any_sequence(view):
    view.merge(make_state(sequence=900), now_s=1.0)
    assert view.merge(make_state(epoch=2, sequence=1, backlog_s=3.0), now_s=2.0)
    assert view.get("b").state.backlog_s == 3.0


def test_the_own_record_makes_no_peer(view):
    assert not view.merge(make_state("a"), now_s=1.0)
    assert view.get("a") is None


def test_age_never_makes_a_peer_ineligible(view):
    assert view.get("b").may_take(1e9)


@pytest.mark.parametrize("fields", [{"draining": True}, {"power_class": 2}])
def test_a_peer_that_says_so_gets_no_jobs(view, fields):
    view.merge(make_state(sequence=2, **fields), now_s=1.0)
    assert not view.get("b").may_take(1.0)
    view.merge(make_state(sequence=3), now_s=2.0)
    assert view.get("b").may_take(2.0)


def test_a_suspect_gets_no_jobs_until_refuted(view):
    view.set_liveness("b", Liveness.SUSPECT)
    assert not view.get("b").is_placeable(0.0)
    view.set_liveness("b", Liveness.ALIVE)
    assert view.get("b").is_placeable(0.0)
    view.set_liveness("unheard", Liveness.SUSPECT)


def test_an_unreachable_peer_gets_no_jobs(view):
    view.set_reachable("b", reachable=False)
    assert not view.get("b").is_placeable(0.0)


def test_reachability_may_be_known_before_any_record(view):
    view.set_reachable("c", reachable=False)
    assert not view.get("c").is_placeable(0.0)
    view.merge(make_state("c"), now_s=0.0)
    assert not view.get("c").is_placeable(0.0)


def test_old_records_do_not_bring_a_forgotten_peer_back(view):
    view.merge(make_state(sequence=5), now_s=1.0)
    view.forget("b")
    assert not view.merge(make_state(sequence=4), now_s=2.0)
    assert not view.merge(make_state(sequence=5), now_s=2.0)
    assert view.get("b") is None
    assert view.merge(make_state(sequence=6), now_s=3.0)
    assert view.get("b") is not None


def test_an_old_table_stands_until_the_new_one_is_here_but_its_bits_do_not_change(view):
    peer = view.get("b")
    assert peer.warm_models == {"m"}
    view.merge(make_state(sequence=2, table_digest=b"new-----", warm=0), now_s=1.0)
    assert set(peer.capabilities) == {"m"}
    assert peer.warm_models == {"m"}, "bits of a table that is not here mean nothing"
    view.merge(make_state(sequence=3, table_digest=b"new-----"), now_s=1.0)
    assert view.wants_table(peer, now_s=1.0) == b"new-----"
    view.learn_table(make_table(digest=b"new-----", models=("m", "n")))
    assert set(peer.capabilities) == {"m", "n"}
    assert peer.warm_models == {"m"}
    assert view.wants_table(peer, now_s=9.0) is None


@pytest.mark.parametrize("changes", [{"table_digest": b""}, {"table_digest": b"new-----", "epoch": 2}])
def test_a_node_without_models_or_started_anew_has_no_table(view, changes):
    peer = view.get("b")
    view.merge(make_state(sequence=2, **changes), now_s=1.0)
    assert not peer.capabilities
    assert not peer.warm_models


def test_pulls_are_limited_in_rate_and_back_off(view):
    peer = view.get("b")
    view.merge(make_state(sequence=2, table_digest=b"new-----"), now_s=1.0)
    asked = []
    for tenth in range(0, 800):
        now_s = 1.0 + tenth / 10
        if view.wants_table(peer, now_s=now_s):
            asked.append(now_s - 1.0)
    assert asked == pytest.approx([0.0, 1.0, 3.0, 7.0, 15.0, 31.0, 63.0])


def test_equal_devices_share_one_pull_and_one_table(view):
    view.merge(make_state("c", table_digest=b"shared--"), now_s=1.0)
    view.merge(make_state("d", table_digest=b"shared--"), now_s=1.0)
    assert view.wants_table(view.get("c"), now_s=1.0) == b"shared--"
    assert view.wants_table(view.get("d"), now_s=1.0) is None
    view.learn_table(make_table("c", digest=b"shared--"))
    assert view.get("c").capabilities
    assert view.get("d").capabilities is view.get("c").capabilities


def test_tables_are_bounded():
    view = View("a", CoreConfig(peers=PeersConfig(tables=3, table_entries=2)))
    for number in range(9):
        view.learn_table(make_table(digest=bytes([number]) * 8, models=("m", "n", "o")))
    assert len(view._tables) == 3
    view.merge(make_state(table_digest=bytes([8]) * 8), now_s=0.0)
    assert set(view.get("b").capabilities) == {"m", "n"}


def test_a_new_mean_in_the_table_starts_the_estimate_over(view):
    peer = view.get("b")
    peer.service("m").learn(0.5, EstimateConfig())
    view.merge(make_state(sequence=2, table_digest=b"faster--"), now_s=1.0)
    view.learn_table(make_table(digest=b"faster--", mean_s=0.05))
    assert peer.service("m").value_s == 0.05
    assert peer.service("other") is None


def test_records_are_expected_less_often_in_larger_grids():
    view = View("a", CoreConfig())
    assert view.expected_period_s() == 2.0
    for number in range(79):
        view.merge(make_state(f"p{number}"), now_s=0.0)
    assert view.expected_period_s() == 10.0


def make_shipment(peer, command, *, now_s, transfer_s=0.1, service_s=0.5):
    job = Job(key=b"", entry="a", input_bytes=1, arrival_s=0.0, deadline_s=9.0, models=("m",))
    record = JobRecord(handle=1, job=job, origin=None, stolen=False, sender_estimate_s=None)
    return Shipment(
        command=command,
        record=record,
        peer=peer,
        carriage=Carriage.SEND,
        model="m",
        service_s=service_s,
        transfer_s=transfer_s,
        promised_s=1.0,
        now_s=now_s,
    )


def test_jobs_on_the_way_count_until_a_state_covers_them(view):
    peer = view.get("b")
    first, second = make_shipment(peer, 1, now_s=0.0), make_shipment(peer, 2, now_s=1.0)
    peer.add_shipment(first)
    peer.add_shipment(second)
    assert peer.uncovered_s == 1.0
    peer.cover_until(0.5)
    assert peer.uncovered_s == 0.5
    peer.cover(first)
    peer.drop_shipment(first)
    assert peer.uncovered_s == 0.5
    peer.drop_shipment(second)
    peer.drop_shipment(second)
    assert peer.uncovered_s == 0.0
    assert not peer.on_the_way


def test_records_with_equal_number_and_other_content_are_ordered_by_content(view):
    one, other = make_state(sequence=7, backlog_s=1.0), make_state(sequence=7, backlog_s=2.0)
    view.merge(one, now_s=1.0)
    view.merge(other, now_s=1.0)
    assert view.get("b").state == other
    assert not view.merge(one, now_s=1.0)
    assert not view.merge(msgspec.structs.replace(other), now_s=1.0)


def test_a_node_that_was_restarted_is_not_doubted_for_its_last_life(view):
    peer = view.get("b")
    peer.trust.learn(promised_s=0.01, actual_s=5.0, now_s=3.0)
    peer.window.close()
    peer.blocked_until_s, peer.quarantine_s = 60.0, 60.0
    assert peer.trust.factor(3.0) > 10
    view.merge(make_state(epoch=2), now_s=3.5)
    assert (peer.trust.factor(3.5), peer.blocked_until_s, peer.quarantine_s) == (1.0, 0.0, 0.0)
    assert peer.window.size == CoreConfig().window.initial
