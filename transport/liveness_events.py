"""What the failure detector is told, what it asks for, and its times and bounds. See transport.liveness."""

import enum

import msgspec

from transport.wire import HealthNotice


class Status(enum.StrEnum):
    """Standing of a node in our eyes."""

    ALIVE = "alive"
    SUSPECT = "suspect"
    """Place nothing there; it may come back within the suspicion time."""
    DEAD = "dead"
    LEFT = "left"
    """It said goodbye."""


class LivenessConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Times and bounds of the failure detector. Defaults suit a LAN of up to a few hundred nodes."""

    period_s: float = 1.0
    """Time in which probes_per_period peers are probed: at once, since each wake-up costs as much as a probe, and with
    the other timers of the process (transport.beats). Nodes are not in step, so a peer's probes are spread."""
    probes_per_period: int = 2
    """Cost of the detector. A node with c peers is probed by each of them every c / probes_per_period periods, so
    by someone about twice per second, however large the grid is."""
    spoke_s: float = 1.0
    """A peer that has spoken to us within this time is passed over when its turn comes, but never twice in a row: its
    own probes tell as much, but not that we reach it."""
    stranger_s: float = 4.0
    """How often a probe goes to a node we have no connection to. Else a node whose neighbours are all gone or beyond
    a partition would be watched by nobody here. Costs a handshake each time."""
    direct_s: float = 0.5
    """Silence after which helpers are asked. Should be well above the round trip time of the slowest link."""
    window_s: float = 1.25
    """Silence after which the peer is suspect. Leaves the helpers time for a probe of direct_s of their own."""
    helpers: int = 3
    """Peers asked to probe on our behalf."""
    suspicion_s: float = 2.5
    """Shortest suspicion, times log10 of the number of nodes (at least 1): gossip needs that long to bring the
    refutation."""
    suspicion_factor: float = 2.0
    """How much longer the suspicion lasts while no other node confirms it."""
    suspicion_max_s: float = 12.0
    """Longest suspicion: a dead node is called dead within 15 s, detection included."""
    confirmations: int = 3
    """Words of other nodes after which the suspicion is shortest; also the most that are worth publishing."""
    broken_suspicion_s: float = 2.0
    """Suspicion when the connection was refused or reset: a process that is gone, not one that is slow."""
    refutable_s: float = 1.0
    """A node must have been suspect for so long before another's word makes it dead."""
    fresh_s: float = 1.0
    """Another's suspicion of a peer we heard within this time makes us probe, not believe."""
    refute_interval_s: float = 0.5
    """Least time between two alive messages of our own."""
    hold_s: float = 5.0
    """After a peer refuted our own suspicion by gossip we raise no other for so long, doubled each time until it
    answers us: a node whose data port is closed is no use for work, but it lives."""
    hold_max_s: float = 160.0
    dead_ttl_s: float = 60.0
    """How long the dead and the gone are remembered: longer than any message lingers in gossip caches."""
    linger_s: float = 5.0
    """A record of a dead node that arrives so long after its death did not linger in gossip: it is back, probe it."""
    return_s: float = 0.5
    """Least time between two such probes. The first node that gets an answer tells the grid."""
    stall_s: float = 0.25
    """A timer that fires so much too late means that this process did not run."""
    awareness_max: int = 8
    """Timeouts stretch by 1 + awareness (Lifeguard)."""
    members_max: int = 1024
    """Nodes remembered; the longest dead go first, then newcomers are not taken in."""


# ---------------------------------------------------------------- events


class PeersChanged(msgspec.Struct, frozen=True):
    """The peers to probe: control neighbours and open data connections."""

    nodes: tuple[str, ...]


class PeerSeen(msgspec.Struct, frozen=True, kw_only=True):
    """A signed record or a data message of a node arrived."""

    node: str
    epoch: int
    direct: bool
    """Whether it came from the node itself just now, over the data plane, and so proves that it lives."""


class PeerSpoke(msgspec.Struct, frozen=True):
    """A node has just asked us something over the data plane: it lives, whether or not we reach it."""

    node: str


class PeerDoubted(msgspec.Struct, frozen=True):
    """Something looks wrong (a job's connection broke, progress is missing): probe it now."""

    node: str


class ProbeAnswered(msgspec.Struct, frozen=True, kw_only=True):
    """A ping was answered. Late answers are welcome too."""

    probe: int
    target: str
    via: str | None = None
    reached: bool = True
    """False when the helper could not reach the target."""


class ProbeBroken(msgspec.Struct, frozen=True, kw_only=True):
    """A ping's connection was refused or reset. A ping that merely gets no answer needs no event.

    For a peer that has answered before this means that its process is gone.
    """

    probe: int
    target: str
    via: str | None = None


class NoticeReceived(msgspec.Struct, frozen=True, kw_only=True):
    """A health message came by gossip."""

    origin: str
    notice: HealthNotice


class LeaveRequested(msgspec.Struct, frozen=True):
    """We go: tell the others."""


class TimerFired(msgspec.Struct, frozen=True):
    """next_deadline_s() has come."""


Event = (
    PeersChanged
    | PeerSeen
    | PeerSpoke
    | PeerDoubted
    | ProbeAnswered
    | ProbeBroken
    | NoticeReceived
    | LeaveRequested
    | TimerFired
)

# ---------------------------------------------------------------- actions


class SendPing(msgspec.Struct, frozen=True, kw_only=True):
    """Send a Ping to the target, or to the helper with the target as subject."""

    probe: int
    target: str
    via: str | None
    timeout_s: float
    """After this the answer is not waited for; the ping may be given up."""


class PublishHealth(msgspec.Struct, frozen=True, kw_only=True):
    """Gossip this word."""

    notice: HealthNotice
    reason: str


class Changed(msgspec.Struct, frozen=True, kw_only=True):
    """A node's standing changed, or it lives under a new epoch."""

    node: str
    status: Status
    epoch: int
    reason: str


Action = SendPing | PublishHealth | Changed


class LivenessStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since start, and the present standing."""

    alive: int
    suspect: int
    dead: int
    awareness: int
    incarnation: int
    probes: int
    probes_failed: int
    stalls: int
    refutations: int
    notices_ignored: int
