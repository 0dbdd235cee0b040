"""The process that runs one model: confined, synchronous, at the other end of two sockets and a shared memory.

Owns the order of start-up (confine, import, confine more, load) and the threads: the first reads and answers
requests, as many more as there are further slots do the same, one reads cancellations and maps programs' memory.
Whichever thread is free takes the next packet, so there is no hand-over between threads on a request's way.

Started by models.workerstart as ``python -P -m models.worker JSON``, see Start. The heavy imports come late on
purpose: namespaces must be left while the process has one thread.
"""

import gc
import math
import mmap
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from models import codepages, confine
from models import workerprotocol as protocol
from models.laneprotocol import LaneRequest
from models.laneserver import LaneServer
from models.manifest import ModelError, parse_manifest
from models.mappings import LENT_MAX_BYTES, MARGIN_BYTES, Mappings
from models.segments import ALIGNMENT_BYTES
from models.sharedmemory import SharedMemory
from models.tensors import BadInputError

if TYPE_CHECKING:
    from models.session import RunOptions, Session

LIBRARY_PATHS: Final = ("/usr", "/lib", "/lib64", "/etc/ld.so.cache", "/proc", "/sys", "/dev/urandom")
"""What the libraries read while they are loaded, beside Python's own folders."""

DRIVER_PATHS: Final = ("/dev", "/opt", "/etc", "/run", "/var")
"""What drivers of accelerators read as well."""

CANCELS_KEPT: Final = 64
"""Cancellations of runs that have not begun: more than there are slots. Of one that came too late nothing is to be
remembered, but only its number could tell, and runs need not come in the order of their numbers."""

CROWD_PAUSE_S: Final = 0.002
"""Longest pause between runs that go at once and the next of them: a worker under load is without its second run for as
long as the daemon takes to send another."""

PLAIN_PROVIDERS: Final = frozenset({"CPUExecutionProvider", "XnnpackExecutionProvider"})
"""Providers that need no drivers, hence neither files nor devices."""


GRAPH_MARK: Final = b"graph"
"""The first packet to a worker: the graph's descriptor comes with it."""


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker is started. Numbers are inherited descriptors."""

    requests: int
    control: int
    memory: int
    slots: int
    parent: int
    accelerated: bool = False
    """Whether a provider needs drivers, hence files and addresses without limit."""


class Worker:
    """Answers requests on a loaded model.

    Parameters
    ----------
    session : Session
        The model.
    memory : SharedMemory
        Payloads and raw outputs.
    mappings : Mappings
        Memory of programs.
    requests : socket
        Whence orders come and whither answers go; shared by the threads.
    share_threads : callable
        Prepares the session for runs that go at once; called once, in a thread of its own, when two of them do.
    options : callable
        Makes the runtime's options of one run.
    input_faults, model_faults : tuples of exception types
        Whose fault an exception of the session tells of.
    """

    def __init__(
        self,
        session: "Session",
        memory: SharedMemory,
        mappings: Mappings,
        requests: socket.socket,
        *,
        share_threads: Callable[[], None],
        options: "Callable[[], RunOptions]",
        input_faults: tuple[type[Exception], ...],
        model_faults: tuple[type[Exception], ...],
    ) -> None:
        self._session = session
        self._memory = memory
        self._mappings = mappings
        self._requests = requests
        self._share_threads: Callable[[], None] | None = share_threads
        self._options = options
        self._input_faults = input_faults
        self._model_faults = model_faults
        self._lock = threading.Lock()
        self._was_crowded = False
        """Whether the last run that began found another one going on."""
        self._ended_s = -math.inf
        """When a run ended last."""
        self._running: dict[int, RunOptions] = {}
        self._cancelled: dict[int, None] = {}
        """In the order of their coming."""
        self._lanes: dict[int, LaneServer] = {}
        """The control thread's alone, but for ends."""

    def serve(self) -> None:
        """Answer orders until the daemon closes the socket."""
        receive, send = self._requests.recv, self._requests.send
        while packet := receive(protocol.PACKET_MAX_BYTES):
            send(protocol.encode(self._answer(protocol.decode_run(packet))))

    def cancel(self, run: int) -> None:
        """Terminate a run now, or remember to when it comes; of one that is over nothing will come."""
        with self._lock:
            if run in self._running:
                self._running[run].terminate = True
                return
            self._cancelled[run] = None
            if len(self._cancelled) > CANCELS_KEPT:
                del self._cancelled[next(iter(self._cancelled))]

    def open_lane(self, order: protocol.OpenLaneOrder, line: socket.socket) -> None:
        """Serve a program by a socket of its own, in a thread of its own."""
        lane, options = order.lane, self._options()

        def answer(request: LaneRequest, output: memoryview) -> tuple[bytes, int] | None:
            self._running[-lane] = options
            try:
                payload = self._lent(order.segment, request.offset, request.payload_bytes)
                if payload is None:
                    return None
                return self._session.answer(
                    request.body, payload, output, options, is_shared=True, is_alone=self._is_alone()
                )
            except (*self._input_faults, *self._model_faults):
                return None
            finally:
                self._ended_s = time.perf_counter()
                del self._running[-lane]

        def tell(record: protocol.LaneBegun | protocol.LaneEnded) -> None:
            if isinstance(record, protocol.LaneEnded) and record.is_closed:
                del self._lanes[lane]
            self._requests.send(protocol.encode(record))

        server = self._lanes[lane] = LaneServer(lane, line, answer=answer, tell=tell)
        threading.Thread(target=server.serve, daemon=True).start()

    def rule_lane(self, order: protocol.TicketOrder | protocol.RevokeOrder | protocol.CloseLaneOrder) -> None:
        """Carry out an order about a lane; about one that has ended there is nothing to do."""
        lane = self._lanes.get(order.lane)
        match order:
            case _ if lane is None:
                return
            case protocol.TicketOrder():
                lane.give(order.ticket, runs=order.runs, lasts_s=order.lasts_s)
            case protocol.RevokeOrder():
                lane.revoke(order.ticket)
            case protocol.CloseLaneOrder():
                lane.close()
                if (options := self._running.get(-order.lane)) is not None:
                    options.terminate = True

    def _answer(self, order: protocol.RunOrder) -> protocol.Answer:
        """Run one request and say what became of it."""
        options = self._begin(order.run)
        started_s = time.perf_counter()
        try:
            if options.terminate:
                return protocol.Failed(run=order.run, kind="terminated", reason="cancelled in time", service_s=0.0)
            payload = self._payload(order)
            if payload is None:
                reason = "the program's memory could not be mapped"
                return protocol.Failed(run=order.run, kind="unmapped", reason=reason, service_s=0.0)
            output = self._memory.output(order.slot)
            body, size = self._session.answer(
                order.body,
                payload,
                output,
                options,
                is_shared=order.segment > 0,
                is_alone=self._is_alone(),
            )
        except self._input_faults as error:
            return _failed(order.run, "input", error, started_s)
        except self._model_faults as error:
            return _failed(order.run, "terminated" if options.terminate else "model", error, started_s)
        finally:
            with self._lock:
                del self._running[order.run]
        self._ended_s = ended_s = time.perf_counter()
        return protocol.Done(run=order.run, body=body, payload_bytes=size, service_s=ended_s - started_s)

    def _payload(self, order: protocol.RunOrder) -> memoryview | None:
        """Return a request's payload, where it lies; None where that is not mapped."""
        if not order.segment:
            return self._memory.input(order.slot)[: order.payload_bytes].toreadonly()
        return self._lent(order.segment, order.offset, order.payload_bytes)

    def _lent(self, segment: int, offset: int, size_bytes: int) -> memoryview | None:
        """Return a payload in a program's memory; None where that is not mapped."""
        memory = self._mappings.find(segment)
        if memory is None:
            return None
        end = offset + size_bytes
        if offset < 0 or offset % ALIGNMENT_BYTES or end + MARGIN_BYTES > memory.nbytes:
            raise BadInputError(f"payload of {size_bytes} bytes at {offset} lies outside of its memory")
        return memory[offset:end]

    def _is_alone(self) -> bool:
        """Tell whether one run goes on, and not only for a moment. The first time not, more of it is expected."""
        was_crowded, self._was_crowded = self._was_crowded, len(self._running) > 1
        if not self._was_crowded:
            return not was_crowded or time.perf_counter() - self._ended_s > CROWD_PAUSE_S
        with self._lock:
            prepare, self._share_threads = self._share_threads, None
        if prepare is not None:
            threading.Thread(target=prepare, daemon=True).start()
        return False

    def _begin(self, run: int) -> "RunOptions":
        """Make a run known to cancel()."""
        options = self._options()
        with self._lock:
            if self._cancelled and run in self._cancelled:
                del self._cancelled[run]
                options.terminate = True
            self._running[run] = options
        return options


def _failed(run: int, kind: str, error: Exception, started_s: float) -> protocol.Failed:
    reason = protocol.shorten(str(error) or type(error).__name__)
    return protocol.Failed(run=run, kind=kind, reason=reason, service_s=time.perf_counter() - started_s)


def main() -> None:
    """Run a worker to its end."""
    start = msgspec.json.decode(sys.argv[1], type=Start)
    # The daemon alone decides when a worker ends; a terminal's Ctrl-C reaches the whole group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    readable = [*LIBRARY_PATHS, *(DRIVER_PATHS if start.accelerated else ()), *library_folders()]
    isolated = confine.isolate(parent=start.parent, readable=readable)
    requests = socket.socket(fileno=start.requests)
    control = socket.socket(fileno=start.control)
    memory = SharedMemory(start.memory, start.slots)
    threading.excepthook = _end
    mappings = Mappings()
    worker = _load(start, isolated, requests, memory, mappings)
    if worker is not None:
        threading.Thread(target=_obey, args=(control, worker, mappings), daemon=True).start()
        for _ in range(start.slots - 1):
            threading.Thread(target=worker.serve, daemon=True).start()
        worker.serve()
    # The runtime's own clean-up takes its time and has nothing to save.
    sys.stderr.flush()
    os._exit(0)


def library_folders() -> list[str]:
    """Return the folders that Python loads modules from."""
    folders = {sys.prefix, sys.base_prefix, sys.exec_prefix, *sys.path}
    return sorted(folder for folder in folders if folder)


def _load(
    start: Start,
    isolated: confine.Confinement,
    requests: socket.socket,
    memory: SharedMemory,
    mappings: Mappings,
) -> Worker | None:
    """Import the runtime, give up what is left to give up, load the model and tell the daemon how that went."""
    from models import session as runtime

    descriptor = _receive_graph(requests)
    if descriptor is None:
        return None  # a spare that is not needed
    order = protocol.decode_load(requests.recv(protocol.PACKET_MAX_BYTES))
    manifest = parse_manifest(bytes(memory.input(0)[: order.manifest_bytes]))
    # Whatever libraries load on first use they must load now.
    runtime.prepare(manifest)
    os.chdir(order.empty_folder)
    graph = _read(descriptor)
    code = codepages.clean_ranges()
    sealed = confine.seal(
        memory_bytes=None if start.accelerated else order.memory_bytes,
        shared_bytes=LENT_MAX_BYTES,
        empty_folder=None if start.accelerated else order.empty_folder,
    )
    try:
        session = runtime.Session(graph, manifest, threads=order.threads, providers=order.providers)
        codepages.give_back(code)
        session.warm_up()
    except runtime.RUNTIME_FAULTS as error:
        requests.send(protocol.encode(protocol.LoadFailed(reason=protocol.shorten(str(error) or repr(error)))))
        return None
    del graph
    runtime.give_back()
    gc.freeze()
    reached = isolated.reached + sealed.reached
    missing = isolated.missing + sealed.missing

    def share_threads() -> None:
        session.share_threads(_read(descriptor), runs=order.slots)
        os.close(descriptor)
        runtime.give_back()

    requests.send(protocol.encode(protocol.Ready(providers=session.providers, reached=reached, missing=missing)))
    return Worker(
        session,
        memory,
        mappings,
        requests,
        share_threads=share_threads,
        options=runtime.RunOptions,
        input_faults=(BadInputError,),
        model_faults=(ModelError, *runtime.RUNTIME_FAULTS),
    )


def _receive_graph(requests: socket.socket) -> int | None:
    """Wait for the graph's descriptor; None where the daemon has gone, or has nothing for us."""
    mark, descriptors, _, _ = socket.recv_fds(requests, len(GRAPH_MARK), 1)
    if not mark:
        return None
    assert mark == GRAPH_MARK, mark
    [descriptor] = descriptors
    return descriptor


def _read(descriptor: int) -> bytes:
    """Read a file from its start, whatever its offset: the descriptor is shared with the daemon."""
    with mmap.mmap(descriptor, 0, prot=mmap.PROT_READ) as mapping:
        return mapping[:]


def _obey(control: socket.socket, worker: Worker, mappings: Mappings) -> None:
    """Carry out control orders; leave at once when the daemon is gone, whatever runs."""
    while True:
        packet, descriptors, _, _ = socket.recv_fds(control, protocol.PACKET_MAX_BYTES, 1)
        if not packet:
            os._exit(1)
        match protocol.decode_control(packet):
            case protocol.CancelOrder() as order:
                worker.cancel(order.run)
            case protocol.MapOrder() as order:
                [descriptor] = descriptors
                mappings.map(order.segment, order.size_bytes, descriptor)
            case protocol.UnmapOrder() as order:
                mappings.unmap(order.segment)
            case protocol.OpenLaneOrder() as order:
                [descriptor] = descriptors
                worker.open_lane(order, socket.socket(fileno=descriptor))
            case order:
                worker.rule_lane(order)


def _end(fault: threading.ExceptHookArgs) -> None:
    """End the process on a bug in any thread: half a worker would look like a slow one."""
    sys.__excepthook__(fault.exc_type, fault.exc_value or fault.exc_type(), fault.exc_traceback)
    sys.stderr.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
