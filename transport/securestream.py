"""TLS over a TCP socket: our own record pump.

Owns the movement of bytes between a socket and an ssl.SSLObject. Knows nothing of frames, certificates' meaning
or time limits (the caller's scopes do that).

Why not trio.SSLStream: it refills in steps of 16 KiB and copies once more; here the socket is read in pieces of
256 KiB and decrypted straight into the caller's buffer, which halves the time for a picture of 2.7 MB. Works on
the plain non-blocking socket, so that no checkpoint lies between reading it and handing the bytes to TLS; hence
one scratch buffer serves all connections, and a cancelled receive loses nothing. What needs no waiting is done in the
call that asks for it: `send_nowait`, `read`, `decrypt_into` and `refill_nowait` are plain functions.
"""

import contextlib
import socket
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Final, cast

import trio

from transport.base import Buffer
from transport.certificates import CertificateRefusedError, RefusalReason
from transport.wire import PeerUnreachableError, RemoteProtocolError, TransportError

READ_BYTES: Final = 256 * 1024
"""Most that one read takes from the socket."""
PIECE_BYTES: Final = 48 * 1024
"""What is encrypted before it is handed to the socket: the peer decrypts one piece while the next is made. Of 32, 48,
64 and 128 KiB the best for 150 kB to 2.7 MB, with both sides on one processor and on two."""
TURN_BYTES: Final = 1024 * 1024
"""What is sent, or received, before other tasks get a turn: about half a millisecond of encryption."""
RECORD_BYTES: Final = 16 * 1024
"""Most that one TLS record carries. Messages up to this size are joined before encryption: one record, one packet."""

UNANSWERED_S: Final = 10
"""How long the kernel sends without being answered before it calls the connection broken, in seconds: some five
retransmissions; radio links come back within that."""

_TCP_OPTIONS: Final = {
    "TCP_USER_TIMEOUT": UNANSWERED_S * 1000,
    "TCP_KEEPIDLE": 20,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 2,
}
_scratch: Final = bytearray(READ_BYTES)


class ListenError(TransportError):
    """A port of this machine cannot be listened on: its owner's fault, or another program's."""


def take_socket(stream: trio.SocketStream) -> socket.socket:
    """Take the plain non-blocking socket out of a trio stream, which is dead afterwards.

    The kernel gives up on a peer that vanished without a word (power, cable): after UNANSWERED_S while bytes are
    on their way to it, else after about 30 s.
    """
    plain = socket.socket(fileno=stream.socket.detach())
    plain.setblocking(False)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, True)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, True)
    for name, value in _TCP_OPTIONS.items():
        if hasattr(socket, name):  # Linux has them all
            plain.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return plain


class SecureStream:
    """One TLS connection.

    Parameters
    ----------
    plain : socket.socket
        Connected, non-blocking; owned by this object from now on.
    context : ssl.SSLContext
        From transport.tls.
    server_side : bool
        Which part to play in the handshake.
    """

    def __init__(self, plain: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        self._socket = plain
        self._number = plain.fileno()
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.ssl_object: Final = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._send_lock = trio.Lock()
        self._waiting: deque[memoryview] = deque()
        """To be encrypted and sent."""
        self._rest = memoryview(b"")
        """Encrypted, and not taken by the socket yet."""
        self._is_clogged = False
        """Whether the socket took less than it was given, so that more would be in vain."""
        self._is_ended = False
        """Whether the peer has said goodbye."""
        self._is_drained = False
        """Whether the last read took all there was, so that another would be in vain."""
        self._is_closed = False

    @property
    def is_closed(self) -> bool:
        """Whether this side has closed it."""
        return self._is_closed

    async def handshake(self) -> None:
        """Run the TLS handshake.

        Raises
        ------
        CertificateRefusedError
            The peer's chain does not end at the owner's CA.
        RemoteProtocolError
            The peer does not speak TLS 1.3, or refused our certificate.
        PeerUnreachableError
            The connection broke.
        """
        while True:
            try:
                self.ssl_object.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                if not await self._refill():
                    raise PeerUnreachableError("the peer closed the connection during the TLS handshake") from None
            except ssl.SSLCertVerificationError as error:
                self._flush_nowait()
                message = f"the peer's certificate is not of this grid: {error.verify_message}"
                raise CertificateRefusedError(RefusalReason.UNTRUSTED, message) from error
            except ssl.SSLError as error:
                self._flush_nowait()
                raise RemoteProtocolError(f"TLS handshake failed: {error.reason or error}") from error
            else:
                await self._flush()
                return

    async def receive_into(self, view: memoryview) -> int:
        """Fill a buffer with at least one byte, as far as bytes are there. Cancelling it loses nothing.

        Returns
        -------
        int
            Number of bytes; 0 when the peer closed the connection.

        Raises
        ------
        PeerUnreachableError
            The connection broke.
        RemoteProtocolError
            A TLS record was damaged, or the peer refused our certificate.
        """
        while True:
            count = self.decrypt_into(view)
            if count is None:
                return 0
            if count or not await self._refill():
                return count

    def decrypt_into(self, view: memoryview) -> int | None:
        """Fill a buffer from what the socket has given already; 0 when nothing is there, None at the peer's goodbye.

        Raises
        ------
        PeerUnreachableError
            The connection was closed on this side.
        RemoteProtocolError
            As receive_into().
        """
        self._check_open()
        count = 0
        try:
            while count < len(view) and self.has_bytes:  # one call gives one record at most
                got = cast(int, self.ssl_object.read(len(view) - count, view[count:]))
                self._is_ended = not got  # the peer's close_notify reads as nothing
                count += got
        except ssl.SSLError as error:
            self._judge(error)
        return None if self._is_ended and not count else count

    def read(self) -> bytes | None:
        """Return one record's contents of what the socket has given already; as decrypt_into() where there is none."""
        self._check_open()
        if self._is_ended:
            return None
        try:
            data = self.ssl_object.read(RECORD_BYTES)
        except ssl.SSLError as error:
            self._judge(error)
            return None if self._is_ended else b""
        self._is_ended = not data
        return data or None

    @property
    def has_bytes(self) -> bool:
        """Whether there is something to decrypt, or a part of it: asking TLS in vain costs an exception."""
        return (self._incoming.pending > 0 or self.ssl_object.pending() > 0) and not self._is_ended

    def _judge(self, error: ssl.SSLError) -> None:
        """Take note of the peer's goodbye, or that more must come; a damaged stream raises RemoteProtocolError."""
        if isinstance(error, ssl.SSLZeroReturnError | ssl.SSLEOFError):
            self._is_ended = True
        elif not isinstance(error, ssl.SSLWantReadError):
            raise RemoteProtocolError(f"TLS failed: {error.reason or error}") from error

    @property
    def is_drained(self) -> bool:
        """Whether the last read of the socket took all there was, so that another is likely to be in vain."""
        return self._is_drained

    def refill_nowait(self) -> int | None:
        """Read the socket once.

        Returns
        -------
        int or None
            Number of bytes that came, still encrypted; 0 at the socket's end, None where nothing is there yet.

        Raises
        ------
        PeerUnreachableError
            The connection broke, or was closed on this side.
        """
        self._check_open()
        try:
            count = self._socket.recv_into(_scratch)
        except BlockingIOError:
            self._is_drained = True
            return None
        except OSError as error:
            raise PeerUnreachableError(f"the connection broke: {error}") from error
        self._is_drained = count < READ_BYTES
        self._incoming.write(memoryview(_scratch)[:count])
        return count

    async def wait_readable(self) -> None:
        """Wait until the socket has something, or ends; raises PeerUnreachableError when it is closed on this side."""
        self._check_open()
        try:
            await trio.lowlevel.wait_readable(self._number)
        except trio.ClosedResourceError as error:
            raise PeerUnreachableError("the connection was closed on this side") from error
        self._is_drained = False

    async def _refill(self) -> bool:
        """Read the socket once, waiting until there is something; False at its end."""
        await trio.lowlevel.checkpoint_if_cancelled()
        count = None if self._is_drained else self.refill_nowait()
        while count is None:
            await self.wait_readable()
            count = self.refill_nowait()
        if not self._is_drained:  # a fast peer must not keep the loop to itself
            await trio.lowlevel.cancel_shielded_checkpoint()
        return count > 0

    def send_nowait(self, parts: Sequence[Buffer]) -> bool:
        """Encrypt and send buffers one behind the other, as far as that needs no waiting.

        Returns
        -------
        bool
            Whether all has left; else send_rest() must be called, and the buffers stay as they are until it returns.

        Raises
        ------
        trio.WouldBlock
            Something is being sent; nothing was done.
        PeerUnreachableError
            The connection broke.
        """
        if self._rest or self._waiting or self._send_lock.locked():
            raise trio.WouldBlock
        self._check_open()
        try:
            if len(parts) == 1 and len(parts[0]) <= RECORD_BYTES:
                self.ssl_object.write(parts[0])
                self._rest = memoryview(self._outgoing.read())
            else:
                self._queue(parts)
            return self._push()
        except PeerUnreachableError:
            self.close()
            raise

    def _queue(self, parts: Sequence[Buffer]) -> None:
        """Have buffers sent next, as one where they fit into a record."""
        views = [memoryview(part).cast("B") for part in parts if len(part)]
        if len(views) > 1 and sum(map(len, views)) <= RECORD_BYTES:
            views = [memoryview(b"".join(views))]
        self._waiting.extend(views)

    def _push(self) -> bool:
        """Encrypt and send what waits until all has left, the socket takes no more or it is another's turn.

        The first piece is on its way while the next is made.
        """
        sent_bytes = 0
        while sent_bytes < TURN_BYTES:
            if not self._rest:
                self._encrypt()
            try:
                count = self._socket.send(self._rest) if self._rest else 0
            except BlockingIOError:
                count = 0
            except OSError as error:
                raise PeerUnreachableError(f"the connection broke: {error}") from error
            sent_bytes += count
            self._rest = self._rest[count:]
            self._is_clogged = bool(self._rest)
            if self._is_clogged or not self._waiting:
                break
        return not self._rest and not self._waiting

    def _encrypt(self) -> None:
        """Encrypt a piece of what waits; what TLS itself has to say goes with it."""
        waiting = self._waiting
        while waiting and self._outgoing.pending < PIECE_BYTES:
            view = waiting[0]
            if len(view) < PIECE_BYTES + PIECE_BYTES // 2:  # no small rest, for which the peer would wake once more
                self.ssl_object.write(view)
                waiting.popleft()
            else:
                self.ssl_object.write(view[:PIECE_BYTES])
                waiting[0] = view[PIECE_BYTES:]
        self._rest = memoryview(self._outgoing.read())

    async def send_rest(self) -> None:
        """Send what send_nowait() left; cancelling it half way leaves the stream unusable: close it."""
        await self.send(())

    async def send(self, parts: Sequence[Buffer]) -> None:
        """Encrypt and send buffers one behind the other; cancelling it half way leaves the stream unusable: close it.

        Raises
        ------
        PeerUnreachableError
            The connection broke.
        """
        async with self._send_lock:
            is_done = False
            try:
                await self._flush()  # what send_nowait() left
                self._queue(parts)
                await self._flush()
                is_done = True
            finally:
                if not is_done:
                    self.close()  # half a frame is out: nothing sensible can follow it

    async def _flush(self) -> None:
        """Send all that waits or is encrypted."""
        await trio.lowlevel.checkpoint_if_cancelled()
        self._check_open()
        while not self._push():
            if self._is_clogged:
                await self._wait_writable()
            else:
                await trio.lowlevel.cancel_shielded_checkpoint()
            self._check_open()

    def _flush_nowait(self) -> None:
        """Send a last alert if the socket takes it at once; it is a courtesy."""
        try:
            self._socket.send(self._outgoing.read())
        except OSError:  # nobody left to tell
            return

    async def _wait_writable(self) -> None:
        try:
            await trio.lowlevel.wait_writable(self._number)
        except trio.ClosedResourceError as error:
            raise PeerUnreachableError("the connection was closed on this side") from error

    def _check_open(self) -> None:
        if self._is_closed:
            raise PeerUnreachableError("the connection was closed on this side")

    def is_quiet(self) -> bool:
        """Say, without waiting, whether the connection is open and nothing has arrived on it."""
        if self._is_closed or self.ssl_object.pending() or self._incoming.pending:
            return False
        try:
            self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False  # the end of the stream, or bytes that nobody asked for

    def close(self) -> None:
        """Close at once, saying goodbye if that needs no waiting; tasks inside get PeerUnreachableError."""
        if self._is_closed:
            return
        self._is_closed = True
        # Behind half a record a goodbye would only look like a damaged one.
        if not (self._send_lock.locked() or self._outgoing.pending or self._rest or self._waiting):
            with contextlib.suppress(ssl.SSLError, ValueError):  # always: the answer is not waited for
                self.ssl_object.unwrap()
            self._flush_nowait()
        self._waiting.clear()
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
