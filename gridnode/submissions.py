"""What every way in makes of a program's request: a job that fits its model, or a named refusal.

Owns the checks that need the grid's models, and the words for ends without a result. Knows nothing of sockets: the
front door's programs (gridnode.program) and HTTP's (gridnode.http) come through here alike.
"""

import math
from typing import Final, Protocol

from gridnode.control import Submit
from gridnode.errors import UnknownModelError
from models.tensors import BadInputError
from scheduler.types import Job, Reason

MESSAGE_MAX_CHARS: Final = 2048
"""Longest message of an error: names that a program chose may be in it, and a header has a bound."""

FRAME_MAX: Final = 2**53
"""Largest frame number; transport.wire takes no larger one."""

_REMEDIES: Final[dict[str, str]] = {
    Reason.DEADLINE: "no node known can finish it in time: allow more time, lower the rate, or add nodes",
    Reason.EXPIRED: "its deadline passed before a node could finish it: allow more time or lower the rate",
    Reason.QUEUE_FULL: "all queues are full: lower the rate, or try again later",
    Reason.UNKNOWN_MODEL: "no node reachable offers this model: see 'gridnode model list' and 'gridnode peers'",
    Reason.DRAINING: "this daemon is shutting down: connect to another one",
    Reason.NO_ROOM: "memory for payloads in flight is spent: try again later",
    Reason.SUPERSEDED: "a newer frame of the stream took its place",
    Reason.CANCELLED: "it was cancelled",
    Reason.POISON: "two executors were lost while they ran it, so it is not tried again",
    Reason.MODEL_FAILED: "the runtime failed on this input",
    Reason.LOST: "the node that ran it was lost, and the time or the retries ran out",
}


class SubmissionError(Exception):
    """A request that does not become a job. The sender's fault, or its bad luck.

    Parameters
    ----------
    reason : str
        A scheduler Reason, or bad_input.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message[:MESSAGE_MAX_CHARS])
        self.reason = reason


class ModelDirectory(Protocol):
    """Knows the published models by name."""

    def accept(self, name: str, *, rungs: bool, body: bytes, payload_bytes: int) -> tuple[str, ...]:
        """Return the models that may answer a request, best first; raises UnknownModelError or BadInputError."""
        ...

    def name_of(self, digest: str) -> str:
        """Return the name of a model, or the head of its digest."""
        ...


def make_job(
    message: Submit,
    payload_bytes: int,
    *,
    node: str,
    client: str,
    models: ModelDirectory,
    default_deadline_s: float,
    now_s: float,
) -> Job:
    """Turn a request into a job, if it fits its model.

    Parameters
    ----------
    message : Submit
        As decoded, or as made by another way in.
    payload_bytes : int
        Length of the payload, >= 0.
    node : str
        PeerID of this node, the job's entry.
    client : str
        Name of the program; its streams are its own.
    default_deadline_s : float
        Budget of a request that names none, in seconds.
    now_s : float
        On the local monotonic clock.

    Raises
    ------
    SubmissionError
        The request does not fit the model, names no published one, or its time is over.
    """
    try:
        acceptable = models.accept(message.model, rungs=message.rungs, body=message.body, payload_bytes=payload_bytes)
    except UnknownModelError as error:
        raise SubmissionError(Reason.UNKNOWN_MODEL.value, str(error)) from error
    except BadInputError as error:
        raise SubmissionError("bad_input", str(error)) from error
    if message.frame > FRAME_MAX:
        raise SubmissionError("bad_input", f"frame number is {message.frame}, at most {FRAME_MAX} can be sent to peers")
    budget_s = default_deadline_s if message.budget_s is None else message.budget_s
    if not budget_s > 0 or math.isnan(budget_s):
        raise SubmissionError(Reason.EXPIRED.value, f"deadline is already past: {budget_s:.3g} s were left")
    return Job(
        key=message.key,
        entry=node,
        client=client,
        tenant=message.tenant,
        priority=message.priority,
        stream=f"{client}/{message.stream}" if message.stream else "",
        frame=message.frame,
        newest_wins=message.newest_wins,
        input_bytes=payload_bytes,
        arrival_s=now_s,
        deadline_s=now_s + budget_s,
        models=acceptable,
    )


def explain(reason: str, message: str) -> str:
    """Return what a person can do about a reason, and what the runtime said where that tells more."""
    remedy = _REMEDIES.get(reason, "")
    if reason == Reason.MODEL_FAILED and message:
        remedy = f"{remedy}: {message}"
    return (remedy or message or reason)[:MESSAGE_MAX_CHARS]
