"""The local HTTP port for metrics: GET /metrics in OpenMetrics, GET /healthz.

h11 speaks HTTP; one request per connection is read within a deadline and a size bound, and a few at once.
"""

from collections.abc import Callable
from typing import Final

import h11
import trio

from gridnode.errors import StateDirectoryError
from gridnode.logs import EventLog
from gridnode.nurseries import collapsing

log = EventLog("http")

REQUEST_MAX_BYTES: Final = 16 * 1024
REQUEST_TIMEOUT_S: Final = 5.0
CONNECTIONS_MAX: Final = 8
"""Scrapers at once; one or two are usual."""
OPENMETRICS: Final = b"application/openmetrics-text; version=1.0.0; charset=utf-8"


async def serve_metrics(
    *,
    host: str,
    port: int,
    render: Callable[[], str],
    is_ready: Callable[[], bool],
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; reports the bound port.

    Parameters
    ----------
    host, port
        Where to listen; 0 for any free port.
    render : callable
        Returns the OpenMetrics document.
    is_ready : callable
        Says whether the node takes work.

    Raises
    ------
    StateDirectoryError
        The port is in use.
    """
    try:
        listeners = await trio.open_tcp_listeners(port, host=host)
    except OSError as error:
        raise StateDirectoryError(
            f"metrics port {host}:{port} cannot be opened: {error.strerror}; set metrics.port or metrics.enabled"
        ) from error
    limit = trio.CapacityLimiter(CONNECTIONS_MAX)

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            if limit.available_tokens < 1:
                return
            async with limit:
                with trio.move_on_after(REQUEST_TIMEOUT_S), collapsing(OSError):
                    await _answer(stream, render, is_ready)

    bound = listeners[0].socket.getsockname()[1]
    task_status.started(bound)
    log.info("metrics_listening", port=bound)
    await trio.serve_listeners(handle, listeners)


async def _answer(stream: trio.SocketStream, render: Callable[[], str], is_ready: Callable[[], bool]) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=REQUEST_MAX_BYTES)
    is_head = False
    try:
        request = await _receive_request(stream, connection)
        if request is None:
            return
        is_head = request.method == b"HEAD"
        status, kind, body = _route(request, render, is_ready)
    except h11.RemoteProtocolError as error:
        status, kind, body = error.error_status_hint, b"text/plain; charset=utf-8", f"{error}\n".encode()
        if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), (b"connection", b"close")]
    reply = connection.send(h11.Response(status_code=status, headers=headers)) or b""
    if not is_head:
        reply += connection.send(h11.Data(data=body)) or b""
    reply += connection.send(h11.EndOfMessage()) or b""
    try:
        await stream.send_all(reply)
    except trio.BrokenResourceError:
        return


async def _receive_request(stream: trio.SocketStream, connection: h11.Connection) -> h11.Request | None:
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        try:
            connection.receive_data(await stream.receive_some(REQUEST_MAX_BYTES))
        except trio.BrokenResourceError:
            return None


def _route(request: h11.Request, render: Callable[[], str], is_ready: Callable[[], bool]) -> tuple[int, bytes, bytes]:
    path = request.target.split(b"?")[0]
    plain = b"text/plain; charset=utf-8"
    if request.method not in (b"GET", b"HEAD"):
        return 405, plain, b"only GET is served here\n"
    if path == b"/metrics":
        return 200, OPENMETRICS, render().encode()
    if path == b"/healthz":
        return (200, plain, b"ready\n") if is_ready() else (503, plain, b"not ready\n")
    return 404, plain, b"served here: /metrics /healthz\n"
