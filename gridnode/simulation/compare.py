"""Policies side by side on one scenario, under the same seeds."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

import msgspec

from gridnode.simulation.executors import Task, run_all, seeds_of
from simulator.report import Comparison
from simulator.report import compare as side_by_side
from simulator.results import Result
from simulator.scenario import Scenario

ORACLE: Final = "oracle"
REPLICATIONS: Final = 10
"""Enough for intervals of a few percent in minutes."""


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison, and the runs behind it."""

    comparison: Comparison
    results: dict[str, list[Result]]
    """Replications by policy; only the first of each has series over time."""


def compare(
    scenario: Scenario,
    policies: Sequence[str],
    *,
    replications: int = REPLICATIONS,
    oracle: bool = True,
    executor: Executor | None = None,
    jobs: int = 1,
    progress: Callable[[float], object] | None = None,
) -> Compared:
    """Compare policies.

    Parameters
    ----------
    scenario : Scenario
        What they face.
    policies : sequence of str
        Names with arguments; differences are from the first.
    replications : int, default 10
        Runs per policy, each with a seed of its own.
    oracle : bool, default True
        Whether the greedy oracle runs too.
    executor, jobs, progress
        See executors.run_all.

    Raises
    ------
    SimulationInputError
        A policy or something in the scenario is wrong.
    """
    wanted = list(dict.fromkeys([*policies, *([ORACLE] if oracle else [])]))
    seeds = seeds_of(scenario, replications)
    tasks = [
        Task(scenario=scenario if not number else without_series(scenario), seed=seed, policy=policy)
        for policy in wanted
        for number, seed in enumerate(seeds)
    ]
    found = run_all(tasks, executor=executor, jobs=jobs, progress=progress)
    results = {policy: found[place * replications : (place + 1) * replications] for place, policy in enumerate(wanted)}
    return Compared(comparison=side_by_side(scenario, seeds, results), results=results)


def without_series(scenario: Scenario) -> Scenario:
    """Return a scenario whose runs measure nothing over time."""
    return msgspec.structs.replace(scenario, measure=msgspec.structs.replace(scenario.measure, series_points=0))
