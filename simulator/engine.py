"""The virtual clock: one heap of calls, carried out one at a time in the order (due time, sequence).

Owns time and chance. Knows nothing of nodes. Streams of random numbers belong to a purpose and an entity, so that
adding a node, or a kind of draw, does not shift the draws of others.
"""

import math
import random
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Final

Call = Callable[[], None]

_COMPACT_AT: Final = 4096
"""Cancelled timers in the heap at which they are dropped: far timeouts of what ended long ago must not pile up."""


class Timer:
    """A call to be made at a time; may be cancelled."""

    __slots__ = ("_engine", "call", "due_s")

    def __init__(self, engine: "Engine", due_s: float, call: Call) -> None:
        self._engine = engine
        self.due_s = due_s
        self.call: Call | None = call
        """None once it was made or cancelled."""

    def cancel(self) -> None:
        """Do not make the call; harmless afterwards."""
        if self.call is not None:
            self.call = None
            self._engine.note_cancelled()


class Engine:
    """The heap of calls.

    Parameters
    ----------
    seed : int or str
        Of all streams.

    Examples
    --------
    >>> engine = Engine(7)
    >>> _ = engine.after(2.0, lambda: print(engine.now_s))
    >>> engine.run()
    2.0
    """

    def __init__(self, seed: int | str) -> None:
        self._seed = seed
        self._heap: list[tuple[float, int, Timer]] = []
        self._sequence = 0
        self._cancelled = 0
        self._compact_at = _COMPACT_AT
        self._is_stopped = False
        self.now_s = 0.0
        self.calls = 0
        """Calls made so far."""

    def stream(self, purpose: str, entity: str) -> random.Random:
        """Return a new stream of random numbers that belongs to a purpose and an entity."""
        return random.Random(f"{self._seed}/{purpose}/{entity}")

    def at(self, due_s: float, call: Call) -> Timer:
        """Make a call at a time, now at the earliest; calls of one instant in the order in which they were asked for.

        Raises
        ------
        ValueError
            The time is not a number: it would spoil the order of all.
        """
        if math.isnan(due_s):
            raise ValueError("a call cannot be due at a time that is not a number")
        timer = Timer(self, max(due_s, self.now_s), call)
        self._sequence += 1
        heappush(self._heap, (timer.due_s, self._sequence, timer))
        return timer

    def after(self, delay_s: float, call: Call) -> Timer:
        """Make a call after a time in seconds."""
        return self.at(self.now_s + delay_s, call)

    def soon(self, call: Call) -> None:
        """Make a call at this instant, behind all that is due by now."""
        self.at(self.now_s, call)

    def stop(self) -> None:
        """Let `run` return after the present call."""
        self._is_stopped = True

    def run(self, until_s: float = math.inf) -> None:
        """Make calls until none is left, `stop` was called, or the next one is due after a time.

        Parameters
        ----------
        until_s : float
            Calls due at that very time are made. A finite one is the present time afterwards, unless stopped.
        """
        self._is_stopped = False
        heap = self._heap
        while heap and heap[0][0] <= until_s:
            due_s, _, timer = heappop(heap)
            call, timer.call = timer.call, None
            if call is None:
                self._cancelled -= 1
                continue
            self.now_s = due_s
            self.calls += 1
            call()
            if self._is_stopped:
                return
        if until_s != math.inf:
            self.now_s = max(self.now_s, until_s)

    def note_cancelled(self) -> None:
        """Count a cancelled timer, and drop them all when they are many; called by timers."""
        self._cancelled += 1
        if self._cancelled > self._compact_at and 2 * self._cancelled > len(self._heap):
            # In place: `run` holds on to the list.
            self._heap[:] = [entry for entry in self._heap if entry[2].call is not None]
            heapify(self._heap)
            self._cancelled = 0
