"""zenoh, a queryable: the client, in client mode, is connected straight to the server over TCP; no router between."""

import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benches.peers.grids import free_ports
from benches.peers.ways import Call, PeerError, Way
from benches.peers.workloads import Requests, answer_array

if TYPE_CHECKING:
    import zenoh

PREFIX = "bench"
TIMEOUT_S = 60.0


def _config(mode: str, *, place: str, port: str) -> "zenoh.Config":
    import zenoh

    config = zenoh.Config()
    config.insert_json5("mode", json.dumps(mode))
    config.insert_json5(f"{place}/endpoints", json.dumps([f"tcp/127.0.0.1:{port}"]))
    config.insert_json5("scouting/multicast/enabled", "false")
    return config


class Zenoh(Way):
    name = "zenoh"
    label = "zenoh"
    needs = ("zenoh",)
    extra = "bench-zenoh"
    module = "benches.peers.peer_zenoh"

    def open(self) -> None:
        import zenoh

        self._session = zenoh.open(_config("client", place="connect", port=self.address))

    def caller(self, requests: Requests) -> Call:
        querier = self._session.declare_querier(f"{PREFIX}/{requests.workload.name}", timeout=TIMEOUT_S)
        raw, workload = requests.raw, requests.workload

        def call(number: int):
            for reply in querier.get(payload=raw[number % len(raw)]):
                if reply.ok is not None:
                    return answer_array(workload, reply.ok.payload.to_bytes())
            raise PeerError(f"zenoh: no reply to request {number}")

        return call

    def close(self) -> None:
        self._session.close()


def serve() -> None:
    import zenoh

    from benches.peers.serving import Model, arguments, say_ready

    _, loaded = arguments()
    [port] = free_ports(1)
    with zenoh.open(_config("peer", place="listen", port=str(port))) as session:

        def answer(model: Model, query: "zenoh.Query") -> None:
            with query:
                query.reply(query.key_expr, model.run(query.payload.to_bytes()).tobytes())

        def declare(names: Sequence[str]) -> list["zenoh.Queryable"]:
            return [
                session.declare_queryable(
                    f"{PREFIX}/{name}", lambda query, model=loaded[name]: answer(model, query), complete=True
                )
                for name in names
            ]

        declared = declare(list(loaded))
        say_ready(port)
        threading.Event().wait()
        del declared


if __name__ == "__main__":
    serve()
