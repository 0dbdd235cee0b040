"""Data connections between two nodes: opening, the pool of idle ones, breaking.

One question at a time per connection, as on the daemon's data plane. Both ends are told of what arrives by calls; a
broken end hears nothing more. Owns no message's meaning.
"""

from collections.abc import Callable
from typing import Any, Protocol

from simulator.messages import SEGMENT_BYTES
from simulator.network import Direction, Network


class Talker(Protocol):
    """Whoever uses one end of a connection now."""

    def on_broken(self) -> None:
        """Take note that the other side closed it."""


class Connection:
    """A connection; `asker` opened it, and `server` answers on it.

    Parameters
    ----------
    asker, server : Endpoint
        The two sides.
    """

    __slots__ = ("_back", "_out", "asker", "asker_broken", "errand", "served", "server", "server_broken")

    def __init__(self, asker: "Endpoint", server: "Endpoint") -> None:
        self.asker = asker
        self.server = server
        self._out = asker.to(server.name).lane()
        self._back = server.to(asker.name).lane()
        self.errand: Talker | None = None
        """What the asker uses it for."""
        self.served: Talker | None = None
        """What the server is doing on it."""
        self.asker_broken = False
        self.server_broken = False

    @property
    def is_limited(self) -> bool:
        """Whether sizes matter to the server's side, or to the asker's."""
        return self._out.is_limited or self._back.is_limited

    def ask(self, size_bytes: int, call: Callable[..., object], *args: Any) -> None:  # noqa: ANN401
        """Send a message from asker to server."""
        if not self.asker_broken:
            self._out.send(size_bytes, self._at_server, call, args)

    def answer(self, size_bytes: int, call: Callable[..., object], *args: Any) -> None:  # noqa: ANN401
        """Send a message from server to asker."""
        if not self.server_broken:
            self._back.send(size_bytes, self._at_asker, call, args)

    def _at_server(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        if not self.server_broken:
            call(*args)

    def _at_asker(self, call: Callable[..., object], args: tuple[Any, ...]) -> None:
        if not self.asker_broken:
            call(*args)

    def close_asker(self) -> None:
        """Close the asker's end."""
        self.asker.ends.pop((self, True), None)
        if not self.asker_broken:
            self.asker_broken = True
            self._out.send(SEGMENT_BYTES, self._break_server)

    def close_server(self) -> None:
        """Close the server's end."""
        self.server.ends.pop((self, False), None)
        if not self.server_broken:
            self.server_broken = True
            self._back.send(SEGMENT_BYTES, self._break_asker)

    def _break_server(self) -> None:
        if not self.server_broken:
            self.server_broken = True
            self.server.ends.pop((self, False), None)
            if self.served is not None:
                self.served.on_broken()

    def _break_asker(self) -> None:
        if not self.asker_broken:
            self.asker_broken = True
            if self.errand is not None:
                self.errand.on_broken()


class Opener(Protocol):
    """Whoever wants a connection."""

    def on_connected(self, connection: Connection) -> None:
        """Use it."""

    def on_unreachable(self) -> None:
        """Take note that there is none to be had."""


class Opening:
    """A handshake under way.

    Parameters
    ----------
    connection : Connection
        What is to be.
    opener : Opener
        Who wants it.
    """

    __slots__ = ("_connection", "_engine", "_left", "_limit", "_network", "_opener")

    def __init__(self, network: Network, connection: Connection, opener: Opener) -> None:
        self._network = network
        self._engine = network.engine
        self._connection = connection
        self._opener: Opener | None = opener
        self._left = network.config.connect_round_trips
        self._limit = self._engine.at(self._engine.now_s + network.config.connect_timeout_s, self._fail)
        self._request()

    def _request(self) -> None:
        if self._network.is_gone(self._connection.server.name):
            # Its machine still answers: connection refused.
            self._engine.at(self._engine.now_s + 2 * self._network.default.delay_s, self._refuse)
            return
        connection = self._connection
        connection.asker.to(connection.server.name).send(SEGMENT_BYTES, self._at_server, self._left == 1)

    def _at_server(self, is_last: bool) -> None:
        connection, server = self._connection, self._connection.server
        is_taken = server.is_listening
        if is_last and is_taken:
            server.ends[connection, False] = None
        server.to(connection.asker.name).send(SEGMENT_BYTES, self._answered, is_taken or not is_last)

    def _answered(self, is_taken: bool) -> None:
        if self._opener is None:
            return
        self._left -= 1
        if not is_taken:
            self._refuse()
        elif self._left:
            self._request()
        else:
            self._engine.cancel(self._limit)
            opener, self._opener = self._opener, None
            self._connection.asker.ends[self._connection, True] = None
            opener.on_connected(self._connection)

    def _refuse(self) -> None:
        if self._opener is not None:
            self._engine.cancel(self._limit)
            self._fail()

    def _fail(self) -> None:
        opener, self._opener = self._opener, None
        if opener is not None:
            self._connection.close_asker()
            opener.on_unreachable()

    def cancel(self) -> None:
        """Give up."""
        if self._opener is not None:
            self._opener = None
            self._engine.cancel(self._limit)
            self._connection.close_asker()


class Endpoint:
    """A node's place in the network: its directions, its pool of connections.

    Parameters
    ----------
    name : str
        The node.
    network : Network
        All links.
    """

    def __init__(self, name: str, network: Network) -> None:
        self.name = name
        self.network = network
        self.is_listening = True
        self.ends: dict[tuple[Connection, bool], None] = {}
        """Open connections in the order in which they were made, with whether this node asked for them."""
        self._idle: dict[str, list[Connection]] = {}
        self._directions: dict[str, Direction] = {}

    def to(self, peer: str) -> Direction:
        """Return the way to a peer."""
        found = self._directions.get(peer)
        if found is None:
            found = self._directions[peer] = self.network.direction(self.name, peer)
        return found

    def lease(self, peer: "Endpoint", opener: Opener) -> Opening | None:
        """Give an opener an idle connection at once, or begin to open one."""
        idle = self._idle.get(peer.name)
        while idle:
            connection = idle.pop()
            if not connection.asker_broken:
                opener.on_connected(connection)
                return None
            self.ends.pop((connection, True), None)
        connection = Connection(self, peer)
        if self.network.config.connect_round_trips:
            return Opening(self.network, connection, opener)
        if not peer.is_listening:
            opener.on_unreachable()
            return None
        self.ends[connection, True] = None
        peer.ends[connection, False] = None
        opener.on_connected(connection)
        return None

    def put_back(self, connection: Connection) -> None:
        """Keep a connection for the next question, or close it when there are enough."""
        connection.errand = None
        idle = self._idle.setdefault(connection.server.name, [])
        if not connection.asker_broken and len(idle) < self.network.config.idle_connections:
            idle.append(connection)
        else:
            connection.close_asker()

    def break_all(self) -> None:
        """Close every connection at once, as a process does that dies."""
        self.is_listening = False
        for connection, is_asker in list(self.ends):
            if is_asker:
                connection.close_asker()
            else:
                connection.close_server()
        self._idle.clear()
