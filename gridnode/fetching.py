"""Downloads models from peers: carries out what models.fetch plans, over the data plane into the store."""

import random
from collections.abc import Callable, Sequence
from typing import Final

import trio

from gridnode.logs import EventLog, short
from gridnode.signedstate import PeerSource
from models.chunkfile import DigestMismatchError
from models.fetch import FetchPlanner
from models.fetchevents import (
    CancelRequest,
    ChunkCorrupt,
    ChunkFailed,
    ChunkRefused,
    ChunkStored,
    ExcludePeer,
    FetchAction,
    FetchDone,
    FetchEvent,
    HoldingsLearned,
    PeerGone,
    RequestChunk,
    TimerFired,
)
from models.manifest import ModelError, Shard
from models.store import ChunkStore
from transport.base import DataPlane, ask
from transport.wire import ChunkRequest, Document, Holdings, HoldingsRequest, TransportError

log = EventLog("fetch")

PEERS_MAX: Final = 8
"""Peers asked at once what they hold: more than the requests of a download at once are of no use."""
HOLDINGS_EVERY_S: Final = 3.0
"""How often peers are asked again what they hold while a chunk is to be had nowhere: they download too."""
PATIENCE_S: Final = 15.0
"""Without a new chunk for so long the download is given up for now; what came is kept."""
HOLDINGS_TIMEOUT_S: Final = 5.0


class ModelUnavailableError(ModelError):
    """No peer gives the missing chunks at present. Try again later; what came is kept."""


class PeerFetcher:
    """Fetches shards from peers.

    Parameters
    ----------
    on_misbehaviour : callable
        Told the PeerID of a peer that sent a wrong chunk, and what it did.
    """

    def __init__(
        self,
        *,
        store: ChunkStore,
        data: DataPlane,
        peers: PeerSource,
        rng: random.Random,
        on_misbehaviour: Callable[[str, str], None],
    ) -> None:
        self._store = store
        self._data = data
        self._peers = peers
        self._rng = rng
        self._on_misbehaviour = on_misbehaviour

    async def fetch(self, shards: Sequence[Shard], *, on_progress: Callable[[int], None]) -> None:
        """Return when all chunks of the shards are in the store.

        Raises
        ------
        ModelUnavailableError
            No peer gives the missing chunks at present.
        StoreFullError, StoreError
            The disk's fault.
        """
        held = [cid for shard in shards for cid in shard.chunks if self._store.has(cid)]
        planner = FetchPlanner(shards, held=held, rng=random.Random(self._rng.random()))
        if not planner.is_done:
            await _Download(
                planner, shards, self._store, self._data, self._peers, self._rng, on_progress, self._on_misbehaviour
            ).run()


def choose_sources(known: Sequence[str], likely: Sequence[str], rng: random.Random) -> list[str]:
    """Choose whom to ask what they hold: an admit node or two, where models come from, and others at random.

    Drawn anew each time, so that a model which one node alone has is found in a grid of any size.
    """
    first = rng.sample(likely, min(len(likely), PEERS_MAX // 4))
    others = [peer for peer in known if peer not in first]
    return first + rng.sample(others, min(len(others), PEERS_MAX - len(first)))


class _Download:
    """One download under way."""

    def __init__(
        self,
        planner: FetchPlanner,
        shards: Sequence[Shard],
        store: ChunkStore,
        data: DataPlane,
        peers: PeerSource,
        rng: random.Random,
        on_progress: Callable[[int], None],
        on_misbehaviour: Callable[[str, str], None],
    ) -> None:
        self._planner = planner
        self._shards = shards
        self._store = store
        self._data = data
        self._peers = peers
        self._rng = rng
        self._on_progress = on_progress
        self._on_misbehaviour = on_misbehaviour
        self._requests: dict[tuple[str, str], trio.CancelScope] = {}
        self._problem: ModelError | None = None
        self._done = False
        self._wake = trio.Event()
        self._patience_s = trio.current_time() + PATIENCE_S

    async def run(self) -> None:
        """Download until done; raises the errors of PeerFetcher.fetch."""
        async with trio.open_nursery() as nursery:
            ask_s = trio.current_time()
            while not self._done and self._problem is None:
                now_s = trio.current_time()
                if ask_s <= now_s:
                    ask_s = now_s + HOLDINGS_EVERY_S
                    for peer in choose_sources(self._peers.reachable_peers(), self._peers.admit_peers(), self._rng):
                        nursery.start_soon(self._ask_holdings, peer, nursery)
                if now_s >= self._patience_s:
                    missing = self._planner.statistics().missing
                    self._problem = ModelUnavailableError(f"{missing} chunks are missing and no peer gives them now")
                    break
                self._handle(TimerFired(), nursery)
                self._wake = trio.Event()
                due_s = self._planner.next_deadline_s()
                with trio.move_on_at(min(ask_s, self._patience_s, *(() if due_s is None else (due_s,)))):
                    await self._wake.wait()
            nursery.cancel_scope.cancel()
        if self._problem is not None:
            raise self._problem

    def _handle(self, event: FetchEvent, nursery: trio.Nursery) -> None:
        for action in self._planner.handle(event, trio.current_time()):
            self._carry_out(action, nursery)
        self._wake.set()

    def _carry_out(self, action: FetchAction, nursery: trio.Nursery) -> None:
        match action:
            case RequestChunk():
                nursery.start_soon(self._request, action.peer, action.cid, nursery)
            case CancelRequest():
                scope = self._requests.get((action.peer, action.cid))
                if scope is not None:
                    scope.cancel()
            case ExcludePeer():
                self._on_misbehaviour(action.peer, action.reason)
            case FetchDone():
                self._done = True

    async def _ask_holdings(self, peer: str, nursery: trio.Nursery) -> None:
        try:
            with trio.move_on_after(HOLDINGS_TIMEOUT_S):
                for shard in self._shards:
                    answer, _ = await ask(self._data, peer, HoldingsRequest(sha256=shard.sha256))
                    if isinstance(answer, Holdings) and answer.bitmap:
                        self._handle(HoldingsLearned(peer, shard.sha256, answer.bitmap), nursery)
        except TransportError as error:
            log.debug("holdings_unknown", peer=short(peer), error=error)
            self._handle(PeerGone(peer), nursery)

    async def _request(self, peer: str, cid: str, nursery: trio.Nursery) -> None:
        with trio.CancelScope() as scope:
            self._requests[peer, cid] = scope
            try:
                event = await self._get(peer, cid)
            except TransportError as error:
                log.debug("chunk_lost", peer=short(peer), error=error)
                event = ChunkFailed(peer, cid)
            except ModelError as error:
                self._problem = error
                self._wake.set()
                return
            finally:
                if self._requests.get((peer, cid)) is scope:
                    del self._requests[peer, cid]
            self._handle(event, nursery)

    async def _get(self, peer: str, cid: str) -> FetchEvent:
        """Ask a peer for a chunk and put it into the store."""
        answer, payload = await ask(self._data, peer, ChunkRequest(cid=cid))
        if not isinstance(answer, Document) or not answer.found:
            return ChunkRefused(peer, cid)
        try:
            await trio.to_thread.run_sync(self._store.put, cid, payload)
        except DigestMismatchError:
            return ChunkCorrupt(peer, cid)
        self._patience_s = trio.current_time() + PATIENCE_S
        self._on_progress(len(payload))
        return ChunkStored(peer, cid)
