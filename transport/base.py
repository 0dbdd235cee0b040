"""What the daemon needs of a network, whatever carries it.

Two planes. The control plane gossips: best effort, small, signed by the origin. The data plane exchanges:
reliable, one question at a time per connection, with raw bytes behind a message. transport.libp2p_host and
transport.dataplane are the real ones; transport.memory is a network in memory with delay, loss and partition
for tests and for a whole daemon on a virtual clock.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

import msgspec
import trio

from transport.wire import DataMessage, TransportError

STATE_TOPIC = "state"
HEALTH_TOPIC = "health"
CARD_TOPIC = "cards"
REVOCATION_TOPIC = "revocations"
TRUST_TOPIC = "trust"
TOPICS = (STATE_TOPIC, HEALTH_TOPIC, CARD_TOPIC, REVOCATION_TOPIC, TRUST_TOPIC)
"""All there are. The real host prefixes them with the grid's id; a peer cannot make it follow others."""

Buffer = bytes | bytearray | memoryview


class GossipMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message that passed the validators."""

    topic: str
    origin: str
    """Node whose signature it carries."""
    forwarder: str
    """Neighbour it came through."""
    data: bytes


Validator = Callable[[GossipMessage], bool]
"""Says whether a message is used and forwarded. Must be quick; runs before delivery."""


class Neighbour(msgspec.Struct, frozen=True, kw_only=True):
    """A control connection."""

    node: str
    address: str
    outbound: bool


class Dial(msgspec.Struct, frozen=True, kw_only=True):
    """Where to reach a node's control plane."""

    node: str
    host: str
    port: int


class ControlPlane(Protocol):
    """Gossip and neighbourhood."""

    @property
    def node(self) -> str:
        """PeerID of this node."""
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Gossip to all nodes. Best effort: never raises for the network's faults."""
        ...

    def set_validator(self, topic: str, validator: Validator) -> None:
        """Set the check of a topic's messages; before serve."""
        ...

    def messages(self) -> trio.MemoryReceiveChannel[GossipMessage]:
        """Return the bounded channel of received messages; when it is full the oldest are dropped and counted."""
        ...

    def consume(self, take: Callable[[GossipMessage], None] | None) -> None:
        """Give messages to a function, in the very call that receives them: a task would have to be woken for each.

        It must be quick; what it raises is a bug. None: they go to the channel again.
        """
        ...

    def neighbours(self) -> tuple[Neighbour, ...]:
        """Return the live control connections, sorted by node."""
        ...

    async def connect(self, dial: Dial) -> None:
        """Open a control connection; raises PeerUnreachableError."""
        ...

    async def disconnect(self, node: str) -> None:
        """Close the control connections of a node, if there are any."""
        ...

    async def serve(self, *, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled; reports the bound host and port once listening."""
        ...


class Room(Protocol):
    """Memory of the receiver's choice for one payload."""

    @property
    def view(self) -> memoryview:
        """As long as the payload."""
        ...

    def release(self) -> None:
        """Give it back; twice is fine."""
        ...


MakeRoom = Callable[[DataMessage, int], Room | None]
"""Told a frame's message and its payload's length, returns where the payload is to be received; None for wherever. A
network need not ask about what is so small that it is whole when its length is seen."""


class Listener(Protocol):
    """Takes what comes back on an exchange, in the call that reads it. Its calls do not block and do not raise."""

    def heard(self, message: DataMessage, payload: memoryview) -> None:
        """Take a frame; Exchange.receive() says what it may be."""
        ...

    def broke(self, error: TransportError) -> None:
        """Take note that the connection is closed: by the network's fault, the peer's, or on this side."""
        ...


class Exchange(Protocol):
    """One question and its answers on one connection."""

    @property
    def peer(self) -> str:
        """Certified PeerID of the other side."""
        ...

    async def send(self, message: DataMessage, payload: Sequence[Buffer] = ()) -> None:
        """Send a frame.

        Cancelling it half way closes the connection.

        Raises
        ------
        PeerUnreachableError
            The connection broke.
        """
        ...

    def send_nowait(self, message: DataMessage, payload: Sequence[Buffer] = ()) -> bool:
        """Send a frame in this very call; False where a part of it waits for flush(), or for the next send.

        What waits may be the payload itself, which stays as it is until then.

        Raises
        ------
        trio.WouldBlock
            Something else is being sent; nothing was done.
        PeerUnreachableError
            The connection broke.
        """
        ...

    async def flush(self) -> None:
        """Send what send_nowait() left; raises as send()."""
        ...

    async def receive(self) -> tuple[DataMessage, memoryview]:
        """Receive the next frame; the payload is a buffer of its own (empty where there is none).

        Cancelling it between frames is safe.

        Raises
        ------
        PeerUnreachableError
            The connection broke or ended.
        RemoteProtocolError, FrameTooLargeError
            The peer sent nonsense; the connection is closed.
        """
        ...

    def listen(self, listener: Listener) -> bool:
        """Have a listener called for each frame that comes, until the exchange is given back or receive() is called.

        False where that cannot be had: then receive().
        """
        ...

    def take_room(self) -> Room | None:
        """Return the memory of the payload received last, if it was chosen; whoever takes it releases it, once."""
        ...

    def unread(self, message: DataMessage, payload: memoryview) -> None:
        """Give back the frame received last: it begins another exchange, and is received again."""
        ...

    def finish(self) -> None:
        """Say that the exchange is complete, so that the connection may be used again; else it is closed."""
        ...


ExchangeHandler = Callable[[Exchange, DataMessage, memoryview], Awaitable[None]]
"""Takes an inbound exchange with its first frame. It returns when the exchange is over; faults of TransportError
close the connection, anything else is a bug and ends the node."""


class DataAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Where a node's data port is."""

    host: str
    port: int


class DataPlane(Protocol):
    """Exchanges with peers by PeerID."""

    make_room: MakeRoom
    """Chooses where payloads of peers are received."""

    def set_address(self, node: str, addresses: Sequence[DataAddress]) -> None:
        """Tell where a peer's data port is, best first; an empty sequence forgets it."""
        ...

    def take(self, peer: str) -> Exchange | None:
        """Lease an idle pooled connection in this very call; None where there is none. give_back() ends the lease."""
        ...

    def give_back(self, exchange: Exchange) -> None:
        """End a lease by take(); the connection is kept if the exchange was finished."""
        ...

    def exchange(self, peer: str) -> AbstractAsyncContextManager[Exchange]:
        """Lease a pooled connection, or make one.

        Raises
        ------
        PeerUnreachableError
            No address is known, no connection could be made in time, or the peer's certificate is refused.
        """
        ...

    def open_peers(self) -> tuple[str, ...]:
        """Return the peers with an open connection, sorted."""
        ...

    async def close_peer(self, peer: str) -> None:
        """Close all connections of a peer, in use or not (revoked, dead)."""
        ...

    async def close_refused(self) -> tuple[str, ...]:
        """Close connections whose certificate is refused by now (expired, revoked); returns their peers, sorted."""
        ...

    async def serve(
        self, handler: ExchangeHandler, *, task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Listen until cancelled; reports the bound host and port."""
        ...


async def ask(
    plane: DataPlane, peer: str, question: DataMessage, payload: Sequence[Buffer] = ()
) -> tuple[DataMessage, memoryview]:
    """Put one question to a peer and return its one answer, with the payload; the connection is free again then.

    Raises
    ------
    PeerUnreachableError
        No connection could be made or kept.
    RemoteProtocolError, FrameTooLargeError
        The peer sent nonsense; the connection is closed.
    """
    async with plane.exchange(peer) as exchange:
        await exchange.send(question, payload)
        answer = await exchange.receive()
        exchange.finish()
    return answer
