"""From a fresh TCP connection to a certified peer, on both sides of the data plane.

Owns the order of the first steps: TLS handshake, verdict on the certificate, confirmation, Hello both ways.
A peer without a good certificate of this grid gets no byte beyond the handshake.
"""

import ipaddress
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from transport import wire
from transport.certificates import GridTrust, PeerCertificate
from transport.connection import Connection
from transport.identity import NodeKey
from transport.securestream import SecureStream
from transport.tls import CONFIRMATION, client_context, judge_peer, server_context
from transport.wire import Hello, PeerUnreachableError, RemoteProtocolError

VERSIONS: Final = (wire.VERSION,)
"""Wire versions spoken here, for Hello and the node card."""

MakeConnection = Callable[[SecureStream, PeerCertificate], Connection]
"""Wraps a stream whose peer was judged."""


class PendingLimit:
    """Counts connections that have not proved who they are, and refuses more than the bounds.

    Parameters
    ----------
    per_host : int
        Bound per remote IP address (per /64 for IPv6: one box owns that many).
    in_all : int
        Bound over all.
    """

    def __init__(self, *, per_host: int, in_all: int) -> None:
        self._per_host = per_host
        self._in_all = in_all
        self._pending: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """Connections pending now."""
        return self._pending.total()

    @contextmanager
    def enter(self, plain: socket.socket) -> Iterator[bool]:
        """Say whether this connection may try; counts it meanwhile."""
        host = _host_of(plain)
        if self._pending[host] >= self._per_host or self.count >= self._in_all:
            yield False
            return
        self._pending[host] += 1
        try:
            yield True
        finally:
            self._pending[host] -= 1
            if not self._pending[host]:
                del self._pending[host]


def _host_of(plain: socket.socket) -> str:
    try:
        address = ipaddress.ip_address(plain.getpeername()[0].partition("%")[0])
    except (OSError, ValueError, IndexError):
        return "unknown"  # gone already; shares one count
    if address.version == 6 and address.ipv4_mapped is None:
        return str(ipaddress.ip_network((int(address), 64), strict=False))
    return str(address)


class Credentials:
    """What a node brings to every handshake: key, certificate, and what it trusts.

    Parameters
    ----------
    key : NodeKey
        This node's key.
    chain_pem : bytes
        Its leaf and intermediate.
    trust : GridTrust
        Judges peers.
    epoch : int
        Boot epoch, told in Hello.
    """

    def __init__(self, key: NodeKey, chain_pem: bytes, trust: GridTrust, *, epoch: int) -> None:
        self.key = key
        self.trust = trust
        self.hello = Hello(versions=VERSIONS, node=key.node, epoch=epoch)
        self.renew(chain_pem)

    def renew(self, chain_pem: bytes) -> None:
        """Use another certificate for connections from now on. Takes about 2 ms."""
        self._client = client_context(self.key, chain_pem, self.trust.ca_pem)
        self._server = server_context(self.key, chain_pem, self.trust.ca_pem)

    async def meet_server(self, plain: socket.socket, peer: str, make: MakeConnection) -> Connection:
        """Do the client's part; the caller limits the time. The socket is closed when it fails.

        Raises
        ------
        CertificateRefusedError, RemoteProtocolError, PeerUnreachableError
            The other side is not that peer, does not accept us, or is gone.
        """
        stream = SecureStream(plain, self._client, server_side=False)
        with _closed_unless_done(stream) as done:
            await stream.handshake()
            certificate = judge_peer(stream.ssl_object, self.trust, node=peer)
            byte = bytearray(1)
            if not await stream.receive_into(memoryview(byte)):
                raise PeerUnreachableError(f"{peer} closed the connection instead of accepting our certificate")
            if byte != CONFIRMATION:
                raise RemoteProtocolError(f"{peer} sent {byte.hex()} instead of its confirmation")
            connection = make(stream, certificate)
            await self._greet(connection)
            done()
        return connection

    async def meet_client(self, plain: socket.socket, make: MakeConnection) -> Connection:
        """Do the server's part; the caller limits the time. The socket is closed when it fails.

        Raises
        ------
        CertificateRefusedError, RemoteProtocolError, PeerUnreachableError
            The other side may not come in, or is gone.
        """
        stream = SecureStream(plain, self._server, server_side=True)
        with _closed_unless_done(stream) as done:
            await stream.handshake()
            certificate = judge_peer(stream.ssl_object, self.trust)
            connection = make(stream, certificate)
            await self._greet(connection, confirm=stream)
            done()
        return connection

    async def _greet(self, connection: Connection, *, confirm: SecureStream | None = None) -> None:
        with _closed_unless_done(connection) as done:
            if confirm is not None:
                await confirm.send([CONFIRMATION])
            await connection.send(self.hello)
            hello, _ = await connection.receive()
            if not isinstance(hello, Hello) or hello.node != connection.peer:
                raise RemoteProtocolError(f"{connection.peer} did not begin with its own Hello")
            if not set(hello.versions) & set(VERSIONS):
                message = f"{connection.peer} speaks wire versions {hello.versions}, this node {VERSIONS}; update one"
                raise RemoteProtocolError(message)
            done()


class _Closable(Protocol):
    def close(self) -> None:
        """Close at once."""


@contextmanager
def _closed_unless_done(thing: _Closable) -> Iterator[Callable[[], None]]:
    is_done = False

    def done() -> None:
        nonlocal is_done
        is_done = True

    try:
        yield done
    finally:
        if not is_done:
            thing.close()
