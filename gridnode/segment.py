"""Memory that a client shares with its daemon, so that a frame is copied once, by the client, and by nobody after it.

Owns which payload lies where (Arena, pure) and the memory itself (Segment), one of each per connection. Knows nothing
of sockets. The daemon and its workers read a payload where it lies until the daemon has told its outcome, whatever
became of the job here meanwhile; so a block is free again with that outcome, or with the connection.
"""

import fcntl
import mmap
import os
import sys
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Final

from gridnode.control import SEGMENT_MAX_BYTES, Buffer

SHARED_MIN_BYTES: Final = 4096
"""Smallest payload that is worth a block: two copies through a socket cost less than the bookkeeping below it."""
BLOCK_BYTES: Final = 4096
"""Blocks begin at, and grow by, multiples of this, a page: payloads share none."""

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_SEAL_FUTURE_WRITE: Final = 0x10
"""linux/fcntl.h, since Linux 5.1: only mappings made before can write."""


class Arena:
    """Which bytes of a memory are taken. The lowest room that is large enough is given: its pages were used before.

    Parameters
    ----------
    size_bytes : int
        Of the memory; a multiple of BLOCK_BYTES.
    """

    def __init__(self, size_bytes: int) -> None:
        self._taken: dict[int, int] = {}
        self._starts = [0]
        """Of the free stretches, rising; no two of them touch."""
        self._ends = [size_bytes]

    def allocate(self, size_bytes: int) -> int | None:
        """Return where a block of at least ``size_bytes`` > 0 begins; None where no stretch has room for it."""
        size_bytes = -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES
        for index, start in enumerate(self._starts):
            end = start + size_bytes
            if end < self._ends[index]:
                self._starts[index] = end
            elif end == self._ends[index]:
                del self._starts[index], self._ends[index]
            else:
                continue
            self._taken[start] = end
            return start
        return None

    def free(self, start: int) -> None:
        """Take a block back, and join it with the free stretches beside it."""
        end = self._taken.pop(start)
        index = bisect_left(self._starts, start)
        touches_next = index < len(self._starts) and self._starts[index] == end
        if index and self._ends[index - 1] == start:
            self._ends[index - 1] = end
            if touches_next:
                self._ends[index - 1] = self._ends[index]
                del self._starts[index], self._ends[index]
        elif touches_next:
            self._starts[index] = start
        else:
            self._starts.insert(index, start)
            self._ends.insert(index, end)


class Segment:
    """The shared memory of one connection, with the payloads in it.

    Parameters
    ----------
    announce : callable
        Hands a descriptor of the memory to the daemon; called once, before any payload is there. It is closed here
        afterwards.

    Raises
    ------
    OSError
        The machine has no such memory, or ``announce`` failed.
    """

    def __init__(self, announce: Callable[[int], None]) -> None:
        self._arena = Arena(SEGMENT_MAX_BYTES)
        self._blocks: dict[bytes, int] = {}
        descriptor = make_memory(SEGMENT_MAX_BYTES)
        try:
            self._map = mmap.mmap(descriptor, SEGMENT_MAX_BYTES)
            seal(descriptor)
            announce(descriptor)
        finally:
            os.close(descriptor)

    def put(self, key: bytes, parts: Sequence[Buffer], payload_bytes: int) -> int | None:
        """Copy a payload to a block of its own.

        Parameters
        ----------
        key : bytes
            The job's; it names the block.
        parts : sequence of bytes-like
            The payload, piece after piece.
        payload_bytes : int
            Their length together, > 0.

        Returns
        -------
        int or None
            Where the payload begins, a multiple of BLOCK_BYTES; None where there is no room for it.
        """
        block = self._arena.allocate(payload_bytes)
        if block is None:
            return None
        self._blocks[key] = block
        start = block
        for part in parts:
            end = start + len(part)
            self._map[start:end] = part
            start = end
        return block

    def release(self, key: bytes) -> None:
        """Take a job's block back, if it has one: the daemon has told its outcome."""
        block = self._blocks.pop(key, None)
        if block is not None:
            self._arena.free(block)

    def close(self) -> None:
        """Let go of the memory; the daemon's mappings of it stay."""
        self._map.close()


def make_memory(size_bytes: int) -> int:
    """Return a descriptor of new memory, of which only pages that are written to take any."""
    if sys.platform != "linux":
        raise OSError("no memory without a file on this system")
    descriptor = os.memfd_create("gridnode-payloads", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, size_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def seal(descriptor: int) -> None:
    """Fix the memory's size, which its readers insist on, and keep them from writing where the kernel can."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS | _SEAL_FUTURE_WRITE)
    except OSError:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
