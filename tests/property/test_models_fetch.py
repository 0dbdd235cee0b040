"""Downloads from peers that lie, stall, refuse, vanish and come back, beside one that is honest."""

import heapq
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from models.fetch import FetchPlanner
from models.fetchevents import (
    CancelRequest,
    ChunkCorrupt,
    ChunkFailed,
    ChunkRefused,
    ChunkStored,
    ExcludePeer,
    FetchConfig,
    FetchDone,
    HoldingsLearned,
    PeerGone,
    RequestChunk,
    TimerFired,
)
from models.manifest import CHUNK_SIZE_BYTES, Shard, chunk_cid

CHARACTERS = ("honest", "liar", "silent", "refuser", "breaker", "flaky", "leaver", "partial")
STEPS_MAX = 3_000


class World:
    """Peers with characters, and a queue of what they will do. Time is virtual."""

    def __init__(self, seed: int, characters: list[str], chunks: int):
        self.rng = random.Random(seed)
        cids = tuple(chunk_cid(f"{number}".encode()) for number in range(chunks))
        self.shard = Shard(name="x", size_bytes=chunks * CHUNK_SIZE_BYTES, sha256="0" * 64, chunks=cids)
        self.characters = {f"{number}-{kind}": kind for number, kind in enumerate(["honest", *characters])}
        self.config = FetchConfig(timeout_s=5.0, peer_requests=2, requests=6)
        self.plan = FetchPlanner([self.shard], held=(), rng=random.Random(seed + 1), config=self.config)
        self.queue: list = []
        self.sequence = 0
        self.under_way: set[tuple[str, str]] = set()
        self.stored: set[str] = set()
        self.excluded: set[str] = set()
        self.done = 0

    def later(self, at_s, event):
        self.sequence += 1
        heapq.heappush(self.queue, (at_s, self.sequence, event))

    def bitmap(self, kind):
        whole = (1 << len(self.shard.chunks)) - 1
        bits = self.rng.getrandbits(len(self.shard.chunks)) if kind == "partial" else whole
        return bits.to_bytes(-(-len(self.shard.chunks) // 8), "little")

    def answer(self, peer, cid, now_s):
        """What a peer will make of a request; None for silence."""
        kind = self.characters[peer]
        if kind == "flaky":
            kind = self.rng.choice(["honest", "breaker", "silent", "refuser"])
        delay_s = self.rng.uniform(0.01, 3.0)
        event = {
            "honest": ChunkStored,
            "partial": ChunkStored,
            "liar": ChunkCorrupt,
            "refuser": ChunkRefused,
            "breaker": ChunkFailed,
            "leaver": lambda peer, cid: PeerGone(peer),
            "silent": None,
        }[kind]
        if event is not None:
            self.later(now_s + delay_s, event(peer, cid))

    def carry_out(self, actions, now_s):
        for action in actions:
            match action:
                case RequestChunk(peer, cid):
                    assert peer not in self.excluded
                    assert cid not in self.stored
                    assert (peer, cid) not in self.under_way
                    self.under_way.add((peer, cid))
                    self.answer(peer, cid, now_s)
                case CancelRequest(peer, cid):
                    assert (peer, cid) in self.under_way
                    self.under_way.discard((peer, cid))
                case ExcludePeer(peer):
                    assert self.characters[peer] == "liar"
                    self.excluded.add(peer)
                case FetchDone():
                    self.done += 1
        assert len(self.under_way) <= self.config.requests
        for peer in self.characters:
            assert sum(name == peer for name, _ in self.under_way) <= self.config.peer_requests
        for cid in self.shard.chunks:
            assert sum(asked == cid for _, asked in self.under_way) <= self.config.copies

    def run(self):
        for peer, kind in self.characters.items():
            self.later(self.rng.uniform(0, 5), HoldingsLearned(peer, self.shard.sha256, self.bitmap(kind)))
        now_s = 0.0
        for _ in range(STEPS_MAX):
            due_s = self.plan.next_deadline_s()
            if self.queue and (due_s is None or self.queue[0][0] <= due_s):
                now_s, _, event = heapq.heappop(self.queue)
            elif due_s is not None:
                now_s, event = max(now_s, due_s), TimerFired()
            else:
                return now_s
            match event:
                case (
                    ChunkStored(peer, cid) | ChunkCorrupt(peer, cid) | ChunkRefused(peer, cid) | ChunkFailed(peer, cid)
                ):
                    if (peer, cid) not in self.under_way:
                        continue  # cancelled meanwhile
                    self.under_way.discard((peer, cid))
                    if isinstance(event, ChunkStored):
                        self.stored.add(cid)
                case PeerGone(peer):
                    self.under_way = {pair for pair in self.under_way if pair[0] != peer}
                    bitmap = self.bitmap("leaver")
                    if self.rng.random() < 0.5:
                        self.later(now_s + 1.0, HoldingsLearned(peer, self.shard.sha256, bitmap))
            self.carry_out(self.plan.handle(event, now_s), now_s)
            # Whatever the planner thinks is under way is what the world has under way.
            assert self.plan.statistics().under_way == len({cid for _, cid in self.under_way})
            assert self.plan.statistics().missing == len(self.shard.chunks) - len(self.stored)
        raise AssertionError("the download does not end")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    characters=st.lists(st.sampled_from(CHARACTERS), max_size=8),
    chunks=st.integers(1, 40),
)
def test_download_ends_whenever_one_honest_peer_has_everything(seed, characters, chunks):
    world = World(seed, characters, chunks)
    world.run()
    assert world.stored == set(world.shard.chunks)
    assert world.done == 1
    assert world.plan.is_done


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), characters=st.lists(st.sampled_from(CHARACTERS), max_size=5))
def test_same_seed_takes_the_same_decisions(seed, characters):
    first, second = World(seed, characters, 12), World(seed, characters, 12)
    assert first.run() == second.run()
    assert first.sequence == second.sequence
