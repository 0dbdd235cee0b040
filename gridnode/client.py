"""What a program imports: ``Grid`` for threads, ``AsyncGrid`` for trio and asyncio.

Owns the sync client as its user sees it; gridnode.carrier moves the frames.

This module imports neither numpy, Pillow nor an event loop before they are needed, and no other package of ours, so
that it works beside a program's own ``models.py``.
"""

from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from gridnode.calls import (
    ANSWER_S,
    IN_FLIGHT,
    JobOptions,
    Sockets,
    answer_of,
    default_sockets,
    make_options,
    make_request,
    make_session,
    outcome_of,
    plan_stream,
)
from gridnode.carrier import Carrier
from gridnode.control import QueryKind
from gridnode.jobs import Job, Options
from gridnode.results import Box, Classification, Detection, Result, Timings
from gridnode.session import PATIENCE_S
from gridnode.window import Mode, StreamItem

if TYPE_CHECKING:
    from gridnode.asyncclient import AsyncGrid, AsyncHandle
    from gridnode.inputs import Input

__all__ = [
    "AsyncGrid",
    "AsyncHandle",
    "Box",
    "Classification",
    "Detection",
    "Grid",
    "Handle",
    "Result",
    "StreamItem",
    "Timings",
    "default_sockets",
]


def __getattr__(name: str) -> object:
    """Import the async client when it is asked for: it needs anyio, which a sync program need not load."""
    if name in ("AsyncGrid", "AsyncHandle"):
        from gridnode import asyncclient

        return getattr(asyncclient, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Handle:
    """A submitted job."""

    def __init__(self, carrier: Carrier, job: Job) -> None:
        self._carrier = carrier
        self._job = job

    @property
    def key(self) -> bytes:
        """The job's key, unique for ever; ``grid.explain`` takes it."""
        return self._job.key

    def done(self) -> bool:
        """Whether the outcome is there; looks at the socket and returns at once."""
        return self._carrier.wait(lambda: self._job.ended, timeout_s=0)

    def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the outcome.

        Parameters
        ----------
        timeout_s : float, optional
            Longest wait in seconds; the job goes on after it.

        Raises
        ------
        TimeoutError
            No outcome within ``timeout_s``.
        GridError
            The job ended without a result; see Grid.infer.
        """
        if not self._carrier.wait(lambda: self._job.ended, timeout_s=timeout_s):
            raise TimeoutError(f"no outcome within {timeout_s} s; the job goes on: wait again, or cancel it")
        return outcome_of(self._job)

    def cancel(self) -> bool:
        """End the job with JobCancelledError; returns False when it had ended before."""
        return self._carrier.cancel(self._job)


class Grid:
    """The grid, as a program with threads sees it. Thread-safe; a context manager.

    Parameters
    ----------
    sockets : path or sequence of paths, optional
        Unix sockets of daemons, the preferred first; by default the one of this device, see default_sockets.
    tenant : str, default ""
        Whose jobs these are, for nodes that share their time between tenants.
    patience_s : float, default 30
        How long a job without a deadline waits for a daemon that takes it, in seconds.

    Notes
    -----
    Nothing is sent before the first call. A daemon that is lost is sought again, on all its sockets and those it
    told of, and open jobs are sent again under their keys. A forked child needs a Grid of its own.
    """

    def __init__(self, sockets: Sockets | None = None, *, tenant: str = "", patience_s: float = PATIENCE_S) -> None:
        self._tenant = tenant
        self._session = make_session(sockets, patience_s=patience_s)
        self._carrier = Carrier(self._session)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def infer(
        self,
        model: str,
        image_or_tensors: "Input",
        *,
        deadline_s: float | None = None,
        **options: Unpack[JobOptions],
    ) -> Result:
        """Run a model and wait for its answer.

        Parameters
        ----------
        model : str
            Name of a published model, or ``name@digest`` for exactly that version.
        image_or_tensors : ndarray, PIL image, bytes, path, or dict
            A frame, or the model's inputs by name; see gridnode.inputs.encode_input.
        deadline_s : float, optional
            Time until the answer is worth nothing, in seconds from now; the daemon's default without it.
        priority : int, default 1
            0 is served first, 3 last.
        rungs : bool, default True
            Whether a smaller variant may answer when the model itself cannot in time.
        raw_outputs : bool, default False
            Whether the model's output tensors are wanted too.
        score_threshold : float, optional
            Replaces the model's threshold for detections, 0 to 1.
        tenant : str, optional
            Replaces the tenant of this Grid.

        Raises
        ------
        InvalidInputError, UnknownModelError
            The request is wrong; trying again will not help.
        JobDeadlineError, JobRejectedError, DrainingError
            The grid could not take or finish the job in time; a later try may succeed.
        JobFailedError
            The job was tried and failed.
        DaemonUnreachableError, ProtocolError
            No daemon could be talked to.
        """
        job = self._carrier.submit(make_request(model, image_or_tensors, self._options(options)), deadline_s)
        try:
            self._carrier.wait(lambda: job.ended)
        except BaseException:
            self._carrier.cancel(job)  # an interrupted caller has no handle to ask again
            raise
        return outcome_of(job)

    def submit(
        self,
        model: str,
        image_or_tensors: "Input",
        *,
        deadline_s: float | None = None,
        **options: Unpack[JobOptions],
    ) -> Handle:
        """Submit a job and return at once; see infer for the arguments.

        Waits while the daemon's socket is full. Errors of the input are raised here, all others by the handle.
        """
        request = make_request(model, image_or_tensors, self._options(options))
        return Handle(self._carrier, self._carrier.submit(request, deadline_s))

    def stream(
        self,
        frames: "Iterable[Input]",
        *,
        model: str,
        mode: Mode = "newest",
        deadline_s: float | None = None,
        in_flight: int = IN_FLIGHT,
        name: str = "stream",
        **options: Unpack[JobOptions],
    ) -> Iterator[StreamItem]:
        """Run a model on each frame of a source, and give the outcomes in the order of the frames.

        Parameters
        ----------
        frames : iterable
            The source; it is read in a thread of its own, which ends with the iterator, or with the next frame.
        mode : {"newest", "all"}
            ``newest``: a frame that finds ``in_flight`` others waits, and is skipped when a newer one comes.
            ``all``: the source waits, and every frame is sent.
        in_flight : int, default 4
            Frames sent and not yet answered.
        name : str
            Of the stream; frames of one name may supersede each other in mode ``newest``.

        Yields
        ------
        StreamItem
            One for each frame, errors included; an error of the source itself is raised after the last one.
        """
        from gridnode.streaming import run_stream

        plan = plan_stream(
            model, self._options(options), mode=mode, in_flight=in_flight, name=name, deadline_s=deadline_s
        )
        return run_stream(self._carrier, frames, plan)

    def status(self) -> dict[str, Any]:
        """Return what the daemon tells of itself."""
        return self.ask("status")

    def peers(self) -> dict[str, Any]:
        """Return what the daemon knows of its peers, one record each under ``items``."""
        return self.ask("peers")

    def models(self) -> dict[str, Any]:
        """Return the published models, one record each under ``items``."""
        return self.ask("models")

    def explain(self, key: bytes) -> dict[str, Any]:
        """Return the decisions on a job under ``items``; ``key`` is that of its result or handle."""
        return self.ask("explain", key.hex())

    def ask(self, what: QueryKind, argument: str = "") -> dict[str, Any]:
        """Send any query of the control protocol, for the command line."""
        return answer_of(self._carrier.ask(what, argument, within_s=ANSWER_S))

    @property
    def late_answers(self) -> int:
        """Outcomes dropped because their job had ended before."""
        return self._session.late_answers

    @property
    def resubmissions(self) -> int:
        """Times a job was sent again, because its daemon was lost or draining."""
        return self._session.resubmissions

    def close(self) -> None:
        """End open jobs with JobCancelledError and close the connections; calling it again does nothing."""
        self._carrier.close()

    def _options(self, given: JobOptions) -> Options:
        return make_options(given, tenant=self._tenant)
