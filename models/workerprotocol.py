"""What the daemon and a worker process say to one another. Pure.

Two sequenced-packet sockets and one shared memory (models.sharedmemory) join the two. On the *request* socket the
daemon sends one LoadOrder and then RunOrders; the worker answers each with one record. On the *control* socket the
daemon sends CancelOrders, for programs' memory (models.mappings) MapOrders, each with one descriptor, and UnmapOrders,
and the orders about lanes (models.lanes); the worker reads them in a thread of its own. Its end means that the daemon
is gone. What was run by lanes is told on the request socket.

Records are MessagePack arrays that begin with a tag, one per packet. Both ends come from one source tree, so there is
no version; yet a worker runs strangers' models, so the daemon takes nothing on trust that comes from it.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

PACKET_MAX_BYTES: Final = 64 * 1024
"""Largest packet after the first: a body of 48 KiB and a few fields."""

REASON_MAX_LENGTH: Final = 2000
"""Characters of an error message that a worker passes on; the runtime's own can be long."""

Reason = Annotated[str, Meta(max_length=REASON_MAX_LENGTH)]
RunNumber = Annotated[int, Meta(ge=0)]
SegmentNumber = Annotated[int, Meta(ge=1)]
LaneNumber = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(ge=0, le=1e6)]

LANE_RUNS_MAX: Final = 256
"""Most runs on one ticket: their account has to fit a packet."""


class LoadOrder(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="load"):
    """Load the graph whose descriptor the worker was started with."""

    manifest_bytes: int
    """The manifest lies at the start of the shared memory: it may be longer than a packet."""
    threads: int
    """Threads for one run that goes alone."""
    providers: tuple[str, ...]
    """Execution providers to try, best first."""
    slots: int
    """Runs at once."""
    memory_bytes: int
    """Private memory the worker may take for the model, beyond its libraries."""
    empty_folder: str


class RunOrder(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="run"):
    """Run one request, whose payload lies in a slot or in a segment."""

    run: RunNumber
    """Counts up from 0."""
    slot: int
    body: bytes
    payload_bytes: int
    segment: int = 0
    """Number of the segment that the payload lies in; 0: it lies in the slot."""
    offset: int = 0
    """In bytes from the segment's start."""


class CancelOrder(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="cancel"):
    """Terminate a run, or leave it out where it has not begun. It is answered all the same."""

    run: RunNumber


class MapOrder(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="map"):
    """Map a program's memory, whose descriptor comes with this packet. Runs on it may be ahead of this order."""

    segment: SegmentNumber
    size_bytes: int


class UnmapOrder(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="unmap"):
    """Let go of a program's memory. It is not told before the answers of all runs on it have come."""

    segment: SegmentNumber


class OpenLaneOrder(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="open_lane"):
    """Serve a program by a socket of its own, whose descriptor comes with this packet; see models.laneprotocol."""

    lane: LaneNumber
    segment: SegmentNumber
    """Memory that its payloads lie in; it stays mapped until the lane has ended."""


class TicketOrder(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="ticket"):
    """Let the program of a lane have so many runs, within so many seconds from the first."""

    lane: LaneNumber
    ticket: Annotated[int, Meta(ge=1)]
    """Counts up from 1, for each lane."""
    runs: Annotated[int, Meta(ge=1, le=LANE_RUNS_MAX)]
    lasts_s: Annotated[float, Meta(gt=0)]


class RevokeOrder(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="revoke"):
    """Begin nothing more on this ticket or an older one."""

    lane: LaneNumber
    ticket: int


class CloseLaneOrder(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="close_lane"):
    """End a lane. LaneEnded follows, as it does when the program ends it."""

    lane: LaneNumber


class Ready(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="ready"):
    """The model is loaded and warm."""

    providers: tuple[str, ...]
    """Providers that the session uses."""
    reached: tuple[str, ...]
    """Steps of confinement, see models.confine.Confinement."""
    missing: tuple[str, ...]


class LoadFailed(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="load_failed"):
    """The runtime does not take the model."""

    reason: Reason


class Done(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="done"):
    """A result; raw outputs lie in the slot."""

    run: RunNumber
    body: Annotated[bytes, Meta(max_length=48 * 1024)]
    payload_bytes: Annotated[int, Meta(ge=0)]
    service_s: Annotated[float, Meta(ge=0)]


class Failed(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="failed"):
    """A run without a result."""

    run: RunNumber
    kind: Annotated[str, Meta(pattern="^(input|model|terminated|unmapped)$")]
    """input: the request is to blame; model: the runtime failed on it; terminated: a CancelOrder came; unmapped: it
    has not begun, its segment could not be mapped, send it in the slot."""
    reason: Reason
    service_s: Annotated[float, Meta(ge=0)]


class LaneRun(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One run by a lane."""

    key: Annotated[bytes, Meta(min_length=24, max_length=24)]
    age_s: Seconds
    """Since the request came."""
    service_s: Seconds
    input_bytes: Annotated[int, Meta(ge=0)]
    output_bytes: Annotated[int, Meta(ge=0)]
    budget_s: Seconds | None
    transfer_s: Seconds = 0.0
    """What it took besides its run: the way to a peer and back, where the run was there."""


class LaneBegun(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="lane_begun"):
    """A program uses a ticket for the first time."""

    lane: LaneNumber
    ticket: int


class LaneEnded(msgspec.Struct, frozen=True, kw_only=True, array_like=True, tag="lane_ended"):
    """A ticket that was begun is over, or the lane is."""

    lane: LaneNumber
    ticket: int
    """0: none was in use."""
    runs: Annotated[tuple[LaneRun, ...], Meta(max_length=LANE_RUNS_MAX)]
    was_cut: bool
    """Whether it ended because it was revoked, with runs and time left."""
    is_closed: bool
    """Whether the lane is over, too: it has no socket any more, and reads no memory."""


ControlOrder = CancelOrder | MapOrder | UnmapOrder | OpenLaneOrder | TicketOrder | RevokeOrder | CloseLaneOrder
Answer = Ready | LoadFailed | Done | Failed | LaneBegun | LaneEnded

encode: Final = msgspec.msgpack.Encoder().encode
_CONTROL: Final[msgspec.msgpack.Decoder[ControlOrder]] = msgspec.msgpack.Decoder(ControlOrder)
_ANSWER: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer)


decode_load: Final = msgspec.msgpack.Decoder(LoadOrder).decode
"""Decode the first packet on the request socket; raises msgspec.MsgspecError."""

decode_run: Final = msgspec.msgpack.Decoder(RunOrder).decode
"""Decode any later packet on the request socket; raises msgspec.MsgspecError."""


def decode_control(packet: bytes) -> ControlOrder:
    """Decode a packet on the control socket; raises msgspec.MsgspecError."""
    return _CONTROL.decode(packet)


def decode_answer(packet: bytes) -> Answer:
    """Decode what a worker sent; raises msgspec.MsgspecError, RecursionError or UnicodeDecodeError."""
    return _ANSWER.decode(packet)


def shorten(text: str) -> str:
    """Cut a message to what a record takes."""
    return text if len(text) <= REASON_MAX_LENGTH else text[: REASON_MAX_LENGTH - 3] + "..."
