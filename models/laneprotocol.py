"""What a program and a worker say to each other on a lane. Pure.

A lane is a pair of sequenced-packet sockets between one program and one worker; the daemon of both put it there
(models.lanes). Where the worker is a peer's, the daemon keeps that end and plays its part (gridnode.farlanes). The
program sends LaneRequests, as many at once as its *ticket* allows, which the daemon gave; the worker answers them in
order, each with LaneDone, or with LanePass where the daemon is to be asked after all. Records are MessagePack arrays,
one per packet. Neither end trusts the other: sizes are bounded here, places in memory are checked where they are used.

The program's definitions of the same records are gridnode.lane's, for the reason told in gridnode.control; a test
holds the two together.
"""

from typing import Annotated, Final

import msgspec
from msgspec import Meta

PACKET_MAX_BYTES: Final = 64 * 1024
"""Largest packet: a body of 48 KiB, or outputs, and a few fields."""

OUTPUT_MAX_BYTES: Final = 48 * 1024
"""Largest raw outputs that come by a lane; requests with larger ones are the daemon's."""

ANSWER_MAX_BYTES: Final = PACKET_MAX_BYTES - 256
"""Body and raw outputs of one answer: what the other fields leave of a packet."""

PASSED_MAX: Final = 64
"""Requests in a row that come to nothing, after which the lane ends: its program does not listen. Twice what may be
under way when a ticket is taken back."""

Key = Annotated[bytes, Meta(min_length=24, max_length=24)]
Count = Annotated[int, Meta(ge=0)]
Body = Annotated[bytes, Meta(max_length=48 * 1024)]
"""As elsewhere: a peer's daemon would call a longer one a breach of this node's."""
Budget = Annotated[float, Meta(ge=0, le=1e6)]


class LaneRequest(msgspec.Struct, frozen=True, array_like=True):
    """One request; its payload lies in the program's shared memory."""

    key: Key
    ticket: Count
    body: Body
    """An encoded models.bodies.RequestBody."""
    offset: Count
    """Of the payload, in bytes from the memory's start."""
    payload_bytes: Count
    budget_s: Budget | None
    """Seconds until the answer is worth nothing; None for the daemon's default. For the daemon's account alone."""


class LaneDone(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """A result."""

    key: Key
    body: bytes
    """An encoded models.bodies.ResultBody."""
    payload: bytes
    """Raw outputs, as the body says."""
    service_s: float
    """From the request's receipt by the worker to its answer, in seconds."""
    transfer_s: float = 0.0
    """The way to a peer's worker and back, where the lane leads to one."""


class LanePass(msgspec.Struct, frozen=True, array_like=True, tag="pass"):
    """Not by this lane: ask the daemon, which also knows the words for whatever is wrong."""

    key: Key
    is_unfit: bool
    """Whether the request itself is to blame, so that the next like it had better not come by a lane either."""


encode: Final = msgspec.msgpack.Encoder().encode
decode_request: Final = msgspec.msgpack.Decoder(LaneRequest).decode
"""Decode what a program sent; raises msgspec.MsgspecError."""
