"""Closed forms against values computed elsewhere, and against one another."""

import pytest

from simulator import theory
from simulator.fluid_waiting import board_sojourn

FLEET = [1 / 0.263] * 16 + [1 / 0.0113] * 4


@pytest.mark.parametrize(
    ("servers", "load", "waiting_s"),
    [
        (1, 0.5, 1.0),
        (2, 0.7, 0.960784),
        (4, 0.9, 1.969383),
        (8, 0.8, 0.286028),
        (16, 0.95, 0.975241),
        (100, 0.95, 0.101291),
    ],
)
def test_waiting_times_of_erlang(servers, load, waiting_s):
    assert theory.mmc_waiting_s(servers=servers, load=load) == pytest.approx(waiting_s, abs=5e-7)


def test_one_exponential_server_is_a_special_case_of_each_formula():
    sojourn_s = theory.mm1_sojourn_s(load=0.8, service_s=2.0)
    assert theory.mmc_waiting_s(servers=1, load=0.8, service_s=2.0) + 2.0 == pytest.approx(sojourn_s)
    assert theory.mg1_waiting_s(load=0.8, cv2=1.0, service_s=2.0) + 2.0 == pytest.approx(sojourn_s)
    assert theory.supermarket_sojourn_s(load=0.8, choices=1, service_s=2.0) == pytest.approx(sojourn_s)
    assert theory.processor_sharing_sojourn_s(load=0.8, service_s=2.0) == pytest.approx(sojourn_s)


@pytest.mark.parametrize(("cv2", "waiting_s"), [(0.0, 2.0), (0.25, 2.5), (1.0, 4.0), (4.0, 10.0)])
def test_waiting_times_of_pollaczek_and_khinchine(cv2, waiting_s):
    assert theory.mg1_waiting_s(load=0.8, cv2=cv2) == pytest.approx(waiting_s)


@pytest.mark.parametrize(("load", "value_s"), [(0.5, 9.210), (0.7, 15.351), (0.9, 46.052)])
def test_the_tail_of_one_queue(load, value_s):
    assert theory.mm1_sojourn_quantile_s(0.99, load=load) == pytest.approx(value_s, abs=5e-4)


@pytest.mark.parametrize(
    ("load", "choices", "sojourn_s"),
    [
        (0.5, 2, 1.265686),
        (0.7, 3, 1.356842),
        (0.8, 5, 1.328918),
        (0.9, 2, 2.614057),
        (0.95, 2, 3.383046),
        (0.99, 5, 2.901683),
    ],
)
def test_sojourn_times_of_the_supermarket(load, choices, sojourn_s):
    assert theory.supermarket_sojourn_s(load=load, choices=choices) == pytest.approx(sojourn_s, abs=5e-7)


def test_the_tail_of_the_supermarket_falls_doubly_exponentially():
    tail = [theory.supermarket_tail(k, load=0.9, choices=2) for k in range(1, 7)]
    assert tail == pytest.approx([0.9, 0.729, 0.478297, 0.205891, 0.0381520, 0.00131002], rel=1e-5)
    assert theory.supermarket_tail(3, load=0.9, choices=1) == pytest.approx(0.729)


@pytest.mark.parametrize(
    ("load", "period", "choices", "sojourn"),
    [
        (0.5, 1.0, 2, 1.435),
        (0.5, 1.0, 3, 1.381),
        (0.5, 1.0, 0, 1.375),
        (0.5, 5.0, 2, 1.806),
        (0.5, 5.0, 3, 1.932),
        (0.5, 5.0, 0, 2.086),
        (0.5, 10.0, 2, 2.068),
        (0.5, 10.0, 3, 2.341),
        (0.5, 10.0, 0, 2.624),
        (0.9, 1.0, 2, 2.936),
        (0.9, 5.0, 3, 4.285),
    ],
)
def test_stale_boards_come_out_as_an_integration_in_small_steps_does(load, period, choices, sojourn):
    """The values are of a fourth-order Runge-Kutta integration of the same equations, to the digits shown."""
    found = board_sojourn(load=load, period=period, choices=choices, longest=40 if load == 0.5 else 60)
    assert found == pytest.approx(sojourn, abs=1e-3)


def test_a_board_that_is_always_fresh_is_the_supermarket():
    fresh = board_sojourn(load=0.7, period=0.01, choices=2, longest=15, digits=1e-7)
    assert fresh == pytest.approx(theory.supermarket_sojourn_s(load=0.7, choices=2), rel=0.01)


def test_rules_blind_to_speed_overflow_the_slow_nodes():
    assert theory.random_limit(FLEET) == pytest.approx(0.183, abs=5e-4)
    assert theory.shortest_of_limit(FLEET, choices=2) == pytest.approx(0.232, abs=5e-4)
    assert theory.shortest_of_limit(FLEET, choices=1) == pytest.approx(theory.random_limit(FLEET))
    assert theory.shortest_of_limit(FLEET, choices=20) == 1.0
    assert theory.random_limit([2.0] * 5) == 1.0


def test_dispersion_of_switched_arrivals_grows_with_the_window_to_its_limit():
    given = {"rates_hz": (30.0, 5.0), "leave_hz": (0.5, 0.125)}
    limit = theory.mmpp2_idc(**given)
    assert limit == pytest.approx(1 + 2 * 25**2 * 0.0625 / (0.625**2 * (30 * 0.125 + 5 * 0.5)))
    assert theory.mmpp2_idc(**given, window_s=1e6) == pytest.approx(limit, rel=1e-4)
    assert theory.mmpp2_idc(**given, window_s=1e-6) == pytest.approx(1.0, abs=1e-3)
    assert theory.renewal_idc(cv2=4.0) == 4.0


def test_frames_of_aligned_cameras_wait_for_half_of_the_others():
    assert theory.aligned_waiting_s(cameras=5, service_s=0.01) == pytest.approx(0.02)
