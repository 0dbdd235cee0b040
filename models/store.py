"""Content-addressed chunks of model packages on disk, and the shard files made of them.

Owns a folder:

    chunks/<cid>            a chunk that is not part of a whole shard yet
    shards/<sha256>         a whole shard, mode 0400; its chunks are served from it at their offsets
    shards/<sha256>.json    which chunks those are (a models.manifest.Shard)

No byte touches the disk before its digest has been compared, and none leaves it unchecked: bit rot costs a chunk,
which is dropped and fetched again. A chunk lies on disk once: putting a shard together removes its chunk files. What is
kept stays within the quota; for the moment of putting a shard together, its size is needed once more on the disk.
After kill -9 at any point the folder is in order again at the next start, at the price of the chunk in hand.

Which chunks are held, and which go first, is counted in models.inventory. Knows nothing of peers, models and trust. One
store per folder. Threads may share it. All calls block on the disk, so run them in a thread, save those said to be
quick.
"""

import contextlib
import hashlib
import os
import threading
from pathlib import Path

import msgspec

from models.chunkfile import (
    DigestMismatchError,
    StoreFullError,
    check_chunk,
    disk_errors,
    hash_file,
    is_chunk,
    is_cid,
    is_ours,
    read_piece,
    read_sidecar,
    sidecar,
)
from models.durable import PARTIAL_SUFFIX, remove_partial, sync_directory, write_durably
from models.inventory import Inventory
from models.manifest import CHUNK_SIZE_BYTES, ModelError, Shard


class IncompleteShardError(ModelError):
    """A shard cannot be put together yet: chunks are missing, or were found damaged. Fetch them."""


class StoreStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a store holds at one moment."""

    used_bytes: int
    quota_bytes: int
    chunks: int
    """Chunk files, not counting chunks in whole shards."""
    shards: int
    """Whole shards."""
    damaged: int
    """Chunks and files found damaged since the start; a growing number means a failing disk."""
    evicted: int
    """Shards and chunks dropped for room since the start."""


class ChunkStore:
    """The store in one folder.

    Parameters
    ----------
    folder : Path
        Made with mode 0700 where it is missing. Leftovers of a killed process are removed.
    quota_bytes : int
        Most bytes kept, > 0. What is pinned is never dropped for room.

    Raises
    ------
    StoreError
        The folder cannot be used.
    """

    def __init__(self, folder: Path, quota_bytes: int) -> None:
        if quota_bytes <= 0:
            raise ValueError(f"quota of {quota_bytes} bytes is no room")
        self._chunks_dir = folder / "chunks"
        self._shards_dir = folder / "shards"
        self._quota_bytes = quota_bytes
        self._lock = threading.RLock()
        self._held = Inventory()
        self._damaged = 0
        self._evicted = 0
        with disk_errors(folder):
            self._scan(folder)

    # ------------------------------------------------------------ quick questions

    def has(self, cid: str) -> bool:
        """Say whether a chunk is held. Quick."""
        return self._held.has(cid)

    def missing(self, shard: Shard) -> tuple[str, ...]:
        """Return the chunks of a shard that are not held, each once, in order. Quick."""
        return tuple(dict.fromkeys(cid for cid in shard.chunks if not self.has(cid)))

    def bitmap(self, shard: Shard) -> bytes:
        """Return which chunks are held: bit i of byte i // 8 for chunk i; empty for none. Quick."""
        bits = bytearray(-(-len(shard.chunks) // 8))
        for index, cid in enumerate(shard.chunks):
            if self.has(cid):
                bits[index // 8] |= 1 << index % 8
        return bytes(bits) if any(bits) else b""

    def holdings(self, sha256: str) -> bytes:
        """Return the bitmap of a whole or pinned shard by its digest; empty for any other. Quick."""
        shard = self._held.known(sha256)
        return b"" if shard is None else self.bitmap(shard)

    def statistics(self) -> StoreStatistics:
        """Return what is held. Quick."""
        return StoreStatistics(
            used_bytes=self._held.used_bytes,
            quota_bytes=self._quota_bytes,
            chunks=self._held.chunks,
            shards=self._held.shards,
            damaged=self._damaged,
            evicted=self._evicted,
        )

    def pin(self, shard: Shard) -> None:
        """Keep a shard, and its chunks as they come in, whatever else needs room. Twice is once. Not kept on disk.

        Pin what is about to be fetched too: else its first chunks may be dropped to make room for its last.
        """
        with self._lock:
            self._held.pin(shard)

    def unpin(self, sha256: str) -> None:
        """Let a shard go when room is needed; without effect where it is not pinned."""
        with self._lock:
            self._held.unpin(sha256)

    # ------------------------------------------------------------ chunks

    def put(self, cid: str, data: bytes | memoryview) -> None:
        """Keep a chunk; without effect where it is held.

        Raises
        ------
        DigestMismatchError
            The sender's fault: the bytes are not the chunk of that name. Nothing was written.
        StoreFullError
            There is no room and nothing may go.
        StoreError
            The disk's fault.
        """
        check_chunk(cid, data)
        with self._lock, disk_errors(self._chunks_dir):
            if self.has(cid):
                return
            self._make_room(len(data))
            # The folder is not flushed: a name lost in a power cut costs fetching the chunk again, no more.
            write_durably(self._chunks_dir / cid, data, sync_folder=False)
            self._held.add_chunk(cid, len(data))

    def get(self, cid: str) -> bytes | None:
        """Return a chunk, checked; None where it is not held or was found damaged (and dropped)."""
        with self._lock, disk_errors(self._chunks_dir):
            if self._held.is_loose(cid):
                data = read_piece(self._chunks_dir / cid, 0, CHUNK_SIZE_BYTES + 1)
                if is_chunk(cid, data):
                    self._held.touch(cid)
                    return data
                self._damaged += 1
                self._drop_chunk(cid)
                return None
            place = self._held.place(cid)
            if place is None:
                return None
            sha256, index = place
            data = read_piece(self._shards_dir / sha256, index * CHUNK_SIZE_BYTES, CHUNK_SIZE_BYTES)
            if is_chunk(cid, data):
                self._held.touch(sha256)
                return data
            self._take_apart(sha256)
            return None

    # ------------------------------------------------------------ shards

    def assemble(self, shard: Shard) -> Path:
        """Put a shard together from its chunks and return its file, checked as a whole.

        Raises
        ------
        IncompleteShardError
            Chunks are missing, or were found damaged just now; the message says how many.
        DigestMismatchError
            The publisher's fault: each chunk is as named, yet the whole is not what the manifest says.
        StoreFullError, StoreError
            The disk's fault.
        """
        with self._lock, disk_errors(self._shards_dir):
            present = self.path(shard)
            if present is not None:
                return present
            missing = self.missing(shard)
            if missing:
                raise IncompleteShardError(
                    f"shard {shard.name!r} lacks {len(missing)} of {len(shard.chunks)} chunks; fetch them first"
                )
            path = self._shards_dir / shard.sha256
            partial = path.with_name(f".{path.name}{PARTIAL_SUFFIX}")
            try:
                self._write_shard(shard, partial)
                write_durably(sidecar(path), msgspec.json.encode(shard))
                os.replace(partial, path)
            finally:
                partial.unlink(missing_ok=True)
            sync_directory(self._shards_dir)
            self._place(shard)
            return path

    def path(self, shard: Shard) -> Path | None:
        """Return a whole shard's file after reading it once more, None where there is none or it was found damaged."""
        with self._lock, disk_errors(self._shards_dir):
            if self._held.whole(shard.sha256) is None:
                return None
            path = self._shards_dir / shard.sha256
            if is_ours(path, shard.size_bytes) and hash_file(path) == shard.sha256:
                self._held.touch(shard.sha256)
                # Recency outlives a restart as the file's time.
                os.utime(path)
                return path
            self._take_apart(shard.sha256)
            return None

    def put_file(self, shard: Shard, source: Path) -> Path:
        """Take a shard from a file of this machine (the publisher's), and return the store's own file.

        Raises
        ------
        DigestMismatchError
            The file is not the shard.
        StoreFullError, StoreError, IncompleteShardError
            As put and assemble.
        """
        pinned = self._held.is_pinned(shard.sha256)
        self.pin(shard)
        try:
            with disk_errors(source), source.open("rb") as file:
                for cid in shard.chunks:
                    self.put(cid, file.read(CHUNK_SIZE_BYTES))
            return self.assemble(shard)
        finally:
            if not pinned:
                self.unpin(shard.sha256)

    def remove(self, shard: Shard) -> None:
        """Drop a shard and those of its chunks that no pinned shard has; without effect where nothing is held."""
        with self._lock, disk_errors(self._shards_dir):
            self.unpin(shard.sha256)
            self._drop_shard(shard.sha256)
            for cid in shard.chunks:
                if self._held.is_loose(cid) and not self._held.is_wanted(cid):
                    self._drop_chunk(cid)

    # ------------------------------------------------------------ inside

    def _scan(self, folder: Path) -> None:
        """Read the folder at the start, and tidy it."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self._chunks_dir, self._shards_dir):
            path.mkdir(mode=0o700, exist_ok=True)
            remove_partial(path)
        shards = self._scan_shards()
        in_shards = {cid for _, shard in shards for cid in shard.chunks}
        found: list[tuple[int, str, Shard | int]] = [(time_ns, shard.sha256, shard) for time_ns, shard in shards]
        for path in sorted(self._chunks_dir.iterdir()):
            if path.name in in_shards:
                path.unlink()
            elif is_cid(path.name):
                status = path.stat()
                found.append((status.st_mtime_ns, path.name, status.st_size))
        # The order of use outlives a restart as the files' times.
        for _, name, what in sorted(found, key=lambda entry: entry[:2]):
            if isinstance(what, Shard):
                self._held.add_shard(what)
            else:
                self._held.add_chunk(name, what)

    def _scan_shards(self) -> list[tuple[int, Shard]]:
        """Return the whole shards on disk with their files' times, and remove what is none."""
        shards: list[tuple[int, Shard]] = []
        for path in sorted(self._shards_dir.iterdir()):
            if path.suffix == ".json":
                if not path.with_suffix("").exists():
                    path.unlink(missing_ok=True)
                continue
            shard = read_sidecar(path)
            if shard is None:
                self._damaged += 1
                path.unlink()
                sidecar(path).unlink(missing_ok=True)
                continue
            shards.append((path.stat().st_mtime_ns, shard))
        return shards

    def _make_room(self, size_bytes: int) -> None:
        """Drop what was used least recently until so many bytes fit."""
        if self._held.used_bytes + size_bytes <= self._quota_bytes:
            return
        for name in self._held.spare():
            if self._held.is_loose(name):
                self._drop_chunk(name)
            else:
                self._drop_shard(name)
            self._evicted += 1
            if self._held.used_bytes + size_bytes <= self._quota_bytes:
                return
        raise StoreFullError(
            f"{size_bytes} bytes do not fit: {self._held.used_bytes} of {self._quota_bytes} are held by models in use; "
            "remove a model or raise the store's quota"
        )

    def _write_shard(self, shard: Shard, partial: Path) -> None:
        """Write a shard's chunks one after the other, check the whole, flush."""
        whole = hashlib.sha256()
        partial.unlink(missing_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with open(descriptor, "wb") as file:
            for cid in shard.chunks:
                data = self.get(cid)
                if data is None:
                    raise IncompleteShardError(
                        f"chunk {cid} of shard {shard.name!r} is damaged on disk; fetch it again"
                    )
                whole.update(data)
                file.write(data)
            if file.tell() != shard.size_bytes or whole.hexdigest() != shard.sha256:
                raise DigestMismatchError(
                    f"shard {shard.name!r} is {whole.hexdigest()[:16]} with {file.tell()} bytes, its manifest says "
                    f"{shard.sha256[:16]} with {shard.size_bytes}; the publisher must publish it anew"
                )
            file.flush()
            os.fchmod(file.fileno(), 0o400)
            os.fsync(file.fileno())

    def _place(self, shard: Shard) -> None:
        """Enter a whole shard, and remove the chunk files that it makes superfluous."""
        self._held.add_shard(shard)
        for cid in shard.chunks:
            if self._held.is_loose(cid):
                self._drop_chunk(cid)

    def _take_apart(self, sha256: str) -> None:
        """Keep the sound chunks of a damaged shard as chunk files, and drop the shard."""
        shard = self._held.whole(sha256)
        assert shard is not None
        path = self._shards_dir / sha256
        self._damaged += 1
        # A disk without room or with a bad block: what cannot be saved is fetched again.
        with contextlib.suppress(OSError):
            for index, cid in enumerate(shard.chunks):
                data = read_piece(path, index * CHUNK_SIZE_BYTES, CHUNK_SIZE_BYTES)
                if not self._held.is_loose(cid) and is_chunk(cid, data):
                    write_durably(self._chunks_dir / cid, data, sync_folder=False)
                    self._held.add_chunk(cid, len(data))
        self._drop_shard(sha256)

    def _drop_shard(self, sha256: str) -> None:
        """Forget a whole shard and remove its files."""
        if self._held.whole(sha256) is None:
            return
        self._held.drop_shard(sha256)
        # The list goes last: a shard without one is removed at the next start, a list without a shard too.
        (self._shards_dir / sha256).unlink(missing_ok=True)
        sidecar(self._shards_dir / sha256).unlink(missing_ok=True)

    def _drop_chunk(self, cid: str) -> None:
        """Forget a chunk file and remove it."""
        self._held.drop_chunk(cid)
        (self._chunks_dir / cid).unlink(missing_ok=True)
