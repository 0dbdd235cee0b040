"""Records the scheduling core speaks in: jobs, what peers tell of themselves, and what a model costs on a node.

These are not wire records. The wire's records are distrusted and versioned (transport.wire); these may change
freely. gridnode.translate turns one into the other.

Times are seconds on the local monotonic clock unless a name says otherwise; the core never compares clocks of
two nodes.

Records here, events and actions are made by the dozen per job, and hold nothing that could lead back to them: they are
left out of the search for garbage in cycles (gc=False), which makes them smaller and sooner made.
"""

import enum

import msgspec

NodeId = str
"""PeerID of a node, in base58. Compared and sorted as text."""

ModelDigest = str
"""Hex SHA-256 of a model's manifest."""

DEFAULT_PRIORITY = 1


class SchedulerError(Exception):
    """Root of all errors of the scheduler package."""


class Reason(enum.StrEnum):
    """Why a job was refused or ended without a result. The text travels on the wire: never rename a member."""

    DEADLINE = "deadline"
    """No node known can make the deadline; the best estimate goes with the refusal."""
    EXPIRED = "expired"
    """The deadline passed while the job waited."""
    QUEUE_FULL = "queue_full"
    UNKNOWN_MODEL = "unknown_model"
    """No node known offers any of the acceptable models."""
    DRAINING = "draining"
    NO_ROOM = "no_room"
    """The node's budget for payloads in flight is spent."""
    SUPERSEDED = "superseded"
    """A newer frame of the same stream took the job's place (newest-frame-wins)."""
    CANCELLED = "cancelled"
    POISON = "poison"
    """Two executors were lost under this key; the job itself is suspected."""
    MODEL_FAILED = "model_failed"
    """The runtime refused the input or failed on it; another node would too."""
    LOST = "lost"
    """Executors were lost or silent and the time or the retries ran out."""
    HOP_LIMIT = "hop_limit"
    ALREADY_VISITED = "already_visited"


class Job(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One request for inference, as one node sees it."""

    key: bytes
    """16 bytes of client id and 8 of counter, minted by the client. One outcome per key reaches the client."""
    attempt: int = 0
    """How often this key was placed before. Execution is at most once per attempt."""
    entry: NodeId
    """Node the client is connected to; a job may always come home to it."""
    hops: int = 0
    """Moves between nodes so far; a steal is one too."""
    visited: tuple[NodeId, ...] = ()
    """Nodes that had the job before this one, in order."""
    client: str = ""
    tenant: str = ""
    priority: int = DEFAULT_PRIORITY
    """Class 0 is served first; the wire carries 0 to 3."""
    stream: str = ""
    """Frames of one stream share this name; empty for a single request."""
    frame: int = 0
    newest_wins: bool = False
    """Whether a newer frame of the stream replaces this one while it waits."""
    input_bytes: int
    output_bytes: int = 4096
    """Expected size of the answer; a prior for the transfer estimate."""
    arrival_s: float
    """When this node got the job."""
    deadline_s: float
    """When the answer is worth nothing any more."""
    models: tuple[ModelDigest, ...]
    """Acceptable models, best first (rungs). Placement chooses node and model."""
    parent: bytes | None = None
    """Key of the job whose result this stage works on."""


class PeerState(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A node's state record: what it says of its load. Newer means larger (epoch, sequence)."""

    node_id: NodeId
    epoch: int
    """Boot counter of the node, kept on its disk."""
    sequence: int
    """Counts the records of one epoch."""
    backlog_s: float
    """Service time still to be done for accepted work, per slot, in seconds."""
    slots: int
    """Jobs served at once."""
    running_until_s: float
    """Seconds from the record's making until a slot is free; 0 when one is."""
    slow_down: float
    """Factor >= 1 on all service times, from other load or heat."""
    warm: int
    """Bit i is set when entry i of the capability table is loaded and ready."""
    memory_free_bytes: int
    draining: bool
    power_class: int
    """0 mains, 1 battery, 2 battery low."""
    table_digest: bytes
    """First 8 bytes of the SHA-256 of the node's capability table."""


class Capability(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What one model costs on one node, as measured there."""

    model: ModelDigest
    mean_s: float
    """Mean service time alone on the machine."""
    p95_s: float
    memory_bytes: int
    load_s: float
    """Time from cold to ready."""
    max_batch: int = 1
    providers: tuple[str, ...] = ()


class CapabilityTable(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The models a node can run. Entries are sorted by model; PeerState.warm indexes them."""

    node_id: NodeId
    digest: bytes
    entries: tuple[Capability, ...]


class ServiceTimes(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """Where the time of one answered job went on the executor, in seconds."""

    waiting_s: float
    service_s: float


class LinkSample(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One measured exchange with a peer, for the link estimator."""

    rtt_s: float | None
    """Round trip of a small frame, where one was seen."""
    sent_bytes: int
    sent_s: float
    """Time to hand the payload to the peer; 0 where it was too small to tell."""
    setup_s: float = 0.0
    """Time until there was a connection to use."""
