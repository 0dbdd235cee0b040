"""Calibration without daemons: the scenario is the fleet, and what is said of two sides is right."""

import pytest

from gridnode.simulation.calibrate import FLEET, arrivals, capacity_hz, names_of, node_names, scenario_of
from gridnode.simulation.calibration import STALL_MAX_S, Costs, Seen, Times, report_of
from simulator.fleet import capacity_hz as fleet_capacity_hz
from simulator.runner import run

COSTS = Costs(socket_s=0.001, execution_s=0.002, move_s=0.004)


def scenario(load=0.5, seconds=8.0):
    return scenario_of(arrivals(load, seconds, "1"), seconds=seconds, warm_s=2.0, costs=COSTS)


def test_the_scenario_has_the_fleet_with_what_an_execution_costs():
    found = scenario()
    assert list(found.node_names) == node_names()
    assert found.models[0].mean_s == {device: mean_s + 0.002 for device, (_, mean_s) in FLEET.items()}
    assert found.network.link.latency_s == pytest.approx(0.001)  # two halves of a way, two ways
    assert fleet_capacity_hz(found, found.sources[0]) == pytest.approx(capacity_hz(), rel=0.05)


def test_every_arrival_comes_in_where_it_does_at_the_daemons():
    times_s = arrivals(0.5, 8.0, "1")
    result = run(scenario())
    counted = {name: sum(at_s >= 2.0 for at_s in each) for name, each in times_s.items()}
    assert {node.name: node.submitted for node in result.nodes} == counted


def test_arrivals_are_the_same_for_a_seed():
    assert arrivals(0.5, 8.0, "1") == arrivals(0.5, 8.0, "1")
    assert arrivals(0.5, 8.0, "1") != arrivals(0.5, 8.0, "2")


def test_two_sides_are_compared():
    results = [run(scenario()) for _ in range(2)]
    times = [Times(mean_s=0.11, p50_s=0.1, p95_s=0.2), Times(mean_s=0.13, p50_s=0.1, p95_s=0.2)]
    seen = [Seen(0.1, "slow", "fast0"), Seen(0.1, "fast0", "fast0")]
    found = report_of(
        0.5, seen, times, results, names=node_names(), failed=0, cpu=0.2, late_s=[0.001, 0.002]
    )  # fmt: skip
    assert found.difference.mean_s == pytest.approx(0.2)
    assert found.difference.p95_s == pytest.approx(1.0)
    assert found.noise.mean_s == pytest.approx(1.96 * 0.0141421 / 0.12, rel=1e-3)
    assert found.noise.p50_s == 0.0
    assert found.moved_daemon == 0.5
    assert {share.node: share.daemon for share in found.shares}["fast0"] == 1.0
    assert found.stall_s == 0.002


def test_a_machine_stood_still_when_it_did_for_longer_than_a_service():
    assert min(mean_s for _, mean_s in FLEET.values()) == STALL_MAX_S


def test_nodes_have_the_names_of_their_devices():
    assert names_of("slow") == ("slow",)
    assert names_of("fast") == ("fast0", "fast1")
