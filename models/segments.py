"""Memory that a program shares with this node's workers, so that its frames are never copied on their way.

Owns the checks of a descriptor that a program handed over, and its mapping here. Knows nothing of what the bytes mean
nor of where in the memory a request's payload lies. A program is not trusted: memory that could shrink, or that
belongs to a file system of the program's own making, would make whoever reads it fault.

The mapping is for reading only, here and in the workers. A payload read in place may change under the reader's eyes
if its program is careless; so numbers are read in place, and whatever is parsed is copied first (models.session).
"""

import contextlib
import fcntl
import itertools
import mmap
import os
import stat
from typing import Final

from models.manifest import ModelError

SEGMENT_MAX_BYTES: Final = 32 * 1024 * 1024
"""Memory of one program: a dozen raw HD frames in flight. What does not fit is sent over the socket."""

ALIGNMENT_BYTES: Final = 64
"""Payloads begin at multiples of this, as tensors do."""

_SEALS: Final = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL

_NUMBERS = itertools.count(1)


class SegmentRefusedError(ModelError):
    """Memory that is not safe to read. The program's fault."""


class Segment:
    """One program's memory; ``view`` reads it.

    Parameters
    ----------
    descriptor : int
        Of the memory; owned by this object from now on, also where it is refused.
    size_bytes : int
        What the program says.

    Raises
    ------
    SegmentRefusedError
        It is no sealed memory of that size, or the machine cannot map it.
    """

    def __init__(self, descriptor: int, size_bytes: int) -> None:
        try:
            check_memory(descriptor, size_bytes)
            self._map = mmap.mmap(descriptor, size_bytes, prot=mmap.PROT_READ)
            # A worker gets a descriptor that cannot write: the memory is the program's, a model must not change it.
            self.descriptor = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY | os.O_CLOEXEC)
        except (OSError, ValueError) as error:
            raise SegmentRefusedError(f"shared memory cannot be mapped: {error}") from error
        finally:
            os.close(descriptor)
        self.size_bytes = size_bytes
        self.number = next(_NUMBERS)
        """Names it between this process and its workers."""
        self.view = memoryview(self._map)
        self.is_closed = False

    def piece(self, offset: int, size_bytes: int) -> memoryview:
        """Return a payload; raises SegmentRefusedError where it would not lie in the memory."""
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes or offset % ALIGNMENT_BYTES:
            raise SegmentRefusedError(
                f"payload of {size_bytes} bytes at {offset} does not lie in shared memory of {self.size_bytes} bytes "
                f"at a multiple of {ALIGNMENT_BYTES}"
            )
        return self.view[offset : offset + size_bytes]

    def close(self) -> None:
        """Let go of it; pages stay until the last payload handed out is forgotten. Closing twice is fine."""
        if not self.is_closed:
            self.is_closed = True
            os.close(self.descriptor)
            with contextlib.suppress(BufferError):  # a payload is still being read: its end lets go of the rest
                self.view.release()
                self._map.close()
            del self._map  # whoever still knows this segment must not keep the memory


def check_memory(descriptor: int, size_bytes: int) -> None:
    """Refuse a descriptor that could make its reader fault: raises SegmentRefusedError, or OSError as fstat does."""
    if not 0 < size_bytes <= SEGMENT_MAX_BYTES:
        raise SegmentRefusedError(f"shared memory of {size_bytes} bytes, allowed are 1 to {SEGMENT_MAX_BYTES}")
    seen = os.fstat(descriptor)
    if not stat.S_ISREG(seen.st_mode) or seen.st_dev != _memory_device():
        raise SegmentRefusedError("shared memory must be plain memory of the kernel (memfd_create), not a file")
    if seen.st_size != size_bytes:
        raise SegmentRefusedError(f"shared memory has {seen.st_size} bytes, the program said {size_bytes}")
    if fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & _SEALS != _SEALS:
        raise SegmentRefusedError("shared memory is not sealed against shrinking, growing and further seals")


def _memory_device() -> int:
    """Return the device number of plain memory: huge pages, which can run out, have another."""
    descriptor = os.memfd_create("gridnode-probe", os.MFD_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)
