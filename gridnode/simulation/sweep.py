"""A grid of parameters: every combination of values, for every policy, with replications."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from typing import Final

import msgspec

from gridnode.simulation.compare import without_series
from gridnode.simulation.executors import Task, run_all, seeds_of
from gridnode.simulation.load import SimulationInputError, load, toml_value
from simulator.report import Bounds, bounds_of, estimates
from simulator.statistics import Estimate

POINTS_MAX: Final = 10_000
"""Combinations of one sweep: each is some runs of seconds."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One combination under one policy."""

    parameters: dict[str, object]
    policy: str
    load: float
    bounds: Bounds
    values: dict[str, Estimate]
    """By quantity; see simulator.report.QUANTITIES."""


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """All combinations."""

    scenario: str
    about: str
    keys: tuple[str, ...]
    """Parameters, in the order given."""
    replications: int
    points: tuple[Point, ...]


def read_vary(text: str) -> tuple[str, list[object]]:
    """Read `key=a,b,c`; commas inside of brackets and quotes do not part.

    Examples
    --------
    >>> read_vary("sources.0.load=0.5,0.7")
    ('sources.0.load', [0.5, 0.7])
    >>> read_vary("policy=jsq(d=2, inflight=no),capd")
    ('policy', ['jsq(d=2, inflight=no)', 'capd'])
    """
    key, sign, values = text.partition("=")
    parts = [part.strip() for part in _split(values)]
    if not sign or not key.strip() or not all(parts):
        raise SimulationInputError(f"--vary {text!r} is no key=value,value,...; write it like sources.0.load=0.5,0.7")
    return key.strip(), [toml_value(part) for part in parts]


def _split(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "\"'":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def sweep(
    name: str,
    vary: Mapping[str, Sequence[object]],
    *,
    changes: Mapping[str, object] | None = None,
    policies: Sequence[str] = (),
    replications: int = 3,
    executor: Executor | None = None,
    jobs: int = 1,
    progress: Callable[[float], object] | None = None,
) -> Sweep:
    """Run a grid of parameters.

    Parameters
    ----------
    name : str
        Path or name of a scenario.
    vary : mapping of str to sequence
        Values by key of the scenario.
    changes : mapping of str to object, optional
        Values in place of the scenario's, the same everywhere.
    policies : sequence of str
        Each runs at every point; the scenario's by default.
    replications : int, default 3
        Runs of each; the seeds are the same at all points.
    executor, jobs, progress
        See executors.run_all.

    Raises
    ------
    SimulationInputError
        A key, value or policy is wrong.
    """
    combinations = [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]
    if not 0 < len(combinations) <= POINTS_MAX:
        raise SimulationInputError(f"{len(combinations)} combinations; 1 to {POINTS_MAX} are swept: vary less")
    scenarios = [load(name, {**(changes or {}), **each}) for each in combinations]
    cells = [
        (combination, scenario, policy)
        for combination, scenario in zip(combinations, scenarios, strict=True)
        for policy in policies or (scenario.policy,)
    ]
    tasks = [
        Task(scenario=without_series(scenario), seed=seed, policy=policy)
        for _, scenario, policy in cells
        for seed in seeds_of(scenario, replications)
    ]
    found = run_all(tasks, executor=executor, jobs=jobs, progress=progress)
    bounds: dict[int, Bounds] = {}
    points = []
    for place, (combination, scenario, policy) in enumerate(cells):
        runs = found[place * replications : (place + 1) * replications]
        if id(scenario) not in bounds:
            bounds[id(scenario)] = bounds_of(scenario)
        points.append(
            Point(
                parameters=combination,
                policy=policy,
                load=runs[0].load,
                bounds=bounds[id(scenario)],
                values=estimates(runs),
            )
        )
    return Sweep(
        scenario=scenarios[0].name,
        about=scenarios[0].about,
        keys=tuple(vary),
        replications=replications,
        points=tuple(points),
    )
