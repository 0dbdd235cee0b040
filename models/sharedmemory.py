"""The memory that the daemon shares with one worker: a region for input and one for output per slot.

Owns its size, its seals and its layout. Knows nothing of what the bytes mean. The memory is a file without a name
(memfd) of fixed length: pages cost nothing until they are touched, so it grows on demand up to its bound without
ever being mapped anew. It is sealed against shrinking, so that neither side can make the other fault by cutting it,
and against growing, so that a worker cannot take memory through it.

Layout: slot i begins at ``i * 2 * region``; its first region is the input, its second the output.
"""

import fcntl
import mmap
import os
from typing import Final, Self

MAPPED_MAX_BYTES: Final = 512 * 1024 * 1024
"""Shared memory of one worker, all slots together: four slots of the largest payload in and out. These are addresses;
memory is what payloads touch."""

REGION_MAX_BYTES: Final = 64 * 1024 * 1024
"""Largest region: the largest payload there is."""

KEPT_BYTES: Final = 8 * 1024 * 1024
"""Of each region, pages that stay in memory between runs: frames of usual size need no new pages each time."""


def region_bytes(slots: int) -> int:
    """Return the bytes of one region where there are so many slots (>= 1); whole pages.

    Examples
    --------
    >>> region_bytes(1) // 2**20, region_bytes(4) // 2**20, region_bytes(8) // 2**20
    (64, 64, 32)
    """
    share = MAPPED_MAX_BYTES // (2 * slots)
    return min(REGION_MAX_BYTES, share - share % mmap.PAGESIZE)


class SharedMemory:
    """A mapping of the memory, in either process.

    Parameters
    ----------
    descriptor : int
        Of the memory; owned by this object from now on.
    slots : int
        As on the other side.
    """

    def __init__(self, descriptor: int, slots: int) -> None:
        self.descriptor = descriptor
        self.region_bytes = region_bytes(slots)
        self._map = mmap.mmap(descriptor, slots * 2 * self.region_bytes)
        self._view = memoryview(self._map)
        self._closed = False

    @classmethod
    def create(cls, slots: int) -> Self:
        """Make new memory; blocks for microseconds."""
        descriptor = os.memfd_create("gridnode-worker", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, slots * 2 * region_bytes(slots))
        seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        return cls(descriptor, slots)

    def input(self, slot: int) -> memoryview:
        """Return the input region of a slot."""
        start = slot * 2 * self.region_bytes
        return self._view[start : start + self.region_bytes]

    def output(self, slot: int) -> memoryview:
        """Return the output region of a slot."""
        start = (slot * 2 + 1) * self.region_bytes
        return self._view[start : start + self.region_bytes]

    def release(self, slot: int, *, input_bytes: int, output_bytes: int) -> None:
        """Give pages above KEPT_BYTES back to the machine after a run that touched so many bytes of a slot."""
        for region, touched in ((slot * 2, input_bytes), (slot * 2 + 1, output_bytes)):
            if touched > KEPT_BYTES:
                length = -(-touched // mmap.PAGESIZE) * mmap.PAGESIZE - KEPT_BYTES
                self._map.madvise(mmap.MADV_REMOVE, region * self.region_bytes + KEPT_BYTES, length)

    def close(self) -> None:
        """Unmap and close; views handed out must be gone. Closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        self._view.release()
        self._map.close()
        os.close(self.descriptor)
