"""What processes cost: processor time, memory, and which processes belong to a server. Linux only.

A server's processes are found by descent and by a mark in their environment that all descendants inherit: Ray's daemons
leave their parent, workers of others clear their environment, nobody does both.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

MARK = "BENCH_PEERS_MARK"
ROOT = Path(__file__).resolve().parents[2]
STOP_S = 25.0
"""Time for a server to end by itself before it is killed."""


def child_environment(mark: str, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a server: ours, marked, with nothing of gridnode's settings."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRIDNODE_")}
    return kept | {MARK: mark, "PYTHONPATH": str(ROOT)} | dict(extra or {})


def start(
    words: Iterable[str], *, mark: str, environment: Mapping[str, str] | None = None, log: Path
) -> subprocess.Popen[str]:
    """Start a server whose standard output we read; what it says otherwise goes to the log."""
    with log.open("ab") as sink:
        return subprocess.Popen(
            [sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=sink,
            text=True,
            cwd=ROOT,
            env=child_environment(mark, environment),
            start_new_session=True,  # as a service has it; the kernel shares processors between sessions first
        )


def stop(process: subprocess.Popen[str]) -> None:
    """End a process with SIGTERM, or kill it when it does not go."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


def family(mark: str) -> list[int]:
    """Return all living processes that carry a mark, and their descendants."""
    parents: dict[int, int] = {}
    found: set[int] = set()
    needle = f"{MARK}={mark}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(OSError, IndexError):  # it ended meanwhile, or is another user's
            pid = int(folder.name)
            parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if needle in (folder / "environ").read_bytes().split(b"\0"):
                found.add(pid)
    grown = True
    while grown:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return sorted(found)


def cpu_s(pids: Iterable[int]) -> float:
    """Return the processor time of processes so far, in seconds, threads that ended too.

    Their CPU-time clocks, by number as clock_getcpuclockid(3) makes it: what the scheduler adds up for schedstat.
    """
    spent_s = 0.0
    for pid in pids:
        with contextlib.suppress(OSError):  # the process ended meanwhile
            spent_s += time.clock_gettime((~pid << 3) | 2)
    return spent_s


def pss_bytes(pids: Iterable[int]) -> int:
    """Return the memory of processes: their own pages, and their part of each shared one (proportional set size)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) << 10
    return total


def idle_cpu(pids: list[int], *, window_s: float) -> float:
    """Return the share of one core that processes use while nobody asks anything of them."""
    before_s, start_s = cpu_s(pids), time.monotonic()
    time.sleep(window_s)
    return (cpu_s(pids) - before_s) / (time.monotonic() - start_s)


def die_politely() -> None:
    """Let SIGTERM unwind the stack, so that whoever ends a run ends its servers too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
