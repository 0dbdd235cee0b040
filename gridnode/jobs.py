"""What a session keeps: requests, open jobs and queries, how a job is sent, and the names of bad ends. Pure.

Owns records only; gridnode.session and gridnode.openwork own every rule by which they change.
"""

from typing import Final

import msgspec

from gridnode.control import Buffer, JobDone, JobError, Query, Submit, encode_frame
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

BUDGET_MAX_S: Final = 1e6
"""Largest budget that a Submit holds."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a request is to be treated, all defaults filled in."""

    priority: int = 1
    rungs: bool = True
    raw_outputs: bool = False
    score_threshold: float | None = None
    tenant: str | None = None
    stream: str = ""
    newest_wins: bool = False


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """All that is needed to send a job, and to send it again."""

    model: str
    body: bytes
    parts: tuple[Buffer, ...] = ()
    """The payload, in pieces of bytes that follow one another; not to be changed before the job ended."""
    payload_bytes: int = 0
    options: Options = Options()
    frame: int = 0


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


def encode_job(job: Job, *, now_s: float, place: int | None = None) -> bytes:
    """Encode a job's frame, with the budget that is left; without a place in shared memory, its parts follow it."""
    request, options = job.request, job.request.options
    message = Submit(
        key=job.key,
        model=request.model,
        rungs=options.rungs,
        budget_s=None if job.deadline_s is None else min(job.deadline_s - now_s, BUDGET_MAX_S),
        priority=options.priority,
        stream=options.stream,
        frame=request.frame,
        newest_wins=options.newest_wins,
        tenant=options.tenant or "",
        body=request.body,
        place=place,
        place_bytes=0 if place is None else request.payload_bytes,
    )
    return encode_frame(message, request.payload_bytes if place is None else 0)


def overdue_error(job: Job) -> JobDeadlineError:
    """Return what the caller of a job meets that nobody answered in time."""
    budget_s = 0.0 if job.deadline_s is None else job.deadline_s - job.opened_s
    where = "none was reached" if job.link is None else f"{job.link.path} has the job"
    text = f"no daemon answered within the deadline of {budget_s:.3f} s ({where}); allow more time or a smaller model"
    return JobDeadlineError(text, reason="deadline")


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
