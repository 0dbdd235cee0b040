"""Data connections between two nodes: opening, the pool of idle ones, breaking.

One question at a time per connection, as on the daemon's data plane. Both ends are told of what arrives by calls; a
broken end hears nothing more. Owns no message's meaning.

The pool's bounds are those of transport.pool where the configuration names them: connections per peer and in all, and
idle ones that are closed after a while. Whoever finds a bound reached waits for his turn.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol

from simulator.messages import SEGMENT_BYTES
from simulator.network import Network
from simulator.ways import Call, Direction

HANDSHAKE_BYTES: Final = ((60, 60), (221, 1828), (1722, 139))
"""Bytes there and back in the round trips of TCP (SYN), of TLS 1.3 (ClientHello; the server's certificates), and of the
client's certificates with the confirmation and both Hellos: measured with two grid certificates and their CA's."""
HANDSHAKE_CPU_S: Final = 0.0007
"""Processor time of a handshake on either side, one x86 core, verdict included: measured likewise (0.70 ms asking,
0.62 ms listening). A board takes several times as long."""
DAEMON_POOL: Final = {"connections_per_peer": 32, "connections_max": 256, "idle_connections": 32, "idle_s": 60.0}
"""Bounds of the daemon's pool (transport.dataplane_records), as fields of a NetworkConfig."""


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

    __slots__ = ("_back", "_out", "asker", "asker_broken", "errand", "idle_from_s", "served", "server", "server_broken")

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
        self.idle_from_s = 0.0
        """Since when it waits in the pool."""

    @property
    def is_limited(self) -> bool:
        """Whether sizes matter to the server's side, or to the asker's."""
        return self._out.is_limited or self._back.is_limited

    def ask(self, size_bytes: int, call: Call, *args: Any) -> None:  # noqa: ANN401
        """Send a message from asker to server."""
        if not self.asker_broken:
            self._out.send(size_bytes, self._at_server, call, args)

    def answer(self, size_bytes: int, call: Call, *args: Any) -> None:  # noqa: ANN401
        """Send a message from server to asker."""
        if not self.server_broken:
            self._back.send(size_bytes, self._at_asker, call, args)

    def _at_server(self, call: Call, args: tuple[Any, ...]) -> None:
        if not self.server_broken:
            call(*args)

    def _at_asker(self, call: Call, args: tuple[Any, ...]) -> None:
        if not self.asker_broken:
            call(*args)

    def close_asker(self) -> None:
        """Close the asker's end."""
        self.asker.ends.pop((self, True), None)
        if not self.asker_broken:
            self.asker_broken = True
            self._out.send(SEGMENT_BYTES, self._break_server)
            self.asker.on_closed(self.server.name)

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
            self.asker.ends.pop((self, True), None)
            self.asker.on_closed(self.server.name)
            if self.errand is not None:
                self.errand.on_broken()
            else:
                self.asker.on_peer_closed(self.server.name)


class Opener(Protocol):
    """Whoever wants a connection."""

    def on_connected(self, connection: Connection) -> None:
        """Use it."""

    def on_unreachable(self) -> None:
        """Take note that there is none to be had."""


class Pending(Protocol):
    """A connection that is not there yet."""

    def cancel(self) -> None:
        """Give up."""


class Opening:
    """A handshake under way.

    Parameters
    ----------
    connection : Connection
        What is to be.
    opener : Opener
        Who wants it.
    """

    __slots__ = ("_connection", "_engine", "_left", "_limit", "_network", "_opener", "_sizes")

    def __init__(self, network: Network, connection: Connection, opener: Opener) -> None:
        self._network = network
        self._engine = network.engine
        self._connection = connection
        self._opener: Opener | None = opener
        self._left = network.config.connect_round_trips
        self._sizes = iter(network.config.handshake_bytes)
        self._limit = self._engine.at(self._engine.now_s + network.config.connect_timeout_s, self._fail)
        self._request()

    def _request(self) -> None:
        if self._network.is_gone(self._connection.server.name):
            # Its machine still answers: connection refused.
            self._engine.at(self._engine.now_s + 2 * self._network.default.delay_s, self._refuse)
            return
        connection, is_last = self._connection, self._left == 1
        there, back = next(self._sizes, (SEGMENT_BYTES, SEGMENT_BYTES))
        way = connection.asker.to(connection.server.name)
        cpu_s = self._network.config.connect_cpu_s
        if is_last and cpu_s:
            # The client has checked the server's certificate; the server checks the client's next.
            connection.asker.burden(cpu_s)
            self._engine.at(self._engine.now_s + cpu_s, way.send, there, self._think, cpu_s, back)
        else:
            way.send(there, self._at_server, is_last, back)

    def _think(self, cpu_s: float, back_bytes: int) -> None:
        self._connection.server.burden(cpu_s)
        self._engine.at(self._engine.now_s + cpu_s, self._at_server, True, back_bytes)

    def _at_server(self, is_last: bool, back_bytes: int) -> None:
        connection, server = self._connection, self._connection.server
        is_taken = server.is_listening
        if is_last and is_taken:
            server.ends[connection, False] = None
        server.to(connection.asker.name).send(back_bytes, self._answered, is_taken or not is_last)

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


class _Turn:
    """An errand that waits for the pool's bounds."""

    __slots__ = ("begun", "is_over", "opener", "peer")

    def __init__(self, peer: "Endpoint", opener: Opener) -> None:
        self.peer = peer
        self.opener = opener
        self.is_over = False
        self.begun: Pending | None = None

    def cancel(self) -> None:
        """Give up."""
        if not self.is_over:
            self.is_over = True
        elif self.begun is not None:
            self.begun.cancel()


def _ignore(_: object) -> None:
    """Be no hook."""


def _idle_from_s(connection: Connection) -> float:
    return connection.idle_from_s


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
        self.burden: Callable[[float], object] = _ignore
        """Told of processor time that handshakes take here, in seconds."""
        self.on_peer_closed: Callable[[str], object] = _ignore
        """Told of a peer that closed an idle connection of ours; the daemon sees it at its next sweep, within 0.5 s."""
        self._idle: dict[str, list[Connection]] = {}
        self._directions: dict[str, Direction] = {}
        config = network.config
        self._is_bounded = config.connections_per_peer is not None or config.connections_max is not None
        self._idle_max = config.idle_connections
        self._idle_s = config.idle_s
        self._asked: dict[str, int] = {}
        """Connections open or being made by us, per peer, where they are bounded."""
        self._turns: deque[_Turn] = deque()
        self._is_serving = False

    def to(self, peer: str) -> Direction:
        """Return the way to a peer."""
        found = self._directions.get(peer)
        if found is None:
            found = self._directions[peer] = self.network.direction(self.name, peer)
        return found

    def open_peers(self) -> tuple[str, ...]:
        """Return the peers with an open connection, whoever asked for it, sorted."""
        return tuple(sorted({(each.server if is_ours else each.asker).name for each, is_ours in self.ends}))

    def lease(self, peer: "Endpoint", opener: Opener) -> Pending | None:
        """Give an opener an idle connection at once, begin to open one, or have it wait for one."""
        idle = self._idle.get(peer.name)
        while idle:
            connection = idle.pop()
            if not connection.asker_broken:
                opener.on_connected(connection)
                return None
            self.ends.pop((connection, True), None)
        if self._is_bounded:
            if not self._has_room(peer.name):
                turn = _Turn(peer, opener)
                self._turns.append(turn)
                return turn
            self._asked[peer.name] = self._asked.get(peer.name, 0) + 1
        return self._open(peer, opener)

    def _open(self, peer: "Endpoint", opener: Opener) -> Pending | None:
        connection = Connection(self, peer)
        if self.network.config.connect_round_trips:
            return Opening(self.network, connection, opener)
        if not peer.is_listening:
            connection.asker_broken = True
            self.on_closed(peer.name)
            opener.on_unreachable()
            return None
        self.ends[connection, True] = None
        peer.ends[connection, False] = None
        opener.on_connected(connection)
        return None

    def put_back(self, connection: Connection) -> None:
        """Keep a connection for the next question, or close it when there are enough."""
        connection.errand = None
        peer = connection.server.name
        idle = self._idle.get(peer)
        if idle is None:
            idle = self._idle[peer] = []
        if connection.asker_broken or len(idle) >= self._idle_max:
            connection.close_asker()
            return
        idle.append(connection)
        if self._idle_s is not None:
            connection.idle_from_s = now_s = self.network.engine.now_s
            self.network.engine.at(now_s + self._idle_s, self._sweep, connection, now_s)
        if self._turns:
            self._serve_turns()

    def _sweep(self, connection: Connection, idle_from_s: float) -> None:
        """Close a connection that nobody has used since."""
        idle = self._idle.get(connection.server.name, [])
        if connection.idle_from_s == idle_from_s and connection in idle:
            idle.remove(connection)
            connection.close_asker()

    # Bounds.

    def _has_room(self, peer: str) -> bool:
        """Return whether one more connection is allowed; the one idle longest makes room for another peer's."""
        config = self.network.config
        if config.connections_per_peer is not None and self._asked.get(peer, 0) >= config.connections_per_peer:
            return False
        if config.connections_max is None or sum(self._asked.values()) < config.connections_max:
            return True
        oldest = min([idle[0] for idle in self._idle.values() if idle], key=_idle_from_s, default=None)
        if oldest is None:
            return False
        self._idle[oldest.server.name].remove(oldest)
        oldest.close_asker()
        return True

    def on_closed(self, peer: str) -> None:
        """Take note that one of our connections is gone: somebody's turn may have come."""
        if self._is_bounded:
            self._asked[peer] -= 1
            if self._turns:
                self._serve_turns()

    def _serve_turns(self) -> None:
        """Let those who wait try again, in their order."""
        if self._is_serving:
            return
        self._is_serving = True
        waiting, self._turns = self._turns, deque()
        for turn in waiting:
            if turn.is_over:
                continue
            if self._idle.get(turn.peer.name) or self._has_room(turn.peer.name):
                turn.is_over = True
                turn.begun = self.lease(turn.peer, turn.opener)
            else:
                self._turns.append(turn)
        self._is_serving = False

    def close_peer(self, peer: str) -> None:
        """Close all connections of a peer, in use or not; whoever uses one is told that it broke."""
        for connection, is_ours in [each for each in self.ends if peer in (each[0].server.name, each[0].asker.name)]:
            if is_ours:
                connection.close_asker()
                talker, connection.errand = connection.errand, None
            else:
                connection.close_server()
                talker, connection.served = connection.served, None
            if talker is not None:
                talker.on_broken()

    def break_all(self) -> None:
        """Close every connection at once, as a process does that dies."""
        self.is_listening = False
        self._turns.clear()
        for connection, is_asker in list(self.ends):
            if is_asker:
                connection.close_asker()
            else:
                connection.close_server()
        self._idle.clear()
