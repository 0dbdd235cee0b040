"""What may happen to a node. Drivers turn the world into these; the core sees nothing else.

Three kinds of names tie events to actions:

* *handle*: one job at this node, minted by the driver when the job arrives, so that a key that comes twice
  (a client that moved to another entry node) makes two records, each with one outcome of its own.
* *command*: one thing the core asked for (an execution, an offer, a transfer, a steal), minted by the core.
  The event that answers it carries it back; answers to unknown commands are late and only counted.
* *offer* and *request*: a peer's question that waits for our answer, minted by the driver.
"""

import msgspec

from scheduler.types import (
    Capability,
    CapabilityTable,
    Job,
    LinkSample,
    ModelDigest,
    NodeId,
    PeerState,
    Reason,
    ServiceTimes,
)


class JobArrived(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A job with its payload is here: from an own client, or from a peer that handed it over."""

    handle: int
    job: Job
    origin: NodeId | None
    """Peer it came from and the outcome goes back to; None for an own client."""
    offer: int | None = None
    """The accepted offer this payload belongs to, if there was one."""
    stolen: bool = False
    """Whether we asked for it: it is served here and not passed on."""
    sender_estimate_s: float | None = None
    """Seconds until done that the sender expected of us, from its decision."""


class OfferReceived(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A peer asks whether it may send a job; the payload is not here yet."""

    offer: int
    peer: NodeId
    job: Job
    state: PeerState | None = None
    sender_estimate_s: float | None = None


class OfferAnswered(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The peer accepted our offer and keeps room for it; the driver goes on to send the payload."""

    command: int
    state: PeerState | None
    rtt_s: float | None = None


class Accepted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The executor has our job and has not finished it within the acknowledgement time."""

    command: int
    state: PeerState | None
    covered: tuple[int, ...] = ()
    """Commands of ours that the executor's state already counts."""
    link: LinkSample | None = None


class Progressed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The executor still works on our job. Renews a steal lease too."""

    command: int
    state: PeerState | None


class Nacked(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The peer refused or gave back our job, unharmed, and says how it stands."""

    command: int
    reason: Reason
    state: PeerState | None
    estimate_s: float | None = None


class ReplyReceived(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The executor's outcome of our job; the driver holds the result's bytes under the command."""

    command: int
    model: ModelDigest | None
    """Model that answered; None for a failure."""
    failure: Reason | None
    """None for a result."""
    state: PeerState | None
    times: ServiceTimes | None
    link: LinkSample | None = None


class SendFailed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The connection that carried our offer, job, lease or steal died before an outcome."""

    command: int
    connected: bool
    """False when the peer could not be reached at all: nothing of the job can have run there."""


class ServiceStarted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The worker began an execution."""

    command: int


class ServiceFinished(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The worker finished an execution; the driver holds the results under the command."""

    command: int
    service_s: float
    """Time in the worker, per batch."""


class LaneRan(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Jobs came and went by a lane: this core was not asked about each, since its node had nothing else to do.

    Jobs of one own client, that ran here or at a peer; or a peer's, that ran here.
    """

    model: ModelDigest
    keys: tuple[bytes, ...]
    origin: NodeId | None = None
    """Peer that they came from; None for an own client's."""
    executor: NodeId | None = None
    """Peer that ran them; None for this node."""


class ServiceFailed(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An execution ended without results."""

    command: int
    reason: Reason
    """MODEL_FAILED when the runtime answered with an error; LOST when the worker died or was killed."""


class CancelRequested(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The origin of a job wants no answer any more."""

    handle: int


class StealRequested(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An idle peer asks for work."""

    request: int
    peer: NodeId
    state: PeerState | None
    models: tuple[ModelDigest, ...]
    """Models the thief has loaded."""
    room: int
    """Most jobs it wants, >= 1."""


class StealAnswered(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The victim answered our steal. Jobs it granted follow as JobArrived with stolen set."""

    command: int
    granted: int
    """Jobs on their way; 0 for none."""
    state: PeerState | None


class ProbeAnswered(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The peer answered our probe."""

    command: int
    state: PeerState


class AdvertReceived(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A peer's state record came by gossip or with a message that answers nothing."""

    state: PeerState


class TableReceived(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A peer's capability table was pulled."""

    table: CapabilityTable


class PeerReachable(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The data port of a certified peer is known to answer, or not to."""

    peer: NodeId
    reachable: bool


class PeerSuspected(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A probe, or a signed word of others, says the peer may be gone: place nothing there."""

    peer: NodeId


class PeerRefuted(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A suspected peer answered after all."""

    peer: NodeId


class PeerLost(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The peer is dead, revoked or has left: forget it and place its jobs again."""

    peer: NodeId


class ModelChanged(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The models this node may run, or which of them are loaded, changed."""

    table_digest: bytes
    capabilities: tuple[Capability, ...]
    """All checked models of this node, sorted by model."""
    loaded: frozenset[ModelDigest]
    """Those with a worker ready."""


class LoadSampled(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A probe of this machine."""

    slow_down: float
    memory_free_bytes: int
    power_class: int = 0


class DrainRequested(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Take no more work; finish what is running, give back or hand over the rest."""


class TimerFired(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """next_deadline_s() has come."""


Event = (
    JobArrived
    | OfferReceived
    | OfferAnswered
    | Accepted
    | Progressed
    | Nacked
    | ReplyReceived
    | SendFailed
    | ServiceStarted
    | ServiceFinished
    | LaneRan
    | ServiceFailed
    | CancelRequested
    | StealRequested
    | StealAnswered
    | ProbeAnswered
    | AdvertReceived
    | TableReceived
    | PeerReachable
    | PeerSuspected
    | PeerRefuted
    | PeerLost
    | ModelChanged
    | LoadSampled
    | DrainRequested
    | TimerFired
)
