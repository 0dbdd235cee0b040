"""Frames of gridnode.control over a local socket: whole frames in, whole frames out, few system calls and switches.

A payload is received straight into the buffer that later goes to the worker; only what came with the header in one
read is copied. An answer leaves in the call that makes it, if the socket takes it; else a task sends the rest.
Sockets are plain, non-blocking ones: trio's own reschedule the task on every call.
"""

import socket
from collections import deque
from collections.abc import Sequence
from typing import Final

import trio

from gridnode.control import HEADER_MAX_BYTES, PREFIX_BYTES, Buffer, decode_prefix

READ_BYTES: Final = 64 * 1024
"""Size of the read buffer: a header and the head of its payload come in one system call."""
TURN_BYTES: Final = 1 << 20
"""Payload received before other tasks get a turn: about 0.2 ms of copying."""


class OutboxFullError(Exception):
    """The other side does not read what it asked for."""


class FrameReader:
    """Receives frames; one task at a time.

    Parameters
    ----------
    plain : socket.socket
        Non-blocking; stays the caller's.
    """

    def __init__(self, plain: socket.socket, *, header_max_bytes: int = HEADER_MAX_BYTES) -> None:
        self._plain = plain
        self._header_max_bytes = header_max_bytes
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._start = 0
        self._end = 0
        self._is_drained = True
        """Whether the last call took all there was, so that another would be in vain."""

    async def receive(self) -> tuple[bytes, memoryview] | None:
        """Receive one frame; None at a clean end.

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
            self._is_drained = True  # waiting is a checkpoint too, and nearly always there is nothing yet
        if not await self._fill(PREFIX_BYTES):
            return None
        prefix = self._take(PREFIX_BYTES)
        header_bytes, payload_bytes = decode_prefix(prefix, header_max_bytes=self._header_max_bytes)
        header = await self._receive_exactly(header_bytes)
        payload = await self._receive_exactly(payload_bytes) if payload_bytes else memoryview(b"")
        return bytes(header), payload

    async def _fill(self, wanted: int) -> bool:
        """Have at least ``wanted`` bytes in the buffer; False when the connection ended before the first."""
        if self._end - self._start >= wanted:
            return True
        left = self._end - self._start
        self._buffer[:left] = bytes(self._buffer[self._start : self._end])
        self._start, self._end = 0, left
        while self._end < wanted:
            got = await self._receive_some(self._buffer[self._end :])
            if not got:
                if not self._end:
                    return False
                raise EOFError("connection ended inside a frame")
            self._end += got
        return True

    def _take(self, wanted: int) -> bytes:
        piece = bytes(self._buffer[self._start : self._start + wanted])
        self._start += len(piece)
        return piece

    async def _receive_exactly(self, wanted: int) -> memoryview:
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
                got = self._plain.recv_into(view)
            except BlockingIOError:
                self._is_drained = True
            else:
                self._is_drained = got < len(view)
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
