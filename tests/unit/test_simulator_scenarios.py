"""Every shipped scenario runs, loses nothing, and shows what it is there to show; shortened, and one seed each."""

from functools import cache

import msgspec
import pytest

from gridnode.simulation.load import load, shipped
from gridnode.simulation.run import run_scenario
from simulator.report import bounds_of
from simulator.runner import Run, run

SHORT = {"duration_s": 20, "warm_up_s": 4}
CHANGES = {
    "batches": {"duration_s": 5, "warm_up_s": 1},
    "bursts": {"duration_s": 30, "warm_up_s": 10},  # two bursts count
    "hot_spot": SHORT | {"sources.0.hot_spot.every_s": 8},
    "liar": {"duration_s": 25, "warm_up_s": 12, "faults.0.at_s": 2},  # what counts comes 10 s after its first lie
    "overload": {"duration_s": 12, "warm_up_s": 4},
    "partition": {"duration_s": 30, "warm_up_s": 4, "faults.0.at_s": 8, "faults.0.for_s": 8},
    "pilot_plus": {"duration_s": 40, "warm_up_s": 10},
    "smart_city": {"duration_s": 6, "warm_up_s": 3},
    "thousand": {
        "duration_s": 10,
        "warm_up_s": 4,
        "nodes.pi.count": 32,
        "nodes.fast.count": 8,
        "sources.0.start_s": 2,
    },
}
"""Short enough for a second each; the thousand nodes are forty."""


def scenario(name, **changes):
    return load(name, CHANGES.get(name, SHORT) | changes)


@cache
def ran(name, policy=None, **changes):
    return run(scenario(name, **changes), policy=policy)


def share(result, prefix):
    return sum(node.share for node in result.nodes if node.name.startswith(prefix))


def test_there_is_a_test_of_each():
    assert set(shipped()) == {
        "batches", "bursts", "hot_spot", "liar", "overload", "partition", "pilot", "pilot_plus", "smart_city",
        "thousand", "three_devices",
    }  # fmt: skip


@pytest.mark.parametrize("name", shipped())
def test_no_job_is_lost_and_littles_law_holds(name):
    result = ran(name)
    assert result.scenario == name
    assert result.submitted > 500
    assert result.submitted == result.answered + sum(result.refused.values())
    assert (result.lost, result.unfinished, result.violations) == (0, 0, 0)
    assert sum(node.submitted for node in result.nodes) == result.submitted
    assert sum(node.executed for node in result.nodes) == sum(flow.jobs for flow in result.flows) == result.answered
    assert result.little.holds


@pytest.mark.parametrize("name", shipped())
def test_what_a_scenario_says_of_itself_is_there(name):
    found = scenario(name)
    assert found.name == name
    assert len(found.about) > 30
    assert bounds_of(found) == bounds_of(msgspec.structs.replace(found, seed="2"))


def test_pilot_the_four_fast_nodes_serve_nearly_all_at_little_more_than_the_oracles_mean():
    mine, oracle = ran("pilot"), ran("pilot", "oracle")
    assert mine.submitted == oracle.submitted
    assert share(mine, "fast") > 0.95
    assert mine.mean_s < 1.6 * oracle.mean_s
    assert ran("pilot", "max_spare(hops=3)").mean_s > 5 * mine.mean_s


def test_pilot_plus_a_slower_node_does_no_harm():
    without = ran("pilot_plus", **{"nodes.extra.models": ()})
    more = ran("pilot_plus")
    assert more.submitted == without.submitted
    assert more.mean_s < 1.03 * without.mean_s
    assert more.p99_s < 1.1 * without.p99_s
    assert next(node for node in more.nodes if node.name == "extra").submitted == 0


def test_three_devices_the_frames_that_a_pi_cannot_bear_are_answered_by_the_others():
    result = ran("three_devices")
    assert result.within > 0.99
    assert share(result, "edge") > 0.8
    alone = ran("three_devices", "local_only")
    assert share(alone, "pi") == 1.0
    assert alone.within < 0.2


def test_batches_carry_what_one_by_one_is_too_much_and_are_not_waited_for():
    batches, alone = ran("batches"), ran("batches", "capd(batch=1)")
    assert batches.within == 1.0 > alone.within + 0.1
    assert batches.mean_s < 0.8 * ran("batches", "capd(batch_wait=0.005)").mean_s


def test_smart_city_five_gpu_nodes_answer_five_times_the_frames_of_one():
    one, five = ran("smart_city", **{"nodes.gpu.count": 1}), ran("smart_city")
    assert five.within > 0.98
    assert five.goodput_hz > 0.98 * 5 * one.goodput_hz
    assert share(five, "gpu") == pytest.approx(1.0)


def test_overload_is_refused_rather_than_answered_late():
    result, limit = ran("overload"), bounds_of(scenario("overload")).goodput_ceiling
    assert result.late == 0
    assert result.p99_s < 0.5
    assert result.refused["deadline"] > 10 * result.refused.get("expired", 0)
    assert 0.92 * limit < result.within < 1.02 * limit
    assert ran("overload", "capd(shed=no,expire=no,slack=1,window=no)").within < 0.6 * result.within


def test_bursts_are_cut_off_near_what_is_possible():
    result, limit = ran("bursts"), bounds_of(scenario("bursts")).goodput_ceiling
    assert result.late == 0
    assert 0.85 * limit < result.within < limit


def test_partition_halves_go_on_alone_and_come_together_again():
    """A result that crosses shows as a flow between the halves: none does meanwhile, and many do before and after."""
    found = scenario("partition")
    fault = found.faults[0]
    halves = [set(found.select(group)) for group in fault.groups]
    assert halves[0] | halves[1] == set(found.node_names)
    under_way = Run(found)

    def flows(until_s):
        under_way.advance(until_s)
        every = under_way.world.metrics.flows
        crossed = {pair: jobs for pair, jobs in every.items() if (pair[0] in halves[0]) != (pair[1] in halves[0])}
        return sum(crossed.values()), sum(every.values())

    end_s = fault.at_s + fault.for_s
    before, begun, ended, after = (flows(at_s) for at_s in (fault.at_s, fault.at_s + 0.01, end_s, end_s + 5.0))
    assert before[0] > 100
    assert ended[0] == begun[0]
    assert ended[1] - begun[1] > 500
    assert after[0] - ended[0] > 100
    result = under_way.finish()
    assert (result.lost, result.unfinished) == (0, 0)
    assert result.within > 0.99


@pytest.mark.parametrize("does", ["drop", "delay"])
def test_liar_nothing_is_lost_and_it_gets_nearly_nothing(does):
    result, honest = ran("liar", **{"faults.0.does": does}), ran("liar", faults=())
    assert (result.lost, result.unfinished) == (0, 0)
    assert result.within > 0.999
    assert share(result, "fast0") < 0.02
    assert share(honest, "fast0") > 0.1
    assert result.p99_s < 2 * honest.p99_s


def test_hot_spot_the_hot_entry_hands_on_nearly_all():
    result = ran("hot_spot")
    hottest = max(result.nodes, key=lambda node: node.submitted)
    assert hottest.submitted > 3 * result.submitted / len(result.nodes)
    assert hottest.executed < 0.05 * hottest.submitted
    assert result.within > 0.999
    assert result.mean_s < 1.2 * ran("pilot").mean_s


def test_thousand_jobs_come_when_the_nodes_have_met():
    found = load("thousand")
    assert len(found.node_names) == 1000
    assert found.warm_up_s > found.sources[0].start_s > 60
    result = ran("thousand")
    assert result.within > 0.999
    assert share(result, "fast") > 0.9


@pytest.mark.slow
def test_thousand_half_as_many_nodes_are_simulated():
    fewer = {"nodes.pi.count": 400, "nodes.fast.count": 100}
    found = load("thousand", {"duration_s": 6, "warm_up_s": 4, "sources.0.start_s": 3} | fewer)
    result = run_scenario(found).result
    assert len(result.nodes) == 500
    assert result.submitted > 10_000
    assert (result.lost, result.unfinished, result.violations) == (0, 0, 0)
    assert result.within > 0.999
    assert result.little.holds
