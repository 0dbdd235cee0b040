"""Fleets behave as queueing theory, arithmetic and the seed say."""

import hashlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scheduler.config import AdvertConfig, CoreConfig, PlacementConfig, QueueConfig, StealConfig
from simulator.distributions import Constant, Exponential
from simulator.links import Link
from simulator.metrics import quantile
from simulator.specs import JobSpec, NodeSpec, profile
from simulator.workload import Camera, Poisson
from simulator.world import World

PATIENT = CoreConfig(
    placement=PlacementConfig(default_deadline_s=1e9, shedding=False, expire=False),
    queue=QueueConfig(bound_s=math.inf, batch_jobs=1),
    advert=AdvertConfig(period_s=1e6),
    steal=StealConfig(enabled=False),
    explain=False,
)
"""Takes every job and never gives one up, as theory does."""
JOB = JobSpec(models=("m",), input_bytes=0, budget_s=1e9)
REPLICATIONS = 12


def node(name, service, mean_s):
    return NodeSpec(name=name, models={"m": profile("m", service, mean_s=mean_s)})


def mean_sojourn_s(seed, service, *, load, jobs=4_000):
    """Simulate one node of mean service time 1 s under Poisson arrivals."""
    world = World([node("a", service, 1.0)], seed=seed, config=PATIENT, warm_s=200.0)
    world.start()
    end_s = jobs / load
    world.feed("a", Poisson(rate_hz=load), JOB, start_s=0.0, end_s=end_s)
    world.run(end_s + 10_000.0)
    summary = world.metrics.summary()
    assert summary.unfinished == 0
    return summary.mean_s


@pytest.mark.slow
@pytest.mark.parametrize(
    ("service", "load", "expected_s"),
    [
        (Exponential(1.0), 0.5, 2.0),  # M/M/1: 1 / (1 - load)
        (Exponential(1.0), 0.7, 1 / 0.3),
        (Constant(1.0), 0.7, 1 + 0.7 / (2 * 0.3)),  # M/D/1: Pollaczek-Khinchine
    ],
)
def test_one_node_is_the_queue_of_theory_within_three_standard_errors(service, load, expected_s):
    means = [mean_sojourn_s(f"theory/{number}", service, load=load) for number in range(REPLICATIONS)]
    mean_s = sum(means) / REPLICATIONS
    error_s = math.sqrt(sum((each - mean_s) ** 2 for each in means) / (REPLICATIONS - 1) / REPLICATIONS)
    assert abs(mean_s - expected_s) < 3 * error_s, (mean_s, expected_s, error_s)
    assert error_s < 0.1 * expected_s


def test_aligned_cameras_wait_half_of_the_others_work():
    """D/D/1: n jobs at one instant wait (n - 1) S / 2 on average."""
    world = World([node("a", Constant(0.01), 0.01)], seed="7", config=PATIENT)
    world.start()
    for _ in range(5):
        world.feed("a", Camera(rate_hz=4.0, is_aligned=True), JOB, start_s=1.0, end_s=10.9)
    world.run(20.0)
    summary = world.metrics.summary()
    assert summary.answered == 200
    assert summary.mean_s == pytest.approx(0.01 + 4 * 0.01 / 2, abs=1e-9)


def run_fleet(seed):
    """Run three unequal nodes; returns the summary and a hash of every action."""
    trace = hashlib.sha256()

    def observe(name, now_s, action):
        trace.update(f"{name} {now_s!r} {type(action).__name__}\n".encode())

    specs = [node(name, Constant(mean_s), mean_s) for name, mean_s in (("a", 0.2), ("b", 0.05), ("c", 0.02))]
    world = World(specs, seed=seed, link=Link(delay_s=0.002), observer=observe)
    world.start()
    world.feed("a", Poisson(rate_hz=30.0), JobSpec(models=("m",), input_bytes=10_000), start_s=3.0, end_s=30.0)
    world.at(15.0, world.kill, "b")
    world.run(60.0)
    return world.metrics.summary(), trace.hexdigest()


def test_a_fleet_loses_nothing_when_a_node_is_killed():
    summary, _ = run_fleet("7")
    assert summary.unfinished == 0
    assert summary.answered + sum(summary.ended.values()) == summary.submitted
    assert summary.answered > 0.99 * summary.submitted
    assert summary.shares["c"] > summary.shares.get("a", 0.0)


def test_a_run_is_a_function_of_its_seed_whatever_the_hash_seed():
    program = (
        "import sys; sys.path[:0] = ['.', 'tests/unit']; import test_simulator_world as t; print(t.run_fleet('7')[1])"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).resolve().parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert found == {run_fleet("7")[1] + "\n"}
    assert run_fleet("8")[1] != run_fleet("7")[1]


def test_quantiles_are_values_that_occurred():
    assert quantile([1.0, 2.0, 3.0, 4.0], 0.5) == 3.0
    assert math.isnan(quantile([], 0.5))
