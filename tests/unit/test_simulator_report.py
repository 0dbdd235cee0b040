"""Results of several runs in one record, and the bounds beside them."""

import math

import msgspec
import pytest

from gridnode.simulation.load import load
from simulator.report import QUANTITIES, bounds_of, compare, differences, estimates, quantity
from simulator.results import Little, Result, Stages
from simulator.scenario import ModelSpec, NodeGroup, Scenario
from simulator.sources import PoissonSource, ReplaySource, Stage


def result(**changes):
    values = {
        "scenario": "s", "about": "", "policy": "capd", "seed": "1", "duration_s": 10.0, "warm_up_s": 1.0,
        "counted_s": 9.0, "capacity_hz": 10.0, "load": 0.5, "submitted": 10, "answered": 8,
        "refused": {"queue_full": 2},
        "lost": 0, "late": 1, "unfinished": 0, "mean_s": 0.1, "p50_s": 0.1, "p95_s": 0.2, "p99_s": 0.3, "max_s": 0.4,
        "cdf": ((0.1, 0.5), (0.4, 1.0)), "goodput_hz": 7 / 9, "within": 0.7, "offloaded": 0.5, "hops": (4, 4),
        "stages": Stages(network_s=0.01, queue_s=0.04, service_s=0.05, load_s=0.0), "nodes": (), "flows": (),
        "open_jobs": None, "answers": None, "violations": 0, "events": 100,
        "little": Little(number=1.0, rate_hz=10.0, sojourn_s=0.1, error=0.0),
    }  # fmt: skip
    return Result(**(values | changes))


def fleet(**changes):
    """Return two nodes of 0.1 and 0.5 s with three jobs/s at each."""
    values = {
        "name": "s",
        "models": (ModelSpec(name="m", mean_s={"fast": 0.1, "slow": 0.5}, cv=0.0),),
        "nodes": (NodeGroup(device="fast"), NodeGroup(device="slow")),
        "sources": (PoissonSource(rate_hz=6.0, deadline_s=1.0),),
    }
    return Scenario(**(values | changes))


def test_every_quantity_is_read_from_a_result():
    run = result()
    assert quantity(run, "refused") == pytest.approx(0.2)
    assert quantity(run, "miss") == pytest.approx(0.3)
    assert set(estimates([run, run])) == set(QUANTITIES)
    assert math.isnan(quantity(result(submitted=0), "refused"))


def test_differences_are_taken_run_by_run():
    first = [result(mean_s=value) for value in (0.1, 0.2, 0.3)]
    second = [result(mean_s=value) for value in (0.11, 0.21, 0.31)]
    less = differences(second, first)["mean_s"]
    assert less.mean == pytest.approx(0.01)
    assert less.half < 1e-9  # what both suffered alike is left out


def test_the_oracle_and_the_bound_stand_beside_each_policy():
    runs = {"capd": [result(mean_s=0.2), result(mean_s=0.22)], "oracle": [result(mean_s=0.1), result(mean_s=0.11)]}
    found = compare(fleet(), ("1", "2"), runs)
    capd, oracle = found.rows
    assert capd.mean_over_oracle.mean == pytest.approx(2.0)
    assert oracle.mean_over_oracle.mean == pytest.approx(1.0)
    assert capd.mean_over_bound == pytest.approx(0.21 / found.bounds.zero_queue_s)


def test_without_the_oracle_there_is_no_ratio():
    (row,) = compare(fleet(), ("1",), {"capd": [result()]}).rows
    assert row.mean_over_oracle is None


@pytest.mark.parametrize(
    ("load_", "bound_s", "split_s"), [(0.3, 0.0225, 0.0257), (0.7, 0.0225, 0.0493), (0.95, 0.0467, 0.306)]
)
def test_bounds_of_the_pilot_are_known(load_, bound_s, split_s):
    # Computed by hand beforehand; the pilot's variation of 0.2 is the one they were computed with.
    found = bounds_of(load("pilot", {"sources.0.load": load_}))
    assert found.zero_queue_s == pytest.approx(bound_s, rel=0.005)
    assert found.static_split_s == pytest.approx(split_s, rel=0.005)


def test_too_much_has_a_ceiling_and_no_mean():
    found = bounds_of(fleet(sources=(PoissonSource(rate_hz=24.0, deadline_s=1.0),)))
    assert found.zero_queue_s is None
    assert found.goodput_ceiling == pytest.approx(0.5)
    assert "lower the load" in found.note


def test_a_recording_counts_with_what_arrives_in_the_counted_time():
    source = ReplaySource(times_s=tuple(number / 6 for number in range(360)), deadline_s=1.0)
    recorded = bounds_of(fleet(sources=(source,)))
    assert recorded.zero_queue_s == pytest.approx(bounds_of(fleet()).zero_queue_s, rel=0.02)


def test_stages_of_a_frame_add_up():
    one = fleet()
    two = fleet(sources=(PoissonSource(rate_hz=3.0, deadline_s=1.0, then=Stage(model="m")),))
    assert bounds_of(two).zero_queue_s == pytest.approx(2 * bounds_of(one).zero_queue_s)


def test_several_models_have_a_lower_bound_too():
    models = (
        ModelSpec(name="m", mean_s={"fast": 0.1, "slow": 0.5}),
        ModelSpec(name="n", mean_s={"fast": 0.1, "slow": 0.5}),
    )
    both = fleet(models=models, sources=(PoissonSource(rate_hz=6.0, models=("m", "n"), deadline_s=1.0),))
    assert bounds_of(both).zero_queue_s == pytest.approx(bounds_of(fleet()).zero_queue_s, rel=0.01)


def test_nodes_without_the_model_do_not_count():
    models = (ModelSpec(name="m", mean_s={"fast": 0.1, "slow": 0.5}), ModelSpec(name="n", mean_s={"fast": 1.0}))
    nodes = (NodeGroup(device="fast", models=("m",)), NodeGroup(device="slow", models=("m",)))
    assert bounds_of(fleet(models=models, nodes=nodes)).zero_queue_s == bounds_of(fleet()).zero_queue_s


def test_no_bound_where_any_model_will_do():
    source = msgspec.structs.replace(fleet().sources[0], rungs=True)
    assert bounds_of(fleet(sources=(source,))).note.startswith("no bounds")


def test_bursts_have_a_ceiling_of_their_own():
    # 3 x 0.6 of the capacity for 2 of 10 s: what 0.5 s of queue does not hold is late whatever is done (81.67 %).
    assert bounds_of(load("bursts")).goodput_ceiling == pytest.approx(0.8167, abs=1e-4)
