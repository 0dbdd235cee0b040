"""The daemon's configuration: frozen records, one TOML file, and the bounds of everything the daemon holds.

Order of precedence: default, then file, then environment (``GRIDNODE_SECTION__KEY``), then command-line flag.
Read once, by the command line, and passed down as narrow records. Nothing here is read at import.

The bounds of the decision core stand in scheduler.config, those of the wire in transport.wire, those of models in
the models package; this module holds the daemon's own and puts the others within reach of the file.
"""

import difflib
import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from gridnode.errors import ConfigError
from scheduler.config import CoreConfig
from scheduler.types import SchedulerError
from scheduler.variants import configure

Port = Annotated[int, Meta(ge=0, le=65535)]
Share = Annotated[float, Meta(gt=0, le=1)]

ENVIRONMENT_PREFIX: Final = "GRIDNODE_"
NOT_CONFIGURATION: Final = ("GRIDNODE_SOCKET", "GRIDNODE_STATE_DIR", "GRIDNODE_CONFIG", "GRIDNODE_REWRITE")
"""Variables of the client, the commands and the tests; they share the prefix."""


class NodeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What concerns the node itself."""

    name: Annotated[str, Meta(max_length=63, pattern="^[A-Za-z0-9._-]*$")] = ""
    """Shown to people; the host's name where empty."""
    state_dir: str = ""
    """Where keys, models and what was learned are kept; see default_state_dir()."""
    drain_s: Annotated[float, Meta(gt=0, le=600)] = 20.0
    """Longest time a stop waits for accepted work, in seconds. Below the unit's TimeoutStopSec."""


class ListenConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where one plane listens."""

    host: str = "0.0.0.0"
    """Address to bind. Peers without a certificate of the grid get nothing beyond the handshake."""
    port: Port = 0
    """0: any free one."""


class NetworkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The two planes and how other nodes are found."""

    control: ListenConfig = ListenConfig(port=4001)
    data: ListenConfig = ListenConfig(port=4002)
    door: ListenConfig = ListenConfig(port=4003)
    """Only open while an invite is outstanding."""
    advertise: tuple[str, ...] = ()
    """Addresses told to peers; all of this machine's own, without loopback and container bridges, where empty."""
    bootstrap: tuple[str, ...] = ()
    """PEERID@HOST:PORT of control planes to dial at the start, beside those remembered from before."""
    neighbours: Annotated[int, Meta(ge=1, le=32)] = 8
    """Control connections aimed at. Gossip costs per connection; 8 keep a few hundred nodes connected."""
    idle_connection_s: Annotated[float, Meta(gt=0)] = 120.0
    """A data connection unused for this long is closed."""


class ClientConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The socket for programs on this machine."""

    socket: str = ""
    """Path of the Unix socket; see default_socket()."""
    mode: Annotated[int, Meta(ge=0, le=0o777)] = 0o660
    group: str = ""
    """Group that may connect; the daemon's own where empty."""
    entries: tuple[str, ...] = ()
    """Sockets of other daemons that clients may move to when this one goes."""
    connections: Annotated[int, Meta(ge=1, le=4096)] = 64
    """Programs connected at once: each may hold a payload in memory."""
    jobs: Annotated[int, Meta(ge=1)] = 1024
    """Open jobs of one connection; more are refused as queue_full."""


SLOTS_MAX: Final = 4
"""Most runs of one model at once that a daemon chooses by itself: each has its part of the shared memory, and more of
them than cores gain nothing."""


class RuntimeSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who runs models, and with how much of the machine."""

    executor: Literal["onnxruntime", "emulated"] = "onnxruntime"
    """emulated: service times of a device profile are waited out; results hold no numbers and say so."""
    profile: str = ""
    """The emulated executor's profile, a TOML file."""
    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    """Threads of a run that goes alone, shared by those that go at once; 0: all cores."""
    cpu_share: Share = 1.0
    """Share of the cores a worker may use: really limited, so that measured service times tell the truth."""
    models: tuple[str, ...] = ("*",)
    """Names of the published models this node runs; * for all that fit."""
    disk_bytes: Annotated[int, Meta(ge=1 << 20)] = 4 << 30
    """Disk for model files."""


class MetricsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The local HTTP port for metrics."""

    enabled: bool = True
    host: str = "127.0.0.1"
    port: Port = 9464


class HttpConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The HTTP port for programs that speak the Open Inference Protocol; see docs/http.md."""

    enabled: bool = False
    """Off unless asked for: whoever on this machine reaches the port may use the grid, while the socket above asks
    for a group."""
    host: str = "127.0.0.1"
    port: Port = 8000
    """What tritonclient takes where none is named."""
    allow_remote: bool = False
    """Allow a host that others reach. Nobody is asked who he is and nothing is encrypted: only behind a proxy or a
    firewall that does."""
    connections: Annotated[int, Meta(ge=1, le=4096)] = 128
    """Connected at once, each with one request at a time; a client keeps a few open. More are turned away with 503."""
    body_bytes: Annotated[int, Meta(ge=1024, le=64 << 20)] = 64 << 20
    """Largest request body, after decompression too."""
    request_s: Annotated[float, Meta(gt=0, le=600)] = 20.0
    """Time for a request to come in whole, in seconds, beside 10 s per MB of its body."""
    idle_s: Annotated[float, Meta(gt=0, le=3600)] = 75.0
    """A connection unused for this long is closed."""

    def __post_init__(self) -> None:
        """Check that nobody opens the port to others without meaning to."""
        if not self.allow_remote and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} can be reached from other machines, and whoever reaches it may use the grid; "
                "bind 127.0.0.1, or set http.allow_remote=true behind a proxy or firewall"
            )


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Logging."""

    level: Literal["debug", "info", "warning", "error"] = "info"


class TraceConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record of the jobs that come in here, for the simulator; see docs/traces.md."""

    path: str = ""
    """File, under the state directory where it is relative; beside it PATH.1 keeps the one before. Empty: nothing is
    recorded."""
    max_bytes: Annotated[int, Meta(ge=1 << 20, le=1 << 30)] = 64 << 20
    """Disk that both files take together, about 110 bytes per job: half a million jobs, a night of 15 frames/s."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a daemon is told."""

    preset: Literal["lan", "loopback"] = "lan"
    """loopback: bind 127.0.0.1 and any free port; for tests and demos."""
    node: NodeConfig = NodeConfig()
    network: NetworkConfig = NetworkConfig()
    client: ClientConfig = ClientConfig()
    runtime: RuntimeSection = RuntimeSection()
    scheduler: CoreConfig = CoreConfig()
    metrics: MetricsConfig = MetricsConfig()
    http: HttpConfig = HttpConfig()
    log: LogConfig = LogConfig()
    trace: TraceConfig = TraceConfig()

    def __post_init__(self) -> None:
        """Check what spans several fields."""
        if self.runtime.executor == "emulated" and not self.runtime.profile:
            raise ValueError(
                "runtime.executor is 'emulated', which needs runtime.profile: the path of a device profile"
            )


_LOOPBACK: Final[dict[str, object]] = {
    "network": {
        "control": {"host": "127.0.0.1", "port": 0},
        "data": {"host": "127.0.0.1", "port": 0},
        "door": {"host": "127.0.0.1", "port": 0},
        "advertise": ["127.0.0.1"],
    },
    "metrics": {"port": 0},
    "http": {"port": 0},
}

Table = dict[str, object]


def _merge(below: Mapping[str, object], above: Mapping[str, object]) -> Table:
    merged: Table = dict(below)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _merge(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def _from_environment(environment: Mapping[str, str]) -> Table:
    """Turn GRIDNODE_RUNTIME__CPU_SHARE=0.4 into {"runtime": {"cpu_share": 0.4}}; values are TOML or plain text."""
    table: Table = {}
    for name in sorted(environment):
        if not name.startswith(ENVIRONMENT_PREFIX) or name in NOT_CONFIGURATION:
            continue
        path = name.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        try:
            value: object = tomllib.loads(f"value = {environment[name]}")["value"]
        except tomllib.TOMLDecodeError:
            value = environment[name]
        for key in reversed(path):
            value = {key: value}
        assert isinstance(value, dict)
        table = _merge(table, value)
    return table


def load_config(
    path: Path | None, *, environment: Mapping[str, str], flags: Mapping[str, object] | None = None, cores: int = 1
) -> Config:
    """Read the configuration.

    Parameters
    ----------
    path : Path or None
        The TOML file; None for none.
    environment : mapping
        Usually os.environ.
    flags : mapping, optional
        Nested tables as in the file, from the command line.
    cores : int, default 1
        That this node may use: real models get as many slots, at most SLOTS_MAX, unless scheduler.queue.slots is set.

    Raises
    ------
    ConfigError
        The file cannot be read, is no TOML, or holds an unknown key, a wrong type or a value out of range; the
        message names the key, the value and what is allowed.
    """
    table: Table = {}
    where = "configuration"
    if path is not None:
        where = str(path)
        try:
            table = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}; give the right path with --config") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is no TOML: {error}") from error
    table = _merge(table, _from_environment(environment))
    table = _merge(table, flags or {})
    if table.get("preset") == "loopback":
        table = _merge(_LOOPBACK, table)
    runtime = table.get("runtime")
    if not isinstance(runtime, dict) or runtime.get("executor", "onnxruntime") == "onnxruntime":
        table = _merge({"scheduler": {"queue": {"slots": min(max(1, cores), SLOTS_MAX)}}}, table)
    try:
        config = msgspec.convert(table, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_explain(str(error), table)}") from error
    try:
        # A policy's name settles the mechanisms around it, whatever the file says of them: `jsq` is plain jsq.
        scheduler = configure(config.scheduler, config.scheduler.placement.policy)
    except SchedulerError as error:
        raise ConfigError(f"{where}: scheduler.placement.policy: {error}") from error
    return msgspec.structs.replace(config, scheduler=scheduler)


def _explain(message: str, table: Mapping[str, object]) -> str:
    """Make msgspec's message name the key and its value, and guess what a misspelt key was to be."""
    text, _, location = message.partition(" - at ")
    path = location.strip("`").removeprefix("$").strip(".")
    if "unknown field" in text:
        wrong = text.rsplit("`", 2)[-2]
        known = _keys_at(path)
        close = difflib.get_close_matches(wrong, known, n=1)
        key = f"{path}.{wrong}".strip(".")
        hint = f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"
        return f"unknown key {key!r}{hint}"
    value: object = table
    for key in path.split(".") if path else ():
        value = value.get(key) if isinstance(value, dict) else None
    where = f"{path}: " if path else ""
    seen = f", seen: {value!r}" if path else ""
    if text.startswith(("Expected", "Object")):
        text = text[:1].lower() + text[1:]
    return f"{where}{text}{seen}"


def _keys_at(path: str) -> list[str]:
    """Return the keys allowed at a dotted path."""
    record: object = Config()
    for key in path.split(".") if path else ():
        record = getattr(record, key, None)
    return sorted(record.__struct_fields__) if isinstance(record, msgspec.Struct) else []


def default_state_dir(environment: Mapping[str, str]) -> Path:
    """Return where a node keeps its state: GRIDNODE_STATE_DIR, systemd's STATE_DIRECTORY, or by user.

    Root uses /var/lib/gridnode, others $XDG_STATE_HOME/gridnode (XDG Base Directory specification).
    """
    for name in ("GRIDNODE_STATE_DIR", "STATE_DIRECTORY"):
        if environment.get(name):
            return Path(environment[name].split(":")[0])
    if os.geteuid() == 0:
        return Path("/var/lib/gridnode")
    home = environment.get("XDG_STATE_HOME") or str(Path(environment.get("HOME", "/")) / ".local" / "state")
    return Path(home) / "gridnode"


def default_socket(environment: Mapping[str, str]) -> Path:
    """Return the socket of the daemon: GRIDNODE_SOCKET, systemd's RUNTIME_DIRECTORY, or by user."""
    if environment.get("GRIDNODE_SOCKET"):
        return Path(environment["GRIDNODE_SOCKET"])
    if environment.get("RUNTIME_DIRECTORY"):
        return Path(environment["RUNTIME_DIRECTORY"].split(":")[0]) / "gridnode.sock"
    if os.geteuid() == 0:
        return Path("/run/gridnode/gridnode.sock")
    runtime = environment.get("XDG_RUNTIME_DIR")
    return Path(runtime) / "gridnode.sock" if runtime else default_state_dir(environment) / "gridnode.sock"


# ---------------------------------------------------------------- bounds of the daemon

INBOX_MAX: Final = 65_536
"""Events waiting for the core. Each job makes about ten; more than this means that the core has stopped."""

OUTBOX_FRAMES_MAX: Final = 4096
"""Frames waiting for one client to read. A program that does not read loses its connection, not our memory."""

OUTBOX_BYTES_MAX: Final = 256 << 20
"""Payload bytes waiting for one client to read; four of the largest results."""

PROBE_INTERVAL_S: Final = 1.0
"""Time between two readings of load, memory and temperature."""

HANDOVER_TIMEOUT_S: Final = 10.0
"""Longest time a granted payload may take to a thief, and a cancelled exchange to be answered, before it is cut."""
