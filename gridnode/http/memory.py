"""Memory for bodies of requests: how much all connections may hold. Where it lies is gridnode.modelmemory's."""

from collections.abc import Callable
from typing import Final

from gridnode.http.heads import HttpError
from gridnode.modelmemory import Loan, ModelMemory
from models.executor import Place
from models.segments import Segment

HELD_MAX_BYTES: Final = 256 * 1024 * 1024
"""Bodies held at once for all connections together: four of the largest."""


class BodyMemory:
    """Memory for the bodies of all connections.

    Parameters
    ----------
    forget : callable
        Lets go of a segment, in the workers too.
    most_bytes : int
        Largest sum of all bodies.
    """

    def __init__(self, forget: Callable[[Segment], None], most_bytes: int = HELD_MAX_BYTES) -> None:
        self.models = ModelMemory(forget)
        self.left_bytes = most_bytes
        """What may still be held."""

    def hold(self, size_bytes: int) -> "Holding":
        """Reserve room for a body; raises HttpError where there is none."""
        if size_bytes > self.left_bytes:
            raise HttpError(503, "memory for requests in flight is spent: try again later", retry_after_s=1)
        self.left_bytes -= size_bytes
        return Holding(self, size_bytes)

    def close(self) -> None:
        """Let go of all that workers can read."""
        self.models.close()


class Holding:
    """Room for one body, until it is released."""

    def __init__(self, memory: BodyMemory, size_bytes: int) -> None:
        self._memory = memory
        self._size_bytes = size_bytes
        self._loan: Loan | None = None
        self.place: Place | None = None
        """Where workers find what was received into the buffer; None where they do not."""

    def buffer(self, size_bytes: int, *, model: str) -> memoryview:
        """Return where bytes for a model's workers are to be received. Call it once."""
        loan = self._loan = self._memory.models.take(model, size_bytes)
        if loan is None:
            return memoryview(bytearray(size_bytes))
        self.place = loan.place
        return loan.view

    def release(self) -> None:
        """Give the room back. Releasing twice is fine."""
        self._memory.left_bytes += self._size_bytes
        self._size_bytes = 0
        if self._loan is not None:
            self._loan.release()
