"""The models on this node: fetched, checked, measured, loaded, and told to the core.

A published model passes through: missing, fetching (chunks from peers, verified), checking (static check, load,
golden inputs, service time), then ready, or cold when its memory is needed for others. Only what passed the golden
check is ever advertised. What is published is gridnode.catalogue's, kept measurements are gridnode.measurements'.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec
import trio

from gridnode.catalogue import Catalogue, Resolved, read_catalogue
from gridnode.driver import Driver
from gridnode.logs import EventLog
from gridnode.measurements import Measurements
from gridnode.signedstate import SignedState
from gridnode.statedir import StateDirectory
from gridnode.translate import table_digest
from models.executor import Executor, ExecutorStatistics, ModelRefusedError, WorkerLostError
from models.manifest import Manifest, ModelError, Shard
from models.metadata import ExpiredStateError
from models.profile import Profile, check_golden, profile
from models.store import ChunkStore
from scheduler.events import ModelChanged
from scheduler.types import Capability

log = EventLog("models")

PREPARATIONS_MAX: Final = 4
"""Models fetched at once; loading and measuring is one at a time, so that measurements are of a quiet machine."""
RETRY_S: Final = (2.0, 60.0)
"""First and longest pause before a model that could not be fetched is tried again."""


class ShardFetcher(Protocol):
    """Gets shards from peers."""

    async def fetch(self, shards: Sequence[Shard], *, on_progress: Callable[[int], None]) -> None:
        """Return when all chunks of the shards are in the store; tells the bytes of each chunk that came.

        Raises
        ------
        ModelError
            The disk is full, or no peer has them for now.
        """
        ...


class ModelEntry:
    """One published model on this node."""

    def __init__(self, digest: str, manifest: Manifest) -> None:
        self.digest = digest
        self.manifest = manifest
        self.state = "missing"
        self.problem = ""
        self.fetched_bytes = 0
        self.path: Path | None = None
        self.profile: Profile | None = None
        self.scope: trio.CancelScope | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size_bytes for shard in self.manifest.shards)


class ModelHouse:
    """Keeps the models of this node as the signed state wants them.

    Parameters
    ----------
    wanted : sequence of str
        Names this node runs; ``*`` for all of the deployment.
    setup : str
        What measurements depend on beside the model.
    """

    def __init__(
        self,
        *,
        state: StateDirectory,
        store: ChunkStore,
        signed: SignedState,
        fetcher: ShardFetcher,
        executor: Executor,
        driver: Driver,
        wanted: Sequence[str],
        setup: str,
    ) -> None:
        self._state = state
        self._store = store
        self._signed = signed
        self._fetcher = fetcher
        self._executor = executor
        self._driver = driver
        self._wanted = tuple(wanted)
        self._catalogue = Catalogue({}, {})
        self._entries: dict[str, ModelEntry] = {}
        """Models this node runs, by digest."""
        self._measurements = Measurements(state.profiles, setup)
        self._nursery: trio.Nursery | None = None
        self._wake = trio.Event()
        self._measuring = trio.Lock()
        self._preparing = trio.CapacityLimiter(PREPARATIONS_MAX)

    # ------------------------------------------------------------ what others ask

    def accept(self, name: str, *, rungs: bool, body: bytes, payload_bytes: int) -> tuple[str, ...]:
        """Return the models that may answer a request; see Catalogue.accept."""
        return self._catalogue.accept(name, rungs=rungs, body=body, payload_bytes=payload_bytes)

    def resolve(self, name: str) -> Resolved:
        """Return what a name, or name@digest, stands for, without smaller variants; raises UnknownModelError."""
        return self._catalogue.resolve(name, rungs=False, pictures=False)

    def name_of(self, digest: str) -> str:
        """Return the name of a model, or the head of its digest."""
        return self._catalogue.name_of(digest)

    def published(self) -> dict[str, tuple[str, Manifest]]:
        """Return digest and manifest of all published models by name."""
        return self._catalogue.published()

    def entries(self) -> tuple[ModelEntry, ...]:
        """Return the models this node runs, sorted by name."""
        return tuple(sorted(self._entries.values(), key=lambda entry: entry.manifest.name))

    def workers(self) -> tuple[ExecutorStatistics, ...]:
        """Return a snapshot of the workers."""
        return self._executor.statistics()

    def capabilities(self) -> tuple[Capability, ...]:
        """Return what was measured here, sorted by model."""
        return tuple(
            Capability(
                model=digest,
                mean_s=entry.profile.mean_s,
                p95_s=entry.profile.p95_s,
                memory_bytes=entry.profile.memory_bytes,
                load_s=entry.profile.load_s,
                providers=entry.profile.providers,
            )
            for digest, entry in sorted(self._entries.items())
            if entry.profile is not None and entry.state in ("ready", "cold")
        )

    def signed_file(self, path: str) -> bytes | None:
        """Return a file of the signed state. Blocks."""
        return self._signed.signed_file(path)

    def chunk(self, cid: str) -> bytes | None:
        """Return a chunk. Blocks."""
        return self._store.get(cid)

    def holdings(self, sha256: str) -> bytes:
        """Return the bitmap of a shard's chunks."""
        return self._store.holdings(sha256)

    def publish(self, publication: bytes) -> bool:
        """Take what an owner signed. Blocks; call in a thread."""
        return self._signed.publish(publication)

    # ------------------------------------------------------------ what the core asks

    def load(self, model: str) -> None:
        """Start to load a model."""
        entry = self._entries.get(model)
        if entry is not None and self._nursery is not None:
            self._nursery.start_soon(self._reload, entry)
        else:
            self._tell_core()

    def evict(self, model: str) -> None:
        """Start to unload a model."""
        entry = self._entries.get(model)
        if entry is not None and self._nursery is not None:
            entry.state = "cold"
            self._nursery.start_soon(self._unload, entry)

    # ------------------------------------------------------------ life

    def look(self) -> None:
        """Compare soon what there is with what the signed state wants."""
        self._wake.set()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.to_thread.run_sync(self._take_incoming)
            await self._reconcile()
            task_status.started()
            nursery.start_soon(self._follow_changes)
            while True:
                await self._wake.wait()
                self._wake = trio.Event()
                await trio.to_thread.run_sync(self._take_incoming)
                await self._reconcile()

    async def _reconcile(self) -> None:
        """Bring the set of models in line with the signed state."""
        self._catalogue = await trio.to_thread.run_sync(read_catalogue, self._signed.client, self._catalogue)
        wanted = self._catalogue.chosen(self._wanted)
        assert self._nursery is not None
        for digest in sorted(self._entries.keys() - wanted.keys()):
            entry = self._entries.pop(digest)
            log.info("model_dropped", model=entry.manifest.name, digest=digest[:12])
            if entry.scope is not None:
                entry.scope.cancel()
            self._nursery.start_soon(self._drop, entry)
        for digest in sorted(wanted.keys() - self._entries.keys()):
            entry = self._entries[digest] = ModelEntry(digest, wanted[digest])
            self._nursery.start_soon(self._prepare, entry)
        self._tell_core()

    def _take_incoming(self) -> None:
        """Take a publication that the owner's tool left here, and its shards. Blocks."""
        try:
            self._take_inbox(self._state.inbox)
            self._take_shards(self._state.incoming)
        except OSError as error:
            # A state directory that became read-only, or another user's file: what runs goes on.
            log.error("publication_not_taken", error=error, remedy="check owner and file system of the state directory")

    def _take_inbox(self, inbox: Path) -> None:
        if not inbox.exists():
            return
        publication = inbox.read_bytes()
        taken = self._signed.publish(publication) or trio.from_thread.run(self._signed.hand_in, publication)
        log.info("publication_handed_in", taken=taken)
        if taken:
            inbox.unlink(missing_ok=True)

    def _take_shards(self, incoming: Path) -> None:
        if not incoming.is_dir():
            return
        for shard in read_catalogue(self._signed.client, self._catalogue).shards():
            source = incoming / shard.sha256
            if source.exists():
                try:
                    self._store.put_file(shard, source)
                    source.unlink()
                except ModelError as error:
                    log.warning("shard_refused", shard=shard.name, error=error)

    # ------------------------------------------------------------ one model

    async def _prepare(self, entry: ModelEntry) -> None:
        """Take a model from missing to ready, trying again while only peers are lacking."""
        pause_s = RETRY_S[0]
        with trio.CancelScope() as entry.scope:
            while True:
                try:
                    async with self._preparing:
                        await self._fetch(entry)
                        await self._check(entry)
                    return
                except ModelRefusedError as error:
                    self._set(entry, "refused", str(error))
                    log.error("model_refused", model=entry.manifest.name, error=error)
                    return
                except ModelError as error:
                    self._set(entry, "missing", str(error))
                    log.warning("model_not_ready", model=entry.manifest.name, error=error, retry_s=pause_s)
                with trio.move_on_after(pause_s):
                    await self._wake.wait()
                pause_s = min(pause_s * 2, RETRY_S[1])

    def _check_state_is_fresh(self, entry: ModelEntry) -> None:
        """Refuse to install what this node never ran while the signed state's time is over; raises ExpiredStateError.

        An old state may name a model that its owner has withdrawn since. What ran here before is no risk more than it
        was, and a device must go on running it while its owner is on holiday, after a restart or a bad block too.
        """
        if self._measurements.has_any(entry.digest):
            return
        if self._signed.status().expired:
            raise ExpiredStateError(
                f"model {entry.manifest.name!r} is new here and not installed: the time of the signed state is over; "
                "let a node with role admit come back, or call 'gridnode grid renew' on it"
            )

    async def _fetch(self, entry: ModelEntry) -> None:
        self._check_state_is_fresh(entry)
        self._set(entry, "fetching")
        shards = entry.manifest.shards
        for shard in shards:
            self._store.pin(shard)
        entry.fetched_bytes = 0

        def progressed(size_bytes: int) -> None:
            entry.fetched_bytes += size_bytes

        await self._fetcher.fetch(shards, on_progress=progressed)
        entry.path = await trio.to_thread.run_sync(self._store.assemble, entry.manifest.shard(entry.manifest.graph))
        entry.fetched_bytes = entry.size_bytes

    async def _check(self, entry: ModelEntry) -> None:
        """Load a model, compare its golden outputs, measure it if that was not done before."""
        self._set(entry, "checking")
        manifest = entry.manifest
        assert entry.path is not None
        await self._executor.load(entry.digest, manifest, entry.path)
        async with self._measuring:
            golden = await trio.to_thread.run_sync(self._read_golden, manifest)
            kept = self._measurements.get(entry.digest)
            if kept is None:
                kept = await profile(self._executor, entry.digest, manifest, golden)
                await trio.to_thread.run_sync(self._measurements.keep, entry.digest, kept)
            elif golden is not None:
                known = kept.outputs_sha256
                found = await check_golden(self._executor, entry.digest, manifest, golden, known=known)
                if found != known:
                    kept = msgspec.structs.replace(kept, outputs_sha256=found)
                    await trio.to_thread.run_sync(self._measurements.keep, entry.digest, kept)
        entry.profile = kept
        log.info("model_ready", model=manifest.name, digest=entry.digest[:12], mean_s=kept.mean_s)
        self._set(entry, "ready")

    def _read_golden(self, manifest: Manifest) -> bytes | None:
        if manifest.golden is None:
            return None
        return self._store.assemble(manifest.shard(manifest.golden.shard)).read_bytes()

    async def _reload(self, entry: ModelEntry) -> None:
        """Load a model that was checked before and evicted since."""
        if entry.path is not None and entry.profile is not None:
            try:
                await self._executor.load(entry.digest, entry.manifest, entry.path)
                entry.state = "ready"
            except (ModelRefusedError, WorkerLostError) as error:
                log.warning("model_not_loaded", model=entry.manifest.name, error=error)
        self._tell_core()

    async def _unload(self, entry: ModelEntry) -> None:
        await self._executor.unload(entry.digest)
        self._tell_core()

    async def _drop(self, entry: ModelEntry) -> None:
        """Forget a model that is not wanted any more; its files go when room is needed."""
        await self._executor.unload(entry.digest)
        for shard in entry.manifest.shards:
            self._store.unpin(shard.sha256)
        self._tell_core()

    async def _follow_changes(self) -> None:
        """Hear of workers that died and came back."""
        async for change in self._executor.changes():
            entry = self._entries.get(change.digest)
            if entry is None:
                continue
            if change.given_up:
                log.error("model_given_up", model=entry.manifest.name, reason=change.reason)
                self._set(entry, "refused", change.reason)
            elif not change.usable:
                log.warning("worker_restarting", model=entry.manifest.name, reason=change.reason)
            self._tell_core()

    def _set(self, entry: ModelEntry, state: str, problem: str = "") -> None:
        entry.state, entry.problem = state, problem
        self._tell_core()

    def _tell_core(self) -> None:
        capabilities = self.capabilities()
        checked = {capability.model for capability in capabilities}
        loaded = frozenset(
            digest for digest in self._executor.loaded() if digest in checked and self._entries[digest].state == "ready"
        )
        self._driver.post(
            ModelChanged(table_digest=table_digest(capabilities), capabilities=capabilities, loaded=loaded)
        )
