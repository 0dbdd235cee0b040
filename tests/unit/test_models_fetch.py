import random

import pytest

from models.fetch import FetchPlanner
from models.fetchevents import (
    CancelRequest,
    ChunkCorrupt,
    ChunkFailed,
    ChunkLost,
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


def shard_of(count: int, seed: int = 0) -> Shard:
    cids = tuple(chunk_cid(f"{seed}/{number}".encode()) for number in range(count))
    return Shard(name="graph.onnx", size_bytes=count * CHUNK_SIZE_BYTES, sha256=f"{seed:064x}", chunks=cids)


def all_of(shard: Shard, but: tuple[int, ...] = ()) -> bytes:
    bits = bytearray(-(-len(shard.chunks) // 8))
    for index in range(len(shard.chunks)):
        if index not in but:
            bits[index // 8] |= 1 << index % 8
    return bytes(bits)


def planner(shard: Shard, held=(), **config) -> FetchPlanner:
    return FetchPlanner([shard], held=held, rng=random.Random(7), config=FetchConfig(**config))


def found(peer: str, shard: Shard, but: tuple[int, ...] = ()) -> HoldingsLearned:
    return HoldingsLearned(peer, shard.sha256, all_of(shard, but))


def requests(actions) -> list[tuple[str, str]]:
    return [(action.peer, action.cid) for action in actions if isinstance(action, RequestChunk)]


def test_requests_are_bounded_per_peer_and_in_all():
    shard = shard_of(40)
    plan = planner(shard, peer_requests=2, requests=5)
    assert len(plan.handle(found("a", shard), 0.0)) == 2
    assert len(plan.handle(found("b", shard), 0.0)) == 2
    assert len(plan.handle(found("c", shard), 0.0)) == 1
    assert plan.handle(found("d", shard), 0.0) == []
    assert plan.statistics().under_way == 5


def test_no_chunk_is_asked_for_twice_before_the_endgame():
    shard = shard_of(40)
    plan = planner(shard)
    asked = [pair for name in "abcd" for pair in requests(plan.handle(found(name, shard), 0.0))]
    assert len({cid for _, cid in asked}) == len(asked) == 8


def test_download_goes_on_from_what_is_held():
    shard = shard_of(10)
    plan = planner(shard, held=set(shard.chunks[:9]))
    assert requests(plan.handle(found("a", shard), 0.0)) == [("a", shard.chunks[9])]
    assert plan.handle(ChunkStored("a", shard.chunks[9]), 1.0) == [FetchDone()]
    assert plan.is_done
    assert plan.next_deadline_s() is None
    assert plan.handle(ChunkStored("a", shard.chunks[9]), 1.0) == []


def test_nothing_missing_is_done_at_the_first_event():
    shard = shard_of(3)
    assert planner(shard, held=shard.chunks).handle(TimerFired(), 0.0) == [FetchDone()]


def test_the_rarest_chunk_is_asked_for_first():
    shard = shard_of(20)
    plan = planner(shard, requests=1, peer_requests=1)
    # a is asked for something at once; b and c have all but chunk 13, so only a has it.
    first = requests(plan.handle(found("a", shard), 0.0))[0]
    plan.handle(found("b", shard, but=(13,)), 0.0)
    plan.handle(found("c", shard, but=(13,)), 0.0)
    plan.handle(PeerGone("b"), 0.0)
    plan.handle(PeerGone("c"), 0.0)
    plan.handle(found("b", shard, but=(13,)), 0.0)
    asked = requests(plan.handle(ChunkStored(*first), 0.0))
    while asked[0][0] != "a":
        asked = requests(plan.handle(ChunkStored(*asked[0]), 0.0))
    assert asked == [("a", shard.chunks[13])] or first[1] == shard.chunks[13]


def test_one_bad_chunk_excludes_a_peer_for_good():
    shard = shard_of(10)
    plan = planner(shard)
    (_, bad), (_, other) = requests(plan.handle(found("liar", shard), 0.0))
    actions = plan.handle(ChunkCorrupt("liar", bad), 1.0)
    assert actions == [
        CancelRequest("liar", other, "peer is excluded"),
        ExcludePeer("liar", f"sent other bytes as chunk {bad}"),
    ]
    assert plan.handle(found("liar", shard), 2.0) == []
    assert plan.handle(ChunkCorrupt("liar", bad), 2.0) == []
    assert plan.statistics().excluded == 1
    asked = requests(plan.handle(found("friend", shard), 2.0))
    assert len(asked) == 2
    assert plan.statistics().missing == 10


def test_a_late_chunk_of_an_excluded_peer_still_counts_once_it_is_in_the_store():
    shard = shard_of(2)
    plan = planner(shard)
    plan.handle(found("liar", shard), 0.0)
    plan.handle(ChunkCorrupt("liar", shard.chunks[0]), 0.0)
    plan.handle(ChunkStored("liar", shard.chunks[1]), 0.0)
    assert plan.statistics().missing == 1


def test_failures_let_a_peer_rest_for_a_doubling_time():
    shard = shard_of(10)
    plan = planner(shard, peer_requests=1, rest_s=1.0, rest_max_s=3.0)
    [(peer, cid)] = requests(plan.handle(found("a", shard), 0.0))
    now_s = 0.0
    for rest_s in (1.0, 2.0, 3.0, 3.0):
        assert plan.handle(ChunkFailed(peer, cid), now_s) == []
        assert plan.next_deadline_s() == now_s + rest_s
        assert plan.handle(TimerFired(), now_s + rest_s - 0.01) == []
        now_s += rest_s
        [(peer, cid)] = requests(plan.handle(TimerFired(), now_s))
    plan.handle(ChunkStored(peer, cid), now_s)
    assert plan.statistics().missing == 9


def test_a_refusal_takes_the_chunk_from_the_peers_holdings():
    shard = shard_of(1)
    plan = planner(shard)
    plan.handle(found("a", shard), 0.0)
    assert plan.handle(ChunkRefused("a", shard.chunks[0]), 0.0) == []
    assert plan.statistics().unavailable == 1
    assert plan.handle(TimerFired(), 100.0) == []
    assert requests(plan.handle(found("a", shard), 100.0)) == [("a", shard.chunks[0])]


def test_a_silent_peer_is_given_up_and_another_takes_over():
    shard = shard_of(1)
    plan = planner(shard, timeout_s=5.0, copies=1)
    plan.handle(found("silent", shard), 0.0)
    assert plan.handle(found("b", shard), 1.0) == []
    assert plan.next_deadline_s() == 5.0
    actions = plan.handle(TimerFired(), 5.0)
    assert actions == [
        CancelRequest("silent", shard.chunks[0], "no answer in 5.0 s"),
        RequestChunk("b", shard.chunks[0], "rarest of a sample"),
    ]


def test_endgame_asks_a_second_peer_and_cancels_the_slower():
    shard = shard_of(2)
    plan = planner(shard)
    plan.handle(found("slow", shard), 0.0)
    actions = plan.handle(found("quick", shard), 1.0)
    assert [action.reason for action in actions] == ["endgame", "endgame"]
    cid = actions[0].cid
    assert plan.handle(ChunkStored("quick", cid), 2.0)[0] == CancelRequest("slow", cid, "arrived from another peer")
    # The cancelled one may report all the same.
    assert plan.handle(ChunkStored("slow", cid), 2.0) == []
    assert plan.handle(ChunkFailed("slow", cid), 2.0) == []
    assert FetchDone() in plan.handle(ChunkStored("slow", actions[1].cid), 3.0)


def test_quick_peers_are_asked_before_slow_ones():
    shard = shard_of(40)
    plan = planner(shard, peer_requests=1, requests=2)
    slow = requests(plan.handle(found("slow", shard), 0.0))
    quick = requests(plan.handle(found("quick", shard), 0.0))
    quick = requests(plan.handle(ChunkStored(*quick[0]), 0.1))
    slow = requests(plan.handle(ChunkStored(*slow[0]), 9.0))
    plan.handle(found("third", shard), 9.0)  # no place is free
    freed = requests(plan.handle(PeerGone("slow"), 9.0))
    assert freed[0][0] == "third"  # new peers get a try
    assert quick[0][0] == "quick"
    assert slow[0][0] == "slow"


def test_a_leaving_peers_chunks_are_asked_of_others():
    shard = shard_of(2)
    plan = planner(shard, copies=1)
    plan.handle(found("a", shard), 0.0)
    assert plan.handle(found("b", shard), 0.0) == []
    assert {cid for _, cid in requests(plan.handle(PeerGone("a"), 0.0))} == set(shard.chunks)
    assert plan.handle(PeerGone("a"), 0.0) == []


def test_a_lost_chunk_is_wanted_again():
    shard = shard_of(1)
    plan = planner(shard)
    plan.handle(found("a", shard), 0.0)
    plan.handle(ChunkStored("a", shard.chunks[0]), 0.0)
    assert requests(plan.handle(ChunkLost(shard.chunks[0]), 1.0)) == [("a", shard.chunks[0])]
    assert plan.handle(ChunkStored("a", shard.chunks[0]), 1.0) == [FetchDone()]
    assert plan.handle(ChunkLost("no such chunk"), 1.0) == []


def test_chunks_shared_by_two_shards_are_fetched_once():
    first, second = shard_of(3), Shard(name="x", size_bytes=3 << 20, sha256="1" * 64, chunks=shard_of(3).chunks)
    plan = FetchPlanner([first, second], held=(), rng=random.Random(1))
    assert plan.statistics().chunks == 3
    plan.handle(found("a", first), 0.0)
    plan.handle(found("a", second), 0.0)
    for cid in first.chunks:
        plan.handle(ChunkStored("a", cid), 1.0)
    assert plan.is_done


def test_odd_bitmaps_do_no_harm():
    shard = shard_of(10)
    for bitmap in (b"", b"\0", b"\xff" * 8192, b"\xff"):
        plan = planner(shard)
        asked = requests(plan.handle(HoldingsLearned("a", shard.sha256, bitmap), 0.0))
        assert {cid for _, cid in asked} <= set(shard.chunks)
    assert planner(shard).handle(HoldingsLearned("a", "f" * 64, b"\xff"), 0.0) == []


def test_time_never_goes_back_and_bounds_make_sense():
    plan = planner(shard_of(1))
    plan.handle(TimerFired(), 5.0)
    with pytest.raises(AssertionError):
        plan.handle(TimerFired(), 4.0)
    with pytest.raises(ValueError, match="at least 1"):
        FetchConfig(requests=0)
    with pytest.raises(ValueError, match="rest_s"):
        FetchConfig(rest_s=10.0, rest_max_s=1.0)
