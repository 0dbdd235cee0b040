"""Figures of a run: sojourn times, shares, rates. Pure; the names are those of the daemon's report."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec

from simulator.world import Outcome


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to the jobs of a run."""

    jobs: int
    answered: int
    ended: dict[str, int]
    """Jobs without a result, by reason."""
    mean_s: float | None
    """Mean sojourn time of the answered, in seconds; None without any."""
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    shares: dict[str, float]
    """Share of the answered by executor."""
    moved: float
    """Share of the answered that another node than the entry executed."""


def summarise(outcomes: Iterable[Outcome], *, from_s: float = 0.0) -> Summary:
    """Summarise the jobs that arrived from a time on, in seconds: those before it warmed the fleet up."""
    counted = [each for each in outcomes if each.arrival_s >= from_s]
    answered = [each for each in counted if each.failure is None]
    times = sorted(each.sojourn_s for each in answered)
    by_node = Counter(each.executor or "" for each in answered)
    total = len(answered)
    return Summary(
        jobs=len(counted),
        answered=total,
        ended=dict(sorted(Counter(each.failure for each in counted if each.failure is not None).items())),
        mean_s=math.fsum(times) / total if total else None,
        p50_s=quantile(times, 0.5),
        p95_s=quantile(times, 0.95),
        p99_s=quantile(times, 0.99),
        shares={node: count / total for node, count in sorted(by_node.items())},
        moved=sum(each.executor != each.entry for each in answered) / total if total else 0.0,
    )


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the value below which a share of an ascending sequence lies (nearest rank); None for an empty one."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
