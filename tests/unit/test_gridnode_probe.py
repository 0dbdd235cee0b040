"""Readings of this machine: in range, and our own work does not count as others'."""

import os
import time
from collections import namedtuple

import psutil
import pytest

from gridnode.probe import SLOW_DOWN_MAX, MachineProbe

Battery = namedtuple("Battery", "percent power_plugged")
Frequency = namedtuple("Frequency", "current max")
Sensor = namedtuple("Sensor", "current")


class Machine:
    """A machine whose books show so many more seconds of work of all processors with each sample."""

    def __init__(self, proc, *, busy_s, nice_s=0.0, threads=4):
        self.proc = proc
        self.busy_s, self.nice_s = busy_s, nice_s
        self.samples = 0
        self.write()
        self.probe = MachineProbe(own_pids=lambda: [], threads=threads, proc=proc)

    def write(self):
        hz = os.sysconf("SC_CLK_TCK")
        busy, nice = (round(self.samples * each_s * hz) for each_s in (self.busy_s, self.nice_s))
        (self.proc / "stat").write_text(f"cpu  {busy} {nice} 0 7 9 0 0 0 3 3\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 1\n")
        (self.proc / "meminfo").write_text(
            "MemTotal: 9000 kB\nMemFree: 1 kB\nMemAvailable:    2048 kB\nBuffers: 3 kB\n"
        )

    def sample(self, *, elapsed_s):
        self.samples += 1
        self.write()
        return self.probe.sample(elapsed_s=elapsed_s)


@pytest.fixture
def machine(monkeypatch, tmp_path):
    def make(*, cores=4, battery=None, celsius=None, frequency=None, **books):
        monkeypatch.setattr("psutil.cpu_count", lambda: cores)
        monkeypatch.setattr("psutil.sensors_battery", lambda: battery, raising=False)
        sensors = {"cpu": [Sensor(celsius)]} if celsius else {}
        monkeypatch.setattr("psutil.sensors_temperatures", lambda: sensors, raising=False)
        monkeypatch.setattr("psutil.cpu_freq", lambda: frequency)
        return Machine(tmp_path, **books)

    return make


def test_a_real_reading_is_in_range():
    probe = MachineProbe(own_pids=lambda: [os.getpid(), 2**22 + 1], threads=1)
    began_s = time.monotonic()
    sample = probe.sample(elapsed_s=max(time.monotonic() - began_s, 1e-3))
    assert 1.0 <= sample.slow_down <= SLOW_DOWN_MAX
    assert sample.memory_free_bytes > 0
    assert sample.power_class in (0, 1, 2)
    assert 0.0 <= sample.cpu_share_others <= 1.0


def test_the_kernels_books_are_read_as_psutil_reads_them():
    probe = MachineProbe(own_pids=lambda: [os.getpid()], threads=1)
    times = psutil.cpu_times()
    wanted_s = times.user + times.system + times.irq + times.softirq + times.steal
    assert probe._stat_busy_s() == pytest.approx(wanted_s, abs=1.0)
    assert probe._memory_free_bytes() == pytest.approx(psutil.virtual_memory().available, rel=0.1)


def test_memory_free_is_what_the_kernel_calls_available(machine):
    assert machine(busy_s=0.0).sample(elapsed_s=1.0).memory_free_bytes == 2048 * 1024


def test_work_of_our_own_is_not_that_of_others(machine):
    found = machine(busy_s=1.0)
    began_s = time.process_time()
    found.probe = MachineProbe(own_pids=lambda: [os.getpid()], threads=4, proc=found.proc)
    found.sample(elapsed_s=1.0)  # what was spent before counts for nothing
    before = found.probe._smoothed
    while time.process_time() - began_s < 0.1:
        pass
    found.sample(elapsed_s=1.0)
    others = (found.probe._smoothed - before) / 0.3 + before  # the EWMA undone
    assert others == pytest.approx((1.0 - 0.1) / 4, abs=0.01)


def test_an_idle_machine_is_as_fast_as_measured(machine):
    probe = machine(busy_s=0.0)
    assert probe.sample(elapsed_s=1.0).slow_down == 1.0


def test_lasting_work_of_others_shows_within_seconds(machine):
    probe = machine(busy_s=2.0, cores=4)  # half of the machine
    factors = [probe.sample(elapsed_s=1.0).slow_down for _ in range(12)]
    assert factors == sorted(factors)
    assert factors[5] > 1.4
    assert factors[-1] == pytest.approx(1.5, abs=0.05)  # four threads of ours and two of theirs on four cores


def test_others_that_leave_enough_cores_do_not_slow_us_down(machine):
    probe = machine(busy_s=2.0, cores=4, threads=2)
    assert [probe.sample(elapsed_s=1.0).slow_down for _ in range(12)] == [1.0] * 12


def test_work_that_gives_way_is_not_counted(machine):
    probe = machine(busy_s=0.0, nice_s=4.0, cores=4)
    assert [probe.sample(elapsed_s=1.0).slow_down for _ in range(12)] == [1.0] * 12


def test_the_factor_is_capped(machine):
    probe = machine(busy_s=100.0)
    assert [probe.sample(elapsed_s=1.0).slow_down for _ in range(50)][-1] <= SLOW_DOWN_MAX


@pytest.mark.parametrize(
    ("celsius", "frequency", "factor"),
    [
        (85.0, Frequency(750.0, 1500.0), 2.0),
        (60.0, Frequency(750.0, 1500.0), 1.0),
        (85.0, Frequency(1500.0, 1500.0), 1.0),
        (85.0, Frequency(0.0, 0.0), 1.0),
        (85.0, None, 1.0),
        (None, Frequency(750.0, 1500.0), 1.0),
    ],
)
def test_a_low_clock_counts_on_a_hot_machine_only(machine, celsius, frequency, factor):
    probe = machine(busy_s=0.0, celsius=celsius, frequency=frequency)
    assert probe.sample(elapsed_s=1.0).slow_down == factor


@pytest.mark.parametrize(
    ("battery", "power_class"),
    [(None, 0), (Battery(50, True), 0), (Battery(50, False), 1), (Battery(10, False), 2)],
)
def test_power_is_told_in_classes(machine, battery, power_class):
    assert machine(busy_s=0.0, battery=battery).sample(elapsed_s=1.0).power_class == power_class


def test_sensors_are_read_with_every_fifth_sample_and_a_cool_machine_is_not_asked_for_its_clock(machine, monkeypatch):
    probe = machine(busy_s=0.0)
    celsius = iter([50.0, 85.0])
    asked = {"clock": 0, "power": 0}

    def temperatures():
        return {"cpu": [Sensor(next(celsius))]}

    def clock():
        asked["clock"] += 1
        return Frequency(750.0, 1500.0)

    def battery():
        asked["power"] += 1
        return Battery(50, False)

    for name, read in (("sensors_temperatures", temperatures), ("cpu_freq", clock), ("sensors_battery", battery)):
        monkeypatch.setattr(f"psutil.{name}", read, raising=False)
    samples = [probe.sample(elapsed_s=1.0) for _ in range(10)]
    assert [sample.temperature_c for sample in samples] == 5 * [50.0] + 5 * [85.0]
    assert [sample.slow_down for sample in samples] == 5 * [1.0] + 5 * [2.0]
    assert asked == {"clock": 1, "power": 2}


def test_sensors_that_fail_cost_nothing(machine, monkeypatch):
    probe = machine(busy_s=0.0)

    def fail():
        raise OSError("no such sensor")

    for name in ("sensors_battery", "sensors_temperatures", "cpu_freq"):
        monkeypatch.setattr(f"psutil.{name}", fail, raising=False)
    sample = probe.sample(elapsed_s=1.0)
    assert (sample.slow_down, sample.temperature_c, sample.power_class) == (1.0, None, 0)
