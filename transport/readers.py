"""Reads connections on which answers are awaited, and calls who awaits them.

Owns one task per connection that is used so, for as long as it is used so: a task per answer costs a fifth of what the
node that asks spends on a small job. Between exchanges the task stays where it is, and leaves at the first sign of
bytes that nobody awaits, or when somebody else reads. Knows nothing of the pool and of what the messages mean.
"""

import trio

from transport.base import Listener
from transport.connection import Connection
from transport.wire import TransportError


class Readers:
    """The tasks that read for listeners, while serve() runs."""

    def __init__(self) -> None:
        self._nursery: trio.Nursery | None = None

    async def serve(self) -> None:
        """Run until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def listen(self, connection: Connection, listener: Listener) -> bool:
        """Have a listener called for each frame until the connection is let go; False where nothing is served."""
        if self._nursery is None:
            return False
        connection.listener = listener
        if connection.reader is None:
            connection.reader = trio.CancelScope()
            self._nursery.start_soon(self._read, connection, connection.reader)
        return True

    @staticmethod
    async def _read(connection: Connection, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await _read_for_listeners(connection)
            except TransportError as error:
                listener, connection.listener = connection.listener, None
                if listener is not None:
                    listener.broke(error)
        if connection.reader is scope:
            connection.reader = None


async def _read_for_listeners(connection: Connection) -> None:
    while True:
        await connection.wait_arrival()
        listener = connection.listener
        if listener is None:
            return
        message, payload = await connection.receive()
        listener = connection.listener
        if listener is None:
            # It went while the frame came in: the exchange was over, and the peer said more than it was asked.
            connection.close()
            return
        listener.heard(message, payload)
