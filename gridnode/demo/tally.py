"""What became of the demo's frames: counts, times, shares, and how good the detections were. Pure.

Counted from the answers the client got, never from the daemons' own counters, so that nothing is lost with a killed
process. The two numbers only daemons know (offloaded, stolen) are kept per life of a node.
"""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Final

import msgspec

from gridnode.results import Result
from models.average_precision import AveragePrecision, Truth, mean_average_precision
from models.detection import Detection

RECENT_S: Final = 2.0
"""Window of the live numbers: long enough to be calm, short enough to show a kill."""


class NodeSummary(msgspec.Struct, frozen=True, kw_only=True):
    """One node's part in the work."""

    name: str
    peer_id: str
    executed: int
    """Frames whose answer came from it."""
    service_ms: float | None
    """Mean service time of these; None for none."""


class Summary(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The end of a demo, as ``--json`` prints it."""

    frames_sent: int
    frames_answered: int
    frames_refused: int
    """Ended with a named error."""
    frames_lost: int
    """Neither answered nor ended with a named error; must be 0."""
    deadline_misses: int
    """Not answered within the deadline, refusals included."""
    p50_ms: float | None
    p99_ms: float | None
    map50: float | None
    """Mean average precision at overlap 0.5 of all answers against the known truth."""
    offloaded: int
    stolen: int
    nodes: tuple[NodeSummary, ...]
    joined_late_s: float | None = None
    """With --join-late: time from the join command to the node's first answered frame."""


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One frame that was sent."""

    number: int
    film: int
    place: int
    """Index in the film."""


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """One frame that was answered."""

    frame: Frame
    at_s: float
    took_s: float
    """As the client saw it."""
    result: Result


def quantile_ms(times_s: Sequence[float], share: float) -> float | None:
    """Return the smallest of some times that a share of them does not exceed, in milliseconds; None for no times.

    Examples
    --------
    >>> quantile_ms([0.3, 0.1, 0.2], 0.5), quantile_ms([0.3, 0.1, 0.2], 0.99), quantile_ms([], 0.5)
    (200.0, 300.0, None)
    """
    if not times_s:
        return None
    ranked = sorted(times_s)
    place = min(len(ranked) - 1, max(0, -(-round(share * 1000) * len(ranked) // 1000) - 1))
    return ranked[place] * 1e3


class Tally:
    """Counts the demo's frames.

    Parameters
    ----------
    deadline_s : float
        Within which an answer is in time.
    """

    def __init__(self, *, deadline_s: float) -> None:
        self._deadline_s = deadline_s
        self.sent = 0
        self.answered: list[Answered] = []
        self.refusals: Counter[str] = Counter()
        """Named errors and how often."""
        self.late = 0
        self._recent: deque[Answered] = deque()
        self._executed: Counter[str] = Counter()
        self._names: dict[str, str] = {}
        self._counters: dict[tuple[str, int], tuple[int, int]] = {}
        """(node, life) to its newest (offloaded, stolen)."""

    # ------------------------------------------------------------ events

    def on_sent(self) -> None:
        """Count a frame that was handed to a daemon."""
        self.sent += 1

    def on_answered(self, answered: Answered) -> None:
        """Count an answer."""
        self.answered.append(answered)
        self._recent.append(answered)
        self._executed[answered.result.node_id] += 1
        self._names[answered.result.node_id] = answered.result.node
        if answered.took_s > self._deadline_s:
            self.late += 1

    def on_refused(self, name: str) -> None:
        """Count a frame that ended with a named error."""
        self.refusals[name] += 1

    def on_counters(self, peer_id: str, *, epoch: int, offloaded: int, stolen: int) -> None:
        """Take note of a daemon's own counters in one of its lives."""
        self._counters[peer_id, epoch] = (offloaded, stolen)

    # ------------------------------------------------------------ numbers

    @property
    def refused(self) -> int:
        """Frames that ended with a named error."""
        return self.refusals.total()

    @property
    def open(self) -> int:
        """Frames without an outcome; after the end of the demo these are lost."""
        return self.sent - len(self.answered) - self.refused

    @property
    def misses(self) -> int:
        """Frames not answered within the deadline."""
        return self.late + self.sent - len(self.answered)

    @property
    def offloaded(self) -> int:
        """Frames that nodes handed on by choice."""
        return sum(offloaded for offloaded, _ in self._counters.values())

    @property
    def stolen(self) -> int:
        """Frames that idle nodes pulled."""
        return sum(stolen for _, stolen in self._counters.values())

    def counters_of(self, peer_id: str) -> tuple[int, int]:
        """Return (offloaded, stolen) of one node over all its lives."""
        own = [counts for (node, _), counts in self._counters.items() if node == peer_id]
        return sum(offloaded for offloaded, _ in own), sum(stolen for _, stolen in own)

    def executed(self, peer_id: str) -> int:
        """Return how many answers came from a node."""
        return self._executed[peer_id]

    def names(self) -> dict[str, str]:
        """Return the names of the nodes that answered, by peer id, in the order of their first answers."""
        return {peer_id: self._names[peer_id] for peer_id in self._executed}

    def recent(self, now_s: float) -> list[Answered]:
        """Return the answers of the last RECENT_S."""
        while self._recent and self._recent[0].at_s < now_s - RECENT_S:
            self._recent.popleft()
        return list(self._recent)

    def first_answer_s(self, peer_id: str) -> float | None:
        """Return when a node's first answer came."""
        return next((answered.at_s for answered in self.answered if answered.result.node_id == peer_id), None)

    # ------------------------------------------------------------ the end

    def summary(
        self, nodes: Sequence[tuple[str, str]], *, map50: float | None, joined_late_s: float | None = None
    ) -> Summary:
        """Sum up; ``nodes`` are (name, peer id) in the order to show."""
        took_s = [answered.took_s for answered in self.answered]
        return Summary(
            frames_sent=self.sent,
            frames_answered=len(self.answered),
            frames_refused=self.refused,
            frames_lost=self.open,
            deadline_misses=self.misses,
            p50_ms=_rounded(quantile_ms(took_s, 0.5)),
            p99_ms=_rounded(quantile_ms(took_s, 0.99)),
            map50=map50,
            offloaded=self.offloaded,
            stolen=self.stolen,
            nodes=tuple(self._node(name, peer_id) for name, peer_id in nodes),
            joined_late_s=joined_late_s,
        )

    def _node(self, name: str, peer_id: str) -> NodeSummary:
        times_s = [a.result.timings.service_s for a in self.answered if a.result.node_id == peer_id]
        mean_ms = sum(times_s) / len(times_s) * 1e3 if times_s else None
        return NodeSummary(name=name, peer_id=peer_id, executed=len(times_s), service_ms=_rounded(mean_ms))

    def precision(self, truths: Sequence[Sequence[Sequence[Truth]]]) -> dict[str, AveragePrecision]:
        """Measure the answers against the truth, all together (under "") and for each model or rung that answered.

        Parameters
        ----------
        truths : nested sequences of Truth
            Per film, per frame. Takes about a second for a few thousand answers: run it in a thread.
        """
        groups: dict[str, list[Answered]] = {"": self.answered}
        for answered in self.answered:
            groups.setdefault(answered.result.model, []).append(answered)
        return {
            model: mean_average_precision(
                [_found(answered.result) for answered in group],
                [truths[answered.frame.film][answered.frame.place] for answered in group],
            )
            for model, group in sorted(groups.items())
            if group
        }


def _found(result: Result) -> list[Detection]:
    return [Detection(d.class_name, d.score, (d.box.x0, d.box.y0, d.box.x1, d.box.y1)) for d in result.detections]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)
