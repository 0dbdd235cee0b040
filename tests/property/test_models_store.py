"""The store against a model of it: a dict of chunks that may forget, but never lies."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from models import chunkfile, manifest, store
from models.chunkfile import DigestMismatchError, StoreFullError
from models.manifest import chunk_cid, describe_shard
from models.store import ChunkStore, IncompleteShardError

PIECES = [bytes([number]) * 40 for number in range(6)] + [b"tail", b"end"]
CHUNK = 40
"""Bytes of a chunk in these tests: the rules are the same for small ones, and quick."""


class StoreMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        for module in (manifest, store, chunkfile):
            module.CHUNK_SIZE_BYTES = CHUNK
        layouts = [(0, 1, 6), (2, 3, 7), (0, 4, 6), (5, 5, 6)]
        self.pieces = [[PIECES[index] for index in layout] for layout in layouts]
        self.shards = [describe_shard("x", pieces) for pieces in self.pieces]
        self.folder = Path(tempfile.mkdtemp(prefix="store-"))
        self.quota = 260
        self.store = ChunkStore(self.folder, self.quota)
        self.pinned = set()

    def teardown(self):
        for module in (manifest, store, chunkfile):
            module.CHUNK_SIZE_BYTES = 1 << 20
        shutil.rmtree(self.folder)

    @rule(index=st.integers(0, 7))
    def put(self, index):
        try:
            self.store.put(chunk_cid(PIECES[index]), PIECES[index])
        except StoreFullError:
            assert self.pinned
        else:
            assert self.store.has(chunk_cid(PIECES[index]))

    @rule(index=st.integers(0, 7), other=st.integers(0, 7))
    def put_wrong(self, index, other):
        if index != other:
            held = self.store.has(chunk_cid(PIECES[index]))
            try:
                self.store.put(chunk_cid(PIECES[index]), PIECES[other])
                raise AssertionError("a wrong chunk was taken")
            except DigestMismatchError:
                assert self.store.has(chunk_cid(PIECES[index])) == held

    @rule(which=st.integers(0, 3))
    def assemble(self, which):
        shard = self.shards[which]
        whole = not self.store.missing(shard)
        try:
            path = self.store.assemble(shard)
        except IncompleteShardError:
            # Only rot, found just now, may surprise.
            assert not whole or self.store.missing(shard)
        else:
            assert path.read_bytes() == b"".join(self.pieces[which])

    @rule(which=st.integers(0, 3))
    def pin(self, which):
        self.store.pin(self.shards[which])
        self.pinned.add(which)

    @rule(which=st.integers(0, 3))
    def unpin(self, which):
        self.store.unpin(self.shards[which].sha256)
        self.pinned.discard(which)

    @rule(which=st.integers(0, 3))
    def remove(self, which):
        self.store.remove(self.shards[which])
        self.pinned.discard(which)
        assert self.store.path(self.shards[which]) is None

    @rule()
    def restart(self):
        before = self.store
        self.store = ChunkStore(self.folder, self.quota)
        self.pinned.clear()
        for piece in PIECES:
            assert self.store.has(chunk_cid(piece)) == before.has(chunk_cid(piece))
        assert self.store.statistics().used_bytes == before.statistics().used_bytes

    @rule(choice=st.integers(0, 100), place=st.integers(0, 200))
    def rot(self, choice, place):
        files = sorted(path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".json")
        if files:
            path = files[choice % len(files)]
            data = bytearray(path.read_bytes())
            data[place % len(data)] ^= 0x40
            path.chmod(0o600)
            path.write_bytes(data)

    @invariant()
    def no_wrong_byte_comes_out(self):
        # Reading repairs, so read on a copy of the rules' choice only: a third of the chunks each time.
        for piece in PIECES[::3]:
            cid = chunk_cid(piece)
            held = self.store.has(cid)
            data = self.store.get(cid)
            assert data in (None, piece)
            assert held or data is None
            assert self.store.has(cid) == (data is not None)

    @invariant()
    def the_quota_is_kept_but_for_shared_chunks(self):
        # A chunk in two whole shards lies in both files: at most one shard's worth above.
        slack = max(shard.size_bytes for shard in self.shards) * 2
        assert self.store.statistics().used_bytes <= self.quota + slack
        on_disk = sum(
            path.stat().st_size for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".json"
        )
        assert self.store.statistics().used_bytes == on_disk


StoreMachine.TestCase.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
test_store_never_lies = StoreMachine.TestCase
