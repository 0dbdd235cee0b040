"""Bounds against hand computation, published pilot figures and one another."""

import math

import pytest

from simulator import theory
from simulator.bounds import (
    NodeClass,
    OverloadError,
    burst_ceiling,
    capacity_hz,
    goodput_ceiling,
    static_split,
    useful_hz,
    zero_queue_of_models_s,
    zero_queue_s,
)

SLOW_S, FAST_S = 0.263, 0.0113
CAPACITY_HZ = 16 / SLOW_S + 4 / FAST_S


def pilot(load):
    """Return the mixed fleet: arrivals alike at all nodes, 14 ms for a transfer with its round trip."""
    common = {"cv2": 0.04, "transfer_s": 0.014, "arrivals_hz": load * CAPACITY_HZ / 20}
    return [NodeClass(count=16, service_s=SLOW_S, **common), NodeClass(count=4, service_s=FAST_S, **common)]


@pytest.mark.parametrize(
    ("load", "zero_queue_ms", "split_ms"),
    [(0.3, 22.5, 25.7), (0.5, 22.5, 30.8), (0.7, 22.5, 49.3), (0.85, 22.5, 109.1), (0.95, 46.7, 305.6)],
)
def test_bounds_of_the_mixed_fleet(load, zero_queue_ms, split_ms):
    assert zero_queue_s(pilot(load)) * 1e3 == pytest.approx(zero_queue_ms, abs=0.05)
    found = static_split(pilot(load))
    assert found.mean_s * 1e3 == pytest.approx(split_ms, abs=0.05)
    given_hz = 16 * found.rates_hz[0] + 4 * found.rates_hz[1]
    assert given_hz == pytest.approx(load * CAPACITY_HZ, rel=1e-9)


def test_the_bound_of_one_model_is_that_of_many_with_one():
    assert zero_queue_of_models_s({"m": pilot(0.95)}) == pytest.approx(zero_queue_s(pilot(0.95)), rel=1e-4)
    halves = [
        NodeClass(count=e.count, service_s=e.service_s, arrivals_hz=e.arrivals_hz / 2, transfer_s=e.transfer_s)
        for e in pilot(0.95)
    ]
    assert zero_queue_of_models_s({"a": halves, "b": halves}) == pytest.approx(zero_queue_s(pilot(0.95)), rel=1e-3)


def test_models_that_only_some_nodes_have_are_kept_apart():
    """Each model's only node is idle enough: the bound is the mean of the two service times."""
    never = math.inf
    fleets = {
        "a": [
            NodeClass(count=1, service_s=0.1, arrivals_hz=1.0),
            NodeClass(count=1, service_s=never, rate_hz=1.0),
        ],
        "b": [
            NodeClass(count=1, service_s=never, rate_hz=1.0),
            NodeClass(count=1, service_s=0.3, arrivals_hz=1.0),
        ],
    }
    assert zero_queue_of_models_s(fleets) == pytest.approx(0.2, rel=1e-6)


def test_equal_nodes_share_equally():
    nodes = [NodeClass(count=3, service_s=1.0, cv2=1.0, arrivals_hz=0.8)]
    assert static_split(nodes).mean_s == pytest.approx(theory.mm1_sojourn_s(load=0.8))
    assert zero_queue_s(nodes) == pytest.approx(1.0)


def test_slots_are_the_servers_of_erlang():
    nodes = [NodeClass(count=1, service_s=1.0, slots=8, cv2=1.0, arrivals_hz=6.4)]
    assert static_split(nodes).mean_s == pytest.approx(1.0 + theory.mmc_waiting_s(servers=8, load=0.8))


def test_a_split_leaves_jobs_where_they_come_in_when_moving_costs_more():
    far = [
        NodeClass(count=1, service_s=1.0, arrivals_hz=0.5, transfer_s=100.0),
        NodeClass(count=1, service_s=0.5, arrivals_hz=0.5, transfer_s=100.0),
    ]
    assert static_split(far).rates_hz == pytest.approx((0.5, 0.5))


def test_no_stationary_mean_above_the_capacity():
    with pytest.raises(OverloadError, match="lower the load"):
        zero_queue_s(pilot(1.01))
    with pytest.raises(OverloadError):
        static_split(pilot(1.01))


def test_goodput_at_overload_is_what_is_served():
    assert goodput_ceiling(pilot(1.3), deadline_s=0.5) == pytest.approx(1 / 1.3)
    assert goodput_ceiling(pilot(0.7), deadline_s=0.5) == 1.0
    assert capacity_hz(pilot(1.0)) == pytest.approx(CAPACITY_HZ)


def test_nodes_too_slow_for_the_deadline_do_not_count():
    assert useful_hz(pilot(0.7), 0.1) == pytest.approx(4 / FAST_S)
    # Just enough time for a slow node's own jobs, not for those that have to travel.
    assert useful_hz(pilot(0.1), 0.27) == pytest.approx(4 / FAST_S + 16 * 0.1 * CAPACITY_HZ / 20, rel=0.2)


def test_bursts_lose_what_neither_capacity_nor_deadline_holds():
    """Three times a mean load of 0.6 for 2 of 10 s: 3.6 come, 2 + 0.5 can be done in time, of 6 in all."""
    found = burst_ceiling([(2.0, 1.8), (8.0, 0.3)], capacity_hz=1.0, deadline_s=0.5)
    assert found == pytest.approx(1 - 1.1 / 6)
    assert burst_ceiling([(2.0, 1.2), (8.0, 0.3)], capacity_hz=1.0, deadline_s=0.5) == 1.0
