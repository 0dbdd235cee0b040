"""What the core tells of itself: its decisions and its figures, as frozen records."""

import msgspec

from scheduler.types import ModelDigest, NodeId


class Candidate(msgspec.Struct, frozen=True):
    """One node that a placement looked at."""

    node_id: NodeId
    finish_s: float | None
    """Predicted seconds until done there; None where it was not eligible."""
    verdict: str
    """`chosen`, or why not."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One placement, kept for explanation."""

    at_s: float
    key: bytes
    handle: int
    model: ModelDigest | None
    chosen: NodeId | None
    """The node; None for a refusal."""
    candidates: tuple[Candidate, ...]
    reason: str


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the start, and gauges of now, of one core."""

    jobs_arrived: int
    """From own clients."""
    jobs_received: int
    """From peers, stolen ones too."""
    jobs_stolen: int
    """Received because we asked."""
    jobs_granted: int
    """Handed to thieves."""
    jobs_offloaded: int
    """Handed to peers by our own choice."""
    jobs_offered: int
    """Of those, the ones whose payload waited for the peer's word."""
    jobs_executed: int
    """Finished by a worker here."""
    replies: int
    """Outcomes with a result."""
    rejects: dict[str, int]
    """Outcomes without, per reason."""
    nacks: dict[str, int]
    """Jobs and offers of peers refused or given back, per reason."""
    refusals: dict[str, int]
    """Own placements that peers refused or gave back, per reason."""
    retries: int
    """Placements after the first of a job."""
    executors_lost: int
    executors_silent: int
    late_answers: int
    """Answers to commands that were closed already."""
    adverts_sent: int
    steals_asked: int
    probes_sent: int
    """Questions to peers how they stand."""
    jobs_hedged: int
    """Jobs that got a second copy because they were late."""
    invariant_violations: int
    """Broken promises of our own: 0, or there is a bug."""
    queue_length: int
    backlog_s: float
    jobs_running: int
    jobs_away: int
    """At peers now."""
    jobs_open: int
    peers_alive: int
    peers_active: int
    reserved_bytes: int
    models_loaded: int
    draining: bool
