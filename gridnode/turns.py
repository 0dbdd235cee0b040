"""One thing at a time on a virtual clock: what happens at one instant happens in a stated order.

trio runs tasks that wake together in an order of its own. On a real clock nothing hangs on that; on a virtual one
whole grids live in single instants, and a run would repeat only by chance. Here the parts that start things take
turns: each waits until everything that the one before it set off has come to rest.

At one instant, first come the actions that drivers still have to carry out, then the timers of the cores, then
deliveries of the network, each in the order in which it asked. That is the order of simulator.engine.
"""

import heapq
import itertools
from collections.abc import Callable
from typing import Final

import trio
import trio.testing

ACTION: Final = 0
TIMER: Final = 1
DELIVERY: Final = 2


class Turns:
    """Hands out turns while serve() runs."""

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._asked = trio.Event()

    def later(self, call: Callable[[], None], rank: int = ACTION) -> None:
        """Have a call made when all is at rest and everything of a lower rank, or earlier of this one, is done."""
        heapq.heappush(self._waiting, (rank, next(self._order), call))
        self._asked.set()

    async def wait(self, rank: int) -> None:
        """Wait for a turn."""
        come = trio.Event()
        self.later(come.set, rank)
        await come.wait()

    async def wait_timer(self) -> None:
        """Wait for the turn of a core's timer."""
        await self.wait(TIMER)

    async def wait_delivery(self) -> None:
        """Wait for the turn of a delivery of the network."""
        await self.wait(DELIVERY)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Give one turn after the other until cancelled."""
        task_status.started()
        while True:
            while self._waiting:
                await trio.testing.wait_all_tasks_blocked()
                heapq.heappop(self._waiting)[2]()
            self._asked = trio.Event()
            await self._asked.wait()
