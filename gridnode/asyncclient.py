"""The client for trio and asyncio, through anyio. Import it as ``from gridnode.client import AsyncGrid``.

Owns the tasks that carry frames: one that keeps time, and one reader for each connection. Sending is tried at once,
in the task that submits; only what the socket does not take is left to a task of its own. A cancelled caller never
leaves a half-sent frame behind: frames belong to the connection, not to the caller.
"""

import os
from collections.abc import AsyncIterable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

import anyio
import anyio.abc
import anyio.to_thread

from gridnode.calls import (
    ANSWER_S,
    IN_FLIGHT,
    JobOptions,
    Sockets,
    answer_of,
    make_options,
    make_request,
    make_session,
    outcome_of,
    plan_stream,
)
from gridnode.channel import Channel
from gridnode.control import QueryKind
from gridnode.errors import GridError
from gridnode.jobs import Job, Options, Question, Request
from gridnode.links import Links, Source
from gridnode.results import Result
from gridnode.session import PATIENCE_S
from gridnode.window import Mode

if TYPE_CHECKING:
    from gridnode.asyncstream import AsyncStream
    from gridnode.inputs import Input


class AsyncHandle:
    """A submitted job."""

    def __init__(self, grid: "AsyncGrid", job: Job) -> None:
        self._grid = grid
        self._job = job

    @property
    def key(self) -> bytes:
        """The job's key, unique for ever; ``grid.explain`` takes it."""
        return self._job.key

    def done(self) -> bool:
        """Whether the outcome is there."""
        return self._job.ended

    async def result(self, timeout_s: float | None = None) -> Result:
        """Wait for the outcome; a cancelled wait leaves the job alone.

        Raises
        ------
        TimeoutError
            No outcome within ``timeout_s`` seconds; the job goes on.
        GridError
            The job ended without a result; see Grid.infer.
        """
        with anyio.move_on_after(timeout_s):
            await self._grid._wait(self._job)
        if not self._job.ended:
            raise TimeoutError(f"no outcome within {timeout_s} s; the job goes on: wait again, or cancel it")
        return outcome_of(self._job)

    def cancel(self) -> bool:
        """End the job with JobCancelledError, at once; returns False when it had ended before."""
        return self._grid._cancel(self._job)


class AsyncGrid:
    """The grid, as an async program sees it: ``async with AsyncGrid() as grid``. For one event loop.

    Parameters
    ----------
    sockets : path or sequence of paths, optional
        Unix sockets of daemons, the preferred first; by default the one of this device.
    tenant : str, default ""
        Whose jobs these are.
    patience_s : float, default 30
        How long a job without a deadline waits for a daemon that takes it, in seconds.

    Notes
    -----
    The object owns a task group from entering to leaving; leaving cancels open jobs. Other than with a task group
    an error of the body leaves unwrapped.
    """

    def __init__(self, sockets: Sockets | None = None, *, tenant: str = "", patience_s: float = PATIENCE_S) -> None:
        self._tenant = tenant
        self._session = make_session(sockets, patience_s=patience_s)
        self._links = Links(self._session, on_open=self._serve, before_close=_let_go)
        self._waiters: dict[Job | Question, anyio.Event] = {}
        self._tasks: anyio.abc.TaskGroup | None = None
        self._draining: list[Channel] = []
        self._wakes_at_s = float("inf")
        self._pulse: anyio.Event | None = None
        self._is_closed = False

    async def __aenter__(self) -> Self:
        self._nudge = anyio.Event()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._keep_time)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._tasks is not None, "left without having been entered"
        self._close()
        self._tasks.cancel_scope.cancel()
        # The body's error is not shown to the task group, which would wrap it in an ExceptionGroup.
        await self._tasks.__aexit__(None, None, None)

    async def infer(
        self,
        model: str,
        image_or_tensors: "Input",
        *,
        deadline_s: float | None = None,
        **options: Unpack[JobOptions],
    ) -> Result:
        """Run a model and wait for its answer; arguments and errors are those of Grid.infer.

        A cancelled call cancels its job in the grid.
        """
        job = self._submit(await encode(model, image_or_tensors, self._options(options)), deadline_s)
        try:
            await self._wait(job)
        finally:
            self._cancel(job)
        return outcome_of(job)

    async def submit(
        self,
        model: str,
        image_or_tensors: "Input",
        *,
        deadline_s: float | None = None,
        **options: Unpack[JobOptions],
    ) -> AsyncHandle:
        """Submit a job without waiting for its answer; arguments are those of Grid.infer."""
        request = await encode(model, image_or_tensors, self._options(options))
        return AsyncHandle(self, self._submit(request, deadline_s))

    def stream(
        self,
        frames: "AsyncIterable[Input] | Iterable[Input]",
        *,
        model: str,
        mode: Mode = "newest",
        deadline_s: float | None = None,
        in_flight: int = IN_FLIGHT,
        name: str = "stream",
        **options: Unpack[JobOptions],
    ) -> "AsyncStream":
        """Run a model on each frame of a source; iterate over the outcomes with ``async for``.

        Arguments are those of Grid.stream. A sync source is read in a worker thread. The stream is an async context
        manager too; leaving it, or ``aclose``, stops the source.
        """
        from gridnode.asyncstream import AsyncStream

        plan = plan_stream(
            model, self._options(options), mode=mode, in_flight=in_flight, name=name, deadline_s=deadline_s
        )
        return AsyncStream(self, frames, plan)

    async def status(self) -> dict[str, Any]:
        """Return what the daemon tells of itself."""
        return await self.ask("status")

    async def peers(self) -> dict[str, Any]:
        """Return what the daemon knows of its peers, one record each under ``items``."""
        return await self.ask("peers")

    async def models(self) -> dict[str, Any]:
        """Return the published models, one record each under ``items``."""
        return await self.ask("models")

    async def explain(self, key: bytes) -> dict[str, Any]:
        """Return the decisions on a job under ``items``; ``key`` is that of its result or handle."""
        return await self.ask("explain", key.hex())

    async def ask(self, what: QueryKind, argument: str = "") -> dict[str, Any]:
        """Send any query of the control protocol."""
        self._check_open()
        now_s = anyio.current_time()
        question = self._session.ask(what, argument, within_s=ANSWER_S, now_s=now_s)
        self._push(now_s)
        try:
            await self._wait(question)
        finally:
            self._session.forget(question)
        return answer_of(question)

    async def close(self) -> None:
        """End open jobs with JobCancelledError and close the connections, before the block is left."""
        self._close()
        await anyio.lowlevel.checkpoint()

    @property
    def late_answers(self) -> int:
        """Outcomes dropped because their job had ended before."""
        return self._session.late_answers

    @property
    def resubmissions(self) -> int:
        """Times a job was sent again, because its daemon was lost or draining."""
        return self._session.resubmissions

    # ------------------------------------------------------------ work of a call

    def _options(self, given: JobOptions) -> Options:
        return make_options(given, tenant=self._tenant)

    def _submit(self, request: Request, deadline_s: float | None) -> Job:
        """Open a job and send what the socket takes of it."""
        self._check_open()
        now_s = anyio.current_time()
        job = self._session.open(request, budget_s=deadline_s, now_s=now_s)
        self._push(now_s)
        return job

    async def _wait(self, work: Job | Question) -> None:
        """Wait until a job or query ended."""
        if work.ended:
            await anyio.lowlevel.checkpoint()
        else:
            await self._waiters.setdefault(work, anyio.Event()).wait()

    def _cancel(self, job: Job) -> bool:
        """End a job that has not ended and tell the daemon."""
        if job.ended:
            return False
        now_s = anyio.current_time()
        self._session.cancel(job, now_s=now_s)
        self._push(now_s)
        return True

    def _check_open(self) -> None:
        if self._tasks is None:
            raise GridError("this AsyncGrid was not entered; use `async with AsyncGrid() as grid`")
        if self._is_closed:
            raise GridError("this AsyncGrid is closed; make a new one")

    def _close(self) -> None:
        """End all work, once."""
        if not self._is_closed:
            self._is_closed = True
            self._links.close(anyio.current_time())
            self._announce()

    # ------------------------------------------------------------ tasks

    def _push(self, now_s: float) -> None:
        """Do at once what can be done, and see that a task does the rest."""
        self._links.advance(now_s)
        self._announce()

    def _announce(self) -> None:
        """Wake those whose work ended, and start tasks for sockets that need one."""
        ended = self._session.take_ended()
        for work in ended:
            if (event := self._waiters.pop(work, None)) is not None:
                event.set()
        if ended:
            self._signal()
        if not self._is_closed and self._tasks is not None:
            if self._links.unsent:
                self._send_rest(self._tasks)
            if self._session.due_s < self._wakes_at_s:
                self._nudge.set()

    def _signal(self) -> None:
        """Let streams look again."""
        if self._pulse is not None:
            self._pulse.set()
            self._pulse = None

    async def _wait_signal(self) -> None:
        """Wait until a stream should look again."""
        if self._pulse is None:
            self._pulse = anyio.Event()
        await self._pulse.wait()

    def _serve(self, source: Source) -> None:
        """Start a reader for a new connection or lane."""
        assert self._tasks is not None, "work is taken only once the object was entered"
        self._tasks.start_soon(self._read, source)

    def _send_rest(self, tasks: anyio.abc.TaskGroup) -> None:
        """Start a writer for each connection with bytes left over."""
        for channel in self._links.unsent:
            if channel not in self._draining:
                self._draining.append(channel)
                tasks.start_soon(self._drain, channel)

    async def _keep_time(self) -> None:
        """Carry out what is due by the clock: deadlines, reconnects, signs of life."""
        while True:
            self._wakes_at_s = self._session.due_s
            self._nudge = anyio.Event()
            with anyio.CancelScope(deadline=self._wakes_at_s):
                await self._nudge.wait()
            self._push(anyio.current_time())

    async def _read(self, source: Source) -> None:
        """Take what comes on a connection, or by a lane, until it is closed."""
        try:
            while source in self._links.sources:
                await anyio.wait_readable(source.socket)
                now_s = anyio.current_time()
                self._links.read(source, now_s)
                self._push(now_s)
        except anyio.ClosedResourceError:
            return  # closed by us while we waited

    async def _drain(self, channel: Channel) -> None:
        """Send what the socket did not take at once."""
        try:
            while channel in self._links.sources and channel.outgoing_bytes:
                await anyio.wait_writable(channel.socket)
                self._links.write(channel, anyio.current_time())
        except anyio.ClosedResourceError:
            return  # closed by us while we waited
        finally:
            self._draining.remove(channel)


async def encode(model: str, source: "Input", options: Options, *, frame: int = 0) -> Request:
    """Encode an input; files and PIL images, whose pixels may still have to be decoded, in a thread."""
    if isinstance(source, str | os.PathLike) or (hasattr(source, "tobytes") and hasattr(source, "convert")):
        return await anyio.to_thread.run_sync(lambda: make_request(model, source, options, frame=frame))
    return make_request(model, source, options, frame=frame)


def _let_go(source: Source) -> None:
    """Wake the tasks that wait for a socket which is about to be closed."""
    anyio.notify_closing(source.socket)
