"""Frames over a Unix socket that never blocks: what can be sent or received now is, the rest waits for its turn.

Owns one socket, the memory shared over it, the bytes not yet sent and the frame half received. Knows nothing of jobs.
Who waits until the socket is ready again, a thread in poll or a task in an event loop, is the caller's affair; hence
both clients share this module. Large payloads are received straight into a buffer of their own.
"""

import itertools
import socket
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from gridnode.control import (
    ANSWER_MAX_BYTES,
    HEADER_MAX_BYTES,
    PREFIX_BYTES,
    SEGMENT_MAX_BYTES,
    Buffer,
    JobDone,
    OpenLane,
    ServerMessage,
    Share,
    decode_prefix,
    decode_server,
    encode_frame,
)
from gridnode.errors import DaemonUnreachableError
from gridnode.jobs import Options
from gridnode.lane import Lane
from gridnode.lanebook import LaneBook
from gridnode.segment import SHARED_MIN_BYTES, Segment

READ_BYTES: Final = 64 * 1024
"""Read buffer: several small answers come in one system call."""
SEND_BUFFER_BYTES: Final = 1024 * 1024
"""Asked of the kernel, which may grant less: a whole JPEG frame should leave in one call."""
SEND_PARTS_MAX: Final = 64
"""Pieces handed over in one sendmsg; the kernel takes 1024."""
DESCRIPTOR_BYTES: Final = 4
"""A C int, as which the kernel takes a descriptor."""
READS_MAX: Final = 64
"""Reads in a row before others get their turn, 4 MiB of small frames."""
_EMPTY: Final = bytearray()


class FrameAssembler:
    """Puts bytes together to frames: receive into ``target()``, then take frames from ``filled(count)``."""

    def __init__(self) -> None:
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._message: ServerMessage | None = None
        self._payload = _EMPTY
        self._payload_end = 0

    @property
    def is_inside_frame(self) -> bool:
        """Whether a frame has begun and not ended."""
        return self._message is not None or self._start < self._end

    def target(self) -> memoryview:
        """Return where the next bytes go; never empty."""
        if self._message is not None:
            return memoryview(self._payload)[self._payload_end :]
        if not self._end:
            return self._view
        if self._end == len(self._buffer):
            self._make_room()
        return self._view[self._end :]

    def filled(self, count: int) -> Iterator[tuple[ServerMessage, Buffer]]:
        """Take note of ``count`` bytes in the target and yield the frames they complete; raises ProtocolError."""
        if self._message is not None:
            self._payload_end += count
        else:
            self._end += count
        while self._message is not None or self._begin_frame():
            if self._payload_end < len(self._payload):
                return
            message, payload = self._message, self._payload
            assert message is not None, "a frame begins with its header"
            self._message, self._payload = None, _EMPTY
            yield message, payload

    def _begin_frame(self) -> bool:
        """Decode the header if it is all there, and take the payload, or as much of it as came along."""
        start, end = self._start, self._end
        if end - start < PREFIX_BYTES:
            return False
        header_bytes, payload_bytes = decode_prefix(self._buffer, start, header_max_bytes=ANSWER_MAX_BYTES)
        start += PREFIX_BYTES
        body = start + header_bytes
        if end < body:
            return False
        self._message = decode_server(self._view[start:body])
        if end >= body + payload_bytes:
            end = body + payload_bytes
            self._payload = self._buffer[body:end]
        else:
            self._payload = bytearray(payload_bytes)
            self._payload[: end - body] = self._view[body:end]
        self._payload_end = end - body
        if end == self._end:
            self._start = self._end = 0
        else:
            self._start = end
        return True

    def _make_room(self) -> None:
        """Move what is there to the front of a buffer large enough for the header that has begun."""
        rest = self._buffer[self._start : self._end]
        wanted = READ_BYTES
        if len(rest) >= PREFIX_BYTES:
            wanted += decode_prefix(rest, header_max_bytes=ANSWER_MAX_BYTES)[0]
        self._buffer = bytearray(max(wanted, READ_BYTES + HEADER_MAX_BYTES))
        self._view = memoryview(self._buffer)
        self._buffer[: len(rest)] = rest
        self._start, self._end = 0, len(rest)


class Channel:
    """One connection to a daemon.

    Parameters
    ----------
    path : str
        Of the daemon's Unix socket.
    shares : bool, default True
        Whether payloads may be left in memory shared with the daemon.

    Raises
    ------
    OSError
        The socket cannot be connected to.
    """

    def __init__(self, path: str, *, shares: bool = True) -> None:
        self._may_share = shares
        self._segment: Segment | None = None
        self._assembler = FrameAssembler()
        self._outgoing: deque[Buffer] = deque()
        self.outgoing_bytes = 0
        """What waits for the socket to take it."""
        self.lanes = LaneBook()
        self._numbers = itertools.count()
        self.earner: Lane | None = None
        """Whose ticket came last: the answer that earned it comes next."""
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            self.socket.setblocking(False)
            self.socket.connect(path)
        except BaseException:
            self.socket.close()
            raise

    def send(self, head: bytes, parts: Sequence[Buffer] = ()) -> None:
        """Queue one frame for flush; the parts, of bytes, are not copied."""
        self._outgoing.append(head)
        self.outgoing_bytes += len(head)
        for part in parts:
            if part:
                self._outgoing.append(part)
                self.outgoing_bytes += len(part)

    @property
    def has_shared(self) -> bool:
        """Whether memory was handed to the daemon."""
        return self._segment is not None

    def put(
        self, key: bytes, parts: Sequence[Buffer], payload_bytes: int, *, least_bytes: int = SHARED_MIN_BYTES
    ) -> int | None:
        """Copy a payload into the shared memory, until ``release``; None where it is to be sent with its frame."""
        if payload_bytes < least_bytes:
            return None
        if self._segment is None:
            self._share()
        return None if self._segment is None else self._segment.put(key, parts, payload_bytes)

    def release(self, key: bytes) -> None:
        """Note that the daemon has told the outcome of a key, and reads its payload no more."""
        if self._segment is not None:
            self._segment.release(key)

    def flush(self) -> None:
        """Send what the socket takes now; raises DaemonUnreachableError when the connection is gone."""
        while self.outgoing_bytes:
            try:
                if len(self._outgoing) == 1:
                    sent = self.socket.send(self._outgoing[0], socket.MSG_NOSIGNAL)
                else:
                    sent = self.socket.sendmsg(islice(self._outgoing, SEND_PARTS_MAX), (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                return
            except OSError as error:
                raise DaemonUnreachableError(f"broke off while a request was sent: {error.strerror}") from error
            if sent == self.outgoing_bytes:
                self._outgoing.clear()
                self.outgoing_bytes = 0
            else:
                self._forget(sent)

    def receive(self) -> Iterator[tuple[ServerMessage, Buffer]]:
        """Yield the frames that are there now.

        Raises
        ------
        DaemonUnreachableError
            The connection ended or broke.
        ProtocolError
            The daemon sent nonsense; nothing after it can be read.
        """
        for _ in range(READS_MAX):
            target = self._assembler.target()
            room = len(target)
            try:
                count = self.socket.recv_into(target)
            except BlockingIOError:
                return
            except OSError as error:
                raise DaemonUnreachableError(f"broke off: {error.strerror}") from error
            if not count:
                inside = " inside a message" if self._assembler.is_inside_frame else ""
                raise DaemonUnreachableError(f"closed the connection{inside}")
            yield from self._assembler.filled(count)
            if count < room:
                return

    def close(self) -> None:
        """Close the socket; what was not sent is dropped."""
        self._outgoing.clear()
        self.outgoing_bytes = 0
        self.socket.close()
        if self._segment is not None:
            self._segment.close()

    def _share(self) -> None:
        """Make memory for payloads and hand it over; where that cannot be done, payloads are sent as ever."""
        if self._may_share and not self.outgoing_bytes:  # the descriptor goes with the first byte of its frame
            try:
                self._segment = Segment(self._announce)
            except BlockingIOError:
                return  # no room in the socket just now
            except OSError:
                self._may_share = False

    def open_lane(self, model: str, options: Options, usual: JobDone) -> Lane | None:
        """Offer a lane to the daemon; None where that cannot be done: there must be shared memory, and nothing unsent.

        Raises
        ------
        OSError
            The program has no descriptor left.
        """
        if self._segment is None or self.outgoing_bytes:
            return None
        lane = Lane(next(self._numbers), model, options, usual)
        words = OpenLane(
            lane=lane.number,
            model=model,
            rungs=options.rungs,
            priority=options.priority,
            tenant=options.tenant or "",
        )
        with lane.other:
            try:
                self._send_with(encode_frame(words), lane.other.fileno())
            except OSError:
                lane.close()
                return None
        self.lanes.add(lane)
        return lane

    def _announce(self, descriptor: int) -> None:
        """Send the memory's frame, with its descriptor."""
        self._send_with(encode_frame(Share(segment_bytes=SEGMENT_MAX_BYTES)), descriptor)

    def _send_with(self, frame: bytes, descriptor: int) -> None:
        """Send a frame with a descriptor; nothing may wait to be sent before it."""
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptor.to_bytes(DESCRIPTOR_BYTES, sys.byteorder))
        sent = self.socket.sendmsg((frame,), (rights,), socket.MSG_NOSIGNAL)
        if sent < len(frame):
            self.send(frame[sent:])

    def _forget(self, sent: int) -> None:
        """Drop the bytes that were sent, fewer than there are."""
        self.outgoing_bytes -= sent
        while sent >= len(self._outgoing[0]):
            sent -= len(self._outgoing.popleft())
        if sent:
            self._outgoing[0] = memoryview(self._outgoing[0])[sent:]
