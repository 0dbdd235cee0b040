"""Sizes of messages on the wire, without encoding them.

Data messages are MessagePack maps behind a frame prefix; what varies in them is a handful of integers and texts. The
sizes here are those of transport.wire's encoder to the byte, which a test holds; encoding each message only to count
its bytes would cost more than the decision that it carries.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

import msgspec

from scheduler.types import Capability, Job, PeerState
from transport.framing import PREFIX_BYTES
from transport.wire import CapabilityRecord, Table, encode

SEGMENT_BYTES: Final = 64
"""What opens, accepts or closes a connection."""
GOSSIP_OVERHEAD_BYTES: Final = 180
"""What libp2p adds to a gossip message: signature, key, ids, frame."""
_FLOAT_BYTES: Final = 9


def uint_bytes(value: int) -> int:
    """Return the size of a non-negative integer."""
    if value < 0x80:
        return 1
    if value < 0x100:
        return 2
    if value < 0x10000:
        return 3
    return 5 if value < 0x100000000 else 9


def text_bytes(value: str) -> int:
    """Return the size of a text."""
    size = len(value) if value.isascii() else len(value.encode())
    if size < 32:
        return 1 + size
    return (2 if size < 0x100 else 3) + size


def binary_bytes(size: int) -> int:
    """Return the size of a byte string of a length."""
    if size < 0x100:
        return 2 + size
    return (3 if size < 0x10000 else 5) + size


def _array_bytes(count: int) -> int:
    return 1 if count < 16 else 3


def state_bytes(state: PeerState) -> int:
    """Return the size of a state record."""
    return (
        2
        + _text(state.node_id)
        + uint_bytes(state.epoch)
        + uint_bytes(state.sequence)
        + 3 * _FLOAT_BYTES
        + uint_bytes(state.slots)
        + uint_bytes(state.warm)
        + uint_bytes(state.memory_free_bytes)
        + 1
        + uint_bytes(state.power_class)
        + binary_bytes(len(state.table_digest))
    )


_text = lru_cache(maxsize=65_536)(text_bytes)


@lru_cache(maxsize=65_536)
def _names_bytes(names: tuple[str, ...]) -> int:
    return _array_bytes(len(names)) + sum(text_bytes(name) for name in names)


def header_bytes(job: Job, body_bytes: int) -> int:
    """Return the size of a job's header with a request body of a length.

    Fields at their defaults do not travel, save output_bytes: msgspec compares large integers by identity.
    """
    size = (
        _HEADER_BYTES
        + uint_bytes(job.output_bytes)
        + binary_bytes(len(job.key))
        + _text(job.entry)
        + uint_bytes(job.hops)
    )
    size += _names_bytes(job.models) + uint_bytes(job.input_bytes) + binary_bytes(body_bytes)
    for name_bytes, is_set, value_bytes in (
        (8, job.attempt, uint_bytes(job.attempt)),
        (8, job.visited, _names_bytes(job.visited)),
        (7, job.client, _text(job.client)),
        (7, job.tenant, _text(job.tenant)),
        (9, job.priority != 1, uint_bytes(job.priority)),
        (7, job.stream, _text(job.stream)),
        (6, job.frame, uint_bytes(job.frame)),
        (12, job.newest_wins, 1),
    ):
        if is_set:
            size += name_bytes + value_bytes
    if job.parent is not None:
        size += 7 + binary_bytes(len(job.parent))
    return size


def _fields(*names: str) -> int:
    return sum(text_bytes(name) for name in names)


def _frame(tag: str, *names: str) -> int:
    """Return the size of a frame but for the values of its fields."""
    return PREFIX_BYTES + 1 + _fields("t", tag, *names)


_HEADER_BYTES: Final = (
    3 + _fields("key", "entry", "hops", "budget_s", "models", "input_bytes", "output_bytes", "body") + _FLOAT_BYTES
)
"""With the head of the map: three bytes where a record leaves out defaults."""
_JOB: Final = _frame("job", "job", "estimate_s", "state") + _FLOAT_BYTES
_OFFER: Final = _frame("offer", "job", "estimate_s", "state") + _FLOAT_BYTES
_OFFER_ACCEPTED: Final = _frame("offer_accepted", "key", "state")
_PAYLOAD: Final = _frame("payload", "key")
_ACCEPTED: Final = _frame("accepted", "key", "attempt", "covered", "state")
_PROGRESS: Final = _frame("progress", "key", "attempt", "state")
_REFUSED: Final = _frame("refused", "key", "attempt", "reason", "estimate_s", "state")
_RESULT: Final = (
    _frame(
        "result", "key", "attempt", "model", "node", "hops", "waiting_s", "service_s", "body", "state", "takes_lanes"
    )
    + 2 * _FLOAT_BYTES
    + 1
)
_FAILED: Final = _frame("failed", "key", "attempt", "reason", "message", "state")
_CANCEL: Final = _frame("cancel", "key")
_STEAL: Final = _frame("steal", "models", "room", "state")
_STEAL_ANSWER: Final = _frame("steal_answer", "granted", "state")
_PING: Final = _frame("ping", "nonce", "subject") + 1
_PONG: Final = _frame("pong", "nonce", "reached", "state") + 1
TABLE_REQUEST_BYTES: Final = _frame("table_request")


def job_send(job: Job, state: PeerState, body_bytes: int) -> int:
    """Return the size of a job with its payload."""
    return _JOB + header_bytes(job, body_bytes) + state_bytes(state) + job.input_bytes


def job_offer(job: Job, state: PeerState, body_bytes: int) -> int:
    """Return the size of an offer: all but the payload."""
    return _OFFER + header_bytes(job, body_bytes) + state_bytes(state)


def offer_accepted(key: bytes, state: PeerState) -> int:
    """Return the size of the acceptance of an offer."""
    return _OFFER_ACCEPTED + binary_bytes(len(key)) + state_bytes(state)


def job_payload(key: bytes, payload_bytes: int) -> int:
    """Return the size of the payload of an accepted offer."""
    return _PAYLOAD + binary_bytes(len(key)) + payload_bytes


def job_accepted(key: bytes, attempt: int, covered: Iterable[bytes], state: PeerState) -> int:
    """Return the size of an acknowledgement."""
    sizes = [binary_bytes(len(each)) for each in covered]
    size = _ACCEPTED + binary_bytes(len(key)) + uint_bytes(attempt) + state_bytes(state)
    return size + _array_bytes(len(sizes)) + sum(sizes)


def job_progress(key: bytes, attempt: int, state: PeerState) -> int:
    """Return the size of a progress report."""
    return _PROGRESS + binary_bytes(len(key)) + uint_bytes(attempt) + state_bytes(state)


def job_refused(key: bytes, attempt: int, reason: str, estimate_s: float | None, state: PeerState) -> int:
    """Return the size of a refusal."""
    size = _REFUSED + binary_bytes(len(key)) + uint_bytes(attempt) + text_bytes(reason) + state_bytes(state)
    return size + (1 if estimate_s is None else _FLOAT_BYTES)


def job_result(key: bytes, attempt: int, state: PeerState, *, answer: tuple[str, str, int, int, int]) -> int:
    """Return the size of a result; `answer` is model, node, hops, and the bytes of body and payload."""
    model, node, hops, body_bytes, payload_bytes = answer
    size = _RESULT + binary_bytes(len(key)) + uint_bytes(attempt) + _text(model) + _text(node) + uint_bytes(hops)
    return size + binary_bytes(body_bytes) + payload_bytes + state_bytes(state)


def job_failed(key: bytes, attempt: int, reason: str, message: str, state: PeerState) -> int:
    """Return the size of a failure."""
    size = _FAILED + binary_bytes(len(key)) + uint_bytes(attempt) + text_bytes(reason) + state_bytes(state)
    return size + text_bytes(message)


def job_cancel(key: bytes) -> int:
    """Return the size of a cancel."""
    return _CANCEL + binary_bytes(len(key))


def steal_request(models: tuple[str, ...], room: int, state: PeerState) -> int:
    """Return the size of a thief's question."""
    return _STEAL + _names_bytes(models) + uint_bytes(room) + state_bytes(state)


def steal_answer(granted: int, state: PeerState) -> int:
    """Return the size of a victim's answer."""
    return _STEAL_ANSWER + uint_bytes(granted) + state_bytes(state)


def ping(nonce: int) -> int:
    """Return the size of a question how a peer stands."""
    return _PING + uint_bytes(nonce)


def pong(nonce: int, state: PeerState) -> int:
    """Return the size of its answer."""
    return _PONG + uint_bytes(nonce) + state_bytes(state)


def gossip(state: PeerState) -> int:
    """Return the size of a gossiped state record."""
    return state_bytes(state) + GOSSIP_OVERHEAD_BYTES


def _record(entry: Capability) -> CapabilityRecord:
    return CapabilityRecord(
        entry.model, entry.mean_s, entry.p95_s, entry.memory_bytes, entry.load_s, entry.max_batch, entry.providers
    )


def table(node: str, digest: bytes, entries: tuple[Capability, ...]) -> int:
    """Return the size of a capability table: rare, so it is encoded."""
    return PREFIX_BYTES + len(encode(Table(node=node, digest=digest, entries=tuple(map(_record, entries)))))


def table_digest(entries: tuple[Capability, ...]) -> bytes:
    """Return the 8 bytes that name a capability table, as the daemon makes them."""
    return hashlib.sha256(msgspec.msgpack.encode(tuple(map(_record, entries)))).digest()[:8]
