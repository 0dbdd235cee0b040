"""Ray Serve, one replica: over its HTTP proxy, and over a handle from a process that has joined the cluster.

Its throughput-optimised mode is set by environment variables of the whole cluster, the asking process among it, and
read when ray is imported: so each mode is measured in a run of its own.
"""

import logging
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benches.peers.grids import free_ports
from benches.peers.httpcall import KeptConnection, raw_caller
from benches.peers.ways import Call, Flood, Way, flood_by_futures
from benches.peers.workloads import Requests, answer_array

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

APPLICATION = "bench"
ONGOING = 64
"""Requests that the replica takes at once; its default of 5 would hold those in flight back."""
TIMEOUT_S = 120.0
TOKEN = "RAY_AUTH_TOKEN"
"""Ray's own default asks every process for a token, which it would leave in the user's home."""
DEFAULT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
OPTIMISED = DEFAULT | {
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
}
"""The two switches of Ray's guide to high throughput (2.55 and later). The router of a handle stays in a thread of its
own: a synchronous caller has no event loop to lend it."""


def environment(settings: dict[str, str]) -> dict[str, str]:
    """Return the environment of a phase: of the cluster, and of the process that asks it."""
    return settings | {TOKEN: secrets.token_hex(32)}


_CLUSTERS: dict[Path, "_Cluster"] = {}
"""One cluster per run and mode: both ways ask the same replica."""


class _Cluster(Way):
    """The cluster's head, its proxy and its replica."""

    name = "ray-cluster"
    label = "Ray"
    module = "benches.peers.peer_ray"
    users = 0


class RayHttp(Way):
    name = "ray-http"
    label = "Ray Serve HTTP"
    between = 2
    needs = ("ray", "starlette")
    extra = "bench-ray"
    is_heavy = True

    def start(self, models: Sequence[str]) -> None:
        if self.folder not in _CLUSTERS:
            cluster = _CLUSTERS[self.folder] = _Cluster(self.folder)
            cluster.start(models)
        _CLUSTERS[self.folder].users += 1
        self.address, self._gcs = _CLUSTERS[self.folder].address.split()

    def caller(self, requests: Requests) -> Call:
        self._connections.append(KeptConnection(int(self.address)))
        return raw_caller(self._connections[-1], requests)

    def server_pids(self) -> list[int]:
        return _CLUSTERS[self.folder].server_pids()

    def stop(self) -> None:
        cluster = _CLUSTERS.get(self.folder)
        if cluster is not None:
            cluster.users -= 1
            if cluster.users <= 0:
                cluster.stop()
                del _CLUSTERS[self.folder]


class RayHandle(RayHttp):
    name = "ray-handle"
    label = "Ray Serve handle"
    between = 1
    stands = False

    def open(self) -> None:
        import ray
        from ray import serve

        ray.init(address=self._gcs, log_to_driver=False, logging_level="error")
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        self._handle = serve.get_app_handle(APPLICATION)

    def caller(self, requests: Requests) -> Call:
        submit = self._submitter(requests)
        return lambda number: submit(number)()

    def flood(self, requests: Requests, in_flight: int, seconds: float) -> Flood:
        return flood_by_futures(self._submitter(requests), requests, in_flight, seconds)

    def _submitter(self, requests: Requests) -> Callable[[int], Callable[[], np.ndarray]]:
        run, raw, workload = self._handle.run, requests.raw, requests.workload

        def submit(number: int) -> Callable[[], np.ndarray]:
            response = run.remote(workload.name, raw[number % len(raw)])
            return lambda: answer_array(workload, response.result(timeout_s=TIMEOUT_S))

        return submit

    def close(self) -> None:
        import ray

        ray.shutdown()


class RayHttpOptimised(RayHttp):
    name = "ray-http-optimised"
    label = "Ray HTTP, optimised"


class RayHandleOptimised(RayHandle):
    name = "ray-handle-optimised"
    label = "Ray handle, optimised"


class Models:
    """The deployment: raw bytes by HTTP, or by a handle's call."""

    def __init__(self, folder: str, names: list[str]) -> None:
        from benches.peers.serving import load

        self._loaded = load(Path(folder), names)

    def run(self, name: str, request: bytes) -> bytes:
        return self._loaded[name].run(request).tobytes()

    async def __call__(self, request: "Request") -> "Response":
        from starlette.responses import Response

        answer = self.run(request.url.path.strip("/"), await request.body())
        return Response(answer, media_type="application/octet-stream")


def serve_models(folder: Path, names: list[str]) -> None:
    import threading

    import ray
    from ray import serve

    from benches.peers.peer_ray import Models as Importable  # replicas find it by its module's name
    from benches.peers.serving import say_ready

    [port] = free_ports(1)
    context: Any = ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level="error",
        _node_ip_address="127.0.0.1",
        _temp_dir=str(folder / "ray"),
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    deployment = serve.deployment(Importable, num_replicas=1, max_ongoing_requests=ONGOING)
    serve.run(deployment.bind(str(folder), names), name=APPLICATION, route_prefix="/")
    say_ready(f"{port} {context.address_info['address']}")
    threading.Event().wait()


if __name__ == "__main__":
    import signal
    import sys

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that Ray's exit handler takes the cluster down
    serve_models(Path(sys.argv[1]), sys.argv[2:])
