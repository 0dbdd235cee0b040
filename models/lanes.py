"""The lanes of one worker, as the daemon keeps them: programs that may speak to it without the daemon in the middle.

A lane is opened for one program, which keeps one end of a socket while the worker has the other, and is of no use
without a *ticket*: the daemon's word that the program may have so many runs, within so many seconds, without asking.
Owns the numbers, what the worker owes on tickets in use, and the loan of the program's memory, which lasts as long as
the lane. Who deserves a ticket is the caller's to know. What the two say to each other is models.laneprotocol's.
"""

import itertools
import math
import os
import socket
from collections.abc import Callable
from typing import Final, Protocol

import trio

from models import workerprotocol as protocol
from models.mappings import Loans
from models.segments import Segment

LANES_MAX: Final = 8
"""Lanes of one worker: each has a thread and a socket there, and holds one of its 16 loans."""

REPORT_MAX_S: Final = 2.0
"""Time past a ticket's end that the worker has to give its account; runs in hand are milliseconds long."""

OnWord = Callable[[protocol.LaneEnded | None], None]
"""Told of each account of a lane, and None when it has ended with its worker; must neither block nor raise."""


class Lane(Protocol):
    """A lane that is open."""

    def give(self, ticket: int, *, runs: int, lasts_s: float) -> bool:
        """Give the program a ticket, numbers rising from 1; returns whether the worker could be told."""
        ...

    def revoke(self, ticket: int) -> None:
        """Take back a ticket, and all older ones: nothing more is begun on them."""
        ...

    def close(self) -> None:
        """End the lane; its last account still comes."""
        ...


class WorkerLane:
    """One lane of a worker."""

    __slots__ = (
        "_lanes",
        "_lasts_s",
        "_newest",
        "_runs",
        "_ticket",
        "_used",
        "due_s",
        "is_closing",
        "number",
        "on_word",
        "segment",
    )

    def __init__(self, lanes: "WorkerLanes", number: int, segment: int, on_word: OnWord) -> None:
        self._lanes = lanes
        self.number = number
        self.segment = segment
        self.on_word = on_word
        self._newest = 0
        """The newest ticket that the worker was told of."""
        self._ticket = 0
        """The one in use, as the worker says; 0 for none."""
        self._used = 0
        """The newest that was ever in use."""
        self._runs = 0
        self._lasts_s = 0.0
        """What tickets were good for, at most."""
        self.due_s = math.inf
        """When the account of the ticket in use, or of a lane that is to end, is overdue."""
        self.is_closing = False

    def give(self, ticket: int, *, runs: int, lasts_s: float) -> bool:
        """See Lane.give."""
        if not self._lanes.tell(protocol.TicketOrder(lane=self.number, ticket=ticket, runs=runs, lasts_s=lasts_s)):
            return False
        self._newest, self._runs, self._lasts_s = ticket, max(runs, self._runs), max(lasts_s, self._lasts_s)
        return True

    def revoke(self, ticket: int) -> None:
        """See Lane.revoke; a ticket that cannot be taken back ends by itself."""
        self._lanes.tell(protocol.RevokeOrder(lane=self.number, ticket=ticket))

    def close(self) -> None:
        """See Lane.close; a run in hand is terminated."""
        if not self.is_closing:
            self.is_closing = True
            self._lanes.tell(protocol.CloseLaneOrder(lane=self.number))
            self._lanes.expect(self, trio.current_time() + REPORT_MAX_S)

    def begin(self, ticket: int) -> bool:
        """Note that the worker says a ticket is used now; returns whether that can be."""
        if self._ticket or not self._used < ticket <= self._newest:
            return False
        self._ticket = self._used = ticket
        if not self.is_closing:
            # The wait for a further request begins with the last one, just before the end perhaps.
            self._lanes.expect(self, trio.current_time() + 2 * self._lasts_s + REPORT_MAX_S)
        return True

    def end(self, word: protocol.LaneEnded) -> bool:
        """Note that the ticket in use, or the lane, is over; returns whether that can be."""
        if word.ticket != self._ticket or len(word.runs) > (self._runs if word.ticket else 0):
            return False
        self._ticket = 0
        if not self.is_closing:
            self.due_s = math.inf
        return bool(word.ticket) or word.is_closed


class WorkerLanes:
    """All lanes of one worker.

    Parameters
    ----------
    tell : callable
        Sends a control order, with descriptors; returns whether that was possible.
    loans : Loans
        Programs' memory that the worker has.
    """

    def __init__(self, tell: Callable[..., bool], loans: Loans) -> None:
        self.tell = tell
        self._loans = loans
        self._numbers = itertools.count(1)
        self._lanes: dict[int, WorkerLane] = {}
        self._alarm = trio.CancelScope()

    def open(self, segment: Segment, descriptor: int, on_word: OnWord) -> WorkerLane | None:
        """Have the worker serve a program by a socket; see models.executor.Executor.open_lane."""
        try:
            if len(self._lanes) >= LANES_MAX or not is_line(descriptor) or not self._loans.take(segment, 0):
                return None
            lane = WorkerLane(self, next(self._numbers), segment.number, on_word)
            if not self.tell(protocol.OpenLaneOrder(lane=lane.number, segment=segment.number), descriptor):
                self._loans.give_back(segment.number)
                return None
        finally:
            os.close(descriptor)
        self._lanes[lane.number] = lane
        return lane

    def take_word(self, word: protocol.LaneBegun | protocol.LaneEnded) -> bool:
        """Take a worker's word; returns whether it made sense."""
        lane = self._lanes.get(word.lane)
        if lane is None:
            return False
        if isinstance(word, protocol.LaneBegun):
            return lane.begin(word.ticket)
        if not lane.end(word):
            return False
        if word.is_closed:
            del self._lanes[word.lane]
            self._loans.give_back(lane.segment)
        lane.on_word(word)
        return True

    async def keep_time(self) -> None:
        """End lanes whose run does not end; returns when the worker has kept one beyond its grace."""
        while True:
            now_s = trio.current_time()
            for lane in [lane for lane in self._lanes.values() if lane.due_s <= now_s]:
                if lane.is_closing:
                    return
                lane.close()
            due_s = min((lane.due_s for lane in self._lanes.values()), default=math.inf)
            with trio.CancelScope(deadline=due_s) as self._alarm:
                await trio.sleep_forever()

    def expect(self, lane: WorkerLane, due_s: float) -> None:
        """Have keep_time look whether a lane has given its account in time."""
        lane.due_s = due_s
        self._alarm.deadline = min(self._alarm.deadline, due_s)

    def lose(self) -> None:
        """Tell that all lanes have ended with the worker."""
        lanes, self._lanes = self._lanes, {}
        for lane in lanes.values():
            lane.on_word(None)


def is_line(descriptor: int) -> bool:
    """Tell whether a program's descriptor is what a lane is made of: of anything else the worker would die."""
    try:
        line = socket.socket(fileno=descriptor)
    except OSError:
        return False
    kind = line.family, line.type
    line.detach()
    return kind == (socket.AF_UNIX, socket.SOCK_SEQPACKET)
