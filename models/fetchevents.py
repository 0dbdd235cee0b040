"""What may happen in a download, what may be asked, and its bounds. Pure records; models.fetch gives them meaning."""

import msgspec


class FetchConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds of one download."""

    peer_requests: int = 2
    """Requests under way at one peer. Each takes a connection of the pool and up to 1 MiB of memory; two hide one
    round trip."""
    requests: int = 8
    """Requests under way in all: 8 MiB of memory, and enough for a gigabit line at 50 ms."""
    copies: int = 2
    """Requests for one chunk at a time, in the endgame."""
    timeout_s: float = 20.0
    """Longest a request may take, in seconds: 1 MiB at 0.5 Mbit/s."""
    rest_s: float = 1.0
    """Rest of a peer after its first failure, in seconds; doubles with each further one in a row."""
    rest_max_s: float = 60.0
    """Longest rest, in seconds."""
    sample: int = 32
    """Missing chunks looked at for the rarest one. All of them would cost time in the square of the chunks."""

    def __post_init__(self) -> None:
        if min(self.peer_requests, self.requests, self.copies, self.sample) < 1:
            raise ValueError("peer_requests, requests, copies and sample are at least 1")
        if not (0 < self.rest_s <= self.rest_max_s and self.timeout_s > 0):
            raise ValueError(f"need 0 < rest_s <= rest_max_s and timeout_s > 0, got {self}")


# ---------------------------------------------------------------- events


class HoldingsLearned(msgspec.Struct, frozen=True):
    """A peer said which chunks of a shard it has; a new peer enters the plan by it."""

    peer: str
    shard: str
    """The shard's hex SHA-256."""
    bitmap: bytes
    """Bit i of byte i // 8 for chunk i, as models.store gives it; bits beyond the last chunk are ignored."""


class PeerGone(msgspec.Struct, frozen=True):
    """A peer left; what it had under way is lost."""

    peer: str


class ChunkStored(msgspec.Struct, frozen=True):
    """A chunk arrived and is in the store, whoever sent it."""

    peer: str
    cid: str


class ChunkRefused(msgspec.Struct, frozen=True):
    """A peer does not have the chunk (any more)."""

    peer: str
    cid: str


class ChunkCorrupt(msgspec.Struct, frozen=True):
    """A peer sent other bytes under the chunk's name."""

    peer: str
    cid: str


class ChunkFailed(msgspec.Struct, frozen=True):
    """A request ended without an answer: a lost connection, say."""

    peer: str
    cid: str


class ChunkLost(msgspec.Struct, frozen=True):
    """The store found a chunk damaged, or had to drop it: it is wanted again."""

    cid: str


class TimerFired(msgspec.Struct, frozen=True):
    """The time of next_deadline_s has come."""


FetchEvent = (
    HoldingsLearned | PeerGone | ChunkStored | ChunkRefused | ChunkCorrupt | ChunkFailed | ChunkLost | TimerFired
)

# ---------------------------------------------------------------- actions


class RequestChunk(msgspec.Struct, frozen=True):
    """Ask a peer for a chunk, and report how it ended."""

    peer: str
    cid: str
    reason: str


class CancelRequest(msgspec.Struct, frozen=True):
    """Give a request up; nothing need be reported of it."""

    peer: str
    cid: str
    reason: str


class ExcludePeer(msgspec.Struct, frozen=True):
    """The peer lied and is out of this download; tell whoever keeps the peers' records."""

    peer: str
    reason: str


class FetchDone(msgspec.Struct, frozen=True):
    """All chunks are in the store."""


FetchAction = RequestChunk | CancelRequest | ExcludePeer | FetchDone


class FetchStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Where a download stands."""

    chunks: int
    """Distinct chunks of the package."""
    missing: int
    under_way: int
    peers: int
    excluded: int
    unavailable: int
    """Missing chunks that no known peer has: ask more peers for their holdings."""
