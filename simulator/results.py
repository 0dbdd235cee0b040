"""What a run gives back: frozen records of plain numbers, texts and tuples. Owns no computation and no layout.

Times are seconds, sizes bytes; NaN stands for "there was nothing to measure". Only jobs that arrived after the warm-up
count, whatever became of them later; rates are per second of the counted span.
"""

import math

import msgspec

from scheduler.types import NodeId


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """A quantity over time at equal steps."""

    start_s: float
    """Time of the first value; 0 is the start of the run."""
    step_s: float
    values: tuple[float, ...]
    """One per step; of a mean over a step, the mean over the step that ends there."""


class Stages(msgspec.Struct, frozen=True, kw_only=True):
    """Where the mean sojourn time of the answered went; the four add up to it."""

    network_s: float
    """On the way, with all that is neither waiting nor service at the executor: decisions, refusals, handshakes."""
    queue_s: float
    """Waiting at the executor, without model loads."""
    service_s: float
    load_s: float
    """Waiting at the executor while the model was loaded there."""


class NodeResult(msgspec.Struct, frozen=True, kw_only=True):
    """One node; the counters are of its whole run, with the warm-up, where they say so."""

    name: str
    device: str
    slots: int
    is_alive: bool
    """At the end."""
    submitted: int
    """Jobs of its own clients."""
    executed: int
    """Answered jobs that ran here."""
    share: float
    """Of all the answered, 0 to 1."""
    utilisation: float
    """Share of its slots' time spent on executions that were answered, 0 to 1."""
    backlog: Series | None
    """Service time accepted and not done yet, per slot, in seconds."""
    busy: Series | None
    """Utilisation per step."""
    heard_hz: float
    """State records of peers that reached its core, per second of the whole run."""
    jobs_in: int
    """Jobs from peers, whole run."""
    jobs_out: int
    """Jobs handed to peers by own choice, whole run."""
    steals: int
    """Jobs it stole, whole run."""
    granted: int
    """Jobs stolen from it, whole run."""
    hedges: int
    """Second copies it sent, whole run."""
    retries: int
    """Placements after the first of a job, whole run."""
    losses: int
    """Executors it lost or found silent, whole run."""
    adverts: int
    """Own state records sent, whole run."""
    messages: int
    """Messages it sent, gossip too, whole run; 0 where the run did not count them."""
    sent_bytes: int
    """Bytes of these."""


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """One cell of the offload matrix."""

    entry: str
    executor: str
    jobs: int


class Little(msgspec.Struct, frozen=True, kw_only=True):
    """Little's law on the jobs of the run: the mean number in the grid against rate times sojourn."""

    number: float
    """Mean number of open jobs, integrated over the counted span."""
    rate_hz: float
    """Jobs that arrived per second of it."""
    sojourn_s: float
    """Mean time a job was open in it, whatever its outcome."""
    error: float
    """(number - rate x sojourn) / number; 0 to rounding, or the bookkeeping of the simulator is broken."""

    @property
    def holds(self) -> bool:
        """Whether the law holds to rounding."""
        return not abs(self.error) > 1e-6


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a run; times in seconds, NaN where nothing was answered."""

    submitted: int
    answered: int
    ended: dict[str, int]
    """Jobs without a result, by reason."""
    unfinished: int
    """Submitted, and without an outcome at the end."""
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    late: int
    """Answered after their deadline."""
    shares: dict[NodeId, float]
    """Of the answered, by executor."""
    offloaded: float
    """Share of the answered that ran elsewhere than where they came in."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """A run."""

    scenario: str
    about: str
    policy: str
    seed: str
    duration_s: float
    """Last arrival may be here; what is open then has `drain_s` more."""
    warm_up_s: float
    counted_s: float
    """Length of the span whose arrivals count."""
    capacity_hz: float
    """Jobs per second the fleet could serve, all nodes busy with the mix of all sources."""
    load: float
    """Jobs submitted per second over the capacity."""
    submitted: int
    answered: int
    refused: dict[str, int]
    """Jobs without a result, by reason."""
    lost: int
    """No outcome, and nobody works on it any more: 0, or the grid broke its word."""
    late: int
    """Answered after their deadline."""
    unfinished: int
    """Without an outcome when the run ended, `lost` among them."""
    mean_s: float
    p50_s: float
    p95_s: float
    p99_s: float
    max_s: float
    cdf: tuple[tuple[float, float], ...]
    """Points (sojourn time in seconds, share of the answered that took no longer), ascending, few hundred at most."""
    stages: Stages
    goodput_hz: float
    """Answers within the deadline, per second."""
    within: float
    """Share of the submitted that was answered within the deadline."""
    offloaded: float
    """Share of the answered that ran elsewhere than where it came in."""
    hops: tuple[int, ...]
    """Answered jobs by number of moves."""
    nodes: tuple[NodeResult, ...]
    flows: tuple[Flow, ...]
    """Offload matrix, cells with jobs only, by entry and executor."""
    open_jobs: Series | None
    """Jobs open in the whole grid."""
    answers: Series | None
    """Answers per second."""
    little: Little
    violations: int
    """Broken promises of cores: 0, or there is a bug."""
    events: int
    """Calls the engine made."""
    trace_hash: str = ""
    """SHA-256 over all actions of all cores with their times, where it was asked for."""

    @property
    def shares(self) -> dict[str, float]:
        """Share of the answered per node that answered any."""
        return {node.name: node.share for node in self.nodes if node.executed}

    @property
    def miss(self) -> float:
        """Share of the submitted not answered within the deadline; NaN without jobs."""
        return 1.0 - self.within if self.submitted else math.nan
