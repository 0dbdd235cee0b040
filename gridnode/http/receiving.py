"""Reads requests off a socket: heads into one buffer, bodies straight into buffers of their own.

Like gridnode.localsocket: plain, non-blocking sockets, since trio's own reschedule the task on every call.
"""

import socket
from collections.abc import Callable
from typing import Final

import trio

from gridnode.http.heads import HEAD_END, HEAD_MAX_BYTES, HttpError

READ_BYTES: Final = 64 * 1024
"""Size of the read buffer: a head, the JSON behind it and a small tensor come in one system call. It also bounds
what a program may send ahead of its answers."""
TURN_BYTES: Final = 1 << 20
"""Body received before other tasks get a turn: about 0.2 ms of copying."""


class Receiver:
    """Receives requests; one task at a time.

    Parameters
    ----------
    plain : socket.socket
        Non-blocking; stays the caller's.
    on_wait : callable
        Called before each wait for the program.
    """

    def __init__(self, plain: socket.socket, on_wait: Callable[[], None]) -> None:
        self._plain = plain
        self._on_wait = on_wait
        self.received = 0
        """Bytes received so far."""
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._is_drained = True
        """Whether the last call took all there was, so that another would be in vain."""

    @property
    def has_data(self) -> bool:
        """Whether something came that was not asked for yet."""
        return self._start < self._end

    async def receive_more(self) -> bool:
        """Wait for more and keep it; False at the connection's end. Only while there is room: see has_data."""
        if self._start == self._end:
            self._start = self._end = 0
        elif self._end == READ_BYTES:
            left = self._end - self._start
            self._view[:left] = bytes(self._view[self._start : self._end])
            self._start, self._end = 0, left
        got = await self._receive_some(self._view[self._end :])
        self._end += got
        return got > 0

    async def read_head(self) -> bytes:
        """Return a head with the empty line at its end.

        Raises
        ------
        HttpError
            It exceeds its bound.
        EOFError
            The connection ended before the head did.
        """
        while (end := self._buffer.find(HEAD_END, self._start, self._end)) < 0:
            if self._end - self._start > HEAD_MAX_BYTES:
                break
            if not await self.receive_more():
                raise EOFError("connection ended inside a head")
        end += len(HEAD_END)
        if end < self._start + len(HEAD_END) or end - self._start > HEAD_MAX_BYTES:
            raise HttpError(431, f"head of the request has more than {HEAD_MAX_BYTES} bytes")
        return self._take(end - self._start)

    async def read_into(self, target: memoryview) -> memoryview:
        """Fill a buffer and return it; raises EOFError."""
        wanted = len(target)
        have = min(wanted, self._end - self._start)
        target[:have] = self._view[self._start : self._start + have]
        self._start += have
        turn_ends_at = have + TURN_BYTES
        self._is_drained = False  # who sends head and body in two calls has mostly sent both by now
        while have < wanted:
            got = await self._receive_some(target[have:])
            if not got:
                raise EOFError("connection ended inside a body")
            have += got
            if have >= turn_ends_at:
                await trio.lowlevel.checkpoint()
                turn_ends_at = have + TURN_BYTES
        return target

    async def read_some(self) -> bytes:
        """Return what there is, at least a byte; raises EOFError."""
        if not self.has_data and not await self.receive_more():
            raise EOFError("connection ended inside a body")
        return self._take(self._end - self._start)

    def give_back(self, data: bytes) -> None:
        """Take the end of what read_some() returned back."""
        assert self._start == self._end, "nothing was received since"
        self._start, self._end = 0, len(data)
        self._view[: len(data)] = data

    def _take(self, count: int) -> bytes:
        piece = bytes(self._view[self._start : self._start + count])
        self._start += count
        return piece

    async def _receive_some(self, view: memoryview) -> int:
        while True:
            if self._is_drained:
                self._on_wait()
                await trio.lowlevel.wait_readable(self._plain)
            try:
                got = self._plain.recv_into(view)
            except BlockingIOError:
                self._is_drained = True
            else:
                self._is_drained = got < len(view)
                self.received += got
                return got
