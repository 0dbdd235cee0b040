"""The lanes of one connection: when there are to be more, and which of them a request goes by.

A program that waits for each answer has one lane for what it asks; one with many requests under way has as many as the
daemon's tickets say. Owns that choice, and when the daemon is asked in between so that the next ticket comes. What a
lane is made of is gridnode.lane's. Knows no socket.
"""

import itertools
from collections.abc import Iterator
from typing import Final

from gridnode.control import JobDone, Ticket
from gridnode.jobs import Job, Options
from gridnode.lane import Lane

ROW_BEFORE_LANE: Final = 8
"""Requests of one kind, answered one after another by the same node, before a lane for more is opened."""
PAUSE_AFTER_LANE: Final = 1000
"""Such requests to be answered before another lane is tried, where the last was of no use."""
LULL_JOBS: Final = 8
"""Jobs by other lanes after the daemon was asked, whether or not a ticket came of it."""


class Row:
    """How many requests of one kind were answered in a row, on one connection."""

    __slots__ = ("_first", "count", "kind", "node")

    def __init__(self) -> None:
        self.node = ""
        """Which answered them."""
        self.kind: tuple[str, Options] | None = None
        self.count = 0
        """Below 0 during a pause."""
        self._first = b""
        """Key of the first request of this kind; those of later ones are higher."""

    def note_request(self, job: Job) -> None:
        """Note a request to the daemon."""
        kind = (job.request.model, job.request.options)
        if kind != self.kind:
            self.kind, self.count, self._first = kind, min(self.count, 0), job.key

    def note_answer(self, done: JobDone) -> tuple[str, Options] | None:
        """Note the daemon's answer; returns the kind for which a lane is to be opened now."""
        if self.kind is None or self.kind[1].stream or done.key < self._first:
            return None
        if done.node != self.node:
            self.node, self.count = done.node, min(self.count, 0)
        self.count += 1
        return self.kind if self.count >= ROW_BEFORE_LANE else None


class LaneGroup:
    """The lanes for one model, and what is asked of the daemon to have tickets for them."""

    __slots__ = ("asked", "lanes", "lull", "most")

    def __init__(self) -> None:
        self.lanes: list[Lane] = []
        self.most = 0
        """How many there may be, as the newest ticket says; 0 before the first."""
        self.asked = 0
        """Jobs like theirs that the daemon has: an answer may bring a ticket."""
        self.lull = 0
        """Jobs to go by lanes before the daemon is asked again."""

    def choose(self, job: Job, now_s: float) -> Lane | None:
        """Return the lane with the least under way that takes a job; None where the daemon is to be asked.

        Nothing goes behind others before there are all the lanes that there may be: else a slot of the node lies idle.
        """
        good = [lane for lane in self.lanes if lane.has_ticket(now_s)]
        wanting = min(len(self.lanes), self.most) - len(good)
        if wanting > self.asked and not self.lull:
            return None
        may_queue = len(self.lanes) >= self.most
        takers = [lane for lane in good if lane.takes(job, now_s, may_queue=may_queue)]
        if not takers:
            return None
        self.lull = max(0, self.lull - 1)
        return min(takers, key=lambda lane: len(lane.under_way))


class LaneBook:
    """The lanes of one connection."""

    def __init__(self) -> None:
        self.row = Row()
        self._groups: dict[str, LaneGroup] = {}
        """By model."""
        self._asked: dict[bytes, LaneGroup] = {}
        """By keys of jobs that the daemon has."""

    def __iter__(self) -> Iterator[Lane]:
        """Iterate over all lanes."""
        return itertools.chain.from_iterable([group.lanes for group in self._groups.values()])

    def has(self, model: str) -> bool:
        """Tell whether there are lanes for a model."""
        return model in self._groups

    def add(self, lane: Lane) -> None:
        """Keep a lane."""
        self._groups.setdefault(lane.model, LaneGroup()).lanes.append(lane)

    def remove(self, lane: Lane) -> None:
        """Forget a lane that has ended; where it was of no use, another is not opened soon."""
        group = self._groups[lane.model]
        group.lanes.remove(lane)
        was_useful = lane.was_used
        if not group.lanes:
            del self._groups[lane.model]
            was_useful = group.most > 0  # the last one may have come when the worker went
            self.row.count = 0
        if lane.is_unfit or not was_useful:
            self.pause()

    def pause(self) -> None:
        """Open no lane for long."""
        self.row.count = -PAUSE_AFTER_LANE

    def take_ticket(self, ticket: Ticket) -> Lane | None:
        """Let a lane use a ticket, and return it; None where it has ended."""
        lane = next((lane for lane in self if lane.number == ticket.lane), None)
        if lane is not None:
            lane.take_ticket(ticket)
            self._groups[lane.model].most = ticket.lanes
        return lane

    def may_grow(self, model: str) -> bool:
        """Tell whether there may be another lane for a model that has some."""
        group = self._groups[model]
        return self.row.count >= 0 and len(group.lanes) < group.most

    def choose(self, job: Job, now_s: float) -> Lane | None:
        """Return the lane that a job goes by; None where it is the daemon's.

        The daemon is asked once for each lane without a ticket, and again now and then: its answer may bring one.
        """
        group = self._groups.get(job.request.model)
        if group is None or job.request.options != group.lanes[0].options:
            return None
        lane = group.choose(job, now_s)
        if lane is None:
            group.asked += 1
            self._asked[job.key] = group
        return lane

    def answered(self, key: bytes) -> None:
        """Note that the daemon has told the outcome of a job."""
        group = self._asked.pop(key, None)
        if group is not None:
            group.asked -= 1
            group.lull = LULL_JOBS
