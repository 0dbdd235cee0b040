"""A scenario: the fleet, what lies between its nodes, who sends what, what goes wrong, as frozen records with a seed.

Owns the records; reads no file and knows no simulator. `simulator.scenariorules` checks what hangs together,
`simulator.scenariotext` makes one of TOML text, `simulator.runner` makes a world of one. Lengths of time are seconds,
sizes bytes, rates of links megabits per second.
"""

from fnmatch import fnmatchcase
from math import inf
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from scheduler.config import CoreConfig

NODES_MAX = 20_000
"""Nodes of a fleet: a simulated node takes about 0.2 MB."""
PRIORITY_MAX = 3

Positive = Annotated[float, Meta(gt=0)]
NotNegative = Annotated[float, Meta(ge=0)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(pattern="^[A-Za-z][A-Za-z0-9_.-]{0,62}$")]


class SimulationError(Exception):
    """Root of the errors of the simulator: something about a simulation that its author can put right."""


class ScenarioError(SimulationError):
    """A scenario breaks a rule.

    Parameters
    ----------
    message : str
        Value, allowed range or choices, remedy.
    path : tuple of str and int
        Keys from the top to the value that is wrong; empty for the whole.
    line : int, optional
        Of the text, from 1.
    """

    def __init__(self, message: str, path: tuple[str | int, ...] = (), line: int | None = None) -> None:
        where = "" if line is None else f"line {line}: "
        key = f"{path_text(path)}: " if path else ""
        super().__init__(f"{where}{key}{message}")
        self.message = message
        self.path = path
        self.line = line


def path_text(path: tuple[str | int, ...]) -> str:
    """Write a path of keys as people do.

    Examples
    --------
    >>> path_text(("nodes", 0, "count"))
    'nodes[0].count'
    """
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


class _Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a scenario."""


# ---------------------------------------------------------------- the fleet


class ModelSpec(_Record, frozen=True, kw_only=True):
    """A model, and what it costs."""

    name: Name
    """How sources and nodes name it."""
    input_bytes: Bytes | None = None
    """Of a request; the profile's by default, and 224 x 224 pixels without one."""
    output_bytes: Bytes = 4096
    """Of a result."""
    mean_s: dict[str, Positive] = {}
    """Mean service time of one request by device. A device that is not here is looked up in simulator.devices under
    `profile`."""
    measured_s: dict[str, Annotated[tuple[Positive, ...], Meta(min_length=1)]] = {}
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


class LinkSpec(_Record, frozen=True, kw_only=True):
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


class NodeGroup(_Record, frozen=True, kw_only=True):
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


class NetworkSpec(_Record, frozen=True, kw_only=True):
    """What lies between nodes."""

    link: str | LinkSpec = LinkSpec()
    """Of nodes that have none of their own: name of a profile of simulator.devices, or a table."""
    sharing: Literal["none", "ideal", "cm02", "lv08", "pooled"] = "none"
    """How concurrent transfers share bandwidth, max-min fairly: see simulator.flows. none: each way sends one message
    after the other, and different ways do not meet."""
    media_mbit_s: dict[str, Positive] = {}
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


# ---------------------------------------------------------------- who sends what


class HotSpot(_Record, frozen=True, kw_only=True):
    """One entry gets more than the others, and not always the same."""

    share: Share = 0.5
    """Of all arrivals, to the one that is hot."""
    every_s: Positive = 60.0
    """After this time the next is."""


class Stage(_Record, frozen=True, kw_only=True):
    """A second job with the result of the first, within the time of the first; both count as one frame."""

    model: str
    """The second one's."""
    probability: Share = 1.0
    """That a frame needs it."""
    input_bytes: Bytes | None = None
    """The model's by default."""
    then: "Stage | None" = None
    """A third one, and so on."""


class _Source(_Record, frozen=True, kw_only=True, tag_field="kind"):
    """What all sources have in common."""

    name: Name | None = None
    """Seeds its draws; its place in the list by default, so that a named source keeps them when others come."""
    entries: tuple[str, ...] | str = "all"
    """Where jobs come in: `all`, or names, groups, patterns such as `pi*`, one or several."""
    entry_zipf: NotNegative = 0.0
    """Exponent of Zipf's law over the entries, in their order; 0: all alike."""
    models: tuple[str, ...] = ()
    """What is asked for; the first model by default."""
    model_zipf: NotNegative = 0.0
    """Exponent of Zipf's law over the models; 0: all alike."""
    rungs: bool = False
    """Whether any of the models will do, the first best; otherwise each job wants one, drawn."""
    deadline_s: Positive = 5.0
    """Budget of a job; inf for none."""
    priority: Annotated[int, Meta(ge=0, le=PRIORITY_MAX)] = 1
    """0 is served first."""
    input_bytes: Bytes | None = None
    """The model's by default."""
    start_s: NotNegative = 0.0
    """Begin ..."""
    end_s: Positive = inf
    """... and end of the arrivals; the end of the scenario by default."""
    then: Stage | None = None
    """What follows a job; see Stage."""


class RatedSource(_Source, frozen=True, kw_only=True, tag_field="kind"):
    """Jobs at a mean rate."""

    rate_hz: Positive | None = None
    """Of all entries together. Either this or `load`."""
    load: Positive | None = None
    """The same as a share of what the fleet can serve."""
    together: bool = False
    """Whether one law makes the arrivals of all entries, which are then drawn; otherwise each entry has its own."""
    hot_spot: HotSpot | None = None
    """A node that gets more than the others; none by default."""


class PoissonSource(RatedSource, frozen=True, kw_only=True, tag_field="kind", tag="poisson"):
    """Independent arrivals."""


class BurstySource(RatedSource, frozen=True, kw_only=True, tag_field="kind"):
    """Two rates in turn; the mean is `rate_hz`."""

    burst: Annotated[float, Meta(ge=1)] = 3.0
    """Rate in a burst over the mean."""
    burst_s: Positive = 2.0
    """Length of a burst."""
    calm_s: Positive = 8.0
    """Time between two bursts."""


class MmppSource(BurstySource, frozen=True, kw_only=True, tag_field="kind", tag="mmpp"):
    """Markov-modulated Poisson arrivals: bursts and calms of exponential length with these means."""


class SquareSource(BurstySource, frozen=True, kw_only=True, tag_field="kind", tag="square"):
    """Poisson arrivals whose rate is a square wave, which begins calm."""


class GammaSource(RatedSource, frozen=True, kw_only=True, tag_field="kind", tag="gamma"):
    """Renewals with gamma distributed times between arrivals."""

    cv: Positive = 2.0
    """Of the time between two arrivals; 1 is Poisson."""


class CameraSource(_Source, frozen=True, kw_only=True, tag_field="kind", tag="camera"):
    """Cameras that send frames."""

    count: Annotated[int, Meta(ge=1, le=100_000)] = 1
    """Cameras; they are spread over the entries in turn, or by Zipf's law."""
    fps: Positive | None = None
    """Frames per second of one. Either this or `load`."""
    load: Positive | None = None
    """Of all cameras together, as a share of what the fleet can serve."""
    aligned: bool = False
    """Whether all begin at once, the worst case; otherwise at random phases."""
    jitter_s: NotNegative = 0.001
    """Standard deviation of a frame's time, normal, cut at 3 of it."""
    on_s: Positive | None = None
    """Mean time with motion, exponential; only then frames are sent. None: always."""
    off_s: Positive = 20.0
    """Mean time without, exponential."""
    stream: bool = True
    """Whether the frames of a camera are a stream."""
    newest_wins: bool = False
    """Whether a newer frame takes the place of one that waits."""


class RecordedJob(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a daemon recorded of a job, beside its time."""

    entry: str
    """Name of the node where it came in."""
    models: Annotated[tuple[str, ...], Meta(min_length=1)]
    """That would do, best first."""
    deadline_s: Positive
    """Budget; inf for none."""
    priority: Annotated[int, Meta(ge=0, le=PRIORITY_MAX)]
    input_bytes: Bytes
    output_bytes: Bytes
    """0 where there was no answer: the model's."""
    stream: str = ""
    newest_wins: bool = False


class ReplaySource(_Source, frozen=True, kw_only=True, tag_field="kind", tag="replay"):
    """Recorded arrivals: timestamps (CSV), or traces that daemons recorded.

    Of a daemon's trace, models, deadlines, priorities, sizes and streams are the recorded ones. What the scenario gives
    itself comes first: `input_bytes` is that of all jobs, and `models` are asked for where none of a job's is known.
    """

    file: tuple[str, ...] | str = ""
    """Path from the scenario file, or several of daemons' traces, one per node; read by gridnode.simulation.load."""
    align: Literal["clock", "start"] = "clock"
    """Several traces: clock, as their clocks say; start, all begin at once."""
    times_s: tuple[NotNegative, ...] = ()
    """In place of a file: ascending, from 0."""
    jobs: tuple[RecordedJob, ...] = ()
    """What else is known of each of `times_s`; comes from a daemon's trace."""
    places: dict[str, str] = {}
    """Recorded node to node of the scenario. Others come in at the node of their name, if that is one of `entries`."""
    spread: bool = False
    """Whether recorded nodes without a place are given `entries` in turn; otherwise they are an error."""
    speed_up: Positive = 1.0
    """Divides all times."""
    keep: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Share of the arrivals that is kept, drawn."""


Source = PoissonSource | MmppSource | SquareSource | GammaSource | CameraSource | ReplaySource


# ---------------------------------------------------------------- what goes wrong


class _Fault(_Record, frozen=True, kw_only=True, tag_field="kind"):
    """What all faults of nodes have in common."""

    nodes: tuple[str, ...] | str
    """Names, groups, or patterns."""
    at_s: NotNegative = 0.0
    """When it begins."""


class CrashFault(_Fault, frozen=True, kw_only=True, tag_field="kind", tag="crash"):
    """Ends nodes as kill -9 would."""

    back_after_s: Positive = inf
    """They return after this time, with a new epoch and nothing in memory."""


class PauseFault(_Fault, frozen=True, kw_only=True, tag_field="kind", tag="pause"):
    """Makes nodes silent, as SIGSTOP would."""

    for_s: Positive
    """How long."""


class SlowFault(_Fault, frozen=True, kw_only=True, tag_field="kind", tag="slow"):
    """Makes nodes slower without their saying so."""

    factor: Positive
    """On service times."""
    for_s: Positive = inf
    """How long; to the end by default."""


class DriftFault(_Fault, frozen=True, kw_only=True, tag_field="kind", tag="drift"):
    """Makes the clock of nodes run at another rate."""

    rate: Annotated[float, Meta(ge=0.5, le=2)]
    """Seconds on their clock per second."""


class LiarFault(_Fault, frozen=True, kw_only=True, tag_field="kind", tag="liar"):
    """Makes nodes tell that they are idle, and serve badly."""

    does: Literal["delay", "drop", "honest_work"] = "delay"
    """Answers late; never answers; or only its records lie."""
    delay_s: NotNegative = 2.0
    """Added to every answer of one that delays."""
    for_s: Positive = inf
    """How long; to the end by default."""


class ChurnFault(_Fault, frozen=True, kw_only=True, tag_field="kind", tag="churn"):
    """Ends nodes and brings them back, again and again."""

    up_s: Positive = 300.0
    """Mean time up, exponential."""
    down_s: Positive = 30.0
    """Mean time down, exponential."""
    for_s: Positive = inf
    """How long; to the end by default."""


class PartitionFault(_Record, frozen=True, kw_only=True, tag_field="kind", tag="partition"):
    """Lets nothing pass between groups of nodes."""

    groups: Annotated[tuple[tuple[str, ...] | str, ...], Meta(min_length=2)]
    """Names, groups or patterns of each part; nodes in none of them reach all."""
    at_s: NotNegative = 0.0
    """When it begins."""
    for_s: Positive = inf
    """How long; to the end by default."""


Fault = CrashFault | PauseFault | SlowFault | DriftFault | LiarFault | ChurnFault | PartitionFault


# ---------------------------------------------------------------- the whole


class MeasureSpec(_Record, frozen=True, kw_only=True):
    """What is measured."""

    series_points: Annotated[int, Meta(ge=0, le=10_000)] = 200
    """Values of a series; fewer where there are many nodes. 0: no series."""
    cdf_points: Annotated[int, Meta(ge=2, le=10_000)] = 200
    """Points of the distribution of sojourn times."""
    traffic: bool = False
    """Whether messages and their bytes are counted; a tenth of the time."""
    trace_jobs: Annotated[int, Meta(ge=1, le=1_000_000)] = 20_000
    """Jobs of a trace file, the first that arrive."""


class Scenario(_Record, frozen=True, kw_only=True):
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
