"""The order of a stream: which frame is sent next, which are passed over, which outcome comes next. Pure.

Owns frame numbers and the bounds of a stream. Knows nothing of sockets, threads or event loops: the sync and the
async stream share it. In mode ``newest`` one frame waits for room and a newer one takes its place; in mode ``all``
the source waits. Outcomes come in the order of the frames, so the memory held is bounded by HELD_FACTOR.
"""

from collections import deque
from typing import Final, Generic, Literal, TypeVar

import msgspec

from gridnode.errors import GridError
from gridnode.jobs import Job
from gridnode.results import Result

Mode = Literal["newest", "all"]
T = TypeVar("T")

IN_FLIGHT_MAX: Final = 256
"""Frames of one stream in the grid at once; a session holds 1024 jobs."""
HELD_FACTOR: Final = 4
"""Frames held, answered or not, per frame in flight: outcomes wait for a slow one before them."""


class StreamItem(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one frame: exactly one of ``result``, ``error`` and ``skipped`` is set."""

    frame: int
    """Number of the frame in the order of the source, from 0."""
    image: object = None
    """The frame as the source gave it; None for one that was skipped before it was sent, which is not kept."""
    result: Result | None = None
    error: GridError | TypeError | None = None
    skipped: bool = False
    """Whether a newer frame took this one's place, here or while it waited in the grid (mode ``newest``)."""


class Flight(Generic[T]):
    """A frame that was taken for sending; ``job`` or ``error`` is set once it was sent or could not be."""

    __slots__ = ("error", "frame", "image", "job")

    def __init__(self, frame: int, image: T) -> None:
        self.frame = frame
        self.image = image
        self.job: Job | None = None
        self.error: GridError | TypeError | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the outcome is known."""
        return self.error is not None or (self.job is not None and self.job.ended)


class Window(Generic[T]):
    """The frames of one stream between source and consumer.

    Parameters
    ----------
    mode : {"newest", "all"}
        What happens to a frame that finds the window full.
    in_flight : int
        Frames sent and not yet answered, 1 to IN_FLIGHT_MAX.

    Raises
    ------
    ValueError
        The mode is unknown or in_flight out of range.
    """

    def __init__(self, *, mode: Mode, in_flight: int) -> None:
        if mode not in ("newest", "all"):
            raise ValueError(f"mode is {mode!r}; use 'newest' or 'all'")
        if not 1 <= in_flight <= IN_FLIGHT_MAX:
            raise ValueError(f"in_flight is {in_flight}, allowed is 1 to {IN_FLIGHT_MAX}")
        self.mode = mode
        self.source_ended = False
        self._in_flight = in_flight
        self._arrived = 0
        self._waiting: Flight[T] | None = None
        self._order: deque[Flight[T] | range] = deque()

    @property
    def can_arrive(self) -> bool:
        """Whether the next frame of the source may come."""
        return self.mode == "newest" or self._waiting is None

    @property
    def can_send(self) -> bool:
        """Whether a frame waits and finds room."""
        return self._waiting is not None and self._has_room()

    @property
    def is_finished(self) -> bool:
        """Whether all frames of an ended source have had their outcome taken."""
        return self.source_ended and self._waiting is None and not self._order

    def arrive(self, image: T) -> None:
        """Take a frame of the source; one that still waits is skipped."""
        assert self.can_arrive, "a source that must wait gave a frame"
        if self._waiting is not None:
            self._skip(self._waiting.frame)
        self._waiting = Flight(self._arrived, image)
        self._arrived += 1

    def take_to_send(self) -> Flight[T] | None:
        """Return the waiting frame if there is room; the caller sends it and sets ``job`` or ``error``."""
        flight = self._waiting
        if flight is None or not self._has_room():
            return None
        self._waiting = None
        self._order.append(flight)
        return flight

    @property
    def has_outcome(self) -> bool:
        """Whether the next outcome in order is known."""
        if not self._order:
            return False
        first = self._order[0]
        return isinstance(first, range) or first.has_ended

    def take_outcome(self) -> Flight[T] | int:
        """Return the next outcome in order: an ended flight, or the number of a skipped frame."""
        assert self.has_outcome, "the next outcome is not known yet"
        first = self._order.popleft()
        if not isinstance(first, range):
            return first
        if len(first) > 1:
            self._order.appendleft(first[1:])
        return first[0]

    def open_jobs(self) -> list[Job]:
        """Return the jobs that are not answered yet, to cancel them."""
        return [f.job for f in self._order if not isinstance(f, range) and f.job is not None and not f.job.ended]

    def _skip(self, frame: int) -> None:
        """Note a skipped frame; neighbours are kept as one range, since a live source may skip for hours."""
        last = self._order[-1] if self._order else None
        if isinstance(last, range) and last.stop == frame:
            self._order[-1] = range(last.start, frame + 1)
        else:
            self._order.append(range(frame, frame + 1))

    def _has_room(self) -> bool:
        """Whether one more frame may be in flight, and its outcome be held."""
        flights = [flight for flight in self._order if not isinstance(flight, range)]
        unanswered = sum(not flight.has_ended for flight in flights)
        return unanswered < self._in_flight and len(flights) < self._in_flight * HELD_FACTOR
