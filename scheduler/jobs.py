"""What the core keeps of jobs and commands. Plain objects with slots, since they change all the time; no decisions."""

from typing import TYPE_CHECKING, Final

from scheduler.timers import NEVER, Timed
from scheduler.types import Job, ModelDigest, NodeId, Reason

if TYPE_CHECKING:
    from scheduler.peer import Peer


class Stage:
    """Where a job of this node is. Plain numbers: enumerations cost more than what is done with them here."""

    WAITING: Final = 0
    """In the local queue."""
    PARKED: Final = 1
    """Until its model is loaded."""
    RUNNING: Final = 2
    """In a worker."""
    AWAY: Final = 3
    """At a peer, or on its way to one."""
    UNPLACED: Final = 4
    """Just come, or just come back: in no place yet."""
    ASKING: Final = 5
    """Until the peers that were asked have told how they stand."""
    DONE: Final = 6
    """Its outcome is out; the record is dropped."""


class JobRecord(Timed):
    """One job at this node, from its arrival to its one outcome."""

    __slots__ = (
        "acknowledged",
        "attempt",
        "avoid",
        "handle",
        "held_s",
        "is_alone",
        "job",
        "last_reason",
        "losses",
        "model",
        "origin",
        "refusals",
        "report_at_s",
        "run",
        "sender_estimate_s",
        "shipments",
        "stage",
        "stolen",
        "turn_s",
    )

    def __init__(
        self,
        *,
        handle: int,
        job: Job,
        origin: NodeId | None,
        stolen: bool,
        sender_estimate_s: float | None,
    ) -> None:
        self.handle = handle
        self.job = job
        self.origin = origin
        self.stolen = stolen
        self.sender_estimate_s = sender_estimate_s
        self.attempt = job.attempt
        self.turn_s = job.deadline_s
        """Deadline by which it is served: of a frame that took the place of older ones, the earliest of theirs."""
        self.stage: int = Stage.UNPLACED
        models = job.models
        self.model: ModelDigest = models[0] if models else ""
        """Rung planned for it here."""
        self.avoid: tuple[NodeId, ...] = ()
        """Peers that had it from here and did not answer it: they refused, fell silent or were lost."""
        self.losses = 0
        self.refusals = 0
        self.last_reason: Reason | None = None
        """Why it was placed last time again."""
        self.is_alone = False
        """Whether it must not share a batch, since one that it was in failed."""
        self.held_s: float | None = None
        """Since when a free slot waits for its batch to fill."""
        self.run: Run | None = None
        self.shipments: list[Shipment] = []
        """Open commands at peers: one, or two after a silence."""
        self.acknowledged = False
        self.due_s = NEVER
        """When it is looked after next: a report to its origin, or its deadline."""
        self.report_at_s = 0.0
        """When the origin, a peer, is to hear of it next."""


class Carriage:
    """How a job went to a peer."""

    SEND: Final = 0
    OFFER: Final = 1
    LEASE: Final = 2


class Shipment(Timed):
    """One command at a peer: a job offered, sent or leased."""

    __slots__ = (
        "carriage",
        "command",
        "covered",
        "expected_arrival_s",
        "is_silent",
        "local_s",
        "model",
        "peer",
        "promised_s",
        "record",
        "sent_s",
        "service_s",
        "transfer_s",
    )

    def __init__(
        self,
        *,
        command: int,
        record: JobRecord,
        peer: "Peer",
        carriage: int,
        model: ModelDigest,
        service_s: float,
        transfer_s: float,
        promised_s: float,
        now_s: float,
    ) -> None:
        self.command = command
        self.record = record
        self.peer = peer
        self.carriage = carriage
        self.model = model
        self.service_s = service_s
        """What it adds to the peer's queue, in seconds of one slot."""
        self.transfer_s = transfer_s
        self.promised_s = promised_s
        """Seconds until done, as the peer's own records make it look: without our doubts of them."""
        self.sent_s = now_s
        self.expected_arrival_s = now_s + transfer_s
        self.covered = False
        """Whether the peer's state counts it already."""
        self.is_silent = False
        self.due_s = NEVER
        """When the next word about it is overdue."""


class Reservation(Timed):
    """Room kept for an accepted offer."""

    __slots__ = ("input_bytes", "offer", "peer_id", "service_s")

    def __init__(self, *, offer: int, peer_id: NodeId, input_bytes: int, service_s: float) -> None:
        self.offer = offer
        self.peer_id = peer_id
        self.input_bytes = input_bytes
        self.service_s = service_s
        self.due_s = NEVER


class Inquiry(Timed):
    """Questions to some peers on behalf of one job."""

    __slots__ = ("open", "peers", "reason", "record")

    def __init__(self, record: JobRecord, peers: "list[Peer]", *, reason: str) -> None:
        self.record = record
        self.peers = peers
        self.reason = reason
        self.open: set[int] = set()
        """Questions without an answer."""
        self.due_s = NEVER


class Run:
    """One execution here. It holds its slot until the worker has answered, even if nobody waits for it any more."""

    __slots__ = ("command", "expected_s", "model", "records", "started_s")

    def __init__(
        self, *, command: int, records: list[JobRecord], model: ModelDigest, expected_s: float, now_s: float
    ) -> None:
        self.command = command
        self.records = records
        self.model = model
        self.expected_s = expected_s
        self.started_s = now_s
