"""What a node asks of its peers: to take a job, to give some, for their capability table, how they stand.

The twin of gridnode.outbound, gridnode.stolen and gridnode.mouth. One connection per errand; each ends by posting the
event that answers its command. Where an event is posted and something is sent at one instant, the sending comes first:
so it does in the daemon, where the actions of the core wait for the task that posted.
"""

from typing import TYPE_CHECKING, Final

from scheduler.actions import Offer, Probe, Send, Steal
from scheduler.events import (
    Accepted,
    Event,
    Nacked,
    OfferAnswered,
    ProbeAnswered,
    Progressed,
    ReplyReceived,
    SendFailed,
    StealAnswered,
    TableReceived,
)
from scheduler.types import CapabilityTable, Job, LinkSample, PeerState, Reason, ServiceTimes
from simulator import messages
from simulator.answers import Answer, Failure
from simulator.connection import Connection
from simulator.conversation import Conversation, clamp_s
from simulator.entries import Entry

if TYPE_CHECKING:
    from simulator.node import SimNode
    from simulator.serving import Grant

SMALL_BYTES: Final = 32 * 1024
"""Up to this size a payload's transfer is a round trip; above it, it tells the link's goodput."""
HANDOVER_TIMEOUT_S: Final = 10.0
"""Longest time a grant, or the answer to a cancel, may take before the connection is cut."""
TABLE_TIMEOUT_S: Final = 5.0
PROBE_TIMEOUT_S: Final = 1.0


class Way:
    """What is known of the way of a job of ours to a peer."""

    __slots__ = ("began_s", "input_bytes", "setup_s")

    def __init__(self, began_s: float, setup_s: float, input_bytes: int) -> None:
        self.began_s = began_s
        self.setup_s = setup_s
        """Time that the connection took."""
        self.input_bytes = input_bytes


def reply_event(command: int, answer: Answer, state: PeerState, *, way: Way | None, now_s: float) -> ReplyReceived:
    """Make the event of a result, with a sample of the link where it tells one; see gridnode.outbound."""
    waiting_s, service_s = answer.waiting_s, answer.service_s
    times = ServiceTimes(waiting_s=waiting_s, service_s=service_s)
    link = None
    if way is not None and answer.node != state.node_id:
        link = LinkSample(rtt_s=None, sent_bytes=0, sent_s=0.0, setup_s=way.setup_s)
    elif way is not None:
        link = _sample(way, max(0.0, now_s - way.began_s - waiting_s - service_s))
    return ReplyReceived(command=command, model=answer.model, failure=None, state=state, times=times, link=link)


def _sample(way: Way, taken_s: float) -> LinkSample:
    if way.input_bytes <= SMALL_BYTES:
        return LinkSample(rtt_s=taken_s, sent_bytes=way.input_bytes, sent_s=0.0, setup_s=way.setup_s)
    return LinkSample(rtt_s=None, sent_bytes=way.input_bytes, sent_s=taken_s, setup_s=way.setup_s)


def failure_event(command: int, failure: Failure, state: PeerState) -> ReplyReceived:
    """Make the event of a failure."""
    return ReplyReceived(command=command, model=None, failure=failure.reason, state=state, times=None)


class SendErrand:
    """A job sent or offered to a peer, until its outcome."""

    __slots__ = (
        "_action",
        "_asked_s",
        "_began_s",
        "_command",
        "_connection",
        "_entry",
        "_is_cancelled",
        "_limit",
        "_node",
        "_opening",
        "_peer",
        "_sent",
    )

    def __init__(self, node: "SimNode", action: Send | Offer, entry: Entry) -> None:
        self._node = node
        self._action = action
        self._command = action.command
        self._peer = action.peer
        self._entry = entry
        self._connection: Connection | None = None
        self._asked_s = node.engine.now_s
        self._began_s = 0.0
        self._sent = False
        self._is_cancelled = False
        self._limit: int | None = None
        node.errands[self._command] = self
        node.commands[self._peer, entry.job.key] = self._command
        self._opening = node.lease(self._peer, self)

    def on_connected(self, connection: Connection) -> None:
        """Send the job or the offer."""
        node, action, job = self._node, self._action, self._action.job
        assert job is not None
        self._opening = None
        self._connection = connection
        connection.errand = self
        self._began_s = now_s = node.engine.now_s
        budget_s = clamp_s(job.deadline_s - now_s)
        estimate_s = clamp_s(action.estimate_s)
        body_bytes = self._entry.body_bytes
        state = node.own_state()
        server = node.peers[self._peer].inbound
        if isinstance(action, Send):
            self._sent = True
            size = messages.job_send(job, state, body_bytes) if connection.is_limited else 0
            connection.ask(size, server.on_job, connection, self, job, budget_s, body_bytes, estimate_s)
        else:
            size = messages.job_offer(job, state, body_bytes) if connection.is_limited else 0
            connection.ask(size, server.on_offer, connection, self, job, budget_s, body_bytes, estimate_s, state)

    def on_unreachable(self) -> None:
        """Tell the core that nothing of the job can be there."""
        self._opening = None
        if self._node.watch is not None:
            self._node.watch.unreachable(self._peer)
        self._end(SendFailed(command=self._command, connected=False))

    def on_broken(self) -> None:
        """Tell the core that the connection died."""
        self._end(SendFailed(command=self._command, connected=True))

    def _end(self, event: Event, attachment: object = None, *, is_complete: bool = False) -> None:
        node, command = self._node, self._command
        if self._limit is not None:
            node.engine.cancel(self._limit)
        node.errands.pop(command, None)
        place = self._peer, self._entry.job.key
        if node.commands.get(place) == command:
            del node.commands[place]
        connection = self._connection
        if connection is not None:
            connection.errand = None
            if is_complete:
                node.endpoint.put_back(connection)
            else:
                connection.close_asker()
        node.post(event, attachment)

    def hear_room(self, state: PeerState) -> None:
        """Send the payload: the offer was accepted."""
        node, connection, job = self._node, self._connection, self._entry.job
        assert connection is not None
        self._sent = True
        size = messages.job_payload(job.key, job.input_bytes) if connection.is_limited else 0
        connection.ask(size, node.peers[self._peer].inbound.on_payload, connection)
        rtt_s = node.engine.now_s - self._began_s
        node.post(OfferAnswered(command=self._command, state=state, rtt_s=rtt_s))

    def hear_accepted(self, key: bytes, covered: tuple[bytes, ...], state: PeerState) -> None:
        """Pass on that the job is there."""
        commands = self._node.covered(self._peer, covered)
        self._node.post(Accepted(command=self._command, state=state, covered=commands))

    def hear_progress(self, key: bytes, state: PeerState) -> None:
        """Pass on that it is in hand."""
        self._node.post(Progressed(command=self._command, state=state))

    def hear_refused(self, key: bytes, reason: Reason, estimate_s: float | None, state: PeerState) -> None:
        """Pass on that it comes back, or that the offer was refused."""
        event = Nacked(command=self._command, reason=reason, state=state, estimate_s=estimate_s)
        self._end(event, is_complete=True)

    def hear_result(self, key: bytes, answer: Answer, state: PeerState) -> None:
        """Pass the result on."""
        event = reply_event(
            self._command,
            answer,
            state,
            way=Way(self._began_s, self._began_s - self._asked_s, self._entry.job.input_bytes),
            now_s=self._node.engine.now_s,
        )
        self._end(event, answer, is_complete=True)

    def hear_failed(self, key: bytes, failure: Failure, state: PeerState) -> None:
        """Pass the failure on."""
        self._end(failure_event(self._command, failure, state), failure, is_complete=True)

    def cancel(self) -> None:
        """Stop it: unsaid before the payload has left, with a word to the peer afterwards."""
        node, connection = self._node, self._connection
        if not self._sent or connection is None:
            if self._opening is not None:
                self._opening.cancel()
            self._end(SendFailed(command=self._command, connected=connection is not None))
        elif not self._is_cancelled:
            self._is_cancelled = True
            self._limit = node.engine.at(node.engine.now_s + HANDOVER_TIMEOUT_S, self._cut)
            key = self._entry.job.key
            connection.ask(messages.job_cancel(key), node.peers[self._peer].inbound.on_cancel, connection, key)

    def _cut(self) -> None:
        self._limit = None
        self._end(SendFailed(command=self._command, connected=True))


class StealErrand:
    """A question for work, and the service of what was granted."""

    __slots__ = ("_action", "_answered", "_connection", "_conversation", "_left", "_limit", "_node")

    def __init__(self, node: "SimNode", action: Steal) -> None:
        self._node = node
        self._action = action
        self._connection: Connection | None = None
        self._conversation: Conversation | None = None
        self._answered = False
        self._left = 0
        self._limit: int | None = None
        node.lease(action.victim, self)

    def on_connected(self, connection: Connection) -> None:
        """Ask."""
        action = self._action
        self._connection = connection
        connection.errand = self
        size = messages.steal_request(action.models, action.room, action.state) if connection.is_limited else 0
        connection.ask(size, self._node.peers[action.victim].inbound.on_steal, connection, self, action)

    def on_unreachable(self) -> None:
        """Tell the core that there is no victim."""
        self._node.post(SendFailed(command=self._action.command, connected=False))

    def on_broken(self) -> None:
        """Cancel what was granted, or tell the core that there is no answer."""
        self._set_limit(None)
        assert self._connection is not None
        self._connection.close_asker()
        if self._conversation is not None:
            self._conversation.on_broken()
        if not self._answered:
            self._node.post(SendFailed(command=self._action.command, connected=True))

    def _set_limit(self, wait_s: float | None) -> None:
        """Bound the present wait: the connection is cut after it."""
        engine = self._node.engine
        if self._limit is not None:
            engine.cancel(self._limit)
        self._limit = None if wait_s is None else engine.at(engine.now_s + wait_s, self._cut)

    def _cut(self) -> None:
        self._limit = None
        self.on_broken()

    def hear_answer(self, granted: int, state: PeerState, grant: "Grant | None") -> None:
        """Take note of how many jobs come."""
        connection = self._connection
        assert connection is not None
        self._answered = True
        if grant is None:
            self._node.endpoint.put_back(connection)
        else:
            self._left = granted
            self._conversation = Conversation(self._node, self._action.victim, connection.ask, grant, is_live=False)
            self._set_limit(HANDOVER_TIMEOUT_S)
        self._node.post(StealAnswered(command=self._action.command, granted=granted, state=state))

    def hear_job(self, job: Job, budget_s: float, body_bytes: int) -> None:
        """Take in a granted job; answer once all are here."""
        conversation = self._conversation
        assert conversation is not None
        self._left -= 1
        if not self._left:
            self._set_limit(None)
            conversation.begin()
        conversation.admit(job, budget_s, body_bytes, stolen=True)

    def hear_cancel(self, key: bytes) -> None:
        """Stop one granted job."""
        if self._conversation is not None:
            self._conversation.cancel(key)

    def hear_end(self) -> None:
        """Put the connection back: the victim has all outcomes."""
        assert self._connection is not None
        self._node.endpoint.put_back(self._connection)


class TableErrand:
    """A pull of a peer's capability table; without an answer the core asks again."""

    __slots__ = ("_connection", "_limit", "_node", "_opening", "_peer")

    def __init__(self, node: "SimNode", peer: str) -> None:
        self._node = node
        self._peer = peer
        self._connection: Connection | None = None
        self._limit = node.engine.at(node.engine.now_s + TABLE_TIMEOUT_S, self._cut)
        self._opening = node.lease(peer, self)

    def on_connected(self, connection: Connection) -> None:
        """Ask."""
        self._opening = None
        self._connection = connection
        connection.errand = self
        server = self._node.peers[self._peer].inbound
        connection.ask(messages.TABLE_REQUEST_BYTES, server.on_table_request, connection, self)

    def on_unreachable(self) -> None:
        """Give up."""
        self._node.engine.cancel(self._limit)

    def on_broken(self) -> None:
        """Give up."""
        self._node.engine.cancel(self._limit)
        if self._connection is not None:
            self._connection.close_asker()

    def _cut(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        elif self._connection is not None:
            self._connection.errand = None
            self._connection.close_asker()

    def hear_table(self, table: CapabilityTable) -> None:
        """Pass the table on."""
        assert self._connection is not None
        self._node.engine.cancel(self._limit)
        self._node.endpoint.put_back(self._connection)
        self._node.post(TableReceived(table=table))


class ProbeErrand:
    """A question how a peer stands; the core hears an answer or a failure."""

    __slots__ = ("_connection", "_limit", "_node", "_opening", "_probe")

    def __init__(self, node: "SimNode", probe: Probe) -> None:
        self._node = node
        self._probe = probe
        self._connection: Connection | None = None
        self._limit = node.engine.at(node.engine.now_s + PROBE_TIMEOUT_S, self._cut)
        self._opening = node.lease(probe.peer, self)

    def on_connected(self, connection: Connection) -> None:
        """Ask."""
        self._opening = None
        self._connection = connection
        connection.errand = self
        size = messages.ping(self._probe.command) if connection.is_limited else 0
        connection.ask(size, self._node.peers[self._probe.peer].inbound.on_ping, connection, self, self._probe.command)

    def on_unreachable(self) -> None:
        """Tell the core."""
        self._node.engine.cancel(self._limit)
        self._node.post(SendFailed(command=self._probe.command, connected=False))

    def on_broken(self) -> None:
        """Tell the core."""
        assert self._connection is not None
        self._connection.close_asker()
        self.on_unreachable()

    def _cut(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        elif self._connection is not None:
            self._connection.errand = None
            self._connection.close_asker()
        self._node.post(SendFailed(command=self._probe.command, connected=False))

    def hear_pong(self, state: PeerState) -> None:
        """Pass the state on."""
        assert self._connection is not None
        self._node.engine.cancel(self._limit)
        self._node.endpoint.put_back(self._connection)
        self._node.post(ProbeAnswered(command=self._probe.command, state=state))
