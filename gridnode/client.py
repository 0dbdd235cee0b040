"""What a program imports: ``Grid`` for threads, ``AsyncGrid`` for trio and asyncio.

Owns the sync client. A call is one sendmsg and one recv_into in the calling thread: no thread of ours stands
between. Of all threads that wait, one leads: it alone polls the sockets and carries frames, for the others too;
when its own wait is over another takes the lead. Nothing moves while no thread is inside a call; the daemon works on.

This module imports neither numpy, Pillow nor an event loop before they are needed, and no other package of ours, so
that it works beside a program's own ``models.py``.
"""

import os
import select
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from time import monotonic  # noqa: TID251 - a driver reads the clock
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from gridnode.calls import (
    ANSWER_S,
    IN_FLIGHT,
    Options,
    Sockets,
    default_sockets,
    make_request,
    make_session,
    outcome_of,
    read_document,
)
from gridnode.channel import Channel
from gridnode.control import QueryKind
from gridnode.errors import GridError
from gridnode.jobs import Job, Request
from gridnode.links import Links
from gridnode.results import Box, Classification, Detection, Result, Timings
from gridnode.session import PATIENCE_S
from gridnode.window import Mode, StreamItem, Window

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

    def __init__(self, grid: "Grid", job: Job) -> None:
        self._grid = grid
        self._job = job

    @property
    def key(self) -> bytes:
        """The job's key, unique for ever; ``grid.explain`` takes it."""
        return self._job.key

    def done(self) -> bool:
        """Whether the outcome is there; looks at the socket and returns at once."""
        return self._grid._wait(lambda: self._job.ended, timeout_s=0)

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
        if not self._grid._wait(lambda: self._job.ended, timeout_s=timeout_s):
            raise TimeoutError(f"no outcome within {timeout_s} s; the job goes on: wait again, or cancel it")
        return outcome_of(self._job)

    def cancel(self) -> bool:
        """End the job with JobCancelledError; returns False when it had ended before."""
        return self._grid._cancel(self._job)


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
        self._links = Links(self._session)
        self._changed = threading.Condition(threading.Lock())
        self._is_led = False
        self._followers = 0
        self._wakes_at_s = float("inf")
        self._is_closed = False
        self._has_news = False
        """Whether a socket was ready since the session last acted."""
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)

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
        priority: int = 1,
        rungs: bool = True,
        raw_outputs: bool = False,
        score_threshold: float | None = None,
        tenant: str | None = None,
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
        options = self._options(priority, rungs, raw_outputs, score_threshold, tenant)
        job = self._submit(make_request(model, image_or_tensors, options), deadline_s)
        try:
            self._wait(lambda: job.ended, timeout_s=None)
        except BaseException:
            self._cancel(job)  # an interrupted caller has no handle to ask again
            raise
        return outcome_of(job)

    def submit(
        self,
        model: str,
        image_or_tensors: "Input",
        *,
        deadline_s: float | None = None,
        priority: int = 1,
        rungs: bool = True,
        raw_outputs: bool = False,
        score_threshold: float | None = None,
        tenant: str | None = None,
    ) -> Handle:
        """Submit a job and return at once; see infer for the arguments.

        Waits while the daemon's socket is full. Errors of the input are raised here, all others by the handle.
        """
        options = self._options(priority, rungs, raw_outputs, score_threshold, tenant)
        return Handle(self, self._submit(make_request(model, image_or_tensors, options), deadline_s))

    def stream(
        self,
        frames: "Iterable[Input]",
        *,
        model: str,
        mode: Mode = "newest",
        deadline_s: float | None = None,
        in_flight: int = IN_FLIGHT,
        priority: int = 1,
        rungs: bool = True,
        raw_outputs: bool = False,
        score_threshold: float | None = None,
        tenant: str | None = None,
        name: str = "stream",
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

        options = msgspec.structs.replace(
            self._options(priority, rungs, raw_outputs, score_threshold, tenant),
            stream=f"{name}-{os.urandom(4).hex()}",
            newest_wins=mode == "newest",
        )
        window: Window[Input] = Window(mode=mode, in_flight=in_flight)
        return run_stream(self, frames, window, model=model, options=options, deadline_s=deadline_s)

    def status(self) -> dict[str, Any]:
        """Return what the daemon tells of itself."""
        return self._ask("status")

    def peers(self) -> dict[str, Any]:
        """Return what the daemon knows of its peers, one record each under ``items``."""
        return self._ask("peers")

    def models(self) -> dict[str, Any]:
        """Return the published models, one record each under ``items``."""
        return self._ask("models")

    def explain(self, key: bytes) -> dict[str, Any]:
        """Return the decisions on a job under ``items``; ``key`` is that of its result or handle."""
        return self._ask("explain", key.hex())

    def ask(self, what: QueryKind, argument: str = "") -> dict[str, Any]:
        """Send any query of the control protocol, for the command line."""
        return self._ask(what, argument)

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
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            self._links.close(monotonic())
            self._wake_leader()
            self._changed.notify_all()
            while self._is_led:
                self._changed.wait()  # the leader polls the wake socket; it is closed after it let go
        self._wake_in.close()
        self._wake_out.close()

    # ------------------------------------------------------------ work of a call

    def _options(
        self, priority: int, rungs: bool, raw_outputs: bool, score_threshold: float | None, tenant: str | None
    ) -> Options:
        return Options(
            priority=priority,
            rungs=rungs,
            raw_outputs=raw_outputs,
            score_threshold=score_threshold,
            tenant=self._tenant if tenant is None else tenant,
        )

    def _submit(self, request: Request, deadline_s: float | None) -> Job:
        """Open a job and have it sent, as far as a daemon is there to take it."""
        with self._changed:
            self._check_open()
            now_s = monotonic()
            job = self._session.open(request, budget_s=deadline_s, now_s=now_s)
            self._push(now_s)
        if job.link is None or self._links.has_outgoing:
            self._wait(lambda: job.ended or self._is_on_its_way(job), timeout_s=None)
        return job

    def _is_on_its_way(self, job: Job) -> bool:
        """Whether a submit may return: the job was sent, or no daemon is there to be waited for."""
        return not self._links.has_outgoing and (job.link is not None or not self._session.is_reaching)

    def _cancel(self, job: Job) -> bool:
        """End a job and tell the daemon."""
        with self._changed:
            now_s = monotonic()
            was_open = self._session.cancel(job, now_s=now_s)
            if was_open:
                self._push(now_s)
        return was_open

    def _ask(self, what: QueryKind, argument: str = "") -> dict[str, Any]:
        """Ask the daemon and wait for its answer."""
        with self._changed:
            self._check_open()
            now_s = monotonic()
            question = self._session.ask(what, argument, within_s=ANSWER_S, now_s=now_s)
            self._push(now_s)
        self._wait(lambda: question.ended, timeout_s=None)
        if question.error is not None:
            raise question.error
        return read_document(question.document)

    def _check_open(self) -> None:
        if self._is_closed:
            raise GridError("this Grid is closed; make a new one")

    # ------------------------------------------------------------ leader and followers

    def _push(self, now_s: float) -> None:
        """Do at once what can be done, and wake a leader that would oversleep the rest; the lock is held."""
        before = self._links.channels
        self._links.advance(now_s)
        self._has_news = False
        self._announce_ended()
        if not self._is_led:
            return
        if self._links.due_s < self._wakes_at_s or self._links.has_outgoing or before != self._links.channels:
            self._wake_leader()

    def _wait(self, is_done: Callable[[], bool], *, timeout_s: float | None) -> bool:
        """Carry frames, or wait for the thread that does, until ``is_done``; returns whether it is."""
        until_s = float("inf") if timeout_s is None else monotonic() + timeout_s
        has_looked = False
        with self._changed:
            while not is_done():
                self._check_open()
                now_s = monotonic()
                if now_s >= until_s and has_looked:
                    return False
                has_looked = True
                if self._is_led:
                    self._follow(until_s - now_s)
                else:
                    self._lead(is_done, until_s, now_s)
        return True

    def _follow(self, timeout_s: float) -> None:
        """Wait until something changed; another thread carries the frames."""
        self._followers += 1
        try:
            self._changed.wait(None if timeout_s == float("inf") else max(timeout_s, 0.0))
        finally:
            self._followers -= 1

    def _lead(self, is_done: Callable[[], bool], until_s: float, now_s: float) -> None:
        """Carry frames once: send and connect, wait for the sockets, receive."""
        self._is_led = True
        try:
            if self._has_news or self._links.due_s <= now_s:
                self._links.advance(now_s)
                self._has_news = False
                self._announce_ended()
                if is_done() or self._is_closed:
                    return
            self._wakes_at_s = min(self._links.due_s, until_s)
            for channel in self._poll(self._wakes_at_s - now_s):
                self._links.read(channel, monotonic())
            self._announce_ended()
        finally:
            self._is_led = False
            if self._followers or self._is_closed:
                self._changed.notify_all()

    def _poll(self, timeout_s: float) -> list[Channel]:
        """Wait without the lock until a socket is ready or the time is over; returns the readable ones."""
        channels = {channel.socket.fileno(): channel for channel in self._links.channels}
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        for number, channel in channels.items():
            poll.register(number, select.POLLIN | (select.POLLOUT if channel.has_outgoing else 0))
        self._changed.release()
        try:
            ready = poll.poll(None if timeout_s == float("inf") else max(0.0, timeout_s) * 1000)
        finally:
            self._changed.acquire()
        self._has_news = bool(ready)
        if any(number == self._wake_in.fileno() for number, _ in ready):
            self._wake_in.recv(4096)
        return [channels[number] for number, events in ready if number in channels and events != select.POLLOUT]

    def _wake_leader(self) -> None:
        """End the leader's poll; the lock is held."""
        if self._is_led:
            try:
                self._wake_out.send(b"\0")
            except BlockingIOError:
                return  # it is woken already, many times over

    def _announce_ended(self) -> None:
        """Tell the followers when anything ended."""
        if self._session.take_ended() and self._followers:
            self._changed.notify_all()
