"""Connections of simulated nodes: set-up, frames, the window, breaking, and pools of idle ones.

transport.memory_data is the model. A connection is set up with three round trips, kept in a pool of bounded size when
its exchange is over, and holds back its sender while too much is on its way.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

from simulator.engine import Call, Timer
from simulator.network import SEGMENT_BYTES, Wire
from transport.framing import PREFIX_BYTES
from transport.wire import DataMessage, encode

CONNECT_ROUND_TRIPS: Final = 3
"""TCP, TLS 1.3 with the confirmation byte, and Hello."""
CONNECT_TIMEOUT_S: Final = 5.0
"""How long a connection attempt waits for a silent peer."""
WINDOW_BYTES: Final = 4 << 20
"""Bytes on their way after which a sender waits, as for full socket buffers."""
IDLE_MAX: Final = 4
"""Idle connections kept per peer."""


class Reader(Protocol):
    """Whoever owns one end of a connection at the moment."""

    def take(self, end: "End", message: DataMessage) -> None:
        """Take a message that has arrived."""
        ...

    def lose(self, end: "End") -> None:
        """Note that the peer closed the connection, or died."""
        ...


class Caller(Protocol):
    """Whoever asked for a connection."""

    def connected(self, end: "End") -> None:
        """Take the connection."""
        ...

    def refused(self) -> None:
        """Note that there is none to be had."""
        ...


class End:
    """One end of a connection."""

    __slots__ = ("_other", "_unread_bytes", "_waiting", "_wire", "is_broken", "node", "peer", "reader")

    def __init__(self, wire: Wire, node: str, peer: str) -> None:
        self._wire = wire
        self._other: End | None = None
        self._unread_bytes = 0
        self._waiting: deque[tuple[DataMessage, int, Call | None]] = deque()
        self.node = node
        self.peer = peer
        self.is_broken = False
        self.reader: Reader | None = None

    def join(self, other: "End") -> None:
        """Make two ends one connection."""
        self._other, other._other = other, self

    def send(self, message: DataMessage, payload_bytes: int = 0, on_sent: Call | None = None) -> None:
        """Send a message with a payload behind those that wait; `on_sent` is called when it has left completely."""
        size_bytes = PREFIX_BYTES + len(encode(message)) + payload_bytes
        self._waiting.append((message, size_bytes, on_sent))
        # As in the daemon, where whoever sends lets the other tasks have their turn first.
        self._wire.engine.soon(self._flush)

    def _flush(self) -> None:
        other = self._other
        assert other is not None, "a connection has two ends"
        for _ in range(len(self._waiting)):  # what `on_sent` adds has a turn of its own
            if self.is_broken:
                return
            message, size_bytes, on_sent = self._waiting[0]
            if other._unread_bytes and other._unread_bytes + size_bytes > WINDOW_BYTES:
                return
            self._waiting.popleft()
            other._unread_bytes += size_bytes
            self._wire.send(self.node, self.peer, size_bytes, partial(other._arrive, message, size_bytes))
            if on_sent is not None:
                on_sent()

    def _arrive(self, message: DataMessage, size_bytes: int) -> None:
        self._unread_bytes -= size_bytes
        if not self.is_broken and self.reader is not None:
            self.reader.take(self, message)
        if self._other is not None and self._other._waiting:
            self._other._flush()

    def close(self) -> None:
        """Close the connection from this side; nothing more is read here."""
        self.reader = None
        self._waiting.clear()
        if not self.is_broken and self._other is not None:
            self.is_broken = True
            self._wire.send(self.node, self.peer, SEGMENT_BYTES, self._other._break)

    def _break(self) -> None:
        if self.is_broken:
            return
        self.is_broken = True
        self._waiting.clear()
        if self.reader is not None:
            self.reader.lose(self)


class Attempt:
    """One connection being set up; can be given up."""

    def __init__(self, plane: "Plane", peer: str, caller: Caller) -> None:
        self._plane = plane
        self._wire = plane.wire
        self._peer = peer
        self._caller = caller
        self._end = End(self._wire, plane.node, peer)
        self._other = End(self._wire, peer, plane.node)
        self._end.join(self._other)
        self._timeout: Timer | None = None
        self._is_over = False

    def start(self) -> None:
        """Send the first request."""
        self._timeout = self._wire.engine.after(CONNECT_TIMEOUT_S, self._fail)
        self._ask(1)

    def give_up(self) -> None:
        """Want the connection no more."""
        if not self._is_over:
            self._finish()
            self._end.close()

    def _ask(self, number: int) -> None:
        if self._is_over:
            return
        if self._wire.is_gone(self._peer):
            self._wire.engine.after(self._wire.refusal_s, self._fail)
            return
        self._wire.send(self._plane.node, self._peer, SEGMENT_BYTES, partial(self._answer, number))

    def _answer(self, number: int) -> None:
        """Answer a request, at the peer."""
        is_last = number == CONNECT_ROUND_TRIPS
        is_taken = not is_last or self._plane.meet(self._peer, self._other)
        then = self._fail if not is_taken else self._succeed if is_last else partial(self._ask, number + 1)
        self._wire.send(self._peer, self._plane.node, SEGMENT_BYTES, then)

    def _succeed(self) -> None:
        if not self._is_over:
            self._finish()
            self._plane.keep(self._end)
            self._caller.connected(self._end)

    def _fail(self) -> None:
        if not self._is_over:
            self._finish()
            self._end.close()
            self._caller.refused()

    def _finish(self) -> None:
        self._is_over = True
        if self._timeout is not None:
            self._timeout.cancel()


class Plane:
    """The data plane of one node: its open connections and the pools of idle ones.

    Parameters
    ----------
    node : str
        This node.
    wire : Wire
        What lies between the nodes.
    planes : dict
        All planes by node; this one is added.
    accept : callable
        Called with the other end of a connection that a peer made.
    """

    def __init__(self, node: str, wire: Wire, planes: "dict[str, Plane]", accept: Callable[[End], None]) -> None:
        self.node = node
        self.wire = wire
        self._planes = planes
        self._accept = accept
        self._idle: dict[str, list[End]] = {}
        self._ends: dict[End, None] = {}
        planes[node] = self

    def lease(self, peer: str, caller: Caller) -> Attempt | None:
        """Give the caller an idle connection at once, or set one up."""
        idle = self._idle.get(peer)
        while idle:
            end = idle.pop()
            if not end.is_broken:
                caller.connected(end)
                return None
            self.close(end)
        attempt = Attempt(self, peer, caller)
        attempt.start()
        return attempt

    def release(self, end: End) -> None:
        """Take back a connection whose exchange is complete."""
        idle = self._idle.setdefault(end.peer, [])
        if not end.is_broken and len(idle) < IDLE_MAX:
            end.reader = None
            idle.append(end)
        else:
            self.close(end)

    def close(self, end: End) -> None:
        """Close a connection."""
        end.close()
        self._ends.pop(end, None)

    def keep(self, end: End) -> None:
        """Count a connection as open."""
        self._ends[end] = None

    def meet(self, peer: str, end: End) -> bool:
        """Give a peer its end of a new connection; False when it does not listen."""
        plane = self._planes.get(peer)
        if plane is None:
            return False
        plane.keep(end)
        plane._accept(end)
        return True

    def break_all(self) -> None:
        """Close every connection at once, as a process does that dies, and listen no more."""
        self._planes.pop(self.node, None)
        for end in list(self._ends):
            end.close()
        self._ends.clear()
        self._idle.clear()
