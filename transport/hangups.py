"""Tells which peers have closed a connection that nobody reads, without looking at one after the other.

Owns one epoll object for the sockets of all pooled connections, which asks for nothing but the other side's end. Linux
wakes nobody for the bytes that come on them, so an idle node stays idle, and a peer that dies is known at once. Knows
nothing of TLS or of what a connection is for.
"""

import math
import select
import socket
from collections.abc import Callable
from typing import Final

import trio

from transport.connection import Connection

EVENTS_MAX: Final = 64
"""Ends taken in one go; more wait for the next."""


class Hangups:
    """Watches outbound connections, and closes those that their peers closed.

    Parameters
    ----------
    on_peer_closed : callable
        Told the PeerID when a peer closed an idle connection. Must be quick.
    """

    def __init__(self, on_peer_closed: Callable[[str], None]) -> None:
        self._on_peer_closed = on_peer_closed
        self._epoll = select.epoll()
        self._watched: dict[int, Connection] = {}
        """By descriptor. One that was closed on this side stays until the next connection comes."""

    def watch(self, plain: socket.socket, connection: Connection) -> None:
        """Watch a connection, on this socket, until it is closed: the kernel forgets a descriptor that is."""
        if connection.is_closed:
            return
        self._watched = {number: other for number, other in self._watched.items() if not other.is_closed}
        self._watched[plain.fileno()] = connection
        # Edge-triggered: told once, or a connection in use would be told of again and again until it is closed.
        self._epoll.register(plain, select.EPOLLRDHUP | select.EPOLLET)

    async def serve(self) -> None:
        """Run until cancelled."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            for descriptor, _ in self._epoll.poll(0, EVENTS_MAX):
                connection = self._watched.pop(descriptor, None)
                if connection is not None and not connection.is_closed:
                    self._take_end(connection)

    def _take_end(self, connection: Connection) -> None:
        connection.is_retired = True  # in use, it is closed after its exchange, whose reader sees the end itself
        if connection.idle_since_s < math.inf:
            connection.close()
            self._on_peer_closed(connection.peer)
