"""What this node has under way at a peer: how it is cancelled, and how it went there.

Owns one command's life between its sending and its answer; gridnode.outbound runs it. An errand that has to wait for
its connection, or for room in it, is a task; one that left in the call that asked for it is followed without.
"""

from collections.abc import Callable
from typing import Protocol

import msgspec
import trio

from gridnode.config import HANDOVER_TIMEOUT_S
from gridnode.jobtable import JobEntry
from scheduler.actions import Send
from transport.base import Exchange
from transport.wire import DataMessage, JobCancel, PeerUnreachableError, TransportError


class Cancellable(Protocol):
    """Something of ours at a peer."""

    def cancel(self, nursery: trio.Nursery) -> None:
        """Stop it; ``nursery`` runs the task that tells the peer."""
        ...


class Way(msgspec.Struct, frozen=True, kw_only=True):
    """How a job went to its executor, for measuring the link. A lease has none: the thief's asking began it."""

    began_s: float
    """When there was a connection."""
    setup_s: float
    """How long that had taken."""
    input_bytes: int


class Errand:
    """One command under way at a peer; can be cancelled from outside."""

    __slots__ = ("_cancel_sent", "exchange", "key", "scope", "sent")

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.scope = trio.CancelScope()
        self.exchange: Exchange | None = None
        self.sent = False
        """Whether the payload has left completely, so that the peer must be told."""
        self._cancel_sent = False

    def cancel(self, nursery: trio.Nursery) -> None:
        """Stop the errand; ``nursery`` runs the task that tells the peer."""
        if not self.sent or self.exchange is None:
            self.scope.cancel()
        elif not self._cancel_sent:
            self._cancel_sent = True
            self.scope.deadline = trio.current_time() + HANDOVER_TIMEOUT_S
            nursery.start_soon(self._tell, self.exchange)

    async def _tell(self, exchange: Exchange) -> None:
        try:
            with trio.move_on_after(HANDOVER_TIMEOUT_S):
                await exchange.send(JobCancel(key=self.key))
        except PeerUnreachableError:
            self.scope.cancel()


class Follower(Protocol):
    """Takes what comes of a job that has left."""

    def hear(self, pursuit: "Pursuit", message: DataMessage, payload: memoryview) -> None:
        """Take a frame."""
        ...

    def lose(self, pursuit: "Pursuit", error: TransportError | None) -> None:
        """Take note that no more will come; None where the peer did not answer a cancel in time."""
        ...


class Pursuit:
    """A job that left in the call that asked for it; what comes back is taken in the call that reads it.

    Implements transport.base.Listener.
    """

    __slots__ = ("_follower", "_over", "action", "entry", "exchange", "way")

    def __init__(self, follower: Follower, action: Send, entry: JobEntry, exchange: Exchange, way: Way) -> None:
        self._follower = follower
        self._over: Callable[[], None] | None = None
        """Ends the wait for the answer to a cancel."""
        self.action = action
        self.entry = entry
        self.exchange = exchange
        self.way = way

    def heard(self, message: DataMessage, payload: memoryview) -> None:
        """Take a frame."""
        self._follower.hear(self, message, payload)

    def broke(self, error: TransportError) -> None:
        """Take note that the connection is closed."""
        self._follower.lose(self, error)

    def ended(self) -> None:
        """Take note that all is over."""
        if self._over is not None:
            self._over()

    def cancel(self, nursery: trio.Nursery) -> None:
        """Tell the peer, and give it up if it does not answer; ``nursery`` runs the task that does."""
        if self._over is None:
            over = trio.Event()
            self._over = over.set
            nursery.start_soon(self._call_off, over)

    async def _call_off(self, over: trio.Event) -> None:
        try:
            with trio.move_on_after(HANDOVER_TIMEOUT_S):
                if not over.is_set():
                    await self.exchange.send(JobCancel(key=self.entry.job.key))
                    await over.wait()
        except PeerUnreachableError:
            return  # the listener is told
        if not over.is_set():
            self._follower.lose(self, None)
