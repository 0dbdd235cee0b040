"""The data plane of the network in memory."""

import functools
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final

import trio

from transport.base import Buffer, DataAddress, Exchange, ExchangeHandler, Listener, MakeRoom, Room
from transport.framing import PREFIX_BYTES, encode_prefix, total_bytes
from transport.memory_link import HOST, SEGMENT_BYTES, Wire
from transport.wire import (
    DataMessage,
    PeerUnreachableError,
    TransportError,
    decode_data,
    encode,
)

WINDOW_BYTES: Final = 4 << 20
"""Bytes on their way or unread after which a sender waits, as for full socket buffers."""
IDLE_MAX: Final = 4
"""Idle connections kept per peer."""
BACKLOG: Final = 64
"""Connections that wait to be accepted; more are refused."""
CONNECT_ROUND_TRIPS: Final = 3
"""TCP, TLS 1.3 with the confirmation byte, and Hello."""


class _End:
    """One end of a connection."""

    def __init__(self, wire: Wire, node: str, peer: str) -> None:
        self._wire = wire
        self._node = node
        self.peer = peer
        self._other: _End | None = None
        self._inbox: deque[tuple[bytes, memoryview]] = deque()
        self._unread_bytes = 0
        self._changed = trio.lowlevel.ParkingLot()
        self.unread: tuple[DataMessage, memoryview] | None = None
        """A frame that was given back."""
        self.broken = False
        """Closed from either side."""

    def join(self, other: "_End") -> None:
        """Make two ends one connection."""
        self._other, other._other = other, self

    async def send(self, header: bytes, payload: memoryview) -> None:
        """Send a frame; waits while the window is full."""
        other = self._other
        assert other is not None
        await trio.lowlevel.checkpoint()
        size_bytes = PREFIX_BYTES + len(header) + payload.nbytes
        try:
            while not self.broken and other._unread_bytes and other._unread_bytes + size_bytes > WINDOW_BYTES:
                await other._changed.park()
        except trio.Cancelled:
            self.close()
            raise
        if self.broken:
            raise PeerUnreachableError(f"the connection to {self.peer} is closed")
        other._unread_bytes += size_bytes
        self._wire.send(self._node, self.peer, size_bytes, lambda: other._arrive(header, payload))

    def _arrive(self, header: bytes, payload: memoryview) -> None:
        if not self.broken:
            self._inbox.append((header, payload))
            self._changed.unpark_all()

    async def receive(self) -> tuple[bytes, memoryview]:
        """Return the next frame; what arrived before the close is still read."""
        await trio.lowlevel.checkpoint()
        while not self._inbox:
            if self.broken:
                raise PeerUnreachableError(f"{self.peer} closed the connection")
            await self._changed.park()
        header, payload = self._inbox.popleft()
        self._unread_bytes -= PREFIX_BYTES + len(header) + payload.nbytes
        self._changed.unpark_all()
        return header, payload

    def close(self) -> None:
        """Close the connection from this side; nothing more is read."""
        self._inbox.clear()
        if not self.broken:
            self._break()
            other = self._other
            if other is not None:
                self._wire.send(self._node, self.peer, SEGMENT_BYTES, other._break)

    def _break(self) -> None:
        self.broken = True
        self._changed.unpark_all()
        if self._other is not None:
            self._other._changed.unpark_all()


class _MemoryExchange:
    """Implements transport.base.Exchange over one end."""

    def __init__(self, end: _End) -> None:
        self._end = end
        self.finished = False

    @property
    def peer(self) -> str:
        return self._end.peer

    async def send(self, message: DataMessage, payload: Sequence[Buffer] = ()) -> None:
        header = encode(message)
        encode_prefix(header, total_bytes(payload))
        copy = bytearray().join(memoryview(part).cast("B") for part in payload)
        await self._end.send(header, memoryview(copy))

    def send_nowait(self, message: DataMessage, payload: Sequence[Buffer] = ()) -> bool:
        raise trio.WouldBlock  # a send here takes its turn, so that runs repeat

    async def flush(self) -> None:
        await trio.lowlevel.checkpoint()

    def listen(self, listener: Listener) -> bool:
        return False  # as above

    def take_room(self) -> Room | None:
        return None  # payloads are handed over here, not received

    def unread(self, message: DataMessage, payload: memoryview) -> None:
        self._end.unread = message, payload

    async def receive(self) -> tuple[DataMessage, memoryview]:
        if self._end.unread is not None:
            unread, self._end.unread = self._end.unread, None
            return unread
        header, payload = await self._end.receive()
        try:
            return decode_data(header), payload
        except TransportError:
            self._end.close()
            raise

    def finish(self) -> None:
        self.finished = True


class MemoryData:
    """Exchanges of one node; implements transport.base.DataPlane."""

    def __init__(self, node: str, wire: Wire) -> None:
        self.make_room: MakeRoom = lambda _message, _size: None
        """Never asked: payloads are handed over here, not received."""
        self._node = node
        self._wire = wire
        self._addresses: dict[str, tuple[DataAddress, ...]] = {}
        self._idle: dict[str, list[_End]] = {}
        self._ends: dict[_End, None] = {}
        """Open connections, in the order they were made."""
        self._port: int | None = None
        self._accepted, self._accepting = trio.open_memory_channel[_End](BACKLOG)

    @property
    def node(self) -> str:
        """PeerID of this node."""
        return self._node

    def set_address(self, node: str, addresses: Sequence[DataAddress]) -> None:
        """Tell where a peer's data port is; an empty sequence forgets it."""
        if addresses:
            self._addresses[node] = tuple(addresses)
        else:
            self._addresses.pop(node, None)

    def take(self, peer: str) -> Exchange | None:
        """Return none: a lease here takes its turn, so that runs repeat."""
        return None

    def give_back(self, exchange: Exchange) -> None:
        """Do nothing: no lease was taken."""

    def exchange(self, peer: str) -> AbstractAsyncContextManager[Exchange]:
        """Lease a pooled connection, or make one."""
        return self._exchange(peer)

    @asynccontextmanager
    async def _exchange(self, peer: str) -> AsyncIterator[Exchange]:
        end = self._take_idle(peer) or await self._open(peer)
        exchange = _MemoryExchange(end)
        try:
            yield exchange
        finally:
            idle = self._idle.setdefault(peer, [])
            if exchange.finished and not end.broken and len(idle) < IDLE_MAX:
                idle.append(end)
            else:
                self._forget(end)

    def _take_idle(self, peer: str) -> _End | None:
        idle = self._idle.get(peer, [])
        while idle:
            end = idle.pop()
            if not end.broken:
                return end
            self._forget(end)
        return None

    async def _open(self, peer: str) -> _End:
        error = PeerUnreachableError(f"no data address of {peer} is known")
        for address in self._addresses.get(peer, ()):
            end, other = _End(self._wire, self._node, peer), _End(self._wire, peer, self._node)
            end.join(other)
            try:
                meet = functools.partial(self._meet, peer, address, other)
                await self._wire.connect(self._node, peer, meet, round_trips=CONNECT_ROUND_TRIPS)
            except PeerUnreachableError as refused:
                end.close()
                error = refused
            except trio.Cancelled:
                end.close()
                raise
            else:
                self._ends[end] = None
                return end
        raise error

    def _meet(self, peer: str, address: DataAddress, other: _End) -> bool:
        listener = self._wire.listener(address.port)
        if not isinstance(listener, MemoryData) or listener.node != peer:
            return False
        try:
            listener._accepted.send_nowait(other)
        except (trio.WouldBlock, trio.BrokenResourceError):
            return False
        listener._ends[other] = None
        return True

    def _forget(self, end: _End) -> None:
        end.close()
        self._ends.pop(end, None)

    def open_peers(self) -> tuple[str, ...]:
        """Return the peers with an open connection, sorted."""
        return tuple(sorted({end.peer for end in self._ends if not end.broken}))

    async def close_refused(self) -> tuple[str, ...]:
        """Do nothing: there are no certificates in memory."""
        await trio.lowlevel.checkpoint()
        return ()

    async def close_peer(self, peer: str) -> None:
        """Close all connections of a peer, in use or not."""
        await trio.lowlevel.checkpoint()
        for end in [end for end in self._ends if end.peer == peer]:
            self._forget(end)

    async def serve(
        self, handler: ExchangeHandler, *, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until cancelled; reports host and port."""
        self._port = self._wire.bind(self)
        task_status.started((HOST, self._port))
        try:
            async with trio.open_nursery() as nursery:
                async for end in self._accepting:
                    nursery.start_soon(self._serve_connection, end, handler)
        finally:
            self.break_all()

    async def _serve_connection(self, end: _End, handler: ExchangeHandler) -> None:
        try:
            while True:
                exchange = _MemoryExchange(end)
                message, payload = await exchange.receive()
                await handler(exchange, message, payload)
                if not exchange.finished:
                    return
        except TransportError:
            return
        finally:
            self._forget(end)

    def break_all(self) -> None:
        """Close every connection at once, as a process does that dies."""
        if self._port is not None:
            self._wire.unbind(self._port)
            self._port = None
        for end in self._ends:
            end.close()
        self._ends.clear()
        self._idle.clear()
