"""The data plane: exchanges with peers over mutual TLS 1.3, straight to their data port.

Owns the listener, the address list, and the pool of outbound connections; implements transport.base.DataPlane.
Knows nothing of what the messages mean: the handler passed to `serve` does.

How a connection lives: TCP, TLS handshake, verdict, confirmation, Hello both ways (transport.admission); then
exchanges one after the other, all begun by the side that dialled. An exchange that was not finished closes its
connection. The dialling side keeps idle connections for a shorter time than the listening side, so that a
request never meets a connection that the listener is just closing for idleness.
"""

import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Final

import trio

from transport.admission import Credentials, PendingLimit
from transport.base import DataAddress, Exchange, ExchangeHandler, MakeRoom
from transport.bounds import ByteBudget, Traffic
from transport.certificates import CertificateRefusedError, PeerCertificate
from transport.connection import Connection
from transport.dataplane_records import DataPlaneConfig, DataPlaneStatistics
from transport.hangups import Hangups
from transport.pool import ConnectionPool
from transport.readers import Readers
from transport.securestream import ListenError, SecureStream, take_socket
from transport.tlsexchange import TlsExchange
from transport.wire import PeerUnreachableError, RemoteProtocolError, TransportError

__all__ = ["DataPlaneConfig", "DataPlaneStatistics", "TlsDataPlane"]

ADDRESSES_MAX: Final = 8
"""Per peer, as in a node card."""


class _Tally:
    """The counters that change here."""

    def __init__(self) -> None:
        self.dials = 0
        self.dials_failed = 0
        self.admitted = 0
        self.refused_crowded = 0
        self.refused_handshakes = 0
        self.faults = 0
        self.exchanges_served = 0


class TlsDataPlane:
    """Exchanges over mutual TLS; implements transport.base.DataPlane.

    Parameters
    ----------
    credentials : Credentials
        Key, certificate and trust of this node.
    config : DataPlaneConfig
        Bounds.
    on_peer_opened : callable, optional
        Told the PeerID of each new certified connection, in or out: the time to compare revocation lists. Must be
        quick.
    on_peer_closed : callable, optional
        Told the PeerID when a peer closed an idle connection: a first sign that it is gone. Must be quick.
    """

    def __init__(
        self,
        credentials: Credentials,
        config: DataPlaneConfig,
        *,
        on_peer_opened: Callable[[str], None] = lambda _peer: None,
        on_peer_closed: Callable[[str], None] = lambda _peer: None,
    ) -> None:
        self._credentials = credentials
        self._config = config
        self._on_peer_opened = on_peer_opened
        self._on_peer_closed = on_peer_closed
        self.make_room: MakeRoom = lambda _message, _size: None
        """Chooses where payloads of peers are received."""
        self._addresses: dict[str, tuple[DataAddress, ...]] = {}
        self._budget = ByteBudget(config.frames.receive_budget_bytes)
        self._traffic = Traffic()
        self._tally = _Tally()
        self._pending = PendingLimit(per_host=config.pending_per_host, in_all=config.pending_max)
        self._inbound: dict[str, set[Connection]] = {}
        self._pool = ConnectionPool(
            self._dial, per_peer=config.outbound_per_peer, in_all=config.outbound_max, idle_s=config.idle_s
        )
        self._hangups = Hangups(on_peer_closed)
        self._readers = Readers()

    # ------------------------------------------------------------ outbound

    def set_address(self, node: str, addresses: Sequence[DataAddress]) -> None:
        """Tell where a peer's data port is, best first; an empty sequence forgets it."""
        if addresses:
            self._addresses[node] = tuple(addresses[:ADDRESSES_MAX])
        else:
            self._addresses.pop(node, None)

    @asynccontextmanager
    async def exchange(self, peer: str) -> AsyncIterator[TlsExchange]:
        """Lease a pooled connection, or make one.

        Waits while all connections that the bounds allow are in use; the caller limits the time.

        Raises
        ------
        PeerUnreachableError
            No address is known, no connection could be made in time, or the peer's certificate is refused.
        """
        connection = await self._lease(peer)
        exchange = TlsExchange(connection, self._readers)
        is_clean = False
        try:
            yield exchange
            is_clean = True
        finally:
            self._pool.release(connection, is_reusable=is_clean and exchange.is_finished)

    def take(self, peer: str) -> TlsExchange | None:
        """Lease an idle pooled connection; see transport.base.DataPlane."""
        connection = self._pool.take(peer)
        if connection is None:
            return None
        if not self._is_still_good(connection):
            connection.close()
            return None
        return TlsExchange(connection, self._readers)

    def give_back(self, exchange: Exchange) -> None:
        """End a lease by take(); see transport.base.DataPlane."""
        assert isinstance(exchange, TlsExchange), "an exchange goes back to the plane that it came from"
        exchange.connection.listener = None
        self._pool.release(exchange.connection, is_reusable=exchange.is_finished)

    async def _lease(self, peer: str) -> Connection:
        while True:
            connection = await self._pool.lease(peer)
            if self._is_still_good(connection):
                return connection
            connection.close()  # revoked or expired since it was made; a new one will be judged anew

    def renew(self, chain_pem: bytes) -> None:
        """Show another certificate from now on; connections made with the old one end after their exchange."""
        self._credentials.renew(chain_pem)
        self._pool.retire_all()

    async def _dial(self, peer: str) -> Connection:
        addresses = self._addresses.get(peer, ())
        if not addresses:
            raise PeerUnreachableError(f"no data address of {peer} is known yet; its node card has not come")
        failures = []
        for address in addresses:
            try:
                return await self._dial_address(peer, address)
            except TransportError as error:
                failures.append(f"{address.host}:{address.port}: {error}")
        raise PeerUnreachableError(f"{peer} cannot be reached at its data port: {'; '.join(failures)}")

    async def _dial_address(self, peer: str, address: DataAddress) -> Connection:
        self._tally.dials += 1
        is_done = False
        try:
            plain = await self._connect(address)
            with trio.fail_after(self._config.handshake_timeout_s):
                connection = await self._credentials.meet_server(plain, peer, self._adopt_outbound)
            self._hangups.watch(plain, connection)
            is_done = True
            self._on_peer_opened(peer)
            return connection
        except trio.TooSlowError as error:
            raise PeerUnreachableError("no answer in time") from error
        finally:
            self._tally.dials_failed += not is_done

    async def _connect(self, address: DataAddress) -> socket.socket:
        try:
            with trio.fail_after(self._config.dial_timeout_s):
                return take_socket(await trio.open_tcp_stream(address.host, address.port))
        except (OSError, UnicodeError) as error:  # UnicodeError: a card's host that is no host name
            raise PeerUnreachableError(f"no connection: {error}") from error

    def _adopt_outbound(self, stream: SecureStream, certificate: PeerCertificate) -> Connection:
        connection = self._connection(stream, certificate, self._pool.forget)
        self._pool.register(connection)
        return connection

    def _connection(
        self, stream: SecureStream, certificate: PeerCertificate, on_close: Callable[[Connection], None]
    ) -> Connection:
        return Connection(
            stream,
            certificate,
            limits=self._config.frames,
            budget=self._budget,
            traffic=self._traffic,
            on_close=on_close,
            make_room=lambda message, size: self.make_room(message, size),
        )

    # ------------------------------------------------------------ all connections

    def open_peers(self) -> tuple[str, ...]:
        """Return the peers with an open connection, sorted."""
        return tuple(sorted({*self._pool.peers(), *self._inbound}))

    async def close_peer(self, peer: str) -> None:
        """Close all connections of a peer, in use or not; tasks on them get PeerUnreachableError."""
        for connection in (*self._pool.connections(peer), *self._inbound.get(peer, ())):
            connection.close()
        await trio.lowlevel.checkpoint()

    async def close_refused(self) -> tuple[str, ...]:
        """Judge the certificates of all open connections again, and close what is refused by now.

        To be called when the revocation list grew, and now and then for expired certificates.

        Returns
        -------
        tuple of str
            Peers that lost a connection, sorted.
        """
        refused = set()
        for peer in self.open_peers():
            for connection in (*self._pool.connections(peer), *self._inbound.get(peer, ())):
                if not self._is_still_good(connection):
                    connection.close()
                    refused.add(peer)
            await trio.lowlevel.checkpoint()
        return tuple(sorted(refused))

    def _is_still_good(self, connection: Connection) -> bool:
        try:
            self._credentials.trust.recheck(connection.certificate)
        except CertificateRefusedError:
            return False
        return True

    def statistics(self) -> DataPlaneStatistics:
        """Return counters and gauges."""
        return DataPlaneStatistics(
            outbound=self._pool.count,
            outbound_idle=self._pool.idle_count,
            inbound=self._inbound_count(),
            pending=self._pending.count,
            receiving_bytes=self._budget.used_bytes,
            reused=self._pool.reused,
            stale=self._pool.stale,
            **vars(self._tally),
            **vars(self._traffic),
        )

    # ------------------------------------------------------------ inbound

    async def serve(
        self, handler: ExchangeHandler, *, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until cancelled; reports the bound host and port. All connections are closed at the end.

        Raises
        ------
        ListenError
            The port cannot be had.
        """
        listeners = await self._listen()

        async def welcome(stream: trio.SocketStream) -> None:
            await self._welcome(take_socket(stream), handler)

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep)
                nursery.start_soon(self._hangups.serve)
                nursery.start_soon(self._readers.serve)
                host, port = listeners[0].socket.getsockname()[:2]
                task_status.started((host, port))
                await trio.serve_listeners(welcome, listeners)
        finally:
            self._pool.close_all()
            for connection in [connection for connections in self._inbound.values() for connection in connections]:
                connection.close()

    async def _listen(self) -> list[trio.SocketListener]:
        host, port = self._config.host, self._config.port
        try:
            return await trio.open_tcp_listeners(port, host=host, backlog=128)
        except OSError as error:
            message = f"the data plane cannot listen on {host}:{port}: {error}; choose another port or stop its user"
            raise ListenError(message) from error

    async def _sweep(self) -> None:
        while True:
            await trio.sleep(self._config.sweep_s)
            for peer in self._pool.sweep():
                self._on_peer_closed(peer)
            now_s = trio.current_time()
            idle_since_s = now_s - self._config.inbound_idle_s
            for connection in [each for connections in self._inbound.values() for each in connections]:
                connection.look_for_stall(now_s)
                if connection.idle_since_s < idle_since_s:
                    connection.close()

    async def _welcome(self, plain: socket.socket, handler: ExchangeHandler) -> None:
        connection = await self._admit(plain)
        if connection is None:
            return
        try:
            await self._serve_connection(connection, handler)
        except TransportError:
            self._tally.faults += 1
        finally:
            connection.close()

    async def _admit(self, plain: socket.socket) -> Connection | None:
        with self._pending.enter(plain) as may_try:
            if not may_try or self._inbound_count() >= self._config.inbound_max:
                self._tally.refused_crowded += 1
                plain.close()
                return None
            try:
                with trio.fail_after(self._config.handshake_timeout_s):
                    connection = await self._credentials.meet_client(plain, self._adopt_inbound)
            except (TransportError, trio.TooSlowError):
                self._tally.refused_handshakes += 1
                return None
        self._tally.admitted += 1
        self._on_peer_opened(connection.peer)
        return connection

    def _adopt_inbound(self, stream: SecureStream, certificate: PeerCertificate) -> Connection:
        connections = self._inbound.setdefault(certificate.node, set())
        if len(connections) >= self._config.inbound_per_peer:
            raise RemoteProtocolError(f"{certificate.node} has {len(connections)} connections here, the bound")
        connection = self._connection(stream, certificate, self._forget_inbound)
        connections.add(connection)
        return connection

    def _forget_inbound(self, connection: Connection) -> None:
        connections = self._inbound.get(connection.peer, set())
        connections.discard(connection)
        if not connections:
            self._inbound.pop(connection.peer, None)

    def _inbound_count(self) -> int:
        return sum(len(connections) for connections in self._inbound.values())

    async def _serve_connection(self, connection: Connection, handler: ExchangeHandler) -> None:
        connection.idle_since_s = trio.current_time()  # from now on _sweep looks after it
        while True:
            try:
                message, payload = await connection.receive()
            except PeerUnreachableError:
                return  # the usual end
            self._credentials.trust.recheck(connection.certificate)
            exchange = TlsExchange(connection, self._readers)
            self._tally.exchanges_served += 1
            await handler(exchange, message, payload)
            if not exchange.is_finished or not connection.is_between_frames:
                return
