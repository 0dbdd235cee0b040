"""One worker process as the daemon sees it: start, requests and answers, end.

Owns the daemon's ends of the sockets and the decision to kill. Slots, deadlines and what becomes of a run are
models.workerruns's. Knows nothing of restarts (models.runtime) nor of what bodies and payloads mean.
"""

import contextlib
import functools
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec
import trio

from models import cpushare
from models import workerprotocol as protocol
from models.executor import ModelRefusedError, OnEnd, RunOutcome, RunRequest, WorkerLostError
from models.lanes import WorkerLanes
from models.manifest import MANIFEST_MAX_BYTES, Manifest, canonical_bytes
from models.mappings import Loans
from models.segments import Segment
from models.tensors import BadInputError, InferenceError
from models.workerruns import Run, WorkerRuns, deadline_error
from models.workerstart import WorkerSettings, copy_log, start_worker

log = logging.getLogger("gridnode.models")

END_MAX_S: Final = 10.0
"""Longest wait for a killed process to be gone; only a process stuck in a driver takes longer."""
COPY_INLINE_MAX_BYTES: Final = 4 * 1024 * 1024
"""Largest payload copied in the event loop, in about 1 ms; larger ones are copied in a thread."""
LAST_BREATH_MAX_S: Final = 1.0
"""Longest wait for a worker that has closed its socket to end by itself; a large one takes a while to be unmapped."""
LOG_TAIL_MAX_S: Final = 1.0
"""Longest wait for the last words of a worker that has ended."""
MEMORY_FACTOR: Final = 2
"""Private memory a worker may take is this many times the manifest's peak, and MEMORY_EXTRA_BYTES: the publisher
measured on another machine, and address space is taken in larger steps than memory."""
MEMORY_EXTRA_BYTES: Final = 256 * 1024 * 1024


class NotBegunError(WorkerLostError):
    """The worker was lost while a run waited for a slot."""


class WorkerProcess:
    """A worker, from its start to its end. Use serve() once; run() from any number of tasks meanwhile.

    Parameters
    ----------
    graph : int
        Descriptor of the ONNX file; stays the caller's.
    manifest : Manifest
        Of the model.
    settings : WorkerSettings
        The same for all workers.

    Raises
    ------
    WorkerLostError
        No process could be started: the machine is out of processes, memory or descriptors.
    """

    def __init__(self, graph: int, manifest: Manifest, settings: WorkerSettings) -> None:
        self._manifest = manifest
        self._settings = settings
        try:
            ends = start_worker(graph, settings)
        except OSError as error:
            raise WorkerLostError(f"no worker for model {manifest.name!r} could be started: {error}") from error
        self._process = ends.process
        self._requests: socket.socket = ends.requests
        self._control = ends.control
        self._output = ends.output
        self._memory = ends.memory
        self._inline_bytes_max = min(COPY_INLINE_MAX_BYTES, ends.memory.region_bytes)
        self._loans = Loans(lend=self._lend, end=self._end_loan)
        self.lanes = WorkerLanes(self._tell, self._loans)
        self.runs = WorkerRuns(manifest.name, settings.slots, ends.memory, loans=self._loans, cancel=self._cancel)
        self.pid = self._process.pid
        self.is_over = False
        """Whether the process has ended or is about to; no run is taken any more."""
        self.ready: protocol.Ready | None = None
        """How the model was loaded; None before that."""
        self.end_reason = "it was unloaded"
        """Why the worker ended; means nothing while it runs."""

    async def serve(self, on_ready: Callable[[], None]) -> None:
        """Load the model, tell that it is ready, and serve runs until the process ends.

        Whatever way this is left, the process is gone and waited for, and all runs have ended.

        Raises
        ------
        ModelRefusedError
            The runtime does not take the model, or does not come to an end with it.
        WorkerLostError
            The process ended while it loaded the model.
        """
        async with self._output, trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(copy_log, self._output, pid=self.pid, model=self._manifest.name))
            try:
                fault = await self._work(on_ready)
            finally:
                await self._end()
            # The log's end comes with the process's; it must not keep us if it does not.
            nursery.cancel_scope.deadline = trio.current_time() + LOG_TAIL_MAX_S
        if fault is not None:
            raise fault

    async def _work(self, on_ready: Callable[[], None]) -> ModelRefusedError | WorkerLostError | None:
        """Load, then take answers to the process's end."""
        fault = await self._load()
        if fault is not None:
            return fault
        async with trio.open_nursery() as nursery:
            if self._settings.cpu_share < 1:
                threads = max(self._settings.threads, self._settings.slots)
                share = cpushare.limit(self.pid, share=self._settings.cpu_share, threads=threads)
                self.runs.share = share
                nursery.start_soon(share.serve)
            nursery.start_soon(self._keep_time, self.runs.keep_time, nursery.cancel_scope)
            nursery.start_soon(self._keep_time, self.lanes.keep_time, nursery.cancel_scope)
            on_ready()
            await self._read_answers()
            nursery.cancel_scope.cancel()
        return None

    async def _keep_time(self, keep: Callable[[], Awaitable[None]], life: trio.CancelScope) -> None:
        """See to deadlines, and end the worker when it does not."""
        await keep()
        self.end_reason = "it kept a run too long after the deadline and was killed"
        life.cancel()

    def begin(self, request: RunRequest, on_end: OnEnd) -> Callable[[], None] | None:
        """Start a request in this call; see models.executor.Executor.begin."""
        now_s = trio.current_time()
        if self.is_over or request.deadline_s <= now_s:
            return None
        slot = self.runs.take_nowait()
        if slot is None:
            return None
        run = self.runs.open(slot, request, on_end=on_end)
        if self._hand_over(run) and self._send(run, now_s=now_s):
            return functools.partial(self.runs.abandon, run)
        self.runs.withdraw(run)
        return None

    def forget(self, segment: int) -> None:
        """Have the worker let go of a program's memory of that number."""
        if not self.is_over:
            self._loans.forget(segment)

    async def run(
        self, requests: Sequence[RunRequest], on_started: Callable[[], None] | None
    ) -> list[RunOutcome | InferenceError]:
        """Run requests; see models.executor.Executor.run.

        Raises
        ------
        NotBegunError
            The worker was lost before it got the first request: another may have them all.
        WorkerLostError
            It was lost later.
        """
        outcomes = [await self._run_one(requests[0], on_started)]
        try:
            for request in requests[1:]:
                outcomes.append(await self._run_one(request, None))
        except NotBegunError:
            raise self._lost() from None
        return outcomes

    async def _run_one(self, request: RunRequest, on_started: Callable[[], None] | None) -> RunOutcome | InferenceError:
        """Take a slot, hand the request over, wait for its answer or its deadline."""
        size = memoryview(request.payload).nbytes
        if size > self._memory.region_bytes:
            self.runs.errors += 1
            return BadInputError(f"payload has {size} bytes, this node takes {self._memory.region_bytes}; shrink it")
        if request.deadline_s <= trio.current_time():
            self.runs.terminated += 1
            return deadline_error()
        with trio.CancelScope(deadline=request.deadline_s) as patience:
            try:
                slot = None if self.is_over else await self.runs.take()
            except trio.Cancelled:
                self.runs.terminated += 1
                raise
        if patience.cancelled_caught:
            return deadline_error()
        if slot is None or self.is_over:
            raise NotBegunError(str(self._lost()))
        return await self._run_in(slot, request, on_started)

    async def _run_in(
        self, slot: int, request: RunRequest, on_started: Callable[[], None] | None
    ) -> RunOutcome | InferenceError:
        """Use a slot for one request."""
        ended = trio.Event()
        outcomes: list[RunOutcome | InferenceError | WorkerLostError] = []

        def on_end(outcome: RunOutcome | InferenceError | WorkerLostError) -> None:
            outcomes.append(outcome)
            ended.set()

        run = self.runs.open(slot, request, on_end=on_end)
        try:
            if on_started is not None:
                on_started()
            if not self._hand_over(run):
                await self._fill_in_thread(run)
            with contextlib.suppress(trio.ClosedResourceError):  # the worker is gone, the run has ended
                while not run.has_ended and not self._send(run, now_s=trio.current_time()):
                    await trio.lowlevel.wait_writable(self._requests)
            await ended.wait()
        finally:
            self.runs.abandon(run)
        [outcome] = outcomes
        if isinstance(outcome, WorkerLostError):
            raise outcome
        return outcome

    def _hand_over(self, run: Run) -> bool:
        """Let the worker have a payload, where it lies or as a copy; False where copying would take too long."""
        if self.runs.lend(run):
            return True
        if run.payload_bytes > self._inline_bytes_max:
            return False
        self.runs.fill(run)
        return True

    async def _fill_in_thread(self, run: Run) -> None:
        run.is_copying = True
        try:
            await trio.to_thread.run_sync(self.runs.fill, run)
        finally:
            self.runs.copied(run)

    def _send(self, run: Run, *, now_s: float) -> bool:
        """Send a run's order; False while the socket takes no more."""
        request = run.request
        order = protocol.RunOrder(
            run=run.number,
            slot=run.slot,
            body=request.body,
            payload_bytes=run.payload_bytes,
            segment=run.segment,
            offset=request.place.offset if run.segment and request.place is not None else 0,
        )
        # The reader is about to see that a worker is gone, and ends all runs.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            try:
                self._requests.send(protocol.encode(order))
            except BlockingIOError:
                return False
        self.runs.sent(run, now_s=now_s)
        return True

    def _cancel(self, number: int) -> None:
        # A worker that does not read its cancellations is judged by its grace like any other.
        if not self._tell(protocol.CancelOrder(run=number)):
            log.debug("cancel_unsent pid=%d run=%d", self.pid, number)

    def _lend(self, segment: Segment) -> bool:
        order = protocol.MapOrder(segment=segment.number, size_bytes=segment.size_bytes)
        return self._tell(order, segment.descriptor)

    def _end_loan(self, number: int) -> bool:
        return self._tell(protocol.UnmapOrder(segment=number))

    def _tell(self, order: protocol.ControlOrder, *descriptors: int) -> bool:
        """Send a control order; returns whether the socket took it."""
        try:
            socket.send_fds(self._control, [protocol.encode(order)], descriptors)
        except OSError:
            return False
        return True

    def _lost(self) -> WorkerLostError:
        return WorkerLostError(f"worker of model {self._manifest.name!r} was lost: {self.end_reason}")

    async def _load(self) -> ModelRefusedError | WorkerLostError | None:
        """Have the model loaded; returns what went wrong."""
        manifest = canonical_bytes(self._manifest)
        assert len(manifest) <= min(MANIFEST_MAX_BYTES, self._memory.region_bytes)
        self._memory.input(0)[: len(manifest)] = manifest
        order = protocol.LoadOrder(
            manifest_bytes=len(manifest),
            threads=self._settings.threads,
            providers=self._settings.providers,
            slots=self._settings.slots,
            memory_bytes=MEMORY_FACTOR * self._manifest.peak_memory_bytes + MEMORY_EXTRA_BYTES,
            empty_folder=self._settings.empty_folder,
        )
        answer: protocol.Answer | None = None
        with trio.move_on_after(self._settings.load_max_s) as patience:
            try:
                self._requests.send(protocol.encode(order))
                answer = await self._receive()
            except OSError:
                pass
        name = self._manifest.name
        if patience.cancelled_caught:
            return ModelRefusedError(f"model {name!r} was not loaded within {self._settings.load_max_s:g} s")
        if isinstance(answer, protocol.LoadFailed):
            return ModelRefusedError(f"model {name!r} does not load: {answer.reason}")
        if not isinstance(answer, protocol.Ready):
            return WorkerLostError(f"worker of model {name!r} died while loading it; its last words are in the log")
        self.ready = answer
        self.runs.free_all()
        return None

    async def _receive(self) -> protocol.Answer | None:
        """Receive one record; None where the worker is gone or talks nonsense."""
        while True:
            await trio.lowlevel.wait_readable(self._requests)
            with contextlib.suppress(BlockingIOError):
                return self._receive_nowait()

    def _receive_nowait(self) -> protocol.Answer | None:
        """Receive one record as _receive does; raises BlockingIOError where there is none."""
        try:
            packet = self._requests.recv(protocol.PACKET_MAX_BYTES)
        except BlockingIOError:
            raise
        except OSError:
            return None
        if not packet:
            return None
        try:
            return protocol.decode_answer(packet)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            log.error("worker_talked_nonsense pid=%d error=%r", self.pid, str(error))
            return None

    async def _read_answers(self) -> None:
        """Take answers until the process ends or talks nonsense."""
        while True:
            await trio.lowlevel.wait_readable(self._requests)
            try:
                answer = self._receive_nowait()
            except BlockingIOError:
                continue
            if answer is None:
                break
            if not (self.runs.take_answer(answer) if isinstance(answer, protocol.Done) else await self._fail(answer)):
                self.end_reason = "it broke the protocol and was killed"
                return
        # Its sockets close a moment before it has ended: let it tell its status by itself.
        self.end_reason = "it closed its socket and was killed"
        with trio.move_on_after(LAST_BREATH_MAX_S):
            status = await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
            self.end_reason = f"it ended by {signal.Signals(-status).name}" if status < 0 else "it gave up by itself"

    async def _fail(self, answer: protocol.Answer) -> bool:
        """Deal with a record that is no result; returns whether it made sense."""
        if isinstance(answer, protocol.LaneBegun | protocol.LaneEnded):
            return self.lanes.take_word(answer)
        if not isinstance(answer, protocol.Failed):
            return False
        if answer.kind != "unmapped":
            return self.runs.take_answer(answer)
        run = self.runs.reclaim(answer.run)
        if run is None:
            return False
        log.warning("segment_refused pid=%d reason=%r", self.pid, answer.reason)
        if run.has_ended:
            return self.runs.take_answer(answer)
        # As long as the payload may be: this happens once per program and worker, if ever.
        self.runs.fill(run)
        while not self._send(run, now_s=trio.current_time()):
            await trio.lowlevel.wait_writable(self._requests)
        return True

    async def _end(self) -> None:
        """Kill, wait for, and let go of everything; all runs end as lost."""
        self.is_over = True
        # Does nothing to a process that was waited for.
        self._process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + END_MAX_S):
            await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
        trio.lowlevel.notify_closing(self._requests)
        self._requests.close()
        self._control.close()
        self.runs.close(self._lost())
        self.lanes.lose()
        if self.runs.share is not None:
            self.runs.share.close()
