"""The bounded local queue: earliest deadline first within priority classes.

It owns the order of waiting jobs and the sums of their predicted service times; it knows nothing of peers, slots or
the clock. Whoever inserts decides on bounds, with `ahead_s` at hand.

Jobs are ordered by (priority, turn, arrival number). A job's turn is its deadline; a frame that takes the place of an
older one of its stream has that one's. Earliest deadline first meets all deadlines on one server whenever any order
does (Liu and Layland 1973, section 7, for the preemptive case; among orders that never interrupt a job it is the best
one that does not look ahead).

The order is kept in blocks of at most 64 entries. Finding a place is O(log n) comparisons; moving entries and summing
are short loops in C over one block and over the list of blocks. With the few hundred jobs that a bound of two seconds
admits, this is several times faster in Python than a balanced tree.
"""

from bisect import bisect_left, insort

from scheduler.types import ModelDigest, SchedulerError

_BLOCK = 64
"""Entries per block; a block twice as long is split."""

Key = tuple[int, float, int]


class Waiting:
    """One waiting job.

    Parameters
    ----------
    handle : int
        The job's handle.
    model : str
        Model planned for it.
    service_s : float
        Predicted service time in seconds, >= 0.
    priority : int
        0 is served first.
    deadline_s : float
        Absolute deadline in seconds.
    turn_s : float, optional
        Deadline by which it is ordered, where that is not its own.
    """

    __slots__ = ("deadline_s", "handle", "key", "model", "priority", "service_s", "turn_s")

    def __init__(
        self,
        *,
        handle: int,
        model: ModelDigest,
        service_s: float,
        priority: int,
        deadline_s: float,
        turn_s: float | None = None,
    ) -> None:
        self.handle = handle
        self.model = model
        self.service_s = service_s
        self.priority = priority
        self.deadline_s = deadline_s
        self.turn_s = deadline_s if turn_s is None else turn_s
        self.key: Key = (priority, self.turn_s, 0)


def _sum_s(works: list[float]) -> float:
    """Sum; most queues are short, and calling `sum` for one job takes longer than all else about it."""
    return sum(works) if len(works) > 1 else works[0] if works else 0.0


class _Block:
    """A run of neighbouring entries; three lists side by side so that search and sum stay in C."""

    __slots__ = ("entries", "keys", "sum_s", "works")

    def __init__(self, keys: list[Key], works: list[float], entries: list[Waiting]) -> None:
        self.keys = keys
        self.works = works
        self.entries = entries
        self.sum_s = _sum_s(works)


class LocalQueue:
    """Waiting jobs in the order in which they are to be served.

    Examples
    --------
    >>> queue = LocalQueue()
    >>> queue.insert(Waiting(handle=1, model="m", service_s=0.2, priority=1, deadline_s=9.0))
    >>> queue.insert(Waiting(handle=2, model="m", service_s=0.1, priority=1, deadline_s=5.0))
    >>> queue.ahead_s(priority=1, deadline_s=7.0)
    0.1
    >>> queue.pop_first().handle
    2
    """

    __slots__ = ("_blocks", "_by_handle", "_models", "_sequence", "length", "total_s")

    def __init__(self) -> None:
        self._blocks: list[_Block] = []
        self._by_handle: dict[int, Waiting] = {}
        self._models: dict[ModelDigest, int] = {}
        self._sequence = 0
        self.length = 0
        """Jobs waiting."""
        self.total_s = 0.0
        """Sum of their predicted service times, in seconds."""

    def __len__(self) -> int:
        return self.length

    def __contains__(self, handle: int) -> bool:
        return handle in self._by_handle

    def count(self, model: ModelDigest) -> int:
        """Return how many waiting jobs are planned for a model."""
        return self._models.get(model, 0)

    def get(self, handle: int) -> Waiting | None:
        """Return the entry of a job, or None."""
        return self._by_handle.get(handle)

    def insert(self, entry: Waiting) -> None:
        """Add a job behind all of the same priority and turn.

        Raises
        ------
        SchedulerError
            When the handle waits already: our own bug.
        """
        if entry.handle in self._by_handle:
            raise SchedulerError(f"job {entry.handle} waits already")
        self._sequence += 1
        key = (entry.priority, entry.turn_s, self._sequence)
        entry.key = key
        self._by_handle[entry.handle] = entry
        self.length += 1
        self._models[entry.model] = self._models.get(entry.model, 0) + 1
        blocks = self._blocks
        if not blocks:
            blocks.append(_Block([key], [entry.service_s], [entry]))
            self.total_s = entry.service_s
            return
        at = self._find_block(key)
        block = blocks[at]
        if key > block.keys[-1]:
            block.keys.append(key)
            block.works.append(entry.service_s)
            block.entries.append(entry)
        else:
            place = bisect_left(block.keys, key)
            block.keys.insert(place, key)
            block.works.insert(place, entry.service_s)
            block.entries.insert(place, entry)
        if len(block.keys) >= 2 * _BLOCK:
            blocks.insert(at + 1, _Block(block.keys[_BLOCK:], block.works[_BLOCK:], block.entries[_BLOCK:]))
            del block.keys[_BLOCK:], block.works[_BLOCK:], block.entries[_BLOCK:]
        self._sum_again(block)

    def first(self) -> Waiting | None:
        """Return the job to be served next, or None."""
        return self._blocks[0].entries[0] if self._blocks else None

    def last(self) -> Waiting | None:
        """Return the job to be served last, or None."""
        return self._blocks[-1].entries[-1] if self._blocks else None

    def pop_first(self) -> Waiting:
        """Remove and return the job to be served next.

        Raises
        ------
        IndexError
            When nothing waits.
        """
        if not self._blocks:
            raise IndexError("pop from an empty queue")
        return self._take(0, 0)

    def remove(self, handle: int) -> Waiting | None:
        """Remove a job wherever it waits; None when it does not."""
        entry = self._by_handle.get(handle)
        if entry is None:
            return None
        at = self._find_block(entry.key)
        return self._take(at, bisect_left(self._blocks[at].keys, entry.key))

    def ahead_s(self, *, priority: int, deadline_s: float) -> float:
        """Sum the service times of the jobs that would be served before a newcomer.

        Parameters
        ----------
        priority : int
            Priority of the newcomer.
        deadline_s : float
            Absolute deadline of the newcomer in seconds.

        Returns
        -------
        float
            Seconds of service, >= 0, without what is being served.

        Notes
        -----
        Exact at this moment; jobs that arrive later with an earlier deadline go before it.
        """
        blocks = self._blocks
        if not blocks:
            return 0.0
        key = (priority, deadline_s, self._sequence + 1)
        if key > blocks[-1].keys[-1]:
            return self.total_s
        return self._before_s(key)

    def ahead_of_s(self, entry: Waiting) -> float:
        """Sum the service times of the jobs before one that waits already, in seconds."""
        return self._before_s(entry.key)

    def from_front(self, limit: int) -> list[Waiting]:
        """Return up to `limit` jobs from the front, in order."""
        found: list[Waiting] = []
        for block in self._blocks:
            found += block.entries[: limit - len(found)]
            if len(found) >= limit:
                break
        return found

    def from_tail(self, limit: int) -> list[Waiting]:
        """Return up to `limit` jobs from the tail, the last one first: those a thief may have."""
        found: list[Waiting] = []
        for block in reversed(self._blocks):
            found += block.entries[::-1][: limit - len(found)]
            if len(found) >= limit:
                break
        return found

    def _before_s(self, key: Key) -> float:
        blocks = self._blocks
        at = self._find_block(key)
        block = blocks[at]
        before_s = sum(block.works[: bisect_left(block.keys, key)])
        for earlier in blocks[:at]:
            before_s += earlier.sum_s
        return before_s

    def _find_block(self, key: Key) -> int:
        """Find the block that holds the key, or that it belongs into."""
        blocks = self._blocks
        low, high = 0, len(blocks) - 1
        while low < high:
            middle = (low + high) // 2
            if blocks[middle].keys[-1] < key:
                low = middle + 1
            else:
                high = middle
        return low

    def _take(self, at: int, place: int) -> Waiting:
        block = self._blocks[at]
        entry = block.entries.pop(place)
        del block.keys[place], block.works[place], self._by_handle[entry.handle]
        self.length -= 1
        left = self._models[entry.model] - 1
        if left:
            self._models[entry.model] = left
        else:
            del self._models[entry.model]
        if not block.keys:
            del self._blocks[at]
        self._sum_again(block)
        return entry

    def _sum_again(self, block: _Block) -> None:
        """Sum anew instead of adding and subtracting, so that rounding errors cannot grow."""
        block.sum_s = _sum_s(block.works)
        blocks = self._blocks
        self.total_s = blocks[0].sum_s if len(blocks) == 1 else sum([each.sum_s for each in blocks])


class Streams:
    """The newest waiting frame of each stream that keeps only its newest.

    Bounded by the queue it belongs to: an entry lives as long as its job waits.
    """

    __slots__ = ("_newest",)

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], list[tuple[int, int]]] = {}

    def add(self, *, client: str, stream: str, frame: int, handle: int) -> None:
        """Note a waiting frame."""
        insort(self._newest.setdefault((client, stream), []), (frame, handle))

    def discard(self, *, client: str, stream: str, frame: int, handle: int) -> None:
        """Forget a frame that waits no more."""
        frames = self._newest.get((client, stream))
        if frames is None:
            return
        if (frame, handle) in frames:
            frames.remove((frame, handle))
        if not frames:
            del self._newest[client, stream]

    def older(self, *, client: str, stream: str, frame: int) -> list[int]:
        """Return the handles of waiting frames older than this one, oldest first."""
        frames = self._newest.get((client, stream), ())
        return [handle for number, handle in frames if number < frame]

    def newer(self, *, client: str, stream: str, frame: int) -> bool:
        """Return whether a newer frame of the stream waits."""
        frames = self._newest.get((client, stream))
        return bool(frames) and frames[-1][0] > frame  # type: ignore[index]
