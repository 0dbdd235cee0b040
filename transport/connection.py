"""One data connection: frames over TLS, with a time limit on every frame that has begun.

Owns sending and receiving of data messages on one certified connection. Knows nothing of pools, addresses or
what the messages mean.

A peer that stops in the middle of a frame, or stops reading one, must not hold a buffer or a task for ever
(slow-loris): a frame may take `stall_s` plus its size over `slowest_rate`. Between frames no limit holds; the
caller has one.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import trio

from transport import wire
from transport.base import Buffer, MakeRoom, Room
from transport.certificates import PeerCertificate
from transport.framing import Frame, FrameReceiver, encode_prefix, total_bytes
from transport.securestream import SecureStream
from transport.wire import DataMessage, PeerUnreachableError, RemoteProtocolError, TransportError

FRAMES_IN_A_ROW: Final = 16
"""Frames taken before other tasks get a turn: about 1 ms of small questions."""


class FrameLimits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of a frame."""

    payload_max_bytes: int = wire.PAYLOAD_MAX_BYTES
    """Largest payload taken or sent."""
    stall_s: float = 10.0
    """Time for a frame of no size, in seconds: several retransmissions on a bad radio link."""
    slowest_rate: float = 64 * 1024
    """Bytes per second below which a peer counts as stalled: a picture of 150 kB then takes over 2 s, useless."""
    receive_budget_bytes: int = 256 * 1024 * 1024
    """Payloads being received at once, over all connections of the node; more wait in the kernel's buffers."""

    def time_s(self, size_bytes: int) -> float:
        """Return how long a frame of this size may take, in seconds."""
        return self.stall_s + size_bytes / self.slowest_rate


class ByteBudget:
    """Bytes that may be allocated at once; who finds none waits.

    Parameters
    ----------
    total_bytes : int
        The bound; a single request above it is served alone.
    """

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._used_bytes = 0
        self._lot = trio.lowlevel.ParkingLot()

    @property
    def used_bytes(self) -> int:
        """Bytes taken now."""
        return self._used_bytes

    async def take(self, count: int) -> None:
        """Wait until so many bytes are free, and take them."""
        while self._used_bytes and self._used_bytes + count > self._total_bytes:
            await self._lot.park()
        self._used_bytes += count

    def give_back(self, count: int) -> None:
        """Free bytes."""
        self._used_bytes -= count
        self._lot.unpark_all()


class Traffic:
    """Counters of all connections of a node."""

    def __init__(self) -> None:
        self.frames_sent = 0
        self.frames_received = 0
        self.bytes_sent = 0
        self.bytes_received = 0


class Connection:
    """Frames with one certified peer.

    Parameters
    ----------
    stream : SecureStream
        After the handshake; owned by this object from now on.
    certificate : PeerCertificate
        Of the peer.
    limits : FrameLimits
        Bounds of a frame.
    budget : ByteBudget
        Shared by all connections of the node.
    traffic : Traffic
        Shared counters.
    on_close : callable
        Called once, with this object, when it is closed by either side.
    make_room : callable, optional
        Chooses where payloads are received.
    """

    def __init__(
        self,
        stream: SecureStream,
        certificate: PeerCertificate,
        *,
        limits: FrameLimits,
        budget: ByteBudget,
        traffic: Traffic,
        on_close: Callable[["Connection"], None],
        make_room: MakeRoom = lambda _message, _size: None,
    ) -> None:
        self.certificate = certificate
        self.idle_since_s = math.inf
        """When it last became idle, on trio's clock, in seconds; infinite while in use."""
        self.is_retired = False
        """Whether it is to be closed after the exchange that it is used for."""
        self._stream = stream
        self._limits = limits
        self._budget = budget
        self._traffic = traffic
        self._on_close = on_close
        self._make_room = make_room
        self._receiver = FrameReceiver(payload_max_bytes=limits.payload_max_bytes, allocate=self._allocate)
        self._message: DataMessage | None = None
        """Of the frame whose payload is being received."""
        self._room: Room | None = None
        """Where that payload, or the last one, lies, unless somebody took it."""
        self._taken_bytes = 0
        self._deadline_s = math.inf
        self._unread: tuple[DataMessage, memoryview] | None = None
        self._in_a_row = 0
        """Frames taken since there was a wait."""

    @property
    def peer(self) -> str:
        """Certified PeerID of the other side."""
        return self.certificate.node

    @property
    def is_closed(self) -> bool:
        """Whether it is of no more use."""
        return self._stream.is_closed

    @property
    def is_reusable(self) -> bool:
        """Whether a new exchange may begin on it: open, and nothing arrived that nobody asked for."""
        return self._unread is None and self._receiver.is_between_frames and self._stream.is_quiet()

    @property
    def is_between_frames(self) -> bool:
        """Whether it is open and no frame is half received."""
        return self._receiver.is_between_frames and not self._stream.is_closed

    async def send(self, message: DataMessage, payload: Sequence[Buffer] = ()) -> None:
        """Send a frame. Cancelling it half way closes the connection.

        Raises
        ------
        PeerUnreachableError
            The connection broke, or the peer does not read.
        LocalProtocolError, FrameTooLargeError
            The message is too large: the caller's fault; nothing was sent.
        """
        parts, size = self._encode(message, payload)
        try:
            has_left = self._stream.send_nowait(parts)
        except trio.WouldBlock:
            await self._send_slowly(parts, size)
        except PeerUnreachableError:
            self.close()
            raise
        else:
            if not has_left:
                await self._send_slowly((), size)
        self._count_sent(parts)

    def send_nowait(self, message: DataMessage, payload: Sequence[Buffer] = ()) -> bool:
        """Send a frame in this very call; False where a part of it waits for flush(), or for the next send.

        Raises
        ------
        trio.WouldBlock
            Something else is being sent, or the frame is not small; nothing was done.
        PeerUnreachableError
            The connection broke.
        LocalProtocolError, FrameTooLargeError
            The message is too large: the caller's fault; nothing was sent.
        """
        parts, _ = self._encode(message, payload)
        try:
            has_left = self._stream.send_nowait(parts)
        except PeerUnreachableError:
            self.close()
            raise
        self._count_sent(parts)
        return has_left

    async def flush(self) -> None:
        """Send what send_nowait() left; raises as send()."""
        await self._send_slowly((), 0)

    def _encode(self, message: DataMessage, payload: Sequence[Buffer]) -> tuple[Sequence[Buffer], int]:
        header = wire.encode(message)
        size = total_bytes(payload)
        prefix = encode_prefix(header, size, payload_max_bytes=self._limits.payload_max_bytes)
        return [prefix + header, *payload] if size else (prefix + header,), size

    def _count_sent(self, parts: Sequence[Buffer]) -> None:
        self._traffic.frames_sent += 1
        self._traffic.bytes_sent += total_bytes(parts)

    async def _send_slowly(self, parts: Sequence[Buffer], size: int) -> None:
        """Send what the socket does not take at once, or what waits for another frame; within its time."""
        allowed_s = self._limits.time_s(size)
        try:
            with trio.fail_after(allowed_s):
                await self._stream.send(parts)
        except trio.TooSlowError as error:
            self.close()
            message_text = f"{self.peer} did not take a frame of {size} bytes within {allowed_s:.1f} s"
            raise PeerUnreachableError(message_text) from error
        except PeerUnreachableError:
            self.close()
            raise
        finally:
            if self._stream.is_closed:  # cancelled half way
                self.close()

    async def receive(self, *, patience_s: float = math.inf) -> tuple[DataMessage, memoryview]:
        """Receive a frame. Cancelling it loses nothing.

        Parameters
        ----------
        patience_s : float
            How long the next frame may take to begin, in seconds.

        Raises
        ------
        PeerUnreachableError
            The connection broke or ended, or no frame began.
        RemoteProtocolError, FrameTooLargeError
            The peer sent nonsense or stalled in a frame; the connection is closed.
        """
        if self._unread is not None:
            unread, self._unread = self._unread, None
            self.idle_since_s = math.inf
            return unread
        if self._receiver.is_between_frames:  # else a cancelled call's payload is still being received there
            self._release_room()
        try:
            frame = await self._receive_frame(patience_s)
            message, self._message = self._message or wire.decode_data(frame.header), None
        except TransportError:
            self.close()
            raise
        self._traffic.frames_received += 1
        self._traffic.bytes_received += len(frame.header) + len(frame.payload)
        return message, frame.payload

    def _allocate(self, header: bytearray, size: int) -> memoryview:
        """Return where a payload is received."""
        self._message = wire.decode_data(header)
        self._room = self._make_room(self._message, size)
        return memoryview(bytearray(size)) if self._room is None else self._room.view

    def take_room(self) -> Room | None:
        """Return the memory of the payload received last, if it was chosen; the caller releases it."""
        room, self._room = self._room, None
        return room

    def _release_room(self) -> None:
        if self._room is not None:
            self._room.release()
            self._room = None

    def unread(self, message: DataMessage, payload: memoryview) -> None:
        """Give back the frame received last."""
        self._unread = message, payload

    async def _receive_frame(self, patience_s: float) -> Frame:
        while True:
            if self._receiver.payload_bytes_due and not self._taken_bytes:
                await self._take_budget()
            is_fresh = self._receiver.is_between_frames
            count = await self._fill(patience_s if is_fresh else None)
            if count == 0:
                where = "" if is_fresh else " in the middle of a frame"
                raise PeerUnreachableError(f"{self.peer} closed the connection{where}")
            if is_fresh:
                self._deadline_s = trio.current_time() + self._limits.stall_s
                self.idle_since_s = math.inf
            frame = self._receiver.filled(count)
            if frame is not None:
                self._deadline_s = math.inf
                self._give_budget_back()
                await self._give_way()
                return frame

    async def _give_way(self) -> None:
        """Let other tasks run now and then, while frames are there without a wait."""
        self._in_a_row += 1
        if self._in_a_row >= FRAMES_IN_A_ROW:
            self._in_a_row = 0
            await trio.lowlevel.cancel_shielded_checkpoint()

    async def _fill(self, patience_s: float | None) -> int:
        """Receive some bytes of a frame, or those with which one begins, for which there is patience.

        A limit is set only where there is a wait: most frames have come whole when their first bytes are seen.
        """
        view = self._receiver.wanted()
        count = self._stream.receive_nowait(view)
        if count is None or count:
            return count or 0
        self._in_a_row = 0
        if patience_s == math.inf:
            return await self._stream.receive_into(view)
        deadline_s = self._deadline_s if patience_s is None else trio.current_time() + patience_s
        with trio.CancelScope(deadline=deadline_s):
            return await self._stream.receive_into(view)
        if patience_s is not None:
            raise PeerUnreachableError(f"{self.peer} was silent for too long")
        raise RemoteProtocolError(f"{self.peer} began a frame and stopped in the middle of it")

    async def _take_budget(self) -> None:
        """Before a payload is allocated; waiting here is our doing, so the frame's time starts afterwards."""
        due = self._receiver.payload_bytes_due
        await self._budget.take(due)
        if self.is_closed:  # meanwhile, by close_peer
            self._budget.give_back(due)
            raise PeerUnreachableError("the connection was closed on this side")
        self._taken_bytes = due
        self._deadline_s = trio.current_time() + self._limits.time_s(due)

    def _give_budget_back(self) -> None:
        if self._taken_bytes:
            self._budget.give_back(self._taken_bytes)
            self._taken_bytes = 0

    def close(self) -> None:
        """Close at once; tasks inside get PeerUnreachableError."""
        self._stream.close()
        self._give_budget_back()
        self._release_room()
        on_close, self._on_close = self._on_close, _nobody
        on_close(self)


def _nobody(_connection: Connection) -> None:
    """Stand in for the listener that has been told."""
