"""The two files of a trace: opened for appending, rotated, never left with half a record. Everything here blocks.

Owns what is on the disk and nothing of what records mean. `PATH` is written; when it is full it becomes `PATH.1` in
place of the one before. What is no trace is never touched. `MemoryTraceFile` is the same without a disk, for tests.
"""

import errno
import fcntl
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final, Protocol

import msgpack  # type: ignore[import-untyped]

from gridnode.errors import GridError
from gridnode.tracerecords import MAGIC

HEAD_BYTES: Final = 32
"""Of a file, to tell a trace from anything else."""
REST_MAX_BYTES: Final = 1 << 20
"""Longest record that is believed: a file whose end makes no sense for longer was not cut off, it is damaged."""
MODE: Final = 0o600
"""A trace says when somebody walked past a camera."""


class TraceFileError(GridError):
    """A trace cannot be kept where it should be; the operator can put it right."""


class TraceFile(Protocol):
    """Where a trace is kept."""

    def open(self) -> int:
        """Open for appending and return how many bytes there are; raises OSError or TraceFileError."""
        ...

    def append(self, data: bytes | bytearray) -> None:
        """Add all of this or nothing; raises OSError."""
        ...

    def rotate(self) -> None:
        """Keep what there is as the file before, in place of that one, and begin an empty one; raises OSError."""
        ...

    def close(self) -> None:
        """Let go; may be called again."""
        ...


class DiskTraceFile:
    """A trace on disk.

    Parameters
    ----------
    path : Path
        Of the file that is written.
    most_bytes : int
        A file with more than this is rotated when it is opened.
    """

    def __init__(self, path: Path, *, most_bytes: int) -> None:
        self.path = path
        self._most_bytes = most_bytes
        self._file: int | None = None
        self._size_bytes = 0

    def open(self) -> int:
        """Open or make the file; what a crash cut off at its end is cut away, so that a reader finds whole records."""
        self.close()
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_trace_file(before(self.path))
        self._file = file = _open(self.path)
        size_bytes = os.fstat(file).st_size
        if size_bytes > self._most_bytes:
            check_trace_file(self.path)
            self.rotate()
        elif size_bytes:
            check_trace_file(self.path)
            self._mend(size_bytes)
        else:
            self._size_bytes = 0
        return self._size_bytes

    def _mend(self, size_bytes: int) -> None:
        """Cut away what a crash left at the end; what is damaged otherwise is kept as it is, as the file before."""
        assert self._file is not None, "the file is open"
        with self.path.open("rb") as file:
            whole = whole_bytes(file)
            file.seek(whole)
            rest = file.read(REST_MAX_BYTES + 1)
        if len(rest) > REST_MAX_BYTES or not is_cut_off(rest):
            self.rotate()
        else:
            os.ftruncate(self._file, whole)
            self._size_bytes = whole

    def append(self, data: bytes | bytearray) -> None:
        """Write all of it or nothing: half a record would make all that follows unreadable."""
        assert self._file is not None, "the file is open"
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError:
            os.ftruncate(self._file, self._size_bytes)
            raise
        self._size_bytes += len(data)

    def rotate(self) -> None:
        """Rename the file and begin another."""
        self.close()
        os.replace(self.path, before(self.path))
        self._file = _open(self.path)
        self._size_bytes = 0

    def close(self) -> None:
        """Close the file."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)


def before(path: Path) -> Path:
    """Return where the file before a trace file is kept."""
    return path.with_name(path.name + ".1")


def _open(path: Path) -> int:
    """Open a plain file to append to, for this process alone."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK, MODE)
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise TraceFileError(f"{path} is no plain file and is left alone; give another trace.path")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise TraceFileError(f"another daemon records into {path}; give each a trace.path of its own") from None
    except BaseException:
        os.close(file)
        raise
    return file


def check_trace_file(path: Path) -> None:
    """Raise TraceFileError for what somebody else wrote, OSError for what cannot be read; nothing there is good."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except FileNotFoundError:
        return
    if head and not is_trace(head):
        raise TraceFileError(f"{path} is no trace and is left alone; move it away, or give another trace.path")


def is_trace(head: bytes) -> bool:
    """Return whether the first bytes of a file are those of a trace, of whatever version."""
    return bool(head) and head[0] & 0xF0 == 0x80 and head[1:].startswith(bytes((0xA0 | len(MAGIC),)) + MAGIC)


def whole_bytes(file: BinaryIO) -> int:
    """Return where the last record ends before which all are whole MessagePack values of more than a byte.

    Examples
    --------
    >>> import io
    >>> whole_bytes(io.BytesIO(bytes([0x91, 0x01, 0x92, 0x01, 0x02, 0x92, 0x01])))
    5
    """
    unpacker = msgpack.Unpacker(file, max_buffer_size=REST_MAX_BYTES)
    before_last = whole = 0
    try:
        while True:
            unpacker.skip()
            # No record is so short, but the zeros are that a power cut leaves where a file has grown.
            if unpacker.tell() == whole + 1:
                break
            before_last, whole = whole, unpacker.tell()
    except (msgpack.OutOfData, msgpack.UnpackException, ValueError):
        return whole
    # They may have filled up the last record, too: none of a job ends with one.
    file.seek(max(0, whole - 1))
    return before_last if whole and file.read(1) == b"\0" else whole


def is_cut_off(rest: bytes) -> bool:
    """Return whether a crash may have left this at a file's end: a record cut off, with or without zeros."""
    begun = rest.rstrip(b"\0")
    unpacker = msgpack.Unpacker()
    unpacker.feed(begun)
    try:
        unpacker.skip()
    except msgpack.OutOfData:
        return True
    except (msgpack.UnpackException, ValueError):
        return False
    return False


class MemoryTraceFile:
    """A trace in memory, on a disk that can be made to fail.

    Parameters
    ----------
    room_bytes : int, optional
        Size of the disk; unlimited by default.
    """

    def __init__(self, room_bytes: int | None = None) -> None:
        self.room_bytes = room_bytes
        self.fault: OSError | TraceFileError | None = None
        """Raised by whatever is asked next, until it is taken away."""
        self.data = b""
        self.before = b""

    def open(self) -> int:
        """Return how many bytes there are."""
        self._fail()
        return len(self.data)

    def append(self, data: bytes | bytearray) -> None:
        """Add to them, where there is room."""
        self._fail()
        if self.room_bytes is not None and len(self.before) + len(self.data) + len(data) > self.room_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.data += data

    def rotate(self) -> None:
        """Begin anew."""
        self._fail()
        self.before, self.data = self.data, b""

    def close(self) -> None:
        """Do nothing."""

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault
