"""Which daemons a client may talk to, and which of them is worth the next try. Pure.

Owns the list of sockets, the trouble each gave, and the pause before it is tried again. Knows no socket call and no
clock. An entry that failed goes to the end of the list and pauses, twice as long after each failure in a row.
"""

import math
from collections.abc import Collection, Sequence
from typing import Final

from gridnode.errors import DaemonUnreachableError, DrainingError, GridError, ProtocolError

ENTRIES_MAX: Final = 16
"""Sockets a client remembers, given and told: a device has one daemon, a test bench a handful."""
BACKOFF_FIRST_S: Final = 0.05
"""Pause after a first failure: a daemon that restarts is back within a second."""
BACKOFF_MAX_S: Final = 2.0
"""Longest pause between two tries of one entry; a failed connect to a Unix socket costs microseconds."""
REST_S: Final = 0.25
"""Pause of a draining entry: it takes no work until it was restarted, which takes half a second at least."""


class _Entry:
    """One socket and what became of it."""

    __slots__ = ("failures", "has_worked", "is_drained", "path", "paused_until_s", "trouble")

    def __init__(self, path: str) -> None:
        self.path = path
        self.has_worked = False
        self.is_drained = False
        """Whether the last daemon seen there was shutting down."""
        self.failures = 0
        self.paused_until_s = float("-inf")
        self.trouble: GridError | str | None = None


class Entries:
    """The sockets of one client.

    Parameters
    ----------
    given : sequence of str
        Socket paths in the order of preference; at least one, at most ENTRIES_MAX.

    Raises
    ------
    ValueError
        None or too many are given.
    """

    def __init__(self, given: Sequence[str]) -> None:
        paths = list(dict.fromkeys(given))
        if not 1 <= len(paths) <= ENTRIES_MAX:
            raise ValueError(f"{len(paths)} sockets are given, allowed are 1 to {ENTRIES_MAX}; name the daemon's")
        self._given = paths
        self._entries = {path: _Entry(path) for path in paths}

    @property
    def paths(self) -> tuple[str, ...]:
        """All sockets, the next to be tried first."""
        return tuple(self._entries)

    def learn(self, told: Sequence[str]) -> None:
        """Take the sockets a daemon tells in place of those told before; the given ones stay."""
        if not told:
            return
        room = ENTRIES_MAX - len(self._given)
        told = [path for path in dict.fromkeys(told) if path and "\0" not in path and path not in self._given][:room]
        kept = [entry for path, entry in self._entries.items() if path in self._given or path in told]
        fresh = [_Entry(path) for path in told if path not in self._entries]
        self._entries = {entry.path: entry for entry in kept + fresh}

    def choose(self, now_s: float, *, busy: Collection[str] = ()) -> str | None:
        """Return the entry to try now, or None while all pause or are busy."""
        ready = (path for path, entry in self._entries.items() if entry.paused_until_s <= now_s and path not in busy)
        return next(ready, None)

    def next_try_s(self, *, busy: Collection[str] = ()) -> float:
        """Return when the next entry may be tried; infinite when all are busy."""
        return min((e.paused_until_s for path, e in self._entries.items() if path not in busy), default=math.inf)

    def note_failure(self, path: str, trouble: GridError | str, *, now_s: float) -> None:
        """Note that an entry could not be reached or broke off: it pauses and goes to the end."""
        entry = self._entries.get(path)
        if entry is None:
            return
        pause_s = min(BACKOFF_FIRST_S * 2.0 ** min(entry.failures, 16), BACKOFF_MAX_S)
        entry.failures += 1
        entry.trouble = trouble
        self._pause(entry, until_s=now_s + pause_s)

    def note_draining(self, path: str, *, now_s: float) -> None:
        """Note that an entry takes no more work."""
        entry = self._entries.get(path)
        if entry is not None:
            entry.is_drained = True
            entry.trouble = None
            self._pause(entry, until_s=now_s + REST_S)

    def note_success(self, path: str) -> None:
        """Note that an entry greeted us and takes work."""
        entry = self._entries.get(path)
        if entry is not None:
            entry.has_worked = True
            entry.is_drained = False
            entry.failures = 0
            entry.trouble = None

    def forgive(self) -> None:
        """Let every entry be tried at once."""
        for entry in self._entries.values():
            entry.failures = 0
            entry.paused_until_s = float("-inf")

    def is_hopeless(self, now_s: float, *, busy: Collection[str] = ()) -> bool:
        """Whether no entry is worth waiting for.

        One that worked and was lost is: its daemon restarts within seconds. One that was told to shut down is worth
        a look now and then, no more; one that never worked is worth nothing once it was tried.
        """
        return all(self._is_gone(entry, now_s, busy) for entry in self._entries.values())

    def _is_gone(self, entry: _Entry, now_s: float, busy: Collection[str]) -> bool:
        if entry.is_drained:
            return entry.paused_until_s > now_s or entry.path in busy
        return bool(entry.failures) and not entry.has_worked

    @property
    def any_draining(self) -> bool:
        """Whether an entry was last seen shutting down."""
        return any(entry.is_drained for entry in self._entries.values())

    def error(self) -> GridError:
        """Return the error that tells a user what each entry did and what he can do."""
        troubles = [entry.trouble for entry in self._entries.values() if entry.trouble is not None]
        if troubles and all(isinstance(trouble, ProtocolError) for trouble in troubles):
            return ProtocolError(str(troubles[0]))
        told = "; ".join(f"{entry.path} {_state(entry)}" for entry in self._entries.values())
        if self.any_draining:
            others = [entry.path for entry in self._entries.values() if not entry.is_drained]
            return DrainingError(f"no daemon takes work: {told}; submit later", entries=others)
        return DaemonUnreachableError(
            f"no daemon answers: {told}. Start one with `gridnode run`, or name its socket in GRIDNODE_SOCKET"
        )

    def _pause(self, entry: _Entry, *, until_s: float) -> None:
        """Set the pause and move the entry to the end."""
        entry.paused_until_s = until_s
        self._entries[entry.path] = self._entries.pop(entry.path)


def _state(entry: _Entry) -> str:
    """Say what is known of an entry."""
    if entry.is_drained:
        return "is shutting down" if entry.trouble is None else f"has shut down and {entry.trouble}"
    return str(entry.trouble or "was not tried")
