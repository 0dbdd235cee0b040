"""Memory in which payloads are received so that the workers of a model read them where they lie.

Owns one sealed memory per model, and what of it is taken. A payload that is received there is never copied again; one
that finds no room gets a buffer of its own, and is copied once on its way. A worker sees the memory of its own model
only: a model that turns bad reads nothing that was sent to another.
"""

import contextlib
import mmap
from collections.abc import Callable
from typing import Final

from gridnode.segment import SHARED_MIN_BYTES, Arena, make_memory, seal
from models.executor import Place
from models.segments import Segment, SegmentRefusedError

MODEL_BYTES: Final = 8 * 1024 * 1024
"""Shared memory of one model: its pages stay once they were used, as many as a worker keeps of its own."""
MODELS_MAX: Final = 16
"""Models with such memory; a node runs a handful."""


class ModelMemory:
    """The memory of all models.

    Parameters
    ----------
    forget : callable
        Lets go of a segment, in the workers too.
    """

    def __init__(self, forget: Callable[[Segment], None]) -> None:
        self._forget = forget
        self._shared: dict[str, _Shared | None] = {}

    def take(self, model: str, size_bytes: int) -> "Loan | None":
        """Return room for a payload; None where it is too small to be worth it, or there is none."""
        if size_bytes < SHARED_MIN_BYTES:
            return None
        shared = self._of(model)
        start = None if shared is None else shared.arena.allocate(size_bytes)
        return None if shared is None or start is None else Loan(shared, start, size_bytes)

    def close(self) -> None:
        """Let go of all that workers can read."""
        for shared in self._shared.values():
            if shared is not None:
                self._forget(shared.segment)
                shared.close()
        self._shared.clear()

    def _of(self, model: str) -> "_Shared | None":
        if model not in self._shared:
            if len(self._shared) >= MODELS_MAX:
                return None
            try:
                self._shared[model] = _Shared()
            except (OSError, SegmentRefusedError):
                self._shared[model] = None  # a machine without such memory does with copies
        return self._shared[model]


class Loan:
    """Room for one payload, until it is released."""

    __slots__ = ("_arena", "place", "view")

    def __init__(self, shared: "_Shared", start: int, size_bytes: int) -> None:
        self._arena: Arena | None = shared.arena
        self.view = shared.view[start : start + size_bytes]
        """Where the payload is to be received."""
        self.place = Place(shared.segment, start)
        """Where workers find it."""

    def release(self) -> None:
        """Give the room back; nobody waits for what is made of the payload any more. Releasing twice is fine."""
        arena, self._arena = self._arena, None
        if arena is not None:
            arena.free(self.place.offset)


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
