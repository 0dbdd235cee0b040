"""What the core may ask for. Drivers carry these out; each has a reason for the log.

A lease is a placement like any other: the command in a grant is answered by the same Accepted, Progressed,
ReplyReceived and SendFailed events as one of a Send, and its expiry is the silence rule (two progress reports
missed). So a thief that dies costs what an executor that dies costs, and there is one way to handle both.
"""

import msgspec

from scheduler.types import Job, ModelDigest, NodeId, PeerState, Reason


class Execute(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Run jobs as one batch in the worker of a model. Answered by ServiceStarted, then Finished or Failed."""

    command: int
    handles: tuple[int, ...]
    model: ModelDigest
    deadline_s: float
    """When the run is to be terminated: the latest deadline of the batch."""
    reason: str


class Offer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Ask a peer to keep room for a job; on its acceptance the driver sends the payload at once."""

    command: int
    handle: int
    peer: NodeId
    estimate_s: float
    """Seconds until done that we expect of this peer."""
    reason: str
    job: Job | None = None
    """The job as it is to leave: hops, visited nodes and attempt brought up to date."""


class Send(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Hand a job with its payload to a peer."""

    command: int
    handle: int
    peer: NodeId
    estimate_s: float
    reason: str
    job: Job | None = None
    """The job as it is to leave: hops, visited nodes and attempt brought up to date."""


class Accept(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tell a peer that its offered job may come; the room is kept until expires_s."""

    offer: int
    expires_s: float
    state: PeerState
    reason: str


class NackOffer(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Refuse a peer's offer; no payload has moved."""

    offer: int
    why: Reason
    estimate_s: float | None
    state: PeerState
    reason: str


class Nack(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Give a job back to the peer it came from, unharmed."""

    handle: int
    why: Reason
    estimate_s: float | None
    state: PeerState
    reason: str


class Acknowledge(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tell the origin that the job is here and not done yet (ACCEPTED)."""

    handle: int
    state: PeerState
    reason: str


class Progress(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Tell the origin that the job is still in hand (PROGRESS)."""

    handle: int
    state: PeerState
    reason: str


class Reply(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Send a job's result to its origin: the bytes the driver holds under the command."""

    handle: int
    command: int
    state: PeerState
    reason: str


class Reject(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """End a job without a result, with a named reason: the own client, or the peer, gets an error."""

    handle: int
    why: Reason
    estimate_s: float | None
    """Best completion time known, in seconds from now; None where there is no estimate."""
    state: PeerState
    reason: str


class Cancel(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Stop a command: terminate an execution, or cancel a job at the peer it was sent to."""

    command: int
    reason: str


class Steal(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Ask a loaded peer for work. Answered by StealAnswered or SendFailed."""

    command: int
    victim: NodeId
    models: tuple[ModelDigest, ...]
    room: int
    state: PeerState
    reason: str


class GrantLease(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Answer a thief: hand over these jobs (none: an empty tuple), keeping them until it has answered."""

    request: int
    grants: tuple[tuple[int, int], ...]
    """Pairs (command, handle)."""
    state: PeerState
    reason: str
    jobs: tuple[Job, ...] = ()
    """The granted jobs as they are to leave, in the order of the grants."""


class LoadModel(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Start a worker for a model. Answered by ModelChanged."""

    model: ModelDigest
    reason: str


class EvictModel(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Stop the worker of a model to free its memory. Answered by ModelChanged."""

    model: ModelDigest
    reason: str


class Advertise(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Gossip this node's state record."""

    state: PeerState
    reason: str


class PullTable(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Fetch a peer's capability table: its state names one we do not hold. Answered by TableReceived."""

    peer: NodeId
    digest: bytes
    reason: str


class Probe(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Ask a peer how it stands. Answered by ProbeAnswered or SendFailed."""

    command: int
    peer: NodeId
    reason: str


class Drained(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A requested drain is complete: no job is left at this node."""

    reason: str


Action = (
    Execute
    | Offer
    | Send
    | Accept
    | NackOffer
    | Nack
    | Acknowledge
    | Progress
    | Reply
    | Reject
    | Cancel
    | Steal
    | GrantLease
    | LoadModel
    | EvictModel
    | Advertise
    | PullTable
    | Probe
    | Drained
)
