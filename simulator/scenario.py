"""A scenario: the fleet, what lies between its nodes, who sends what, what goes wrong, as frozen records with a seed.

Owns the records; reads no file and knows no simulator. `simulator.scenariorules` checks what hangs together,
`simulator.scenariotext` makes one of TOML text, `simulator.runner` makes a world of one. Lengths of time are seconds,
sizes bytes, rates of links megabits per second.
"""

from fnmatch import fnmatchcase
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from scheduler.config import CoreConfig
from simulator.faultspecs import Fault
from simulator.sources import Source
from simulator.values import Bytes, Count, Name, NotNegative, Positive, Record

NODES_MAX = 20_000
"""Nodes of a fleet: a simulated node takes about 0.2 MB."""


# ---------------------------------------------------------------- the fleet


class ModelSpec(Record, frozen=True, kw_only=True):
    """A model, and what it costs."""

    name: Name
    """How sources and nodes name it."""
    input_bytes: Bytes | None = None
    """Of a request; the profile's by default, and 224 x 224 pixels without one."""
    output_bytes: Bytes = 4096
    """Of a result."""
    mean_s: dict[str, Positive] = msgspec.field(default_factory=dict)
    """Mean service time of one request by device. A device that is not here is looked up in simulator.devices under
    `profile`."""
    measured_s: dict[str, Annotated[tuple[Positive, ...], Meta(min_length=1)]] = msgspec.field(default_factory=dict)
    """Service times measured on a device, by device: drawn there in place of `service`, scaled to `mean_s` where that
    has the device."""
    profile: str = ""
    """Name of the model in simulator.devices; the model's own name by default."""
    service: Literal["constant", "lognormal", "gamma", "erlang", "exponential", "empirical"] = "lognormal"
    """Distribution of the service time around the mean."""
    cv: NotNegative | None = None
    """Coefficient of variation, of lognormal, gamma and erlang (there rounded to a whole number of stages); the
    device's by default."""
    values: tuple[Positive, ...] = ()
    """Of an empirical distribution, scaled to the mean."""
    memory_bytes: Bytes | None = None
    """While loaded; the profile's by default, and nothing without one."""
    load_s: NotNegative | None = None
    """From cold to ready; by the device's disk and the profile's memory by default, and at once without them."""
    warm_up: Annotated[float, Meta(ge=1)] | None = None
    """Factor on the first execution after a load; the device's by default."""
    max_batch: Count = 1
    """Requests served together."""
    batch: tuple[Positive, ...] = ()
    """Time of an execution of 1, 2, 3, ... requests over that of one; the first is 1. Empty: one after the other."""


class LinkSpec(Record, frozen=True, kw_only=True):
    """What lies between a node and all others. A way from a to b has the delays of both halves."""

    latency_s: NotNegative = 0.0005
    """One way, to the middle of the network: two such nodes are twice this apart."""
    jitter_s: NotNegative = 0.0
    """Most that is added, uniformly."""
    loss: Annotated[float, Meta(ge=0, lt=1)] = 0.0
    """Share of packets lost: streams repeat them, gossip does too."""
    up_mbit_s: Positive | None = None
    """From the node; unlimited where not given."""
    down_mbit_s: Positive | None = None
    """To the node; unlimited where not given."""


class NodeGroup(Record, frozen=True, kw_only=True):
    """Equal nodes."""

    device: Name
    """Under which service times are looked up: any word, or a device of simulator.devices."""
    count: Annotated[int, Meta(ge=1, le=NODES_MAX)] = 1
    """Nodes of this kind; 20,000 in all groups together."""
    name: Name | None = None
    """Prefix of their names; the device by default. A group of one has no number."""
    models: tuple[str, ...] | None = None
    """All by default; none for nodes that only take jobs in."""
    loaded: tuple[str, ...] | None = None
    """Models in memory at the start: all by default."""
    slots: Count = 1
    """Jobs served at once."""
    speed: Positive = 1.0
    """Divides the service times of the device."""
    memory_bytes: Bytes | None = None
    """For models; the configuration's by default."""
    link: str | LinkSpec | None = None
    """Name of a profile of simulator.devices, or a table; the network's by default."""
    medium: str | None = None
    """Channel of `network.media_mbit_s` that their traffic goes through, such as one access point."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the nodes."""
        prefix = self.name or self.device
        if self.count == 1:
            return (prefix,)
        width = len(str(self.count - 1))
        return tuple(f"{prefix}{number:0{width}d}" for number in range(self.count))


class NetworkSpec(Record, frozen=True, kw_only=True):
    """What lies between nodes."""

    link: str | LinkSpec = LinkSpec()
    """Of nodes that have none of their own: name of a profile of simulator.devices, or a table."""
    sharing: Literal["none", "ideal", "cm02", "lv08", "pooled"] = "none"
    """How concurrent transfers share bandwidth, max-min fairly: see simulator.flows. none: each way sends one message
    after the other, and different ways do not meet."""
    media_mbit_s: dict[str, Positive] = msgspec.field(default_factory=dict)
    """Channels that groups of nodes share in both directions, by name; they matter with `sharing` only."""
    mesh_degree: Annotated[int, Meta(ge=0, le=64)] = 0
    """Neighbours per node over which gossip floods, 2 or more; the daemon aims at 8. 0: each node hears each other
    directly."""
    gossip_cpu_s: NotNegative = 0.0
    """Processor time a delivered gossip message takes from its receiver's machine; see simulator.gossip."""
    connect_round_trips: Annotated[int, Meta(ge=0, le=10)] = 3
    """TCP, TLS 1.3, Hello. 0: connections are always there."""
    connect_cpu_s: NotNegative = 0.0
    """Processor time of a handshake on either side; see simulator.connection."""
    idle_connections: Annotated[int, Meta(ge=0, le=1024)] = 4
    """Kept per peer."""
    pool: bool = False
    """Whether the daemon's bounds of connections hold and its handshake's bytes move, in place of
    `idle_connections`."""


# ---------------------------------------------------------------- the whole


class MeasureSpec(Record, frozen=True, kw_only=True):
    """What is measured."""

    series_points: Annotated[int, Meta(ge=0, le=10_000)] = 200
    """Values of a series; fewer where there are many nodes. 0: no series."""
    cdf_points: Annotated[int, Meta(ge=2, le=10_000)] = 200
    """Points of the distribution of sojourn times."""
    traffic: bool = False
    """Whether messages and their bytes are counted; a tenth of the time."""
    trace_jobs: Annotated[int, Meta(ge=1, le=1_000_000)] = 20_000
    """Jobs of a trace file, the first that arrive."""


class Scenario(Record, frozen=True, kw_only=True):
    """Everything a run depends on, save the code."""

    name: str
    """Shown in reports."""
    about: str = ""
    """What it is there to show, in one line."""
    seed: str | int = "1"
    """Of every draw: the same seed is the same run."""
    duration_s: Positive = 60.0
    """Time of arrivals, the warm-up included."""
    warm_up_s: NotNegative = 10.0
    """Jobs that arrive before are not counted."""
    drain_s: NotNegative = 30.0
    """Time after the last arrival for what is open; the run ends sooner when nothing is."""
    policy: str = "capd"
    """Name, with arguments where it takes any: `jsq(d=2)`. See scheduler.variants and simulator.oracle."""
    core: CoreConfig = CoreConfig(explain=False)
    """Of the nodes' cores; the policy's name changes it."""
    models: Annotated[tuple[ModelSpec, ...], Meta(min_length=1)]
    """What can be asked for."""
    nodes: Annotated[tuple[NodeGroup, ...], Meta(min_length=1)]
    """The fleet, in groups of equal nodes."""
    network: NetworkSpec = NetworkSpec()
    """What lies between the nodes."""
    sources: tuple[Source, ...] = ()
    """Who sends what, where and when."""
    faults: tuple[Fault, ...] = ()
    """What goes wrong."""
    measure: MeasureSpec = MeasureSpec()
    """What is measured."""

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of all nodes, in their order."""
        return tuple(name for group in self.nodes for name in group.names)

    def model(self, name: str) -> ModelSpec:
        """Return a model by its name."""
        return next(model for model in self.models if model.name == name)

    def models_of(self, group: NodeGroup) -> tuple[str, ...]:
        """Return the names of the models that the nodes of a group can run."""
        return tuple(model.name for model in self.models) if group.models is None else group.models

    def select(self, wanted: tuple[str, ...] | str) -> tuple[str, ...]:
        """Return the nodes that are meant by `all`, names, groups or patterns, in the order of the fleet."""
        patterns = (wanted,) if isinstance(wanted, str) else wanted
        if "all" in patterns:
            return self.node_names
        found = []
        for group in self.nodes:
            is_meant = bool({group.device, group.name} & set(patterns))
            found += [name for name in group.names if is_meant or any(fnmatchcase(name, each) for each in patterns)]
        return tuple(found)
