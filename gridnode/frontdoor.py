"""The Unix socket for programs on this machine: who may connect, how many at once, and what they find there.

One connection per program, many jobs on it; gridnode.program serves it.
"""

import grp
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import trio

from gridnode.config import ClientConfig
from gridnode.control import Goodbye
from gridnode.driver import Driver
from gridnode.errors import StateDirectoryError
from gridnode.jobtable import JobTable
from gridnode.lanes import LaneDesk
from gridnode.localsocket import accept
from gridnode.logs import EventLog
from gridnode.nurseries import collapsing
from gridnode.program import Answerer, Connection, NodeNames
from gridnode.submissions import ModelDirectory
from models.segments import Segment

log = EventLog("frontdoor")


class FrontDoor:
    """Listens for programs.

    Parameters
    ----------
    path : Path
        Of the socket; a stale one of a dead daemon is replaced.
    answer : Answerer
        Answers queries.
    forget_segment : callable
        Lets go of the memory that a program shared, which has left.
    default_deadline_s : float
        Budget of a job that names none.
    """

    def __init__(
        self,
        path: Path,
        *,
        config: ClientConfig,
        node: str,
        name: str,
        grid: str,
        jobs: JobTable,
        driver: Driver,
        lanes: LaneDesk,
        models: ModelDirectory,
        nodes: NodeNames,
        answer: Answerer,
        forget_segment: Callable[[Segment], None],
        default_deadline_s: float,
    ) -> None:
        self.path = path
        self.config = config
        self.node = node
        self.name = name
        self.grid = grid
        self.jobs = jobs
        self.driver = driver
        self.lanes = lanes
        self.models = models
        self.nodes = nodes
        self.answer = answer
        self.forget_segment = forget_segment
        self.default_deadline_s = default_deadline_s
        self.draining = False
        self._connections: set[Connection] = set()

    def drain(self) -> None:
        """Tell all clients that no new job is taken; open ones still get their outcome."""
        self.draining = True
        self.lanes.drain()
        for connection in self._connections:
            connection.say(Goodbye(reason="draining", entries=self.config.entries))

    async def wait_flushed(self) -> None:
        """Wait until every answer has left; the caller limits the time."""
        for connection in tuple(self._connections):
            await connection.wait_flushed()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; the socket file is gone afterwards."""
        listener = await self._listen()
        limit = trio.CapacityLimiter(self.config.connections)
        try:
            with listener:
                task_status.started()
                async with trio.open_nursery() as nursery:
                    while True:
                        await limit.acquire_on_behalf_of(slot := object())
                        plain = await accept(listener)
                        nursery.start_soon(self._serve_one, plain, limit, slot)
        finally:
            self.path.unlink(missing_ok=True)

    async def _serve_one(self, plain: socket.socket, limit: trio.CapacityLimiter, slot: object) -> None:
        connection = Connection(self, plain)
        self._connections.add(connection)
        try:
            with plain, collapsing(OSError, EOFError):
                await connection.run()
        except (OSError, EOFError) as error:
            log.debug("client_lost", error=error)
        finally:
            self._connections.discard(connection)
            limit.release_on_behalf_of(slot)

    async def _listen(self) -> trio.socket.SocketType:
        try:
            self.path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            await _remove_stale(trio.Path(self.path))
            listener = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
            umask = os.umask(0o777 & ~self.config.mode)
            try:
                await listener.bind(str(self.path))
            finally:
                os.umask(umask)
            self.path.chmod(self.config.mode)
            if self.config.group:
                os.chown(self.path, -1, grp.getgrnam(self.config.group).gr_gid)
        except (OSError, KeyError) as error:
            raise StateDirectoryError(
                f"client socket {self.path} cannot be made: {error}; choose another with client.socket"
            ) from error
        listener.listen(self.config.connections)
        return listener


async def _remove_stale(path: trio.Path) -> None:
    """Remove the socket of a daemon that is gone; refuse to take over one that answers."""
    try:
        if not stat.S_ISSOCK((await path.stat()).st_mode):
            raise StateDirectoryError(f"{path} is no socket; choose another path with client.socket")
    except FileNotFoundError:
        return
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM) as probe:
        try:
            await probe.connect(str(path))
        except OSError:
            await path.unlink(missing_ok=True)
            return
    raise StateDirectoryError(f"another daemon answers on {path}; stop it or choose another path with client.socket")
