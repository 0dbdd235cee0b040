"""Tells the service manager how the daemon is: the sd_notify protocol, one datagram each.

Source: sd_notify(3), section "Well-known assignments". Without NOTIFY_SOCKET every call does nothing.
"""

import os
import socket

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"


class Notifier:
    """Sends states to the socket named by the environment given at construction."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        self._watchdog_s = _watchdog_s(environment)

    @property
    def watchdog_interval_s(self) -> float | None:
        """Half the time the service manager waits for a sign of life; None where it does not watch."""
        return None if self._watchdog_s is None else self._watchdog_s / 2

    def send(self, *states: str) -> None:
        """Send states in one datagram. A manager that does not listen is no reason to fail."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.setblocking(False)
            try:
                channel.sendto("\n".join(states).encode(), address)
            except OSError:
                return


def _watchdog_s(environment: dict[str, str]) -> float | None:
    """Read WATCHDOG_USEC, unless it is meant for another process (WATCHDOG_PID)."""
    text = environment.get("WATCHDOG_USEC", "")
    pid = environment.get("WATCHDOG_PID", "")
    if not text.isdigit() or int(text) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(text) / 1e6
