"""Pages of code that only a start needs, handed back to the machine.

A library's pages are mapped when they are first touched, and a start touches much that is never used again: of
onnxruntime 18 MB, of which a run of squeezenet needs 4. The bytes stay in the file cache for as long as the machine
has room, and what is needed again is mapped again in a microsecond; but pages that nobody maps are the first to go
when a small board runs out.
"""

import ctypes
import re
from pathlib import Path
from typing import Final

_MADV_DONTNEED: Final = 4
"""See madvise(2); the same on x86-64 and aarch64."""
_HEAD: Final = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) r-[-x]p \S+ \S+ \d+ +/")
"""Line of smaps that begins a private mapping of a file which cannot be written."""

Range = tuple[int, int]
"""Address and length of a mapping, in bytes."""


def clean_ranges() -> tuple[Range, ...]:
    """Return the mappings of this process whose pages are all those of their file. Reads /proc: some milliseconds.

    A page that was written to before its mapping became read-only, as the dynamic linker does with its tables, exists
    nowhere else; a mapping with one such page is left out as a whole.
    """
    found: list[Range] = []
    head: re.Match[bytes] | None = None
    for line in Path("/proc/self/smaps").read_bytes().splitlines():
        if b"-" in line.partition(b" ")[0]:
            head = _HEAD.match(line)
        elif head is not None and line.startswith(b"Anonymous:") and line.split()[1] == b"0":
            start, end = (int(text, 16) for text in head.groups())
            found.append((start, end - start))
    return tuple(found)


def give_back(ranges: tuple[Range, ...]) -> None:
    """Unmap the pages of mappings from clean_ranges(); they come back from the file when they are touched."""
    libc = ctypes.CDLL(None)
    libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, length in ranges:
        # Refused where pages are locked in memory: then they stay.
        libc.madvise(start, length, _MADV_DONTNEED)
