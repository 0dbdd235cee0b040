"""The control plane of the network in memory."""

import itertools
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import trio

from transport.base import Dial, GossipMessage, Neighbour, Validator
from transport.intake import GossipIntake, IntakeStatistics
from transport.memory_link import HOST, SEGMENT_BYTES, Wire
from transport.wire import GOSSIP_MAX_BYTES, LocalProtocolError, PeerUnreachableError

SEEN_MAX: Final = 4096
"""Message ids remembered to suppress duplicates."""
GOSSIP_OVERHEAD_BYTES: Final = 180
"""What libp2p adds to a message: signature, key, ids, frame."""
CONNECT_ROUND_TRIPS: Final = 4
"""TCP, TLS and the negotiation of protocol and muxer."""


class MemoryControl:
    """Gossip and neighbourhood of one node; implements transport.base.ControlPlane.

    Gossip floods: a message that is admitted goes to every neighbour but the one it came from.
    """

    def __init__(self, node: str, wire: Wire, on_bug: Callable[[Exception], None]) -> None:
        self._node = node
        self._wire = wire
        self._intake = GossipIntake(clock=trio.current_time, on_bug=on_bug)
        self._sequence = itertools.count(1)
        self._connections: dict[str, dict[int, tuple[MemoryControl, bool]]] = {}
        """Per neighbour the connections by id, with the other end and whether we opened it."""
        self._seen: OrderedDict[tuple[str, str, int], None] = OrderedDict()
        self._port: int | None = None
        self.duplicates = 0

    @property
    def node(self) -> str:
        """PeerID of this node."""
        return self._node

    @property
    def port(self) -> int | None:
        """Port it listens on, while it serves."""
        return self._port

    def statistics(self) -> IntakeStatistics:
        """Return what became of the received messages."""
        return self._intake.statistics()

    # ------------------------------------------------------------ gossip

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip to all nodes.

        Raises
        ------
        LocalProtocolError
            The message is longer than gossip may be.
        """
        await trio.lowlevel.checkpoint()
        if len(data) > GOSSIP_MAX_BYTES:
            raise LocalProtocolError(f"a gossip message of {len(data)} bytes, at most {GOSSIP_MAX_BYTES} may be sent")
        key = (topic, self._node, next(self._sequence))
        self._remember(key)
        self._forward(key, bytes(data), without=None)

    def _remember(self, key: tuple[str, str, int]) -> None:
        self._seen[key] = None
        if len(self._seen) > SEEN_MAX:
            self._seen.popitem(last=False)

    def _forward(self, key: tuple[str, str, int], data: bytes, *, without: str | None) -> None:
        for name in sorted(self._connections):
            if name in (without, key[1]):
                continue
            other = next(iter(self._connections[name].values()))[0]

            def arrive(to: "MemoryControl" = other) -> None:
                to._on_gossip(key, data, self._node)

            self._wire.send(self._node, name, len(data) + GOSSIP_OVERHEAD_BYTES, arrive, gossip=True)

    def _on_gossip(self, key: tuple[str, str, int], data: bytes, forwarder: str) -> None:
        if forwarder not in self._connections:
            return
        if key in self._seen:
            self.duplicates += 1
            return
        message = GossipMessage(topic=key[0], origin=key[1], forwarder=forwarder, data=data)
        if not self._intake.admit(message):
            return
        self._remember(key)
        self._intake.deliver(message)
        self._forward(key, data, without=forwarder)

    def set_validator(self, topic: str, validator: Validator) -> None:
        """Set the check of a topic's messages."""
        self._intake.set_validator(topic, validator)

    def messages(self) -> trio.MemoryReceiveChannel[GossipMessage]:
        """Return the bounded channel of received messages."""
        return self._intake.messages

    def consume(self, take: Callable[[GossipMessage], None] | None) -> None:
        """Give messages to a function; see transport.base.ControlPlane."""
        self._intake.consume(take)

    # ------------------------------------------------------------ neighbourhood

    def neighbours(self) -> tuple[Neighbour, ...]:
        """Return the live control connections, sorted by node."""
        found = []
        for name in sorted(self._connections):
            other, outbound = next(iter(self._connections[name].values()))
            found.append(Neighbour(node=name, address=f"{HOST}:{other.port or 0}", outbound=outbound))
        return tuple(found)

    async def connect(self, dial: Dial) -> None:
        """Open a control connection; raises PeerUnreachableError."""
        if dial.node in self._connections:
            await trio.lowlevel.checkpoint()
            return
        key = self._wire.name_connection()

        def meet() -> bool:
            listener = self._wire.listener(dial.port)
            if not isinstance(listener, MemoryControl) or listener.node != dial.node:
                return False
            listener._attach(self, key, outbound=False)
            return True

        opened = False
        try:
            await self._wire.connect(self._node, dial.node, meet, round_trips=CONNECT_ROUND_TRIPS)
            opened = True
        finally:
            listener = self._wire.listener(dial.port)
            if isinstance(listener, MemoryControl) and not opened:
                self._say_closed(listener, key)
        if not isinstance(listener, MemoryControl) or key not in listener._connections.get(self._node, {}):
            raise PeerUnreachableError(f"{dial.node} closed the connection at once")
        self._attach(listener, key, outbound=True)

    def _attach(self, other: "MemoryControl", key: int, *, outbound: bool) -> None:
        self._connections.setdefault(other.node, {})[key] = (other, outbound)

    def _detach(self, node: str, key: int) -> None:
        connections = self._connections.get(node, {})
        connections.pop(key, None)
        if not connections:
            self._connections.pop(node, None)

    def _say_closed(self, other: "MemoryControl", key: int) -> None:
        self._wire.send(self._node, other.node, SEGMENT_BYTES, lambda: other._detach(self._node, key))

    async def disconnect(self, node: str) -> None:
        """Close the control connections of a node, if there are any."""
        await trio.lowlevel.checkpoint()
        self._close(node)

    def _close(self, node: str) -> None:
        for key, (other, _) in self._connections.pop(node, {}).items():
            self._say_closed(other, key)

    def break_all(self) -> None:
        """Close every connection at once, as a process does that dies."""
        for node in sorted(self._connections):
            self._close(node)
        if self._port is not None:
            self._wire.unbind(self._port)
            self._port = None

    async def serve(self, *, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; reports host and port."""
        self._port = self._wire.bind(self)
        task_status.started((HOST, self._port))
        try:
            await trio.sleep_forever()
        finally:
            self.break_all()
            self._intake.close()
