"""A program's end of a lane: a socket straight to a model's worker, for as long as the daemon's ticket lasts.

Where a peer's worker answers, the daemon has the other end, and carries on what comes without deciding about it.

Between program and worker stands the daemon, which decides about each request, and takes longer for that than a small
model does for its run. A program that asks for one thing after another is decided about the same way each time while
the node has nothing else to do. So it may open a lane, and the daemon gives it a *ticket* every now and then: so many
runs without a word. Owns one lane: its socket, its ticket, and the requests under way. When a lane may be opened, and
which of several a request goes by, is gridnode.lanebook's; what becomes of a request that does not come through is
gridnode.links's.

The records are those of models.laneprotocol, defined a second time for the reason told in gridnode.control.
"""

import math
import socket
from collections import deque
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from gridnode.control import JobDone, Ticket
from gridnode.errors import ProtocolError
from gridnode.jobs import BUDGET_MAX_S, Job, Options

PACKET_MAX_BYTES: Final = 64 * 1024
ANSWERS_MAX_BYTES: Final = 96 * 1024
"""Answers to come by one lane: about half of what its socket holds, since the worker does not wait for a reader."""
SOCKET_BYTES: Final = 2 * ANSWERS_MAX_BYTES
"""Asked of the kernel for answers; it grants twice that, for its own part of each packet."""
QUEUED_BUDGET_MIN_S: Final = 1.0
"""Least time of a request that goes by a lane behind others: several times what those take."""

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


class Lane:
    """One lane.

    Parameters
    ----------
    number : int
        Names it on its connection.
    model : str
        As requests name it.
    options : Options
        Of all requests by this lane.
    usual : JobDone
        An answer of the daemon's to such a request.
    """

    __slots__ = (
        "_answer_bytes",
        "_depth",
        "_lasts_s",
        "_least_budget_s",
        "_left",
        "_ticket",
        "_until_s",
        "is_unfit",
        "model",
        "number",
        "options",
        "other",
        "socket",
        "under_way",
        "usual",
    )

    outgoing_bytes = 0
    """Nothing ever waits to be sent: a request that the socket does not take is the daemon's."""

    def __init__(self, number: int, model: str, options: Options, usual: JobDone) -> None:
        self.number = number
        self.model = model
        self.options = options
        self.usual = usual
        """The daemon's answer that earned the ticket: what it says of node and model holds for the lane's, too."""
        self.under_way: deque[tuple[Job, int, int]] = deque()
        """Jobs that were sent, the places of their payloads and their tickets; they are answered in this order."""
        self.is_unfit = False
        """Whether requests like these had better not come by a lane."""
        self._ticket = self._left = 0
        self._depth = 1
        self._lasts_s = self._least_budget_s = 0.0
        self._until_s = math.inf
        """When the ticket ends; not known before it is used."""
        self._answer_bytes = 0
        """Length of the longest answer; 0 until there is one."""
        self.socket, self.other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        """Our end, and the worker's, which is to be sent and closed."""
        self.socket.setblocking(False)
        self.other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BYTES)

    def take_ticket(self, ticket: Ticket) -> None:
        """Use a new ticket."""
        self._ticket, self._left, self._least_budget_s = ticket.ticket, ticket.runs, ticket.least_budget_s
        self._lasts_s, self._until_s = ticket.lasts_s, math.inf
        self._depth = ticket.depth

    @property
    def was_used(self) -> bool:
        """Whether there ever was a ticket."""
        return self._ticket > 0

    def has_ticket(self, now_s: float) -> bool:
        """Tell whether there is a ticket, and time on it for what would go behind others.

        With none under way the worker is asked in any case: what it passes ends the ticket for the daemon, too.
        """
        waiting = len(self.under_way)
        return self._left > 0 and (not waiting or now_s + waiting * self.usual.service_s < self._until_s)

    def takes(self, job: Job, now_s: float, *, may_queue: bool) -> bool:
        """Tell whether a job of this kind may be sent now, if there is a ticket; ``may_queue``: behind others, too."""
        least_s, waiting = self._least_budget_s, len(self.under_way)
        if waiting:
            if not may_queue or waiting >= self._room:
                return False
            least_s = max(least_s, QUEUED_BUDGET_MIN_S)
        return job.deadline_s is None or job.deadline_s - now_s >= least_s

    @property
    def _room(self) -> int:
        """How many requests may be under way."""
        return min(self._depth, ANSWERS_MAX_BYTES // self._answer_bytes) if self._answer_bytes else 1

    def send(self, job: Job, place: int, now_s: float) -> bool:
        """Send a job whose payload lies in the shared memory.

        Returns
        -------
        bool
            False where it does not fit behind those under way.

        Raises
        ------
        OSError
            The lane is over.
        """
        request = job.request
        budget_s = None if job.deadline_s is None else min(job.deadline_s - now_s, BUDGET_MAX_S)
        packet = _encode(LaneRequest(job.key, self._ticket, request.body, place, request.payload_bytes, budget_s))
        try:
            self.socket.send(packet, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return False
        self._left -= 1
        if self._until_s == math.inf:
            self._until_s = now_s + self._lasts_s
        self.under_way.append((job, place, self._ticket))
        return True

    def receive(self) -> tuple[Job, int, JobDone | None, bytes] | None:
        """Take an answer, if one is there.

        Returns
        -------
        tuple or None
            The job, the place of its payload, its answer (None: ask the daemon) and its raw outputs; None where nothing
            has come.

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
        if not self.under_way or word.key != self.under_way[0][0].key:
            raise ProtocolError("a worker answered what it was not asked")
        job, place, ticket = self.under_way.popleft()
        if isinstance(word, LanePass):
            if ticket == self._ticket:
                self._left = 0
            self.is_unfit = word.is_unfit
            return job, place, None, b""
        self._answer_bytes = max(self._answer_bytes, len(packet))
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
        return job, place, done, word.payload

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()
        self.other.close()
