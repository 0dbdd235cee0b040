"""The jobs at this node with their bytes: who waits for which answer, and what the answer was.

The core knows jobs by handle and keeps no bytes; this table keeps body, payload and the responder, and forgets a
job at its one outcome.
"""

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import msgspec

from models.executor import Place
from scheduler.types import Job, PeerState, Reason
from transport.base import Buffer

if TYPE_CHECKING:
    from gridnode.lanes import Standing


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """A result on its way to whoever asked."""

    model: str
    """Digest of the model that answered."""
    node: str
    """PeerID of the executor."""
    hops: int
    waiting_s: float
    service_s: float
    body: bytes
    payload: Buffer


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a job without a result."""

    reason: str
    """A scheduler Reason, or bad_input."""
    message: str = ""


Outcome = Answer | Failure


class Responder(Protocol):
    """Takes what a job's origin is to hear. Calls do not block; exactly one of the last three ends the job."""

    def accepted(self, state: PeerState) -> None:
        """Say that the job is here and not done yet."""
        ...

    def progress(self, state: PeerState) -> None:
        """Say that the job is still in hand."""
        ...

    def answer(self, answer: Answer, state: PeerState | None) -> None:
        """Give the result; ``state`` is None only for a job whose entry is hasty."""
        ...

    def fail(self, failure: Failure, state: PeerState, *, estimate_s: float | None) -> None:
        """Say that the job ended without a result."""
        ...

    def give_back(self, reason: Reason, state: PeerState, *, estimate_s: float | None) -> None:
        """Give the job back unharmed."""
        ...


class JobEntry:
    """One job at this node."""

    __slots__ = (
        "body",
        "handle",
        "is_answered",
        "is_hasty",
        "job",
        "lane",
        "payload",
        "place",
        "responder",
        "started_s",
    )

    def __init__(
        self,
        *,
        handle: int,
        job: Job,
        body: bytes,
        payload: Sequence[Buffer],
        responder: Responder,
        place: Place | None = None,
        is_hasty: bool = False,
        lane: "Standing | None" = None,
    ) -> None:
        self.handle = handle
        self.job = job
        self.body = body
        self.payload = payload
        self.place = place
        """Where the payload lies, if its program shares its memory."""
        self.responder = responder
        self.is_hasty = is_hasty
        """Whether the answer may leave before the core has heard of it: a program needs no state record with it."""
        self.lane = lane
        """The lane that its program has for jobs of this kind, if any."""
        self.is_answered = False
        """Whether it has."""
        self.started_s = 0.0
        """When its execution here began."""


class JobTable:
    """All jobs at this node, by handle."""

    def __init__(self) -> None:
        self._entries: dict[int, JobEntry] = {}
        self._keys: dict[str, dict[int, bytes]] = {}
        self._minted = 0

    def mint(self) -> int:
        """Return a new handle."""
        self._minted += 1
        return self._minted

    def add(self, entry: JobEntry) -> None:
        """Keep a job until its outcome."""
        self._entries[entry.handle] = entry

    def get(self, handle: int) -> JobEntry | None:
        """Return a job; None when its outcome is already out."""
        return self._entries.get(handle)

    def pop(self, handle: int) -> JobEntry | None:
        """Forget a job and return it."""
        return self._entries.pop(handle, None)

    def open_for(self, peer: str, handle: int, key: bytes) -> None:
        """Note that a peer waits here for the outcome of a key."""
        self._keys.setdefault(peer, {})[handle] = key

    def close_for(self, peer: str, handle: int) -> None:
        """Note that the peer has its outcome."""
        keys = self._keys[peer]
        del keys[handle]
        if not keys:
            del self._keys[peer]

    def keys_of(self, peer: str, limit: int) -> tuple[bytes, ...]:
        """Return the keys a peer waits for here, oldest first, on whichever connections they came; at most `limit`."""
        return tuple(islice(self._keys.get(peer, {}).values(), limit))

    def __len__(self) -> int:
        """Return how many jobs are at this node."""
        return len(self._entries)

    def payload_bytes(self) -> int:
        """Return the bytes of input held for them."""
        return sum(len(part) for entry in self._entries.values() for part in entry.payload)
