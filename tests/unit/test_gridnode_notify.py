"""The service manager's datagrams."""

import os
import socket

import pytest

from gridnode.notify import READY, WATCHDOG, Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_states_arrive_in_one_datagram(tmp_path, abstract):
    name = f"@gridnode-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("\0" + name[1:] if abstract else name)
        manager.settimeout(5)
        Notifier({"NOTIFY_SOCKET": name}).send(READY, "STATUS=serving")
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"


def test_nobody_listening_is_no_reason_to_fail(tmp_path):
    Notifier({}).send(READY)
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "none")}).send(WATCHDOG)


@pytest.mark.parametrize(
    ("environment", "interval_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "4000000"}, 2.0),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": str(os.getpid())}, 2.0),
        ({"WATCHDOG_USEC": "4000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_life_is_shown_twice_per_watchdog_time(environment, interval_s):
    assert Notifier(environment).watchdog_interval_s == interval_s
