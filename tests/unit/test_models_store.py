import hashlib
import os
import subprocess
import sys

import pytest

from models.chunkfile import DigestMismatchError, StoreError, StoreFullError
from models.manifest import CHUNK_SIZE_BYTES, Shard, chunk_cid, describe_shard
from models.store import ChunkStore, IncompleteShardError

MIB = 1 << 20


def content(*sizes: int, seed: int = 0) -> list[bytes]:
    """Pieces of a file, each different."""
    return [bytes([seed + number]) * size for number, size in enumerate(sizes)]


def shard_of(pieces, name="graph.onnx") -> Shard:
    return describe_shard(name, pieces)


def fill(store, shard, pieces):
    for cid, piece in zip(shard.chunks, pieces, strict=True):
        store.put(cid, piece)


def files_in(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


PIECES = content(MIB, MIB, 1000)
SHARD = shard_of(PIECES)


@pytest.fixture
def store(tmp_path):
    return ChunkStore(tmp_path, 16 * MIB)


def test_chunks_become_a_private_shard_file(store, tmp_path):
    fill(store, SHARD, PIECES)
    path = store.assemble(SHARD)
    status = path.stat()
    assert path.read_bytes() == b"".join(PIECES)
    assert status.st_mode & 0o777 == 0o400
    assert status.st_nlink == 1
    assert store.path(SHARD) == path
    assert store.assemble(SHARD) == path


def test_a_chunk_lies_on_disk_once_and_is_served_from_the_shard(store, tmp_path):
    fill(store, SHARD, PIECES)
    assert store.statistics().chunks == 3
    store.assemble(SHARD)
    assert store.statistics().chunks == 0
    assert store.statistics().used_bytes == SHARD.size_bytes
    assert os.listdir(tmp_path / "chunks") == []
    assert [store.get(cid) for cid in SHARD.chunks] == PIECES


def test_nothing_of_a_wrong_chunk_touches_the_disk(store, tmp_path):
    cid = SHARD.chunks[2]
    good = PIECES[2]
    for place in range(0, len(good), 97):
        bad = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
        with pytest.raises(DigestMismatchError):
            store.put(cid, bad)
    for bad in (b"", good[:-1], good + b"\0", bytes(CHUNK_SIZE_BYTES + 1)):
        with pytest.raises(DigestMismatchError):
            store.put(cid, bad)
    for name in ("../../etc/passwd", "", "b" * 59, cid.upper(), cid[:-1], cid + "/x", "bafk\0"):
        with pytest.raises(DigestMismatchError):
            store.put(name, good)
    assert files_in(tmp_path) == []
    assert not store.has(cid)


def test_missing_chunks_are_named_and_shown_in_the_bitmap(store):
    assert store.bitmap(SHARD) == b""
    assert store.missing(SHARD) == SHARD.chunks
    store.put(SHARD.chunks[0], PIECES[0])
    store.put(SHARD.chunks[2], PIECES[2])
    assert store.bitmap(SHARD) == b"\x05"
    assert store.missing(SHARD) == (SHARD.chunks[1],)
    with pytest.raises(IncompleteShardError, match="1 of 3"):
        store.assemble(SHARD)
    assert store.holdings(SHARD.sha256) == b""
    store.pin(SHARD)
    assert store.holdings(SHARD.sha256) == b"\x05"


def test_a_whole_that_is_not_what_the_manifest_says_is_the_publishers_fault(store, tmp_path):
    lie = Shard(name="graph.onnx", size_bytes=SHARD.size_bytes, sha256="ab" * 32, chunks=SHARD.chunks)
    fill(store, lie, PIECES)
    with pytest.raises(DigestMismatchError, match="publisher"):
        store.assemble(lie)
    swapped = Shard(
        name="graph.onnx",
        size_bytes=SHARD.size_bytes,
        sha256=SHARD.sha256,
        chunks=SHARD.chunks[1::-1] + SHARD.chunks[2:],
    )
    with pytest.raises(DigestMismatchError):
        store.assemble(swapped)
    assert os.listdir(tmp_path / "shards") == []


def test_store_goes_on_after_a_restart(tmp_path):
    first = ChunkStore(tmp_path, 16 * MIB)
    fill(first, SHARD, PIECES)
    other = content(MIB, 5, seed=9)
    first.put(chunk_cid(other[0]), other[0])
    first.assemble(SHARD)
    again = ChunkStore(tmp_path, 16 * MIB)
    assert again.statistics() == first.statistics()
    assert again.path(SHARD) is not None
    assert again.holdings(SHARD.sha256) == b"\x07"
    assert [again.get(cid) for cid in SHARD.chunks] == PIECES
    assert again.missing(shard_of(other)) == (chunk_cid(other[1]),)


def test_rot_in_a_chunk_file_costs_that_chunk(store, tmp_path):
    fill(store, SHARD, PIECES)
    path = tmp_path / "chunks" / SHARD.chunks[1]
    data = bytearray(path.read_bytes())
    data[77] ^= 4
    path.write_bytes(data)
    with pytest.raises(IncompleteShardError, match="damaged"):
        store.assemble(SHARD)
    assert store.missing(SHARD) == (SHARD.chunks[1],)
    assert store.statistics().damaged == 1
    store.put(SHARD.chunks[1], PIECES[1])
    assert store.assemble(SHARD).exists()


@pytest.mark.parametrize("how", ["get", "path"])
def test_rot_in_a_shard_costs_one_chunk_not_the_shard(store, tmp_path, how):
    fill(store, SHARD, PIECES)
    path = store.assemble(SHARD)
    path.chmod(0o600)
    data = bytearray(path.read_bytes())
    data[MIB + 5] ^= 1
    path.write_bytes(data)
    assert (store.get(SHARD.chunks[1]) if how == "get" else store.path(SHARD)) is None
    assert store.missing(SHARD) == (SHARD.chunks[1],)
    assert store.get(SHARD.chunks[0]) == PIECES[0]
    store.put(SHARD.chunks[1], PIECES[1])
    assert store.assemble(SHARD).read_bytes() == b"".join(PIECES)


@pytest.mark.parametrize("change", ["hardlink", "symlink", "truncate", "longer", "gone", "sidecar"])
def test_a_shard_file_that_others_touched_is_not_used(tmp_path, change):
    folder = tmp_path / "store"
    store = ChunkStore(folder, 16 * MIB)
    fill(store, SHARD, PIECES)
    path = store.assemble(SHARD)
    path.chmod(0o600)
    if change == "hardlink":
        os.link(path, tmp_path / "other")
    elif change == "symlink":
        path.rename(tmp_path / "other")
        path.symlink_to(tmp_path / "other")
    elif change == "truncate":
        os.truncate(path, 100)
    elif change == "longer":
        os.truncate(path, SHARD.size_bytes + 1)
    elif change == "gone":
        path.unlink()
    else:
        (folder / "shards" / f"{path.name}.json").write_bytes(b"{}")
    again = ChunkStore(folder, 16 * MIB)
    assert again.path(SHARD) is None
    if change != "sidecar":
        assert store.path(SHARD) is None
    for cid in again.missing(SHARD):
        again.put(cid, PIECES[SHARD.chunks.index(cid)])
    assert again.assemble(SHARD).read_bytes() == b"".join(PIECES)


def test_rot_in_a_sidecar_never_gives_a_wrong_byte(store, tmp_path):
    fill(store, SHARD, PIECES)
    path = store.assemble(SHARD)
    sidecar = path.with_name(path.name + ".json")
    good = sidecar.read_bytes()
    for place in range(0, len(good), 13):
        sidecar.write_bytes(good[:place] + bytes([good[place] ^ 2]) + good[place + 1 :])
        again = ChunkStore(tmp_path, 16 * MIB)
        for cid, piece in zip(SHARD.chunks, PIECES, strict=True):
            assert again.get(cid) in (None, piece)
        for cid in again.missing(SHARD):
            again.put(cid, PIECES[SHARD.chunks.index(cid)])
        again.assemble(SHARD)


def test_quota_drops_what_was_used_least_recently(tmp_path):
    store = ChunkStore(tmp_path, 3 * MIB)
    shards = []
    for seed in (0, 50, 100):
        pieces = content(MIB, seed=seed)
        shards.append(shard_of(pieces))
        fill(store, shards[-1], pieces)
        store.assemble(shards[-1])
    assert store.path(shards[0]) is not None  # now the most recent
    pieces = content(MIB, seed=150)
    store.put(chunk_cid(pieces[0]), pieces[0])
    assert [store.path(shard) is not None for shard in shards] == [True, False, True]
    assert store.statistics().used_bytes == 3 * MIB
    assert store.statistics().evicted == 1


def test_pinned_shards_stay_and_a_full_store_says_so(tmp_path):
    store = ChunkStore(tmp_path, 3 * MIB)
    fill(store, SHARD, PIECES)
    store.assemble(SHARD)
    store.pin(SHARD)
    store.pin(SHARD)
    other = content(MIB, seed=50)
    with pytest.raises(StoreFullError, match="quota"):
        store.put(chunk_cid(other[0]), other[0])
    assert store.path(SHARD) is not None
    store.unpin(SHARD.sha256)
    store.put(chunk_cid(other[0]), other[0])
    assert store.path(SHARD) is None


def test_chunks_of_a_pinned_download_stay(tmp_path):
    store = ChunkStore(tmp_path, 2 * MIB + 1000)
    store.pin(SHARD)
    loose = content(MIB, seed=50)[0]
    store.put(SHARD.chunks[0], PIECES[0])
    store.put(chunk_cid(loose), loose)
    store.put(SHARD.chunks[1], PIECES[1])
    assert not store.has(chunk_cid(loose))
    assert store.has(SHARD.chunks[0])
    store.put(SHARD.chunks[2], PIECES[2])
    assert store.assemble(SHARD).stat().st_size == SHARD.size_bytes


def test_two_shards_may_have_a_chunk_in_common(store):
    other_pieces = [PIECES[0], *content(7, seed=90)]
    other = shard_of(other_pieces, name="golden.bin")
    fill(store, SHARD, PIECES)
    fill(store, other, other_pieces)
    first, second = store.assemble(SHARD), store.assemble(other)
    store.remove(other)
    assert not second.exists()
    assert store.get(SHARD.chunks[0]) == PIECES[0]
    assert store.path(SHARD) == first
    store.remove(SHARD)
    assert store.statistics().used_bytes == 0
    assert not store.has(SHARD.chunks[0])


def test_repeated_chunks_are_kept_once(store):
    pieces = [b"\0" * MIB, b"\0" * MIB, b"\0" * MIB, b"end"]
    shard = shard_of(pieces)
    fill(store, shard, pieces)
    assert store.statistics().chunks == 2
    assert store.missing(shard) == ()
    assert store.assemble(shard).read_bytes() == b"".join(pieces)
    assert store.statistics().used_bytes == shard.size_bytes
    assert store.get(shard.chunks[0]) == pieces[0]


def test_publisher_takes_a_file_in(store, tmp_path):
    source = tmp_path / "yolo.onnx"
    source.write_bytes(b"".join(PIECES))
    assert store.put_file(SHARD, source).read_bytes() == source.read_bytes()
    source.write_bytes(b"x" * SHARD.size_bytes)
    store.remove(SHARD)
    with pytest.raises(DigestMismatchError):
        store.put_file(SHARD, source)
    with pytest.raises(StoreError):
        store.put_file(SHARD, tmp_path / "nowhere")
    small = ChunkStore(tmp_path / "small", MIB)
    source.write_bytes(b"".join(PIECES))
    with pytest.raises(StoreFullError):
        small.put_file(SHARD, source)


def test_leftovers_of_a_killed_process_are_tidied(tmp_path):
    store = ChunkStore(tmp_path, 16 * MIB)
    fill(store, SHARD, PIECES)
    path = store.assemble(SHARD)
    # Killed between the rename and the removal of the chunk files, while writing two others.
    (tmp_path / "chunks" / SHARD.chunks[0]).write_bytes(PIECES[0])
    (tmp_path / "chunks" / ".x.partial").write_bytes(b"half")
    (tmp_path / "shards" / ".y.partial").write_bytes(b"half")
    (tmp_path / "shards" / ("ab" * 32 + ".json")).write_bytes(b"{}")
    (tmp_path / "chunks" / "README").write_bytes(b"not ours")
    again = ChunkStore(tmp_path, 16 * MIB)
    assert files_in(tmp_path) == sorted([path.name, path.name + ".json", "README"])
    assert again.statistics().used_bytes == SHARD.size_bytes


def test_an_unusable_folder_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match="file"):
        ChunkStore(tmp_path / "file" / "store", MIB)
    with pytest.raises(ValueError, match="quota"):
        ChunkStore(tmp_path, 0)


KILLED = """
import os, sys
from pathlib import Path
left = int(sys.argv[2])
def deadly(function):
    def call(*args, **keywords):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return function(*args, **keywords)
    return call
from models.manifest import describe_shard
from models.store import ChunkStore
for name in ("open", "replace", "fsync", "unlink", "fchmod"):
    setattr(os, name, deadly(getattr(os, name)))
pieces = [b"a" * (1 << 20), b"b" * (1 << 20), b"c" * 1000]
shard = describe_shard("graph.onnx", pieces)
store = ChunkStore(Path(sys.argv[1]), 1 << 24)
for cid, piece in zip(shard.chunks, pieces):
    store.put(cid, piece)
path = store.assemble(shard)
path.chmod(0o600)
path.write_bytes(b"x" + path.read_bytes()[1:])
store.path(shard)
store.remove(shard)
"""


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_a_store_that_goes_on(tmp_path):
    pieces = [b"a" * MIB, b"b" * MIB, b"c" * 1000]
    shard = shard_of(pieces)
    finished = False
    step = 0
    while not finished:
        folder = tmp_path / str(step)
        code = subprocess.run(
            [sys.executable, "-c", KILLED, str(folder), str(step)], check=False, timeout=60, cwd=os.getcwd()
        ).returncode
        assert code in (0, 9)
        finished = code == 0
        store = ChunkStore(folder, 16 * MIB)
        assert not [name for name in files_in(folder) if name.endswith(".partial")]
        for cid, piece in zip(shard.chunks, pieces, strict=True):
            assert store.get(cid) in (None, piece)
            store.put(cid, piece)
        path = store.assemble(shard)
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard.sha256
        assert files_in(folder) == sorted([shard.sha256, shard.sha256 + ".json"])
        step += 1
    assert step > 20
