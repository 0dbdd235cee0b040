"""The demo's cameras: send frames in time, whatever becomes of them, and count the outcomes."""

from collections.abc import Sequence
from typing import Final

import trio

from gridnode.client import AsyncGrid
from gridnode.demo.film import Film
from gridnode.demo.plan import Plan
from gridnode.demo.tally import Answered, Frame, Tally
from gridnode.errors import GridError

DEADLINE_S: Final = 1.0
"""After which an answer is worth nothing to the demo's cameras."""
SCORE_MIN: Final = 0.05
"""Detections asked for: low scores are needed to measure average precision; pictures show the likely ones only."""
LAST_ANSWER_S: Final = 15.0
"""Time for the outcomes of the last frames; whatever has none by then is counted as lost."""


class Cameras:
    """A number of cameras, each at a film of its own place, all into one client.

    Parameters
    ----------
    grid : AsyncGrid
        Knows the sockets of all nodes, the entry node's first.
    films : sequence of Film
        Cameras share them, each at another moment.
    """

    def __init__(self, grid: AsyncGrid, model: str, films: Sequence[Film], plan: Plan, tally: Tally) -> None:
        self._grid = grid
        self._model = model
        self._films = films
        self._plan = plan
        self._tally = tally
        self._counter = 0

    async def run(self, seconds: float) -> None:
        """Send for so long, then wait for the last outcomes."""
        start_s = trio.current_time()
        async with trio.open_nursery() as outcomes:
            async with trio.open_nursery() as cameras:
                for number in range(self._plan.cameras):
                    cameras.start_soon(self._shoot, number, start_s, start_s + seconds, outcomes)
            outcomes.cancel_scope.deadline = trio.current_time() + LAST_ANSWER_S

    async def _shoot(self, camera: int, start_s: float, end_s: float, outcomes: trio.Nursery) -> None:
        """Send one camera's frames.

        All cameras are triggered at the same moments, as those around one crossing are: so each moment brings more
        work than the fastest node does quickest alone, and every node gets its part at a rate the grid holds easily.
        """
        period_s = self._plan.cameras / self._plan.fps
        film_number = camera % len(self._films)
        film = self._films[film_number]
        offset = camera * len(film.frames) // self._plan.cameras
        due_s = start_s
        taken = 0
        while due_s < end_s:
            await trio.sleep_until(due_s)
            place = (offset + taken) % len(film.frames)
            frame = Frame(number=self._counter, film=film_number, place=place)
            self._counter += 1
            self._tally.on_sent()
            outcomes.start_soon(self._see_through, frame, film.frames[place])
            taken += 1
            due_s += period_s

    async def _see_through(self, frame: Frame, jpeg: bytes) -> None:
        """Send one frame and count its outcome."""
        sent_s = trio.current_time()
        try:
            result = await self._grid.infer(self._model, jpeg, deadline_s=DEADLINE_S, score_threshold=SCORE_MIN)
        except GridError as error:
            self._tally.on_refused(type(error).__name__)
            return
        now_s = trio.current_time()
        self._tally.on_answered(Answered(frame=frame, at_s=now_s, took_s=now_s - sent_s, result=result))
