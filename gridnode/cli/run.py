"""``gridnode run`` and ``gridnode config``: the daemon and what it is told."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gridnode.cli.options import UsageError, add_json, add_state_dir
from gridnode.cli.output import note, print_json
from gridnode.errors import GridError

if TYPE_CHECKING:
    from gridnode.config import Config
    from gridnode.statedir import StateDirectory
    from models.workerstart import Spare

FILE_NAME = "gridnode.toml"


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group's commands."""
    run = commands.add_parser("run", help="run the daemon")
    add_state_dir(run)
    _add_settings(run)
    run.add_argument("--with-parent", action="store_true", help=argparse.SUPPRESS)
    run.set_defaults(run=run_node)
    config = commands.add_parser("config", help="check or show the daemon's configuration").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    check = config.add_parser("check", help="say whether a configuration is good, and print what it comes to")
    check.add_argument("file", nargs="?", type=Path, metavar="FILE", help="instead of --config")
    show = config.add_parser("show", help="print the configuration in force: defaults, file, environment, flags")
    for parser in (check, show):
        _add_settings(parser)
        add_json(parser)
    check.set_defaults(run=check_config)
    show.set_defaults(run=show_config, file=None)


def _add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the flags that change settings."""
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="TOML file (default: GRIDNODE_CONFIG, else gridnode.toml in the "
        "configuration folder, where there is one)"
    )  # fmt: skip
    parser.add_argument("--preset", choices=("lan", "loopback"), help="loopback: 127.0.0.1 and free ports only")
    parser.add_argument("--name", help="what people call this node (node.name)")
    parser.add_argument("--socket", metavar="PATH", help="Unix socket for programs (client.socket)")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), help="(log.level)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="any setting by its dotted key, such as runtime.cpu_share=0.5; may be given several times",
    )


def default_config(environment: dict[str, str]) -> Path | None:
    """Return the configuration file that is read without --config; None where there is none."""
    if environment.get("GRIDNODE_CONFIG"):
        return Path(environment["GRIDNODE_CONFIG"])
    folders = [Path(environment["CONFIGURATION_DIRECTORY"])] if environment.get("CONFIGURATION_DIRECTORY") else []
    if os.geteuid() != 0:
        home = environment.get("XDG_CONFIG_HOME") or str(Path(environment.get("HOME", "/")) / ".config")
        folders.append(Path(home) / "gridnode")
    folders.append(Path("/etc/gridnode"))
    return next((folder / FILE_NAME for folder in folders if (folder / FILE_NAME).is_file()), None)


def read_config(options: argparse.Namespace) -> tuple["Config", Path | None]:
    """Return the configuration in force and the file it came from; raises ConfigError."""
    from gridnode.config import load_config

    environment = dict(os.environ)
    path = getattr(options, "file", None) or options.config or default_config(environment)
    cores = len(os.sched_getaffinity(0))
    return load_config(path, environment=environment, flags=_flags(options), cores=cores), path


def _flags(options: argparse.Namespace) -> dict[str, object]:
    """Turn the flags into nested tables as in the file."""
    import tomllib

    table: dict[str, object] = {}
    for text in options.set:
        key, separator, value = text.partition("=")
        if not separator or not key.strip():
            raise UsageError(f"--set {text!r} is not of the form KEY=VALUE, such as runtime.cpu_share=0.5")
        try:
            parsed = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            parsed = value
        _put(table, key.strip(), parsed)
    for key, given in (
        ("preset", options.preset),
        ("node.name", options.name),
        ("client.socket", options.socket),
        ("log.level", options.log_level),
    ):
        if given is not None:
            _put(table, key, given)
    return table


def _put(table: dict[str, object], key: str, value: object) -> None:
    """Put a value at a dotted key."""
    *path, last = key.split(".")
    for step in path:
        below = table.setdefault(step, {})
        if not isinstance(below, dict):
            raise UsageError(f"--set {key!r} goes below {step!r}, which was set to a value")
        table = below
    table[last] = value


# ---------------------------------------------------------------- commands


def run_node(options: argparse.Namespace) -> int:
    """Run `gridnode run`."""
    if options.with_parent:
        _end_with_parent()
    config, _ = read_config(options)

    from gridnode.config import default_state_dir
    from gridnode.statedir import StateDirectory

    named = Path(config.node.state_dir) if config.node.state_dir else default_state_dir(os.environ)
    folder: Path = options.state_dir or named
    # Before all else: the worker imports the runtime on another processor while this one imports the daemon.
    spare = _start_spare(config, StateDirectory(folder))
    try:
        return _run_node(config, folder, spare)
    finally:
        if spare is not None:
            spare.close()


def _start_spare(config: "Config", state: "StateDirectory") -> "Spare | None":
    """Start a worker for the model that a node will most likely load: one that has loaded some before."""
    if config.runtime.executor != "onnxruntime" or not config.runtime.models or not state.graphs.exists():
        return None
    from models.workerstart import Spare

    try:
        return Spare(slots=config.scheduler.queue.slots)
    except OSError:
        return None  # the worker that is needed will say so


def _run_node(config: "Config", folder: Path, spare: "Spare | None") -> int:
    import faulthandler

    import msgspec

    from gridnode.daemon import run_daemon
    from gridnode.joining import given_name
    from gridnode.logs import set_up_logging
    from gridnode.statedir import StateDirectory
    from models.manifest import ModelError
    from transport.wire import TransportError

    set_up_logging(level=config.log.level, journal="JOURNAL_STREAM" in os.environ)
    # The service manager's watchdog sends SIGABRT to a daemon that hangs: where it hung goes to the log.
    faulthandler.enable(file=2)
    if not config.node.name and (name := given_name(StateDirectory(folder))):
        config = msgspec.structs.replace(config, node=msgspec.structs.replace(config.node, name=name))
    try:
        return run_daemon(config, folder, spare=spare)
    except (ExceptionGroup, ModelError, TransportError) as raised:
        error = foreseen(raised)
        if error is None:
            raise
        raise error from raised


def foreseen(raised: BaseException) -> GridError | None:
    """Return the one error a person can act on, where nothing else was raised beside it; None for a bug."""
    from models.manifest import ModelError
    from transport.wire import TransportError

    if isinstance(raised, BaseExceptionGroup):
        found = [foreseen(inner) for inner in raised.exceptions]
        return None if None in found else found[0]
    if isinstance(raised, GridError):
        return raised
    return GridError(str(raised)) if isinstance(raised, ModelError | TransportError) else None


def check_config(options: argparse.Namespace) -> int:
    """Run `gridnode config check`: the configuration on standard output, the verdict on standard error."""
    config, path = read_config(options)
    _print_config(config, as_json=options.json)
    note(f"{path or 'configuration without a file'}: good")
    return 0


def show_config(options: argparse.Namespace) -> int:
    """Run `gridnode config show`."""
    config, path = read_config(options)
    if not options.json:
        print(f"# from {path or 'defaults, environment and flags alone'}")
    _print_config(config, as_json=options.json)
    return 0


def _print_config(config: "Config", *, as_json: bool) -> None:
    if as_json:
        print_json(config)
        return
    import msgspec

    print("\n".join(toml_lines(msgspec.to_builtins(config))))


def toml_lines(table: dict[str, object], *, path: str = "") -> list[str]:
    """Write nested tables as TOML that load_config reads back.

    Examples
    --------
    >>> toml_lines({"preset": "lan", "node": {"name": "a", "drain_s": 20.0}})
    ['preset = "lan"', '', '[node]', 'name = "a"', 'drain_s = 20.0']
    """
    plain = {key: value for key, value in table.items() if not isinstance(value, dict)}
    lines = ["", f"[{path}]"] if path and plain else []
    # TOML knows no null: what is unset is left out.
    lines += [f"{key} = {_toml_value(value)}" for key, value in plain.items() if value is not None]
    for key, value in table.items():
        if isinstance(value, dict):
            lines += toml_lines(value, path=f"{path}.{key}" if path else key)
    return lines


def _toml_value(value: object) -> str:
    import json

    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return "inf" if value > 0 else "-inf"
    return json.dumps(value)


def _end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the process that started us ends; the demo's daemons must not outlive it."""
    import ctypes
    import signal

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG, see prctl(2)
    if os.getppid() != parent or parent == 1:
        raise SystemExit("the parent is gone")
