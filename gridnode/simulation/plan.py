"""What if: a fleet with fewer or more devices or cameras, under the arrivals that were recorded or foreseen.

Owns the runs and what they come to; the changes themselves are gridnode.simulation.whatif's, a fleet of recordings is
gridnode.simulation.recordedload's. Variants run under the same seeds as the fleet as it is.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Final

import msgspec

from gridnode.simulation.compare import without_series
from gridnode.simulation.executors import Task, run_all, seeds_of
from gridnode.simulation.load import SimulationInputError
from gridnode.simulation.recordedload import Observed, RecordedLoad
from gridnode.simulation.whatif import changed, frozen, read_what_if
from simulator.report import Bounds, bounds_of, differences, estimates
from simulator.scenario import Scenario
from simulator.sources import ReplaySource
from simulator.statistics import Estimate


class Variant(msgspec.Struct, frozen=True, kw_only=True):
    """A fleet and how it fares."""

    what_if: str
    """As asked for; empty for the fleet as it is."""
    nodes: int
    load: float
    bounds: Bounds
    values: dict[str, Estimate]
    """By quantity; `miss` is the share of the jobs without an answer within their deadline."""
    less_now: dict[str, Estimate]
    """Paired differences from the fleet as it is."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All variants, the fleet as it is first."""

    scenario: str
    about: str
    policy: str
    replications: int
    variants: tuple[Variant, ...]
    observed: Observed | None = None
    """What became of the jobs on the real devices, where daemons recorded them: the fleet as it is should come near."""
    notes: tuple[str, ...] = ()
    """What was assumed of a recorded fleet, and what is missing."""


def with_times(scenario: Scenario, times_s: tuple[float, ...]) -> Scenario:
    """Return a scenario with recorded arrivals in place of those of its first source, which says the rest.

    Raises
    ------
    SimulationInputError
        When it has no source.
    """
    if not scenario.sources:
        raise SimulationInputError(f"{scenario.name} has no source; give one that says model, entries and deadline")
    first = scenario.sources[0]
    common = {name: getattr(first, name) for name in _COMMON}
    replay = ReplaySource(times_s=times_s, **common)
    end_s = first.start_s + times_s[-1]
    warm_up_s = min(scenario.warm_up_s, end_s / 10)
    return msgspec.structs.replace(
        scenario, sources=(replay,), duration_s=max(end_s * (1 + 1e-9), 1e-3), warm_up_s=warm_up_s
    )


_COMMON: Final = (
    "name", "entries", "entry_zipf", "models", "model_zipf", "rungs", "deadline_s", "priority", "input_bytes",
    "start_s", "then",
)  # fmt: skip


SENT_MAX_BYTES: Final = 1 << 30
"""What waits for other processes, at most: each run is sent with all of its jobs, about 50 bytes for each."""


def _check_size(tasks: Sequence[Task], replications: int) -> None:
    """Refuse what would fill the memory before the first run begins."""
    sent_bytes = replications * sum(len(msgspec.msgpack.encode(each)) for each in tasks[::replications])
    if sent_bytes > SENT_MAX_BYTES:
        raise SimulationInputError(
            f"{len(tasks)} runs of this recording are {sent_bytes >> 20} MiB to be sent to processes, at most "
            f"{SENT_MAX_BYTES >> 20}; take its end with --last SECONDS, fewer --replications, or --jobs 1"
        )


def plan(
    scenario: Scenario,
    what_ifs: Sequence[str],
    *,
    policy: str | None = None,
    replications: int = 10,
    executor: Executor | None = None,
    jobs: int = 1,
    progress: Callable[[float], object] | None = None,
    recorded: RecordedLoad | None = None,
) -> Plan:
    """Run the fleet as it is, and each variant.

    Parameters
    ----------
    scenario : Scenario
        The fleet as it is, with what comes in.
    what_ifs : sequence of str
        See read_what_if.
    policy : str, optional
        In place of the scenario's.
    replications, executor, jobs, progress
        See compare.compare.
    recorded : RecordedLoad, optional
        What the scenario was made of: its notes and what was observed go into the plan.

    Raises
    ------
    SimulationInputError
        A change means nothing, or something in the scenario is wrong.
    """
    base = frozen(scenario)
    variants = [("", base), *((text, changed(base, read_what_if(text))) for text in what_ifs)]
    chosen = policy or scenario.policy
    tasks = [
        Task(scenario=without_series(each), seed=seed, policy=chosen)
        for _, each in variants
        for seed in seeds_of(base, replications)
    ]
    if executor is not None or jobs > 1:
        _check_size(tasks, replications)
    found = run_all(tasks, executor=executor, jobs=jobs, progress=progress)
    runs = [found[place * replications : (place + 1) * replications] for place in range(len(variants))]
    return Plan(
        scenario=scenario.name,
        about=scenario.about,
        policy=chosen,
        replications=replications,
        variants=tuple(
            Variant(
                what_if=text,
                nodes=len(each.node_names),
                load=results[0].load,
                bounds=bounds_of(each),
                values=estimates(results),
                less_now=differences(results, runs[0]),
            )
            for (text, each), results in zip(variants, runs, strict=True)
        ),
        observed=recorded.observed if recorded is not None else None,
        notes=recorded.notes if recorded is not None else (),
    )
