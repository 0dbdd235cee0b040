"""libp2p's security upgrade with grid certificates: protocol /gridnode/tls/1.0.0.

Owns the TLS 1.3 handshake over a raw libp2p connection and the record pump behind it. What a certificate means is
judged by transport.tls and transport.certificates. A peer without a good certificate of this grid gets the
handshake (and a TLS alert) and not a byte more; the server's confirmation byte comes first on every connection.
"""

import ssl
from collections.abc import Callable
from typing import Final

import trio
from libp2p.abc import IRawConnection, ISecureConn, ISecureTransport
from libp2p.connection_types import ConnectionType
from libp2p.crypto.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from libp2p.crypto.keys import KeyPair
from libp2p.custom_types import TProtocol
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.security.base_session import BaseSession
from libp2p.security.exceptions import HandshakeFailure
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from transport.certificates import CertificateRefusedError, GridTrust
from transport.identity import NodeKey, raw_public_of
from transport.libp2p_tcp import GridStream
from transport.tls import CONFIRMATION, client_context, judge_peer, server_context

PROTOCOL: Final = TProtocol("/gridnode/tls/1.0.0")
READ_BYTES: Final = 64 * 1024
"""Most that one read takes from the connection: a full yamux frame."""

Establish = Callable[[RawConnection], None]
"""Told of a connection whose peer has proved who it is."""


def libp2p_keys(key: NodeKey) -> KeyPair:
    """Return the node's key as libp2p wants it."""
    private = Ed25519PrivateKey.from_bytes(key.raw_private)
    return KeyPair(private, private.get_public_key())


class _Pump:
    """Moves records between a raw connection and an SSLObject.

    One task reads at a time (the muxer's reader); writers take turns.
    """

    def __init__(self, raw: IRawConnection, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.raw: Final = raw
        stream = raw.stream if isinstance(raw, RawConnection) else None
        self._direct = stream if isinstance(stream, GridStream) else None
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self.tls: Final = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._write_lock = trio.Lock()
        self._unsent = b""
        """Records that send_nowait has encrypted and the kernel did not take: they go before anything else."""

    async def handshake(self) -> None:
        while True:
            try:
                self.tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError as error:
                await self._flush()  # the alert, so that the peer knows why
                raise HandshakeFailure(f"TLS handshake failed: {error.reason or error}") from error
            else:
                await self._flush()
                return

    async def read(self, n: int) -> bytes:
        while True:
            try:
                if not self._incoming.pending and not self.tls.pending():  # an exception costs more than asking
                    await self._fill()
                data = self.tls.read(n)
            except ssl.SSLWantReadError:
                await self._fill()
            except ssl.SSLError as error:
                await self.raw.close()
                raise ConnectionClosedError(f"TLS failed: {error.reason or error}") from error
            else:
                if not data:
                    raise ConnectionClosedError("the peer said goodbye")
                return data

    async def write(self, data: bytes) -> None:
        async with self._write_lock:
            # No checkpoint between cipher and socket, and the raw write is shielded: records cannot be torn.
            self._encrypt(data)
            await self._flush()

    def send_nowait(self, data: bytes) -> bool:
        if self._direct is None or self._unsent or self._write_lock.locked():
            return False
        try:
            self._encrypt(data)
        except ConnectionClosedError:
            self._direct.abort()  # whoever reads is told
            return True
        records = self._outgoing.read()
        self._unsent = records[self._direct.send_nowait(records) :]
        return True

    @property
    def is_clogged(self) -> bool:
        return bool(self._unsent)

    def _encrypt(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self.tls.write(view) :]
        except ssl.SSLError as error:
            raise ConnectionClosedError(f"TLS failed: {error.reason or error}") from error

    async def _fill(self) -> None:
        source = self._direct or self.raw
        self._incoming.write(await source.read(READ_BYTES))

    async def _flush(self) -> None:
        if self._outgoing.pending or self._unsent:
            records, self._unsent = self._unsent + self._outgoing.read(), b""
            await self.raw.write(records)


class GridSession(BaseSession):
    """A secured connection whose peer's certificate was accepted."""

    def __init__(self, pump: _Pump, keys: KeyPair, peer: str, *, is_initiator: bool) -> None:
        super().__init__(
            local_peer=ID.from_pubkey(keys.public_key),
            local_private_key=keys.private_key,
            remote_peer=ID.from_base58(peer),
            remote_permanent_pubkey=Ed25519PublicKey.from_bytes(raw_public_of(peer)),
            is_initiator=is_initiator,
        )
        self._pump = pump

    async def read(self, n: int | None = None) -> bytes:
        """Return up to n bytes, at least one; ConnectionClosedError at the end. Cancelling it loses nothing."""
        if n == 0:
            return b""
        return await self._pump.read(READ_BYTES if n is None else n)

    async def write(self, data: bytes) -> None:
        """Send all of it."""
        await self._pump.write(data)

    def send_nowait(self, data: bytes) -> bool:
        """Send without waiting; False when that cannot be done now, and nothing was taken.

        What the kernel does not take at once is kept: then is_clogged, and the next write sends it.
        """
        return self._pump.send_nowait(data)

    @property
    def is_clogged(self) -> bool:
        """Whether bytes of send_nowait wait for a write, which may be an empty one."""
        return self._pump.is_clogged

    async def close(self) -> None:
        """Close the connection; a goodbye of TLS has no reader here."""
        await self._pump.raw.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the peer's host and port."""
        return self._pump.raw.get_remote_address()

    def get_transport_addresses(self) -> list[Multiaddr]:
        """Return the peer's address in libp2p's notation."""
        return self._pump.raw.get_transport_addresses()

    def get_connection_type(self) -> ConnectionType:
        """Return how the connection was made."""
        return self._pump.raw.get_connection_type()


class GridSecurity(ISecureTransport):
    """The only security protocol of a private grid.

    Parameters
    ----------
    key : NodeKey
        This node's key.
    chain_pem : bytes
        Its leaf and intermediate.
    trust : GridTrust
        Judges peers.
    establish : callable
        Told of each connection whose peer was accepted.
    """

    def __init__(self, key: NodeKey, chain_pem: bytes, trust: GridTrust, establish: Establish) -> None:
        self._key = key
        self._keys = libp2p_keys(key)
        self._trust = trust
        self._establish = establish
        self.renew(chain_pem)

    def renew(self, chain_pem: bytes) -> None:
        """Use another certificate for connections from now on. Takes about 2 ms."""
        self._client = client_context(self._key, chain_pem, self._trust.ca_pem)
        self._server = server_context(self._key, chain_pem, self._trust.ca_pem)

    async def secure_inbound(self, conn: IRawConnection) -> ISecureConn:
        """Do the server's part; HandshakeFailure when the peer may not come in."""
        pump = _Pump(conn, self._server, server_side=True)
        await pump.handshake()
        peer = self._judge(pump, None)
        await pump.write(CONFIRMATION)
        return self._accept(pump, conn, peer, is_initiator=False)

    async def secure_outbound(self, conn: IRawConnection, peer_id: ID) -> ISecureConn:
        """Do the client's part; HandshakeFailure when it is not that peer, or does not accept us."""
        pump = _Pump(conn, self._client, server_side=False)
        await pump.handshake()
        peer = self._judge(pump, peer_id.to_base58())
        try:
            confirmed = await pump.read(1)
        except ConnectionClosedError as error:
            raise HandshakeFailure(f"{peer} did not accept our certificate: {error}") from error
        if confirmed != CONFIRMATION:
            raise HandshakeFailure(f"{peer} sent {confirmed.hex()} instead of its confirmation")
        return self._accept(pump, conn, peer, is_initiator=True)

    def _judge(self, pump: _Pump, node: str | None) -> str:
        try:
            return judge_peer(pump.tls, self._trust, node=node).node
        except CertificateRefusedError as error:
            raise HandshakeFailure(str(error)) from error

    def _accept(self, pump: _Pump, conn: IRawConnection, peer: str, *, is_initiator: bool) -> ISecureConn:
        if isinstance(conn, RawConnection):
            self._establish(conn)
        return GridSession(pump, self._keys, peer, is_initiator=is_initiator)
