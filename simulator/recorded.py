"""Recorded jobs in a scenario: at which of its nodes they come in, and which of its models they ask for.

Owns these two choices, which the rules of scenarios, the feeding and the bounds must take alike; feeds nothing.
"""

from collections import Counter

from simulator.scenario import Scenario
from simulator.sources import RecordedJob, ReplaySource


def places(scenario: Scenario, source: ReplaySource) -> dict[str, str]:
    """Return the node of the scenario for each recorded node that has one.

    First what the source says, then the node of the same name, then, where the source spreads, its entries in turn.
    """
    entries = scenario.select(source.entries)
    found: dict[str, str] = {}
    turns = 0
    for name in dict.fromkeys([job.entry for job in source.jobs]):
        if name in source.places:
            found[name] = source.places[name]
        elif name in entries:
            found[name] = name
        elif source.spread and entries:
            found[name] = entries[turns % len(entries)]
            turns += 1
    return found


def unplaced(scenario: Scenario, source: ReplaySource) -> list[str]:
    """Return the recorded nodes without a place, in the order in which they come."""
    found = places(scenario, source)
    return [name for name in dict.fromkeys([job.entry for job in source.jobs]) if name not in found]


def known_models(job: RecordedJob, known: frozenset[str]) -> tuple[str, ...]:
    """Return the models of a job that a scenario has, best first."""
    models = job.models
    return models if known.issuperset(models) else tuple([model for model in models if model in known])


def unknown_models(scenario: Scenario, source: ReplaySource) -> list[str]:
    """Return what is asked for by jobs of which the scenario has no model, where the source names none to take."""
    if source.models:
        return []
    known = frozenset([model.name for model in scenario.models])
    wanted = dict.fromkeys([job.models for job in source.jobs])
    return list(dict.fromkeys([models[0] for models in wanted if known.isdisjoint(models)]))


def shares(scenario: Scenario, source: ReplaySource) -> tuple[dict[str, float], dict[str, float]]:
    """Return the share of the jobs by node of the scenario, and by first known model ("" for those of the source)."""
    known = frozenset([model.name for model in scenario.models])
    found = places(scenario, source)
    nodes: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for job in source.jobs:
        nodes[found[job.entry]] += 1
        wanted = known_models(job, known)
        models[wanted[0] if wanted else ""] += 1
    count = len(source.jobs)
    return {name: each / count for name, each in nodes.items()}, {name: each / count for name, each in models.items()}
