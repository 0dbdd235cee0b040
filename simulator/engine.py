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
    first
    second
    2
    >>> engine.now_s
    2.0
    """

    __slots__ = ("_cancelled", "_dropped", "_heap", "_sequence", "now_s")

    def __init__(self, start_s: float = 0.0) -> None:
        self.now_s = start_s
        """Present time in seconds."""
        self._heap: list[tuple[float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._sequence = 0
        self._cancelled: set[int] = set()
        self._dropped = 0
        """Cancelled calls that are no longer in the heap."""

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
            self._dropped += len(self._heap)
            self._heap[:] = [entry for entry in self._heap if entry[1] not in self._cancelled]
            heapify(self._heap)
            self._dropped -= len(self._heap)
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
        heap, cancelled, pop = self._heap, self._cancelled, heappop
        # Calls are counted by what came into the heap and what is left in it: the loop is the hottest of all.
        before = len(heap) - self._sequence + self._dropped
        while heap:
            entry = pop(heap)
            due_s, number, call, args = entry
            if due_s > until_s:
                heappush(heap, entry)
                break
            if cancelled and number in cancelled:
                cancelled.discard(number)
                self._dropped += 1
                continue
            self.now_s = due_s
            call(*args)
        if until_s != inf:
            self.now_s = max(self.now_s, until_s)
        return before - (len(heap) - self._sequence + self._dropped)


class LocalClock:
    """A clock of one node: it may run at another rate than the engine's, and stand still.

    Parameters
    ----------
    engine : Engine
        True time.

    Examples
    --------
    >>> engine = Engine()
    >>> clock = LocalClock(engine)
    >>> clock.set_rate(2.0)
    >>> _ = clock.at(6.0, print, "six o'clock")
    >>> engine.run()
    six o'clock
    1
    >>> engine.now_s, clock.now_s
    (3.0, 6.0)
    """

    __slots__ = ("_engine", "_floor_s", "_held", "_local_s", "_numbers", "_rate", "_standing", "_token", "_true_s")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._true_s = self._local_s = self._floor_s = engine.now_s
        self._rate = 1.0
        self._standing = False
        self._numbers: dict[int, int] = {}
        self._held: dict[int, tuple[float, Callable[..., object], tuple[Any, ...]]] = {}
        self._token = 0

    @property
    def now_s(self) -> float:
        """Present time on this clock, in seconds; never before a call that it has made."""
        local_s = self._local_s + (self._engine.now_s - self._true_s) * self._rate
        return max(local_s, self._floor_s)

    @property
    def rate(self) -> float:
        """Seconds on this clock per second."""
        return self._rate

    def set_rate(self, rate: float) -> None:
        """Run at another rate from now on, > 0; calls that wait keep their true time."""
        self._local_s, self._true_s = self.now_s, self._engine.now_s
        self._rate = rate

    def at(self, due_s: float, call: Callable[..., object], *args: Any) -> int:  # noqa: ANN401
        """Have a call made; see Engine.at."""
        token = self._token = self._token + 1
        true_s = self._true_s + (due_s - self._local_s) / self._rate
        number = self._engine.at(max(true_s, self._engine.now_s), self._make, token, due_s, call, args)
        self._numbers[token] = number
        return token

    def _make(self, token: int, due_s: float, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        del self._numbers[token]
        if self._standing:
            self._held[token] = due_s, call, args
            return
        if self.now_s < due_s:
            self._floor_s = due_s  # rounding: the call's time has come
        call(*args)

    def cancel(self, number: int) -> None:
        """Take back a call that has not been made yet."""
        if self._held.pop(number, None) is None:
            found = self._numbers.pop(number, None)
            if found is not None:
                self._engine.cancel(found)

    def next_s(self) -> float:
        """Return this instant when anything else happens at it; otherwise infinity."""
        return self.now_s if self._engine.next_s() <= self._engine.now_s else inf

    def stop(self) -> None:
        """Hold all calls: the process stands still while time goes on."""
        self._standing = True

    def go(self) -> None:
        """Make what was held, in its order, and go on."""
        self._standing = False
        held, self._held = self._held, {}
        for token, (due_s, call, args) in held.items():
            number = self._engine.at(self._engine.now_s, self._make, token, due_s, call, args)
            self._numbers[token] = number


Clock = Engine | LocalClock
"""What makes a node's calls at their time."""
