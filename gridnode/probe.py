"""Reads load, memory, temperature and power of this machine, for the state record.

The slow-down factor says how much longer a service takes now than when it was measured: other processes that
want the cores, or a processor that has lowered its clock because of heat. Work of our own is not counted: the
backlog already tells it; nor is work of processes that gave way on purpose (nice).

A fair scheduler gives a run that wants ``threads`` cores beside others that keep ``u`` of ``n`` busy its part of
them: with u + threads > n it takes about (u + threads) / n times as long, else it is not disturbed.
"""

import math
from collections.abc import Callable, Iterable

import msgspec
import psutil

SLOW_DOWN_MAX = 20.0
"""Cap of the advertised factor: one noisy reading of a clock must not say that the node is gone."""

EWMA_WEIGHT = 0.3
"""Weight of the newest sample: at one sample a second a lasting change shows within about five seconds."""

SENSORS_S = 4.5
"""Age at which temperature, clock and power are read again: with every fifth sample of one a second. They change
slowly and lie in many small files, which took four fifths of a sample's time."""


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
    """

    def __init__(self, *, own_pids: Callable[[], Iterable[int]], threads: int) -> None:
        self._own_pids = own_pids
        self._threads = threads
        self._cores = psutil.cpu_count() or 1
        self._processes: dict[int, psutil.Process] = {}
        self._own_cpu_s: dict[int, float] = {}
        self._smoothed = 0.0
        self._times = psutil.cpu_times()
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
            memory_free_bytes=psutil.virtual_memory().available,
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
        last, now = self._times, psutil.cpu_times()
        self._times = now
        idle = (now.idle - last.idle) + (getattr(now, "iowait", 0.0) - getattr(last, "iowait", 0.0))
        gave_way = getattr(now, "nice", 0.0) - getattr(last, "nice", 0.0)
        return max(0.0, sum(now[:8]) - sum(last[:8]) - idle - gave_way)

    def _own_s(self) -> float:
        spent: dict[int, float] = {}
        processes: dict[int, psutil.Process] = {}
        for pid in self._own_pids():
            try:
                process = self._processes.get(pid) or psutil.Process(pid)
                times = process.cpu_times()
            except psutil.Error:
                continue
            processes[pid] = process
            spent[pid] = times.user + times.system
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
