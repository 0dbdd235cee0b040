"""What became of the jobs: sojourn times, shares of the nodes, misses, refusals."""

import math
from collections import Counter
from collections.abc import Sequence

import msgspec

from scheduler.types import NodeId, Reason


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which a share of an ascending sequence lies (nearest rank); NaN for an empty one."""
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a run; times in seconds, NaN where nothing was answered."""

    submitted: int
    answered: int
    ended: dict[str, int]
    """Jobs without a result, by reason."""
    unfinished: int
    """Submitted, and without an outcome at the end."""
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    late: int
    """Answered after their deadline."""
    shares: dict[NodeId, float]
    """Of the answered, by executor."""
    offloaded: float
    """Share of the answered that ran elsewhere than where they came in."""


class Metrics:
    """Collects outcomes as clients see them.

    Parameters
    ----------
    from_s : float, default 0.0
        Jobs that arrive before are left out: the fleet warms up, in seconds.
    """

    def __init__(self, from_s: float = 0.0) -> None:
        self._from_s = from_s
        self._sojourns_s: list[float] = []
        self._executors: Counter[NodeId] = Counter()
        self._ended: Counter[Reason] = Counter()
        self._submitted = 0
        self._late = 0
        self._offloaded = 0

    def submitted(self, arrival_s: float) -> None:
        """Count a job."""
        self._submitted += arrival_s >= self._from_s

    def answered(self, *, entry: NodeId, executor: NodeId, arrival_s: float, deadline_s: float, now_s: float) -> None:
        """Count a result."""
        if arrival_s < self._from_s:
            return
        self._sojourns_s.append(now_s - arrival_s)
        self._executors[executor] += 1
        self._late += now_s > deadline_s
        self._offloaded += executor != entry

    def ended(self, reason: Reason, arrival_s: float) -> None:
        """Count a job without a result."""
        if arrival_s >= self._from_s:
            self._ended[reason] += 1

    def summary(self) -> Summary:
        """Return the numbers so far."""
        ordered = sorted(self._sojourns_s)
        count = len(ordered)
        return Summary(
            submitted=self._submitted,
            answered=count,
            ended={reason.value: self._ended[reason] for reason in sorted(self._ended)},
            unfinished=self._submitted - count - sum(self._ended.values()),
            mean_s=math.fsum(ordered) / count if count else math.nan,
            p50_s=quantile(ordered, 0.5),
            p95_s=quantile(ordered, 0.95),
            p99_s=quantile(ordered, 0.99),
            late=self._late,
            shares={name: self._executors[name] / count for name in sorted(self._executors)},
            offloaded=self._offloaded / count if count else math.nan,
        )
