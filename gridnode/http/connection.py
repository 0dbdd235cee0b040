"""One program on its HTTP connection: a request, its answer, the next request.

The task of a connection waits for the program in one place. An answer leaves in the call that makes it, if the
socket takes it; else a task sends the rest. A program that leaves before its answer has its job cancelled. Requests
sent ahead wait in the read buffer for their turn; while some wait there, nobody sees whether the program has gone.
"""

import contextlib
import functools
import math
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Final

import trio

from gridnode.http.bodies import Allocate, Body, held_bytes, read_body
from gridnode.http.exchange import Exchange
from gridnode.http.heads import CONTINUE, Head, HeadMemory, HttpError
from gridnode.http.memory import Holding
from gridnode.http.receiving import Receiver
from gridnode.http.responses import Reply, error_reply
from gridnode.logs import EventLog
from models.tensors import Buffer

if TYPE_CHECKING:
    from gridnode.http.server import HttpServer

log = EventLog("http")

RATE_MIN: Final = 100_000
"""Bytes per second at which a request must come, beside the time that each has: the slowest link that cameras use. Who
sends slower, on purpose or not, holds memory that others wait for."""
STALL_MAX_S: Final = 20.0
"""Longest time in which a program reads nothing of its answer."""
LINGER_S: Final = 1.0
"""After an answer to a request that was not read to its end, time for the program to see it: closing at once would
reset the connection under it."""


class Connection:
    """One program.

    Parameters
    ----------
    server : HttpServer
        What all connections share.
    plain : socket.socket
        Non-blocking; stays the caller's.
    """

    def __init__(self, server: "HttpServer", plain: socket.socket) -> None:
        self._server = server
        self._plain = plain
        self._receiver = Receiver(plain, self._have_patience)
        self._heads = HeadMemory()
        self._nursery: trio.Nursery | None = None
        self._patience = trio.CancelScope()
        self._exchange: Exchange | None = None
        """The inference under way."""
        self._is_idle = True
        """Whether nothing of a request has come since the last answer."""
        self._is_reading = False
        """Whether a request is coming in."""
        self._due_s = 0.0
        """When the request that is coming in must be here, but for what its bytes so far earn it."""
        self._is_head = False
        """Whether the request is a HEAD: its answer goes without its body."""
        self._is_busy = False
        """Whether an answer is due that has not left completely."""
        self._is_closing = False
        """Whether the connection ends with the answer now due, or at once where none is."""
        self._free: trio.Event | None = None
        """Set, for who waits for it, when no answer is due any more."""

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        """Serve the program until it leaves; raises OSError or EOFError when the connection breaks."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                while not self._is_closing:
                    await self._serve_one()
                nursery.cancel_scope.cancel()
        finally:
            self._nursery = None
            self._set_free()
            if self._exchange is not None:
                self._exchange.abandon()

    def close_soon(self) -> None:
        """End the connection with the answer now due, or at once where none is."""
        self._is_closing = True
        if self._is_idle:
            self._patience.cancel()

    async def wait_flushed(self) -> None:
        """Wait until the answer now due has left, or the connection has ended."""
        if self._is_busy and self._nursery is not None:
            self._free = self._free or trio.Event()
            await self._free.wait()

    async def _serve_one(self) -> None:
        """Take one request, and wait until its answer has left and the program says more."""
        self._patience = trio.CancelScope(deadline=trio.current_time() + self._server.config.idle_s)
        try:
            with self._patience:
                if await self._wait_for_request():
                    await self._take_request()
                while self._is_busy or not (self._receiver.has_data or self._is_closing):
                    await self._watch()
        except HttpError as error:
            await self._refuse(error)
        if self._patience.cancelled_caught and not self._is_closing:
            self._is_closing = True
            if not self._is_idle:
                await self._refuse(HttpError(408, "the request did not come within its time; send it faster"))

    async def _wait_for_request(self) -> bool:
        if self._receiver.has_data:
            await trio.lowlevel.checkpoint()  # so that a program that sends ahead cannot keep the loop to itself
            return True
        if await self._receiver.receive_more():
            return True
        self._is_closing = True
        return False

    async def _watch(self) -> None:
        """Wait until the answer has left or the program says or does something; raises EOFError where it has gone."""
        if self._receiver.has_data:
            await self.wait_flushed()
        elif not await self._receiver.receive_more():
            if self._is_busy:
                raise EOFError("program left before its answer")
            self._is_closing = True

    # ------------------------------------------------------------ requests

    async def _take_request(self) -> None:
        """Read a request and answer it, or begin to; raises HttpError where it is not read to its end."""
        self._is_idle, self._is_reading = False, True
        self._due_s = trio.current_time() + self._server.config.request_s - self._receiver.received / RATE_MIN
        data = await self._receiver.read_head()
        head = self._heads.parse(data)
        self._server.check_origin(head)
        most_bytes = self._server.config.body_bytes
        holding = self._server.memory.hold(held_bytes(head, most_bytes=most_bytes))
        exchange = None
        try:
            exchange = await self._answer(head, data, holding)
        finally:
            if exchange is None:
                holding.release()

    def _have_patience(self) -> None:
        """Give a request that comes in the time that it has earned; called before each wait for the program."""
        if self._is_reading:
            self._patience.deadline = self._due_s + self._receiver.received / RATE_MIN

    async def _answer(self, head: Head, data: bytes, holding: Holding) -> Exchange | None:
        """Read a request's body and answer it; return what is under way for it and has taken the body, if anything."""
        try:
            model, error = self._server.documents.model_to_run(head), None
        except HttpError as found:
            model, error = None, found
        name = model[1].manifest.name if model is not None else ""
        body = await self._read_body(head, data, functools.partial(holding.buffer, model=name))
        self._is_busy = True
        self._is_head = head.method == "HEAD"
        self._is_closing = self._is_closing or not head.keeps_alive
        try:
            if error is not None:
                raise error
            if model is not None:
                exchange = self._exchange = Exchange(self._server, self)
                await exchange.begin(model, body, holding)
                return exchange
            self.reply(self._server.documents.answer(head, body.text))
        except HttpError as found:
            self.reply(error_reply(found))
        return None

    async def _read_body(self, head: Head, data: bytes, allocate: Allocate) -> Body:
        if head.expects_continue and not self._receiver.has_data and send_some(self._plain, [CONTINUE]):
            raise EOFError("program reads nothing")
        body = await read_body(
            self._receiver,
            head,
            data,
            most_bytes=self._server.config.body_bytes,
            allocate=allocate,
            in_thread=self._server.in_thread,
        )
        self._is_reading = False
        self._patience.deadline = math.inf
        return body

    async def _refuse(self, error: HttpError) -> None:
        """Answer a request that was not read to its end, and end the connection."""
        self._is_closing = self._is_busy = True
        self._is_reading = self._is_head = False
        self.reply(error_reply(error))
        with trio.move_on_after(STALL_MAX_S):
            await self.wait_flushed()
        with trio.move_on_after(LINGER_S), contextlib.suppress(OSError, EOFError):
            self._plain.shutdown(socket.SHUT_WR)
            while True:
                await self._receiver.read_some()

    # ------------------------------------------------------------ answers

    def spawn(self, work: Callable[[], Awaitable[object]]) -> None:
        """Do something beside the connection's task, not beyond its life."""
        if self._nursery is not None:
            self._nursery.start_soon(work)

    def reply(self, reply: Reply) -> None:
        """Send the answer that is due; a program that has gone loses its connection."""
        if self._nursery is None:
            return
        self._exchange = None
        head = reply.head(keeps_alive=not self._is_closing)
        left: list[Buffer] = [head] if self._is_head else [head, *reply.parts]
        try:
            rest = send_some(self._plain, left)
        except OSError as error:
            log.debug("program_lost", error=error)
            self._nursery.cancel_scope.cancel()
            return
        if rest:
            self._nursery.start_soon(self._send_rest, rest)
        else:
            self._set_free()

    async def _send_rest(self, left: list[memoryview]) -> None:
        while left:
            with trio.move_on_after(STALL_MAX_S) as scope:
                await trio.lowlevel.wait_writable(self._plain)
            if scope.cancelled_caught:
                raise EOFError(f"program has read nothing of its answer for {STALL_MAX_S:.0f} s")
            left = send_some(self._plain, left)
        self._set_free()

    def _set_free(self) -> None:
        """Take note that no answer is due any more."""
        self._is_busy = False
        self._is_idle = not self._receiver.has_data
        if self._free is not None:
            self._free.set()
            self._free = None
        if self._is_closing:
            self._patience.cancel()
        else:
            self._patience.deadline = trio.current_time() + self._server.config.idle_s


def send_some(plain: socket.socket, parts: Sequence[Buffer]) -> list[memoryview]:
    """Send without waiting; return what is left. Raises OSError."""
    left = [memoryview(part).cast("B") for part in parts if len(part)]
    while left:
        try:
            sent = plain.sendmsg(left)
        except BlockingIOError:
            break
        while left and sent >= len(left[0]):
            sent -= len(left.pop(0))
        if left:
            left[0] = left[0][sent:]
    return left
