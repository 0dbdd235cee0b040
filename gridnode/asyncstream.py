"""The async stream: a task reads the source, the consumer takes the outcomes. Owns that task's life."""

from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Self

import anyio
import anyio.lowlevel
import anyio.to_thread

from gridnode.asyncclient import AsyncGrid, encode
from gridnode.calls import StreamPlan, item_of
from gridnode.errors import GridError
from gridnode.window import StreamItem

if TYPE_CHECKING:
    from gridnode.inputs import Input


class AsyncStream:
    """The outcomes of a stream in the order of its frames: an async iterator and context manager.

    The source is read in a task of the AsyncGrid, which ends with the stream.
    """

    def __init__(
        self, grid: AsyncGrid, frames: "AsyncIterable[Input] | Iterable[Input]", plan: "StreamPlan[Input]"
    ) -> None:
        self._grid = grid
        self._frames = frames
        self._plan = plan
        self._window = plan.window
        self._scope = anyio.CancelScope()
        self._is_started = False
        self._is_stopped = False
        self._failure: Exception | None = None

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __anext__(self) -> StreamItem:
        self._start()
        while not self._window.has_outcome:
            if self._is_stopped or self._window.is_finished:
                self._end()
            if self._window.can_send:
                await self._send()
            else:
                await self._grid._wait_signal()
        await anyio.lowlevel.checkpoint()
        return item_of(self._window.take_outcome())

    async def aclose(self) -> None:
        """Take no more frames and cancel those in the grid."""
        if not self._is_stopped:
            self._is_stopped = True
            self._scope.cancel()
            for job in self._window.open_jobs():
                self._grid._cancel(job)
        await anyio.lowlevel.checkpoint()

    def _start(self) -> None:
        """Start reading the source with the first outcome asked for."""
        if not self._is_started:
            self._grid._check_open()
            self._is_started = True
            assert self._grid._tasks is not None, "an open grid has tasks"
            self._grid._tasks.start_soon(self._feed)

    def _end(self) -> None:
        """End the iteration, with the source's own error if there is one."""
        failure, self._failure, self._is_stopped = self._failure, None, True
        if failure is not None:
            raise failure
        if self._grid._is_closed and not self._window.is_finished:
            self._grid._check_open()
        raise StopAsyncIteration

    async def _feed(self) -> None:
        """Read the source to its end."""
        with self._scope:
            try:
                async with aclosing(_iterate(self._frames)) as images:
                    async for image in images:
                        await self._take(image)
            except Exception as error:
                # The source is the user's code: whatever it raises belongs to the consumer, in his task.
                self._failure = error
        self._window.source_ended = True
        self._grid._signal()

    async def _take(self, image: "Input") -> None:
        """Put one frame into the window and send it when there is room; in mode ``all``, wait for that."""
        self._window.arrive(image)
        self._grid._signal()
        await self._send()
        while not self._window.can_arrive:
            if self._window.can_send:
                await self._send()
            else:
                await self._grid._wait_signal()

    async def _send(self) -> None:
        """Send the waiting frame if there is room for it."""
        flight = self._window.take_to_send()
        if flight is None:
            return
        try:
            request = await encode(self._plan.model, flight.image, self._plan.options, frame=flight.frame)
            flight.job = self._grid._submit(request, self._plan.deadline_s)
        except (GridError, TypeError) as error:
            flight.error = error
        finally:
            self._grid._signal()


async def _iterate(frames: "AsyncIterable[Input] | Iterable[Input]") -> "AsyncGenerator[Input, None]":
    """Iterate over an async source, or over a sync one in worker threads.

    A thread that hangs in a camera is abandoned when the stream is closed: it ends with its next frame.
    """
    if isinstance(frames, AsyncIterable):
        async with AsyncExitStack() as stack:
            if isinstance(frames, AsyncGenerator):
                await stack.enter_async_context(aclosing(frames))
            async for image in frames:
                yield image
        return
    source = iter(frames)
    while True:
        found = await anyio.to_thread.run_sync(_next, source, abandon_on_cancel=True)
        if found is None:
            return
        yield found[0]


def _next(source: "Iterator[Input]") -> "tuple[Input] | None":
    """Return the next frame of a sync source; None at its end, since StopIteration cannot leave a thread."""
    for image in source:
        return (image,)
    return None
