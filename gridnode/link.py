"""One connection to a daemon, and how long its silence is borne. Pure.

Owns the state of a link and the rules of silence: a daemon greets within HELLO_S, and one that owes a word is asked
for a sign of life after PING_S of silence and has SILENCE_S to give it. A stopped process keeps its socket open, so
without this its clients would wait for ever. Knows nothing of jobs.
"""

import enum
import math
from typing import Final

from gridnode.errors import DaemonUnreachableError, GridError

HELLO_S: Final = 2.0
"""Time a daemon has for its hello; it sends it before it looks at anything else."""
PING_S: Final = 2.0
"""Silence on a link with open work after which the daemon is asked for a sign of life."""
SILENCE_S: Final = 3.0
"""Time the daemon has for that sign; a busy board may pause for a second, not for three."""


class LinkState(enum.Enum):
    """Where a link stands."""

    GREETING = "greeting"
    READY = "ready"
    LEAVING = "leaving"


class Link:
    """One connection, as the session sees it; ``fault`` is set once it must be dropped."""

    __slots__ = ("_asked_s", "_heard_s", "_opened_s", "fault", "owed", "path", "state")

    def __init__(self, path: str, now_s: float) -> None:
        self.path = path
        self.state = LinkState.GREETING
        self.fault: GridError | None = None
        self.owed = 0
        """Jobs and queries placed here and not ended: while there are any, the daemon owes us a word."""
        self._opened_s = now_s
        self._heard_s = now_s
        self._asked_s: float | None = None

    def note_word(self, now_s: float) -> bool:
        """Note that the daemon said something, or owed nothing until now; returns whether it had been asked to."""
        was_asked = self._asked_s is not None
        self._heard_s, self._asked_s = now_s, None
        return was_asked

    def due_s(self) -> float:
        """Return when the silence calls for action; infinite while the daemon owes nothing."""
        if self.state is LinkState.GREETING:
            return self._opened_s + HELLO_S
        if not self.owed:
            return math.inf
        return self._heard_s + PING_S if self._asked_s is None else self._asked_s + SILENCE_S

    def watch(self, now_s: float) -> bool:
        """Judge the silence: returns whether to ask for a sign of life, and sets ``fault`` when none came."""
        if now_s < self.due_s() or self.fault is not None:
            return False
        if self.state is LinkState.GREETING:
            self.fault = DaemonUnreachableError(f"accepts connections but did not greet within {HELLO_S} s")
        elif self._asked_s is None:
            self._asked_s = now_s
            return True
        else:
            self.fault = DaemonUnreachableError(f"gave no sign of life for {PING_S + SILENCE_S} s")
        return False
