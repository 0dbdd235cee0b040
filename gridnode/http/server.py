"""The HTTP port for programs: where it listens, who may come, and what all connections share.

Nobody is asked who he is: whoever reaches the port may use the grid. So it is bound to this machine unless its
operator says otherwise, and web pages, which any browser on this machine may bring along, are turned away.
"""

import contextlib
import itertools
import os
import socket
from collections.abc import Callable
from typing import Final, TypeVar

import trio

from gridnode.config import HttpConfig
from gridnode.control import make_key
from gridnode.driver import Driver
from gridnode.errors import StateDirectoryError
from gridnode.http.connection import Connection
from gridnode.http.documents import Documents
from gridnode.http.heads import Head, HttpError
from gridnode.http.memory import BodyMemory
from gridnode.http.responses import error_reply
from gridnode.jobtable import JobTable
from gridnode.localsocket import accept
from gridnode.logs import EventLog
from gridnode.modelhouse import ModelHouse
from gridnode.nurseries import collapsing
from gridnode.program import NodeNames
from models.segments import Segment

log = EventLog("http")

T = TypeVar("T")

THREADS: Final = 1
"""Threads that read and write large JSON and decompress bodies: each may take 20 times its text in memory."""
LOCAL_NAMES: Final = ("localhost", "127.0.0.1", "[::1]")
"""What this machine calls itself in the Host header. A web page that has its own name point here would send that."""


class HttpServer:
    """Listens for programs.

    Parameters
    ----------
    default_deadline_s : float
        Budget of a request that names none, in seconds.
    is_ready : callable
        Says whether the node takes work.
    offered : callable
        Returns the digests of the models that any node reachable runs, this one included.
    forget_segment : callable
        Lets go of memory that workers share.
    """

    def __init__(
        self,
        config: HttpConfig,
        *,
        node: str,
        jobs: JobTable,
        driver: Driver,
        models: ModelHouse,
        nodes: NodeNames,
        default_deadline_s: float,
        is_ready: Callable[[], bool],
        offered: Callable[[], frozenset[str]],
        forget_segment: Callable[[Segment], None],
    ) -> None:
        self.config = config
        self.node = node
        self.jobs = jobs
        self.driver = driver
        self.models = models
        self.nodes = nodes
        self.default_deadline_s = default_deadline_s
        self.documents = Documents(models, is_ready=is_ready, offered=offered)
        self.memory = BodyMemory(forget_segment)
        self._threads = trio.CapacityLimiter(THREADS)
        self._id = os.urandom(16)
        self.client = self._id.hex()[:16]
        """All programs here are one to the scheduler: which of them sends, nobody can tell."""
        self._numbers = itertools.count(1)
        self._connections: set[Connection] = set()

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Do what takes long in a thread, when its turn has come."""
        async with self._threads:
            return await trio.to_thread.run_sync(work)

    def mint_key(self) -> bytes:
        """Return the key of a new job."""
        return make_key(self._id, next(self._numbers))

    def check_origin(self, head: Head) -> None:
        """Turn web pages away; raises HttpError."""
        if self.config.allow_remote:
            return
        if head.origin:
            raise HttpError(403, f"requests of web pages are not served, this one is of {head.origin[:200]!r}")
        bracketed = head.host.startswith("[")
        name = head.host.partition("]")[0] + "]" if bracketed else head.host.partition(":")[0]
        if name and name.lower() not in (*LOCAL_NAMES, self.config.host):
            raise HttpError(
                403, f"host {head.host[:200]!r} is not this machine; call it localhost, or set http.allow_remote"
            )

    def drain(self) -> None:
        """End each connection with the answer now due there; new requests are refused by the core."""
        for connection in tuple(self._connections):
            connection.close_soon()

    async def wait_flushed(self) -> None:
        """Wait until every answer has left; the caller limits the time."""
        for connection in tuple(self._connections):
            await connection.wait_flushed()

    async def serve(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve programs until cancelled; reports the bound port.

        Raises
        ------
        StateDirectoryError
            The port cannot be opened.
        """
        host, port = self.config.host, self.config.port
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as error:
            raise StateDirectoryError(
                f"http port {host}:{port} cannot be opened: {error.strerror}; set http.port, or http.enabled=false"
            ) from error
        port = listeners[0].socket.getsockname()[1]
        try:
            async with trio.open_nursery() as nursery:
                for listener in listeners:
                    nursery.start_soon(self._accept_all, listener.socket, nursery)
                task_status.started(port)
                log.info("http_listening", host=host, port=port)
        finally:
            self.memory.close()

    async def _accept_all(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        """Accept programs until cancelled; they are served in the nursery."""
        with listener:
            while True:
                plain = await accept(listener)
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if len(self._connections) >= self.config.connections:
                    _turn_away(plain)
                    continue
                connection = Connection(self, plain)
                self._connections.add(connection)
                nursery.start_soon(self._serve_one, connection, plain)

    async def _serve_one(self, connection: Connection, plain: socket.socket) -> None:
        try:
            with plain, collapsing(OSError, EOFError):
                await connection.run()
        except (OSError, EOFError) as error:
            log.debug("program_lost", error=error)
        finally:
            self._connections.discard(connection)


def _turn_away(plain: socket.socket) -> None:
    """Tell a program that there are too many, as far as that can be done at once."""
    reply = error_reply(HttpError(503, "too many connections: see http.connections", retry_after_s=1))
    with plain, contextlib.suppress(OSError):
        plain.sendmsg([reply.head(keeps_alive=False), *reply.parts])
