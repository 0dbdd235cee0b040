"""Grid time: what a node without a reliable clock takes for now.

Owns the floor under the system clock: the newest time that a trusted signature vouched for. Boards have no
battery-backed clock and start in 1970 or at their image's build time; judged by such a clock every certificate
is not yet valid and every old one is fresh again. Knows nothing of what was signed: callers pass only times
from documents that they have verified up to the owner's key.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

from transport.files import StateFileError, read_bounded, write_atomically

ALLOWANCE_S: Final = 600.0
"""Clocks of a grid may differ by so much: 10 min, the usual drift of boards between two time synchronisations."""
_FLOOR_FILE_MAX_BYTES: Final = 64
_SAVE_STEP_S: Final = 3600.0
"""The saved floor may lag so far behind: flash wears out, and an hour is little beside a 30 day certificate."""


class GridTime:
    """The later of the system clock and the newest verified signed time.

    Parameters
    ----------
    clock : callable
        Returns the system's wall clock, in seconds since 1970 (UTC).
    floor_s : float, default 0.0
        Newest signed time known at the start, in seconds since 1970.
    path : Path, optional
        File that keeps the floor over restarts; see `load` and `save`.
    """

    def __init__(self, clock: Callable[[], float], *, floor_s: float = 0.0, path: Path | None = None) -> None:
        self._clock = clock
        self._floor_s = floor_s
        self._saved_s = floor_s
        self._path = path

    @classmethod
    def load(cls, clock: Callable[[], float], path: Path) -> "GridTime":
        """Read the floor from its file, 0 when there is none. Blocks for a file read.

        Raises
        ------
        StateFileError
            The file is damaged.
        """
        data = read_bounded(path, max_bytes=_FLOOR_FILE_MAX_BYTES)
        try:
            floor_s = float(int(data)) if data is not None else 0.0
        except ValueError as error:
            raise StateFileError(f"{path} is not a number of seconds; delete it, signed documents refill it") from error
        return cls(clock, floor_s=floor_s, path=path)

    def now_s(self) -> float:
        """Return grid time, in seconds since 1970 (UTC). It may jump forward, and back only with the system clock."""
        return max(self._clock(), self._floor_s)

    @property
    def floor_s(self) -> float:
        """Newest verified signed time, in seconds since 1970."""
        return self._floor_s

    def observe(self, signed_s: float) -> None:
        """Take note of a time from a document whose signature was verified."""
        self._floor_s = max(self._floor_s, signed_s)

    @property
    def is_save_due(self) -> bool:
        """Whether the floor moved so far that it should be saved."""
        return self._path is not None and self._floor_s >= self._saved_s + _SAVE_STEP_S

    def save(self) -> None:
        """Write the floor to its file. Blocks on fsync.

        Raises
        ------
        StateFileError
            The file cannot be written.
        """
        if self._path is None:
            return
        floor_s = self._floor_s
        write_atomically(self._path, str(int(floor_s)).encode())
        self._saved_s = floor_s
