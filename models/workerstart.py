"""Starting a worker process, with everything that joins it to the daemon.

Owns the making of sockets, shared memory and log pipe, the copying of that pipe into the log, and the spare: a worker
that is started before its model is known. What is said over the sockets is in models.workerprocess.

trio is imported late: a daemon starts its spare first and then imports the rest of itself, while the spare imports the
runtime on another processor.
"""

import contextlib
import functools
import logging
import os
import socket
import subprocess
from typing import TYPE_CHECKING, Final

import msgspec

from models import child
from models.sharedmemory import SharedMemory
from models.worker import GRAPH_MARK, PLAIN_PROVIDERS, Start

if TYPE_CHECKING:
    import trio

log = logging.getLogger("gridnode.models")

LOG_LINES_MAX: Final = 200
"""Lines of one worker that reach the log; a model cannot fill the disk through it."""
LOG_LINE_MAX_BYTES: Final = 400
"""Bytes of a line that are kept; the runtime's messages begin with what matters."""


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How workers are run on this node; models.runtime.RuntimeConfig says what each field means."""

    slots: int
    threads: int
    providers: tuple[str, ...]
    cpu_share: float
    load_max_s: float
    empty_folder: str
    spare: "Spare | None" = None
    """A worker that waits for the first model."""


class WorkerEnds:
    """A running worker and our ends of what joins us; whoever has it closes each."""

    def __init__(
        self,
        process: "subprocess.Popen[bytes]",
        requests: socket.socket,
        control: socket.socket,
        output: int,
        memory: SharedMemory,
    ) -> None:
        self.process = process
        self.requests = requests
        """Not blocking; plain, since trio's own sockets yield to other tasks on every call."""
        self.control = control
        """Not waited for: a cancellation that finds no room is dropped."""
        self._output = output
        self.memory = memory

    @functools.cached_property
    def output(self) -> "trio.lowlevel.FdStream":
        """The process's words."""
        import trio

        return trio.lowlevel.FdStream(self._output)

    def close(self) -> None:
        """End the process and let go of everything; only for a worker that nobody uses yet. Blocks for milliseconds."""
        self.process.kill()
        self.process.wait()
        self.requests.close()
        self.control.close()
        os.close(self._output)
        self.memory.close()


def start_worker(graph: int, settings: WorkerSettings) -> WorkerEnds:
    """Start a worker on a graph's descriptor, or take the spare; blocks for a few milliseconds, see models.child.spawn.

    Raises
    ------
    OSError
        The machine is out of processes, memory or descriptors; nothing is left behind.
    """
    accelerated = not PLAIN_PROVIDERS.issuperset(settings.providers)
    ends = None if settings.spare is None else settings.spare.take(slots=settings.slots, accelerated=accelerated)
    if ends is None:
        ends = _start(slots=settings.slots, accelerated=accelerated, folder=settings.empty_folder)
    try:
        socket.send_fds(ends.requests, [GRAPH_MARK], [graph])
    except OSError:
        ends.close()
        raise
    return ends


class Spare:
    """A worker that has no model yet, confined like any other; whoever makes it closes it.

    Parameters
    ----------
    slots : int
        Runs at once of the model that will be loaded first.

    Raises
    ------
    OSError
        As start_worker().
    """

    def __init__(self, *, slots: int) -> None:
        self._slots = slots
        # The worker goes to the empty folder when it is told of one.
        self._ends: WorkerEnds | None = _start(slots=slots, accelerated=False, folder="/")

    def take(self, *, slots: int, accelerated: bool) -> WorkerEnds | None:
        """Hand the worker over, once, to a model that it fits; None where there is none or it has died."""
        if self._ends is None or slots != self._slots or accelerated:
            return None
        ends, self._ends = self._ends, None
        if ends.process.poll() is None:
            log.info("spare_taken pid=%d", ends.process.pid)
            return ends
        ends.close()
        return None

    def close(self) -> None:
        """End a worker that nobody took."""
        if self._ends is not None:
            self._ends.close()
            self._ends = None


def _start(*, slots: int, accelerated: bool, folder: str) -> WorkerEnds:
    """Start a worker; its model comes later, over the socket."""
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        memory = SharedMemory.create(slots)
        ours.callback(memory.close)
        requests, far_requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.callback(requests.close)
        theirs.callback(far_requests.close)
        control, far_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.callback(control.close)
        theirs.callback(far_control.close)
        output, far_output = os.pipe2(os.O_CLOEXEC)
        ours.callback(os.close, output)
        theirs.callback(os.close, far_output)
        start = Start(
            requests=far_requests.fileno(),
            control=far_control.fileno(),
            memory=memory.descriptor,
            slots=slots,
            parent=os.getpid(),
            accelerated=accelerated,
        )
        process = child.spawn(
            "models.worker",
            [msgspec.json.encode(start).decode("ascii")],
            descriptors=(start.requests, start.control, start.memory),
            folder=folder,
            output=far_output,
        )
        requests.setblocking(False)
        control.setblocking(False)
        ours.pop_all()
    return WorkerEnds(process, requests, control, output, memory)


async def copy_log(output: "trio.lowlevel.FdStream", *, pid: int, model: str) -> None:
    """Pass a worker's words on, as lines, up to LOG_LINES_MAX of them; read to the end all the same."""
    rest = b""
    lines = 0
    async for data in output:
        *found, rest = (rest + data).split(b"\n")
        for line in found[: max(0, LOG_LINES_MAX - lines)]:
            text = line[:LOG_LINE_MAX_BYTES].decode("utf-8", "replace")
            log.warning("worker_said pid=%d model=%s line=%r", pid, model, text)
        lines += len(found)
        rest = rest[:LOG_LINE_MAX_BYTES]
