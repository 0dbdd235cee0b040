"""Starting a worker process, with everything that joins it to the daemon.

Owns the making of sockets, shared memory and log pipe, and the copying of that pipe into the log. What is said over
them is in models.workerprocess.
"""

import contextlib
import logging
import os
import socket
import subprocess
from typing import Final

import msgspec
import trio

from models import child
from models.sharedmemory import SharedMemory
from models.worker import PLAIN_PROVIDERS, Start

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
        self.output = trio.lowlevel.FdStream(output)
        self.memory = memory


def start_worker(graph: int, settings: WorkerSettings) -> WorkerEnds:
    """Start a worker on a graph's descriptor; blocks for a few milliseconds, see models.child.spawn.

    Raises
    ------
    OSError
        The machine is out of processes, memory or descriptors; nothing is left behind.
    """
    with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
        memory = SharedMemory.create(settings.slots)
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
            graph=graph,
            slots=settings.slots,
            parent=os.getpid(),
            accelerated=not PLAIN_PROVIDERS.issuperset(settings.providers),
        )
        process = child.spawn(
            "models.worker",
            [msgspec.json.encode(start).decode("ascii")],
            descriptors=(start.requests, start.control, start.memory, graph),
            folder=settings.empty_folder,
            output=far_output,
        )
        requests.setblocking(False)
        control.setblocking(False)
        ours.pop_all()
    return WorkerEnds(process, requests, control, output, memory)


async def copy_log(output: trio.lowlevel.FdStream, *, pid: int, model: str) -> None:
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
