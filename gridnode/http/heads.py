"""Heads of HTTP/1.1 requests: what is asked, how long the body is, what the client expects. Pure; h11 reads them.

A head that says two things about its body's length, or hides a second request, is refused: it is how one request is
smuggled inside another. Programs send the same head again and again, so the last one read is remembered as it is.
"""

from typing import Final

import h11
import msgspec

HEAD_MAX_BYTES: Final = 16 * 1024
"""Largest request line with headers; those of inference clients take 300 bytes."""
CHUNKS_PER_TURN: Final = 64
"""Chunks read before other tasks get a turn, in about 1 ms: they may be a byte each."""
HEAD_END: Final = b"\r\n\r\n"

_REASONS: Final = {
    100: b"Continue", 200: b"OK", 400: b"Bad Request", 403: b"Forbidden", 404: b"Not Found", 405: b"Method Not Allowed",
    408: b"Request Timeout", 409: b"Conflict", 411: b"Length Required", 413: b"Content Too Large",
    415: b"Unsupported Media Type", 417: b"Expectation Failed", 429: b"Too Many Requests",
    431: b"Request Header Fields Too Large", 500: b"Internal Server Error", 501: b"Not Implemented",
    503: b"Service Unavailable", 504: b"Gateway Timeout",
}  # fmt: skip


class HttpError(Exception):
    """A request that gets an answer other than 200.

    Parameters
    ----------
    status : int
        HTTP status code.
    retry_after_s : int, optional
        When another try makes sense, in whole seconds.
    reason : str, optional
        Name of the end in gridnode's own words, such as queue_full.
    allowed : str, optional
        The method that would have been right.
    """

    def __init__(
        self, status: int, message: str, *, retry_after_s: int | None = None, reason: str = "", allowed: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        self.allowed = allowed
        self.retry_after_s = retry_after_s
        self.reason = reason


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """What a request's head says."""

    method: str
    path: str
    """Without the query."""
    host: str = ""
    origin: str = ""
    """Set by browsers for the page that asks."""
    body_bytes: int = 0
    is_chunked: bool = False
    """The body's length is not known before it ends."""
    json_bytes: int | None = None
    """Inference-Header-Content-Length: how much of the body is JSON; the rest are tensors."""
    content_type: str = ""
    encoding: str = ""
    """Content-Encoding of the body."""
    expects_continue: bool = False
    keeps_alive: bool = True


def parse_head(data: bytes) -> Head:
    """Read a request's head.

    Parameters
    ----------
    data : bytes
        Up to and with the empty line.

    Raises
    ------
    HttpError
        It is malformed, contradicts itself, or asks for what is not spoken here: the client's fault.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX_BYTES)
    try:
        connection.receive_data(data)
        request = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise HttpError(error.error_status_hint, f"request is malformed: {error}") from error
    if not isinstance(request, h11.Request) or connection.trailing_data[0]:
        raise HttpError(400, "request is malformed: an empty line inside its head")
    return _read(request)


def _read(request: h11.Request) -> Head:
    fields: dict[bytes, str] = {}
    for name, value in request.headers:
        if name in (b"inference-header-content-length", b"transfer-encoding", b"content-encoding") and name in fields:
            raise HttpError(400, f"header {name.decode('ascii')} is given twice; give it once")
        fields[name] = value.decode("latin-1")
    if b"transfer-encoding" in fields and b"content-length" in fields:
        raise HttpError(400, "request has content-length and transfer-encoding; send one of them")
    wishes = fields.get(b"connection", "").lower()
    return Head(
        method=request.method.decode("ascii"),
        path=request.target.split(b"?", 1)[0].decode("latin-1"),
        host=fields.get(b"host", ""),
        origin=fields.get(b"origin", ""),
        body_bytes=int(fields.get(b"content-length", "0")),
        is_chunked=b"transfer-encoding" in fields,
        json_bytes=_read_length(fields.get(b"inference-header-content-length")),
        content_type=fields.get(b"content-type", "").partition(";")[0].strip().lower(),
        encoding=fields.get(b"content-encoding", "").strip().lower(),
        expects_continue=_read_expectation(fields.get(b"expect")),
        keeps_alive=request.http_version == b"1.1" and "close" not in wishes and "upgrade" not in wishes,
    )


def _read_length(text: str | None) -> int | None:
    """Read Inference-Header-Content-Length; h11 has read the other lengths."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise HttpError(400, f"inference-header-content-length is {text[:40]!r}, it must be a number of bytes")
    return int(text)


def _read_expectation(text: str | None) -> bool:
    if text is None:
        return False
    if text.strip().lower() != "100-continue":
        raise HttpError(417, f"expectation {text[:40]!r} is unknown; only 100-continue is served")
    return True


class ChunkedBody:
    """Puts a body together that comes in chunks.

    Parameters
    ----------
    head : bytes
        Of its request, as read.
    most_bytes : int
        Largest body.
    """

    def __init__(self, head: bytes, *, most_bytes: int) -> None:
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX_BYTES)
        self._connection.receive_data(head)
        self._connection.next_event()
        self._most_bytes = most_bytes
        self.data = bytearray()
        self.rest: bytes | None = None
        """What followed the body, once it has ended."""

    def feed(self, piece: bytes) -> None:
        """Take what was received; raises HttpError."""
        try:
            self._connection.receive_data(piece)
        except h11.RemoteProtocolError as error:
            raise HttpError(400, f"chunked body is malformed: {error}") from error

    def advance(self) -> bool:
        """Put together some of what was fed; False where more of it waits. Raises HttpError."""
        try:
            for _ in range(CHUNKS_PER_TURN):
                event = self._connection.next_event()
                if isinstance(event, h11.Data):
                    self.data += event.data
                    if len(self.data) > self._most_bytes:
                        raise HttpError(413, f"body has more than {self._most_bytes} bytes, the most accepted here")
                    continue
                if isinstance(event, h11.EndOfMessage):
                    self.rest = self._connection.trailing_data[0]
                return True
        except h11.RemoteProtocolError as error:
            raise HttpError(400, f"chunked body is malformed: {error}") from error
        return False


class HeadMemory:
    """Reads heads, and remembers the last one: a program's requests mostly have the same, byte by byte."""

    def __init__(self) -> None:
        self._data = b""
        self._head = Head(method="", path="")

    def parse(self, data: bytes) -> Head:
        """Read a head; see parse_head."""
        if data != self._data:
            self._head = parse_head(data)
            self._data = data
        return self._head


def response_head(
    status: int, *, content_type: bytes, body_bytes: int, headers: bytes = b"", keeps_alive: bool = True
) -> bytes:
    """Write an answer's head.

    Parameters
    ----------
    headers : bytes
        Further lines, each with its line end; of our making.
    """
    close = b"" if keeps_alive else b"Connection: close\r\n"
    return b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n" % (
        status, _REASONS[status], content_type, body_bytes, headers, close,
    )  # fmt: skip


CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
