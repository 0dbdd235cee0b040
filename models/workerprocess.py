"""One worker process as the daemon sees it: start, runs, deadlines, end.

Owns the daemon's ends of the sockets and of the shared memory, the slots, and the decision to kill. Knows nothing
of restarts (models.runtime) nor of what bodies and payloads mean.

A slot belongs to the worker from the order until its answer, whatever becomes of the caller: at the deadline, or
when the caller is cancelled, the run is *abandoned*: the worker is asked to terminate it, the answer is thrown away
and frees the slot. Only a worker that keeps an abandoned run beyond its grace is killed, so one client's tiny
deadlines cannot hurt others.
"""

import functools
import itertools
import logging
import math
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import trio

from models import cpushare
from models import workerprotocol as protocol
from models.executor import ModelRefusedError, RunDeadlineError, RunOutcome, RunRequest, WorkerLostError
from models.manifest import MANIFEST_MAX_BYTES, Manifest, canonical_bytes
from models.tensors import BadInputError, InferenceError
from models.workerstart import WorkerSettings, copy_log, start_worker

log = logging.getLogger("gridnode.models")

GRACE_MIN_S: Final = 2.0
"""Least time a worker gets to let go of an abandoned run."""
GRACE_FACTOR: Final = 10
"""Times the 95th percentile of recent service times it gets: runs end between two operators, so slow models and
slow boards need longer."""
SERVICE_TIMES_KEPT: Final = 64
"""Recent service times for that percentile."""
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


class _Run:
    """A request in the worker's hands."""

    def __init__(self, slot: int, payload_bytes: int) -> None:
        self.slot = slot
        self.payload_bytes = payload_bytes
        self.is_sent = False
        self.sent_s = 0.0
        self.answered_s = 0.0
        self.answer: protocol.Done | protocol.Failed | None = None
        self.over = trio.Event()
        self.kill_at_s = math.inf
        """When the worker is killed for not answering; set once the run is abandoned."""


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
        self._requests = ends.requests
        self._control = ends.control
        self._output = ends.output
        self._memory = ends.memory
        self._free_slots, self._take_slots = trio.open_memory_channel[int](settings.slots)
        self._numbers = itertools.count()
        self._runs: dict[int, _Run] = {}
        self._patience = trio.CancelScope()
        self._service_s: deque[float] = deque(maxlen=SERVICE_TIMES_KEPT)
        self._copying = 0
        self._share: cpushare.CpuShare | None = None
        self.pid = self._process.pid
        self.is_over = False
        """Whether the process has ended or is about to; no run is taken any more."""
        self.ready: protocol.Ready | None = None
        """How the model was loaded; None before that."""
        self.runs = 0
        self.errors = 0
        self.terminated = 0
        self.end_reason = "it was unloaded"
        """Why the worker ended; means nothing while it runs."""

    @property
    def running(self) -> int:
        """Runs in the worker's hands, abandoned ones too."""
        return len(self._runs)

    @property
    def waiting(self) -> int:
        """Runs that wait for a slot."""
        return self._take_slots.statistics().tasks_waiting_receive

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
                self._share = cpushare.limit(self.pid, share=self._settings.cpu_share, threads=self._settings.threads)
                nursery.start_soon(self._share.serve)
            on_ready()
            await self._read_answers()
            nursery.cancel_scope.cancel()
        return None

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
            self.errors += 1
            return BadInputError(f"payload has {size} bytes, this node takes {self._memory.region_bytes}; shrink it")
        if request.deadline_s <= trio.current_time():
            self.terminated += 1
            return _deadline_error()
        with trio.CancelScope(deadline=request.deadline_s) as patience:
            try:
                return await self._run_in(await self._wait_slot(), size, request, on_started)
            except trio.Cancelled:
                self.terminated += 1
                raise
        assert patience.cancelled_caught
        return _deadline_error()

    async def _run_in(
        self, slot: int, size: int, request: RunRequest, on_started: Callable[[], None] | None
    ) -> RunOutcome | InferenceError:
        """Use a slot for one request."""
        run = _Run(slot, size)
        number = next(self._numbers)
        self._runs[number] = run
        try:
            if on_started is not None:
                on_started()
            await self._hand_over(number, run, request)
            await run.over.wait()
            if run.answer is None:
                raise self._lost()
            return self._outcome(run, run.answer)
        finally:
            self._let_go(number, run)

    async def _wait_slot(self) -> int:
        """Take a free slot, in turn."""
        if self.is_over:
            raise NotBegunError(str(self._lost()))
        try:
            try:
                return self._take_slots.receive_nowait()
            except trio.WouldBlock:
                return await self._take_slots.receive()
        except trio.EndOfChannel:
            raise NotBegunError(str(self._lost())) from None

    def _lost(self) -> WorkerLostError:
        return WorkerLostError(f"worker of model {self._manifest.name!r} was lost: {self.end_reason}")

    async def _hand_over(self, number: int, run: _Run, request: RunRequest) -> None:
        """Copy the payload into the slot and send the order."""
        if run.payload_bytes <= COPY_INLINE_MAX_BYTES:
            self._copy_in(run, request)
        else:
            self._copying += 1
            try:
                await trio.to_thread.run_sync(self._copy_in, run, request)
            finally:
                self._copying -= 1
                self._unmap()
        if self._share is not None:
            self._share.set_busy(True)
        order = protocol.RunOrder(run=number, slot=run.slot, body=request.body, payload_bytes=run.payload_bytes)
        packet = protocol.encode(order)
        run.is_sent = True
        run.sent_s = trio.current_time()
        while True:
            try:
                # Past trio's own send: it always yields to other tasks once, which costs a turn of the loop.
                os.write(self._requests.fileno(), packet)
                return
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._requests)
            except OSError:
                # The worker is gone; the reader is about to see it too and ends all runs.
                return

    def _copy_in(self, run: _Run, request: RunRequest) -> None:
        self._memory.input(run.slot)[: run.payload_bytes] = memoryview(request.payload).cast("B")

    def _unmap(self) -> None:
        """Let go of the memory once the worker has ended and no thread writes to it any more."""
        if self.is_over and not self._copying:
            self._memory.close()

    def _outcome(self, run: _Run, answer: protocol.Done | protocol.Failed) -> RunOutcome | InferenceError:
        """Turn the worker's answer into the caller's."""
        if isinstance(answer, protocol.Done):
            self.runs += 1
            payload = bytearray(self._memory.output(run.slot)[: answer.payload_bytes])
            return RunOutcome(body=answer.body, payload=payload, service_s=self._spent_s(run, answer))
        self.errors += 1
        return BadInputError(answer.reason) if answer.kind == "input" else InferenceError(answer.reason)

    def _spent_s(self, run: _Run, answer: protocol.Done) -> float:
        """Return the service time of a run.

        A worker with a share may be stopped before it takes a request up, and cannot see that by its own clock.
        """
        if self._share is None:
            return answer.service_s
        return max(answer.service_s, run.answered_s - run.sent_s)

    def _let_go(self, number: int, run: _Run) -> None:
        """Free the slot of a run that is over, or abandon one that is not."""
        if run.answer is not None or self.is_over or not run.is_sent:
            self._free(number, run)
            return
        try:
            self._control.send(protocol.encode(protocol.CancelOrder(run=number)))
        except OSError:
            # A worker that does not read its cancellations is judged by its grace like any other.
            log.debug("cancel_unsent pid=%d run=%d", self.pid, number)
        run.kill_at_s = trio.current_time() + self._grace_s()
        self._patience.deadline = min(self._patience.deadline, run.kill_at_s)

    def _free(self, number: int, run: _Run) -> None:
        """Give a slot back."""
        del self._runs[number]
        if self.is_over:
            return
        output_bytes = run.answer.payload_bytes if isinstance(run.answer, protocol.Done) else 0
        self._memory.release(run.slot, input_bytes=run.payload_bytes, output_bytes=output_bytes)
        self._free_slots.send_nowait(run.slot)
        if self._share is not None and not self._runs:
            self._share.set_busy(False)

    def _grace_s(self) -> float:
        """Return how long the worker may keep an abandoned run."""
        if not self._service_s:
            return GRACE_MIN_S
        times = sorted(self._service_s)
        return max(GRACE_MIN_S, GRACE_FACTOR * times[min(len(times) - 1, int(0.95 * len(times)))])

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
                await self._requests.send(protocol.encode(order))
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
        for slot in range(self._settings.slots):
            self._free_slots.send_nowait(slot)
        return None

    async def _receive(self) -> protocol.Answer | None:
        """Receive one record; None where the worker is gone or talks nonsense."""
        try:
            packet = await self._requests.recv(protocol.PACKET_MAX_BYTES)
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
        """Take answers until the process ends, talks nonsense or keeps an abandoned run too long."""
        with self._patience:
            while (answer := await self._receive()) is not None:
                if not isinstance(answer, protocol.Done | protocol.Failed) or not self._take_answer(answer):
                    self.end_reason = "it broke the protocol and was killed"
                    return
            # Its sockets close a moment before it has ended: let it tell its status by itself.
            self.end_reason = "it closed its socket and was killed"
            with trio.move_on_after(LAST_BREATH_MAX_S):
                status = await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
                self.end_reason = (
                    f"it ended by {signal.Signals(-status).name}" if status < 0 else "it gave up by itself"
                )
            return
        self.end_reason = "it kept a run too long after the deadline and was killed"

    def _take_answer(self, answer: protocol.Done | protocol.Failed) -> bool:
        """Note an answer; returns whether it made sense."""
        run = self._runs.get(answer.run)
        if run is None or run.answer is not None or not run.is_sent:
            return False
        if isinstance(answer, protocol.Done) and answer.payload_bytes > self._memory.region_bytes:
            return False
        run.answer = answer
        run.answered_s = trio.current_time()
        self._service_s.append(answer.service_s)
        if run.kill_at_s == math.inf:
            run.over.set()
        else:
            self._free(answer.run, run)
            self._patience.deadline = min((other.kill_at_s for other in self._runs.values()), default=math.inf)
        return True

    async def _end(self) -> None:
        """Kill, wait for, and let go of everything; all runs end as lost."""
        self.is_over = True
        self._free_slots.close()
        # Does nothing to a process that was waited for.
        self._process.kill()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + END_MAX_S):
            await trio.to_thread.run_sync(self._process.wait, abandon_on_cancel=True)
        self._requests.close()
        self._control.close()
        for number, run in list(self._runs.items()):
            if run.kill_at_s < math.inf:
                del self._runs[number]
            run.over.set()
        self._unmap()
        if self._share is not None:
            self._share.close()


def _deadline_error() -> RunDeadlineError:
    return RunDeadlineError("the deadline passed before the result was there; allow more time")
