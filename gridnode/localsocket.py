"""Frames of gridnode.control over a local socket: whole frames in, whole frames out, few system calls and switches.

A payload that comes over the socket is received straight into the buffer that later goes to the worker; only what came
with the header in one read is copied. One in shared memory does not come here at all. An answer leaves in the call
that makes it, if the socket takes it; else a task sends the rest. Sockets are plain, non-blocking ones: trio's own
reschedule the task on every call.
"""

import os
import socket
import struct
from collections import deque
from collections.abc import Sequence
from typing import Final

import trio

from gridnode.control import HEADER_MAX_BYTES, PREFIX_BYTES, Buffer, decode_prefix
from gridnode.errors import ProtocolError
from gridnode.logs import EventLog

log = EventLog("frontdoor")

READ_BYTES: Final = 64 * 1024
"""Size of the read buffer: a header and the head of its payload come in one system call."""
TURN_BYTES: Final = 1 << 20
"""Payload received before other tasks get a turn: about 0.2 ms of copying."""
JOIN_MAX_BYTES: Final = 16 * 1024
"""Largest frame that is joined before it is sent: one small copy takes less time than a list of pieces."""

ACCEPT_RETRY_S: Final = 0.1
"""Pause after a failed accept, so that a lack of descriptors does not become a busy loop."""

DESCRIPTORS_MAX: Final = 2
"""Descriptors that may have come and belong to no message yet: one, and one too many."""

_DESCRIPTOR: Final = struct.Struct("i")
_ANCILLARY_BYTES: Final = socket.CMSG_SPACE(_DESCRIPTOR.size)
_NOTHING: Final = memoryview(b"")


async def accept(listener: trio.socket.SocketType) -> socket.socket:
    """Accept a program; while the machine lacks descriptors or memory for one more, wait for them."""
    while True:
        try:
            accepted, _ = await listener.accept()
        except OSError as error:
            log.warning("accept_failed", error=error)
            await trio.sleep(ACCEPT_RETRY_S)
        else:
            plain = socket.socket(fileno=accepted.detach())
            plain.setblocking(False)
            return plain


class OutboxFullError(Exception):
    """The other side does not read what it asked for."""


class FrameReader:
    """Receives frames; one task at a time.

    Parameters
    ----------
    plain : socket.socket
        Non-blocking; stays the caller's.
    takes_descriptor : bool
        Whether one descriptor that comes along is kept, for take_descriptor; others are closed by the kernel.
    """

    def __init__(
        self, plain: socket.socket, *, header_max_bytes: int = HEADER_MAX_BYTES, takes_descriptor: bool = False
    ) -> None:
        self._plain = plain
        self._header_max_bytes = header_max_bytes
        self._buffer = memoryview(bytearray(max(READ_BYTES, PREFIX_BYTES + header_max_bytes)))
        self._start = 0
        self._end = 0
        self._is_drained = True
        """Whether the last call took all there was, so that another would be in vain."""
        self._takes_descriptor = takes_descriptor
        self._descriptors: list[int] = []

    async def receive(self) -> tuple[memoryview, memoryview] | None:
        """Receive one frame, header and payload; None at a clean end. The header lasts until the next call.

        Raises
        ------
        ProtocolError
            The frame exceeds a bound.
        EOFError
            The connection ended inside a frame.
        OSError
            The connection broke.
        """
        if self._start < self._end:
            await trio.lowlevel.checkpoint()  # once a frame, so that a fast program cannot keep the loop to itself
        else:
            self._start = self._end = 0
            self._is_drained = True  # waiting is a checkpoint too, and nearly always there is nothing yet
        while True:
            have = self._end - self._start
            if have >= PREFIX_BYTES:
                header_bytes, payload_bytes = decode_prefix(
                    self._buffer, self._start, header_max_bytes=self._header_max_bytes
                )
                if have >= PREFIX_BYTES + header_bytes:
                    break
            if not await self._receive_more():
                if have:
                    raise EOFError("connection ended inside a frame")
                return None
        start = self._start + PREFIX_BYTES
        self._start = start + header_bytes
        payload = await self._receive_payload(payload_bytes) if payload_bytes else _NOTHING
        return self._buffer[start : start + header_bytes], payload

    def take_descriptor(self) -> int | None:
        """Return the one descriptor that came; None where none, or more than one, did."""
        if len(self._descriptors) == 1:
            return self._descriptors.pop()
        self.close()
        return None

    def close(self) -> None:
        """Close the descriptors that nobody took."""
        while self._descriptors:
            os.close(self._descriptors.pop())

    async def _receive_more(self) -> int:
        """Receive what fits behind what is there."""
        if self._end == len(self._buffer):
            left = self._end - self._start
            self._buffer[:left] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, left
        got = await self._receive_some(self._buffer[self._end :] if self._end else self._buffer)
        self._end += got
        return got

    async def _receive_payload(self, wanted: int) -> memoryview:
        """Receive a payload into a buffer of its own; only what came with the header is copied."""
        target = memoryview(bytearray(wanted))
        have = min(wanted, self._end - self._start)
        target[:have] = self._buffer[self._start : self._start + have]
        self._start += have
        turn_ends_at = have + TURN_BYTES
        while have < wanted:
            got = await self._receive_some(target[have:])
            if not got:
                raise EOFError("connection ended inside a frame")
            have += got
            if have >= turn_ends_at:
                await trio.lowlevel.checkpoint()
                turn_ends_at = have + TURN_BYTES
        return target

    async def _receive_some(self, view: memoryview) -> int:
        while True:
            if self._is_drained:
                await trio.lowlevel.wait_readable(self._plain)
            try:
                got = self._receive_with_descriptor(view) if self._takes_descriptor else self._plain.recv_into(view)
            except BlockingIOError:
                self._is_drained = True
            else:
                self._is_drained = got < len(view)
                return got

    def _receive_with_descriptor(self, view: memoryview) -> int:
        got, ancillary, _, _ = self._plain.recvmsg_into([view], _ANCILLARY_BYTES, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                whole = len(data) - len(data) % _DESCRIPTOR.size
                self._descriptors += [number for (number,) in _DESCRIPTOR.iter_unpack(data[:whole])]
        if len(self._descriptors) > DESCRIPTORS_MAX:
            raise ProtocolError(f"more than {DESCRIPTORS_MAX} descriptors that belong to no message")
        return got


class FrameWriter:
    """Sends frames in order, bounded.

    Parameters
    ----------
    plain : socket.socket
        Non-blocking; stays the caller's.
    frames_max, bytes_max : int
        What may wait for the other side to read.
    """

    def __init__(self, plain: socket.socket, *, frames_max: int, bytes_max: int) -> None:
        self._plain = plain
        self._frames_max = frames_max
        self._bytes_max = bytes_max
        self._waiting: deque[list[memoryview]] = deque()
        self._waiting_bytes = 0
        self._wake = trio.Event()
        self._flushed = trio.Event()
        self._flushed.set()

    def write(self, *parts: Buffer) -> None:
        """Send a frame now as far as the socket takes it, the rest by serve().

        Raises
        ------
        OutboxFullError
            Too much waits for the other side to read.
        OSError
            The connection broke.
        """
        if not self._waiting and sum(map(len, parts)) <= JOIN_MAX_BYTES:
            frame = b"".join(parts)
            try:
                sent = self._plain.send(frame)
            except BlockingIOError:
                sent = 0
            if sent == len(frame):
                return
            views = [memoryview(frame)[sent:]]
        else:
            views = [memoryview(part).cast("B") for part in parts if len(part)]
            if not self._waiting:
                views = self._send(views)
                if not views:
                    return
        self._waiting_bytes += sum(map(len, views))
        if len(self._waiting) >= self._frames_max or self._waiting_bytes > self._bytes_max:
            raise OutboxFullError(f"{len(self._waiting)} frames of {self._waiting_bytes} bytes wait to be read")
        self._waiting.append(views)
        if self._flushed.is_set():
            self._flushed = trio.Event()
        self._wake.set()

    async def serve(self) -> None:
        """Send what write() could not, until cancelled; raises OSError when the connection breaks."""
        while True:
            await self._wake.wait()
            self._wake = trio.Event()
            while self._waiting:
                await trio.lowlevel.wait_writable(self._plain)
                before = sum(map(len, self._waiting[0]))
                rest = self._send(self._waiting[0])
                self._waiting_bytes -= before - sum(map(len, rest))
                if rest:
                    self._waiting[0] = rest
                else:
                    self._waiting.popleft()
            self._flushed.set()

    async def wait_flushed(self) -> None:
        """Wait until all that was written has left, or release() was called."""
        await self._flushed.wait()

    def release(self) -> None:
        """Let those go who wait for the rest: it will not leave any more."""
        self._flushed.set()

    def _send(self, views: Sequence[memoryview]) -> list[memoryview]:
        """Send without waiting; return what is left."""
        left = list(views)
        while left:
            try:
                sent = self._plain.sendmsg(left)
            except BlockingIOError:
                return left
            while left and sent >= len(left[0]):
                sent -= len(left.pop(0))
            if left:
                left[0] = left[0][sent:]
        return left
