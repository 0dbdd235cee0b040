"""The virtual clock: a heap of calls in the order of (due time, sequence).

Owns time and order, and knows nothing of what the calls mean. Two calls due at one instant are made in the order in
which they were asked for, so that a run is a function of its seed.
"""

import random
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Any, Final

_COMPACT_AT: Final = 4096
"""Cancelled calls at which they are dropped from the heap: far timeouts of what ended long ago must not pile up."""


def stream(seed: str, purpose: str, entity: str) -> random.Random:
    """Return the draws of one purpose and entity.

    Each has a stream of its own, so that adding a node or changing the policy does not shift the arrivals (common
    random numbers).
    """
    return random.Random(f"{seed}/{purpose}/{entity}")


class Engine:
    """Makes calls at their time.

    Parameters
    ----------
    start_s : float, default 0.0
        Present time at the beginning, in seconds.

    Examples
    --------
    >>> engine = Engine()
    >>> _ = engine.at(2.0, print, "second")
    >>> _ = engine.at(1.0, print, "first")
    >>> engine.run()
    2
    >>> engine.now_s
    2.0
    """

    __slots__ = ("_cancelled", "_heap", "_sequence", "now_s")

    def __init__(self, start_s: float = 0.0) -> None:
        self.now_s = start_s
        """Present time in seconds."""
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._sequence = 0
        self._cancelled: set[int] = set()

    # Any: checking each call's arguments statically (ParamSpec) is right but makes bound tuples untypable.
    def at(self, due_s: float, call: Callable[..., object], *args: Any) -> int:  # noqa: ANN401
        """Have a call made.

        Parameters
        ----------
        due_s : float
            When, in seconds, not before now.
        call : callable
            What; given the arguments that follow.

        Returns
        -------
        int
            Number to cancel it by.
        """
        assert due_s >= self.now_s, f"a call for {due_s} at {self.now_s}"
        sequence = self._sequence = self._sequence + 1
        heappush(self._heap, (due_s, sequence, call, args))
        return sequence

    def cancel(self, number: int) -> None:
        """Take back a call that has not been made yet."""
        self._cancelled.add(number)
        if len(self._cancelled) > _COMPACT_AT:
            self._heap[:] = [entry for entry in self._heap if entry[1] not in self._cancelled]
            heapify(self._heap)
            self._cancelled.clear()

    def next_s(self) -> float:
        """Return when the next call is due, in seconds; infinity for never. A cancelled call may count."""
        return self._heap[0][0] if self._heap else inf

    def run(self, until_s: float = inf) -> int:
        """Make all calls due until a time, that time included.

        Parameters
        ----------
        until_s : float, default infinity
            Last time, in seconds; the clock ends there, or at the last call where there is no end.

        Returns
        -------
        int
            Calls made.
        """
        heap, cancelled = self._heap, self._cancelled
        made = 0
        while heap and heap[0][0] <= until_s:
            due_s, number, call, args = heappop(heap)
            if cancelled and number in cancelled:
                cancelled.discard(number)
                continue
            self.now_s = due_s
            made += 1
            call(*args)
        if until_s != inf:
            self.now_s = max(self.now_s, until_s)
        return made
