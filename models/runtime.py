"""Running models: one worker process per loaded model, supervised.

Owns the life of workers: check of the graph, start, restart after a loss, giving up, unloading. What one worker does
is in models.workerprocess. Must not know of jobs, peers or signatures: whoever calls load() has verified the files.

A model's worker that is lost is started again after a short, growing, jittered wait; runs that come meanwhile wait
for it. After RuntimeConfig.restarts_max losses within restart_window_s the model is given up.
"""

import contextlib
import logging
import os
import random
import tempfile
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Final

import msgspec
import trio
from msgspec import Meta

from models.admission import PassedGraphs, check_graph, open_graph
from models.executor import (
    ExecutorStatistics,
    ModelChange,
    ModelNotLoadedError,
    ModelRefusedError,
    OnEnd,
    RunDeadlineError,
    RunOutcome,
    RunRequest,
    WorkerLostError,
)
from models.lanes import Lane, OnWord
from models.manifest import Manifest
from models.processmemory import process_memory
from models.segments import Segment
from models.tensors import InferenceError
from models.workerprocess import NotBegunError, WorkerProcess
from models.workerstart import Spare, WorkerSettings

log = logging.getLogger("gridnode.models")

CHANGES_KEPT: Final = 256
"""Changes not read yet; each tells of one model, and the reader asks loaded() anyway."""
BACKOFF_MIN_S: Final = 0.05
"""Wait before the first restart: a single crash should cost little."""
BACKOFF_MAX_S: Final = 10.0


class RuntimeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How models are run on this node."""

    slots: Annotated[int, Meta(ge=1, le=16)] = 1
    """Runs of one model at once."""
    threads: Annotated[int, Meta(ge=1, le=256)] = 1
    """Threads of a run that goes alone; runs that go at once share them."""
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    """Execution providers of this node, best first; a model uses those its manifest names."""
    cpu_share: Annotated[float, Meta(gt=0, le=1)] = 1.0
    """Share of its threads' processors a worker may use, really limited."""
    workers_max: Annotated[int, Meta(ge=1, le=256)] = 32
    """Models loaded at once; each worker takes at least 100 MB of memory."""
    load_max_s: Annotated[float, Meta(gt=0)] = 120.0
    """Longest load, warm-up included; a model that takes longer is refused."""
    restarts_max: Annotated[int, Meta(ge=0)] = 5
    """Losses within the window after which a model is given up."""
    restart_window_s: Annotated[float, Meta(gt=0)] = 60.0


class _Model:
    """A model that was asked for: its files, its worker, its history."""

    def __init__(self, digest: str, manifest: Manifest, graph: int, providers: tuple[str, ...]) -> None:
        self.digest = digest
        self.manifest = manifest
        self.graph = graph
        self.providers = providers
        self.worker: WorkerProcess | None = None
        self.is_ready = False
        self.moved = trio.Event()
        """Set, and replaced, whenever is_ready or is_over changes."""
        self.is_over = False
        self.fault: ModelRefusedError | WorkerLostError | None = None
        """Why it is over; None where it was unloaded."""
        self.scope = trio.CancelScope()
        self.load_s = 0.0
        self.losses_s: deque[float] = deque()
        self.past = (0, 0, 0)
        """Runs, errors and terminated runs of earlier workers."""
        self.restarts = 0

    def move(self, *, is_ready: bool, is_over: bool = False) -> None:
        """Change state and wake whoever waits for it."""
        self.is_ready = is_ready
        self.is_over = self.is_over or is_over
        self.moved.set()
        self.moved = trio.Event()

    @property
    def live_worker(self) -> WorkerProcess | None:
        """The worker that takes runs now; None where there is none."""
        if not self.is_ready or self.worker is None or self.worker.is_over:
            return None
        return self.worker

    async def wait_ready(self) -> WorkerProcess:
        """Wait for a worker that is ready.

        Raises
        ------
        ModelNotLoadedError
            The model is over, now or meanwhile.
        """
        while (worker := self.live_worker) is None:
            if self.is_over:
                raise ModelNotLoadedError(
                    f"model {self.manifest.name!r} is not loaded here: {self.fault or 'unloaded'}"
                )
            await self.moved.wait()
        return worker

    def counts(self) -> tuple[int, int, int]:
        """Return runs, errors and terminated runs of all workers so far."""
        runs, errors, terminated = self.past
        if self.worker is None:
            return self.past
        now = self.worker.runs
        return runs + now.done, errors + now.errors, terminated + now.terminated


class Runtime:
    """Runs models in worker processes; a models.executor.Executor.

    Parameters
    ----------
    config : RuntimeConfig
        How.
    rng : random.Random
        For the jitter of restarts.
    passed : PassedGraphs, optional
        Graphs that were checked before and need no check.
    spare : Spare, optional
        A worker that waits for the first model; stays the caller's to close.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        rng: random.Random,
        *,
        passed: PassedGraphs | None = None,
        spare: Spare | None = None,
    ) -> None:
        self._config = config
        self._rng = rng
        self._passed = passed
        self._spare = spare
        self._models: dict[str, _Model] = {}
        self._changes_in, self._changes_out = trio.open_memory_channel[ModelChange](CHANGES_KEPT)
        self._new_in, self._new_out = trio.open_memory_channel[_Model](0)
        self._empty_folder: str | None = None

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Supervise workers until cancelled; ends with all of them gone."""
        self._empty_folder = tempfile.mkdtemp(prefix="gridnode-empty-")
        try:
            async with trio.open_nursery() as nursery:
                task_status.started()
                async for model in self._new_out:
                    nursery.start_soon(self._keep, model)
        finally:
            folder, self._empty_folder = self._empty_folder, None
            os.rmdir(folder)

    async def load(self, digest: str, manifest: Manifest, graph_path: Path) -> None:
        """Make a model ready to run; see models.executor.Executor.load."""
        model = self._models.get(digest)
        is_first = model is None
        if model is None:
            model = await self._admit(digest, manifest, graph_path)
        try:
            await model.wait_ready()
        except ModelNotLoadedError:
            if model.fault is None:
                raise
            raise model.fault from None
        except trio.Cancelled:
            if is_first and not model.is_ready:
                model.scope.cancel()
            raise

    async def unload(self, digest: str) -> None:
        """Let go of a model; see models.executor.Executor.unload."""
        model = self._models.get(digest)
        if model is None:
            return
        model.scope.cancel()
        model.fault = None
        while not model.is_over:
            await model.moved.wait()

    def begin(self, digest: str, request: RunRequest, on_end: OnEnd) -> Callable[[], None] | None:
        """Start one request in this call; see models.executor.Executor.begin."""
        model = self._models.get(digest)
        worker = None if model is None else model.live_worker
        return None if worker is None else worker.begin(request, on_end)

    async def run(
        self, digest: str, requests: Sequence[RunRequest], *, on_started: Callable[[], None] | None = None
    ) -> list[RunOutcome | InferenceError]:
        """Run requests as one batch; see models.executor.Executor.run."""
        model = self._models.get(digest)
        if model is None:
            raise ModelNotLoadedError(f"model {digest[:12]} is not loaded here")
        last_deadline_s = max(request.deadline_s for request in requests)
        while True:
            worker = model.live_worker
            if worker is None:
                with trio.move_on_at(last_deadline_s):
                    worker = await model.wait_ready()
            if worker is None:
                return [RunDeadlineError("the deadline passed while the model's worker was started anew")] * len(
                    requests
                )
            # A run that only waited in line of a lost worker is taken to the next one: it is not to blame.
            with contextlib.suppress(NotBegunError):
                return await worker.run(requests, on_started)

    def open_lane(self, digest: str, segment: Segment, descriptor: int, on_word: OnWord) -> Lane | None:
        """Open a lane to a model's worker; see models.executor.Executor.open_lane."""
        model = self._models.get(digest)
        worker = None if model is None else model.live_worker
        if worker is None or self._config.cpu_share < 1:
            os.close(descriptor)  # a limited worker is held back by the runs that its daemon knows of
            return None
        return worker.lanes.open(segment, descriptor, on_word)

    def forget_segment(self, segment: Segment) -> None:
        """Have workers let go of a program's memory; see models.executor.Executor.forget_segment."""
        for model in self._models.values():
            if model.worker is not None:
                model.worker.forget(segment.number)

    def loaded(self) -> frozenset[str]:
        """Return the digests of the models that are ready."""
        return frozenset(digest for digest, model in self._models.items() if model.live_worker is not None)

    def changes(self) -> trio.MemoryReceiveChannel[ModelChange]:
        """Return the bounded channel of changes; one reader."""
        return self._changes_out

    def statistics(self) -> tuple[ExecutorStatistics, ...]:
        """Return a snapshot per model, sorted by digest; reads /proc, about 0.1 ms per worker."""
        return tuple(self._statistics(self._models[digest]) for digest in sorted(self._models))

    def _statistics(self, model: _Model) -> ExecutorStatistics:
        worker = model.worker
        pid = worker.pid if worker is not None else 0
        ready = worker.ready if worker is not None else None
        memory, peak = process_memory(pid) if pid else (0, 0)
        runs, errors, terminated = model.counts()
        return ExecutorStatistics(
            digest=model.digest,
            name=model.manifest.name,
            pid=pid,
            memory_bytes=memory,
            memory_bytes_peak=peak,
            load_s=model.load_s,
            slots=self._config.slots,
            running=worker.runs.running if worker is not None else 0,
            waiting=worker.runs.waiting if worker is not None else 0,
            runs=runs,
            errors=errors,
            restarts=model.restarts,
            terminated=terminated,
            confinement=" ".join(ready.reached) if ready is not None else "",
            cpu_share=self._config.cpu_share,
            providers=ready.providers if ready is not None else (),
        )

    async def _admit(self, digest: str, manifest: Manifest, graph_path: Path) -> _Model:
        """Check a model and hand it to the supervisor."""
        assert self._empty_folder is not None, "load() needs serve() to run"
        if len(self._models) >= self._config.workers_max:
            raise ModelRefusedError(
                f"{len(self._models)} models are loaded, at most {self._config.workers_max} may be; unload one"
            )
        allowed = manifest.requirements.providers
        providers = tuple(name for name in self._config.providers if name in allowed)
        if not providers:
            raise ModelRefusedError(
                f"model {manifest.name!r} needs one of {', '.join(allowed)}, this node has "
                f"{', '.join(self._config.providers)}"
            )
        graph = open_graph(graph_path)
        model = self._models[digest] = _Model(digest, manifest, graph, providers)
        try:
            await check_graph(graph, manifest, empty_folder=self._empty_folder, passed=self._passed)
            await self._new_in.send(model)
        except BaseException as error:
            model.fault = error if isinstance(error, ModelRefusedError) else None
            self._forget(model)
            raise
        return model

    async def _keep(self, model: _Model) -> None:
        """Keep a worker for a model until it is unloaded, refused or given up."""
        try:
            with model.scope:
                while await self._live(model):
                    # Full jitter below a doubling bound, so that workers lost together do not return together.
                    bound_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** len(model.losses_s))
                    await trio.sleep(bound_s * self._rng.uniform(0.5, 1.0))
                    model.restarts += 1
        finally:
            self._forget(model)

    async def _live(self, model: _Model) -> bool:
        """Run one worker to its end; returns whether there should be another."""
        assert self._empty_folder is not None
        was_ready = False
        started_s = trio.current_time()

        def on_ready() -> None:
            nonlocal was_ready
            was_ready = True
            model.fault = None
            model.load_s = trio.current_time() - started_s
            log.info("worker_ready pid=%d model=%s load_s=%.3g", worker.pid, model.manifest.name, model.load_s)
            model.move(is_ready=True)
            if model.restarts:
                self._tell(ModelChange(digest=model.digest, usable=True, reason="its worker was started anew"))

        try:
            worker = model.worker = WorkerProcess(model.graph, model.manifest, self._settings(model))
            await worker.serve(on_ready)
        except (ModelRefusedError, WorkerLostError) as fault:
            model.fault = fault
        finally:
            reason = str(model.fault) if model.worker is None or model.fault else model.worker.end_reason
            model.past = model.counts()
            model.worker = None
            model.move(is_ready=False)
        if not was_ready and not model.restarts:
            # Never ran here: whoever called load() is told.
            return False
        return self._note_loss(model, reason)

    def _note_loss(self, model: _Model, reason: str) -> bool:
        """Count a loss; returns whether to try again."""
        now_s = trio.current_time()
        model.losses_s.append(now_s)
        while model.losses_s[0] < now_s - self._config.restart_window_s:
            model.losses_s.popleft()
        given_up = len(model.losses_s) > self._config.restarts_max
        log.warning("worker_lost model=%s given_up=%s reason=%r", model.manifest.name, given_up, reason)
        if given_up and model.fault is None:
            model.fault = WorkerLostError(
                f"worker of model {model.manifest.name!r} was lost {len(model.losses_s)} times within "
                f"{self._config.restart_window_s:g} s, the last time because {reason}"
            )
        self._tell(ModelChange(digest=model.digest, usable=False, given_up=given_up, reason=reason))
        return not given_up

    def _forget(self, model: _Model) -> None:
        """Drop a model that is over."""
        self._models.pop(model.digest, None)
        os.close(model.graph)
        model.move(is_ready=False, is_over=True)

    def _tell(self, change: ModelChange) -> None:
        """Queue a change; when nobody reads, the oldest goes."""
        try:
            self._changes_in.send_nowait(change)
        except trio.WouldBlock:
            self._changes_out.receive_nowait()
            self._changes_in.send_nowait(change)

    def _settings(self, model: _Model) -> WorkerSettings:
        assert self._empty_folder is not None
        return WorkerSettings(
            slots=self._config.slots,
            threads=self._config.threads,
            providers=model.providers,
            cpu_share=self._config.cpu_share,
            load_max_s=self._config.load_max_s,
            empty_folder=self._empty_folder,
            spare=self._spare,
        )
