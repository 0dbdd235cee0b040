"""What a program and the daemon on its device say to each other over the local socket. Pure.

Owns the messages, their bounds, the framing, and the request and result bodies as the client sees them. The
bodies are those of models.bodies, defined a second time because a user's program loads this module and must not
load the models package (it may own a ``models.py``); a test holds the two definitions together.

A frame is: header length and payload length, each u32 big-endian, the header (one MessagePack map with the tag
``t``), then the payload. Frames of many jobs share one connection; keys tell them apart. The first frames of both
sides are a Hello.
"""

import math
import struct
from collections.abc import Sequence
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from gridnode.errors import ProtocolError

VERSION: Final = 2
PREFIX_BYTES: Final = 8
HEADER_MAX_BYTES: Final = 64 * 1024
"""Largest header, but for an answer to a query."""
ANSWER_MAX_BYTES: Final = 4 * 1024 * 1024
"""Largest header of an Answer: the status of a few hundred peers."""
PAYLOAD_MAX_BYTES: Final = 64 * 1024 * 1024
BODY_MAX_BYTES: Final = 48 * 1024
ALIGNMENT_BYTES: Final = 64
"""Tensors in a payload start at multiples of this; see models.tensors."""
DTYPE_BYTES: Final = {"float32": 4, "float16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8, "bool": 1}
CLIENT_ID_BYTES: Final = 16
SEGMENT_MAX_BYTES: Final = 32 * 1024 * 1024
"""Largest shared memory of one connection; see models.segments."""

Buffer = bytes | bytearray | memoryview
Key = Annotated[bytes, Meta(min_length=24, max_length=24)]


# ---------------------------------------------------------------- bodies


class TensorHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Name, element type and shape of one tensor in a payload."""

    name: str
    dtype: str
    shape: tuple[int, ...]


class RequestBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the payload of a request is: tensors, an encoded image, or a raw uint8 RGB frame (array)."""

    kind: Literal["tensors", "image", "array"]
    tensors: tuple[TensorHeader, ...] = ()
    width: int = 0
    height: int = 0
    raw_outputs: bool = False
    score_threshold: float | None = None


class DetectionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One object: class, score, box x0, y0, x1, y1 in pixels of the given frame."""

    class_index: int
    class_name: str
    score: float
    box: tuple[float, float, float, float]


class ClassRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One class of a classified picture."""

    class_index: int
    class_name: str
    score: float


class ResultBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came out; raw output tensors lie in the payload as their headers say."""

    detections: tuple[DetectionRecord, ...] = ()
    classes: tuple[ClassRecord, ...] = ()
    tensors: tuple[TensorHeader, ...] = ()
    image_width: int = 0
    image_height: int = 0
    truncated: bool = False
    emulated: bool = False


# ---------------------------------------------------------------- client to daemon


class ClientHello(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="client_hello"):
    """First message of a client."""

    versions: tuple[int, ...] = (VERSION,)
    client: Annotated[bytes, Meta(min_length=CLIENT_ID_BYTES, max_length=CLIENT_ID_BYTES)]
    """Random id of this client object; the head of all its keys."""


class Share(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="share"):
    """Hands over memory for payloads; its descriptor (SCM_RIGHTS) comes with the first byte of this frame.

    At most one per connection, after the hello. The memory is a memfd, sealed against shrinking, growing and further
    seals (and, best, against new writable mappings); models.segments says what is checked. A payload in it stays
    untouched until the outcome of its key has come on this connection.
    """

    segment_bytes: Annotated[int, Meta(ge=1, le=SEGMENT_MAX_BYTES)]


class OpenLane(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="open_lane"):
    """Hands over one end of a pair of sequenced-packet sockets, for a model's worker; gridnode.lane says what for.

    The descriptor (SCM_RIGHTS) comes with the first byte of this frame. Needs shared memory. A daemon that has no
    worker for the model, or no room, closes its end.
    """

    lane: Annotated[int, Meta(ge=0)]
    """Names it on this connection."""
    model: Annotated[str, Meta(max_length=128)]
    """As in the requests that may come by the lane. They also have the next three in common."""
    rungs: bool
    priority: Annotated[int, Meta(ge=0, le=3)]
    tenant: Annotated[str, Meta(max_length=128)]


class Submit(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="t", tag="submit"):
    """One request; its input is the payload, or lies in the shared memory."""

    key: Key
    model: Annotated[str, Meta(max_length=128)]
    """Name, or name@digest for exactly that version."""
    rungs: bool = True
    """Whether a smaller variant may answer when the model itself cannot in time."""
    budget_s: Annotated[float, Meta(le=1e6)] | None = None
    """Seconds until the answer is worth nothing; None for the daemon's default."""
    priority: Annotated[int, Meta(ge=0, le=3)] = 1
    stream: Annotated[str, Meta(max_length=128)] = ""
    frame: Annotated[int, Meta(ge=0)] = 0
    newest_wins: bool = False
    tenant: Annotated[str, Meta(max_length=128)] = ""
    body: Annotated[bytes, Meta(max_length=BODY_MAX_BYTES)]
    place: Annotated[int, Meta(ge=0)] | None = None
    """Where the payload begins in the shared memory, a multiple of ALIGNMENT_BYTES; the frame has none then."""
    place_bytes: Annotated[int, Meta(ge=0)] = 0
    """Length of the payload there."""


class CancelJob(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="cancel"):
    """The client wants no answer for this key any more; JobError(cancelled) follows unless the job ended first."""

    key: Key


QueryKind = Literal["status", "peers", "models", "explain", "revoke", "invite", "reload_trust"]


class Query(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="query"):
    """Asks the daemon something about itself. Answered by Answer with the same number."""

    number: int
    what: QueryKind
    argument: Annotated[str, Meta(max_length=4096)] = ""


# ---------------------------------------------------------------- daemon to client


class ServerHello(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="server_hello"):
    """First message of the daemon."""

    version: int
    node: str
    name: str
    grid: str
    entries: tuple[str, ...] = ()
    """Sockets of other daemons a client may move to."""
    draining: bool = False


class Ticket(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="ticket"):
    """Leave to have some runs by a lane without a word to the daemon."""

    lane: int
    ticket: int
    runs: int
    lasts_s: float
    """From the first run."""
    depth: int
    """Requests that may be under way by the lane at once; they are run one after another."""
    lanes: int
    """How many lanes for such requests may be open."""
    least_budget_s: float
    """Requests with less time are for the daemon, which ends them at their deadline."""


class JobDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="done"):
    """A result; raw output tensors are the payload."""

    key: Key
    model: str
    """Name of the model, or rung, that answered."""
    model_digest: str
    node: str
    node_name: str
    hops: int
    waiting_s: float
    service_s: float
    transfer_s: float
    """Time between nodes, both ways; 0 for a job that stayed here."""
    total_s: float
    """Time in the grid, from the daemon's receipt to its answer."""
    body: bytes


class JobError(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="error"):
    """The named end of a job without a result."""

    key: Key
    reason: str
    message: str
    estimate_s: float | None = None
    entries: tuple[str, ...] = ()


class Answer(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="answer"):
    """The answer to a Query: a JSON document, or an error text."""

    number: int
    document: bytes = b""
    error: str = ""


class Goodbye(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="goodbye"):
    """The daemon drains, or the client broke the protocol; no new job is taken on this connection."""

    reason: str
    entries: tuple[str, ...] = ()


ClientMessage = ClientHello | Share | OpenLane | Submit | CancelJob | Query
SessionMessage = ServerHello | JobDone | JobError | Answer | Goodbye
"""What concerns the client's open work."""
ServerMessage = SessionMessage | Ticket

_PREFIX: Final = struct.Struct(">II")
_ENCODER: Final = msgspec.msgpack.Encoder()
_CLIENT: Final[msgspec.msgpack.Decoder[ClientMessage]] = msgspec.msgpack.Decoder(ClientMessage)
_SERVER: Final[msgspec.msgpack.Decoder[ServerMessage]] = msgspec.msgpack.Decoder(ServerMessage)
_RESULT: Final = msgspec.msgpack.Decoder(ResultBody)

# ---------------------------------------------------------------- encoding


def encode_frame(message: ClientMessage | ServerMessage, payload_bytes: int = 0) -> bytes:
    """Encode prefix and header of a frame; the payload follows it on the socket."""
    header = _ENCODER.encode(message)
    bound = ANSWER_MAX_BYTES if isinstance(message, Answer) else HEADER_MAX_BYTES
    if len(header) > bound:
        raise ProtocolError(f"{type(message).__name__} takes {len(header)} bytes, at most {bound} may be sent")
    if payload_bytes > PAYLOAD_MAX_BYTES:
        raise ProtocolError(f"payload has {payload_bytes} bytes, at most {PAYLOAD_MAX_BYTES} may be sent; shrink it")
    return _PREFIX.pack(len(header), payload_bytes) + header


def decode_prefix(data: Buffer, start: int = 0, *, header_max_bytes: int = HEADER_MAX_BYTES) -> tuple[int, int]:
    """Return header and payload length in bytes, of the frame that begins at ``start``.

    Raises
    ------
    ProtocolError
        Either exceeds its bound.
    """
    header, payload = _PREFIX.unpack_from(data, start)
    if not 0 < header <= header_max_bytes or payload > PAYLOAD_MAX_BYTES:
        raise ProtocolError(
            f"frame claims a header of {header} bytes and a payload of {payload}, "
            f"allowed are {header_max_bytes} and {PAYLOAD_MAX_BYTES}"
        )
    return header, payload


def decode_client(header: Buffer) -> ClientMessage:
    """Decode what a client sent; raises ProtocolError."""
    try:
        return _CLIENT.decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"message of the client is malformed: {error}") from error


def decode_server(header: Buffer) -> ServerMessage:
    """Decode what the daemon sent; raises ProtocolError."""
    try:
        return _SERVER.decode(header)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"message of the daemon is malformed: {error}") from error


def encode_body(body: RequestBody) -> bytes:
    """Encode a request body; raises ProtocolError where it exceeds BODY_MAX_BYTES."""
    data = _ENCODER.encode(body)
    if len(data) > BODY_MAX_BYTES:
        raise ProtocolError(f"request body has {len(data)} bytes, at most {BODY_MAX_BYTES} fit; use shorter names")
    return data


def decode_result(body: Buffer) -> ResultBody:
    """Decode a result body; raises ProtocolError."""
    try:
        return _RESULT.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise ProtocolError(f"result body is malformed: {error}") from error


def layout(headers: Sequence[TensorHeader]) -> tuple[tuple[int, ...], int]:
    """Return where each tensor starts in a payload and the payload's length, in bytes.

    Each tensor starts at the next multiple of ALIGNMENT_BYTES; there is no padding after the last.

    Examples
    --------
    >>> layout([TensorHeader(name="a", dtype="uint8", shape=(3,)), TensorHeader(name="b", dtype="int64", shape=(2,))])
    ((0, 64), 80)
    """
    offsets: list[int] = []
    end = 0
    for header in headers:
        start = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        offsets.append(start)
        end = start + math.prod(header.shape) * DTYPE_BYTES[header.dtype]
    return tuple(offsets), end


def make_key(client: bytes, counter: int) -> bytes:
    """Return the key of a client's job: its id and a counter, u64 big-endian."""
    return client + counter.to_bytes(8, "big")
