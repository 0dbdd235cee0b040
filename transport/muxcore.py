"""Many streams over one connection: frames, credit, and the life of a stream. Pure.

Owns the protocol `/gridnode/mux/1.0.0` (docs/wire.md): bytes come in, bytes to be sent pile up, streams change. Knows
nothing of sockets, tasks or what a stream is for; transport.libp2p_mux gives it those.

    1 byte   kind
    3 bytes  length of the body, big endian
    4 bytes  number of the stream, big endian; 0 is the connection itself
    body

The side that dialled opens streams of odd numbers, the other one of even numbers, each in rising order. Each side of a
stream may send as many bytes as it holds credit for, WINDOW_BYTES at first; a reader returns credit when half of it
is used. A stream ends when both sides have sent FIN, or one has sent RESET.

What a peer does wrong raises RemoteProtocolError, and the connection has to be closed. What belongs to a stream that
has ended is no fault: it may have crossed the end on its way.
"""

import struct
from collections import deque
from typing import Final

from transport.wire import LocalProtocolError, RemoteProtocolError

OPEN: Final = 0
DATA: Final = 1
CREDIT: Final = 2
FIN: Final = 3
RESET: Final = 4
PING: Final = 5
PONG: Final = 6
GOAWAY: Final = 7

NORMAL: Final = 0
"""Why a side goes away: it ends, or needs the connection no longer."""
VIOLATION: Final = 1
"""The other side broke the protocol."""
SILENCE: Final = 2
"""The other side answered no ping."""

_HEADER: Final = struct.Struct(">II")
_CREDIT: Final = struct.Struct(">I")
HEADER_BYTES: Final = _HEADER.size
BODY_MAX_BYTES: Final = 16 * 1024 - HEADER_BYTES
"""Longest body of a frame: with its header it fills one TLS record, and no stream holds the others up for longer."""
WINDOW_BYTES: Final = 128 * 1024
"""What a stream may hold unread: two of the largest gossip RPCs."""
STREAMS_MAX: Final = 32
"""Streams at once that either side may have opened; the control plane needs two or three."""
ACCEPT_MAX: Final = 16
"""Streams opened by the peer that nobody has taken yet; taking one needs no waiting, so more is a flood."""
UNREAD_MAX_BYTES: Final = 512 * 1024
"""What all streams may hold unread. Above it the fullest is reset: one that nobody reads cannot starve the others."""
OUTGOING_MAX_BYTES: Final = 256 * 1024
"""Bytes that wait to be sent, above which nothing more is to be written."""
REPLIES_MAX_BYTES: Final = 64 * 1024
"""Answers (PONG, RESET, CREDIT) that may wait on top of that. A peer that asks more and reads none is cut off."""
CREDIT_MAX_BYTES: Final = 2**31 - 1
"""Most credit that a side may hold."""
GRANTED_BYTES: Final = WINDOW_BYTES // 2
"""Bytes read after which their credit is returned: one frame for many reads."""

_BODY_BYTES: Final = {
    OPEN: (0, 0),
    DATA: (1, BODY_MAX_BYTES),
    CREDIT: (_CREDIT.size, _CREDIT.size),
    FIN: (0, 0),
    RESET: (0, 0),
    PING: (8, 8),
    PONG: (8, 8),
    GOAWAY: (1, 1),
}
"""Shortest and longest body by kind."""


class Stream:
    """One stream, as both halves stand on this side.

    ===========  ==========================================================
    is_ended     the peer has sent FIN: what is buffered can still be read
    is_finished  this side has sent FIN, or wants nothing more of it
    is_reset     either side has sent RESET: nothing more goes either way
    is_left      nobody reads here any more: what comes is thrown away
    ===========  ==========================================================
    """

    __slots__ = ("buffer", "credit", "is_ended", "is_finished", "is_left", "is_reset", "number", "owed", "window")

    def __init__(self, number: int) -> None:
        self.number = number
        self.buffer = bytearray()
        self.credit = WINDOW_BYTES
        """Bytes that this side may still send."""
        self.window = WINDOW_BYTES
        """Bytes that the peer may still send."""
        self.owed = 0
        """Bytes read whose credit has not been returned."""
        self.is_ended = False
        self.is_finished = False
        self.is_reset = False
        self.is_left = False


def encode_frame(kind: int, number: int, body: bytes | memoryview = b"") -> bytes:
    """Return one frame.

    Examples
    --------
    >>> encode_frame(PING, 0, bytes(8)).hex()
    '05000008000000000000000000000000'
    """
    return _HEADER.pack(kind << 24 | len(body), number) + body


class MuxCore:
    """Both directions of one connection, as this side sees them.

    Parameters
    ----------
    is_initiator : bool
        Whether this side dialled: it opens streams of odd numbers.
    """

    def __init__(self, *, is_initiator: bool) -> None:
        self._next = 1 if is_initiator else 2
        self._parity = self._next % 2
        self._heard_of = 0
        """Highest number of a stream that the peer has opened."""
        self.streams: Final[dict[int, Stream]] = {}
        self.accepted: Final[deque[Stream]] = deque()
        """Streams opened by the peer that nobody has taken yet."""
        self.unread_bytes = 0
        self.goodbye: int | None = None
        """Why the peer goes away, once it said so."""
        self.frames_received = 0
        self._incoming = bytearray()
        self._outgoing: list[bytes] = []
        self.outgoing_bytes = 0

    # ------------------------------------------------------------ what this side does

    @property
    def outgoing(self) -> bytes:
        """Everything that is to be sent, in order."""
        return self._outgoing[0] if len(self._outgoing) == 1 else b"".join(self._outgoing)

    def clear_outgoing(self) -> None:
        """Forget what was to be sent: it is on its way."""
        self._outgoing.clear()
        self.outgoing_bytes = 0

    def take_outgoing(self) -> bytes:
        """Return everything that is to be sent, and forget it."""
        data = self.outgoing
        self.clear_outgoing()
        return data

    def _send(self, frame: bytes) -> None:
        self._outgoing.append(frame)
        self.outgoing_bytes += len(frame)

    def _reply(self, frame: bytes) -> None:
        if self.outgoing_bytes > OUTGOING_MAX_BYTES + REPLIES_MAX_BYTES:
            raise RemoteProtocolError(
                f"{self.outgoing_bytes} bytes wait for a peer that asks and does not read, at most "
                f"{OUTGOING_MAX_BYTES + REPLIES_MAX_BYTES} may"
            )
        self._send(frame)

    def open(self) -> Stream:
        """Open a stream.

        Raises
        ------
        LocalProtocolError
            There are too many of ours, or the peer has said goodbye.
        """
        ours = sum(number % 2 == self._parity for number in self.streams)
        if self.goodbye is not None or ours >= STREAMS_MAX:
            raise LocalProtocolError(f"no further stream: {ours} of {STREAMS_MAX} are open, goodbye: {self.goodbye}")
        stream = self.streams[self._next] = Stream(self._next)
        self._send(encode_frame(OPEN, self._next))
        self._next += 2
        return stream

    def write(self, stream: Stream, data: bytes | memoryview) -> int:
        """Send as much as the stream's credit allows; returns the number of bytes."""
        if stream.is_reset or stream.is_finished:
            raise LocalProtocolError(f"stream {stream.number} has ended and takes no data")
        count = min(len(data), stream.credit)
        stream.credit -= count
        if count <= BODY_MAX_BYTES:
            if count:
                self._send(encode_frame(DATA, stream.number, data[:count]))
            return count
        view = memoryview(data)[:count]
        for start in range(0, count, BODY_MAX_BYTES):
            self._send(encode_frame(DATA, stream.number, view[start : start + BODY_MAX_BYTES]))
        return count

    def read(self, stream: Stream, size: int | None = None) -> bytes:
        """Take up to so many bytes, or all there are, out of what the peer has sent; credit goes back in halves."""
        if size is None or size >= len(stream.buffer):
            data = bytes(stream.buffer)
            stream.buffer.clear()
        else:
            data = bytes(stream.buffer[:size])
            del stream.buffer[:size]
        self.unread_bytes -= len(data)
        stream.owed += len(data)
        if stream.owed >= GRANTED_BYTES and not stream.is_ended and not stream.is_reset:
            self._send(encode_frame(CREDIT, stream.number, _CREDIT.pack(stream.owed)))
            stream.window += stream.owed
            stream.owed = 0
        self._forget_if_over(stream)
        return data

    def finish(self, stream: Stream) -> None:
        """Say that nothing more comes from this side; reading goes on."""
        if stream.is_finished or stream.is_reset:
            return
        stream.is_finished = True
        self._send(encode_frame(FIN, stream.number))
        self._forget_if_over(stream)

    def leave(self, stream: Stream) -> None:
        """Finish, and throw away what is unread and what still comes."""
        stream.is_left = True
        self._drop(stream)
        self.finish(stream)
        self._forget_if_over(stream)

    def reset(self, stream: Stream) -> None:
        """End a stream in both directions at once; what is unread is thrown away."""
        if stream.number not in self.streams:
            return
        stream.is_reset = True
        self._drop(stream)
        self._forget_if_over(stream)
        self._send(encode_frame(RESET, stream.number))

    def ping(self, body: bytes) -> None:
        """Ask for a sign of life; 8 bytes that come back."""
        self._send(encode_frame(PING, 0, body))

    def go_away(self, reason: int) -> None:
        """Say that this side closes the connection."""
        self._send(encode_frame(GOAWAY, 0, bytes([reason])))

    # ------------------------------------------------------------ what the peer does

    def receive(self, data: bytes) -> list[Stream]:
        """Take bytes from the connection; returns the streams that changed.

        Raises
        ------
        RemoteProtocolError
            The peer broke the protocol. Nothing more may be received.
        """
        incoming: bytes | bytearray = data
        if self._incoming:
            self._incoming += data
            incoming = self._incoming
        changed: list[Stream] = []
        at, size = 0, len(incoming)
        while size - at >= HEADER_BYTES:
            word, number = _HEADER.unpack_from(incoming, at)
            kind, length = word >> 24, word & 0xFFFFFF
            shortest, longest = _BODY_BYTES.get(kind, (1, 0))
            if not shortest <= length <= longest:
                raise RemoteProtocolError(f"a frame of kind {kind} with {length} bytes, {shortest} to {longest} may be")
            end = at + HEADER_BYTES + length
            if end > size:
                break
            self._take(kind, number, bytes(incoming[at + HEADER_BYTES : end]), changed)
            self.frames_received += 1
            at = end
        self._incoming = bytearray(incoming[at:])
        return changed

    def _take(self, kind: int, number: int, body: bytes, changed: list[Stream]) -> None:
        if kind >= PING:
            self._take_for_connection(kind, number, body)
            return
        if kind == OPEN:
            self._take_open(number)
            return
        stream = self.streams.get(number)
        if stream is None:
            if not self._was_open(number):
                raise RemoteProtocolError(f"a frame of kind {kind} for stream {number}, which was never opened")
            return
        if kind == DATA:
            self._take_data(stream, body, changed)
        elif kind == CREDIT:
            self._take_credit(stream, _CREDIT.unpack(body)[0])
        elif kind == RESET:
            self._end(stream)
        elif stream.is_ended:
            raise RemoteProtocolError(f"stream {number} was finished twice")
        else:  # FIN
            stream.is_ended = True
            self._forget_if_over(stream)
        changed.append(stream)

    def _take_for_connection(self, kind: int, number: int, body: bytes) -> None:
        if number:
            raise RemoteProtocolError(f"a frame of kind {kind} for stream {number}; it belongs to the connection, 0")
        if kind == PING:
            self._reply(encode_frame(PONG, 0, body))
        elif kind == GOAWAY:
            self.goodbye = body[0]

    def _take_open(self, number: int) -> None:
        if number % 2 == self._parity or number <= self._heard_of:
            raise RemoteProtocolError(f"the peer may not open stream {number}, its last one was {self._heard_of}")
        self._heard_of = number
        theirs = sum(other % 2 != self._parity for other in self.streams)
        if theirs >= STREAMS_MAX or len(self.accepted) >= ACCEPT_MAX:
            self._reply(encode_frame(RESET, number))
            return
        stream = self.streams[number] = Stream(number)
        self.accepted.append(stream)

    def _was_open(self, number: int) -> bool:
        last = self._next - 2 if number % 2 == self._parity else self._heard_of
        return 0 < number <= last

    def _take_data(self, stream: Stream, body: bytes, changed: list[Stream]) -> None:
        if stream.is_ended or len(body) > stream.window:
            raise RemoteProtocolError(
                f"stream {stream.number}: {len(body)} bytes, {0 if stream.is_ended else stream.window} may be sent"
            )
        stream.window -= len(body)
        if stream.is_left:
            return
        stream.buffer += body
        self.unread_bytes += len(body)
        if self.unread_bytes > UNREAD_MAX_BYTES:
            fullest = max(self.streams.values(), key=lambda other: len(other.buffer))
            self.reset(fullest)
            changed.append(fullest)

    def _take_credit(self, stream: Stream, count: int) -> None:
        if not 0 < count <= CREDIT_MAX_BYTES - stream.credit:
            raise RemoteProtocolError(f"stream {stream.number}: credit of {count} on top of {stream.credit} bytes")
        stream.credit += count

    def _end(self, stream: Stream) -> None:
        stream.is_reset = True
        if not stream.is_ended:  # what came whole, before FIN, is still good
            self._drop(stream)
        self._forget_if_over(stream)

    def _drop(self, stream: Stream) -> None:
        self.unread_bytes -= len(stream.buffer)
        stream.buffer.clear()

    def _forget_if_over(self, stream: Stream) -> None:
        if stream.buffer or not (stream.is_reset or (stream.is_ended and stream.is_finished)):
            return
        self.streams.pop(stream.number, None)
        if stream.is_reset and stream in self.accepted:
            self.accepted.remove(stream)
