"""Who sends what, where and when: the sources of a scenario, as frozen records.

Owns the records; `simulator.feeding` makes arrivals of them. Lengths of time are seconds, sizes bytes.
"""

from math import inf
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from simulator.values import Bytes, Name, NotNegative, Positive, Record, Share

PRIORITY_MAX = 3


class HotSpot(Record, frozen=True, kw_only=True):
    """One entry gets more than the others, and not always the same."""

    share: Share = 0.5
    """Of all arrivals, to the one that is hot."""
    every_s: Positive = 60.0
    """After this time the next is."""


class Stage(Record, frozen=True, kw_only=True):
    """A second job with the result of the first, within the time of the first; both count as one frame."""

    model: str
    """The second one's."""
    probability: Share = 1.0
    """That a frame needs it."""
    input_bytes: Bytes | None = None
    """The model's by default."""
    then: "Stage | None" = None
    """A third one, and so on."""


class AnySource(Record, frozen=True, kw_only=True, tag_field="kind"):
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


class RatedSource(AnySource, frozen=True, kw_only=True, tag_field="kind"):
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


class CameraSource(AnySource, frozen=True, kw_only=True, tag_field="kind", tag="camera"):
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


class ReplaySource(AnySource, frozen=True, kw_only=True, tag_field="kind", tag="replay"):
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
    places: dict[str, str] = msgspec.field(default_factory=dict)
    """Recorded node to node of the scenario. Others come in at the node of their name, if that is one of `entries`."""
    spread: bool = False
    """Whether recorded nodes without a place are given `entries` in turn; otherwise they are an error."""
    speed_up: Positive = 1.0
    """Divides all times."""
    keep: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Share of the arrivals that is kept, drawn."""


Source = PoissonSource | MmppSource | SquareSource | GammaSource | CameraSource | ReplaySource
