"""Which chunks of a package are missing, and whom to ask for them next. Pure.

Owns the plan of one download: the chunks still wanted, what each peer has, what is under way, and how far each peer is
trusted to deliver. Knows nothing of connections, disks and clocks: events go in with the time, actions come out.

    PeerFound/HoldingsLearned --> RequestChunk --> ChunkStored | ChunkRefused | ChunkCorrupt | ChunkFailed

Rules, as in BitTorrent (Cohen, "Incentives build robustness in BitTorrent", 2003, section 2.4) where they fit a grid
of friends, without tit for tat:

* Rarest first among a random handful of the missing ones, so that one vanishing peer takes no chunk with it and
  many nodes that start at once do not all ask for the same.
* The quickest peers are asked first; a peer gets a second request while its first is under way only if it has not
  failed lately. A peer that fails or is slow rests for a time that doubles, and is asked again: it may have been us.
* A chunk with a wrong digest ends all dealings with a peer at once. An honest peer cannot send one: TLS guards the
  way, and peers read their own disks with suspicion. Its other requests are given up.
* Endgame: when everything missing is under way, idle peers are asked for the oldest requests once more, and the
  first answer cancels the other, so that one stuck peer does not hold up the end.

The download ends if at least one peer has all chunks, answers now and then, and stays: it is never excluded.
"""

import random
from collections.abc import Collection, Iterable, Sequence

from models.fetchevents import (
    CancelRequest,
    ChunkCorrupt,
    ChunkFailed,
    ChunkLost,
    ChunkRefused,
    ChunkStored,
    ExcludePeer,
    FetchAction,
    FetchConfig,
    FetchDone,
    FetchEvent,
    FetchStatistics,
    HoldingsLearned,
    PeerGone,
    RequestChunk,
    TimerFired,
)
from models.manifest import Shard


class _Peer:
    """What is known of one peer."""

    def __init__(self) -> None:
        self.has: set[str] = set()
        self.failures = 0
        """Failures since the last chunk it delivered."""
        self.rests_until_s = 0.0
        self.chunk_s = 0.0
        """Smoothed time it took per chunk, in seconds; 0 before the first, so that new peers get a try."""
        self.under_way: dict[str, float] = {}
        """When each of its requests was made."""


class FetchPlanner:
    """The plan of one download.

    Parameters
    ----------
    shards : sequence of Shard
        All shards of the package.
    held : collection of str
        Chunks that the store has already: an interrupted download goes on.
    rng : random.Random
        Draws which of equals comes first.
    config : FetchConfig
        Bounds.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        *,
        held: Collection[str],
        rng: random.Random,
        config: FetchConfig = FetchConfig(),  # noqa: B008  # frozen
    ) -> None:
        self._shards = {shard.sha256: shard for shard in shards}
        wanted = dict.fromkeys(cid for shard in shards for cid in shard.chunks)
        self._chunks = len(wanted)
        self._known = frozenset(wanted)
        # A list for drawing, a dict from chunk to its place in it for removing: both in constant time.
        self._missing = [cid for cid in wanted if cid not in held]
        self._place = {cid: place for place, cid in enumerate(self._missing)}
        self._holders: dict[str, int] = dict.fromkeys(wanted, 0)
        self._requests: dict[str, list[str]] = {}
        """Peers asked for each chunk under way; chunks in the order of their first request."""
        self._peers: dict[str, _Peer] = {}
        self._excluded: set[str] = set()
        self._rng = rng
        self._config = config
        self._told_done = False
        self._now_s = float("-inf")

    @property
    def is_done(self) -> bool:
        """Whether nothing is missing."""
        return not self._missing

    def handle(self, event: FetchEvent, now_s: float) -> list[FetchAction]:
        """Take an event in and say what to do.

        Parameters
        ----------
        event : FetchEvent
            What happened. Late and double reports of requests are fine.
        now_s : float
            Monotonic seconds; never goes back.

        Returns
        -------
        list of FetchAction
            In the order in which to carry them out. A FetchDone comes once; a ChunkLost after it starts anew.
        """
        assert now_s >= self._now_s, f"time went back from {self._now_s} to {now_s}"
        self._now_s = now_s
        actions = self._take_in(event, now_s)
        actions += self._time_out(now_s)
        actions += self._ask(now_s)
        if self.is_done and not self._told_done:
            self._told_done = True
            actions.append(FetchDone())
        return actions

    def next_deadline_s(self) -> float | None:
        """Return when a TimerFired is due, on the clock of now_s; None when nothing is waited for."""
        if self.is_done:
            return None
        times = [
            start_s + self._config.timeout_s for peer in self._peers.values() for start_s in peer.under_way.values()
        ]
        if len(times) < self._config.requests:
            times += [peer.rests_until_s for peer in self._peers.values() if peer.rests_until_s > self._now_s]
        return min(times, default=None)

    def statistics(self) -> FetchStatistics:
        """Return where the download stands."""
        return FetchStatistics(
            chunks=self._chunks,
            missing=len(self._missing),
            under_way=len(self._requests),
            peers=len(self._peers),
            excluded=len(self._excluded),
            unavailable=sum(self._holders[cid] == 0 for cid in self._missing),
        )

    # ------------------------------------------------------------ events

    def _take_in(self, event: FetchEvent, now_s: float) -> list[FetchAction]:
        """Change the plan by an event."""
        match event:
            case HoldingsLearned():
                self._learn(event)
            case PeerGone(peer):
                self._forget(peer)
            case ChunkStored(peer, cid):
                return self._finish(peer, cid, now_s)
            case ChunkRefused(peer, cid):
                self._disown(peer, cid)
                if self._end_request(peer, cid):
                    self._rest(peer, now_s)
            case ChunkFailed(peer, cid):
                # A failure of a request that was given up says nothing new.
                if self._end_request(peer, cid):
                    self._rest(peer, now_s)
            case ChunkCorrupt(peer, cid):
                return self._exclude(peer, cid)
            case ChunkLost(cid):
                self._want_again(cid)
            case TimerFired():
                pass
        return []

    def _learn(self, event: HoldingsLearned) -> None:
        """Enter what a peer says it has of a shard."""
        shard = self._shards.get(event.shard)
        if shard is None or event.peer in self._excluded:
            return
        peer = self._peers.setdefault(event.peer, _Peer())
        has = {
            cid
            for index, cid in enumerate(shard.chunks)
            if index // 8 < len(event.bitmap) and event.bitmap[index // 8] >> index % 8 & 1
        }
        # A chunk may be in another shard too; what was said of that one stands.
        for cid in has - peer.has:
            self._holders[cid] += 1
        peer.has |= has

    def _forget(self, name: str) -> None:
        """Take a peer out of the plan, with its requests."""
        peer = self._peers.pop(name, None)
        if peer is None:
            return
        for cid in list(peer.under_way):
            self._drop_copy(name, cid)
        for cid in peer.has:
            self._holders[cid] -= 1

    def _finish(self, name: str, cid: str, now_s: float) -> list[FetchAction]:
        """Note an arrived chunk; give up other requests for it."""
        peer = self._peers.get(name)
        if peer is not None:
            start_s = peer.under_way.get(cid)
            if start_s is not None:
                took_s = now_s - start_s
                peer.chunk_s = took_s if peer.chunk_s == 0.0 else 0.7 * peer.chunk_s + 0.3 * took_s
            peer.failures, peer.rests_until_s = 0, 0.0
        self._end_request(name, cid)
        others = list(self._requests.get(cid, ()))
        for other in others:
            self._end_request(other, cid)
        self._remove_missing(cid)
        return [CancelRequest(other, cid, "arrived from another peer") for other in others]

    def _exclude(self, name: str, cid: str) -> list[FetchAction]:
        """Have no more dealings with a liar."""
        if name in self._excluded:
            return []
        peer = self._peers.get(name)
        others = [] if peer is None else [other for other in peer.under_way if other != cid]
        self._forget(name)
        self._excluded.add(name)
        gone: list[FetchAction] = [CancelRequest(name, other, "peer is excluded") for other in others]
        return [*gone, ExcludePeer(name, f"sent other bytes as chunk {cid}")]

    def _want_again(self, cid: str) -> None:
        """Put a chunk back among the missing."""
        if cid in self._known and cid not in self._place:
            self._place[cid] = len(self._missing)
            self._missing.append(cid)
            self._told_done = False

    def _time_out(self, now_s: float) -> list[FetchAction]:
        """Give up requests that took too long, by the very sum that next_deadline_s gives: it rounds alike."""
        actions: list[FetchAction] = []
        for name, peer in self._peers.items():
            late = [cid for cid, start_s in peer.under_way.items() if now_s >= start_s + self._config.timeout_s]
            for cid in late:
                self._end_request(name, cid)
                actions.append(CancelRequest(name, cid, f"no answer in {self._config.timeout_s} s"))
            if late:
                self._rest(name, now_s)
        return actions

    # ------------------------------------------------------------ requests

    def _ask(self, now_s: float) -> list[FetchAction]:
        """Fill the free places with requests."""
        actions: list[FetchAction] = []
        under_way = sum(len(peer.under_way) for peer in self._peers.values())
        for name in self._by_merit(now_s):
            peer = self._peers[name]
            room = 1 if peer.failures else self._config.peer_requests
            while under_way < self._config.requests and len(peer.under_way) < room:
                choice = self._choose(peer)
                if choice is None:
                    break
                cid, reason = choice
                self._requests.setdefault(cid, []).append(name)
                peer.under_way[cid] = now_s
                under_way += 1
                actions.append(RequestChunk(name, cid, reason))
        return actions

    def _by_merit(self, now_s: float) -> Iterable[str]:
        """Return peers that may be asked: without failures first, then quick ones, equals in random order."""
        awake = [name for name, peer in sorted(self._peers.items()) if peer.rests_until_s <= now_s]
        self._rng.shuffle(awake)
        return sorted(awake, key=lambda name: (self._peers[name].failures, self._peers[name].chunk_s))

    def _choose(self, peer: _Peer) -> tuple[str, str] | None:
        """Return the chunk to ask a peer for, and why."""
        fresh = self._rarest(peer)
        if fresh is not None:
            return fresh, "rarest of a sample"
        if len(self._requests) < len(self._missing):
            return None
        for cid, names in self._requests.items():
            if cid in peer.has and cid not in peer.under_way and len(names) < self._config.copies:
                return cid, "endgame"
        return None

    def _rarest(self, peer: _Peer) -> str | None:
        """Return the missing chunk of a peer that fewest others have, out of a random sample; None for none."""
        if len(self._requests) == len(self._missing):
            return None
        picks = self._rng.sample(self._missing, min(self._config.sample, len(self._missing)))
        usable = [cid for cid in picks if cid in peer.has and cid not in self._requests]
        if not usable:
            # The sample missed: the peer has few of the missing ones, or most are under way.
            usable = [cid for cid in self._missing if cid in peer.has and cid not in self._requests]
            self._rng.shuffle(usable)
        return min(usable, key=self._holders.__getitem__, default=None)

    def _end_request(self, name: str, cid: str) -> bool:
        """Forget a request; say whether there was one."""
        peer = self._peers.get(name)
        if peer is None or peer.under_way.pop(cid, None) is None:
            return False
        self._drop_copy(name, cid)
        return True

    def _drop_copy(self, name: str, cid: str) -> None:
        """Take a peer from those asked for a chunk."""
        names = self._requests.get(cid, [])
        if name in names:
            names.remove(name)
            if not names:
                del self._requests[cid]

    def _disown(self, name: str, cid: str) -> None:
        """Note that a peer does not have a chunk."""
        peer = self._peers.get(name)
        if peer is not None and cid in peer.has:
            peer.has.discard(cid)
            self._holders[cid] -= 1

    def _rest(self, name: str, now_s: float) -> None:
        """Let a peer rest after a failure, longer after each in a row."""
        peer = self._peers.get(name)
        if peer is not None:
            rest_s = min(self._config.rest_max_s, self._config.rest_s * 2.0 ** min(peer.failures, 30))
            peer.failures += 1
            peer.rests_until_s = now_s + rest_s

    def _remove_missing(self, cid: str) -> None:
        """Take a chunk from the missing by putting the last one in its place."""
        place = self._place.pop(cid, None)
        if place is not None:
            last = self._missing.pop()
            if last != cid:
                self._missing[place] = last
                self._place[last] = place
