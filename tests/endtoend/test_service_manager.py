"""A real daemon under a service manager that watches it: the sd_notify protocol over a real datagram socket."""

import itertools
import signal
import socket
import statistics
import time

import pytest

pytestmark = pytest.mark.slow

WATCHDOG_S = 0.6


def drain(manager):
    """Read what was sent before the stop, and wait for more."""
    while True:
        manager.recv(4096)


def test_the_watchdog_is_fed_twice_per_interval_and_starves_when_the_daemon_hangs(real_grid, tmp_path):
    node = real_grid.join("n2")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        node.start(environment={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))})
        first = manager.recv(4096).decode().split("\n")
        assert first[0] == "READY=1"
        assert first[1].startswith("STATUS=")
        fed_s = []
        while len(fed_s) < 6:
            assert manager.recv(4096) == b"WATCHDOG=1"
            fed_s.append(time.monotonic())
        gaps_s = [later - earlier for earlier, later in itertools.pairwise(fed_s)]
        assert statistics.median(gaps_s) == pytest.approx(WATCHDOG_S / 2, rel=0.3)
        assert max(gaps_s) < WATCHDOG_S
        node.signal(signal.SIGSTOP)
        manager.settimeout(1.5 * WATCHDOG_S)
        with pytest.raises(TimeoutError):
            drain(manager)
        # What the unit tells systemd to do then (WatchdogSignal): nothing is left behind by it.
        workers = node.workers()
        node.signal(signal.SIGABRT)
        node.signal(signal.SIGCONT)
        assert node.process.wait(10) == -signal.SIGABRT
        for worker in workers:
            worker.wait(5)
    # The stacks are what an operator wants to see.
    assert "most recent call first" in node.log_text()
    node.log.write_text("")
