"""TCP for libp2p: our own transport, because of what the stock one does not do.

Owns sockets and the time before a peer has proved who it is. Knows nothing of TLS or gossip. What it adds:

* The listening port is ours alone (the stock listener sets SO_REUSEPORT: two hosts share a port silently).
* Connections that have not proved themselves are few per address and in all, and *the oldest goes*: silent
  connections cannot keep an honest peer out, since its handshake takes milliseconds.
* The task and the swarm's token of an inbound connection end with it (the stock pair lives until the host stops,
  so that after max_connections inbound connections, ever, no further one is accepted).
* A write cannot be torn by a cancellation, and a peer that does not read loses its connection.
* Every socket can be closed at once, whatever the layers above wait for.
"""

import contextlib
import ipaddress
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from libp2p.abc import IListener, IRawConnection, ITransport
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.transport.exceptions import OpenConnectionError
from multiaddr import Multiaddr  # type: ignore[import-untyped]

from transport.wire import PeerUnreachableError

WRITE_TIMEOUT_S: Final = 10.0
"""How long a peer may leave our bytes unread before its connection is closed. The probes notice it long before."""
USER_TIMEOUT_MS: Final = 20_000
"""How long the kernel waits for acknowledgements of sent bytes (TCP_USER_TIMEOUT): a pulled cable frees its socket."""
PENDING_PER_HOST: Final = 8
"""Connections from one address (one /64 in IPv6) that have not proved themselves yet."""
PENDING_MAX: Final = 64
"""The same over all addresses; each costs a socket and a task until the upgrade timeout."""
READ_BYTES: Final = 64 * 1024
"""Most that one read takes, where the reader names no size: the largest gossip RPC."""
BACKLOG: Final = 128
"""Connections the kernel accepts on our behalf."""


class GridStream(ReadWriteCloser):
    """One TCP connection.

    Parameters
    ----------
    stream : trio.SocketStream
        Owned by this object from now on.
    on_close : callable
        Called once, with this object.
    """

    def __init__(self, stream: trio.SocketStream, on_close: Callable[["GridStream"], None]) -> None:
        self._address = _peer_address(stream.socket)
        # The plain socket: a write that needs no waiting needs no task switch either.
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        self._on_close = on_close
        self._write_lock = trio.Lock()
        self._is_drained = False
        """Whether the last read took all there was, so that looking again without waiting would be in vain."""
        self.closed: Final = trio.Event()
        self.is_established = False
        """Whether the peer has proved who it is."""
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)

    async def read(self, n: int | None = None) -> bytes:
        """Return up to n bytes, at least one; ConnectionClosedError at the end. Cancelling it loses nothing."""
        size = READ_BYTES if n is None else n
        try:
            if self._is_drained:
                await trio.lowlevel.wait_readable(self._socket)
            else:
                await trio.lowlevel.checkpoint()
            while True:
                with contextlib.suppress(BlockingIOError):
                    data = self._socket.recv(size)
                    break
                await trio.lowlevel.wait_readable(self._socket)
        except (OSError, trio.ClosedResourceError) as error:
            self.abort()
            raise ConnectionClosedError(f"connection broke: {error}", transport="tcp") from error
        self._is_drained = len(data) < size
        if not data:
            self.abort()
            raise ConnectionClosedError("the peer closed the connection", transport="tcp")
        return data

    async def write(self, data: bytes) -> None:
        """Send all of it; once it has begun no cancellation interrupts it.

        Above lies a cipher: half a record on the wire would end the connection with everything on it.
        """
        async with self._write_lock:
            patience = trio.CancelScope(shield=True, deadline=trio.current_time() + WRITE_TIMEOUT_S)
            with patience:
                await self._send_all(memoryview(data))
            if patience.cancelled_caught:
                self.abort()
                raise ConnectionClosedError(f"the peer read nothing for {WRITE_TIMEOUT_S} s", transport="tcp")

    async def _send_all(self, view: memoryview) -> None:
        try:
            while view:
                try:
                    view = view[self._socket.send(view) :]
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(self._socket)
        except (OSError, trio.ClosedResourceError) as error:
            self.abort()
            raise ConnectionClosedError(f"connection broke: {error}", transport="tcp") from error

    def send_nowait(self, data: bytes) -> int:
        """Send what the kernel takes at once; returns the number of bytes.

        Must not be called while a write is under way. On a broken connection everything counts as sent: whoever
        reads is told that it is broken.
        """
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self.abort()
            return len(data)

    async def close(self) -> None:
        """Close the socket."""
        self.abort()

    def abort(self) -> None:
        """Close the socket at once; tasks inside get ConnectionClosedError."""
        if not self.closed.is_set():
            self.closed.set()
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()
            self._on_close(self)

    def get_remote_address(self) -> tuple[str, int] | None:
        """Return the peer's host and port."""
        return self._address

    @property
    def host_key(self) -> str:
        """Remote address as far as one box owns it."""
        if self._address is None:
            return "unknown"  # gone already; shares one count
        address = ipaddress.ip_address(self._address[0].partition("%")[0])
        if address.version == 6 and address.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(address), 64), strict=False))
        return str(address)


def _peer_address(sock: trio.socket.SocketType) -> tuple[str, int] | None:
    try:
        name = sock.getpeername()
    except OSError:
        return None
    return str(name[0]), int(name[1])


class Doorstep:
    """Connections that have not proved who they are; the oldest goes when there are too many."""

    def __init__(self, *, per_host: int = PENDING_PER_HOST, in_all: int = PENDING_MAX) -> None:
        self._per_host = per_host
        self._in_all = in_all
        self._pending: OrderedDict[GridStream, str] = OrderedDict()
        self.evicted = 0
        """Connections closed because newer ones came."""

    def __len__(self) -> int:
        return len(self._pending)

    def enter(self, stream: GridStream) -> None:
        """Take a fresh connection in, and close the oldest of its address, or of the greediest one, if need be."""
        host = stream.host_key
        self._pending[stream] = host
        hosts = list(self._pending.values())
        if hosts.count(host) > self._per_host:
            self._evict(host)
        elif len(hosts) > self._in_all:
            self._evict(max(hosts, key=hosts.count))

    def _evict(self, host: str) -> None:
        self.evicted += 1
        oldest = next(stream for stream, owner in self._pending.items() if owner == host)
        oldest.abort()

    def leave(self, stream: GridStream) -> None:
        """Let a connection go that proved itself or is closed."""
        self._pending.pop(stream, None)


class GridTcp(ITransport):
    """Dials and listens; knows every open socket.

    Parameters
    ----------
    on_fault : callable
        Told where an exception of the layers above came up, and the exception.
    """

    def __init__(self, on_fault: Callable[[str, Exception], None]) -> None:
        self._on_fault = on_fault
        self._streams: dict[GridStream, None] = {}
        self._bound: list[trio.SocketListener] = []
        self.doorstep: Final = Doorstep()

    async def bind(self, host: str, port: int) -> tuple[str, int]:
        """Take the listening sockets, before libp2p is started.

        Returns
        -------
        host, port
            As bound; port 0 asks for a free one.

        Raises
        ------
        PeerUnreachableError
            The address is taken or not ours.
        """
        try:
            self._bound = list(await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG))
        except OSError as error:
            message = f"cannot listen on {host} port {port}: {error}; is another daemon running?"
            raise PeerUnreachableError(message) from error
        name = self._bound[0].socket.getsockname()
        return str(name[0]), int(name[1])

    def adopt(self, stream: trio.SocketStream) -> GridStream:
        """Wrap a connected stream and remember it."""
        wrapped = GridStream(stream, self._forget)
        self._streams[wrapped] = None
        return wrapped

    def _forget(self, stream: GridStream) -> None:
        self._streams.pop(stream, None)
        self.doorstep.leave(stream)

    def establish(self, stream: ReadWriteCloser) -> None:
        """Note that the peer of a stream has proved who it is."""
        if isinstance(stream, GridStream):
            stream.is_established = True
            self.doorstep.leave(stream)

    def abort(self, address: tuple[str, int] | None) -> None:
        """Close the connections with this remote address at once."""
        for stream in [s for s in self._streams if s.get_remote_address() == address]:
            stream.abort()

    def abort_all(self) -> None:
        """Close every socket."""
        for stream in list(self._streams):
            stream.abort()
        for listener in self._bound:
            listener.socket.close()
        self._bound.clear()

    async def dial(self, maddr: Multiaddr) -> IRawConnection:
        """Connect; OpenConnectionError when that fails."""
        host, port = host_and_port(maddr)
        try:
            stream = await trio.open_tcp_stream(host, port)
        except OSError as error:
            raise OpenConnectionError(f"cannot connect to {host} port {port}: {error}") from error
        return RawConnection(self.adopt(stream), True)

    def create_listener(self, handler_function: Callable[[ReadWriteCloser], Awaitable[None]]) -> IListener:
        """Return a listener on the sockets taken by bind."""
        return GridListener(self, self._bound, handler_function, self._on_fault)

    def can_dial(self, maddr: Multiaddr) -> bool:
        """Say whether it is a plain TCP address."""
        names = [protocol.name for protocol in maddr.protocols() if protocol.name != "p2p"]
        return len(names) == 2 and names[0] in _HOST_PROTOCOLS and names[1] == "tcp"

    def can_listen(self, maddr: Multiaddr) -> bool:
        """Say whether it is a plain TCP address."""
        return self.can_dial(maddr)

    def protocols(self) -> list[str]:
        """Return what this transport speaks."""
        return ["tcp"]


class GridListener(IListener):
    """Accepts connections on sockets that are bound already."""

    background_nursery: trio.Nursery
    """Set by the swarm before listen."""

    def __init__(
        self,
        tcp: GridTcp,
        sockets: list[trio.SocketListener],
        handler: Callable[[ReadWriteCloser], Awaitable[None]],
        on_fault: Callable[[str, Exception], None],
    ) -> None:
        self._tcp = tcp
        self._sockets = sockets
        self._handler = handler
        self._on_fault = on_fault
        self._scope = trio.CancelScope()

    async def listen(self, maddr: Multiaddr) -> None:
        """Begin to accept."""
        self.background_nursery.start_soon(self._accept)
        await trio.lowlevel.checkpoint()

    async def _accept(self) -> None:
        with self._scope:
            async with trio.open_nursery() as nursery:
                await trio.serve_listeners(self._welcome, self._sockets, handler_nursery=nursery)

    async def _welcome(self, socket_stream: trio.SocketStream) -> None:
        stream = self._tcp.adopt(socket_stream)
        self._tcp.doorstep.enter(stream)
        try:
            async with trio.open_nursery() as nursery:
                # The swarm's handler returns only when the swarm stops: it has to end with the connection.
                nursery.start_soon(_cancel_when, stream.closed, nursery.cancel_scope)
                await self._handler(stream)
                stream.abort()
        except Exception as error:
            self._on_fault("inbound connection", error)
        finally:
            stream.abort()

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        """Return the addresses listened on."""
        names = [listener.socket.getsockname() for listener in self._sockets if listener.socket.fileno() >= 0]
        return tuple(multiaddr_of(str(name[0]), int(name[1])) for name in names)

    async def close(self) -> None:
        """Accept no more."""
        self._scope.cancel()
        for listener in self._sockets:
            listener.socket.close()
        await trio.lowlevel.checkpoint()


async def _cancel_when(event: trio.Event, scope: trio.CancelScope) -> None:
    await event.wait()
    scope.cancel()


_HOST_PROTOCOLS: Final = ("ip4", "ip6", "dns", "dns4", "dns6")


def multiaddr_of(host: str, port: int) -> Multiaddr:
    """Return the address in libp2p's notation; ValueError for a host that can be no host."""
    try:
        family = "ip6" if ipaddress.ip_address(host).version == 6 else "ip4"
    except ValueError:
        family = "dns"
    return Multiaddr(f"/{family}/{host}/tcp/{port}")


def host_and_port(maddr: Multiaddr) -> tuple[str, int]:
    """Return host and port of a plain TCP address."""
    host = next(maddr.value_for_protocol(p.name) for p in maddr.protocols() if p.name in _HOST_PROTOCOLS)
    port = maddr.value_for_protocol("tcp")
    if host is None or port is None:
        raise OpenConnectionError(f"{maddr} is not an address of host and TCP port")
    return host, int(port)
