"""The checks of ``gridnode doctor``: each looks at one thing and says what to do about it."""

import contextlib
import fcntl
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, Literal

import msgspec

from gridnode.cli.output import size
from gridnode.config import Config
from gridnode.credentials import read_grid_file
from gridnode.errors import GridError
from gridnode.statedir import StateDirectory
from gridnode.tracefile import before, check_trace_file

RUNTIME_CHECK_S: Final = 60.0
"""Time for importing onnxruntime in a process of its own; a Pi with a cold SD card takes about 20 s."""
DIAL_S: Final = 2.0
BUILT_S: Final = 1_767_225_600.0
"""1 January 2026: a clock before that has never been set."""
DISK_LOW_BYTES: Final = 500_000_000

Verdict = Literal["good", "warning", "bad"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of one check."""

    check: str
    verdict: Verdict
    seen: str
    remedy: str = ""


def check_python() -> Finding:
    """Check interpreter and machine."""
    seen = f"Python {sys.version.split()[0]}, {os.uname().machine}"
    if not (3, 11) <= sys.version_info[:2] <= (3, 13) or sys.maxsize < 2**32:
        return Finding(check="python", verdict="bad", seen=seen, remedy="use CPython 3.11 to 3.13 on a 64-bit system")
    return Finding(check="python", verdict="good", seen=seen)


def check_clock(now_s: float) -> Finding:
    """Check that the clock was ever set."""
    seen = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now_s))
    if now_s < BUILT_S:
        return Finding(
            check="clock",
            verdict="warning",
            seen=seen,
            remedy="set it, or let it be set by NTP; the grid's own signed time is used until then",
        )
    return Finding(check="clock", verdict="good", seen=seen)


def check_state(folder: Path) -> Iterator[Finding]:
    """Check that there is a node, that its secrets are its own, and that there is room."""
    state = StateDirectory(folder)
    if not state.grid.exists():
        yield Finding(
            check="state directory", verdict="warning", seen=f"{folder} holds no node",
            remedy="'gridnode grid create NAME' or 'gridnode join TOKEN'; --state-dir for another place",
        )  # fmt: skip
        return
    running = is_running(folder)
    yield Finding(check="state directory", verdict="good", seen=f"{folder}" + (", a daemon runs" if running else ""))
    secrets = [folder, state.node_key, *sorted(state.admit.glob("*")), *sorted((folder / "owner").glob("*.pem"))]
    loose = [path for path in secrets if path.exists() and not path.is_dir() and path.stat().st_mode & 0o077]
    if folder.stat().st_mode & 0o077:
        loose.insert(0, folder)
    keys = [path for path in loose if path == folder or path.suffix in (".key", ".pem")]
    if keys:
        yield Finding(
            check="key modes", verdict="bad", seen=", ".join(f"{p} {stat.filemode(p.stat().st_mode)}" for p in keys),
            remedy="chmod 700 the directory and 600 the keys; change keys that others may have read",
        )  # fmt: skip
    else:
        yield Finding(check="key modes", verdict="good", seen="private")
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    low = free < DISK_LOW_BYTES
    yield Finding(
        check="disk", verdict="warning" if low else "good", seen=f"{size(free)} free",
        remedy="models may not fit: make room" if low else "",
    )  # fmt: skip


def is_running(folder: Path) -> bool:
    """Say whether a daemon holds the state directory's lock."""
    try:
        with (folder / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False


def check_ports(config: Config) -> Iterator[Finding]:
    """Check that the fixed ports can be bound; only while no daemon of this state directory has them."""
    network = config.network
    listeners = [("control", network.control), ("data", network.data), ("door", network.door)]
    wanted = [(name, listen.host, listen.port) for name, listen in listeners]
    if config.metrics.enabled:
        wanted.append(("metrics", config.metrics.host, config.metrics.port))
    if config.http.enabled:
        wanted.append(("http", config.http.host, config.http.port))
    for name, host, port in wanted:
        if not port:
            continue
        trouble = _try(partial(_bind, host, port))
        yield Finding(
            check=f"port {name}", verdict="bad" if trouble else "good", seen=f"{host}:{port} {trouble or 'free'}",
            remedy="stop what uses it ('ss -ltnp' names it), or choose another in gridnode.toml" if trouble else "",
        )  # fmt: skip


def check_trace(config: Config, folder: Path) -> Iterator[Finding]:
    """Check that there is a place and room for a trace, where one is wanted."""
    if not config.trace.path:
        return
    path = folder / config.trace.path
    wanted = config.trace.max_bytes
    try:
        for each in (path, before(path)):
            check_trace_file(each)
            wanted -= each.stat().st_size if each.exists() else 0
    except (OSError, GridError) as error:
        yield Finding(check="trace", verdict="bad", seen=str(error), remedy="give another trace.path, or move it away")
        return
    place = next(each for each in path.parents if each.exists())
    free = os.statvfs(place).f_bavail * os.statvfs(place).f_frsize
    if not place.is_dir() or not os.access(place, os.W_OK):
        yield Finding(
            check="trace", verdict="bad", seen=f"{place} cannot be written to",
            remedy="give another trace.path; under systemd one in the state directory, or name it in ReadWritePaths=",
        )  # fmt: skip
    elif free < wanted:
        yield Finding(
            check="trace", verdict="warning", seen=f"{path}: {size(free)} free, {size(wanted)} wanted",
            remedy="make room, or lower trace.max_bytes",
        )  # fmt: skip
    else:
        yield Finding(check="trace", verdict="good", seen=f"{path}")


def check_bootstrap(config: Config, folder: Path) -> Iterator[Finding]:
    """Check that one of the nodes to dial at the start answers."""
    entries = list(config.network.bootstrap)
    with contextlib.suppress(GridError):
        entries += read_grid_file(StateDirectory(folder).grid).bootstrap
    if not entries:
        return
    failures: list[str] = []
    for entry in dict.fromkeys(entries):
        host, _, port = entry.rpartition("@")[2].rpartition(":")
        trouble = _try(partial(_dial, host, port))
        if not trouble:
            yield Finding(check="bootstrap", verdict="good", seen=f"{host}:{port} answers")
            return
        failures.append(f"{host}:{port} {trouble}")
    yield Finding(
        check="bootstrap", verdict="warning", seen="; ".join(failures),
        remedy="start one of these nodes, open their control port in the firewall, or name others in network.bootstrap",
    )  # fmt: skip


def check_runtime() -> Finding:
    """Import onnxruntime in a process of its own: on a wrong machine it dies instead of raising."""
    command = [
        sys.executable,
        "-P",
        "-c",
        "import onnxruntime as o; print(o.__version__, *o.get_available_providers())",
    ]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=RUNTIME_CHECK_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(check="onnxruntime", verdict="bad", seen=str(error), remedy="try again on an idle machine")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Finding(
            check="onnxruntime", verdict="bad", seen=last[:200],
            remedy="install this release's locked packages; there is no build for 32-bit ARM",
        )  # fmt: skip
    return Finding(check="onnxruntime", verdict="good", seen=done.stdout.strip())


def _bind(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))


def _dial(host: str, port: str) -> None:
    socket.create_connection((host.strip("[]"), int(port)), timeout=DIAL_S).close()


def _try(action: Callable[[], None]) -> str:
    """Return what went wrong, empty for nothing."""
    try:
        action()
    except (OSError, ValueError) as error:
        return str(error)
    return ""
