"""A trace of the jobs that come in at this node, with what the node is, for the simulator to replay (docs/traces.md).

Owns what is taken note of and when it is written. Off unless `trace.path` is set. Recorded is when a job came, which
models would do, its size, deadline and fate; no input, no result, no client, no name of a stream.

A record is encoded in the very call that ends its job, into a buffer; a thread writes buffers every few seconds. So the
event loop never waits for a disk, and what waits for one is bounded in bytes. A trace is never worth a job: where the
disk is too slow, jobs are left out and counted; where it is full, read-only or gone, an alarm is raised once, the node
goes on, and the recorder looks again every minute. Each new beginning is a new *life* in the file, with a header.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec
import trio

from gridnode.jobtable import Answer
from gridnode.logs import EventLog
from gridnode.servicesample import ServiceSample
from gridnode.tracebuffer import ROOM_BYTES, Piece, TraceBuffer
from gridnode.tracefile import TraceFile, TraceFileError
from gridnode.tracerecords import (
    ANSWERED,
    NOBODY,
    DeviceRecord,
    Header,
    JobRecord,
    LostRecord,
    Measured,
    Way,
)
from scheduler.types import Capability, Job

log = EventLog("trace")

FLUSH_S: Final = 5.0
"""Time between two writes, in seconds: what a crash may lose. A memory card commits about as often by itself."""
FLUSH_BYTES: Final = 256 << 10
"""A buffer this full is written at once."""
DEVICE_S: Final = 60.0
"""Time between two accounts of the node's service times, in seconds."""
RETRY_S: Final = 60.0
"""Time until a file that could not be written is tried again, in seconds."""
LAST_WRITE_S: Final = 3.0
"""Longest time that the last write may hold up the end of the daemon, in seconds."""
MODELS_MAX: Final = 64
"""Models of an account; a node offers a handful."""
ACCOUNT_MAX_BYTES: Final = MODELS_MAX * 512
"""Of an account, at most: 33 quantiles and a dozen other numbers per model."""
WAYS_MAX: Final = 64
"""Peers of an account; twice the active set."""
_STREAM_BYTES: Final = 6
_TROUBLES: Final = (OSError, TraceFileError)


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What a node is at one moment."""

    slots: int
    cpu_share: float
    threads: int
    slow_down: float
    models: Sequence[Capability]
    """Those that it offers."""
    rtts_s: Mapping[str, float]
    """Round trip to each peer, by PeerID."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True):
    """How a recorder fares."""

    jobs: int
    """Handed to the disk."""
    lost: int
    """Not recorded."""
    is_failing: bool


class Recorder:
    """Writes the trace.

    Parameters
    ----------
    file : TraceFile
        Where to.
    limit_bytes : int
        Of one file; there are two.
    header : Header
        Of this daemon; its times are put in anew at each beginning.
    machine : callable
        Tells what the node is now.
    model_name, node_name : callable
        Return the name for a model's digest, for a PeerID.
    grid_s : callable
        The grid's clock, in seconds since 1970.
    secret : bytes
        Veils the names of streams; of no use to anybody afterwards.
    clock : callable
        Monotonic seconds: that of the jobs' arrival times.
    """

    def __init__(
        self,
        file: TraceFile,
        *,
        limit_bytes: int,
        header: Header,
        machine: Callable[[], Machine],
        model_name: Callable[[str], str],
        node_name: Callable[[str], str],
        grid_s: Callable[[], float],
        secret: bytes,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._file = file
        self._limit_bytes = limit_bytes
        self._header = header
        self._node = header.node
        self._machine = machine
        self._grid_s = grid_s
        self._secret = secret
        self._clock = clock
        self._buffer = TraceBuffer(limit_bytes=limit_bytes, model_name=model_name, node_name=node_name)
        self._zero_s = 0.0
        self._samples: dict[str, ServiceSample] = {}
        self._told: bytes = b""
        """The last account, to leave out one that says the same."""
        self._tell_at_s = 0.0
        self._wake = trio.Event()
        self._is_open = False
        self._is_closing = False
        self._is_failing = False
        self._retry_at_s = -1.0
        self._jobs = 0
        self._lost = 0
        self._untold = 0
        """Of the lost, those that the file does not know of."""

    def statistics(self) -> Recorded:
        """Return the numbers so far."""
        return Recorded(jobs=self._jobs, lost=self._lost, is_failing=self._is_failing)

    # ------------------------------------------------------------ what ends at this node

    def answered(self, job: Job, answer: Answer, *, now_s: float) -> None:
        """Take note of an answer: of its service time where it was made here, of its job where that came in here."""
        if answer.node == self._node:
            self.executed(answer.model, answer.service_s)
        if job.entry == self._node and not job.hops:
            self._add(
                job,
                now_s=now_s,
                outcome=ANSWERED,
                output_bytes=len(answer.body) + len(answer.payload),
                waiting_s=answer.waiting_s,
                service_s=answer.service_s,
                hops=answer.hops,
                executor=answer.node,
                model=answer.model,
            )

    def ran_by_lane(self, job: Job, *, output_bytes: int, service_s: float, transfer_s: float, executor: str) -> None:
        """Take note of a job that ran by a lane as soon as it came, here or at a peer."""
        model, own = job.models[0], executor == self._node
        if own:
            self.executed(model, service_s)
        self._add(
            job,
            now_s=job.arrival_s + service_s + transfer_s,
            outcome=ANSWERED,
            output_bytes=output_bytes,
            service_s=service_s,
            hops=0 if own else 1,
            executor=executor,
            model=model,
        )

    def ended(self, job: Job, reason: str, *, now_s: float) -> None:
        """Take note of a job without an answer."""
        if job.entry == self._node and not job.hops:
            self._add(job, now_s=now_s, outcome=reason)

    def executed(self, model: str, service_s: float) -> None:
        """Take note of what a run here took, whosever it was."""
        sample = self._samples.get(model)
        if sample is None:
            if len(self._samples) >= MODELS_MAX:
                return
            sample = self._samples[model] = ServiceSample(seed=model)
        sample.add(service_s)

    def _add(
        self,
        job: Job,
        *,
        now_s: float,
        outcome: str,
        output_bytes: int = 0,
        waiting_s: float = 0.0,
        service_s: float = 0.0,
        hops: int = 0,
        executor: str = "",
        model: str = "",
    ) -> None:
        buffer = self._buffer
        if not self._has_room():
            self._lost += 1
            self._untold += 1
            return
        sojourn_s = now_s - job.arrival_s
        budget_s = job.deadline_s - job.arrival_s
        record = JobRecord(
            at_s=job.arrival_s - self._zero_s,
            grid_s=self._grid_s() - sojourn_s,
            models=tuple([buffer.model(each) for each in job.models]),
            priority=job.priority,
            budget_s=budget_s if budget_s < math.inf else None,
            input_bytes=job.input_bytes,
            output_bytes=output_bytes,
            stream=self._veiled(job) if job.stream else "",
            newest_wins=job.newest_wins,
            sojourn_s=sojourn_s,
            waiting_s=waiting_s,
            service_s=service_s,
            hops=hops,
            executor=buffer.node(executor) if executor else NOBODY,
            model=buffer.model(model) if model else NOBODY,
            outcome=outcome,
        )
        if buffer.add_job(record) >= FLUSH_BYTES:
            self._wake.set()

    def _has_room(self) -> bool:
        """Return whether one more job may be noted; begins another file where this one is full."""
        if not self._buffer.is_on or self._buffer.is_full:
            return False
        if not self._buffer.fits(ROOM_BYTES):
            self._begin(is_first=True)
        return True

    def _veiled(self, job: Job) -> str:
        text = f"{job.client}/{job.stream}".encode()
        return hashlib.blake2b(text, digest_size=_STREAM_BYTES, key=self._secret).hexdigest()

    # ------------------------------------------------------------ lives

    def _begin(self, *, is_first: bool) -> None:
        """Begin a life: all that follows can be read without what came before."""
        self._zero_s = self._clock()
        header = msgspec.structs.replace(self._header, grid_s=self._grid_s(), clock_s=self._zero_s)
        self._buffer.begin(header, is_first=is_first)
        self._told = b""
        self._tell_device()

    def _tell_device(self) -> None:
        """Write what the node is, unless nothing has changed since the last time."""
        now_s = self._clock()
        self._tell_at_s = now_s + DEVICE_S
        machine, buffer = self._machine(), self._buffer
        models = tuple([self._measured(each) for each in machine.models[:MODELS_MAX]])
        nearest = sorted(machine.rtts_s.items(), key=lambda item: (item[1], item[0]))[:WAYS_MAX]
        record = DeviceRecord(
            at_s=now_s - self._zero_s,
            slots=machine.slots,
            cpu_share=machine.cpu_share,
            threads=machine.threads,
            slow_down=machine.slow_down,
            models=models,
            ways=tuple([Way(node=buffer.node(node), rtt_s=rtt_s) for node, rtt_s in nearest]),
        )
        told = msgspec.msgpack.encode(msgspec.structs.replace(record, at_s=0.0, slow_down=1.0))
        if told == self._told:
            return
        self._told = told
        buffer.add(record)

    def _measured(self, capability: Capability) -> Measured:
        sample = self._samples.get(capability.model)
        return Measured(
            model=self._buffer.model(capability.model),
            mean_s=capability.mean_s,
            p95_s=capability.p95_s,
            memory_bytes=capability.memory_bytes,
            load_s=capability.load_s,
            max_batch=capability.max_batch,
            runs=sample.count if sample else 0,
            total_s=sample.total_s if sample else 0.0,
            quantiles_s=sample.quantiles_s() if sample else (),
        )

    def _tell_losses(self) -> None:
        if self._untold and self._has_room():
            log.warning("trace_jobs_left_out", jobs=self._untold, remedy="a faster or larger disk for trace.path")
            record = LostRecord(at_s=self._clock() - self._zero_s, jobs=self._untold)
            self._buffer.add(record)
            self._untold = 0

    # ------------------------------------------------------------ the disk

    async def serve(self) -> None:
        """Write until cancelled, and then what is left, for a limited time."""
        hold = trio.CancelScope(shield=True)  # its deadline is set when the end begins
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_on, hold)
            try:
                await trio.sleep_forever()
            finally:
                self._is_closing = True
                self._wake.set()
                hold.deadline = trio.current_time() + LAST_WRITE_S

    async def _write_on(self, hold: trio.CancelScope) -> None:
        with hold:
            while True:
                is_last = self._is_closing
                if is_last and self._buffer.is_on:
                    self._tell_device_again()
                await self._attend()
                if is_last:
                    break
                with trio.move_on_after(FLUSH_S):
                    await self._wake.wait()
                self._wake = trio.Event()
            await trio.to_thread.run_sync(self._file.close, abandon_on_cancel=True)
        if hold.cancelled_caught:
            log.warning("trace_cut_short", limit_s=LAST_WRITE_S, remedy="a faster disk for trace.path")

    async def _attend(self) -> None:
        """Open the file where it is not, and write what waits."""
        try:
            if not self._is_open and not await self._open():
                return
            if self._clock() >= self._tell_at_s:
                self._tell_device_again()
            await self._write_all()
            self._tell_losses()
            await self._write_all()
        except _TROUBLES as error:
            self._fail(error)

    def _tell_device_again(self) -> None:
        """Write an account of the node, in the next file where this one may have no room for it."""
        if self._buffer.fits(min(ROOM_BYTES + ACCOUNT_MAX_BYTES, self._limit_bytes // 4)):
            self._tell_device()
        else:
            self._begin(is_first=True)

    async def _open(self) -> bool:
        """Begin a life in the file, or in the next; returns False while it is not yet time to try again."""
        if self._clock() < self._retry_at_s:
            return False
        self._begin(is_first=False)
        self._buffer.opened(await trio.to_thread.run_sync(self._file.open, abandon_on_cancel=True))
        self._is_open = True
        if self._is_failing:
            self._is_failing = False
            log.info("trace_resumed")
        return True

    async def _write_all(self) -> None:
        while (piece := self._buffer.take()) is not None:
            await trio.to_thread.run_sync(self._put, piece, abandon_on_cancel=True)
            self._buffer.written()
            self._jobs += piece.jobs
            if piece.is_first:
                log.info("trace_rotated", limit_bytes=self._limit_bytes)

    def _put(self, piece: Piece) -> None:
        """Write, in a thread."""
        if piece.is_first:
            self._file.rotate()
        self._file.append(piece.data)

    def _fail(self, error: OSError | TraceFileError) -> None:
        """Go on without a trace for a while."""
        jobs = self._buffer.drop()
        self._lost += jobs
        self._untold += jobs
        self._is_open = False
        self._retry_at_s = self._clock() + RETRY_S
        if not self._is_failing:
            self._is_failing = True
            log.error("trace_failed", error=error, remedy="make room, or give another trace.path", retry_s=RETRY_S)
