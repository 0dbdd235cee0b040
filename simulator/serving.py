"""What peers ask of a node: to take offers, to share work. The twin of gridnode.inbound and gridnode.leases."""

from typing import TYPE_CHECKING

import msgspec

from scheduler.actions import Accept, GrantLease, NackOffer
from scheduler.events import Accepted, Event, Nacked, OfferReceived, Progressed, SendFailed
from scheduler.types import Job, PeerState, Reason
from simulator import messages
from simulator.answers import Answer, Failure
from simulator.connection import Connection
from simulator.conversation import Conversation, clamp_s
from simulator.entries import Entry
from simulator.errands import HANDOVER_TIMEOUT_S, SendErrand, StealErrand, failure_event, reply_event

if TYPE_CHECKING:
    from simulator.node import SimNode


class OfferQuestion:
    """A peer's offer: it waits for the core's ruling, then for the payload."""

    __slots__ = (
        "_body_bytes",
        "_budget_s",
        "_connection",
        "_errand",
        "_estimate_s",
        "_job",
        "_limit",
        "_node",
        "_number",
    )

    def __init__(
        self,
        node: "SimNode",
        connection: Connection,
        errand: SendErrand,
        *,
        number: int,
        job: Job,
        budget_s: float,
        body_bytes: int,
        estimate_s: float,
    ) -> None:
        self._node = node
        self._connection = connection
        self._errand = errand
        self._number = number
        self._job = job
        self._budget_s = budget_s
        self._body_bytes = body_bytes
        self._estimate_s = estimate_s
        self._limit: int | None = None

    def event(self, state: PeerState) -> OfferReceived:
        """Make the event that asks the core."""
        now_s = self._node.engine.now_s
        return OfferReceived(
            offer=self._number,
            peer=self._connection.asker.name,
            job=msgspec.structs.replace(self._job, arrival_s=now_s, deadline_s=now_s + self._budget_s),
            state=state,
            sender_estimate_s=self._estimate_s,
        )

    def rule(self, ruling: Accept | NackOffer) -> None:
        """Tell the asker."""
        connection, errand, key = self._connection, self._errand, self._job.key
        state = ruling.state
        if isinstance(ruling, NackOffer):
            told_s = None if ruling.estimate_s is None else clamp_s(ruling.estimate_s)
            size = messages.job_refused(key, self._job.attempt, ruling.why.value, told_s, state)
            connection.answer(size, errand.hear_refused, key, ruling.why, told_s, state)
            return
        connection.served = self
        self._limit = self._node.engine.at(ruling.expires_s + HANDOVER_TIMEOUT_S, self._cut)
        connection.answer(messages.offer_accepted(key, state), errand.hear_room, state)

    def take_payload(self) -> None:
        """Take the job in."""
        self.on_broken()
        connection = self._connection
        talk = Conversation(self._node, connection.asker.name, connection.answer, self._errand)
        connection.served = talk
        talk.admit(self._job, self._budget_s, self._body_bytes, offer=self._number, estimate_s=self._estimate_s)

    def on_broken(self) -> None:
        """Wait no more."""
        if self._limit is not None:
            self._node.engine.cancel(self._limit)
            self._limit = None

    def _cut(self) -> None:
        self._limit = None
        self._connection.served = None
        self._connection.close_server()


class Lease:
    """One granted job; can be cancelled like an errand."""

    __slots__ = ("_grant", "command", "entry", "is_cancelled", "limit")

    def __init__(self, grant: "Grant", command: int, entry: Entry) -> None:
        self._grant = grant
        self.command = command
        self.entry = entry
        self.is_cancelled = False
        self.limit: int | None = None

    def cancel(self) -> None:
        """Have the thief told."""
        if not self.is_cancelled:
            self.is_cancelled = True
            self._grant.cancel(self)


class Grant:
    """All leases of one ruling on a steal; hears what the thief says of them.

    Parameters
    ----------
    node : SimNode
        The victim.
    connection : Connection
        Begun by the thief.
    errand : StealErrand
        The thief's.
    ruling : GrantLease
        What the core granted.
    """

    __slots__ = ("_connection", "_errand", "_node", "_open", "_state", "_thief")

    def __init__(self, node: "SimNode", connection: Connection, errand: StealErrand, ruling: GrantLease) -> None:
        self._node = node
        self._connection = connection
        self._errand = errand
        self._thief = connection.asker.name
        self._state = ruling.state
        self._open: dict[bytes, Lease] = {}
        granted = len(ruling.grants)
        size = messages.steal_answer(granted, ruling.state)
        connection.answer(size, errand.hear_answer, granted, ruling.state, self if granted else None)
        if granted:
            connection.served = self
        for (command, handle), job in zip(ruling.grants, ruling.jobs, strict=True):
            self._hand_over(command, node.jobs[handle], job)

    def _hand_over(self, command: int, entry: Entry, job: Job) -> None:
        node = self._node
        lease = self._open[job.key] = Lease(self, command, entry)
        node.errands[command] = lease
        node.commands[self._thief, job.key] = command
        size = messages.job_send(job, self._state, entry.body_bytes) if self._connection.is_limited else 0
        budget_s = clamp_s(job.deadline_s - node.engine.now_s)
        self._connection.answer(size, self._errand.hear_job, job, budget_s, entry.body_bytes)

    def cancel(self, lease: Lease) -> None:
        """Send a cancel, and cut the connection unless it is answered."""
        engine, key = self._node.engine, lease.entry.job.key
        lease.limit = engine.at(engine.now_s + HANDOVER_TIMEOUT_S, self._cut, lease)
        self._connection.answer(messages.job_cancel(key), self._errand.hear_cancel, key)

    def _cut(self, lease: Lease) -> None:
        lease.limit = None
        self._connection.close_server()
        self.on_broken()

    def on_broken(self) -> None:
        """Take back what has no outcome yet: the thief is gone."""
        self._connection.served = None
        leases = [self._release(key) for key in tuple(self._open)]
        self._node.post_all([SendFailed(command=lease.command, connected=True) for lease in leases])

    def _release(self, key: bytes) -> Lease:
        node = self._node
        lease = self._open.pop(key)
        if lease.limit is not None:
            node.engine.cancel(lease.limit)
        node.errands.pop(lease.command, None)
        if node.commands.get((self._thief, key)) == lease.command:
            del node.commands[self._thief, key]
        return lease

    def _end(self, key: bytes, event: Event, attachment: object = None) -> None:
        """Take an outcome; after the last one the thief hears that all have come."""
        self._release(key)
        if not self._open:
            self._connection.served = None
            self._connection.answer(messages.steal_answer(0, self._state), self._errand.hear_end)
        self._node.post(event, attachment)

    def hear_accepted(self, key: bytes, covered: tuple[bytes, ...], state: PeerState) -> None:
        """Pass on that a job is there."""
        commands = self._node.covered(self._thief, covered)
        self._node.post(Accepted(command=self._open[key].command, state=state, covered=commands))

    def hear_progress(self, key: bytes, state: PeerState) -> None:
        """Pass on that a job is in hand."""
        self._node.post(Progressed(command=self._open[key].command, state=state))

    def hear_refused(self, key: bytes, reason: Reason, estimate_s: float | None, state: PeerState) -> None:
        """Pass on that a job comes back."""
        command = self._open[key].command
        self._end(key, Nacked(command=command, reason=reason, state=state, estimate_s=estimate_s))

    def hear_result(self, key: bytes, answer: Answer, state: PeerState) -> None:
        """Pass a result on."""
        command, now_s = self._open[key].command, self._node.engine.now_s
        event = reply_event(command, answer, state, way=None, now_s=now_s)
        self._end(key, event, answer)

    def hear_failed(self, key: bytes, failure: Failure, state: PeerState) -> None:
        """Pass a failure on."""
        self._end(key, failure_event(self._open[key].command, failure, state), failure)
