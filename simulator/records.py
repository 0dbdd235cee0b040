"""What the parts of a simulated node tell one another. The daemon's gridnode.jobtable is the model."""

from typing import Final, Protocol

import msgspec

from scheduler.actions import Accept, GrantLease, NackOffer
from scheduler.events import Event
from scheduler.types import Job, NodeId, PeerState, Reason
from simulator.engine import Engine
from simulator.pool import End, Plane

HANDOVER_TIMEOUT_S: Final = 10.0
"""Longest wait for a peer's part of a hand-over, and for its answer to a cancel, in seconds; as in the daemon."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A result on its way to whoever asked."""

    model: str
    node: NodeId
    """Node that executed the job."""
    hops: int
    waiting_s: float
    service_s: float


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a job without a result."""

    reason: str
    message: str = ""


Attachment = Answer | Failure | dict[int, Answer | Failure] | None
"""What comes with an event and goes with the actions it leads to; a dict has the outcomes of a batch by handle."""


class Responder(Protocol):
    """Takes what a job's origin is to hear; exactly one of the last three ends the job."""

    def accepted(self, state: PeerState) -> None:
        """Say that the job is here and not done yet."""
        ...

    def progress(self, state: PeerState) -> None:
        """Say that the job is still in hand."""
        ...

    def answer(self, answer: Answer, state: PeerState) -> None:
        """Give the result."""
        ...

    def fail(self, failure: Failure, state: PeerState, *, estimate_s: float | None) -> None:
        """Say that the job ended without a result."""
        ...

    def give_back(self, reason: Reason, state: PeerState, *, estimate_s: float | None) -> None:
        """Give the job back unharmed."""
        ...


class Entry:
    """One job at one node."""

    __slots__ = ("handle", "job", "responder", "started_s")

    def __init__(self, handle: int, job: Job, responder: Responder) -> None:
        self.handle = handle
        self.job = job
        self.responder = responder
        self.started_s = 0.0
        """When its execution here began."""


class Question(Protocol):
    """A peer's offer or steal that waits for the core's ruling."""

    def rule(self, ruling: Accept | NackOffer | GrantLease) -> None:
        """Take the core's answer."""
        ...


class Cancellable(Protocol):
    """Something of this node at a peer."""

    def cancel(self) -> None:
        """Stop it."""
        ...


class Site(Protocol):
    """What errands and conversations need of their node."""

    name: NodeId
    engine: Engine
    plane: Plane
    body: bytes
    """Encoded body of every request."""
    result_body: bytes
    """Encoded body of every result."""
    entries: dict[int, Entry]
    """Jobs at this node, by handle."""
    errands: dict[int, Cancellable]
    """Commands under way at peers, leases included."""
    commands: dict[tuple[NodeId, bytes], int]
    """Commands of jobs open at peers, by (peer, key)."""

    def post(self, event: Event, attachment: Attachment = None) -> None:
        """Give the core an event."""
        ...

    def own_state(self) -> PeerState:
        """Return the core's state record of now."""
        ...

    def mint(self) -> int:
        """Return a new handle."""
        ...

    def ask(self, question: Question) -> int:
        """Keep a question until the core's ruling; returns its number."""
        ...

    def idle_end(self, end: End) -> None:
        """Let a connection that a peer made wait for its next exchange."""
        ...
