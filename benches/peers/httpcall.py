"""A plain HTTP/1.1 client for the peers that speak it: one connection kept open, bytes in the body both ways."""

import http.client

from benches.peers.ways import Call, PeerError
from benches.peers.workloads import Requests, answer_array

TIMEOUT_S = 60.0


class KeptConnection:
    """One connection to a server on this machine; not for several threads at once."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)

    def post(self, path: str, body: bytes, headers: dict[str, str]) -> http.client.HTTPResponse:
        """Send a request and return its answer, unread; raises PeerError for any status but 200."""
        self._connection.request("POST", path, body, headers)
        response = self._connection.getresponse()
        if response.status != http.client.OK:
            raise PeerError(f"{path}: HTTP {response.status}: {response.read()[:300]!r}")
        return response

    def close(self) -> None:
        self._connection.close()


def raw_caller(connection: KeptConnection, requests: Requests) -> Call:
    """Return a caller for servers that take a model's bytes at a path of its name and answer with bytes."""
    path, raw, workload = f"/{requests.workload.name}", requests.raw, requests.workload
    headers = {"Content-Type": "application/octet-stream"}
    return lambda number: answer_array(workload, connection.post(path, raw[number % len(raw)], headers).read())
