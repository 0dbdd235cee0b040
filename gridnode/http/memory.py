"""Memory for bodies of requests: how much of it, and where workers can read them in place.

Owns the bound that all connections share, and per model one memory that its workers map. A body that is received there
is never copied again; one that finds no room there gets a buffer of its own, and is copied once on its way. A worker
sees the memory of its own model only: a model that turns bad reads nothing that was sent to another.
"""

import contextlib
import mmap
from collections.abc import Callable
from typing import Final

from gridnode.http.heads import HttpError
from gridnode.segment import SHARED_MIN_BYTES, Arena, make_memory, seal
from models.executor import Place
from models.segments import Segment, SegmentRefusedError

HELD_MAX_BYTES: Final = 256 * 1024 * 1024
"""Bodies held at once for all connections together: four of the largest."""
MODEL_BYTES: Final = 8 * 1024 * 1024
"""Shared memory of one model: its pages stay once they were used, as many as a worker keeps of its own."""
MODELS_MAX: Final = 16
"""Models with such memory; a node runs a handful."""


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
        self._forget = forget
        self._shared: dict[str, _Shared | None] = {}
        self.left_bytes = most_bytes
        """What may still be held."""

    def hold(self, size_bytes: int) -> "Holding":
        """Reserve room for a body; raises HttpError where there is none."""
        if size_bytes > self.left_bytes:
            raise HttpError(503, "memory for requests in flight is spent: try again later", retry_after_s=1)
        self.left_bytes -= size_bytes
        return Holding(self, size_bytes)

    def shared(self, model: str) -> "_Shared | None":
        """Return the memory of a model; None where there is none to be had."""
        if model not in self._shared:
            if len(self._shared) >= MODELS_MAX:
                return None
            try:
                self._shared[model] = _Shared()
            except (OSError, SegmentRefusedError):
                self._shared[model] = None  # a machine without such memory does with copies
        return self._shared[model]

    def close(self) -> None:
        """Let go of all that workers can read."""
        for shared in self._shared.values():
            if shared is not None:
                self._forget(shared.segment)
                shared.close()
        self._shared.clear()


class Holding:
    """Room for one body, until it is released."""

    def __init__(self, memory: BodyMemory, size_bytes: int) -> None:
        self._memory = memory
        self._size_bytes = size_bytes
        self._shared: _Shared | None = None
        self._start = 0
        self.place: Place | None = None
        """Where workers find what was received into the buffer; None where they do not."""

    def buffer(self, size_bytes: int, *, model: str) -> memoryview:
        """Return where bytes for a model's workers are to be received. Call it once."""
        shared = self._memory.shared(model) if size_bytes >= SHARED_MIN_BYTES else None
        start = None if shared is None else shared.arena.allocate(size_bytes)
        if shared is None or start is None:
            return memoryview(bytearray(size_bytes))
        self._shared, self._start = shared, start
        self.place = Place(shared.segment, start)
        return shared.view[start : start + size_bytes]

    def release(self) -> None:
        """Give the room back. Releasing twice is fine."""
        self._memory.left_bytes += self._size_bytes
        self._size_bytes = 0
        if self._shared is not None:
            self._shared.arena.free(self._start)
            self._shared = None


class _Shared:
    """Memory that the workers of one model read; raises OSError or SegmentRefusedError where the machine has none."""

    def __init__(self) -> None:
        descriptor = make_memory(MODEL_BYTES)
        self._map = mmap.mmap(descriptor, MODEL_BYTES)
        seal(descriptor)
        self.view = memoryview(self._map)
        self.arena = Arena(MODEL_BYTES)
        self.segment = Segment(descriptor, MODEL_BYTES)

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # a payload is still being read: its end lets go of the rest
            self.view.release()
            self._map.close()
