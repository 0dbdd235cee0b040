"""One question and its answers on a pooled connection, as the data plane hands it out.

Owns whether the exchange was completed. Knows nothing of the pool that the connection goes back to.
"""

from collections.abc import Sequence

import trio

from transport.base import Buffer, Listener, Room
from transport.certificates import PeerCertificate
from transport.connection import Connection
from transport.readers import Readers
from transport.wire import DataMessage


class TlsExchange:
    """One question and its answers; implements transport.base.Exchange."""

    def __init__(self, connection: Connection, readers: Readers) -> None:
        self.connection = connection
        self._readers = readers
        self.is_finished = False
        """Whether the connection may be used again."""

    @property
    def peer(self) -> str:
        """Certified PeerID of the other side."""
        return self.connection.peer

    @property
    def certificate(self) -> PeerCertificate:
        """The peer's certificate; its roles say what the peer may ask for."""
        return self.connection.certificate

    async def send(self, message: DataMessage, payload: Sequence[Buffer] = ()) -> None:
        """Send a frame; see transport.base.Exchange."""
        await self.connection.send(message, payload)

    def send_nowait(self, message: DataMessage, payload: Sequence[Buffer] = ()) -> bool:
        """Send a frame in this call; see transport.base.Exchange."""
        return self.connection.send_nowait(message, payload)

    async def flush(self) -> None:
        """Send what send_nowait() left; see transport.base.Exchange."""
        await self.connection.flush()

    async def receive(self) -> tuple[DataMessage, memoryview]:
        """Receive a frame; see transport.base.Exchange."""
        if self.connection.reader is not None:
            self.connection.dismiss_reader()
        return await self.connection.receive()

    def listen(self, listener: Listener) -> bool:
        """Have frames read for a listener; see transport.base.Exchange."""
        return self._readers.listen(self.connection, listener)

    def take_room(self) -> Room | None:
        """Return the memory of the payload received last; see transport.base.Exchange."""
        return self.connection.take_room()

    def unread(self, message: DataMessage, payload: memoryview) -> None:
        """Give back the frame received last; see transport.base.Exchange."""
        self.connection.unread(message, payload)

    def finish(self) -> None:
        """Say that the exchange is complete."""
        self.is_finished = True
        self.connection.idle_since_s = trio.current_time()
