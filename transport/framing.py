"""Frames: a length prefix, a small header, then raw bytes. Pure.

Owns how a stream of bytes is cut into frames. Knows nothing of sockets, TLS or what a header means.

    4 bytes   length of the header, big endian, 1 to HEADER_MAX_BYTES
    4 bytes   length of the payload, big endian, 0 to PAYLOAD_MAX_BYTES
    header    a MessagePack message (transport.wire)
    payload   raw bytes

The receiver says which buffer it wants filled next, so that a payload goes from the TLS library straight to the
place where it stays; a frame that lies whole in one piece is taken as it lies. Lengths are checked before anything of
that size is allocated.
"""

import struct
from collections.abc import Callable, Sequence
from enum import Enum
from typing import Final, NamedTuple

from transport.base import Buffer
from transport.wire import (
    HEADER_MAX_BYTES,
    PAYLOAD_MAX_BYTES,
    FrameTooLargeError,
    LocalProtocolError,
    RemoteProtocolError,
)

_PREFIX: Final = struct.Struct(">II")
PREFIX_BYTES: Final = _PREFIX.size


class Frame(NamedTuple):
    """A received frame; nobody else writes to its buffers."""

    header: bytes | bytearray
    payload: memoryview


def encode_prefix(
    header: bytes,
    payload_bytes: int,
    *,
    header_max_bytes: int = HEADER_MAX_BYTES,
    payload_max_bytes: int = PAYLOAD_MAX_BYTES,
) -> bytes:
    """Return the prefix of a frame; header and payload follow it.

    Parameters
    ----------
    header : bytes
        Encoded message, not empty.
    payload_bytes : int
        Length of the payload.

    Raises
    ------
    LocalProtocolError
        There is no header.
    FrameTooLargeError
        A part exceeds its bound.
    """
    if not header:
        raise LocalProtocolError("a frame needs a header")
    _check(len(header), payload_bytes, header_max_bytes, payload_max_bytes)
    return _PREFIX.pack(len(header), payload_bytes)


def total_bytes(parts: Sequence[Buffer]) -> int:
    """Return the length of a payload given in parts."""
    if len(parts) == 1:
        return memoryview(parts[0]).nbytes
    return sum(memoryview(part).nbytes for part in parts)


def _check(header_bytes: int, payload_bytes: int, header_max_bytes: int, payload_max_bytes: int) -> None:
    if header_bytes > header_max_bytes:
        raise FrameTooLargeError(f"a header of {header_bytes} bytes, at most {header_max_bytes} are allowed")
    if payload_bytes > payload_max_bytes:
        raise FrameTooLargeError(f"a payload of {payload_bytes} bytes, at most {payload_max_bytes} are allowed")


_NOTHING: Final = memoryview(b"")


class _Part(Enum):
    PREFIX = "prefix"
    HEADER = "header"
    PAYLOAD = "payload"


class FrameReceiver:
    """Cuts a stream into frames: fill `wanted()`, say `filled(n)`, repeat. Or give `begin()` what a frame begins with.

    Parameters
    ----------
    header_max_bytes, payload_max_bytes : int
        Bounds; a frame that announces more is refused before it is allocated.
    allocate : callable, optional
        Told a frame's header and its payload's length, returns where the payload goes; None for wherever.
    """

    def __init__(
        self,
        *,
        header_max_bytes: int = HEADER_MAX_BYTES,
        payload_max_bytes: int = PAYLOAD_MAX_BYTES,
        allocate: Callable[[bytes | bytearray, int], memoryview | None] = lambda _header, _size: None,
    ) -> None:
        self._allocate = allocate
        self._header_max_bytes = header_max_bytes
        self._payload_max_bytes = payload_max_bytes
        self._prefix = bytearray(PREFIX_BYTES)
        self._start_frame()

    def _start_frame(self) -> None:
        self._header: bytes | bytearray = b""
        self._payload_bytes = 0
        self._start_part(_Part.PREFIX, memoryview(self._prefix))

    def _start_part(self, part: _Part, view: memoryview) -> None:
        self._part = part
        self._view = view
        self._position = 0

    @property
    def is_between_frames(self) -> bool:
        """Whether nothing of the next frame has arrived."""
        return self._part is _Part.PREFIX and self._position == 0

    @property
    def payload_bytes_due(self) -> int:
        """Length of the payload that the current frame announced and that is not allocated yet, in bytes."""
        return self._payload_bytes if self._part is _Part.HEADER else 0

    def wanted(self) -> memoryview:
        """Return the buffer to fill next; fill it from its start, wholly or in part.

        It is empty only after begin() took a header whose payload is due: filled(0) then has its place chosen.
        """
        return self._view[self._position :]

    def filled(self, count: int) -> Frame | None:
        """Take note that the first `count` bytes of `wanted()` were filled.

        Returns
        -------
        Frame or None
            The frame, when this completed one.

        Raises
        ------
        RemoteProtocolError, FrameTooLargeError
            The peer's prefix is nonsense; the stream cannot be read any further.
        """
        self._position += count
        if self._position < len(self._view):
            return None
        if self._part is _Part.PREFIX:
            header_bytes, self._payload_bytes = _PREFIX.unpack(self._prefix)
            if header_bytes == 0:
                raise RemoteProtocolError("a frame without a header; is the peer of another kind or version?")
            _check(header_bytes, self._payload_bytes, self._header_max_bytes, self._payload_max_bytes)
            self._header = bytearray(header_bytes)
            self._start_part(_Part.HEADER, memoryview(self._header))
            return None
        if self._part is _Part.HEADER and self._payload_bytes:
            place = self._allocate(self._header, self._payload_bytes)
            self._start_part(_Part.PAYLOAD, memoryview(bytearray(self._payload_bytes)) if place is None else place)
            return None
        payload = self._view if self._part is _Part.PAYLOAD else _NOTHING
        frame = Frame(self._header, payload)
        self._start_frame()
        return frame

    def begin(self, data: bytes, start: int = 0) -> tuple[Frame | None, int]:
        """Take what a frame begins with, between frames, from a place in a piece of the stream on.

        Returns
        -------
        frame : Frame or None
            The frame, if all of it is there; its payload lies in `data`, and no other place is chosen for it.
        position : int
            Behind what was taken: the whole frame, or all before its payload. What follows is the caller's to put into
            `wanted()`, or the beginning of the next frame.

        Raises
        ------
        RemoteProtocolError, FrameTooLargeError
            As `filled`.
        """
        if len(data) - start < PREFIX_BYTES:
            return self._begin_slowly(data, start)
        header_bytes, payload_bytes = _PREFIX.unpack_from(data, start)
        start_header = start + PREFIX_BYTES
        end = start_header + header_bytes
        if len(data) < end or not header_bytes:
            return self._begin_slowly(data, start)
        if header_bytes > self._header_max_bytes or payload_bytes > self._payload_max_bytes:
            _check(header_bytes, payload_bytes, self._header_max_bytes, self._payload_max_bytes)
        header = data[start_header:end]
        if not payload_bytes:
            return Frame(header, _NOTHING), end
        if len(data) < end + payload_bytes:
            self._header, self._payload_bytes = header, payload_bytes
            self._start_part(_Part.HEADER, _NOTHING)
            return None, end
        return Frame(header, memoryview(data)[end : end + payload_bytes]), end + payload_bytes

    def _begin_slowly(self, data: bytes, start: int) -> tuple[None, int]:
        """Copy what is less than a prefix and a header."""
        frames = self.feed(memoryview(data)[start:])
        assert not frames, "a frame is taken whole where all of it is there"
        return None, len(data)

    def feed(self, data: Buffer) -> list[Frame]:
        """Copy in a piece of the stream, of any length, and return the frames that it completed.

        For callers that have the bytes anyway (the join door, tests).

        Raises
        ------
        RemoteProtocolError, FrameTooLargeError
            As `filled`; frames completed before in the same piece are lost with the stream.
        """
        frames = []
        rest = memoryview(data).cast("B")
        while rest:
            view = self.wanted()
            count = min(len(view), len(rest))
            view[:count] = rest[:count]
            rest = rest[count:]
            frame = self.filled(count)
            if frame is not None:
                frames.append(frame)
        return frames
