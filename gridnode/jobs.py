"""What a session keeps: requests, open jobs and queries, and the names of bad ends. Pure.

Owns records only; gridnode.session and gridnode.openwork own every rule by which they change.
"""

import msgspec

from gridnode.control import Buffer, JobDone, JobError, Query
from gridnode.errors import (
    DrainingError,
    GridError,
    InvalidInputError,
    JobCancelledError,
    JobDeadlineError,
    JobFailedError,
    JobRejectedError,
    UnknownModelError,
)
from gridnode.link import Link


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """All that is needed to send a job, and to send it again."""

    model: str
    body: bytes
    parts: tuple[Buffer, ...] = ()
    """The payload, in pieces that are sent one after the other; not to be changed before the job ended."""
    payload_bytes: int = 0
    rungs: bool = True
    priority: int = 1
    stream: str = ""
    frame: int = 0
    newest_wins: bool = False
    tenant: str = ""


class Job:
    """One open request; ``ended`` once ``done`` (with ``payload``) or ``error`` is set. Only they change it."""

    __slots__ = (
        "deadline_s",
        "done",
        "ended",
        "ended_s",
        "error",
        "key",
        "link",
        "losses",
        "opened_s",
        "payload",
        "request",
        "submissions",
        "troubled_s",
    )

    def __init__(self, key: bytes, request: Request, *, opened_s: float, deadline_s: float | None) -> None:
        self.key = key
        self.request = request
        self.opened_s = opened_s
        self.deadline_s = deadline_s
        self.link: Link | None = None
        self.submissions = 0
        self.losses = 0
        self.troubled_s: float | None = opened_s
        self.ended = False
        self.ended_s = 0.0
        self.done: JobDone | None = None
        self.payload: Buffer = b""
        self.error: GridError | None = None


class Question:
    """One open query; ``ended`` once ``document`` or ``error`` is set."""

    __slots__ = ("document", "ended", "error", "link", "query", "until_s")

    def __init__(self, query: Query, *, until_s: float) -> None:
        self.query = query
        self.until_s = until_s
        self.link: Link | None = None
        self.ended = False
        self.document = b""
        self.error: GridError | None = None


def error_of(message: JobError) -> GridError:
    """Turn the named end of a job into the error its caller meets."""
    reason, text = message.reason, message.message or f"the grid ended the job: {message.reason}"
    match reason:
        case "deadline" | "expired":
            return JobDeadlineError(text, reason=reason, estimate_s=message.estimate_s)
        case "queue_full" | "no_room" | "hop_limit" | "already_visited" | "superseded":
            return JobRejectedError(text, reason=reason, estimate_s=message.estimate_s)
        case "draining":
            return DrainingError(text, entries=message.entries)
        case "unknown_model":
            return UnknownModelError(text)
        case "cancelled":
            return JobCancelledError(text)
        case "bad_input":
            return InvalidInputError(text)
        case _:
            return JobFailedError(text, reason=reason)
