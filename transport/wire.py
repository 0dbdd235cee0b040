"""Every message two nodes exchange: records, limits, encoding and decoding. Pure.

Two families. *Gossip* messages travel over libp2p pubsub, signed by their origin, and are at most
GOSSIP_MAX_BYTES. *Data* messages travel over the data plane as the header of a frame (transport.framing), with
raw bytes behind it as the payload.

All are MessagePack. Data messages are maps with the tag ``t``; unknown fields are ignored, so a newer peer may
add some. The state record is a positional, append-only array, because it is sent most: new fields go to its
end and old readers skip them. docs/wire.md describes every field for implementers in other languages.

Deadlines never travel: clocks of peers differ. The wire carries the remaining budget in seconds.
"""

from typing import Annotated, Final, TypeVar

import msgspec
from msgspec import Meta

M = TypeVar("M")

VERSION: Final = 1
"""Version of the data plane's messages, exchanged in Hello."""

GOSSIP_MAX_BYTES: Final = 4096
"""Largest gossip message. A state record takes under 256 B, a node card under 2 KiB."""
STATE_MAX_BYTES: Final = 256
CARD_MAX_BYTES: Final = 2048
CARDS_PER_MESSAGE_MAX: Final = 24
"""Cards in one message: as many as surely fit a header."""
HEADER_MAX_BYTES: Final = 64 * 1024
"""Largest frame header; the longest holds a request body of a few dozen tensors."""
PAYLOAD_MAX_BYTES: Final = 64 * 1024 * 1024
"""Largest payload: one uncompressed 4K frame in float32 is 95 MiB, in uint8 24 MiB; the grid moves the latter."""

ShortText = Annotated[str, Meta(max_length=256)]
NodeText = Annotated[str, Meta(min_length=1, max_length=80)]
DigestText = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
Key = Annotated[bytes, Meta(min_length=24, max_length=24)]
Seconds = Annotated[float, Meta(ge=0, le=1e6)]
Count = Annotated[int, Meta(ge=0, le=2**53)]
Body = Annotated[bytes, Meta(max_length=48 * 1024)]


class TransportError(Exception):
    """Root of all errors of the transport package."""


class LocalProtocolError(TransportError):
    """We broke the protocol: a bug of ours."""


class RemoteProtocolError(TransportError):
    """The peer broke the protocol; it counts against the peer."""


class FrameTooLargeError(TransportError):
    """A frame, message or payload exceeds its bound, ours or theirs."""


class PeerUnreachableError(TransportError):
    """No connection to the peer could be made or kept."""


class StateRecord(msgspec.Struct, frozen=True, array_like=True):
    """What a node says of its load (<= STATE_MAX_BYTES). Field order is the format: append only."""

    version: Annotated[int, Meta(ge=1, le=255)]
    node: NodeText
    epoch: Count
    sequence: Count
    backlog_s: Seconds
    slots: Annotated[int, Meta(ge=0, le=65535)]
    running_until_s: Seconds
    slow_down: Annotated[float, Meta(ge=1, le=1e6)]
    warm: Annotated[int, Meta(ge=0, le=2**63 - 1)]
    memory_free_bytes: Count
    draining: bool
    power_class: Annotated[int, Meta(ge=0, le=15)]
    table_digest: Annotated[bytes, Meta(min_length=8, max_length=8)]


class CapabilityRecord(msgspec.Struct, frozen=True, array_like=True):
    """Measured cost of one model on one node."""

    model: DigestText
    mean_s: Seconds
    p95_s: Seconds
    memory_bytes: Count
    load_s: Seconds
    max_batch: Annotated[int, Meta(ge=1, le=4096)]
    providers: Annotated[tuple[ShortText, ...], Meta(max_length=16)]


# ---------------------------------------------------------------- gossip


class HealthNotice(msgspec.Struct, frozen=True, tag_field="t", tag="health"):
    """A node's word about another: suspect, alive (by the node itself) or dead."""

    subject: NodeText
    epoch: Count
    """Epoch of the subject the word is about; an alive with a larger incarnation refutes it."""
    incarnation: Count
    status: Annotated[str, Meta(pattern="^(suspect|alive|dead|left)$")]


class CardNotice(msgspec.Struct, frozen=True, tag_field="t", tag="card"):
    """A node card: signed by the node's key, see transport.identity."""

    card: Annotated[bytes, Meta(max_length=CARD_MAX_BYTES)]


class RevocationNotice(msgspec.Struct, frozen=True, tag_field="t", tag="revocations"):
    """There is a revocation list of this version; small lists travel whole, others are pulled."""

    version: Count
    document: Annotated[bytes, Meta(max_length=3584)] | None


class TrustNotice(msgspec.Struct, frozen=True, tag_field="t", tag="trust"):
    """The origin holds signed grid state (TUF) of this version; pull it if yours is older."""

    root_version: Count
    timestamp_version: Count


Gossip = HealthNotice | CardNotice | RevocationNotice | TrustNotice


# ---------------------------------------------------------------- data plane: jobs


class JobHeader(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A job as it travels. The payload's bytes follow the frame; body says what they are."""

    key: Key
    attempt: Annotated[int, Meta(ge=0, le=65535)] = 0
    entry: NodeText
    hops: Annotated[int, Meta(ge=0, le=8)]
    visited: Annotated[tuple[NodeText, ...], Meta(max_length=16)] = ()
    client: ShortText = ""
    tenant: ShortText = ""
    priority: Annotated[int, Meta(ge=0, le=3)] = 1
    stream: ShortText = ""
    frame: Count = 0
    newest_wins: bool = False
    budget_s: Seconds
    models: Annotated[tuple[DigestText, ...], Meta(min_length=1, max_length=8)]
    input_bytes: Annotated[int, Meta(ge=0, le=PAYLOAD_MAX_BYTES)]
    output_bytes: Annotated[int, Meta(ge=0, le=PAYLOAD_MAX_BYTES)] = 4096
    parent: Key | None = None
    body: Body
    """Encoded request body (models.bodies.RequestBody); nodes pass it on unread."""


class Hello(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="hello"):
    """First message of both sides on a connection."""

    versions: Annotated[tuple[int, ...], Meta(min_length=1, max_length=16)]
    node: NodeText
    epoch: Count


class JobOffer(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="offer"):
    """May I send you this job? Answered by OfferAccepted or JobRefused."""

    job: JobHeader
    estimate_s: Seconds
    state: StateRecord


class OfferAccepted(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="offer_accepted"):
    """Room is kept for a while; send JobPayload."""

    key: Key
    state: StateRecord


class JobPayload(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="payload"):
    """The payload of an accepted offer."""

    key: Key


class JobSend(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="job"):
    """A job with its payload. Also how a victim hands over what a thief was granted."""

    job: JobHeader
    estimate_s: Seconds
    state: StateRecord


class JobAccepted(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="accepted"):
    """The job is here and not done within the acknowledgement time."""

    key: Key
    attempt: int
    covered: Annotated[tuple[Key, ...], Meta(max_length=256)] = ()
    """Keys of the asker's open jobs that the state already counts."""
    state: StateRecord


class JobProgress(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="progress"):
    """The job is still in hand."""

    key: Key
    attempt: int
    state: StateRecord


class JobRefused(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="refused"):
    """The job is given back unharmed."""

    key: Key
    attempt: int
    reason: ShortText
    estimate_s: Seconds | None
    state: StateRecord


class JobResult(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="result"):
    """The answer. Raw output tensors follow as payload, as the body says."""

    key: Key
    attempt: int
    model: DigestText
    node: NodeText
    """Node that executed the job."""
    hops: Annotated[int, Meta(ge=0, le=8)]
    waiting_s: Seconds
    service_s: Seconds
    body: Body
    state: StateRecord
    takes_lanes: bool = False
    """Whether a LaneRun like this job would be run as soon as it came: the node is at rest, and the job was short."""


class JobFailed(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="failed"):
    """The job ended without a result and need not be tried again by the asker for the same reason."""

    key: Key
    attempt: int
    reason: ShortText
    message: Annotated[str, Meta(max_length=1024)]
    state: StateRecord


class JobCancel(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="cancel"):
    """The asker wants no answer any more; the executor still answers once (JobFailed), which frees the connection."""

    key: Key


class LaneRun(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="lane_run"):
    """A short job with its payload, to be run now or not at all; one at a time. To a peer whose results take lanes."""

    key: Key
    model: DigestText
    budget_s: Seconds
    body: Body
    """As a JobHeader's."""


class LaneDone(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="lane_done"):
    """The answer to a LaneRun. Raw output tensors follow as payload, as the body says."""

    key: Key
    service_s: Seconds
    body: Body


class LanePassed(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="lane_passed"):
    """A LaneRun came to nothing: place the job as any other."""

    key: Key
    is_unfit: bool
    """Whether the job itself is to blame, so that the next like it had better not come so either."""


class StealRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="steal"):
    """An idle node asks for work."""

    models: Annotated[tuple[DigestText, ...], Meta(max_length=64)]
    room: Annotated[int, Meta(ge=1, le=64)]
    state: StateRecord


class StealAnswer(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="steal_answer"):
    """So many JobSend follow on this connection; the thief answers each as an executor does."""

    granted: Annotated[int, Meta(ge=0, le=64)]
    state: StateRecord


# ---------------------------------------------------------------- data plane: everything else


class Ping(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="ping"):
    """A probe. Answered by Pong."""

    nonce: Count
    subject: NodeText | None = None
    """A node to be probed on the asker's behalf (indirect probe); None for the peer itself."""


class Pong(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="pong"):
    """Answer to a Ping."""

    nonce: Count
    reached: bool
    state: StateRecord


class TableRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="table_request"):
    """Asks a peer for its capability table."""


class Table(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="table"):
    """A capability table, sorted by model."""

    node: NodeText
    digest: Annotated[bytes, Meta(min_length=8, max_length=8)]
    entries: Annotated[tuple[CapabilityRecord, ...], Meta(max_length=256)]


class CardRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="card_request"):
    """Asks for node cards; brings the asker's own, so that the first contact makes both sides known."""

    nodes: Annotated[tuple[NodeText, ...], Meta(max_length=CARDS_PER_MESSAGE_MAX)] = ()
    """Whose; empty for a page of all that the peer holds, sorted by node."""
    after: Annotated[str, Meta(max_length=80)] = ""
    """Last node of the page before."""
    own: Annotated[bytes, Meta(max_length=CARD_MAX_BYTES)] | None = None


class Cards(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="cards"):
    """Node cards, as their bytes."""

    cards: Annotated[
        tuple[Annotated[bytes, Meta(max_length=CARD_MAX_BYTES)], ...], Meta(max_length=CARDS_PER_MESSAGE_MAX)
    ]


class RevocationRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="revocation_request"):
    """Exchanged on each new connection: my list's version; send yours if it is newer."""

    version: Count


class Document(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="document"):
    """A signed document as the payload; found is False and the payload empty where there is none."""

    found: bool


class TrustRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="trust_request"):
    """Asks for a TUF metadata file or target by its repository path. Answered by Document."""

    path: Annotated[str, Meta(pattern=r"^(metadata|targets)/[A-Za-z0-9._/-]{1,200}$")]


class ChunkRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="chunk_request"):
    """Asks for a chunk by its CID. Answered by Document."""

    cid: Annotated[str, Meta(min_length=59, max_length=59)]


class HoldingsRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="holdings_request"):
    """Asks which chunks of a shard the peer has, by the shard's SHA-256."""

    sha256: DigestText


class Holdings(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="holdings"):
    """Bitmap of the chunks held, bit i of byte i // 8; empty for none."""

    bitmap: Annotated[bytes, Meta(max_length=8192)]


class SignRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="renew_request"):
    """Asks an admit node for a new certificate for the asker's own key."""

    csr: Annotated[bytes, Meta(max_length=4096)]


class Signed(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="renewed"):
    """The new certificate chain in PEM, or the reason there is none."""

    chain: Annotated[bytes, Meta(max_length=16384)] | None
    reason: ShortText = ""


class PublishRequest(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="publish_request"):
    """Hands what an owner signed (models.metadata.Publication, the payload) to an admit node. Answered by Document."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="error"):
    """The request made no sense or is not allowed; the connection closes after it."""

    reason: ShortText


DataMessage = (
    Hello
    | JobOffer
    | OfferAccepted
    | JobPayload
    | JobSend
    | JobAccepted
    | JobProgress
    | JobRefused
    | JobResult
    | JobFailed
    | JobCancel
    | LaneRun
    | LaneDone
    | LanePassed
    | StealRequest
    | StealAnswer
    | Ping
    | Pong
    | TableRequest
    | Table
    | CardRequest
    | Cards
    | RevocationRequest
    | Document
    | TrustRequest
    | ChunkRequest
    | HoldingsRequest
    | Holdings
    | SignRequest
    | Signed
    | PublishRequest
    | Refused
)

_ENCODER: Final = msgspec.msgpack.Encoder()
_STATE_DECODER: Final = msgspec.msgpack.Decoder(StateRecord)
_GOSSIP_DECODER: Final[msgspec.msgpack.Decoder[Gossip]] = msgspec.msgpack.Decoder(Gossip)
_DATA_DECODER: Final[msgspec.msgpack.Decoder[DataMessage]] = msgspec.msgpack.Decoder(DataMessage)


def encode(message: StateRecord | Gossip | DataMessage) -> bytes:
    """Encode a message.

    Raises
    ------
    LocalProtocolError
        It is longer than its kind allows: the caller put too much into it.
    """
    data = _ENCODER.encode(message)
    bound = HEADER_MAX_BYTES
    if isinstance(message, StateRecord):
        bound = STATE_MAX_BYTES
    elif isinstance(message, Gossip):
        bound = GOSSIP_MAX_BYTES
    if len(data) > bound:
        raise LocalProtocolError(f"{type(message).__name__} takes {len(data)} bytes, at most {bound} may be sent")
    return data


def _decode(decoder: msgspec.msgpack.Decoder[M], data: bytes | bytearray | memoryview, bound: int, what: str) -> M:
    if len(data) > bound:
        raise RemoteProtocolError(f"{what} has {len(data)} bytes, at most {bound} are accepted")
    try:
        return decoder.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"{what} is malformed: {error}") from error


def decode_state(data: bytes | bytearray | memoryview) -> StateRecord:
    """Decode a gossiped state record; raises RemoteProtocolError."""
    return _decode(_STATE_DECODER, data, STATE_MAX_BYTES, "state record")


def decode_gossip(data: bytes | bytearray | memoryview) -> Gossip:
    """Decode any other gossip message; raises RemoteProtocolError."""
    return _decode(_GOSSIP_DECODER, data, GOSSIP_MAX_BYTES, "gossip message")


def decode_data(data: bytes | bytearray | memoryview) -> DataMessage:
    """Decode the header of a data frame; raises RemoteProtocolError."""
    return _decode(_DATA_DECODER, data, HEADER_MAX_BYTES, "data message")
