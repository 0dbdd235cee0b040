"""Kept-open connections to peers, made on demand.

Owns which outbound connections exist, which of them are free, and who waits for one. Knows nothing of dialling
(a function passed in does it) and of what is exchanged. One exchange at a time per connection: a second one to
the same peer takes another connection, so a large payload never holds up a small answer.
"""

import math
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from transport.connection import Connection

Dialler = Callable[[str], Awaitable[Connection]]
"""Makes a connection to a peer; raises PeerUnreachableError."""


DIALS_AT_ONCE: Final = 2
"""Connections being made to one peer; more wait for these, or for one that falls free. A peer keeps eight places for
those of one address that have not proved who they are, and a burst of jobs must not look like an attack."""


class ConnectionPool:
    """Outbound connections, leased one exchange at a time.

    Parameters
    ----------
    dial : Dialler
        Makes a new one. What it returns must have been `register`ed.
    per_peer : int
        Bound per peer; further leases wait.
    in_all : int
        Bound over all peers; the one idle longest makes room, else leases wait.
    idle_s : float
        An idle connection is closed after this many seconds.
    """

    def __init__(self, dial: Dialler, *, per_peer: int, in_all: int, idle_s: float) -> None:
        self._dial = dial
        self._per_peer = per_peer
        self._in_all = in_all
        self._idle_s = idle_s
        self._open: dict[str, set[Connection]] = {}
        self._idle: dict[str, list[Connection]] = {}  # per peer, the one used last at the end
        self._dialling: dict[str, int] = {}
        self._room = trio.lowlevel.ParkingLot()
        self.reused = 0
        self.stale = 0

    @property
    def count(self) -> int:
        """Connections open or being made."""
        return sum(len(connections) for connections in self._open.values()) + sum(self._dialling.values())

    @property
    def idle_count(self) -> int:
        """Connections that wait for use."""
        return sum(len(connections) for connections in self._idle.values())

    def peers(self) -> tuple[str, ...]:
        """Return the peers with an open connection, sorted."""
        return tuple(sorted(self._open))

    def connections(self, peer: str) -> tuple[Connection, ...]:
        """Return the open connections of a peer, in use or not."""
        return tuple(self._open.get(peer, ()))

    def register(self, connection: Connection) -> None:
        """Take note of a connection that was made."""
        self._open.setdefault(connection.peer, set()).add(connection)

    def forget(self, connection: Connection) -> None:
        """Take note that a connection was closed."""
        connections = self._open.get(connection.peer, set())
        connections.discard(connection)
        if not connections:
            self._open.pop(connection.peer, None)
        idle = self._idle.get(connection.peer, [])
        if connection in idle:
            idle.remove(connection)
        if not idle:
            self._idle.pop(connection.peer, None)
        self._room.unpark_all()

    async def lease(self, peer: str) -> Connection:
        """Return a connection for one exchange; give it back with `release`.

        A pooled connection that the peer closed meanwhile is thrown away here, before anything is sent on it.
        Waits while the bounds are reached; the caller limits the time.

        Raises
        ------
        PeerUnreachableError
            None could be made.
        """
        while True:
            connection = self.take(peer)
            if connection is not None:
                return connection
            if self._make_room(peer):
                return await self._make(peer)
            await self._room.park()

    def take(self, peer: str) -> Connection | None:
        """Return an idle connection, if there is one; as lease()."""
        while connections := self._idle.get(peer):
            connection = connections.pop()
            if not connections:
                del self._idle[peer]
            connection.idle_since_s = math.inf
            if connection.is_reusable:
                self.reused += 1
                return connection
            self.stale += 1
            connection.close()
        return None

    def _make_room(self, peer: str) -> bool:
        dialling = self._dialling.get(peer, 0)
        if dialling >= DIALS_AT_ONCE or len(self._open.get(peer, ())) + dialling >= self._per_peer:
            return False
        if self.count < self._in_all:
            return True
        idle = [connections[0] for connections in self._idle.values()]
        if not idle:
            return False
        min(idle, key=lambda connection: connection.idle_since_s).close()
        return True

    async def _make(self, peer: str) -> Connection:
        self._dialling[peer] = self._dialling.get(peer, 0) + 1
        try:
            return await self._dial(peer)
        finally:
            self._dialling[peer] -= 1
            if not self._dialling[peer]:
                del self._dialling[peer]
            self._room.unpark_all()

    def release(self, connection: Connection, *, is_reusable: bool) -> None:
        """Give a leased connection back; it is closed unless the exchange on it is complete, since when it is idle."""
        if connection.is_closed:
            return
        if not is_reusable or connection.is_retired or not connection.is_between_frames:
            connection.close()
            return
        self._idle.setdefault(connection.peer, []).append(connection)
        self._room.unpark_all()

    def sweep(self) -> tuple[str, ...]:
        """Close what was idle too long, was closed by the peer or stalled in a frame.

        Returns
        -------
        tuple of str
            Peers that closed an idle connection: a first sign that they are gone.
        """
        now_s = trio.current_time()
        for connection in [connection for connections in self._open.values() for connection in connections]:
            connection.look_for_stall(now_s)
        gone = set()
        for connection in [connection for idle in self._idle.values() for connection in idle]:
            if not connection.is_reusable:
                gone.add(connection.peer)
                connection.close()
            elif now_s - connection.idle_since_s > self._idle_s:
                connection.close()
        return tuple(sorted(gone))

    def retire_all(self) -> None:
        """Close what is idle, and what is in use after its exchange: this node shows another certificate now."""
        for connection in [connection for connections in self._open.values() for connection in connections]:
            connection.is_retired = True
        for connection in [connection for idle in self._idle.values() for connection in idle]:
            connection.close()

    def close_all(self) -> None:
        """Close every connection."""
        for connection in [connection for connections in self._open.values() for connection in connections]:
            connection.close()
