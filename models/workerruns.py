"""The runs in one worker's hands: who has which slot until when, and when the worker has to go.

Owns the slots with their memory, deadlines and counts. Knows nothing of processes and sockets, which are
models.workerprocess's, nor of what bodies and payloads mean.

A slot belongs to the worker from the order until its answer, whatever becomes of the caller: at the deadline, or
when the caller loses interest, the run is *abandoned*: the worker is asked to terminate it, the answer is thrown away
and frees the slot. Only a worker that keeps an abandoned run beyond its grace is to be killed, so one client's tiny
deadlines cannot hurt others.

A run's outcome is told in the call that takes the worker's answer: a switch to a task that waits for it would cost
more than all that is done with it.
"""

import itertools
import math
from collections import deque
from collections.abc import Callable
from typing import Final

import trio

from models import workerprotocol as protocol
from models.cpushare import CpuShare
from models.executor import OnEnd, RunDeadlineError, RunOutcome, RunRequest, WorkerLostError
from models.mappings import Loans
from models.sharedmemory import SharedMemory
from models.tensors import BadInputError, InferenceError

GRACE_MIN_S: Final = 2.0
"""Least time a worker gets to let go of an abandoned run."""
GRACE_FACTOR: Final = 10
"""Times the 95th percentile of recent service times it gets: runs end between two operators, so slow models and
slow boards need longer."""
SERVICE_TIMES_KEPT: Final = 64
"""Recent service times for that percentile."""


class Run:
    """A request with a slot; it has ended once its caller was told, or does not care any more."""

    __slots__ = (
        "due_s",
        "has_ended",
        "is_copying",
        "number",
        "on_end",
        "payload_bytes",
        "request",
        "segment",
        "sent_s",
        "slot",
    )

    def __init__(self, number: int, slot: int, request: RunRequest, *, on_end: OnEnd) -> None:
        self.number = number
        self.slot = slot
        self.request = request
        self.payload_bytes = memoryview(request.payload).nbytes
        self.segment = 0
        """Number of the segment in which the worker reads the payload; 0 where it is copied to the slot."""
        self.due_s = request.deadline_s
        """The deadline; of an abandoned run, when the worker is killed for not answering."""
        self.on_end = on_end
        self.sent_s: float | None = None
        self.is_copying = False
        """Whether a thread writes to the slot."""
        self.has_ended = False


class WorkerRuns:
    """All runs of one worker.

    Parameters
    ----------
    name : str
        Of the model, for messages.
    slots : int
        Runs at once.
    memory : SharedMemory
        Of the slots; closed by this object after close().
    loans : Loans
        Programs' memory that the worker has.
    cancel : callable
        Asks the worker to terminate a run.
    """

    def __init__(
        self, name: str, slots: int, memory: SharedMemory, *, loans: Loans, cancel: Callable[[int], None]
    ) -> None:
        self._name = name
        self._slots = slots
        self._memory = memory
        self._loans = loans
        self._cancel = cancel
        self._free: deque[int] = deque()
        self._given: dict[trio.lowlevel.Task, int] = {}
        """Slots of those who wait no more but have not come to take them yet."""
        self._waiters = trio.lowlevel.ParkingLot()
        self._numbers = itertools.count()
        self._runs: dict[int, Run] = {}
        self._alarm = trio.CancelScope()
        self._service_s: deque[float] = deque(maxlen=SERVICE_TIMES_KEPT)
        self._is_closed = False
        self.share: CpuShare | None = None
        """Told when there is work; None for a worker without a limit."""
        self.done = 0
        self.errors = 0
        self.terminated = 0

    @property
    def running(self) -> int:
        """Runs in the worker's hands, abandoned ones too."""
        return len(self._runs)

    @property
    def waiting(self) -> int:
        """Runs that wait for a slot."""
        return len(self._waiters)

    # ------------------------------------------------------------ slots

    def free_all(self) -> None:
        """Let runs in: the model is loaded."""
        for slot in range(self._slots):
            self._free_slot(slot)

    def take_nowait(self) -> int | None:
        """Take a slot; None where there is none. Whoever waits has been given theirs before one is free."""
        return self._free.popleft() if self._free else None

    async def take(self) -> int | None:
        """Wait for a slot, in turn; None when the worker is lost meanwhile."""
        if self._free:
            return self._free.popleft()
        if self._is_closed:
            return None
        await self._waiters.park()
        return None if self._is_closed else self._given.pop(trio.lowlevel.current_task())

    def open(self, slot: int, request: RunRequest, *, on_end: OnEnd) -> Run:
        """Use a slot for a run; its outcome will be told to ``on_end``, never from within a call of the run's own."""
        run = Run(next(self._numbers), slot, request, on_end=on_end)
        self._runs[run.number] = run
        self._watch(run)
        return run

    def lend(self, run: Run) -> bool:
        """Have the worker read a payload where its program has put it; returns whether it can."""
        place = run.request.place
        if place is None or not self._loans.take(place.segment, place.offset + run.payload_bytes):
            return False
        run.segment = place.segment.number
        return True

    def fill(self, run: Run) -> None:
        """Copy a payload into its slot; from any thread."""
        self._memory.input(run.slot)[: run.payload_bytes] = memoryview(run.request.payload).cast("B")

    def reclaim(self, number: int) -> Run | None:
        """Have a run back whose payload the worker could not map; None where that is nonsense."""
        run = self._runs.get(number)
        if run is None or not run.segment:
            return None
        self._loans.refuse(run.segment)
        self._give_back(run)
        return run

    def sent(self, run: Run, *, now_s: float) -> None:
        """Note that the worker has got the order."""
        run.sent_s = now_s
        if self.share is not None:
            self.share.set_busy(True)

    # ------------------------------------------------------------ ends

    def take_answer(self, answer: protocol.Done | protocol.Failed) -> bool:
        """Tell an answer to whom it concerns; returns whether it made sense."""
        run = self._runs.get(answer.run)
        if run is None or run.sent_s is None:
            return False
        output_bytes = answer.payload_bytes if isinstance(answer, protocol.Done) else 0
        if output_bytes > self._memory.region_bytes:
            return False
        self._service_s.append(answer.service_s)
        if run.has_ended:
            self._release(run, output_bytes)
            return True
        run.has_ended = True
        outcome = self._outcome(run, run.sent_s, answer)
        self._release(run, output_bytes)
        run.on_end(outcome)
        return True

    def withdraw(self, run: Run) -> None:
        """Take back a run that was not sent."""
        run.has_ended = True
        if not run.is_copying:
            self._release(run)

    def abandon(self, run: Run) -> None:
        """Lose interest in a run; one that has ended is left alone."""
        if run.has_ended:
            return
        self.terminated += 1
        if run.sent_s is None:
            self.withdraw(run)
            return
        run.has_ended = True
        run.due_s = trio.current_time() + self._grace_s()
        self._cancel(run.number)
        self._watch(run)

    def copied(self, run: Run) -> None:
        """Note that no thread writes to a slot any more."""
        run.is_copying = False
        if self._is_closed:
            del self._runs[run.number]
            self._unmap()
        elif run.has_ended:
            self._release(run)

    async def keep_time(self) -> None:
        """End runs at their deadlines; returns when the worker has kept an abandoned one beyond its grace."""
        while True:
            due_s = min((run.due_s for run in self._runs.values()), default=math.inf)
            with trio.CancelScope(deadline=due_s) as self._alarm:
                await trio.sleep_forever()
            now_s = trio.current_time()
            for run in [run for run in self._runs.values() if run.due_s <= now_s]:
                if run.has_ended and not run.is_copying:
                    return
                self._expire(run)

    def close(self, fault: WorkerLostError) -> None:
        """End all runs: the worker is gone."""
        self._is_closed = True
        self._free.clear()
        self._given.clear()
        self._waiters.unpark_all()
        for run in list(self._runs.values()):
            if not run.is_copying:
                del self._runs[run.number]
            if not run.has_ended:
                run.has_ended = True
                run.on_end(fault)
        self._unmap()

    def _expire(self, run: Run) -> None:
        """End a run at its deadline."""
        if run.has_ended:
            run.due_s = math.inf  # a thread still copies for it, and nothing else is to be waited for
            return
        self.abandon(run)
        run.on_end(deadline_error())

    def _watch(self, run: Run) -> None:
        """See that keep_time looks at a run in time; it may look too early, which costs less than calling it off."""
        if run.due_s < self._alarm.deadline:
            self._alarm.deadline = run.due_s

    def _outcome(self, run: Run, sent_s: float, answer: protocol.Done | protocol.Failed) -> RunOutcome | InferenceError:
        """Turn the worker's answer into the caller's."""
        if isinstance(answer, protocol.Failed):
            self.errors += 1
            return BadInputError(answer.reason) if answer.kind == "input" else InferenceError(answer.reason)
        self.done += 1
        service_s = answer.service_s
        if self.share is not None:
            # It may be stopped before it takes a request up, and cannot see that by its own clock.
            service_s = max(service_s, trio.current_time() - sent_s)
        payload = bytearray(self._memory.output(run.slot)[: answer.payload_bytes])
        return RunOutcome(body=answer.body, payload=payload, service_s=service_s)

    def _release(self, run: Run, output_bytes: int = 0) -> None:
        """Give a slot back."""
        del self._runs[run.number]
        copied_bytes = 0 if run.segment else run.payload_bytes
        self._memory.release(run.slot, input_bytes=copied_bytes, output_bytes=output_bytes)
        self._give_back(run)
        self._free_slot(run.slot)
        if self.share is not None and not self._runs:
            self.share.set_busy(False)

    def _free_slot(self, slot: int) -> None:
        """Give a slot to whoever waits longest, or keep it."""
        if self._waiters:
            [task] = self._waiters.unpark()
            self._given[task] = slot
        else:
            self._free.append(slot)

    def _give_back(self, run: Run) -> None:
        """End the use of a program's memory."""
        if run.segment:
            self._loans.give_back(run.segment)
            run.segment = 0

    def _unmap(self) -> None:
        """Let go of the memory once no thread writes to it any more."""
        if not self._runs:
            self._memory.close()

    def _grace_s(self) -> float:
        """Return how long the worker may keep an abandoned run."""
        if not self._service_s:
            return GRACE_MIN_S
        times = sorted(self._service_s)
        return max(GRACE_MIN_S, GRACE_FACTOR * times[min(len(times) - 1, int(0.95 * len(times)))])


def deadline_error() -> RunDeadlineError:
    """Return what a caller hears whose deadline has passed."""
    return RunDeadlineError("the deadline passed before the result was there; allow more time")
