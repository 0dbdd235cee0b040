"""What the decision core may be told: every bound and every rule's parameter, with unit, default and reason.

One frozen record per mechanism. A mechanism has an `enabled` field where an experiment may want to do without it;
the defaults are what the daemon runs. [pilot] marks a value found by the pilot experiments of the mixed fleet
(16 boards of 263 ms and 4 servers of 11 ms service time), [simulated] one found by the simulator with that fleet.
"""

import math
from typing import Literal

import msgspec


def _check_positive(record: msgspec.Struct, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if not value > 0:
            raise ValueError(f"{type(record).__name__}.{name} is {value}; it must be above 0")


def _check_not_negative(record: msgspec.Struct, *names: str) -> None:
    for name in names:
        value = getattr(record, name)
        if not value >= 0:
            raise ValueError(f"{type(record).__name__}.{name} is {value}; it must be 0 or more")


def _check_between(record: msgspec.Struct, name: str, low: float, high: float) -> None:
    value = getattr(record, name)
    if not low <= value <= high:
        raise ValueError(f"{type(record).__name__}.{name} is {value}; it must be from {low} to {high}")


class PlacementConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the node for a job is chosen."""

    policy: str = "capd"
    """Name of the policy, with arguments where it takes any: `jsq(d=2)`. scheduler.variants has them all."""
    sample: int = 3
    """Peers compared per decision (d). One is random, all of them herd on stale news; with states on every reply 3
    halves the p99 of 2 at the same mean [pilot]."""
    hysteresis: float = 0.10
    """Least predicted gain over staying, as a share of the local prediction, 0 to 1. Below it a move costs bytes for
    noise. 0 switches it off."""
    wait_weight: float = 2.0
    """Seconds of own time that a second of waiting counts for beyond itself when nodes are compared: whoever joins a
    queue has all who come until it is empty wait longer. 82 against 147 ms mean at load 0.85 [simulated]: slow nodes
    are used before the fast ones are full. 0 switches it off, and each job looks after itself."""
    hop_limit: int = 2
    """Most moves of a job between nodes; coming home to the entry node is always allowed."""
    slack: float = 0.75
    """Share of the time to spare, which is a job's budget without way and p95 service, that its predicted wait may
    use, 0 to 1. The rest pays for the error of the estimate: at load 1.3 with budgets of 0.5 s more is answered in time
    with 0.75 than with 1, and less than 1 % of what was accepted comes too late [simulated]. 1 switches it off, with
    the allowance for the service."""
    shedding: bool = True
    """Refuse at arrival what no known node can finish in time. Without it goodput falls to 0 % at load 1.3 [pilot]."""
    expire: bool = True
    """End jobs at their deadline wherever they are. Experiments on mean sojourn times switch it off."""
    default_deadline_s: float = 5.0
    """Budget, in seconds, of a job that names no deadline (an infinite one)."""
    inflight_correction: bool = True
    """Count own jobs on their way to a peer that its state does not show yet: 71 against 1772 ms mean [pilot]."""
    piggyback: bool = True
    """Use the states that come with replies, refusals and acknowledgements: results then do not depend on the gossip
    period [pilot]."""
    receiver: Literal["keeps", "reconsiders", "redecides"] = "reconsiders"
    """What a node does with a peer's job: serve it whenever it can, compare its own estimate with the sender's, or ask
    the policy as for an own job."""
    reconsider_factor: float = 1.0
    """A receiver looks for a better place when its own estimate is above this factor times the sender's plus
    `reconsider_allowance_s`. It knows its own queue, so its word is worth more than the sender's, and it moves a job
    only for a gain. The larger the grid, the older the sender's news, the more this is what keeps queues even: 36.4
    against 38.2 ms mean of 200 nodes at load 0.7 with 1.25 plus 10 ms [simulated]."""
    reconsider_allowance_s: float = 0.0
    """Seconds added to the factor."""
    cooling_s: float = 0.2
    """How long a peer that refused is left alone, in seconds. Its state says the rest."""
    extra_look: int = 32
    """Most peers looked at once more for a job that would miss its deadline on every sampled one."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check_positive(self, "sample", "default_deadline_s", "reconsider_factor", "extra_look")
        _check_not_negative(self, "hop_limit", "cooling_s", "reconsider_allowance_s", "wait_weight")
        _check_between(self, "hysteresis", 0.0, 1.0)
        _check_between(self, "slack", 0.01, 1.0)


class PeersConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is kept of other nodes."""

    active: int = 32
    """Peers that jobs are placed on, drawn by speed. Connections to them stay warm, and a decision costs the same
    in a grid of any size."""
    replace_every_s: float = 10.0
    """One active peer is exchanged this often, in seconds, so that every node is met in time."""
    peers: int = 4096
    """Most peers remembered. The memory of a small board bounds it: about 2 kB each."""
    tables: int = 512
    """Most capability tables kept, by digest. Equal devices share one."""
    table_entries: int = 256
    """Most models believed of one peer: what it claims beyond them is ignored."""
    pull_retry_s: float = 1.0
    """Least time between two pulls of one peer's table, in seconds; doubles up to 32 times that."""
    fresh_periods: float = 3.0
    """Age of a record, in expected periods, up to which it counts fully; older peers are drawn less often. Age never
    says that a peer is dead."""
    pool_refresh_s: float = 1.0
    """Longest time the drawing weights may lag behind the estimates, in seconds."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check_positive(
            self, "active", "replace_every_s", "peers", "tables", "table_entries", "pull_retry_s", "fresh_periods"
        )
        _check_not_negative(self, "pool_refresh_s")
        if self.peers < self.active:
            raise ValueError(f"PeersConfig.peers is {self.peers}; it must be at least active ({self.active})")


class EstimateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How service times and links are learned."""

    alpha: float = 0.2
    """Weight of a new sample in the moving averages, above 0 and at most 1."""
    prior_weight: float = 4.0
    """Samples that the advertised table is worth against what was seen."""
    rtt_prior_s: float = 0.005
    """Round trip assumed before one was measured, in seconds: one Wi-Fi hop."""
    goodput_prior_bytes_s: float = 12.5e6
    """Goodput assumed before one was measured, in bytes per second: 100 Mb/s."""
    goodput_sample_bytes: int = 32_768
    """Smallest transfer whose goodput counts, in bytes: smaller ones fit socket buffers and look infinitely fast."""
    reversion_services: float = 4.0
    """Time in which what a record says of its node's queue is forgotten in favour of the mean of its records, in
    services of the job there: anything from 3 to 12 does, 39 against 43 ms mean at load 0.7 [simulated]. 0 switches
    it off: a record then counts fully until the next one."""
    reversion_horizon_s: float = 5.0
    """Time over which that mean is taken, in seconds: some gossip periods, and short enough to follow the load."""
    reversion_records: float = 16.0
    """Records over which it is taken at least, since one is a sample of the wait and not its mean: in a large grid a
    node hears of each of its peers once in some seconds. 38.2 ms with 8 against 40.0 with 1, 200 nodes at load 0.7
    [simulated]."""
    trust: bool = True
    """Whether peers that answer later than their estimates lose share."""
    trust_tolerance: float = 2.0
    """Lateness that is normal, as a factor on the estimate ..."""
    trust_allowance_s: float = 0.05
    """... plus this much, in seconds: queues fluctuate between a state and the job's arrival."""
    trust_limit: float = 100.0
    """Largest factor on a peer's estimates."""
    trust_half_life_s: float = 10.0
    """Time in which the excess of the factor halves without new evidence, in seconds: nothing is for ever."""
    setup_allowance_s: float = 0.5
    """Most of the time to make a connection that is not counted as lateness, in seconds. Three round trips and two
    handshakes on a slow board stay below it; a peer that is slow to accept on purpose gains no more."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check_between(self, "alpha", 1e-6, 1.0)
        _check_positive(self, "rtt_prior_s", "goodput_prior_bytes_s", "trust_tolerance", "trust_half_life_s")
        _check_positive(self, "reversion_horizon_s")
        _check_between(self, "reversion_records", 1.0, 1e6)
        _check_not_negative(
            self, "reversion_services", "prior_weight", "goodput_sample_bytes", "trust_allowance_s", "setup_allowance_s"
        )
        _check_between(self, "trust_limit", 1.0, 1e6)


class WindowConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How many jobs may be open at one peer: additive increase, multiplicative decrease."""

    enabled: bool = True
    """Whether the window bounds anything."""
    initial: float = 4.0
    """Jobs at first: enough to learn from, few enough to lose."""
    limit: float = 256.0
    """Most jobs open at one peer."""
    waiting_s: float = 0.05
    """A job that waited less than this at the peer, in seconds, opens the window by one."""
    late_factor: float = 2.0
    """A job that took longer than this factor times its estimate (and `waiting_s`) closes it by `decrease`."""
    decrease: float = 0.5
    """Factor on the window, above 0 and below 1. It never falls below one job."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check_positive(self, "initial", "limit", "late_factor")
        _check_not_negative(self, "waiting_s")
        _check_between(self, "decrease", 0.01, 0.99)


class QueueConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of the local queue, of execution and of models in memory."""

    bound_s: float = 2.0
    """Longest predicted wait a job is taken for, in seconds: a queue is bounded by the time it stands for, since ten
    jobs are nothing on a server and hopeless on a small board. Infinity switches it off."""
    jobs: int = 10_000
    """Most jobs at this node at once, waiting, running and away: bounds memory where jobs are tiny."""
    slots: int = 1
    """Jobs served at once."""
    batch_jobs: int = 8
    """Most jobs of one execution, whatever a model's own limit is. 1 switches batching off."""
    batch_wait_s: float = 0.0
    """Longest time a free slot waits for a batch to fill, in seconds, where batches of the model were seen to pay.
    0 switches waiting off: a slot that takes what is there finds full batches by itself where they are needed, and
    serves at once where they are not (docs/experiments/batches.md)."""
    batch_wait_share: float = 0.1
    """The same as a share of the first job's time to spare."""
    batch_pays_below: float = 0.8
    """A batch pays when a further job in it takes less than this share of one alone; others are served one by one,
    since all jobs of a batch are answered at its end."""
    batch_look: int = 64
    """Most waiting jobs looked through for a batch."""
    receive_budget_bytes: int = 64 * 1024 * 1024
    """Payload bytes of accepted offers on their way here, node-wide."""
    model_memory_bytes: int = 1 << 30
    """Memory for loaded models, in bytes; past it the one unused for longest is evicted."""
    load_patience: float = 3.0
    """A model not ready after this factor times its known load time plus 5 s is given up for the waiting jobs."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check_positive(self, "bound_s", "jobs", "slots", "batch_jobs", "batch_look", "load_patience")
        _check_not_negative(self, "receive_budget_bytes", "model_memory_bytes", "batch_wait_s")
        _check_between(self, "batch_wait_share", 0.0, 1.0)
        _check_between(self, "batch_pays_below", 0.0, 1.0)


class OfferConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When a payload waits for the peer's word."""

    enabled: bool = True
    """Whether payloads are offered at all."""
    rtts: float = 4.0
    """A payload is offered first when its predicted transfer takes longer than this many round trips: the offer costs
    one, a refusal after the transfer costs the transfer."""
    prior_bytes: int = 65_536
    """Size above which a payload is offered before the link was measured, in bytes."""
    expire_s: float = 2.0
    """How long room is kept for an accepted offer, in seconds, beyond its predicted transfer."""
    refuse_factor: float = 1.25
    """An offer is refused when the own estimate is above this factor times the sender's plus `refuse_allowance_s`: the
    sender has to begin again then, so a small difference is no reason."""
    refuse_allowance_s: float = 0.01
    """Seconds added to the factor, so that jobs of a few milliseconds are not refused for nothing."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check_positive(self, "rtts", "expire_s", "refuse_factor")
        _check_not_negative(self, "prior_bytes", "refuse_allowance_s")


class WatchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How executors show that they are at work, and when they are taken for silent."""

    acknowledge_s: float = 0.05
    """An executor that has not answered after this time says ACCEPTED, in seconds."""
    progress_s: float = 0.5
    """Time between two PROGRESS reports after that, in seconds."""
    missed: int = 2
    """Reports missed before an executor is silent."""
    grace_s: float = 0.2
    """Allowance on each of these waits, in seconds: a busy board's event loop is late by tens of milliseconds."""
    transfer_factor: float = 3.0
    """A payload may take this factor times its predicted transfer before its executor counts as silent."""
    quarantine_s: float = 1.0
    """First time a silent peer gets no jobs, in seconds; doubles with each silence up to `quarantine_limit_s`. Any
    answer of it to a job of ours ends it."""
    quarantine_limit_s: float = 60.0
    """Longest quarantine, in seconds."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check_positive(self, "acknowledge_s", "progress_s", "missed", "transfer_factor", "quarantine_s")
        _check_not_negative(self, "grace_s")
        if self.quarantine_limit_s < self.quarantine_s:
            raise ValueError(
                f"WatchConfig.quarantine_limit_s is {self.quarantine_limit_s}; "
                f"it must be at least quarantine_s ({self.quarantine_s})"
            )


class RetryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often a job is placed again. A lost executor is uncharged once per job; all else takes a token."""

    ratio: float = 0.1
    """Tokens earned per placed job: retries amplify load by at most this share."""
    burst: float = 64.0
    """Most tokens kept, and how many there are at the start: one peer's jobs may all need one at the same time."""
    losses: int = 2
    """Executors lost under one key after which the job itself is suspected (POISON)."""
    refusals: int = 1
    """Refusals by peers after which a job stays here or is refused."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check_not_negative(self, "ratio", "burst", "refusals")
        _check_positive(self, "losses")


class StealConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an idle node asks for work."""

    enabled: bool = True
    """Whether it does."""
    victims: int = 3
    """Random peers compared by backlog."""
    gain: float = 2.0
    """A victim's backlog must be at least this factor times what a job would take here, with its way."""
    backoff_s: float = 0.05
    """Wait after an empty answer, in seconds; doubles up to `backoff_limit_s`."""
    backoff_limit_s: float = 1.0
    """Longest wait between two attempts, in seconds."""
    room: int = 4
    """Most jobs asked for at once, per slot."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check_positive(self, "victims", "gain", "backoff_s", "room")
        if self.backoff_limit_s < self.backoff_s:
            raise ValueError(
                f"StealConfig.backoff_limit_s is {self.backoff_limit_s}; "
                f"it must be at least backoff_s ({self.backoff_s})"
            )


class HedgeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A second copy of a job that takes unusually long, at another node. Off by default: it runs jobs twice."""

    share: float = 0.0
    """Most copies per job placed, 0 to 1. 0 switches hedging off; 0.02 is plenty."""
    burst: float = 4.0
    """Most copies that may be made at once after a time without any."""
    deviations: float = 2.0
    """A copy is made when a job has taken longer than its estimate by this many mean deviations of what jobs take
    beyond theirs, above the mean of that: about the p95, which for a normal error is at 2.06."""
    busy_below: float = 0.7
    """Copies are made only while less than this share of the active peers is busy: a full grid has no time for
    anything twice."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check_between(self, "share", 0.0, 1.0)
        _check_between(self, "burst", 1.0, 1000.0)
        _check_not_negative(self, "deviations")
        _check_between(self, "busy_below", 0.0, 1.0)


class ProbeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How policies that ask peers for their state do so."""

    timeout_s: float = 0.05
    """Longest wait for the answers before a job is placed without them, in seconds: a few round trips."""
    open: int = 256
    """Most questions without an answer; jobs beyond are placed by what is known."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check_positive(self, "timeout_s", "open")


class AdvertConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How often the node's state record is gossiped."""

    period_s: float = 2.0
    """Mean time between two records, in seconds."""
    jitter: float = 0.1
    """Each period is drawn from 1 - jitter to 1 + jitter times the mean: synchronised gossip synchronises mistakes."""
    heard_hz: float = 8.0
    """Records a node is to hear per second from all others together: each sends at most heard_hz / N."""
    start_hz: float = 32.0
    """First records a node is to hear per second where many nodes start together, as after a power failure: 2,000 have
    told theirs after a minute. At 6 ms of processor time for each it is a fifth of one core."""
    burst: float = 2.0
    """Records that may follow at once after a quiet time."""
    on_change: bool = True
    """Whether a record is sent when the load has changed much, too, and not only once per period."""
    change_s: float = 0.25
    """Change of backlog worth a record at once: more than this, in seconds, ..."""
    change_share: float = 0.5
    """... and more than this share of the backlog last told."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check_positive(self, "period_s", "heard_hz", "start_hz")
        _check_between(self, "jitter", 0.0, 0.9)
        _check_between(self, "burst", 1.0, 1000.0)
        _check_not_negative(self, "change_s", "change_share")


class CoreConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything the decision core may be told."""

    placement: PlacementConfig = PlacementConfig()
    peers: PeersConfig = PeersConfig()
    estimate: EstimateConfig = EstimateConfig()
    window: WindowConfig = WindowConfig()
    queue: QueueConfig = QueueConfig()
    offer: OfferConfig = OfferConfig()
    watch: WatchConfig = WatchConfig()
    retry: RetryConfig = RetryConfig()
    steal: StealConfig = StealConfig()
    hedge: HedgeConfig = HedgeConfig()
    probe: ProbeConfig = ProbeConfig()
    advert: AdvertConfig = AdvertConfig()
    explain: bool = True
    """Whether actions carry the compared candidates in their reason. Off in large simulations: it is a tenth of the
    time."""
    decisions: int = 256
    """Recent placements kept for explanation."""

    def __post_init__(self) -> None:
        """Refuse values, and relations between values, without a meaning."""
        _check_positive(self, "decisions")
        if math.isfinite(self.queue.bound_s) and self.queue.bound_s > self.placement.default_deadline_s:
            raise ValueError(
                f"queue.bound_s is {self.queue.bound_s}; it must not exceed "
                f"placement.default_deadline_s ({self.placement.default_deadline_s}): jobs would expire in the queue"
            )
