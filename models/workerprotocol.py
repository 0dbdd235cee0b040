"""What the daemon and a worker process say to one another. Pure.

Two sequenced-packet sockets and one shared memory (models.sharedmemory) join the two. On the *request* socket the
daemon sends one LoadOrder and then RunOrders; the worker answers each with one record. On the *control* socket the
daemon sends CancelOrders, and the worker reads them in a thread of its own; its end means that the daemon is gone.

Records are MessagePack maps with the tag ``t``, one per packet. Both ends come from one source tree, so there is no
version; yet a worker runs strangers' models, so the daemon takes nothing on trust that comes from it.
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


class LoadOrder(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="load"):
    """Load the graph whose descriptor the worker was started with."""

    manifest_bytes: int
    """The manifest lies at the start of the shared memory: it may be longer than a packet."""
    threads: int
    """Threads for one run."""
    providers: tuple[str, ...]
    """Execution providers to try, best first."""
    slots: int
    """Runs at once."""
    memory_bytes: int
    """Private memory the worker may take for the model, beyond its libraries."""
    empty_folder: str


class RunOrder(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="run"):
    """Run one request, whose payload lies in a slot."""

    run: RunNumber
    """Counts up from 0."""
    slot: int
    body: bytes
    payload_bytes: int


class CancelOrder(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="cancel"):
    """Terminate a run, or leave it out where it has not begun. It is answered all the same."""

    run: RunNumber


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="ready"):
    """The model is loaded and warm."""

    providers: tuple[str, ...]
    """Providers that the session uses."""
    reached: tuple[str, ...]
    """Steps of confinement, see models.confine.Confinement."""
    missing: tuple[str, ...]


class LoadFailed(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="load_failed"):
    """The runtime does not take the model."""

    reason: Reason


class Done(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="done"):
    """A result; raw outputs lie in the slot."""

    run: RunNumber
    body: Annotated[bytes, Meta(max_length=48 * 1024)]
    payload_bytes: Annotated[int, Meta(ge=0)]
    service_s: Annotated[float, Meta(ge=0)]


class Failed(msgspec.Struct, frozen=True, kw_only=True, tag_field="t", tag="failed"):
    """A run without a result."""

    run: RunNumber
    kind: Annotated[str, Meta(pattern="^(input|model|terminated)$")]
    """input: the request is to blame; model: the runtime failed on it; terminated: a CancelOrder came."""
    reason: Reason
    service_s: Annotated[float, Meta(ge=0)]


Order = LoadOrder | RunOrder | CancelOrder
Answer = Ready | LoadFailed | Done | Failed

encode: Final = msgspec.msgpack.Encoder().encode
_ORDER: Final[msgspec.msgpack.Decoder[Order]] = msgspec.msgpack.Decoder(Order)
_ANSWER: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer)


def decode_order(packet: bytes) -> Order:
    """Decode what the daemon sent; raises msgspec.MsgspecError."""
    return _ORDER.decode(packet)


def decode_answer(packet: bytes) -> Answer:
    """Decode what a worker sent; raises msgspec.MsgspecError, RecursionError or UnicodeDecodeError."""
    return _ANSWER.decode(packet)


def shorten(text: str) -> str:
    """Cut a message to what a record takes."""
    return text if len(text) <= REASON_MAX_LENGTH else text[: REASON_MAX_LENGTH - 3] + "..."
