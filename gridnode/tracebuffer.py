"""What of a trace waits for the disk: encoded records in pieces, each for one file, bounded in bytes.

Owns the encoding, the numbers that models and nodes go by, and which file a record goes to; knows no disk and no clock.
A piece that begins a file begins with a header, so that each file can be read without the other.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

import msgspec

from gridnode.tracerecords import Header, ModelRecord, NodeRecord, Record

WAITING_MAX_BYTES: Final = 4 << 20
"""Records that wait for the disk, at most: about 40,000 jobs, three quarters of an hour at 15 frames per second."""
ROOM_BYTES: Final = 4096
"""Kept free at a file's end for one job with all that it names for the first time: 8 models, 2 nodes."""


class Piece:
    """What is written at once."""

    __slots__ = ("data", "is_first", "jobs")

    def __init__(self, *, is_first: bool) -> None:
        self.data = bytearray()
        self.jobs = 0
        self.is_first = is_first
        """Whether a new file begins with it."""


class TraceBuffer:
    """Pieces of a trace.

    Parameters
    ----------
    limit_bytes : int
        Of one file.
    model_name, node_name : callable
        Return the name for a model's digest, for a PeerID.
    """

    def __init__(self, *, limit_bytes: int, model_name: Callable[[str], str], node_name: Callable[[str], str]) -> None:
        self._limit_bytes = limit_bytes
        self._model_name = model_name
        self._node_name = node_name
        self._encode = msgspec.msgpack.Encoder().encode_into
        self._pieces: deque[Piece] = deque()
        """What waits; the last one grows. Empty while there is nothing to write to."""
        self._taken: Piece | None = None
        """What is being written."""
        self._file_bytes = 0
        """Of the file that the last piece goes to, without that piece."""
        self._models: dict[str, int] = {}
        self._nodes: dict[str, int] = {}

    @property
    def is_on(self) -> bool:
        """Whether records are taken at all."""
        return bool(self._pieces)

    @property
    def waiting_bytes(self) -> int:
        """Bytes in memory."""
        taken = 0 if self._taken is None else len(self._taken.data)
        return taken + sum([len(piece.data) for piece in self._pieces])

    @property
    def is_full(self) -> bool:
        """Whether the disk is so far behind that no job is taken."""
        return self.waiting_bytes > WAITING_MAX_BYTES - ROOM_BYTES

    def fits(self, size_bytes: int) -> bool:
        """Return whether so much still goes into the file that is being filled."""
        return self._file_bytes + len(self._pieces[-1].data) + size_bytes <= self._limit_bytes

    # ------------------------------------------------------------ records

    def begin(self, header: Header, *, is_first: bool) -> None:
        """Begin a life, in a file of its own or in the one that is open."""
        self._models.clear()
        self._nodes.clear()
        self._pieces.append(Piece(is_first=is_first))
        self._file_bytes = 0
        self._encode(header, self._pieces[-1].data, -1)

    def add(self, record: Record) -> None:
        """Add a record to the last piece."""
        self._encode(record, self._pieces[-1].data, -1)

    def add_job(self, record: Record) -> int:
        """Add a job's record; returns the bytes that the piece now has."""
        piece = self._pieces[-1]
        self._encode(record, piece.data, -1)
        piece.jobs += 1
        return len(piece.data)

    def model(self, digest: str) -> int:
        """Return the number of a model, which is told where it is new."""
        number = self._models.get(digest)
        if number is None:
            number = self._models[digest] = len(self._models)
            self.add(ModelRecord(number=number, name=self._model_name(digest), digest=digest))
        return number

    def node(self, node: str) -> int:
        """Return the number of a node, which is told where it is new."""
        number = self._nodes.get(node)
        if number is None:
            number = self._nodes[node] = len(self._nodes)
            self.add(NodeRecord(number=number, name=self._node_name(node), node=node))
        return number

    # ------------------------------------------------------------ to the disk

    def opened(self, size_bytes: int) -> None:
        """Take note of how much the file has that was opened: the first piece goes on there, or begins another."""
        first = self._pieces[0]
        if size_bytes + len(first.data) + ROOM_BYTES > self._limit_bytes:
            first.is_first = True
        elif len(self._pieces) == 1:
            self._file_bytes = size_bytes

    def take(self) -> Piece | None:
        """Return the next piece to write, None for nothing; what comes from now on goes on behind it."""
        if not self._pieces[0].data:
            return None
        piece = self._taken = self._pieces.popleft()
        if not self._pieces:
            self._file_bytes += len(piece.data)
            self._pieces.append(Piece(is_first=False))
        return piece

    def written(self) -> None:
        """Take note that the piece taken last is on the disk."""
        self._taken = None

    def drop(self) -> int:
        """Forget all, until the next life begins; returns how many jobs that were."""
        jobs = sum(piece.jobs for piece in self._pieces) + (0 if self._taken is None else self._taken.jobs)
        self._pieces.clear()
        self._taken = None
        return jobs
