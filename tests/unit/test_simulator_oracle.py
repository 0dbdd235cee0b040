"""Policies of perfect knowledge: they see what is so, and what is shown late where the name says so."""

import functools
import math

import pytest

from scheduler.actions import Offer, Send
from scheduler.config import AdvertConfig, CoreConfig, PlacementConfig, QueueConfig
from simulator import oracle
from simulator.distributions import Constant, Exponential
from simulator.links import Link
from simulator.specs import JobSpec, NodeSpec, profile
from simulator.workload import Poisson
from simulator.world import World

PATIENT = CoreConfig(
    placement=PlacementConfig(default_deadline_s=1e9, shedding=False, expire=False),
    queue=QueueConfig(bound_s=math.inf, batch_jobs=1),
    advert=AdvertConfig(period_s=1.0),
    explain=False,
)
JOB = JobSpec(models=("m",), input_bytes=1_000, budget_s=1e9)


def make_world(policy, means_s, *, law=Constant, link=None, seed="7", observer=None):
    """Make a fleet under a policy of this module; jobs of the first seconds are left out."""
    specs = [
        NodeSpec(name=f"n{number}", models={"m": profile("m", law(mean_s), mean_s=mean_s)})
        for number, mean_s in enumerate(means_s)
    ]
    config = oracle.tune(PATIENT, nodes=len(specs))
    make = None if policy is None else functools.partial(oracle.make, policy)
    world = World(specs, seed=seed, config=config, link=link, warm_s=5.0, policy=make, observer=observer)
    world.start()
    return world


def test_the_oracle_fills_nodes_by_their_true_backlog_and_counts_what_is_on_its_way():
    """Six jobs at one instant, before any of them has come in anywhere: two each, and none of it was gossiped."""
    sent = []

    def observe(name, now_s, action):
        if isinstance(action, Send | Offer):
            sent.append(action.peer)

    world = make_world("oracle", (0.1, 0.1, 0.1), link=Link(delay_s=0.0001), observer=observe)
    world.run(6.0)
    for number in range(6):
        world.submit("n0", JOB, key=number.to_bytes(24, "big"))
    world.run(10.0)
    summary = world.metrics.summary()
    assert summary.shares == pytest.approx({"n0": 1 / 3, "n1": 1 / 3, "n2": 1 / 3})
    assert summary.mean_s == pytest.approx(0.15, abs=0.01)
    assert sorted(sent) == ["n1", "n1", "n2", "n2"]


def test_the_oracle_is_far_below_random_and_not_below_the_bound():
    means_s = (0.2, 0.2, 0.02)
    capacity_hz = sum(1 / mean_s for mean_s in means_s)
    found = {}
    for policy in ("oracle", "perfect_jsq(d=2)"):
        world = make_world(policy, means_s, law=Exponential, link=Link(delay_s=0.001))
        for name in world.nodes:
            world.feed(name, Poisson(rate_hz=0.6 * capacity_hz / 3), JOB, start_s=2.0, end_s=60.0)
        world.run(120.0)
        summary = world.metrics.summary()
        assert summary.unfinished == 0
        assert sum(node.core.statistics().invariant_violations for node in world.nodes.values()) == 0
        found[policy] = summary.mean_s
    assert 0.02 < found["oracle"] < 0.6 * found["perfect_jsq(d=2)"]


def test_all_see_the_board_of_the_last_period_only():
    """Between two boards everybody sends to the one node that was shown idle, however long its queue is by now."""
    world = make_world("bulletin(d=all, period=2)", (1.0, 1.0))
    world.run(5.9)
    world.submit("n0", JOB, key=b"first".ljust(24))
    world.run(6.1)
    busy, idle = ("n0", "n1") if world.nodes["n0"].core.statistics().jobs_running else ("n1", "n0")
    for number in range(6):
        world.submit("n0", JOB, key=number.to_bytes(24, "big"))
    world.run(6.2)
    assert world.nodes[idle].core.statistics().jobs_running == 1
    world.run(30.0)
    assert world.metrics.summary().shares == pytest.approx({busy: 1 / 7, idle: 6 / 7})


def test_a_dead_node_is_known_at_once():
    world = make_world("oracle", (0.1, 0.01))
    world.run(6.0)
    world.kill("n1")
    world.submit("n0", JOB, key=b"late".ljust(24))
    world.run(8.0)
    assert world.metrics.summary().shares == {"n0": 1.0}


def test_names_with_and_without_arguments():
    world = make_world(None, (0.1,))
    assert oracle.make("capd", world) is None
    assert oracle.make("oracle", world).name == "oracle"
    assert oracle.make("perfect_jsq", world).name == "perfect_jsq"
    assert oracle.make(" bulletin( d = 3, period=0.5 ) ", world).name == "bulletin"
    assert oracle.is_known("perfect_jsq(d=3)")
    assert not oracle.is_known("jsq(d=3)")
    assert oracle.names() == ["bulletin", "oracle", "perfect_jsq"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oracle(d=2)", "no argument 'd'; it takes: none"),
        ("perfect_jsq(k=2)", "no argument 'k'; it takes: d"),
        ("perfect_jsq(2)", "no argument '2'"),
        ("perfect_jsq(d=0)", "d is '0'; it must be a whole number from 1 on, or all"),
        ("bulletin(period=soon)", "period is 'soon'; it must be a number of seconds above 0"),
    ],
)
def test_wrong_arguments_are_named(name, message):
    world = make_world(None, (0.1,))
    with pytest.raises(oracle.OraclePolicyError) as caught:
        oracle.make(name, world)
    assert message in str(caught.value)


def test_a_job_is_on_its_way_until_it_has_come_in():
    world = make_world(None, (0.1, 5.0))
    world.run(6.0)
    way = oracle.OnTheWay(world)
    client = world.submit("n1", JOB, key=b"here".ljust(24))
    way.add("n1", key=client.job.key, sender="n0", service_s=5.0)
    way.add("n1", key=b"not here yet".ljust(24), sender="n0", service_s=3.0)
    assert way.look("n1") == (1, 3.0)
    assert way.look("n0") == (0, 0.0)
    world.run(6.1)
    assert way.look("n1") == (0, 0.0), "its sender knows no errand of it any more"
