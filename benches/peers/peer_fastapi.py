"""FastAPI on uvicorn with uvloop and httptools, one worker process: the bytes are the body, the model is run in the
handler. A model runs on all cores, so that handing it to a thread would cost a switch and gain nothing."""

from benches.peers.httpcall import KeptConnection, raw_caller
from benches.peers.ways import Call, Way
from benches.peers.workloads import Requests


class FastApi(Way):
    """HTTP/1.1 over a connection kept open; several in flight take as many connections."""

    name = "fastapi"
    label = "FastAPI"
    needs = ("fastapi", "uvicorn")
    extra = "bench-fastapi"
    module = "benches.peers.peer_fastapi"

    def caller(self, requests: Requests) -> Call:
        self._connections.append(KeptConnection(int(self.address)))
        return raw_caller(self._connections[-1], requests)


def serve() -> None:
    import socket

    import uvicorn
    from fastapi import FastAPI, Request, Response

    from benches.peers.serving import arguments, say_ready

    _, loaded = arguments()
    application = FastAPI(openapi_url=None)

    @application.post("/{name}")
    async def run(name: str, request: Request) -> Response:
        body = await request.body()
        return Response(loaded[name].run(body).tobytes(), media_type="application/octet-stream")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        say_ready(listener.getsockname()[1])
        uvicorn.Server(uvicorn.Config(application, log_level="warning", access_log=False)).run(sockets=[listener])


if __name__ == "__main__":
    serve()
