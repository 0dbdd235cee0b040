"""Faults do what they say, and the fleet finds out as the daemon's would."""

import hashlib
import math

import pytest

from scheduler.config import CoreConfig
from simulator.config import NetworkConfig
from simulator.distributions import Constant
from simulator.engine import Engine, LocalClock
from simulator.faults import Faults
from simulator.faultspecs import ChurnFault, CrashFault, DriftFault, LiarFault, PartitionFault, PauseFault, SlowFault
from simulator.gossip import build_mesh
from simulator.lies import Lie
from simulator.links import Link
from simulator.specs import JobSpec, NodeSpec, profile
from simulator.workload import Poisson
from simulator.world import World
from transport.liveness_events import Status

NAMES = [f"n{number}" for number in range(8)]
JOB = JobSpec(models=("m",), input_bytes=10_000, budget_s=20.0)


class Fleet:
    """Eight nodes under load, with what happened to them."""

    def __init__(self, seed="7", *, rate_hz=40.0, end_s=30.0, means_s=None, faults=(), watched=True, config=None):
        self.hash = hashlib.sha256()
        means_s = means_s or dict.fromkeys(NAMES, 0.05)
        specs = [NodeSpec(name=n, models={"m": profile("m", Constant(s), mean_s=s)}) for n, s in means_s.items()]
        self.world = World(
            specs,
            seed=seed,
            config=config or CoreConfig(explain=False),
            link=Link(delay_s=0.002),
            network=NetworkConfig(forwards_gossip=True),
            failover=True,
            observer=self.observe,
        )
        self.faults = Faults(self.world)
        if watched:
            self.faults.watch()
        for fault in faults:
            if isinstance(fault, PartitionFault):
                self.faults.plan(fault, (), fault.groups)
            else:
                self.faults.plan(fault, fault.nodes)
        self.world.start(build_mesh(NAMES, degree=4, seed=seed))
        for name in NAMES:
            self.world.feed(name, Poisson(rate_hz=rate_hz / len(NAMES)), JOB, start_s=2.0, end_s=end_s)

    def observe(self, name, now_s, action):
        self.hash.update(f"{name} {now_s!r} {type(action).__name__}\n".encode())

    def run(self, until_s=60.0):
        self.world.run(until_s)
        return self.world.metrics.summary()

    def standing(self, of):
        """Return how the others that live see a node."""
        nodes = [node for node in self.world.nodes.values() if node.name != of and node.is_alive]
        return [node.watch.status(of) for node in nodes]


def check_nothing_lost(fleet, summary):
    assert summary.unfinished == 0
    assert summary.answered + sum(summary.ended.values()) == summary.submitted
    assert all(node.core.statistics().invariant_violations == 0 for node in fleet.world.nodes.values())


def test_a_healthy_fleet_suspects_nobody():
    fleet = Fleet()
    summary = fleet.run()
    check_nothing_lost(fleet, summary)
    assert summary.answered == summary.submitted
    for node in fleet.world.nodes.values():
        statistics = node.watch.statistics()
        assert statistics.probes > 100
        assert (statistics.probes_failed, statistics.suspect, statistics.dead) == (0, 0, 0)


def test_a_killed_node_is_found_dead_by_all_within_fifteen_seconds():
    fleet = Fleet(faults=[CrashFault(nodes=("n3",), at_s=10.0)])
    fleet.run(10.0)
    fleet.run(25.0)
    assert set(fleet.standing("n3")) == {Status.DEAD}
    summary = fleet.run()
    check_nothing_lost(fleet, summary)
    assert summary.answered > 0.99 * summary.submitted


def test_a_node_returns_under_a_higher_epoch_with_empty_memory_and_gets_work_again():
    fleet = Fleet(faults=[CrashFault(nodes=("n3",), at_s=8.0, back_after_s=5.0)])
    fleet.run(13.0)
    node = fleet.world.nodes["n3"]
    assert (node.epoch, fleet.faults.crashes, fleet.faults.returns) == (2, 1, 1)
    assert node.core.statistics().models_loaded == 0
    summary = fleet.run()
    check_nothing_lost(fleet, summary)
    assert set(fleet.standing("n3")) == {Status.ALIVE}
    assert fleet.world.nodes["n3"] is node
    assert node.core.statistics().jobs_executed > 50
    assert node.core.statistics().jobs_received > 0, "peers place work on it again"


def test_a_frozen_node_is_suspected_or_dead_and_comes_back():
    fleet = Fleet(faults=[PauseFault(nodes=("n3",), at_s=10.0, for_s=8.0)])
    fleet.run(17.9)
    before = fleet.world.nodes["n3"].core.statistics()
    assert set(fleet.standing("n3")) <= {Status.SUSPECT, Status.DEAD}
    fleet.run(17.99)
    assert fleet.world.nodes["n3"].core.statistics().jobs_executed == before.jobs_executed, "it stands still"
    summary = fleet.run()
    check_nothing_lost(fleet, summary)
    assert set(fleet.standing("n3")) == {Status.ALIVE}
    assert fleet.world.nodes["n3"].core.statistics().jobs_executed > before.jobs_executed


def test_a_partition_heals_and_nothing_is_lost():
    groups = (tuple(NAMES[:4]), tuple(NAMES[4:]))
    fleet = Fleet(faults=[PartitionFault(groups=groups, at_s=8.0, for_s=12.0)])
    fleet.run(19.9)
    seen = [fleet.world.nodes["n0"].watch.status(name) for name in groups[1]]
    assert set(seen) <= {Status.SUSPECT, Status.DEAD}
    assert all(fleet.world.nodes["n0"].watch.status(name) is Status.ALIVE for name in groups[0][1:])
    check_nothing_lost(fleet, fleet.run(90.0))
    for name in NAMES:
        assert set(fleet.standing(name)) == {Status.ALIVE}, name


def share(summary, name):
    return summary.shares.get(name, 0.0)


def test_a_slow_node_is_found_out_and_gets_less():
    even = Fleet().run()
    slow = Fleet(faults=[SlowFault(nodes=("n3",), at_s=0.0, factor=10.0)]).run()
    assert share(slow, "n3") < 0.6 * share(even, "n3")


def test_a_slow_node_is_quick_again_after_a_while():
    fleet = Fleet(faults=[SlowFault(nodes=("n3",), at_s=5.0, factor=10.0, for_s=5.0)])
    fleet.run(10.1)
    assert fleet.world.nodes["n3"].machine._pace == 1.0


@pytest.mark.parametrize("does", ["delay", "drop", "honest_work"])
def test_nothing_is_lost_to_a_liar(does):
    fleet = Fleet(faults=[LiarFault(nodes=("n3",), at_s=5.0, does=does)])
    check_nothing_lost(fleet, fleet.run())


def test_a_liar_tells_that_it_is_idle():
    fleet = Fleet()
    fleet.run(5.0)
    node = fleet.world.nodes["n3"]
    for number in range(5):
        fleet.world.submit("n3", JOB, key=bytes(16) + number.to_bytes(8, "big"))
    node.set_lie(Lie())
    assert node.core.state_record(5.0).backlog_s > 0.0
    assert node.own_state().backlog_s == 0.0
    node.set_lie(None)
    assert node.own_state().backlog_s > 0.0


def test_a_drifting_clock_changes_periods_and_not_the_speed():
    even, fast = Fleet(), Fleet(faults=[DriftFault(nodes=("n3",), rate=1.5)])
    adverts, probes = [], []
    for fleet in (even, fast):
        summary = fleet.run()
        check_nothing_lost(fleet, summary)
        adverts.append(fleet.world.nodes["n3"].core.statistics().adverts_sent)
        probes.append(fleet.world.nodes["n3"].watch.statistics().probes)
    assert probes[1] == pytest.approx(1.5 * probes[0], rel=0.05)
    assert fast.world.nodes["n3"].engine.now_s == pytest.approx(90.0)


def test_one_job_on_a_drifting_node_takes_its_true_time():
    for rate in (0.5, 1.0, 2.0):
        fleet = Fleet(rate_hz=1e-9, faults=[DriftFault(nodes=("n3",), rate=rate)], watched=False)
        fleet.world.at(5.0, lambda world=fleet.world: world.submit("n3", JOB, key=bytes(24)))
        summary = fleet.run(20.0)
        assert summary.mean_s == pytest.approx(0.05), rate


def test_churn_ends_and_returns_nodes_after_times_of_their_own():
    def run(nodes):
        fleet = Fleet(faults=[ChurnFault(nodes=nodes, up_s=8.0, down_s=2.0, for_s=40.0)], end_s=40.0)
        summary = fleet.run(100.0)
        check_nothing_lost(fleet, summary)
        assert summary.answered > 0.97 * summary.submitted
        return fleet

    few, many = run(("n1", "n2")), run(tuple(NAMES[:5]))
    assert few.faults.crashes == few.faults.returns >= 4
    assert [few.world.nodes[name].epoch for name in ("n1", "n2")] == [
        many.world.nodes[name].epoch for name in ("n1", "n2")
    ], "streams per node"
    assert all(node.is_alive for node in many.world.nodes.values())


def test_a_run_with_everything_wrong_is_a_function_of_its_seed():
    faults = [
        CrashFault(nodes=("n1",), at_s=5.0, back_after_s=4.0),
        PauseFault(nodes=("n2",), at_s=6.0, for_s=3.0),
        SlowFault(nodes=("n3",), at_s=7.0, factor=4.0),
        DriftFault(nodes=("n4",), rate=0.9),
        LiarFault(nodes=("n5",), at_s=8.0, does="drop"),
        ChurnFault(nodes=("n6",), up_s=5.0, down_s=1.0, for_s=20.0),
        PartitionFault(groups=(("n0", "n1"), ("n6", "n7")), at_s=9.0, for_s=5.0),
    ]
    runs = [Fleet(faults=faults), Fleet(faults=faults), Fleet("8", faults=faults)]
    for fleet in runs:
        check_nothing_lost(fleet, fleet.run(90.0))
    assert runs[0].hash.digest() == runs[1].hash.digest() != runs[2].hash.digest()


# The clock of a node.


def test_a_clock_of_its_own_stands_still_and_goes_on_in_order():
    engine = Engine()
    clock, made = LocalClock(engine), []
    for at_s in (1.0, 2.0, 3.0):
        clock.at(at_s, made.append, at_s)
    gone = clock.at(2.5, made.append, "never")
    engine.at(1.5, clock.stop)
    engine.at(2.7, clock.cancel, gone)
    engine.at(4.0, clock.go)
    engine.run(3.9)
    assert made == [1.0]
    engine.run()
    assert made == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("rate", [0.5, 0.9, 1.1, 1.7])
def test_a_call_on_a_drifting_clock_finds_its_time_come(rate):
    engine = Engine(start_s=0.1)
    clock, found = LocalClock(engine), []
    clock.set_rate(rate)

    def again(due_s):
        found.append(clock.now_s >= due_s)
        if len(found) < 1000:
            clock.at(clock.now_s + math.pi / 10, again, clock.now_s + math.pi / 10)

    clock.at(0.3, again, 0.3)
    engine.run()
    assert all(found)
    assert clock.now_s == pytest.approx(0.3 + 999 * math.pi / 10)
