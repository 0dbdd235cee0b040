"""What a call of either client is made of: sockets, options, requests, and outcomes as the caller meets them.

Owns the defaults of the public arguments and the checks that need no daemon. Knows neither threads nor event loops.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from gridnode.control import CLIENT_ID_BYTES, encode_body
from gridnode.entries import Entries
from gridnode.errors import GridError, InvalidInputError, JobRejectedError
from gridnode.inputs import encode_input
from gridnode.jobs import Job, Request
from gridnode.results import Result, make_result
from gridnode.session import Session
from gridnode.window import Flight, StreamItem

if TYPE_CHECKING:
    from gridnode.inputs import Input

ANSWER_S: Final = 10.0
"""Time a query has; the longest, an invitation, waits for a disk."""
IN_FLIGHT: Final = 4
"""Frames of a stream in the grid at once by default: enough to keep three nodes busy, few enough to stay fresh."""
SYSTEM_SOCKET: Final = "/run/gridnode/gridnode.sock"
MODEL_NAME_MAX: Final = 128
PRIORITY_MAX: Final = 3

Sockets = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


def default_sockets() -> tuple[str, ...]:
    """Return where the daemon of this device listens.

    GRIDNODE_SOCKET names one or, separated by colons, several. Without it: the system's socket and the user's,
    whichever exist; where none does, all of them, so that an error names what was looked for.
    """
    if named := [path for path in os.environ.get("GRIDNODE_SOCKET", "").split(":") if path]:
        return tuple(named)
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.environ.get("HOME", "/"), ".local", "state")
    runtime = os.environ.get("XDG_RUNTIME_DIR") or os.path.join(state, "gridnode")
    candidates = (SYSTEM_SOCKET, os.path.join(runtime, "gridnode.sock"))
    return tuple(path for path in candidates if os.path.exists(path)) or candidates


def make_session(sockets: Sockets | None, *, patience_s: float) -> Session:
    """Return a session with a fresh client id; raises ValueError for an empty list of sockets."""
    if sockets is None:
        paths: Sequence[str] = default_sockets()
    elif isinstance(sockets, str | os.PathLike):
        paths = [os.fspath(sockets)]
    else:
        paths = [os.fspath(path) for path in sockets]
    return Session(os.urandom(CLIENT_ID_BYTES), Entries(paths), patience_s=patience_s)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a request is to be treated; the keyword arguments of infer, submit and stream."""

    priority: int = 1
    rungs: bool = True
    raw_outputs: bool = False
    score_threshold: float | None = None
    tenant: str = ""
    stream: str = ""
    newest_wins: bool = False


def make_request(model: str, source: "Input", options: Options, *, frame: int = 0) -> Request:
    """Encode an input and check the options; raises InvalidInputError, TypeError. Reading a path blocks."""
    if not 1 <= len(model) <= MODEL_NAME_MAX:
        raise InvalidInputError(f"model name {model!r} must have 1 to {MODEL_NAME_MAX} characters")
    if not 0 <= options.priority <= PRIORITY_MAX:
        raise InvalidInputError(f"priority is {options.priority}, allowed is 0 (first) to {PRIORITY_MAX}")
    if max(len(options.tenant), len(options.stream)) > MODEL_NAME_MAX:
        raise InvalidInputError(f"tenant and stream may have at most {MODEL_NAME_MAX} characters; shorten them")
    encoded = encode_input(source, raw_outputs=options.raw_outputs, score_threshold=options.score_threshold)
    return Request(
        model=model,
        body=encode_body(encoded.body),
        parts=encoded.parts,
        payload_bytes=encoded.payload_bytes,
        rungs=options.rungs,
        priority=options.priority,
        stream=options.stream,
        frame=frame,
        newest_wins=options.newest_wins,
        tenant=options.tenant,
    )


def outcome_of(job: Job) -> Result:
    """Return an ended job's result, or raise its error."""
    assert job.ended, "the job has no outcome yet"
    if job.error is not None:
        raise job.error
    assert job.done is not None, "a job ends with a result or an error"
    return make_result(job.done, job.payload, client_s=job.ended_s - job.opened_s)


def item_of(outcome: "Flight[Input] | int") -> StreamItem:
    """Return a stream's item for an outcome of its window."""
    if isinstance(outcome, int):
        return StreamItem(frame=outcome, skipped=True)
    if outcome.error is not None:
        return StreamItem(frame=outcome.frame, image=outcome.image, error=outcome.error)
    assert outcome.job is not None, "a flight without an error was sent"
    try:
        return StreamItem(frame=outcome.frame, image=outcome.image, result=outcome_of(outcome.job))
    except GridError as error:
        if isinstance(error, JobRejectedError) and error.reason == "superseded":
            return StreamItem(frame=outcome.frame, image=outcome.image, skipped=True)
        return StreamItem(frame=outcome.frame, image=outcome.image, error=error)


def read_document(document: bytes) -> dict[str, Any]:
    """Read the daemon's answer to a query; what is no map is put under ``items``."""
    found = msgspec.json.decode(document)
    return found if isinstance(found, dict) else {"items": found}
