"""Reads the traces that daemons record (`trace.path`, docs/traces.md): what came in at a node, and what the node is.

Owns reading; knows no scenario. Errors name the file, the byte, and what to do.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgpack  # type: ignore[import-untyped]
import msgspec

from gridnode.errors import ConfigError
from gridnode.tracefile import HEAD_BYTES, REST_MAX_BYTES, before, is_cut_off, is_trace, whole_bytes
from gridnode.tracerecords import (
    ANSWERED,
    KINDS,
    NOBODY,
    VERSION,
    DeviceRecord,
    Header,
    JobRecord,
    LostRecord,
    ModelRecord,
    NodeRecord,
    Record,
)
from simulator.sources import PRIORITY_MAX

JOBS_MAX: Final = 2_000_000
"""Jobs read from one node's trace: about a gigabyte of memory."""
BUDGET_MIN_S: Final = 1e-9
"""In place of budgets that were lost in the digits of the clock."""
FILE_MAX_BYTES: Final = 1 << 30
"""Largest file that is read; a daemon writes files of half `trace.max_bytes`."""


class RecordingError(ConfigError):
    """A file is no trace of a daemon, or damaged, or several do not go together."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One job that came in at a node."""

    at_s: float
    """When it came in, in grid time as far as the node knew it: seconds since 1970."""
    models: tuple[str, ...]
    """Names of the models that would do, best first."""
    priority: int
    budget_s: float
    """Infinite for no deadline."""
    input_bytes: int
    output_bytes: int
    """0 where there was no answer."""
    stream: str
    newest_wins: bool
    sojourn_s: float
    waiting_s: float
    service_s: float
    hops: int
    executor: str
    """PeerID; empty where nobody answered."""
    model: str
    """Name of the one that answered; empty without an answer."""
    outcome: str

    @property
    def is_in_time(self) -> bool:
        """Whether it was answered within its deadline."""
        return self.outcome == ANSWERED and self.sojourn_s <= self.budget_s


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs on the recorded node."""

    mean_s: float
    """Of the jobs executed there, or measured alone where there were none."""
    quantiles_s: tuple[float, ...]
    """Of the jobs executed there; empty for none."""
    runs: int
    memory_bytes: int
    load_s: float
    max_batch: int


class Recording(msgspec.Struct, frozen=True, kw_only=True):
    """All that a node recorded."""

    path: str
    node: str
    """PeerID."""
    name: str
    policy: str
    executor: str
    scheduler: Mapping[str, object]
    slots: int
    models: dict[str, ModelFacts]
    """What it offers, by name."""
    rtts_s: tuple[float, ...]
    """Round trips to its peers, as it learned them."""
    names: dict[str, str]
    """Names of the nodes that answered, by PeerID."""
    jobs: tuple[Entry, ...]
    """In the order in which they came."""
    lost: int
    """Jobs that the recorder says it left out."""
    cut_bytes: int
    """At the end of the files, cut off by a crash and not read."""


class _Life:
    """What is read between one header and the next."""

    def __init__(self, header: Header) -> None:
        self.header = header
        self.models: list[tuple[str, str]] = []
        """Name and digest by number."""
        self.nodes: list[tuple[str, str]] = []
        """Name and PeerID by number."""
        self.jobs: list[JobRecord] = []
        self.device: DeviceRecord | None = None
        self.lost = 0

    def take(self, record: Record) -> None:
        """Take in a record; raises ValueError where it does not fit those before it."""
        match record:
            case JobRecord():
                self._check(record)
                self.jobs.append(record)
            case ModelRecord():
                _number(record.number, self.models).append((record.name, record.digest))
            case NodeRecord():
                _number(record.number, self.nodes).append((record.name, record.node))
            case DeviceRecord():
                if record.slots < 1:
                    raise ValueError(f"a node with {record.slots} slots")
                for each in record.models:
                    _known(each.model, self.models)
                    if not all(map(math.isfinite, (each.mean_s, each.total_s, each.load_s, *each.quantiles_s))):
                        raise ValueError("a model with a time that is none")
                self.device = record
            case LostRecord():
                self.lost += record.jobs

    def _check(self, job: JobRecord) -> None:
        times = (job.at_s, job.grid_s, job.sojourn_s)
        if not all(map(math.isfinite, times)) or (job.budget_s is not None and not job.budget_s >= 0.0):
            raise ValueError("a job with a time that is none")
        if min(job.input_bytes, job.output_bytes) < 0 or not 0 <= job.priority <= PRIORITY_MAX:
            raise ValueError("a job with a size or a priority that is none")
        if not job.models:
            raise ValueError("a job without a model")
        for number in job.models:
            _known(number, self.models)
        if job.model != NOBODY:
            _known(job.model, self.models)
        if job.executor != NOBODY:
            _known(job.executor, self.nodes)


def _number(number: int, listed: list[tuple[str, str]]) -> list[tuple[str, str]]:
    if number != len(listed):
        raise ValueError(f"number {number} where {len(listed)} was due")
    return listed


def _known(number: int, listed: Sequence[object]) -> int:
    if not 0 <= number < len(listed):
        raise ValueError(f"number {number}, which was not told before")
    return number


# ---------------------------------------------------------------- reading


def is_recording(path: Path) -> bool:
    """Return whether a file is a trace of a daemon, of whatever version; raises OSError."""
    with path.open("rb") as file:
        return is_trace(file.read(HEAD_BYTES))


def read_recording(path: Path) -> Recording:
    """Read a node's trace, the file before it first where there is one.

    Raises
    ------
    RecordingError
        It cannot be read, is no trace, of another version, or damaged.
    """
    files = [each for each in (before(path), path) if each.exists()] or [path]
    lives: list[_Life] = []
    cut_bytes = 0
    for each in files:
        found, cut = _read_file(each)
        lives += found
        cut_bytes += cut
    if not lives:
        raise RecordingError(f"{path} is empty; a trace is written some seconds after the first job")
    nodes = {life.header.node for life in lives}
    if len(nodes) > 1:
        raise RecordingError(
            f"{path} and {before(path).name} are of different nodes; put each into a folder of its own"
        )
    if sum(len(life.jobs) for life in lives) > JOBS_MAX:
        raise RecordingError(f"{path} has more than {JOBS_MAX} jobs; record with a smaller trace.max_bytes")
    return _recording(path, lives, cut_bytes)


def _read_file(path: Path) -> tuple[list[_Life], int]:
    """Return the lives of a file, and how many bytes at its end were cut off."""
    try:
        if path.stat().st_size > FILE_MAX_BYTES:
            raise RecordingError(f"{path} has {path.stat().st_size} bytes; at most {FILE_MAX_BYTES} are read")
        data = path.read_bytes()
    except OSError as error:
        raise RecordingError(f"{path} cannot be read: {error.strerror}") from None
    if data and not is_trace(data[:HEAD_BYTES]):
        raise RecordingError(f"{path} is no trace of a daemon; give what trace.path wrote")
    lives: list[_Life] = []
    end = whole_bytes(io.BytesIO(data))
    for start, until in _pieces(data[:end]):
        try:
            _take(data[start:until], lives)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise RecordingError(f"{path}, byte {start}: {error}; {_remedy(start)}") from None
    rest = data[end:]
    if rest and (len(rest) > REST_MAX_BYTES or not is_cut_off(rest)):
        raise RecordingError(f"{path}, byte {end}: no MessagePack from here on; {_remedy(end)}")
    return lives, len(rest)


def _remedy(start: int) -> str:
    return f"the file is damaged there, what comes before can be had with: head -c {start} FILE > REPAIRED"


def _pieces(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield begin and end of the values of a stream, all of which are whole."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(data))
    unpacker.feed(data)
    start = 0
    while start < len(data):
        unpacker.skip()
        yield start, unpacker.tell()
        start = unpacker.tell()


_HEADER: Final = msgspec.msgpack.Decoder(Header)
_RECORD: Final = msgspec.msgpack.Decoder(Record)
_ANY: Final = msgspec.msgpack.Decoder()


def _take(piece: bytes, lives: list[_Life]) -> None:
    """Take in one value of the stream."""
    if is_trace(piece[:HEAD_BYTES]):
        _check_version(piece)
        lives.append(_Life(_HEADER.decode(piece)))
        return
    try:
        record = _RECORD.decode(piece)
    except msgspec.ValidationError:
        value = _ANY.decode(piece)
        if isinstance(value, list) and value and isinstance(value[0], str) and value[0] not in KINDS:
            return  # of a newer version, which may add kinds
        raise
    lives[-1].take(record)


def _check_version(piece: bytes) -> None:
    value = _ANY.decode(piece)
    version = value.get("gridnode_trace") if isinstance(value, dict) else None
    if version != VERSION:
        raise ValueError(f"version {version!r} of the format, this program reads {VERSION}; install the newer release")


# ---------------------------------------------------------------- what it says


def _recording(path: Path, lives: Sequence[_Life], cut_bytes: int) -> Recording:
    header = lives[-1].header
    zeros_s = _zeros_s(lives)
    jobs = [entry for life in lives for entry in _entries(life, zeros_s[life.header.epoch])]
    device = next((life.device for life in reversed(lives) if life.device is not None), None)
    return Recording(
        path=str(path),
        node=header.node,
        name=header.name,
        policy=header.policy,
        executor=header.executor,
        scheduler=header.scheduler,
        slots=device.slots if device is not None else 1,
        models=_model_facts(lives),
        rtts_s=tuple([_sound(way.rtt_s) for way in device.ways]) if device is not None else (),
        names={node: name for life in lives for name, node in life.nodes},
        jobs=tuple(sorted(jobs, key=lambda entry: entry.at_s)),
        lost=sum(life.lost for life in lives),
        cut_bytes=cut_bytes,
    )


def _zeros_s(lives: Sequence[_Life]) -> dict[int, float]:
    """Return, by epoch, the grid time at the zero of the monotonic clock.

    The newest word counts: a board that starts in 1970 learns the time while it runs.
    """
    zeros: dict[int, float] = {}
    for life in lives:
        header = life.header
        zeros[header.epoch] = header.grid_s - header.clock_s
        if life.jobs:
            last = life.jobs[-1]
            zeros[header.epoch] = last.grid_s - last.at_s - header.clock_s
    return zeros


def _entries(life: _Life, zero_s: float) -> Iterator[Entry]:
    for job in life.jobs:
        yield Entry(
            at_s=zero_s + life.header.clock_s + job.at_s,
            models=tuple([life.models[number][0] for number in job.models]),
            priority=job.priority,
            budget_s=math.inf if job.budget_s is None else max(job.budget_s, BUDGET_MIN_S),
            input_bytes=job.input_bytes,
            output_bytes=job.output_bytes,
            stream=job.stream,
            newest_wins=job.newest_wins,
            sojourn_s=job.sojourn_s,
            waiting_s=_sound(job.waiting_s),
            service_s=_sound(job.service_s),
            hops=job.hops,
            executor="" if job.executor == NOBODY else life.nodes[job.executor][1],
            model="" if job.model == NOBODY else life.models[job.model][0],
            outcome=job.outcome,
        )


def _sound(time_s: float) -> float:
    """Return what a peer said of its own time, unless it is nonsense."""
    return time_s if 0.0 <= time_s < math.inf else 0.0


def _model_facts(lives: Sequence[_Life]) -> dict[str, ModelFacts]:
    """Return what the newest account of each model says that knows of executions, or else the newest of all."""
    found: dict[str, ModelFacts] = {}
    for life in lives:
        for each in life.device.models if life.device is not None else ():
            name = life.models[each.model][0]
            if each.runs or not found.get(name) or not found[name].runs:
                found[name] = ModelFacts(
                    mean_s=each.total_s / each.runs if each.runs else each.mean_s,
                    quantiles_s=each.quantiles_s,
                    runs=each.runs,
                    memory_bytes=each.memory_bytes,
                    load_s=each.load_s,
                    max_batch=each.max_batch,
                )
    return found
