"""What a call of either client is made of: sockets, options, requests, and outcomes as the caller meets them.

Owns the defaults of the public arguments and the checks that need no daemon. Knows neither threads nor event loops.
"""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Generic, TypedDict, TypeVar

import msgspec

from gridnode.control import CLIENT_ID_BYTES
from gridnode.entries import Entries
from gridnode.errors import GridError, InvalidInputError, JobRejectedError
from gridnode.inputs import encode_input
from gridnode.jobs import Job, Options, Question, Request
from gridnode.results import Result, make_result
from gridnode.session import Session
from gridnode.window import Flight, Mode, StreamItem, Window

if TYPE_CHECKING:
    from gridnode.inputs import Input

ANSWER_S: Final = 10.0
"""Time a query has; the longest, an invitation, waits for a disk."""
IN_FLIGHT: Final = 4
"""Frames of a stream in the grid at once by default: enough to keep three nodes busy, few enough to stay fresh."""
SYSTEM_SOCKET: Final = "/run/gridnode/gridnode.sock"
MODEL_NAME_MAX: Final = 128
PRIORITY_MAX: Final = 3

T = TypeVar("T")
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


class JobOptions(TypedDict, total=False):
    """The keyword arguments that infer, submit and stream have in common; Grid.infer says what they mean."""

    priority: int
    rungs: bool
    raw_outputs: bool
    score_threshold: float | None
    tenant: str | None


def make_options(given: JobOptions, *, tenant: str) -> Options:
    """Fill in what a call leaves out, in place; raises TypeError for an argument that there is not.

    Examples
    --------
    >>> make_options({"priority": 0}, tenant="shop").tenant
    'shop'
    """
    if given.get("tenant") is None:
        given["tenant"] = tenant
    return Options(**given)


class StreamPlan(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What a stream of either client is made of."""

    window: Window[T]
    model: str
    options: Options
    deadline_s: float | None


def plan_stream(
    model: str, options: Options, *, mode: Mode, in_flight: int, name: str, deadline_s: float | None
) -> "StreamPlan[Input]":
    """Plan a stream under a name of its own; raises ValueError for an unknown mode or a wrong ``in_flight``."""
    window: Window[Input] = Window(mode=mode, in_flight=in_flight)
    stream = f"{name}-{os.urandom(4).hex()}"
    options = msgspec.structs.replace(options, stream=stream, newest_wins=mode == "newest")
    return StreamPlan(window=window, model=model, options=options, deadline_s=deadline_s)


def make_request(model: str, source: "Input", options: Options, *, frame: int = 0) -> Request:
    """Encode an input and check the options; raises InvalidInputError, TypeError. Reading a path blocks."""
    if not 1 <= len(model) <= MODEL_NAME_MAX:
        raise InvalidInputError(f"model name {model!r} must have 1 to {MODEL_NAME_MAX} characters")
    if not 0 <= options.priority <= PRIORITY_MAX:
        raise InvalidInputError(f"priority is {options.priority}, allowed is 0 (first) to {PRIORITY_MAX}")
    if len(options.tenant or "") > MODEL_NAME_MAX or len(options.stream) > MODEL_NAME_MAX:
        raise InvalidInputError(f"tenant and stream may have at most {MODEL_NAME_MAX} characters; shorten them")
    encoded = encode_input(source, raw_outputs=options.raw_outputs, score_threshold=options.score_threshold)
    return Request(
        model=model,
        body=encoded.body,
        parts=encoded.parts,
        payload_bytes=encoded.payload_bytes,
        options=options,
        frame=frame,
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


def answer_of(question: Question) -> dict[str, Any]:
    """Return the answer to an ended query, or raise its error; what is no map is put under ``items``."""
    assert question.ended, "the query has no answer yet"
    if question.error is not None:
        raise question.error
    found = msgspec.json.decode(question.document)
    return found if isinstance(found, dict) else {"items": found}
