"""One data connection: frames over TLS, with a time limit on every frame that has begun.

Owns sending and receiving of data messages on one certified connection. Knows nothing of pools, addresses or
what the messages mean.

A peer that stops in the middle of a frame, or stops reading one, must not hold a buffer or a task for ever
(slow-loris): a frame may take `stall_s` plus its size over `slowest_rate`. Between frames no limit holds; the
caller has one. Who owns the connection looks now and then whether a frame is late: a time limit around each wait would
cost as much as the wait.
"""

import math
from collections.abc import Callable, Sequence
from typing import Final

import trio

from transport import wire
from transport.base import Buffer, Listener, MakeRoom, Room
from transport.bounds import ByteBudget, FrameLimits, Traffic
from transport.certificates import PeerCertificate
from transport.framing import PREFIX_BYTES, Frame, FrameReceiver, encode_prefix, total_bytes
from transport.securestream import RECORD_BYTES, TURN_BYTES, SecureStream
from transport.wire import DataMessage, PeerUnreachableError, RemoteProtocolError, TransportError

FRAMES_IN_A_ROW: Final = 16
"""Frames taken before other tasks get a turn: about 1 ms of small questions."""

_NOTHING: Final = b""


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
        self.listener: Listener | None = None
        """Who is called for frames; transport.readers does it."""
        self.reader: trio.CancelScope | None = None
        """Ends the task that waits for frames for listeners."""
        self._stream = stream
        self._limits = limits
        self._budget = budget
        self._traffic = traffic
        self._on_close = on_close
        self._make_room = make_room
        self._receiver = FrameReceiver(payload_max_bytes=limits.payload_max_bytes, allocate=self._allocate)
        self._spare = _NOTHING
        """A record of which a part is not taken yet."""
        self._spare_start = 0
        self._message: DataMessage | None = None
        """Of the frame whose payload is being received."""
        self._room: Room | None = None
        """Where that payload, or the last one, lies, unless somebody took it."""
        self._taken_bytes = 0
        self._deadline_s = math.inf
        """By when the frame that is being received must have come, in seconds."""
        self._is_late = False
        """Whether it had not at the last look."""
        self._has_stalled = False
        self._unread: tuple[DataMessage, memoryview] | None = None
        self._in_a_row = 0
        """Frames taken since there was a wait."""
        self._at_once_bytes = 0
        """Bytes read since there was a wait."""

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
        return self._unread is None and self._is_fresh and self._stream.is_quiet()

    @property
    def is_between_frames(self) -> bool:
        """Whether it is open and no frame is half received."""
        return self._receiver.is_between_frames and not self._stream.is_closed

    @property
    def _is_fresh(self) -> bool:
        """Whether nothing of the next frame has been read from the stream."""
        return self._receiver.is_between_frames and not self._spare

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
        self._count_sent(size)

    def send_nowait(self, message: DataMessage, payload: Sequence[Buffer] = ()) -> bool:
        """Send a frame in this very call; False where a part of it waits for flush(), or for the next send.

        What waits may be the payload itself, which stays as it is until then.

        Raises
        ------
        trio.WouldBlock
            Something else is being sent; nothing was done.
        PeerUnreachableError
            The connection broke.
        LocalProtocolError, FrameTooLargeError
            The message is too large: the caller's fault; nothing was sent.
        """
        parts, size = self._encode(message, payload)
        try:
            has_left = self._stream.send_nowait(parts)
        except PeerUnreachableError:
            self.close()
            raise
        self._count_sent(size)
        return has_left

    async def flush(self) -> None:
        """Send what send_nowait() left; raises as send()."""
        await self._send_slowly((), 0)

    def _encode(self, message: DataMessage, payload: Sequence[Buffer]) -> tuple[Sequence[Buffer], int]:
        """Return a frame in parts, as one where it fits into a record, and its length in bytes."""
        header = wire.encode(message)
        payload_bytes = total_bytes(payload)
        prefix = encode_prefix(header, payload_bytes, payload_max_bytes=self._limits.payload_max_bytes)
        size = PREFIX_BYTES + len(header) + payload_bytes
        if size <= RECORD_BYTES:
            return (b"".join((prefix, header, *payload)),), size
        return (prefix + header, *payload), size

    def _count_sent(self, size: int) -> None:
        self._traffic.frames_sent += 1
        self._traffic.bytes_sent += size

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

    async def receive(self) -> tuple[DataMessage, memoryview]:
        """Receive a frame. Cancelling it loses nothing.

        Raises
        ------
        PeerUnreachableError
            The connection broke or ended.
        RemoteProtocolError, FrameTooLargeError
            The peer sent nonsense or stalled in a frame; the connection is closed.
        """
        if self._unread is not None:
            unread, self._unread = self._unread, None
            self.idle_since_s = math.inf
            return unread
        if self._room is not None and self._receiver.is_between_frames:  # else it is still being received there
            self._release_room()
        try:
            frame = self._next_frame() if self._spare or self._stream.has_bytes else None
            while frame is None:
                if (due := self._receiver.payload_bytes_due) and not self._taken_bytes:
                    await self._wait_budget(due)
                else:
                    await self._read_socket()
                frame = self._next_frame()
            message, self._message = self._message or wire.decode_data(frame.header), None
        except TransportError as error:
            self.close()
            if self._has_stalled:
                message_text = f"{self.peer} began a frame and stopped in the middle of it"
                raise RemoteProtocolError(message_text) from error
            raise
        self.idle_since_s = math.inf
        self._traffic.frames_received += 1
        self._traffic.bytes_received += len(frame.header) + len(frame.payload)
        self._in_a_row += 1
        if self._in_a_row >= FRAMES_IN_A_ROW:
            await self._give_way()
        return message, frame.payload

    def dismiss_reader(self) -> None:
        """Send away the task that waits for frames: somebody else reads now."""
        reader, self.reader, self.listener = self.reader, None, None
        if reader is not None:
            reader.cancel()

    async def wait_arrival(self) -> None:
        """Wait until something has come that receive() has not taken; raises PeerUnreachableError when it is closed."""
        if self._unread is None and not self._spare and not self._stream.has_bytes:
            self._in_a_row = self._at_once_bytes = 0
            await self._stream.wait_readable()

    def _allocate(self, header: bytes | bytearray, size: int) -> memoryview | None:
        """Return where a payload is received; None for wherever."""
        self._message = wire.decode_data(header)
        self._room = self._make_room(self._message, size)
        return None if self._room is None else self._room.view

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

    def _next_frame(self) -> Frame | None:
        """Return the next frame of what has arrived; None where more must come, or its payload waits for its budget."""
        receiver = self._receiver
        if receiver.is_between_frames:
            # Small frames lie whole in one record; of a longer one its first has prefix and header.
            data = self._spare or self._stream.read()
            if not data:
                if data is None:
                    raise PeerUnreachableError(f"{self.peer} closed the connection")
                return None
            frame, position = receiver.begin(data, self._spare_start)
            self._spare, self._spare_start = (_NOTHING, 0) if position == len(data) else (data, position)
            if frame is not None:
                return frame
            self._deadline_s, self._is_late = trio.current_time() + self._limits.stall_s, False
        return self._go_on()

    def _go_on(self) -> Frame | None:
        """Take what has arrived of a longer frame; as _next_frame()."""
        receiver = self._receiver
        while True:
            if (due := receiver.payload_bytes_due) and not self._taken_bytes and not self._take_budget(due):
                return None
            view = receiver.wanted()
            count = self._fill(view) if len(view) else 0
            if len(view) and not count:
                return None
            frame = receiver.filled(count)
            if frame is not None:
                self._deadline_s = math.inf
                self._give_budget_back()
                return frame

    def _fill(self, view: memoryview) -> int:
        """Fill in some bytes of a frame; 0 where none are there."""
        if not self._spare:
            count = self._stream.decrypt_into(view)
            if count is None:
                raise PeerUnreachableError(f"{self.peer} closed the connection in the middle of a frame")
            return count
        count = len(self._spare) - self._spare_start  # less than the payload, or the frame were whole
        view[:count] = memoryview(self._spare)[self._spare_start :]
        self._spare, self._spare_start = _NOTHING, 0
        return count

    async def _read_socket(self) -> None:
        """Read the socket once, waiting until there is something.

        In the middle of a frame what follows usually is there; else most frames come whole after a wait.
        """
        is_fresh = self._is_fresh
        count = None if is_fresh and self._stream.is_drained else self._stream.refill_nowait()
        while count is None:
            self._in_a_row = self._at_once_bytes = 0
            await self._stream.wait_readable()
            count = self._stream.refill_nowait()
        if count == 0:
            where = "" if is_fresh else " in the middle of a frame"
            raise PeerUnreachableError(f"{self.peer} closed the connection{where}")
        self._at_once_bytes += count
        if self._at_once_bytes >= TURN_BYTES:
            await self._give_way()

    async def _give_way(self) -> None:
        """Let other tasks run now and then, while frames are there without a wait."""
        self._in_a_row = self._at_once_bytes = 0
        await trio.lowlevel.cancel_shielded_checkpoint()

    def look_for_stall(self, now_s: float) -> None:
        """Close the connection if the frame that is being received is late, and was so at the last look already.

        One look may come before what has arrived is read, when this process stood still.
        """
        if now_s <= self._deadline_s:
            self._is_late = False
        elif self._is_late:
            self._has_stalled = True
            self.close()
        else:
            self._is_late = True

    def _take_budget(self, due: int) -> bool:
        """Before a payload is allocated, where there is room for it."""
        if not self._budget.take_nowait(due):
            return False
        self._note_budget(due)
        return True

    async def _wait_budget(self, due: int) -> None:
        """As _take_budget(); waiting here is our doing, so the frame's time starts afterwards."""
        self._deadline_s = math.inf
        await self._budget.take(due)
        if self.is_closed:  # meanwhile, by close_peer
            self._budget.give_back(due)
            raise PeerUnreachableError("the connection was closed on this side")
        self._note_budget(due)

    def _note_budget(self, due: int) -> None:
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
