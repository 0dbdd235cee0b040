"""Limiting a process to a share of the processor, really: it runs slower, it does not pretend to.

Owns the two ways to do it: a quota of the kernel (cgroup v2) where a writable group is delegated to us, else
stopping and continuing the process (SIGSTOP, SIGCONT) steered by the processor time it has truly used. Knows nothing
of models.

A share is of what the process could use alone, so that work which takes t takes about t / share. The duty cycle keeps
an account: credit grows with time at ``share * parallelism`` and falls by the processor time used. The process is
stopped when the credit is spent and continued when a period's worth is there again, so errors of timers and of a busy
event loop cancel out over a few periods. While the process has no work nothing is stopped and no timer runs; a debt
left over from the last piece of work is paid before the next.

Parallelism is how many processors the process keeps busy while it may run: at least 1, at most its threads, as seen
of late. It is the largest of several looks, because other processes can only make it look smaller. The kernel's quota
cannot know it and takes the number of threads.
"""

import contextlib
import math
import os
import signal
import time
from collections import deque
from pathlib import Path
from typing import Final, Protocol

import trio

PERIOD_S: Final = 0.010
"""Stop and continue in seconds. Service times of a few periods come out near time / share; much shorter periods cost
wake-ups and fall below the timers' grain of 1 ms."""

CREDIT_PERIODS: Final = 5
"""Periods of credit a busy process may gather while the event loop is late in continuing it."""

LOOKS_KEPT: Final = 64
"""Recent looks at the parallelism: more than half a second of work."""

QUOTA_MIN_US: Final = 1000
"""Smallest quota the kernel takes, in microseconds."""

_WAIT_MIN_S: Final = 0.001
"""Shortest wait worth a timer: the grain of epoll."""

_CPU_CLOCK_SCHED: Final = 2


class CpuShare(Protocol):
    """A limit on one process."""

    def set_busy(self, busy: bool) -> None:
        """Say whether the process has work."""
        ...

    async def serve(self) -> None:
        """Enforce the limit until cancelled; leaves the process running."""
        ...

    def close(self) -> None:
        """Tidy up once the process is gone."""
        ...


def processor_s(pid: int) -> float:
    """Return the processor time a process has used, in seconds, all threads; raises OSError when it is gone.

    Notes
    -----
    The clock id is what clock_getcpuclockid(3) returns: the inverted process id above the clock's type.
    """
    return time.clock_gettime((~pid << 3) | _CPU_CLOCK_SCHED)


def limit(pid: int, *, share: float, threads: int, own_group: Path | None = None) -> CpuShare:
    """Choose the best way to limit a process.

    Parameters
    ----------
    pid : int
        Of a child that has not been waited for.
    share : float
        In (0, 1).
    threads : int
        Processors it would use without a limit, >= 1.
    own_group : Path, optional
        Folder of the calling process's cgroup; found by itself where none is given.
    """
    if not 0 < share < 1 or threads < 1:
        raise ValueError(f"share {share} must be in (0, 1) and threads {threads} >= 1")
    group = own_group or _own_group()
    quota = None if group is None else _make_quota(group, pid, share=share, threads=threads)
    return quota or DutyCycle(pid, share=share, threads=threads)


class DutyCycle:
    """Stops and continues a process; see limit for the parameters."""

    def __init__(self, pid: int, *, share: float, threads: int, period_s: float = PERIOD_S) -> None:
        self._pid = pid
        self._threads = threads
        self._share = share
        self._period_s = period_s
        self._looks: deque[float] = deque([1.0], maxlen=LOOKS_KEPT)
        self._credit_s = 0.0
        self._counted_at_s = trio.current_time()
        self._counted_used_s = processor_s(pid)
        self._wake = trio.Event()
        self._busy = False

    def set_busy(self, busy: bool) -> None:
        """Say whether the process has work."""
        if busy and not self._busy:
            self._count(periods=1)
            self._wake.set()
        self._busy = busy

    async def serve(self) -> None:
        """Enforce the limit until cancelled; leaves the process running."""
        try:
            while True:
                await self._wake.wait()
                while self._busy:
                    await self._turn()
                self._wake = trio.Event()
        finally:
            self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Tidy up once the process is gone."""

    @property
    def _parallelism(self) -> float:
        return min(float(self._threads), max(1.0, *self._looks))

    async def _turn(self) -> None:
        """Let the process use its credit, then let it gather a period's worth."""
        self._count(periods=CREDIT_PERIODS)
        parallelism = self._parallelism
        rate = self._share * parallelism
        if self._credit_s > 0:
            # The credit grows while it is spent; spending at full speed wins by parallelism - rate.
            await trio.sleep(max(_WAIT_MIN_S, self._credit_s / (parallelism - rate)))
            self._looks.append(self._count(periods=CREDIT_PERIODS))
            return
        self._signal(signal.SIGSTOP)
        try:
            await trio.sleep(max(_WAIT_MIN_S, self._period_s - self._credit_s / rate))
        finally:
            self._signal(signal.SIGCONT)

    def _count(self, *, periods: int) -> float:
        """Bring the account up to date, with at most so many periods of credit; returns processors used meanwhile."""
        elapsed_s = trio.current_time() - self._counted_at_s
        self._counted_at_s += elapsed_s
        gone_s = 0.0
        # A process that is gone uses nothing; whoever started it will notice.
        with contextlib.suppress(OSError):
            used_s = processor_s(self._pid)
            gone_s = used_s - self._counted_used_s
            self._counted_used_s = used_s
        rate = self._share * self._parallelism
        self._credit_s = min(self._credit_s + elapsed_s * rate - gone_s, periods * rate * self._period_s)
        return gone_s / elapsed_s if elapsed_s > 0 else 0.0

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, number)


class Quota:
    """A group of the kernel's around one process.

    Parameters
    ----------
    folder : Path
        Of the group.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def set_busy(self, busy: bool) -> None:
        """Say whether the process has work: the kernel sees for itself."""

    async def serve(self) -> None:
        """Wait: the kernel enforces the limit."""
        await trio.sleep_forever()

    def close(self) -> None:
        """Remove the group; one that is not empty yet is left to systemd."""
        with contextlib.suppress(OSError):
            self._folder.rmdir()


def _own_group() -> Path | None:
    """Return the folder of our cgroup, where version 2 is mounted."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    path = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    return None if path is None else Path("/sys/fs/cgroup") / path.lstrip("/")


def _make_quota(group: Path, pid: int, *, share: float, threads: int) -> Quota | None:
    """Make a group with a quota beside or below ours and move the process into it; None where that is not allowed."""
    period_us = max(int(PERIOD_S * 1e6), math.ceil(QUOTA_MIN_US / (share * threads)))
    quota_us = max(QUOTA_MIN_US, round(period_us * share * threads))
    # A group with processes cannot share out the processor, so a daemon in a leaf has its workers beside it.
    for base in (group, group.parent):
        folder = base / f"gridnode-worker-{pid}"
        try:
            if "cpu" not in (base / "cgroup.subtree_control").read_text(encoding="ascii").split():
                continue
            folder.mkdir()
        except OSError:
            continue
        try:
            (folder / "cpu.max").write_text(f"{quota_us} {period_us}", encoding="ascii")
            (folder / "cgroup.procs").write_text(str(pid), encoding="ascii")
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        return Quota(folder)
    return None
