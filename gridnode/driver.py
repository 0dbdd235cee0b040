"""Feeds events to the decision core and hands its actions on. Owns the inbox and the timer.

Events reach the core one at a time, in the order in which they happened (due time, sequence), never from inside the
carrying out of an action. simulator.node is this module's twin.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import trio

from gridnode.config import INBOX_MAX
from scheduler.actions import Action
from scheduler.core import Core
from scheduler.events import Event, TimerFired

if TYPE_CHECKING:
    from gridnode.turns import Turns


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
    clock : callable, optional
        Monotonic seconds; by default the event loop's own.
    turns : Turns, optional
        On a virtual clock: each action is carried out when what the one before it set off has come to rest.
    """

    def __init__(self, core: Core, *, clock: Callable[[], float] | None = None, turns: "Turns | None" = None) -> None:
        self._core = core
        # Made where the loop runs: trio.current_time looks for the loop each time, and a job asks a dozen times.
        self.clock: Callable[[], float] = clock or trio.lowlevel.current_clock().current_time
        """Monotonic seconds, the core's."""
        self._turns = turns
        self._inbox: deque[tuple[Event, object]] = deque()
        self._actions: deque[tuple[Action, object]] = deque()
        """What the last event asked for and is not yet carried out."""
        self._wake = trio.Event()
        self._armed_s: float | None = None
        """Deadline that the timer waits for; None for none."""
        self.now_s = 0.0
        """Time at which the core took its last event, in seconds: the time of what is being carried out."""
        self._hands: Hands | None = None
        self._is_feeding = False
        self._is_over = False
        self.handled = 0
        """Events the core has taken."""

    def post(self, event: Event, attachment: object = None) -> None:
        """Give the core an event, behind those that wait. Call from the trio thread only.

        The core takes it before this returns, unless the call comes from inside the carrying out of an action (then
        it waits its turn) or the driver does not run yet: a switch to another task would cost more than the decision.
        """
        if self._is_over:
            return
        assert len(self._inbox) < INBOX_MAX, "the core has stopped taking events"
        self._inbox.append((event, attachment))
        if self._hands is not None and not self._is_feeding:
            self._take_all(self._hands)

    async def run(self, hands: Hands) -> None:
        """Drive the core until cancelled: what was posted before, then timers. Nothing is carried out afterwards."""
        self._hands = hands
        try:
            self._take_all(hands)
            await self._keep_time()
        finally:
            self._hands = None
            self._is_over = True

    async def _keep_time(self) -> None:
        while True:
            deadline_s = self._armed_s = self._core.next_deadline_s()
            self._wake = trio.Event()
            if deadline_s is None:
                await self._wake.wait()
            elif deadline_s <= self.clock():
                await self._ring()
            else:
                with trio.move_on_at(deadline_s):
                    await self._wake.wait()

    async def _ring(self) -> None:
        """Tell the core that its time has come; on a virtual clock, after all else that happens at this instant."""
        if self._turns is not None:
            await self._turns.wait_timer()
            deadline_s = self._core.next_deadline_s()
            if deadline_s is None or deadline_s > self.clock():
                return
        self.post(TimerFired())
        deadline_s = self._core.next_deadline_s()
        if deadline_s is not None and deadline_s <= self.clock():
            await trio.lowlevel.checkpoint()  # something else is due: whoever waits has a turn before it

    def _take_all(self, hands: Hands) -> None:
        """Feed the inbox until it is empty; what actions post joins its end."""
        self._is_feeding = True
        try:
            while self._actions or self._inbox:
                if self._actions:
                    action, attachment = self._actions.popleft()
                else:
                    event, attachment = self._inbox.popleft()
                    first = self._feed(event, attachment)
                    if first is None:
                        continue
                    action = first
                hands.carry_out(action, attachment)
                if self._turns is not None:
                    self._turns.later(self._go_on)
                    return
        except BaseException:
            self._is_feeding = False
            raise
        self._is_feeding = False
        deadline_s = self._core.next_deadline_s()
        if deadline_s is not None and (self._armed_s is None or deadline_s < self._armed_s):
            self._wake.set()

    def _feed(self, event: Event, attachment: object) -> Action | None:
        """Give the core an event; returns the first thing it asks for, which nearly always is the only one."""
        now_s = self.clock()
        if now_s > self.now_s:
            self.now_s = now_s
        self.handled += 1
        actions = self._core.handle(event, now_s=self.now_s)
        if not actions:
            return None
        if len(actions) > 1:
            self._actions.extend([(action, attachment) for action in actions[1:]])
        return actions[0]

    def _go_on(self) -> None:
        """Go on after an action whose consequences have come to rest."""
        if self._hands is not None:
            self._take_all(self._hands)
