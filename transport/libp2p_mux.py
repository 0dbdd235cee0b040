"""Our muxer, `/gridnode/mux/1.0.0`, as libp2p wants one. Offered before yamux; docs/adr/0004 says why.

Gives transport.muxcore tasks, time and a connection. What it adds to the protocol: a frame is sent in the very call
that makes it where the kernel takes it at once; a peer that says nothing is asked, and cut off when it stays silent; a
writer waits for a reader of the other side only so long; a cancelled write tears no frame.
"""

from collections.abc import Awaitable, Callable
from typing import Final

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import IOException
from libp2p.network.connection.exceptions import RawConnError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from transport.beats import next_beat_s
from transport.libp2p_security import GridSession
from transport.muxcore import NORMAL, OUTGOING_MAX_BYTES, SILENCE, VIOLATION, MuxCore, Stream
from transport.wire import LocalProtocolError, RemoteProtocolError

MUX_PROTOCOL: Final = TProtocol("/gridnode/mux/1.0.0")
PING_AFTER_S: Final = 10.0
"""Longest silence after which the peer is asked for a sign of life. Gossip is one: between busy nodes there are no
pings."""
PING_TIMEOUT_S: Final = 10.0
"""How long its answer may take. A cable pulled is noticed within the two; the failure detector is much quicker."""
CREDIT_TIMEOUT_S: Final = 10.0
"""How long a stream's writer waits for its reader on the other side, or for the connection, before it is reset."""
GOODBYE_S: Final = 1.0
"""How long closing waits for the last bytes to leave."""


class GridMuxStream(IMuxedStream):
    """One stream of a GridMux."""

    def __init__(self, conn: "GridMux", stream: Stream) -> None:
        self.muxed_conn = conn
        self._mux = conn
        self._stream = stream
        self._changed = trio.lowlevel.ParkingLot()
        """Readers that wait."""
        self._credited = trio.lowlevel.ParkingLot()
        """Writers that wait for their reader on the other side."""
        self._take: Callable[[bytes], None] | None = None
        self._fault: Exception | None = None

    def wake(self) -> None:
        """Have readers and writers look again."""
        stream = self._stream
        self._credited.unpark_all()
        if self._take is not None and stream.buffer:
            self._feed(self._take)
            is_over = stream.is_ended or stream.is_reset or stream.is_left or self._mux.is_closed
            if self._fault is None and not is_over:
                return  # taken: to wake whoever consumes would cost as much again
        self._changed.unpark_all()

    def _feed(self, take: Callable[[bytes], None]) -> None:
        data = self._mux.core.read(self._stream)
        self._settle()
        try:
            take(data)
        except Exception as error:  # it belongs to whoever consumes, not to the connection's reader
            self._take, self._fault = None, error

    async def consume(self, take: Callable[[bytes], None]) -> None:
        """Give what comes to a function, in the very call that receives it, until the stream ends.

        A task that reads would be woken for it, which costs as much as all else that is done for a small message.

        Raises
        ------
        MuxedStreamEOF, MuxedStreamReset
            As read; what ``take`` raises comes up here, too.
        """
        await trio.lowlevel.checkpoint()
        self._take = take
        try:
            self.wake()
            while self._fault is None:
                self._check_readable()
                await self._changed.park()
            raise self._fault
        finally:
            self._take = None

    async def read(self, n: int | None = None) -> bytes:
        """Return up to n bytes (None: what is there), at least one.

        Raises
        ------
        MuxedStreamEOF
            The peer has finished, and all it sent was read.
        MuxedStreamReset
            The stream, or its connection, was cut off.
        """
        stream = self._stream
        if stream.buffer:
            await trio.lowlevel.checkpoint()
        while not stream.buffer:
            self._check_readable()
            await self._changed.park()
        data = self._mux.core.read(stream, n)
        self._settle()
        return data

    def _check_readable(self) -> None:
        stream = self._stream
        if stream.is_ended or stream.is_left:
            raise MuxedStreamEOF(f"stream {stream.number} has ended")
        if stream.is_reset or self._mux.is_closed:
            raise MuxedStreamReset(f"stream {stream.number} was reset")

    async def write(self, data: bytes) -> None:
        """Send all of it. Cancelled half way, the stream is reset: half a message would look like a whole one.

        Raises
        ------
        MuxedStreamClosed
            This side has finished.
        MuxedStreamReset
            The stream was cut off, or nobody read it for CREDIT_TIMEOUT_S.
        """
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        try:
            while rest:
                if not self._may_write():
                    await self._wait_writable()
                    continue
                rest = rest[self._mux.core.write(self._stream, rest) :]
                self._mux.flush()
        except trio.Cancelled:
            if len(rest) < len(data):
                self._cut()
            raise

    def write_nowait(self, data: bytes) -> bool:
        """Send all of it without waiting; False when that cannot be done now, and nothing was taken."""
        stream, mux = self._stream, self._mux
        if stream.is_reset or stream.is_finished or mux.is_closed or mux.core.outgoing_bytes:
            return False
        if stream.credit < len(data):
            return False
        mux.core.write(stream, data)
        mux.flush()
        return True

    def _may_write(self) -> bool:
        if self._stream.is_reset or self._mux.is_closed:
            raise MuxedStreamReset(f"stream {self._stream.number} was reset")
        if self._stream.is_finished:
            raise MuxedStreamClosed(f"stream {self._stream.number} is closed for writing")
        return self._stream.credit > 0 and self._mux.core.outgoing_bytes < OUTGOING_MAX_BYTES

    async def _wait_writable(self) -> None:
        with trio.move_on_after(CREDIT_TIMEOUT_S) as patience:
            while not self._may_write():
                if self._stream.credit:
                    await self._mux.sent.park()
                else:
                    await self._credited.park()
        if patience.cancelled_caught:
            self._cut()
            raise MuxedStreamReset(f"stream {self._stream.number}: nothing was read for {CREDIT_TIMEOUT_S} s")

    def _cut(self) -> None:
        self._mux.core.reset(self._stream)
        self._settle()
        self.wake()

    def _settle(self) -> None:
        self._mux.flush()
        self._mux.let_go(self._stream)

    async def close(self) -> None:
        """Finish, and take no more."""
        self._mux.core.leave(self._stream)
        self._settle()
        self.wake()
        await trio.lowlevel.checkpoint()

    async def close_write(self) -> None:
        """Finish; reading goes on."""
        self._mux.core.finish(self._stream)
        self._settle()
        await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        """Cut the stream off; the peer's reader sees a reset, not an end."""
        self._cut()
        await trio.lowlevel.checkpoint()

    def set_deadline(self, ttl: int) -> None:
        """Refuse: deadlines are cancel scopes."""
        raise NotImplementedError("deadlines are cancel scopes of the caller")

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the peer's host and port."""
        return self._mux.get_remote_address()

    async def __aenter__(self) -> "GridMuxStream":
        """Return this stream."""
        return self


class GridMux(IMuxedConn):
    """One connection with many streams.

    Parameters
    ----------
    conn : ISecureConn
        Owned by this object from now on.
    peer_id : ID
        Who is at the other end, proved by the connection.
    """

    def __init__(self, conn: ISecureConn, peer_id: ID) -> None:
        self.secured_conn: Final = conn
        self.peer_id = peer_id
        self.event_started = trio.Event()
        self.core: Final = MuxCore(is_initiator=conn.is_initiator)
        self.sent: Final = trio.lowlevel.ParkingLot()
        """Writers that wait until bytes have left."""
        self._direct = conn if isinstance(conn, GridSession) else None
        self._streams: dict[Stream, GridMuxStream] = {}
        self._arrivals = trio.lowlevel.ParkingLot()
        self._to_write = trio.Event()
        self._is_writing = False
        self._scope = trio.CancelScope()
        self._closed = trio.Event()
        self._fault: Exception | None = None
        """What ended a task and should not have."""

    # ------------------------------------------------------------ streams

    async def open_stream(self) -> GridMuxStream:
        """Open a stream; MuxedStreamError when there may be no more."""
        await trio.lowlevel.checkpoint()
        if self.is_closed:
            raise MuxedStreamError("the connection is closed")
        try:
            stream = self.core.open()
        except LocalProtocolError as error:
            raise MuxedStreamError(str(error)) from error
        self.flush()
        return self._adopt(stream)

    async def accept_stream(self) -> GridMuxStream:
        """Wait for a stream that the peer opens; MuxedConnUnavailable once the connection is closed."""
        await trio.lowlevel.checkpoint()
        while not self.core.accepted:
            if self.is_closed:
                raise MuxedConnUnavailable("the connection is closed")
            await self._arrivals.park()
        return self._adopt(self.core.accepted.popleft())

    def _adopt(self, stream: Stream) -> GridMuxStream:
        found = self._streams[stream] = GridMuxStream(self, stream)
        return found

    def let_go(self, stream: Stream) -> None:
        """Forget a stream that is over."""
        if stream.number not in self.core.streams:
            self._streams.pop(stream, None)

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Run until the connection ends."""
        if self.event_started.is_set():
            return
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    for task in (self._read_all, self._write_all, self._watch):
                        nursery.start_soon(self._run, task)
                    self.event_started.set()
            if self._fault is not None:
                raise self._fault
        finally:
            await self._end(NORMAL)

    async def _run(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task; its end is the connection's."""
        try:
            await task()
        except (IOException, RawConnError):
            pass  # the connection broke, as connections do
        except Exception as error:
            # Alone, not in a group: one that holds a cancellation, too, would pass the swarm's fence.
            self._fault = error
        finally:
            self._scope.cancel()

    async def _read_all(self) -> None:
        core = self.core
        while core.goodbye is None:
            data = await self.secured_conn.read(None)
            try:
                changed = core.receive(data)
            except RemoteProtocolError:
                await self._end(VIOLATION)
                return
            for stream in changed:
                if (waiting := self._streams.get(stream)) is not None:
                    waiting.wake()
                    self.let_go(stream)
            if core.accepted:
                self._arrivals.unpark_all()
            self.flush()

    def flush(self) -> None:
        """Send what waits, at once if the kernel takes it; otherwise the writing task does."""
        core = self.core
        if self._is_writing or not core.outgoing_bytes:
            return
        if self._direct is None or not self._direct.send_nowait(core.take_outgoing()) or self._direct.is_clogged:
            self._wake_writer()

    def _wake_writer(self) -> None:
        self._is_writing = True
        self._to_write.set()

    async def _write_all(self) -> None:
        while True:
            await self._to_write.wait()
            self._to_write = trio.Event()
            while self.core.outgoing_bytes or (self._direct is not None and self._direct.is_clogged):
                await self.secured_conn.write(self.core.take_outgoing())
                self.sent.unpark_all()
            self._is_writing = False

    async def _watch(self) -> None:
        """Ask a silent peer for a sign of life."""
        while True:
            heard = self.core.frames_received
            await trio.sleep_until(next_beat_s(trio.current_time(), PING_AFTER_S))
            if self.core.frames_received != heard:
                continue
            self.core.ping(heard.to_bytes(8, "big"))
            self.flush()
            await trio.sleep(PING_TIMEOUT_S)
            if self.core.frames_received == heard:
                await self._end(SILENCE)
                return

    async def close(self) -> None:
        """Say goodbye and close the connection."""
        await self._end(NORMAL)

    async def _end(self, reason: int) -> None:
        if self._closed.is_set():
            return
        self._closed.set()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + GOODBYE_S):
            await self._say_goodbye(reason)
        self._scope.cancel()
        self._arrivals.unpark_all()
        self.sent.unpark_all()
        for stream in self._streams.values():
            stream.wake()
        self._streams.clear()

    async def _say_goodbye(self, reason: int) -> None:
        try:
            if self.core.goodbye is None and not self._is_writing:
                self._is_writing = True
                self.core.go_away(reason)
                await self.secured_conn.write(self.core.take_outgoing())
            await self.secured_conn.close()
        except (IOException, RawConnError):
            return  # it is gone already

    # ------------------------------------------------------------ what libp2p asks

    @property
    def is_initiator(self) -> bool:
        """Whether this side dialled."""
        return self.secured_conn.is_initiator

    @property
    def is_established(self) -> bool:
        """Whether streams can be opened."""
        return self.event_started.is_set() and not self.is_closed

    @property
    def is_closed(self) -> bool:
        """Whether the connection is over."""
        return self._closed.is_set()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the peer's host and port."""
        return self.secured_conn.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Return the peer's address in libp2p's notation."""
        return self.secured_conn.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        """Return how the connection was made."""
        return self.secured_conn.get_connection_type()
