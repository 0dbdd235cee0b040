"""What a trace file of a daemon holds, record by record. Pure: knows no file and no clock; docs/traces.md is its prose.

A trace is a stream of MessagePack values. Each *life* of a daemon begins with a header, a map; what follows are arrays
whose first element is their kind. Fields are positional and append-only: a reader ignores kinds and trailing fields
that it does not know, so only a change of meaning makes another version.

Models and nodes are told once per life and then go by their number, so that a job takes about 110 bytes.
"""

from collections.abc import Mapping
from typing import Final

import msgspec

MAGIC: Final = b"gridnode_trace"
"""First key of every header."""
VERSION: Final = 1
ANSWERED: Final = "answered"
NOBODY: Final = -1
"""In place of a number of a model or node: there was none."""
QUANTILES: Final = 33
"""Values that stand for a distribution of service times, from its least to its largest at equal steps of rank."""


class Header(msgspec.Struct, frozen=True, kw_only=True):
    """The beginning of a life, or of a file."""

    gridnode_trace: int = VERSION
    """Version of the format; first, so that a file can be told by its first bytes."""
    node: str
    """PeerID."""
    name: str
    """What people call the node."""
    software: str
    """Version of gridnode."""
    epoch: int
    """Boot counter of the node."""
    grid_s: float
    """Grid time at the zero of the times that follow, in seconds since 1970, as it was known then."""
    clock_s: float
    """The same on the machine's monotonic clock: lives of one epoch can be set beside one another by it."""
    policy: str
    executor: str
    """`onnxruntime`, or `emulated`: times that were waited out."""
    scheduler: Mapping[str, object] = {}
    """Configuration of the decision core, as in gridnode.toml."""


class _Record(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What follows a header."""


class ModelRecord(_Record, frozen=True, kw_only=True, array_like=True, tag="model"):
    """A model that later records name by its number."""

    number: int
    name: str
    digest: str
    """Hex SHA-256 of its manifest."""


class NodeRecord(_Record, frozen=True, kw_only=True, array_like=True, tag="node"):
    """A node that later records name by its number."""

    number: int
    name: str
    node: str
    """PeerID."""


class JobRecord(_Record, frozen=True, kw_only=True, array_like=True, tag="job"):
    """A job of a program on this node, written at its outcome."""

    at_s: float
    """When it came in, on the monotonic clock, in seconds from the header's zero; negative where it came before."""
    grid_s: float
    """The same in grid time, as it was known at the outcome: a board's clock may be set late."""
    models: tuple[int, ...]
    """Numbers of the models that would do, best first."""
    priority: int
    """0 is served first."""
    budget_s: float | None
    """Time that it was given; None for no deadline."""
    input_bytes: int
    output_bytes: int
    """Of the answer, with what describes it; 0 without one."""
    stream: str
    """Stands for its client and stream without telling them; empty for a single request."""
    newest_wins: bool
    """Whether a newer frame of the stream took its place while it waited."""
    sojourn_s: float
    """From its coming in to its outcome."""
    waiting_s: float
    """In the executor's queue; 0 without an answer."""
    service_s: float
    """On the executor; 0 without an answer."""
    hops: int
    """Moves between nodes, of an answered one."""
    executor: int
    """Number of the node that answered; NOBODY without an answer."""
    model: int
    """Number of the model that answered; NOBODY without an answer."""
    outcome: str
    """`answered`, or the reason why not (docs/wire.md)."""


class Measured(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What a model costs on this node."""

    model: int
    """Its number."""
    mean_s: float
    """Mean service time, measured alone before the model was offered."""
    p95_s: float
    """95 % quantile of the same."""
    memory_bytes: int
    load_s: float
    """From cold to ready."""
    max_batch: int
    runs: int
    """Jobs executed here since the daemon began, whoever sent them."""
    total_s: float
    """Service time of them all."""
    quantiles_s: tuple[float, ...]
    """QUANTILES values of a uniform sample of their service times; empty before the first."""


class Way(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """The way to a peer."""

    node: int
    """Number of the peer."""
    rtt_s: float
    """Round trip of a small message, as learned."""


class DeviceRecord(_Record, frozen=True, kw_only=True, array_like=True, tag="device"):
    """What this node is, as a simulator needs it; the newest of a life counts."""

    at_s: float
    slots: int
    """Jobs served at once."""
    cpu_share: float
    """Share of the processors that a worker may use."""
    threads: int
    """Per run."""
    slow_down: float
    """Factor on service times from other load or heat, now."""
    models: tuple[Measured, ...]
    ways: tuple[Way, ...]


class LostRecord(_Record, frozen=True, kw_only=True, array_like=True, tag="lost"):
    """Jobs that came in and are not in this file."""

    at_s: float
    jobs: int


Record = ModelRecord | NodeRecord | JobRecord | DeviceRecord | LostRecord
KINDS: Final = frozenset({"model", "node", "job", "device", "lost"})
