"""What every way of asking a model looks like to the measurement: one class for each peer, in a peer_*.py of its own.

A way starts its server processes, opens a client, and answers calls. The server side is known by its mark. A client
holds what its API's user would hold: a connection kept open, a channel, a handle.
"""

import contextlib
import queue
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Protocol

import numpy as np

from benches.peers import processes
from benches.peers.workloads import Requests

Call = Callable[[int], np.ndarray]
"""Asks request number n and returns the answer as an array."""

START_S = 120.0
"""Longest time until a server says where it listens."""


REFUSED_S = 0.001
"""Pause of a client that was refused, before it asks again."""


class PeerError(Exception):
    """A peer did not start, or answered wrongly; the message says which and what."""


class Closable(Protocol):
    """A connection."""

    def close(self) -> None: ...


class Way:
    """One way of asking a model."""

    name: ClassVar[str]
    label: ClassVar[str]
    encrypted: ClassVar[str] = "no"
    """no, or by what."""
    between: ClassVar[int] = 1
    """Processes, other than the caller's, that a request passes through, the model's own among them."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules that must be installed, by import name."""
    extra: ClassVar[str] = ""
    """The extra that installs them."""
    module: ClassVar[str] = ""
    """Run as the server."""
    environment: ClassVar[dict[str, str]] = {}
    stands: ClassVar[bool] = True
    """Whether it has servers whose start and idle cost can be told."""
    is_heavy: ClassVar[bool] = False
    """Whether it starts so slowly that once must do."""
    refusals: ClassVar[tuple[type[Exception], ...]] = ()
    """What a call raises where the server, in good order, did not answer it; counted under load."""
    starting: ClassVar[tuple[type[Exception], ...]] = ()
    """What a call raises while the server, which has said where it listens, is still starting."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.mark = f"{self.name}-{id(self):x}-{time.monotonic_ns():x}"
        self.address = ""
        self._server: subprocess.Popen[str] | None = None
        self._connections: list[Closable] = []

    @classmethod
    def missing(cls) -> str:
        """Say what is not installed; empty where nothing is."""
        absent = [name for name in cls.needs if find_spec(name) is None]
        return f"not installed: {', '.join(absent)}; pip install -e '.[{cls.extra}]'" if absent else ""

    def install(self, models: Sequence[str]) -> None:
        """Do once what a start takes for granted: models in place, keys made."""

    def start(self, models: Sequence[str]) -> None:
        """Start the server with these models and wait until it says where it listens."""
        words = ("-m", self.module, str(self.folder), *models)
        self._server = processes.start(words, mark=self.mark, environment=self.environment, log=self.log)
        self.address = self._read_address(self._server)

    def _read_address(self, server: subprocess.Popen[str]) -> str:
        """Read the server's first line, within bounds: a server that hangs must not hang the run."""
        lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert server.stdout is not None
        threading.Thread(target=lambda: lines.put(server.stdout.readline().strip()), daemon=True).start()
        try:
            address = lines.get(timeout=START_S)
        except queue.Empty:
            address = ""
        if not address:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise PeerError(f"{self.name}: the server did not start within {START_S:.0f} s: {tail}")
        return address

    @property
    def log(self) -> Path:
        return self.folder / f"{self.name}.log"

    def open(self) -> None:
        """Connect the client."""

    def caller(self, requests: Requests) -> Call:
        """Return a function that asks and waits; each has a connection of its own where the API is one at a time."""
        raise NotImplementedError

    def flood(self, requests: Requests, in_flight: int, seconds: float) -> "Flood":
        """Keep so many requests in flight for so long. Threads, unless overridden."""
        with self.passing_connections():
            return flood_by_threads([self.caller(requests) for _ in range(in_flight)], requests, seconds)

    @contextlib.contextmanager
    def passing_connections(self) -> Iterator[None]:
        """Close, at the end, the connections that callers open meanwhile."""
        kept = len(self._connections)
        try:
            yield
        finally:
            self._hang_up(kept)

    def _hang_up(self, kept: int = 0) -> None:
        for connection in self._connections[kept:]:
            connection.close()
        del self._connections[kept:]

    def server_pids(self) -> list[int]:
        """Return the processes of the server side."""
        return processes.family(self.mark)

    def close(self) -> None:
        """Disconnect the client."""
        self._hang_up()

    def stop(self) -> None:
        """End the server side."""
        if self._server is not None:
            processes.stop(self._server)
            self._server = None


def check(way: str, requests: Requests, number: int, answer: np.ndarray) -> None:
    """Raise PeerError for a wrong answer."""
    if not requests.is_right(number, answer):
        raise PeerError(f"{way}: wrong answer to request {number} of {requests.workload.name}: {answer!r:.200}")


@dataclass(frozen=True)
class Flood:
    """What came of many requests at once."""

    answered: int
    took_s: float
    refused: Mapping[str, int] = field(default_factory=dict)
    """Requests without an answer, by what was said instead."""


def flood_by_threads(callers: Sequence[Call], requests: Requests, seconds: float) -> Flood:
    """Let each thread ask again as soon as it is answered, until the time is over; what is under way is waited for."""
    counts = [0] * len(callers)
    faults: list[BaseException] = []
    gate = threading.Barrier(len(callers) + 1)

    def work(place: int, call: Call) -> None:
        gate.wait()
        number = place
        try:
            while time.perf_counter() < until_s:
                check("flood", requests, number, call(number))
                number += 1
                counts[place] += 1
        except BaseException as fault:
            faults.append(fault)

    threads = [threading.Thread(target=work, args=item, daemon=True) for item in enumerate(callers)]
    for thread in threads:
        thread.start()
    start_s = time.perf_counter()
    until_s = start_s + seconds
    gate.wait()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return Flood(sum(counts), time.perf_counter() - start_s)


def flood_by_futures(
    submit: Callable[[int], Callable[[], np.ndarray]],
    requests: Requests,
    in_flight: int,
    seconds: float,
    refusals: tuple[type[Exception], ...] = (),
) -> Flood:
    """Keep a window of futures, the oldest awaited first: what a user of such an API writes."""
    start_s = time.perf_counter()
    until_s = start_s + seconds
    window = deque((number, submit(number)) for number in range(in_flight))
    number, answered = in_flight, 0
    refused: Counter[str] = Counter()
    while window:
        asked, wait = window.popleft()
        try:
            check("flood", requests, asked, wait())
            answered += 1
        except refusals as error:
            refused[f"{type(error).__name__}: {error}"] += 1
            time.sleep(REFUSED_S)
        if time.perf_counter() < until_s:
            window.append((number, submit(number)))
            number += 1
    return Flood(answered, time.perf_counter() - start_s, refused)
