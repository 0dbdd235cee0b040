"""What a store of chunks holds, what it needs, and what may go first. In memory, pure.

Owns the list of chunks and whole shards, where each chunk lies, pins, sizes and the order of use. Touches no disk:
models.store keeps the files in line with it, before or after, so that a crash between the two costs a chunk at most.
Not made for threads; the store's lock guards changes. Questions need no lock.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterator

from models.manifest import Shard


class Inventory:
    """Chunks as files of their own (*loose*), and whole shards, by name."""

    def __init__(self) -> None:
        self._loose: dict[str, int] = {}
        """Size of each chunk file, in bytes."""
        self._whole: dict[str, Shard] = {}
        self._placed: dict[str, tuple[str, int]] = {}
        """For each chunk in a whole shard: the shard and the chunk's place in it."""
        self._pinned: dict[str, Shard] = {}
        self._wanted: Counter[str] = Counter()
        """How many pinned shards have the chunk."""
        self._recency: OrderedDict[str, None] = OrderedDict()
        """Names of chunk files and whole shards, least recently used first."""
        self.used_bytes = 0
        """Bytes of all chunk files and whole shards."""

    # ------------------------------------------------------------ questions

    @property
    def chunks(self) -> int:
        """Number of loose chunks."""
        return len(self._loose)

    @property
    def shards(self) -> int:
        """Number of whole shards."""
        return len(self._whole)

    def has(self, cid: str) -> bool:
        """Say whether a chunk is held, loose or in a whole shard."""
        return cid in self._loose or cid in self._placed

    def is_loose(self, cid: str) -> bool:
        """Say whether a chunk has a file of its own."""
        return cid in self._loose

    def place(self, cid: str) -> tuple[str, int] | None:
        """Return a whole shard that has the chunk, by its digest, and the chunk's index in it."""
        return self._placed.get(cid)

    def whole(self, sha256: str) -> Shard | None:
        """Return a whole shard by its digest."""
        return self._whole.get(sha256)

    def known(self, sha256: str) -> Shard | None:
        """Return a whole or pinned shard by its digest."""
        return self._whole.get(sha256) or self._pinned.get(sha256)

    def is_pinned(self, sha256: str) -> bool:
        """Say whether a shard is kept whatever needs room."""
        return sha256 in self._pinned

    def is_wanted(self, cid: str) -> bool:
        """Say whether a pinned shard has the chunk."""
        return self._wanted[cid] > 0

    def spare(self) -> Iterator[str]:
        """Return the names that may go, least recently used first. Dropping them meanwhile is fine."""
        return (name for name in list(self._recency) if not self.is_pinned(name) and not self.is_wanted(name))

    # ------------------------------------------------------------ changes

    def pin(self, shard: Shard) -> None:
        """Keep a shard, and its chunks as they come in. Twice is once."""
        if shard.sha256 not in self._pinned:
            self._pinned[shard.sha256] = shard
            self._wanted.update(set(shard.chunks))

    def unpin(self, sha256: str) -> None:
        """Let a shard go when room is needed; without effect where it is not pinned."""
        shard = self._pinned.pop(sha256, None)
        if shard is not None:
            self._wanted.subtract(set(shard.chunks))
            self._wanted = +self._wanted

    def touch(self, name: str) -> None:
        """Take note that a loose chunk or a whole shard was used."""
        self._recency.move_to_end(name)

    def add_chunk(self, cid: str, size_bytes: int) -> None:
        """Enter a loose chunk, as used last."""
        self._loose[cid] = size_bytes
        self.used_bytes += size_bytes
        self._recency[cid] = None

    def add_shard(self, shard: Shard) -> None:
        """Enter a whole shard, as used last."""
        self._whole[shard.sha256] = shard
        self.used_bytes += shard.size_bytes
        self._recency[shard.sha256] = None
        self._placed |= {cid: (shard.sha256, index) for index, cid in enumerate(shard.chunks)}

    def drop_chunk(self, cid: str) -> None:
        """Forget a loose chunk."""
        self.used_bytes -= self._loose.pop(cid)
        self._recency.pop(cid, None)

    def drop_shard(self, sha256: str) -> None:
        """Forget a whole shard; its chunks that another whole shard has too are found there from now on."""
        shard = self._whole.pop(sha256)
        self._recency.pop(sha256, None)
        self.used_bytes -= shard.size_bytes
        lost = {cid for cid in shard.chunks if self._placed.get(cid, ("", 0))[0] == sha256}
        for cid in lost:
            del self._placed[cid]
        for other in self._whole.values():
            for index, cid in enumerate(other.chunks):
                if cid in lost:
                    self._placed[cid] = (other.sha256, index)
