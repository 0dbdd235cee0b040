"""What a machine and a network are, besides the models and the links: bounds, costs, what is modelled at all.

Records that a scenario fills in; `simulator.machine` and `simulator.network` go by them.
"""

from collections.abc import Mapping

import msgspec

from simulator.flowmodels import FlowModel


class Heat(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A machine that slows down when it is at work for long.

    Notes
    -----
    Assumed, not measured: warmth follows the load with a first-order lag, from 0 when idle to 1 when always busy;
    above `threshold` the machine slows down, linearly up to `factor`.
    """

    factor: float = 2.0
    """On service times when hottest, >= 1."""
    threshold: float = 0.6
    """Warmth above which it slows down, 0 to below 1."""
    lag_s: float = 120.0
    """In which warmth comes within 37 % of the load, > 0."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if not (self.factor >= 1.0 and 0.0 <= self.threshold < 1.0 and self.lag_s > 0.0):
            raise ValueError(f"{self}: factor must be at least 1, threshold from 0 to below 1, lag_s above 0")

    def slow_down(self, warmth: float) -> float:
        """Return the factor on service times at a warmth of 0 to 1."""
        return 1.0 + (self.factor - 1.0) * max(0.0, (warmth - self.threshold) / (1.0 - self.threshold))


class MachineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a machine is, besides its models."""

    memory_bytes: int | None = None
    """For models. Loading more fails as it would; the core has a bound of its own (QueueConfig). None: enough."""
    heat: Heat | None = None


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What connections cost, how gossip spreads, whether bandwidth is shared."""

    connect_round_trips: int = 3
    """TCP, TLS 1.3 with the confirmation byte, and Hello. 0: connections are there."""
    connect_timeout_s: float = 5.0
    """How long an attempt waits for a silent peer."""
    connect_cpu_s: float = 0.0
    """Processor time of a handshake on either side: the handshake takes longer by both, and so does what either
    machine serves meanwhile. See connection.HANDSHAKE_CPU_S."""
    handshake_bytes: tuple[tuple[int, int], ...] = ()
    """Bytes there and back of each round trip of a handshake; a segment each where not given. See
    connection.HANDSHAKE_BYTES."""
    idle_connections: int = 4
    """Idle connections kept per peer."""
    connections_per_peer: int | None = None
    """Connections asked for of one peer at once; further errands wait. None for no bound. See
    connection.DAEMON_POOL."""
    connections_max: int | None = None
    """The same of all peers; the one idle longest makes room."""
    idle_s: float | None = None
    """Time after which an idle connection is closed; None for never."""
    forwards_gossip: bool = False
    """Whether a node passes gossip on to its neighbours (a mesh); otherwise each node hears each other directly."""
    gossip_cpu_s: float = 0.0
    """Processor time that a gossip message takes of the machine of each node that hears it. See
    gossip.GOSSIP_CPU_S."""
    sharing: FlowModel | None = None
    """How concurrent transfers share bandwidth; None: each direction sends one message after the other."""
    media: Mapping[str, float] = {}
    """Bandwidth in bytes per second of the channels that `Access.medium` names."""
    is_metered: bool = False
    """Whether messages and their bytes are counted: sizes are computed for each then."""
