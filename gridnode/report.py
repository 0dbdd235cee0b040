"""Counters and histograms of this node, and their OpenMetrics text.

The same names are used by the simulator, so that plots compare. Format: OpenMetrics 1.0, sections "Text format"
and "Suffixes" (https://github.com/prometheus/OpenMetrics).
"""

import bisect
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from gridnode.jobtable import Answer
from scheduler.types import Job

SECONDS_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
RECENT_MAX: Final = 1024
"""Sojourn times kept for the quantiles that status shows: about the last minute at 15 frames per second."""

Labels = tuple[tuple[str, str], ...]


class Histogram:
    """Counts of values in fixed buckets, with their sum."""

    def __init__(self, bounds: Sequence[float] = SECONDS_BUCKETS) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        """Values counted."""
        return sum(self.counts)


class ReportSnapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What happened to jobs at this node since its start."""

    answered: int
    executed: int
    """Of the answered, those executed here."""
    by_lane: int
    """Of the answered, those that no decision came before: their program had a ticket."""
    offloaded: int
    """Of the answered, those executed by peers."""
    ended: dict[str, int]
    """Jobs without a result, by reason."""
    p50_s: float | None
    """Sojourn time of the last answered jobs at this node."""
    p99_s: float | None
    service_s_mean: float | None


class Report:
    """Counts what the hands do."""

    def __init__(self) -> None:
        self.executed = 0
        self.by_lane = 0
        self.offloaded = 0
        self.ended_by_reason: Counter[str] = Counter()
        self.sojourn = Histogram()
        self.service = Histogram()
        self._recent: deque[float] = deque(maxlen=RECENT_MAX)

    def answered(self, job: Job, answer: Answer, *, own: bool, now_s: float | None = None) -> None:
        """Count a result; ``own`` when it was executed here."""
        if own:
            self.executed += 1
            self.service.observe(answer.service_s)
        else:
            self.offloaded += 1
        if now_s is not None:
            self.sojourn.observe(now_s - job.arrival_s)
            self._recent.append(now_s - job.arrival_s)

    def ran_by_lane(self, service_s: float, *, transfer_s: float = 0.0, own: bool = True) -> None:
        """Count a result that no decision came before, from here or from a peer; its run began as it came."""
        self.by_lane += 1
        if own:
            self.executed += 1
            self.service.observe(service_s)
        else:
            self.offloaded += 1
        self.sojourn.observe(service_s + transfer_s)
        self._recent.append(service_s + transfer_s)

    def ended(self, reason: str) -> None:
        """Count a job that ended here without a result."""
        self.ended_by_reason[reason] += 1

    def snapshot(self) -> ReportSnapshot:
        """Return the numbers so far."""
        times = sorted(self._recent)
        return ReportSnapshot(
            answered=self.executed + self.offloaded,
            executed=self.executed,
            by_lane=self.by_lane,
            offloaded=self.offloaded,
            ended=dict(sorted(self.ended_by_reason.items())),
            p50_s=quantile(times, 0.5),
            p99_s=quantile(times, 0.99),
            service_s_mean=self.service.sum / self.service.count if self.service.count else None,
        )


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the value below which a share of an ascending sequence lies (nearest rank); None for an empty one."""
    if not ordered:
        return None
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class MetricsText:
    """Builds an OpenMetrics document."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def counter(self, name: str, help_text: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """Add a counter; ``name`` without its _total suffix."""
        self._family(name, "counter", help_text)
        self._lines += [f"{name}_total{_labels(labels)} {_number(value)}" for labels, value in samples]

    def gauge(self, name: str, help_text: str, samples: Iterable[tuple[Labels, float]]) -> None:
        """Add a gauge."""
        self._family(name, "gauge", help_text)
        self._lines += [f"{name}{_labels(labels)} {_number(value)}" for labels, value in samples]

    def histogram(self, name: str, help_text: str, histogram: Histogram) -> None:
        """Add a histogram of seconds."""
        self._family(name, "histogram", help_text)
        running = 0
        for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
            running += count
            edge = "+Inf" if bound == float("inf") else _number(bound)
            self._lines.append(f'{name}_bucket{{le="{edge}"}} {running}')
        self._lines += [f"{name}_sum {_number(histogram.sum)}", f"{name}_count {running}"]

    def _family(self, name: str, kind: str, help_text: str) -> None:
        self._lines.append(f"# TYPE {name} {kind}")
        if name.endswith(("_seconds", "_bytes")):
            self._lines.append(f"# UNIT {name} {name.rsplit('_', 1)[1]}")
        self._lines.append(f"# HELP {name} {_escape(help_text)}")

    def render(self) -> str:
        """Return the document."""
        return "\n".join([*self._lines, "# EOF"]) + "\n"


def _labels(labels: Labels) -> str:
    return "{" + ",".join(f'{key}="{_escape(value)}"' for key, value in labels) + "}" if labels else ""


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return repr(float(value)) if isinstance(value, float) else str(value)
