"""A program's end of a lane: a socket straight to a model's worker, for as long as the daemon's ticket lasts.

Where a peer's worker answers, the daemon has the other end, and carries on what comes without deciding about it.

Between program and worker stands the daemon, which decides about each request, and takes longer for that than a small
model does for its run. A program that asks for one thing after another is decided about the same way each time while
the node has nothing else to do. So it may open a lane, and the daemon gives it a *ticket* every now and then: so many
runs without a word. Owns one lane: its socket, its ticket, and the one request under way. When a lane may be opened,
and what becomes of a request that does not come through, is gridnode.links's.

The records are those of models.laneprotocol, defined a second time for the reason told in gridnode.control.
"""

import socket
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gridnode.control import JobDone, Ticket
from gridnode.errors import ProtocolError
from gridnode.jobs import BUDGET_MAX_S, Job, Options, Request

PACKET_MAX_BYTES: Final = 64 * 1024

ROW_BEFORE_LANE: Final = 8
"""Requests of one kind, answered one after another by the same node, before a lane for more is opened."""
PAUSE_AFTER_LANE: Final = 1000
"""Such requests to be answered before another lane is tried, where the last was of no use."""

Key = Annotated[bytes, Meta(min_length=24, max_length=24)]


class LaneRequest(msgspec.Struct, frozen=True, array_like=True):
    """One request; its payload lies in the shared memory."""

    key: Key
    ticket: int
    body: bytes
    offset: int
    payload_bytes: int
    budget_s: float | None


class LaneDone(msgspec.Struct, frozen=True, array_like=True, tag="done"):
    """A result."""

    key: Key
    body: bytes
    payload: bytes
    service_s: float
    transfer_s: float = 0.0


class LanePass(msgspec.Struct, frozen=True, array_like=True, tag="pass"):
    """Ask the daemon."""

    key: Key
    is_unfit: bool


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(LaneDone | LanePass).decode


class Row:
    """How many requests of one kind were answered in a row, on one connection."""

    __slots__ = ("count", "kind", "node")

    def __init__(self) -> None:
        self.node = ""
        """Which answered them."""
        self.kind: tuple[str, Options] | None = None
        self.count = 0

    def note_request(self, request: Request) -> None:
        """Note a request to the daemon."""
        kind = (request.model, request.options)
        if kind != self.kind:
            self.kind, self.count = kind, min(self.count, 0)

    def note_answer(self, done: JobDone) -> tuple[str, Options] | None:
        """Note the daemon's answer, when no other is owed; returns the kind for which a lane is to be opened now."""
        if self.kind is None or self.kind[1].stream:
            return None
        if done.node != self.node:
            self.node, self.count = done.node, min(self.count, 0)
        self.count += 1
        return self.kind if self.count >= ROW_BEFORE_LANE else None


class Lane:
    """One lane.

    Parameters
    ----------
    model : str
        As requests name it.
    options : Options
        Of all requests by this lane.
    usual : JobDone
        An answer of the daemon's to such a request.
    """

    __slots__ = (
        "_least_budget_s",
        "_left",
        "_ticket",
        "is_unfit",
        "job",
        "model",
        "options",
        "other",
        "place",
        "socket",
        "usual",
    )

    outgoing_bytes = 0
    """Nothing ever waits to be sent: a request is one packet, and the one before it was read."""

    def __init__(self, model: str, options: Options, usual: JobDone) -> None:
        self.model = model
        self.options = options
        self.usual = usual
        """The daemon's answer that earned the ticket: what it says of node and model holds for the lane's, too."""
        self.job: Job | None = None
        """The one under way."""
        self.place = 0
        """Of its payload."""
        self.is_unfit = False
        """Whether requests like these had better not come by a lane."""
        self._ticket = self._left = 0
        self._least_budget_s = 0.0
        self.socket, self.other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        """Our end, and the worker's, which is to be sent and closed."""
        self.socket.setblocking(False)

    def take_ticket(self, ticket: Ticket) -> None:
        """Use a new ticket."""
        self._ticket, self._left, self._least_budget_s = ticket.ticket, ticket.runs, ticket.least_budget_s

    @property
    def was_used(self) -> bool:
        """Whether there ever was a ticket."""
        return self._ticket > 0

    def takes(self, job: Job, now_s: float) -> bool:
        """Tell whether a job may be sent now."""
        if not self._left or self.job is not None or job.request.options != self.options:
            return False
        return job.deadline_s is None or job.deadline_s - now_s >= self._least_budget_s

    def send(self, job: Job, place: int, now_s: float) -> None:
        """Send a job whose payload lies in the shared memory; raises OSError where the lane is over."""
        request = job.request
        budget_s = None if job.deadline_s is None else min(job.deadline_s - now_s, BUDGET_MAX_S)
        self._left -= 1
        self.job, self.place = job, place
        packet = _encode(LaneRequest(job.key, self._ticket, request.body, place, request.payload_bytes, budget_s))
        self.socket.send(packet, socket.MSG_NOSIGNAL)

    def receive(self) -> tuple[Job, JobDone | None, bytes] | None:
        """Take the answer, if it is there.

        Returns
        -------
        tuple or None
            The job, its answer (None: ask the daemon) and its raw outputs; None where nothing has come.

        Raises
        ------
        OSError
            The lane is over.
        ProtocolError
            The worker talks nonsense.
        """
        try:
            packet = self.socket.recv(PACKET_MAX_BYTES)
        except BlockingIOError:
            return None
        if not packet:
            raise ConnectionResetError("the lane has ended")
        try:
            word = _decode(packet)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
            raise ProtocolError(f"word of a worker is malformed: {error}") from error
        job = self.job
        if job is None or word.key != job.key:
            raise ProtocolError("a worker answered what it was not asked")
        self.job = None
        if isinstance(word, LanePass):
            self._left = 0
            self.is_unfit = word.is_unfit
            return job, None, b""
        usual = self.usual
        done = JobDone(
            key=word.key,
            model=usual.model,
            model_digest=usual.model_digest,
            node=usual.node,
            node_name=usual.node_name,
            hops=usual.hops,
            waiting_s=0.0,
            service_s=word.service_s,
            transfer_s=word.transfer_s,
            total_s=word.service_s + word.transfer_s,
            body=word.body,
        )
        return job, done, word.payload

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
        self.other.close()
