"""Programs' memory in a worker: what the daemon has lent to it, and what the worker has mapped.

Owns both ends of that: Loans, in the daemon, bound how much one worker has and remember which runs read it; Mappings,
in the worker, check a descriptor and map it. What makes memory safe to read is models.segments's. Neither knows what
a payload means.

A loan is made on first use and ends when its program leaves, or when another needs the room; memory that a run reads
stays to the run's end. Where nothing can be lent the payload is copied, so a loan is never more than a short cut.
"""

import mmap
import os
import threading
from collections.abc import Callable
from typing import Final

from models.segments import SEGMENT_MAX_BYTES, Segment, SegmentRefusedError, check_memory

LENT_MAX_BYTES: Final = 8 * SEGMENT_MAX_BYTES
"""Programs' memory in one worker: addresses, not pages, since these are the program's anyway."""

LOANS_MAX: Final = 16
"""Segments in one worker, however small: each holds a descriptor, of which it may have 64."""

MARGIN_BYTES: Final = 64
"""What must follow a payload in its segment: kernels may read one vector beyond the end of a tensor, and nothing is
mapped beyond the end of a segment."""

MAP_WAIT_MAX_S: Final = 5.0
"""Longest wait of a run for its mapping, which another thread makes at that moment."""


class _Loan:
    """A segment that a worker has."""

    __slots__ = ("is_leaving", "number", "runs", "size_bytes", "used")

    def __init__(self, segment: Segment) -> None:
        self.number = segment.number
        self.size_bytes = segment.size_bytes
        self.runs = 0
        """In the worker's hands."""
        self.used = 0
        """When it was last used, in loans taken."""
        self.is_leaving = False


class Loans:
    """What one worker has of programs' memory, as the daemon keeps it.

    Parameters
    ----------
    lend : callable
        Sends a segment to the worker; returns whether that was possible.
    end : callable
        Tells the worker to let go of a segment of that number; returns whether that was possible.
    """

    def __init__(self, *, lend: Callable[[Segment], bool], end: Callable[[int], bool]) -> None:
        self._lend = lend
        self._end = end
        self._loans: dict[int, _Loan] = {}
        self._refused: set[int] = set()
        self._taken = 0

    @property
    def count(self) -> int:
        """Segments that the worker has."""
        return len(self._loans)

    def take(self, segment: Segment, end: int) -> bool:
        """Let a run read a payload that ends at a byte of a segment; returns whether the worker can.

        Each success is to be followed by give_back.
        """
        loan = self._loans.get(segment.number)
        if end + MARGIN_BYTES > segment.size_bytes:
            return False
        if loan is None:
            if segment.is_closed or segment.number in self._refused or not self._make_room(segment.size_bytes):
                return False
            if not self._lend(segment):
                return False
            loan = self._loans[segment.number] = _Loan(segment)
        elif loan.is_leaving:
            return False
        self._taken += 1
        loan.used = self._taken
        loan.runs += 1
        return True

    def give_back(self, number: int) -> None:
        """Note that a run reads a segment no more."""
        loan = self._loans[number]
        loan.runs -= 1
        if loan.is_leaving:
            self._let_go(loan)

    def forget(self, number: int) -> None:
        """End a loan, now or with its last run: the program has left."""
        self._refused.discard(number)
        loan = self._loans.get(number)
        if loan is not None:
            loan.is_leaving = True
            self._let_go(loan)

    def refuse(self, number: int) -> None:
        """Lend a segment no more: the worker could not map it."""
        self._refused.add(number)
        self._loans[number].is_leaving = True

    def _make_room(self, size_bytes: int) -> bool:
        """End loans without runs, least recently used first, until there is room for so many bytes more."""
        idle = sorted((loan for loan in self._loans.values() if not loan.runs), key=lambda loan: loan.used)
        while len(self._loans) >= LOANS_MAX or self._lent_bytes() + size_bytes > LENT_MAX_BYTES:
            if not idle or not self._let_go(idle.pop(0)):
                return False
        return True

    def _lent_bytes(self) -> int:
        return sum(loan.size_bytes for loan in self._loans.values())

    def _let_go(self, loan: _Loan) -> bool:
        """End a loan that no run uses; one that cannot be told now ends when its room is needed."""
        if loan.runs or not self._end(loan.number):
            return False
        del self._loans[loan.number]
        return True


class Mappings:
    """What a worker has mapped: one thread maps, the others read."""

    def __init__(self) -> None:
        self._views: dict[int, memoryview | None] = {}
        """By number; None for what could not be mapped."""
        self._changed = threading.Condition()

    def map(self, number: int, size_bytes: int, descriptor: int) -> None:
        """Map a segment for reading; the descriptor is taken over. What is not safe to read is noted as refused."""
        view: memoryview | None = None
        try:
            check_memory(descriptor, size_bytes)
            view = memoryview(mmap.mmap(descriptor, size_bytes, prot=mmap.PROT_READ))
        except (OSError, ValueError, SegmentRefusedError):
            view = None
        finally:
            os.close(descriptor)
        with self._changed:
            self._views[number] = view
            self._changed.notify_all()

    def unmap(self, number: int) -> None:
        """Forget a segment; its pages go when the last run that reads it has ended."""
        with self._changed:
            self._views.pop(number, None)

    def find(self, number: int) -> memoryview | None:
        """Return a segment's memory; None where it could not be mapped, or is not there in time."""
        view = self._views.get(number)
        if view is not None:
            return view
        with self._changed:
            self._changed.wait_for(lambda: number in self._views, MAP_WAIT_MAX_S)
            return self._views.get(number)
