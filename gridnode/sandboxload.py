"""A program's load in a sandbox: jobs at a rate, and what became of each. For fault tests and experiments."""

import functools
from collections import Counter

import numpy as np
import trio

from gridnode.client import AsyncGrid
from gridnode.errors import GridError


class Load:
    """Sends jobs through one client and counts their outcomes.

    Parameters
    ----------
    grid : AsyncGrid
        The program's client, entered.
    model : str
        Name of a model published in the sandbox.
    """

    def __init__(self, grid: AsyncGrid, *, model: str = "m") -> None:
        self._grid = grid
        self._model = model
        self.sent = 0
        self.nodes: Counter[str] = Counter()
        """Node name to answers."""
        self.errors: Counter[tuple[str, str]] = Counter()
        """Name of the error and its reason, to jobs."""
        self.times_s: list[float] = []
        """Sojourn times of the answered, as the program saw them."""

    @property
    def answered(self) -> int:
        """Jobs with a result."""
        return sum(self.nodes.values())

    @property
    def outcomes(self) -> int:
        """Jobs with a result or a named error."""
        return self.answered + sum(self.errors.values())

    async def send(self, count: int, *, every_s: float = 0.0, deadline_s: float = 2.0, size_bytes: int = 1000) -> None:
        """Send jobs, ``every_s`` seconds apart, and return when each has its outcome."""
        job = functools.partial(self._send_one, deadline_s=deadline_s, size_bytes=size_bytes)
        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(job)
                await trio.sleep(every_s)

    async def _send_one(self, *, deadline_s: float, size_bytes: int) -> None:
        self.sent += 1
        began_s = trio.current_time()
        try:
            result = await self._grid.infer(self._model, {"x": np.zeros(size_bytes, np.uint8)}, deadline_s=deadline_s)
        except GridError as error:
            self.errors[type(error).__name__, getattr(error, "reason", "")] += 1
        else:
            self.nodes[result.node] += 1
            self.times_s.append(trio.current_time() - began_s)
