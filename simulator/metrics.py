"""What became of the jobs: sojourn times and where they went, shares of the nodes, misses, refusals, Little's law.

Fed by clients, as they see it; asks nothing of the nodes. Counted is what arrived after the warm-up, but for Little's
law and what happens over time, which take in everything.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from scheduler.types import NodeId, Reason
from simulator.results import Little, Series, Stages, Summary

if TYPE_CHECKING:
    from simulator.client import Client

_HOPS_MAX: Final = 32
"""Longest list of hops; a job of the core's default moves twice and comes home."""


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which a share of an ascending sequence lies (nearest rank); NaN for an empty one."""
    if not ordered:
        return math.nan
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Metrics:
    """Collects outcomes as clients see them.

    Parameters
    ----------
    from_s : float, default 0.0
        Jobs that arrive before are left out: the fleet warms up, in seconds.
    start_s : float, default 0.0
        When the run begins, in seconds.
    until_s : float, default infinity
        When the last job arrives: busy nodes are counted until then, in seconds.
    """

    def __init__(self, from_s: float = 0.0, start_s: float = 0.0, until_s: float = math.inf) -> None:
        self._from_s = from_s
        self._start_s = start_s
        self._until_s = until_s
        self.sojourns_s: list[float] = []
        """Of the answered, in the order of the answers."""
        self.flows: dict[tuple[NodeId, NodeId], int] = {}
        """Answered, by entry and executor."""
        self.entries: dict[NodeId, int] = {}
        """Submitted, by entry."""
        self.refused: Counter[Reason] = Counter()
        self.busy_s: dict[NodeId, float] = {}
        """Service time of answered executions in the counted span, by executor."""
        self.submitted = 0
        self.late = 0
        self.hops = [0] * _HOPS_MAX
        self._waiting_s = 0.0
        self._service_s = 0.0
        self._load_s = 0.0
        # Little's law: one side by the clock, the other from what each client saw.
        self.open = 0
        self._arrived = 0
        self._area_s = 0.0
        self._changed_s = start_s
        self._sojourn_s = 0.0
        self._arrivals_s = 0.0
        # Over time.
        self._step_s = 0.0
        self._answers: list[int] = []
        self._busy_steps: dict[NodeId, list[float]] = {}

    def keep_series(self, nodes: Sequence[NodeId], *, step_s: float, steps: int) -> None:
        """Keep what happens over time, in steps from the start on."""
        self._step_s = step_s
        self._answers = [0] * steps
        self._busy_steps = {name: [0.0] * steps for name in nodes}

    # What clients tell.

    def arrived(self, frame: "Client", now_s: float) -> None:
        """Count a job."""
        self._area_s += self.open * (now_s - self._changed_s)
        self._changed_s = now_s
        self.open += 1
        self._arrived += 1
        self._arrivals_s += now_s - self._start_s
        if now_s >= self._from_s:
            self.submitted += 1
            self.entries[frame.entry] = self.entries.get(frame.entry, 0) + 1

    def _left(self, frame: "Client", now_s: float) -> bool:
        """Count a job out; returns whether it counts."""
        self._area_s += self.open * (now_s - self._changed_s)
        self._changed_s = now_s
        self.open -= 1
        self._sojourn_s += now_s - frame.arrival_s
        self._arrivals_s -= frame.arrival_s - self._start_s
        return frame.arrival_s >= self._from_s

    def answered(self, frame: "Client", executor: NodeId, now_s: float) -> None:
        """Count a result."""
        if self._step_s:
            step = int((now_s - self._start_s) / self._step_s)
            if step < len(self._answers):
                self._answers[step] += 1
        if not self._left(frame, now_s):
            return
        self.sojourns_s.append(now_s - frame.arrival_s)
        flow = frame.entry, executor
        self.flows[flow] = self.flows.get(flow, 0) + 1
        if now_s > frame.job.deadline_s:
            self.late += 1
        self.hops[min(frame.hops, _HOPS_MAX - 1)] += 1
        self._waiting_s += frame.waiting_s
        self._service_s += frame.service_s
        self._load_s += frame.load_s

    def served(self, executor: NodeId, service_s: float, now_s: float) -> None:
        """Count an execution whose answer has come, as if it had ended right now; the way back is short."""
        if self._from_s <= now_s <= self._until_s:
            self.busy_s[executor] = self.busy_s.get(executor, 0.0) + min(service_s, now_s - self._from_s)
        if not self._step_s:
            return
        steps = self._busy_steps[executor]
        end = (now_s - self._start_s) / self._step_s
        begin = max(0.0, end - service_s / self._step_s)
        for step in range(int(begin), min(int(end) + 1, len(steps))):
            steps[step] += (min(end, step + 1.0) - max(begin, step)) * self._step_s

    def ended(self, frame: "Client", reason: Reason, now_s: float) -> None:
        """Count a job without a result."""
        if self._left(frame, now_s):
            self.refused[reason] += 1

    # What came of it.

    def little(self, now_s: float) -> Little:
        """Return both sides of Little's law from the start until now; open jobs count as far as they got."""
        span_s = now_s - self._start_s
        if not self._arrived or span_s <= 0.0:
            return Little(number=0.0, rate_hz=0.0, sojourn_s=0.0, error=0.0)
        number = (self._area_s + self.open * (now_s - self._changed_s)) / span_s
        still_open_s = self.open * span_s - self._arrivals_s
        rate_hz, sojourn_s = self._arrived / span_s, (self._sojourn_s + still_open_s) / self._arrived
        error = (number - rate_hz * sojourn_s) / number if number else 0.0
        return Little(number=number, rate_hz=rate_hz, sojourn_s=sojourn_s, error=error)

    def stages(self) -> Stages:
        """Return where the mean sojourn time went."""
        count = len(self.sojourns_s)
        if not count:
            return Stages(network_s=math.nan, queue_s=math.nan, service_s=math.nan, load_s=math.nan)
        total_s = math.fsum(self.sojourns_s)
        return Stages(
            network_s=(total_s - self._waiting_s - self._service_s) / count,
            queue_s=(self._waiting_s - self._load_s) / count,
            service_s=self._service_s / count,
            load_s=self._load_s / count,
        )

    def answers(self) -> Series | None:
        """Return answers per second over time."""
        if not self._step_s:
            return None
        values = tuple([count / self._step_s for count in self._answers])
        return Series(start_s=self._step_s, step_s=self._step_s, values=values)

    def busy(self, node: NodeId, slots: int) -> Series | None:
        """Return the utilisation of a node over time."""
        if not self._step_s:
            return None
        whole_s = self._step_s * slots
        values = tuple([min(1.0, busy_s / whole_s) for busy_s in self._busy_steps[node]])
        return Series(start_s=self._step_s, step_s=self._step_s, values=values)

    def summary(self) -> Summary:
        """Return the numbers so far."""
        ordered = sorted(self.sojourns_s)
        count = len(ordered)
        executors: Counter[NodeId] = Counter()
        for (_, executor), jobs in self.flows.items():
            executors[executor] += jobs
        moved = sum([jobs for (entry, executor), jobs in self.flows.items() if entry != executor])
        return Summary(
            submitted=self.submitted,
            answered=count,
            ended={reason.value: self.refused[reason] for reason in sorted(self.refused)},
            unfinished=self.submitted - count - self.refused.total(),
            mean_s=math.fsum(ordered) / count if count else math.nan,
            p50_s=quantile(ordered, 0.5),
            p95_s=quantile(ordered, 0.95),
            p99_s=quantile(ordered, 0.99),
            late=self.late,
            shares={name: executors[name] / count for name in sorted(executors)},
            offloaded=moved / count if count else math.nan,
        )
