"""Fleets behave as queueing theory, arithmetic and the seed say."""

import hashlib
import itertools
import math
import os
import subprocess
import sys

import msgspec
import pytest

from scheduler.config import AdvertConfig, CoreConfig, PlacementConfig, QueueConfig, StealConfig
from scheduler.types import Job
from simulator.engine import Engine
from simulator.execution import ModelCost
from simulator.metrics import quantile, summarise
from simulator.network import Link
from simulator.node import Device
from simulator.workload import Request, camera, merge, poisson
from simulator.world import World

PATIENT = CoreConfig(
    placement=PlacementConfig(default_deadline_s=1e9, shedding=False, expire=False),
    queue=QueueConfig(bound_s=math.inf, batch_jobs=1),
    advert=AdvertConfig(period_s=1e6),
    steal=StealConfig(enabled=False),
    explain=False,
)
"""Takes every job and never gives one up, as theory does."""


def job(number, arrival_s, *, entry="a", budget_s=5.0, input_bytes=0):
    return Job(
        key=number.to_bytes(24, "big"),
        entry=entry,
        input_bytes=input_bytes,
        arrival_s=arrival_s,
        deadline_s=arrival_s + budget_s,
        models=("m",),
    )


def device(name, mean_s, **cost):
    return Device(name=name, models={"m": ModelCost(mean_s=mean_s, **cost)})


def serve_queue(load, cv, *, count, slots=1):
    """Return the sojourn times of one node under Poisson arrivals, for a mean service time of 1 s."""
    config = msgspec.structs.replace(PATIENT, queue=msgspec.structs.replace(PATIENT.queue, slots=slots))
    world = World([device("a", 1.0, cv=cv)], seed=11, config=config)
    request = Request(entry="a", client="c", models=("m",), budget_s=1e9)
    source = poisson(request, rate_hz=load * slots, rng=world.engine.stream("workload", "c"))
    world.feed(itertools.islice(source, count))
    world.run(count / (load * slots) + 10_000.0)
    assert len(world.outcomes) == count
    return [each.sojourn_s for each in world.outcomes]


def check_mean(times, expected_s):
    """Check a mean within 3 standard errors, from the means of 40 batches, since sojourn times are correlated."""
    size = len(times) // 40
    means = [sum(times[i * size : (i + 1) * size]) / size for i in range(40)]
    mean_s = sum(means) / 40
    error_s = math.sqrt(sum((each - mean_s) ** 2 for each in means) / 39 / 40)
    assert abs(mean_s - expected_s) < 3 * error_s, (mean_s, expected_s, error_s)
    assert error_s < 0.1 * expected_s


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.5, 0.7])
def test_one_node_is_an_m_m_1_queue(load):
    check_mean(serve_queue(load, 1.0, count=40_000), 1 / (1 - load))


@pytest.mark.slow
def test_constant_service_times_make_an_m_d_1_queue():
    check_mean(serve_queue(0.7, 0.0, count=20_000), 1 + 0.7 / (2 * (1 - 0.7)))


@pytest.mark.slow
def test_two_slots_make_an_m_m_2_queue():
    check_mean(serve_queue(0.7, 1.0, count=40_000, slots=2), 1 / (1 - 0.7**2))


def test_jobs_that_wait_are_served_one_after_the_other():
    world = World([device("a", 0.25)], seed=1)
    world.submit([job(n, 1.0 + n / 100) for n in range(3)])
    world.run(5.0)
    assert [each.end_s for each in world.outcomes] == pytest.approx([1.25, 1.5, 1.75])
    assert [each.waiting_s for each in world.outcomes] == pytest.approx([0.0, 0.24, 0.48])


def test_a_job_that_moves_takes_what_its_way_takes():
    """One way 10 ms, 1 MB/s: 3 round trips of set-up, then the payload, the service, and the answer."""
    world = World(
        [device("a", 2.0), device("b", 0.1)], seed=1, link=Link(delay_s=0.01, bytes_per_s=1e6), config=CoreConfig()
    )
    world.submit([job(0, 1.0, input_bytes=20_000)])
    world.run(5.0)
    [outcome] = world.outcomes
    assert (outcome.executor, outcome.hops) == ("b", 1)
    headers_s = outcome.sojourn_s - (0.1 + 2 * 0.01 + 0.02)
    # The table was pulled before, so that a connection is there; what is left are two headers of some hundred bytes.
    assert 0.0002 < headers_s < 0.0012


def test_a_late_job_is_refused_at_once():
    world = World([device("a", 1.0)], seed=1)
    world.submit([job(0, 1.0, budget_s=0.5)])
    world.run(5.0)
    [outcome] = world.outcomes
    assert (outcome.failure, outcome.sojourn_s) == ("deadline", 0.0)


def test_every_job_has_one_outcome_when_a_node_is_killed():
    world = mixed_fleet(3)
    world.kill("fast", 5.0)
    world.run(40.0)
    assert world.open_jobs == 0
    assert len({each.key for each in world.outcomes}) == len(world.outcomes) == 600
    late = [each for each in world.outcomes if each.entry != "fast" and each.arrival_s > 8.0]
    assert {each.executor for each in late} <= {"slow", "mid", None}
    assert [each.failure for each in world.outcomes if each.entry == "fast" and each.arrival_s > 5.0].count(None) == 0


def test_a_drained_node_says_so_and_takes_no_more():
    world = mixed_fleet(4)
    world.drain("mid", 5.0)
    world.run(40.0)
    assert 5.0 <= world.drained_s["mid"] < 10.0
    assert not [each for each in world.outcomes if each.executor == "mid" and each.arrival_s > 6.0]


def test_a_cancelled_job_ends_at_once():
    world = World([device("a", 1.0)], seed=1)
    world.submit([job(0, 1.0)])
    world.cancel(job(0, 1.0).key, 1.25)
    world.run(5.0)
    [outcome] = world.outcomes
    assert (outcome.failure, outcome.end_s) == ("cancelled", 1.25)


def test_figures_of_a_run():
    world = World([device("a", 0.25)], seed=1)
    world.submit([job(n, 1.0 + n, budget_s=5.0 if n else 0.1) for n in range(4)])
    world.run(9.0)
    summary = summarise(world.outcomes)
    assert (summary.jobs, summary.answered, summary.ended) == (4, 3, {"deadline": 1})
    assert (summary.mean_s, summary.p99_s) == pytest.approx((0.25, 0.25))
    assert (summary.shares, summary.moved) == ({"a": 1.0}, 0.0)
    assert summarise(world.outcomes, from_s=3.5).jobs == 1
    assert summarise([]).mean_s is None
    assert [quantile([1.0, 2.0, 3.0, 4.0], share) for share in (0.0, 0.5, 0.99, 1.0)] == [1.0, 3.0, 4.0, 4.0]


def test_two_devices_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two devices"):
        World([device("a", 1.0), device("a", 2.0)], seed=1)


# ------------------------------------------------------------ one seed, one history


def mixed_fleet(seed, *, on_action=None):
    """Return three nodes of different speed with 600 jobs to come."""
    world = World(
        [device("slow", 0.263, cv=0.3), device("mid", 0.09, cv=0.3), device("fast", 0.031, cv=0.3)],
        seed=seed,
        link=Link(delay_s=0.001, jitter_s=0.0005, gossip_loss=0.05, bytes_per_s=12.5e6),
        on_action=on_action,
    )
    streams = Engine(seed)
    sources = [
        poisson(
            Request(entry="slow", client="p", models=("m",), input_bytes=(1_000, 200_000)),
            rate_hz=20.0,
            rng=streams.stream("workload", "p"),
        ),
        camera(
            Request(entry="fast", client="c", models=("m",), newest_wins=True),
            rate_hz=15.0,
            rng=streams.stream("workload", "c"),
        ),
    ]
    world.feed(itertools.islice(merge(sources, until_s=math.inf), 600))
    return world


def trace(seed):
    """Return a digest of every action of every node."""
    digest = hashlib.sha256()

    def note(node, now_s, action):
        digest.update(f"{node} {now_s!r} {action!r}\n".encode())

    mixed_fleet(seed, on_action=note).run(40.0)
    return digest.hexdigest()


def test_one_seed_gives_one_history_whatever_the_hash_seed():
    command = "import test_simulator_world; print(test_simulator_world.trace(5))"

    def run(hash_seed):
        path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
        environment = {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        done = subprocess.run([sys.executable, "-c", command], env=environment, capture_output=True, check=True)
        return done.stdout.decode().strip()

    assert run("1") == run("2") == trace(5)
    assert trace(6) != trace(5)
