"""Feeds events to the decision core and hands its actions on. Owns the inbox and the timer.

Events reach the core one at a time, in the order of (due time, sequence), never from inside the carrying out of an
action; so what the core decides never depends on the order in which trio runs tasks that wake at one instant.
simulator.node is this module's twin.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio

from gridnode.config import INBOX_MAX
from scheduler.actions import Action
from scheduler.core import Core
from scheduler.events import Event, TimerFired


class Hands(Protocol):
    """Carries out what the core asks for."""

    def carry_out(self, action: Action, attachment: object) -> None:
        """Start an action; must not block and must not call post() for an event that happens within it.

        Parameters
        ----------
        action : Action
            What the core wants.
        attachment : object
            What was posted with the event that led to it: the bytes of a result, for a Reply.
        """
        ...


class Driver:
    """Runs one core.

    Parameters
    ----------
    core : Core
        The decision core; nobody else may call its handle().
    clock : callable
        Monotonic seconds; trio.current_time in the daemon.
    """

    def __init__(self, core: Core, *, clock: Callable[[], float] = trio.current_time) -> None:
        self._core = core
        self._clock = clock
        self._inbox: deque[tuple[Event, object]] = deque()
        self._wake = trio.Event()
        self._round = trio.Event()
        """Set after each round, for ping()."""
        self._now_s = 0.0
        self._hands: Hands | None = None
        self.handled = 0
        """Events the core has taken."""

    def post(self, event: Event, attachment: object = None) -> None:
        """Put an event into the inbox. Call from the trio thread only."""
        assert len(self._inbox) < INBOX_MAX, "the core has stopped taking events"
        self._inbox.append((event, attachment))
        self._wake.set()

    async def ping(self) -> None:
        """Return when the core has taken all events that are in the inbox now: a sign of life."""
        mark = self.handled + len(self._inbox)
        while self.handled < mark:
            self._round = trio.Event() if self._round.is_set() else self._round
            await self._round.wait()
        await trio.lowlevel.checkpoint()

    async def run(self, hands: Hands) -> None:
        """Drive the core until cancelled."""
        self._hands = hands
        while True:
            self._wake = trio.Event()
            self._take_all()
            self._round.set()
            deadline_s = self._core.next_deadline_s()
            if deadline_s is None:
                await self._wake.wait()
            elif deadline_s <= self._clock():
                self._feed(TimerFired(), None)
                await trio.lowlevel.checkpoint()
            else:
                with trio.move_on_at(deadline_s):
                    await self._wake.wait()

    def _take_all(self) -> None:
        """Feed what is in the inbox now; what its actions post waits for the next round."""
        for _ in range(len(self._inbox)):
            event, attachment = self._inbox.popleft()
            self._feed(event, attachment)

    def _feed(self, event: Event, attachment: object) -> None:
        self._now_s = max(self._now_s, self._clock())
        self.handled += 1
        assert self._hands is not None
        for action in self._core.handle(event, now_s=self._now_s):
            self._hands.carry_out(action, attachment)
