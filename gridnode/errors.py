"""Errors a user of gridnode meets. Owns the GridError tree; imports nothing of ours, so the client stays light.

Each message says what happened, the value seen, the bound where there is one, and what to do.
"""

from collections.abc import Sequence


class GridError(Exception):
    """Root of everything the client and the commands raise."""


class DaemonUnreachableError(GridError):
    """No daemon answers on any of the given sockets."""


class ProtocolError(GridError):
    """The other side of the local socket sent nonsense, or speaks another version."""


class InvalidInputError(GridError):
    """The request does not fit the model: a wrong name, dtype, shape or picture. Trying again will not help."""


class UnknownModelError(GridError):
    """No model of that name is published in the grid."""


class JobRejectedError(GridError):
    """The grid refused the job unharmed; a later try may succeed.

    Attributes
    ----------
    reason : str
        One of the reasons of docs/wire.md, such as ``queue_full``.
    estimate_s : float or None
        Best completion time known at the refusal, in seconds.
    """

    def __init__(self, message: str, *, reason: str = "", estimate_s: float | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.estimate_s = estimate_s


class DrainingError(JobRejectedError):
    """The daemon is shutting down and takes no more work.

    Attributes
    ----------
    entries : tuple of str
        Sockets of other entry nodes it knows.
    """

    def __init__(self, message: str, *, entries: Sequence[str] = ()) -> None:
        super().__init__(message, reason="draining")
        self.entries = tuple(entries)


class JobDeadlineError(JobRejectedError):
    """The deadline passed, or no node can make it; ``estimate_s`` tells what would be possible."""


class JobCancelledError(GridError):
    """The job was cancelled by its submitter."""


class JobFailedError(GridError):
    """The job was tried and did not end in a result.

    Attributes
    ----------
    reason : str
        One of the reasons of docs/wire.md, such as ``poison`` or ``model_failed``.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class ConfigError(GridError):
    """The configuration holds an unknown key, a wrong type or a value out of range."""


class StateDirectoryError(GridError):
    """The state directory is missing, in use by another daemon, damaged or readable by others."""


class NotJoinedError(StateDirectoryError):
    """The node belongs to no grid yet."""
