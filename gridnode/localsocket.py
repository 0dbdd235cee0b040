"""Frames of gridnode.control over a trio socket: whole frames in, whole frames out, few system calls.

A payload is received straight into the buffer that later goes to the worker; only what came with the header in one
read is copied.
"""

from collections.abc import Sequence
from typing import Final

import trio

from gridnode.control import HEADER_MAX_BYTES, PREFIX_BYTES, Buffer, decode_prefix

READ_BYTES: Final = 64 * 1024
"""Size of the read buffer: a header and the head of its payload come in one system call."""


class FrameReader:
    """Receives frames; one task at a time."""

    def __init__(self, socket: trio.socket.SocketType, *, header_max_bytes: int = HEADER_MAX_BYTES) -> None:
        self._socket = socket
        self._header_max_bytes = header_max_bytes
        self._buffer = memoryview(bytearray(READ_BYTES))
        self._start = 0
        self._end = 0

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
        if not await self._fill(PREFIX_BYTES):
            return None
        prefix = self._take(PREFIX_BYTES)
        header_bytes, payload_bytes = decode_prefix(prefix, header_max_bytes=self._header_max_bytes)
        header = await self._receive_exactly(header_bytes)
        payload = await self._receive_exactly(payload_bytes) if payload_bytes else memoryview(b"")
        return bytes(header), payload

    async def _fill(self, wanted: int) -> bool:
        """Have at least ``wanted`` bytes in the buffer; False when the connection ended before the first."""
        while self._end - self._start < wanted:
            if self._start:
                left = self._end - self._start
                self._buffer[:left] = bytes(self._buffer[self._start : self._end])
                self._start, self._end = 0, left
            got = await self._socket.recv_into(self._buffer[self._end :])
            if not got:
                if self._end == self._start:
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
        while have < wanted:
            got = await self._socket.recv_into(target[have:])
            if not got:
                raise EOFError("connection ended inside a frame")
            have += got
        return target


async def send_parts(socket: trio.socket.SocketType, parts: Sequence[Buffer]) -> None:
    """Send buffers one behind the other without joining them; raises OSError."""
    left = [memoryview(part).cast("B") for part in parts if len(part)]
    while left:
        sent = await socket.sendmsg(left)
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if left:
            left[0] = left[0][sent:]
