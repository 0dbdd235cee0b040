"""Log set-up: one event a line, an event name in the past tense and keys.

On a journal (JOURNAL_STREAM is set, as systemd does) lines start with the syslog level in angle brackets, which
journald turns into priorities; elsewhere with time and level. Values never hold payloads or secrets; peers go by
their last eight characters.
"""

import logging
import sys
import time
from collections import deque
from typing import TextIO

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

VALUE_MAX_CHARS = 400
"""Longest value printed; what is longer is cut, so that no peer can fill the disk with one line."""

_JOURNAL_LEVELS = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def short(node: str) -> str:
    """Return the last eight characters of a PeerID: the first ones are the same for all Ed25519 keys."""
    return node[-8:]


def _text(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    text = text[:VALUE_MAX_CHARS]
    if not text or any(c in text for c in ' "=\n\r\t') or not text.isprintable():
        return '"' + text.encode("unicode_escape").decode("ascii").replace('"', '\\"') + '"'
    return text


class EventLog:
    """A logger of events with keys, as in ``log.info("job_offloaded", peer=short(peer), reason=reason)``."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"gridnode.{name}")

    @property
    def is_verbose(self) -> bool:
        """Whether debug() writes anything; for what is called for each job."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, **keys: object) -> None:
        """Log per-message detail."""
        self._log(logging.DEBUG, event, keys)

    def info(self, event: str, **keys: object) -> None:
        """Log a step of the life-cycle."""
        self._log(logging.INFO, event, keys)

    def warning(self, event: str, **keys: object) -> None:
        """Log that the node works, but worse than it should."""
        self._log(logging.WARNING, event, keys)

    def error(self, event: str, **keys: object) -> None:
        """Log that a human must act."""
        self._log(logging.ERROR, event, keys)

    def _log(self, level: int, event: str, keys: dict[str, object]) -> None:
        if self._logger.isEnabledFor(level):
            words = [event, *(f"{key}={_text(value)}" for key, value in keys.items())]
            self._logger.log(level, " ".join(words))


class _Formatter(logging.Formatter):
    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text += " exception=" + _text(f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}")
        name = record.name.removeprefix("gridnode.")
        if self._journal:
            return f"<{_JOURNAL_LEVELS.get(record.levelno, 6)}>{name}: {text}"
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{moment}.{int(record.msecs):03d} {record.levelname.lower():7} {name}: {text}"


class _RateLimit(logging.Filter):
    """Lets at most so many records through per second and says how many it held back."""

    def __init__(self, per_second: int) -> None:
        super().__init__()
        self._moments: deque[float] = deque(maxlen=per_second)
        self._held_back = 0

    def filter(self, record: logging.LogRecord) -> bool:
        full = len(self._moments) == self._moments.maxlen
        if full and record.created - self._moments[0] < 1.0 and record.levelno < logging.ERROR:
            self._held_back += 1
            return False
        if self._held_back:
            record.msg = f"{record.getMessage()} held_back={self._held_back}"
            record.args = ()
            self._held_back = 0
        self._moments.append(record.created)
        return True


LINES_PER_SECOND_MAX = 200
"""Bound on log lines per second below error level; a flood of bad frames must not wear out an SD card."""


def set_up_logging(*, level: str, journal: bool, stream: TextIO = sys.stderr) -> None:
    """Send the events of all packages to a stream. Call once, at the start of a command."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_Formatter(journal=journal))
    handler.addFilter(_RateLimit(LINES_PER_SECOND_MAX))
    root = logging.getLogger("gridnode")
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level])
    root.propagate = False
    for noisy in ("libp2p", "multiaddr", "async_service", "tuf"):
        # libp2p logs an error block for each refused stream; what matters of it is logged by the host's owner.
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
