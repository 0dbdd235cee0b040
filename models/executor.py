"""What the daemon needs of whoever runs models: one interface for real workers and for emulated ones. Pure.

models.runtime runs models in worker processes; models.emulated waits out service times of a device profile. The
daemon is wired to this protocol only.

Times are seconds; deadlines are absolute on the clock of trio.current_time().
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from models.manifest import Manifest, ModelError
from models.segments import Segment
from models.tensors import Buffer, InferenceError

if TYPE_CHECKING:
    import trio  # the check of a graph needs the errors here, and starts a Python each time

    from models.lanes import Lane, OnWord


class ModelRefusedError(ModelError):
    """A model that is not safe, or not able, to be loaded here. The publisher's fault."""


class ModelNotLoadedError(ModelError):
    """A run was asked of a model without a worker. The caller's fault, or the model was unloaded meanwhile."""


class WorkerLostError(ModelError):
    """The worker died, or was killed, before it answered. Nobody's fault yet: try again, elsewhere perhaps."""


class RunDeadlineError(InferenceError):
    """The deadline passed before the result was there; the run was terminated."""


class Place(msgspec.Struct, frozen=True):
    """Where a payload lies in memory that its program shares."""

    segment: Segment
    offset: int
    """In bytes from the segment's start."""


class RunRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One request for a loaded model."""

    body: bytes
    """An encoded models.bodies.RequestBody."""
    payload: Buffer
    """Copied once, when the run starts, or read in place where the worker can; must not change before the end."""
    deadline_s: float
    """When the run is terminated."""
    place: Place | None = None
    """Where the payload lies, if its program shares its memory."""


class RunOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """The result of one request."""

    body: bytes
    """An encoded models.bodies.ResultBody."""
    payload: bytearray
    """Raw outputs as the body says; owned by the caller."""
    service_s: float
    """Time in the worker: pre-processing, the model, post-processing."""


OnEnd = Callable[[RunOutcome | InferenceError | WorkerLostError], None]
"""Told what became of a run, in the event loop's thread; must neither block nor raise."""


class ModelChange(msgspec.Struct, frozen=True, kw_only=True):
    """A model became usable or unusable by itself (load and unload are not told: their caller knows)."""

    digest: str
    usable: bool
    """False while a lost worker is replaced, and for good once that was given up; True when it runs again."""
    given_up: bool = False
    """Whether no further restart is tried; load it anew to try again."""
    reason: str = ""


class ExecutorStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """One loaded model, as seen at one instant."""

    digest: str
    name: str
    pid: int
    """Process id of the worker; 0 where there is none."""
    memory_bytes: int
    """Resident memory of the worker now, pages of libraries included; 0 for none."""
    memory_bytes_peak: int
    """Largest resident memory of the worker so far."""
    load_s: float
    """Time of the last load, start of the process and warm-up included."""
    slots: int
    running: int
    waiting: int
    """Runs that wait for a slot."""
    runs: int
    """Requests answered with a result."""
    errors: int
    """Requests answered with an error."""
    restarts: int
    terminated: int
    """Requests ended at their deadline or cancelled."""
    confinement: str
    """Steps of confinement reached, as models.confine names them; "emulated" for an emulated executor."""
    cpu_share: float
    providers: tuple[str, ...]


class Executor(Protocol):
    """Loads models and runs requests on them."""

    async def serve(self, *, task_status: "trio.TaskStatus[None]" = ...) -> None:
        """Run until cancelled; everything else may be called only meanwhile. Ends with all workers gone."""
        ...

    async def load(self, digest: str, manifest: Manifest, graph_path: Path) -> None:
        """Make a model ready to run; returns after a warm-up run. A loaded model is left as it is.

        Raises
        ------
        ModelRefusedError
            The model breaks a rule or does not load. The publisher's fault.
        WorkerLostError
            The worker died while loading.
        """
        ...

    async def unload(self, digest: str) -> None:
        """Let go of a model; its runs end with WorkerLostError. A model that is not loaded is fine."""
        ...

    def begin(self, digest: str, request: RunRequest, on_end: OnEnd) -> Callable[[], None] | None:
        """Start one request in this very call, where that can be done: no task stands between request and answer.

        Parameters
        ----------
        digest : str
            Of a model.
        request : RunRequest
            The request.
        on_end : callable
            Told the outcome, once, later than this call; WorkerLostError where nothing is known of it.

        Returns
        -------
        callable or None
            Terminates the run, after which ``on_end`` is not called; None where nothing was started, because it
            would have to wait or is wrong: run() says which.
        """
        ...

    async def run(
        self, digest: str, requests: Sequence[RunRequest], *, on_started: Callable[[], None] | None = None
    ) -> list[RunOutcome | InferenceError]:
        """Run requests as one batch, waiting for a free slot.

        Cancelling it terminates the run; the slot is free again once the worker has let go of it.

        Parameters
        ----------
        digest : str
            Of a loaded model.
        requests : sequence of RunRequest
            At least one.
        on_started : callable, optional
            Called once when a slot is free and the worker gets the first request.

        Returns
        -------
        list of RunOutcome or InferenceError
            One per request, in order. A request that failed for its own reason (BadInputError, RunDeadlineError,
            an error of the runtime) is an error here and leaves the others alone.

        Raises
        ------
        ModelNotLoadedError
            There is no such model here.
        WorkerLostError
            The worker died or was killed. Nothing is known of any request of the batch.
        """
        ...

    def open_lane(self, digest: str, segment: Segment, descriptor: int, on_word: "OnWord") -> "Lane | None":
        """Let a program speak to a model's worker without the daemon in the middle, once it has a ticket.

        Parameters
        ----------
        digest : str
            Of a loaded model.
        segment : Segment
            Memory that the program's payloads lie in.
        descriptor : int
            The worker's end of a pair of sequenced-packet sockets; owned by the executor from now on.
        on_word : callable
            Told what was run, and None when the lane has ended with its worker.

        Returns
        -------
        Lane or None
            None where there is no room, or no such worker: the descriptor is closed then.
        """
        ...

    def forget_segment(self, segment: Segment) -> None:
        """Have workers let go of a program's memory: its program has left. Runs in hand keep it to their end."""
        ...

    def loaded(self) -> frozenset[str]:
        """Return the digests of the models that are ready."""
        ...

    def statistics(self) -> tuple[ExecutorStatistics, ...]:
        """Return a snapshot per model, sorted by digest."""
        ...

    def changes(self) -> "trio.MemoryReceiveChannel[ModelChange]":
        """Return the bounded channel of changes; one reader. When it is full the oldest are dropped."""
        ...
