"""Reads load, memory, temperature and power of this machine, for the state record.

The slow-down factor says how much longer a service takes now than when it was measured: other processes that
want the cores, or a processor that has lowered its clock because of heat. Work of our own is not counted: the
backlog already tells it; nor is work of processes that gave way on purpose (nice).

A fair scheduler gives a run that wants ``threads`` cores beside others that keep ``u`` of ``n`` busy its part of
them: with u + threads > n it takes about (u + threads) / n times as long, else it is not disturbed.
"""

import math
import os
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
import psutil

SLOW_DOWN_MAX = 20.0
"""Cap of the advertised factor: one noisy reading of a clock must not say that the node is gone."""

EWMA_WEIGHT = 0.3
"""Weight of the newest sample: at one sample a second a lasting change shows within about five seconds."""

SENSORS_S = 4.5
"""Age at which temperature, clock and power are read again: with every fifth sample of one a second. They change
slowly and lie in many small files, which took four fifths of a sample's time."""


TICKS_HZ: Final = os.sysconf("SC_CLK_TCK")
"""Units of the kernel's books of processor time, per second."""
AVAILABLE: Final = b"MemAvailable:"
PROC_FILE_MAX_BYTES: Final = 4096
"""What is read of a file of /proc: the first line of stat and the third of meminfo lie well within."""


class _ProcFile:
    """A file of /proc that stays open: reading it anew is one call, where opening and parsing all of it cost more."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self._descriptor)

    def read(self) -> bytes:
        return os.pread(self._descriptor, PROC_FILE_MAX_BYTES, 0)


class MachineSample(msgspec.Struct, frozen=True, kw_only=True):
    """One reading."""

    slow_down: float
    """Factor >= 1."""
    memory_free_bytes: int
    power_class: int
    """0 mains, 1 battery, 2 battery low."""
    temperature_c: float | None
    cpu_share_others: float
    """Cores used by other processes, as a share of all cores, 0..1."""


class MachineProbe:
    """Samples this machine; the caller decides when (about once a second).

    Parameters
    ----------
    own_pids : callable
        Returns the processes whose work is ours.
    threads : int
        Cores that our runs want at once, >= 1.
    proc : Path
        The kernel's books.
    """

    def __init__(self, *, own_pids: Callable[[], Iterable[int]], threads: int, proc: Path = Path("/proc")) -> None:
        self._own_pids = own_pids
        self._threads = threads
        self._cores = psutil.cpu_count() or 1
        self._stat = _ProcFile(proc / "stat")
        self._meminfo = _ProcFile(proc / "meminfo")
        self._own_pid = os.getpid()
        self._processes: dict[int, psutil.Process] = {}
        self._own_cpu_s: dict[int, float] = {}
        self._smoothed = 0.0
        self._last_busy_s = self._stat_busy_s()
        self._sensors_age_s = math.inf
        self._temperature_c: float | None = None
        self._clock_factor = 1.0
        self._power_class = 0

    def sample(self, *, elapsed_s: float) -> MachineSample:
        """Read the machine; ``elapsed_s`` is the time since the last reading, > 0. Reads /proc: below 1 ms."""
        self._sensors_age_s += elapsed_s
        if self._sensors_age_s >= SENSORS_S:
            self._sensors_age_s = 0.0
            self._read_sensors()
        busy = self._busy_s()
        own = self._own_s()
        others = max(0.0, min(1.0, (busy - own) / (elapsed_s * self._cores)))
        self._smoothed += EWMA_WEIGHT * (others - self._smoothed)
        wanted = self._smoothed * self._cores + min(self._threads, self._cores)
        slow_down = max(1.0, wanted / self._cores) * self._clock_factor
        return MachineSample(
            slow_down=min(SLOW_DOWN_MAX, slow_down),
            memory_free_bytes=self._memory_free_bytes(),
            power_class=self._power_class,
            temperature_c=self._temperature_c,
            cpu_share_others=self._smoothed,
        )

    def _read_sensors(self) -> None:
        self._temperature_c = _temperature_c()
        # A low clock on a cool machine is idling, not throttling.
        is_hot = self._temperature_c is not None and self._temperature_c >= THROTTLE_C
        self._clock_factor = _clock_factor() if is_hot else 1.0
        self._power_class = _power_class()

    def _busy_s(self) -> float:
        last_s, self._last_busy_s = self._last_busy_s, self._stat_busy_s()
        return max(0.0, self._last_busy_s - last_s)

    def _stat_busy_s(self) -> float:
        """Return what all processors have worked so far, in seconds, but for what gave way (proc(5), /proc/stat)."""
        user, _nice, system, _idle, _iowait, irq, softirq, steal = map(int, self._stat.read().split(None, 9)[1:9])
        return (user + system + irq + softirq + steal) / TICKS_HZ

    def _memory_free_bytes(self) -> int:
        text = self._meminfo.read()
        at = text.index(AVAILABLE) + len(AVAILABLE)
        return int(text[at : text.index(b"kB", at)]) * 1024

    def _own_s(self) -> float:
        spent: dict[int, float] = {}
        processes: dict[int, psutil.Process] = {}
        for pid in self._own_pids():
            if pid == self._own_pid:
                times = os.times()
                spent[pid] = times.user + times.system
                continue
            try:
                process = self._processes.get(pid) or psutil.Process(pid)
                theirs = process.cpu_times()
            except psutil.Error:
                continue
            processes[pid] = process
            spent[pid] = theirs.user + theirs.system
        gained = sum(max(0.0, cpu_s - self._own_cpu_s.get(pid, cpu_s)) for pid, cpu_s in spent.items())
        self._own_cpu_s, self._processes = spent, processes
        return gained


def _clock_factor() -> float:
    """Return by how much the clock is below its maximum; 1 when unknown."""
    try:
        frequency = psutil.cpu_freq()
    except (OSError, RuntimeError, NotImplementedError):
        return 1.0
    if not frequency or not frequency.max or not frequency.current:
        return 1.0
    return max(1.0, frequency.max / frequency.current)


THROTTLE_C = 80.0
"""Above this a lowered clock counts as throttling. Raspberry Pi documentation: the Pi 4 limits from 80 C."""


def _temperature_c() -> float | None:
    try:
        sensors = psutil.sensors_temperatures()
    except (AttributeError, OSError):
        return None
    values = [entry.current for entries in sensors.values() for entry in entries if entry.current]
    return max(values) if values else None


def _power_class() -> int:
    try:
        battery = psutil.sensors_battery()
    except (AttributeError, OSError, ValueError):
        return 0
    if battery is None or battery.power_plugged:
        return 0
    return 2 if battery.percent < 20 else 1
