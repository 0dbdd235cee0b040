"""From samples to figures: quantiles, medians over rounds, ratios. Pure.

A ratio is taken within each round, where both ways met the same machine, and the median of the rounds is shown; so it
may differ a little from the quotient of the two medians beside it.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that is not exceeded by a share of the values.

    Examples
    --------
    >>> quantile([4.0, 1.0, 3.0, 2.0], 0.5)
    2.0
    >>> quantile([1.0, 2.0, 3.0], 0.99)
    3.0
    """
    ranked = sorted(values)
    place = max(0, -(-int(share * len(ranked) * 1e9) // 1_000_000_000) - 1)
    return ranked[min(place, len(ranked) - 1)]


@dataclass
class Series:
    """One way at one workload, over all rounds."""

    times_s: list[list[float]] = field(default_factory=list)
    """Of each call, by round."""
    cpu_s: list[float] = field(default_factory=list)
    """Processor time per call, of all processes that take part, by round."""

    def p50s(self) -> list[float]:
        return [statistics.median(times) for times in self.times_s]

    def row(self) -> dict[str, object]:
        """Return p50 (median of the rounds' medians), p99 (of all calls), in milliseconds."""
        every = [value for times in self.times_s for value in times]
        return {
            "p50_ms": statistics.median(self.p50s()) * 1e3,
            "p99_ms": quantile(every, 0.99) * 1e3,
            "cpu_ms": statistics.median(self.cpu_s) * 1e3,
            "p50_ms_rounds": [value * 1e3 for value in self.p50s()],
            "calls": len(every),
        }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over rounds of one way's figure over another's of the same round.

    Examples
    --------
    >>> ratio([2.0, 9.0, 4.0], [1.0, 3.0, 2.0])
    2.0
    """
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def with_ratios(
    rows: Mapping[str, dict[str, object]], per_round: Mapping[str, Sequence[float]], *, bases: Mapping[str, str]
) -> None:
    """Add to each row its ratio to each base way that took part, under the key that ``bases`` gives."""
    for key, base in bases.items():
        if base not in rows:
            continue
        for way, row in rows.items():
            row[key] = ratio(per_round[way], per_round[base])


def rotated(ways: Sequence[str], turn: int) -> list[str]:
    """Return the order of one round: each way comes first, second, last equally often.

    Examples
    --------
    >>> rotated(["a", "b", "c"], 1)
    ['b', 'c', 'a']
    """
    turn %= max(1, len(ways))
    return [*ways[turn:], *ways[:turn]]
