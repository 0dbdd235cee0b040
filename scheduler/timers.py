"""Times at which the core has to look after something: one heap, entries that no longer count are skipped.

A thing to be looked after has one `due_s`. Setting it anew leaves the old entry in the heap, where it is recognised by
its time; nothing is searched for and removed.
"""

from heapq import heapify, heappop, heappush
from typing import Final

NEVER: Final = float("inf")
"""When something is due that need not be looked after."""

_COMPACT_AT: Final = 1024
"""Entries at which those that no longer count are dropped: far deadlines of jobs long done must not pile up."""


class Timed:
    """Something to be looked after at a time."""

    __slots__ = ("due_s",)

    due_s: float
    """Absolute time in seconds; infinity when there is none."""


class Alarm(Timed):
    """A recurring duty of the core that belongs to no job."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name
        self.due_s = NEVER


class Timers:
    """The next times, earliest first; ties in the order in which they were set."""

    __slots__ = ("_compact_at", "_heap", "_sequence")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timed]] = []
        self._sequence = 0
        self._compact_at = _COMPACT_AT

    def set(self, target: Timed, due_s: float) -> None:
        """Have a target looked after at a time, and no more at the time set before."""
        if due_s == target.due_s:
            return
        target.due_s = due_s
        if due_s == NEVER:
            return
        self._sequence += 1
        heap = self._heap
        heappush(heap, (due_s, self._sequence, target))
        if len(heap) > self._compact_at:
            heap[:] = [entry for entry in heap if entry[2].due_s == entry[0]]
            heapify(heap)
            self._compact_at = max(_COMPACT_AT, 2 * len(heap))

    def next_due_s(self) -> float | None:
        """Return the earliest time that still counts, or None."""
        heap = self._heap
        while heap:
            due_s, _, target = heap[0]
            if target.due_s == due_s:
                return due_s
            heappop(heap)
        return None

    def pop_due(self, now_s: float) -> Timed | None:
        """Return the next target that is due, with its time unset; None when there is none."""
        heap = self._heap
        while heap and heap[0][0] <= now_s:
            due_s, _, target = heappop(heap)
            if target.due_s == due_s:
                target.due_s = NEVER
                return target
        return None
