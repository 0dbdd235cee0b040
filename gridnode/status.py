"""What a daemon tells of itself: the documents behind `gridnode status`, `peers`, `model list` and `explain`.

Records only; gridnode.insight fills them and the commands draw them. JSON field names are part of the interface.
"""

import msgspec


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One loaded model."""

    model: str
    digest: str
    pid: int
    memory_bytes: int
    runs: int
    errors: int
    restarts: int
    running: int
    waiting: int
    cpu_share: float
    confinement: str
    providers: tuple[str, ...]


class ModelStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One published model on this node."""

    name: str
    digest: str
    version: int
    state: str
    """missing, fetching, checking, ready, cold (checked, not loaded), refused, unwanted."""
    size_bytes: int
    fetched_bytes: int
    mean_ms: float | None
    """Measured service time on this node."""
    p95_ms: float | None
    memory_bytes: int
    rungs: tuple[str, ...] = ()
    problem: str = ""


class PeerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Another node, as this one sees it."""

    node: str
    name: str
    status: str
    """alive, suspect, dead, left, unknown."""
    reachable: bool
    """Whether its data port answers."""
    neighbour: bool
    """Whether there is a control connection."""
    address: str
    """Of its data port."""
    roles: tuple[str, ...]
    certificate_expires_s: float
    """Seconds since 1970."""
    backlog_s: float | None = None
    slots: int | None = None
    slow_down: float | None = None
    memory_free_bytes: int | None = None
    draining: bool = False
    state_age_s: float | None = None
    window: float | None = None
    in_flight: int | None = None
    rtt_ms: float | None = None


class NodeStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How the node asked is."""

    node: str
    name: str
    version: str
    grid_name: str
    grid_id: str
    epoch: int
    uptime_s: float
    health: str
    """ok, isolated, draining, trust expired, certificate expired, starting."""
    draining: bool
    roles: tuple[str, ...]
    certificate_expires_s: float
    trust_expires_s: float
    trust_expired: bool
    root_version: int
    timestamp_version: int
    control_address: str
    data_address: str
    metrics_address: str
    http_address: str
    """Of the HTTP port for programs; empty where it is off."""
    socket: str
    policy: str
    slots: int
    cpu_share: float
    threads: int
    neighbours: int
    peers_alive: int
    isolated_s: float | None
    queue_length: int
    backlog_s: float
    running: int
    away: int
    answered: int
    executed: int
    """Executed here, for own clients and for peers."""
    by_lane: int
    """Of the answered, jobs that no decision came before: their program had a ticket."""
    lanes: int
    """Programs' lanes with a ticket now. What goes by them neither waits nor runs as the other figures count."""
    offloaded: int
    """Jobs handed to peers by this node's choice."""
    received: int
    stolen: int
    granted: int
    late_answers: int
    invariant_violations: int
    ended: dict[str, int]
    """Jobs without a result, by reason."""
    p50_ms: float | None
    p99_ms: float | None
    service_ms: float | None
    """Mean service time of jobs executed here."""
    memory_bytes: int
    """Resident memory of the daemon."""
    memory_free_bytes: int
    temperature_c: float | None
    slow_down: float
    workers: tuple[WorkerStatus, ...]


class CandidateStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One node that a placement compared."""

    node: str
    name: str
    predicted_ms: float | None
    note: str = ""


class DecisionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One placement."""

    key: str
    at_s: float
    """Seconds ago."""
    chosen: str
    reason: str
    candidates: tuple[CandidateStatus, ...] = ()
