"""What this node has under way at a peer: how it is cancelled, and how it went there.

Owns one command's life between its sending and its answer; gridnode.outbound runs it.
"""

from typing import Protocol

import msgspec
import trio

from gridnode.config import HANDOVER_TIMEOUT_S
from transport.base import Exchange
from transport.wire import JobCancel, PeerUnreachableError


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
