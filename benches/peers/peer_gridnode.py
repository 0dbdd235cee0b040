"""gridnode, by its public interface only: the client over the own daemon's socket, and over a second node."""

import os
import time
from collections.abc import Callable, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import ClassVar

import numpy as np

from benches.peers import grids
from benches.peers.grids import PrivateGrid
from benches.peers.httpcall import KeptConnection
from benches.peers.openinference import LENGTH_HEADER, binary_detections, binary_request, binary_tensor
from benches.peers.ways import Call, Flood, PeerError, Way, flood_by_futures
from benches.peers.workloads import Requests, detections_array
from gridnode.client import Grid
from gridnode.errors import GridError
from gridnode.results import Result

DEADLINE_S = 30.0
"""Of each request: no answer of this bench takes so long, so that nothing is refused for being late."""

SOCKET_POLL_S = 0.005

_GRIDS: dict[tuple[Path, tuple[str, ...]], PrivateGrid] = {}
"""One grid per set of models; all ways share it, so that no idle daemons stand beside those measured."""


def stop_all() -> None:
    """End every daemon of this run's grids; their folders stay."""
    for grid in _GRIDS.values():
        grid.stop()


class WrongWayError(PeerError):
    """Another node answered than the row is about."""


def _inputs(requests: Requests) -> list[object]:
    """Return what a user of the client gives it: arrays by name, or a picture's bytes."""
    return [{"x": array} for array in requests.arrays] or list(requests.raw)


def _options(requests: Requests) -> dict[str, object]:
    """Return the arguments of a call: the model itself answers, with its tensors where it has no other answer."""
    return {"deadline_s": DEADLINE_S, "rungs": False, "raw_outputs": requests.workload.kind != "detector"}


class Local(Way):
    """Client, worker; own daemon where it is to decide: at every 33rd request at least."""

    name = "local"
    label = "gridnode local"
    encrypted = "no (Unix)"
    between = 1
    entry: ClassVar[str] = "n1"
    hops: ClassVar[int] = 0
    starting = (GridError, WrongWayError, OSError)
    refusals = (GridError,)
    nodes: ClassVar[tuple[str, ...]] = ("n1",)
    """Whose processes a request passes through."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._grid: PrivateGrid | None = None
        self._client: Grid | None = None

    def install(self, models: Sequence[str]) -> None:
        """Make the grid, and let its first node fetch, check and measure the models."""
        key = self.folder, tuple(models)
        if key not in _GRIDS:
            place = self.folder / f"grid-{os.getpid()}-{len(_GRIDS)}"
            _GRIDS[key] = grids.make(place, self.folder, models)
        self._grid = _GRIDS[key]

    @property
    def grid(self) -> PrivateGrid:
        """The grid that install has made."""
        assert self._grid is not None, "install comes first"
        return self._grid

    @property
    def client(self) -> Grid:
        """The client that open has connected."""
        assert self._client is not None, "open comes first"
        return self._client

    def start(self, models: Sequence[str]) -> None:
        self.install(models)
        self.grid.start(n1=models)
        if self.entry != "n1":
            self.grid.start(**{self.entry: ()})

    def open(self) -> None:
        """Connect as soon as there is a socket: the client's own pauses between tries are longer than ours."""
        node = self.grid.nodes[self.entry]
        while not node.socket.exists():
            node.check()
            time.sleep(SOCKET_POLL_S)
        self._client = Grid(str(node.socket))

    def caller(self, requests: Requests) -> Call:
        name, inputs, options = requests.workload.name, _inputs(requests), _options(requests)
        infer, read = self.client.infer, self._reader(requests)
        return lambda number: read(infer(name, inputs[number % len(inputs)], **options))

    def flood(self, requests: Requests, in_flight: int, seconds: float) -> Flood:
        name, inputs, options = requests.workload.name, _inputs(requests), _options(requests)
        programs, read = self._programs(), self._reader(requests)

        def ask(number: int) -> Callable[[], np.ndarray]:
            handle = programs[number % len(programs)].submit(name, inputs[number % len(inputs)], **options)
            return lambda: read(handle.result())

        return flood_by_futures(ask, requests, in_flight, seconds, self.refusals)

    def _programs(self) -> Sequence[Grid]:
        """Return the clients that ask in turn."""
        return (self.client,)

    def _reader(self, requests: Requests) -> Callable[[Result], np.ndarray]:
        """Return what turns a result into an array, and refuses one that came another way."""
        hops = self.hops

        def check_way(result: Result) -> None:
            if result.hops != hops:
                raise WrongWayError(f"{self.name}: {result.hops} hops, {result.node} answered; wanted are {hops}")

        def read_tensor(result: Result) -> np.ndarray:
            check_way(result)
            return result.tensors["y"]

        def read_detections(result: Result) -> np.ndarray:
            check_way(result)
            return detections_array([(item.class_index, item.score, *item.box) for item in result.detections])

        return read_detections if requests.workload.kind == "detector" else read_tensor

    def server_pids(self) -> list[int]:
        return [pid for name in self.nodes for pid in self.grid.nodes[name].pids()]

    def close(self) -> None:
        super().close()
        if self._client is not None:
            self._client.close()

    def stop(self) -> None:
        if self._grid is not None:
            self._grid.stop()


class Decided(Local):
    """Client, own daemon, worker, each time: requests of two programs in turn, to which the daemon gives no tickets."""

    name = "local-decided"
    label = "gridnode local, no lane"
    between = 2

    def open(self) -> None:
        super().open()
        self._other = Grid(str(self.grid.nodes[self.entry].socket))

    def _programs(self) -> Sequence[Grid]:
        return self.client, self._other

    def caller(self, requests: Requests) -> Call:
        name, inputs, options = requests.workload.name, _inputs(requests), _options(requests)
        programs, read = self._programs(), self._reader(requests)
        return lambda number: read(programs[number % 2].infer(name, inputs[number % len(inputs)], **options))

    def close(self) -> None:
        super().close()
        self._other.close()


class Remote(Local):
    """Client, daemon A, TLS, daemon B, worker: A runs no models."""

    name = "remote"
    label = "gridnode remote"
    encrypted = "TLS 1.3, mutual"
    between = 3
    entry = "n2"
    hops = 1
    nodes = ("n1", "n2")


class RemoteDecided(Decided, Remote):
    """As Remote, by requests of two programs in turn, to which the entry's daemon gives no tickets."""

    name = "remote-decided"
    label = "gridnode remote, no lane"
    between = 3


class Http(Local):
    """Client, own daemon by the Open Inference Protocol with binary tensors, worker."""

    name = "http"
    label = "gridnode HTTP"
    encrypted = "no"
    between = 2
    starting = (GridError, PeerError, OSError, HTTPException)

    def install(self, models: Sequence[str]) -> None:
        super().install(models)
        self.grid.http = True

    def stop(self) -> None:
        super().stop()
        if self._grid is not None:
            self._grid.http = False

    def caller(self, requests: Requests) -> Call:
        port = int(self.client.status()["http_address"].rpartition(":")[2])
        connection = KeptConnection(port)
        self._connections.append(connection)
        path = f"/v2/models/{requests.workload.name}/infer"
        asked = [binary_request(requests, number) for number in range(len(requests.raw))]
        read = binary_detections if requests.workload.kind == "detector" else binary_tensor

        def call(number: int) -> np.ndarray:
            body, headers = asked[number % len(asked)]
            response = connection.post(path, body, headers)
            return read(response.read(), int(response.headers[LENGTH_HEADER]))

        return call

    def flood(self, requests: Requests, in_flight: int, seconds: float) -> Flood:
        return Way.flood(self, requests, in_flight, seconds)
