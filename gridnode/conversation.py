"""The executor's side of one connection: jobs that came over it, and what their sender is told.

A connection carries one job, or the jobs of one steal. The conversation ends when each has had its one outcome.
A connection that breaks before means that nobody waits for the answers: the jobs are cancelled.
"""

from collections import deque
from collections.abc import Callable, Sequence

import trio

from gridnode.driver import Driver
from gridnode.jobtable import Answer, Failure, JobEntry, JobTable
from gridnode.lanes import SERVICE_MAX_S
from gridnode.modelmemory import Loan
from gridnode.translate import job_from_wire, state_to_wire
from scheduler.events import CancelRequested, JobArrived
from scheduler.types import PeerState, Reason
from transport.base import Buffer, Exchange
from transport.wire import (
    DataMessage,
    JobAccepted,
    JobCancel,
    JobFailed,
    JobHeader,
    JobProgress,
    JobRefused,
    JobResult,
    PeerUnreachableError,
    RemoteProtocolError,
)

COVERED_MAX = 256
"""Keys listed in one JobAccepted, the oldest; more open jobs of one peer count a moment later."""


class PeerResponder:
    """Tells a peer about one job it handed over."""

    def __init__(self, conversation: "Conversation", header: JobHeader) -> None:
        self._conversation = conversation
        self._key = header.key
        self._attempt = header.attempt

    def accepted(self, state: PeerState) -> None:
        """Send JobAccepted with the sender's open jobs here."""
        covered = self._conversation.covered()
        record = state_to_wire(state)
        self._conversation.say(JobAccepted(key=self._key, attempt=self._attempt, covered=covered, state=record))

    def progress(self, state: PeerState) -> None:
        """Send JobProgress."""
        self._conversation.say(JobProgress(key=self._key, attempt=self._attempt, state=state_to_wire(state)))

    def answer(self, answer: Answer, state: PeerState | None) -> None:
        """Send the result."""
        assert state is not None, "a peer's job is answered with a state record"
        message = JobResult(
            key=self._key,
            attempt=self._attempt,
            model=answer.model,
            node=answer.node,
            hops=answer.hops,
            waiting_s=answer.waiting_s,
            service_s=answer.service_s,
            body=answer.body,
            state=state_to_wire(state),
            takes_lanes=answer.service_s <= SERVICE_MAX_S and self._conversation.takes_lanes(answer.model),
        )
        self._conversation.end(self._key, message, (answer.payload,))

    def fail(self, failure: Failure, state: PeerState, *, estimate_s: float | None) -> None:
        """Send the failure. An estimate means a refusal of the deadline, which the sender may use."""
        if estimate_s is not None:
            self.refuse(failure.reason, state, estimate_s=estimate_s)
            return
        message = JobFailed(
            key=self._key,
            attempt=self._attempt,
            reason=failure.reason,
            message=failure.message[:1024],
            state=state_to_wire(state),
        )
        self._conversation.end(self._key, message)

    def give_back(self, reason: Reason, state: PeerState, *, estimate_s: float | None) -> None:
        """Send JobRefused."""
        self.refuse(reason.value, state, estimate_s=estimate_s)

    def refuse(self, reason: str, state: PeerState, *, estimate_s: float | None) -> None:
        """Send JobRefused with a reason in words."""
        message = JobRefused(
            key=self._key,
            attempt=self._attempt,
            reason=reason,
            estimate_s=None if estimate_s is None else min(max(estimate_s, 0.0), 1e6),
            state=state_to_wire(state),
        )
        self._conversation.end(self._key, message)


class Conversation:
    """All jobs of one connection.

    Parameters
    ----------
    exchange : Exchange
        The connection; the conversation alone sends and receives on it while it runs.
    jobs : JobTable
        The jobs at this node.
    driver : Driver
        Takes the events.
    node : str
        PeerID of this node.
    nursery : trio.Nursery
        Runs the task that sends what the connection does not take at once.
    on_over : callable
        Told each time when every job has had its outcome.
    takes_lanes : callable
        Says whether a run of a model by a lane would be taken now.
    """

    def __init__(
        self,
        exchange: Exchange,
        *,
        jobs: JobTable,
        driver: Driver,
        node: str,
        nursery: trio.Nursery,
        on_over: Callable[[], None] = lambda: None,
        takes_lanes: Callable[[str], bool] = lambda _model: False,
    ) -> None:
        self._nursery = nursery
        self.takes_lanes = takes_lanes
        self._on_over = on_over
        self._exchange = exchange
        self._jobs = jobs
        self._driver = driver
        self._node = node
        self._handles: dict[bytes, int] = {}
        self._loans: dict[bytes, Loan] = {}
        """Where payloads lie that workers read in place."""
        self._outbox: deque[tuple[DataMessage, Sequence[Buffer]]] = deque()
        self._is_begun = False
        """Whether run() has begun: what is said before waits, since the peer may still be sending jobs."""
        self._is_sending = False
        """Whether a task sends what was queued."""

    def covered(self) -> tuple[bytes, ...]:
        """Return the keys of the peer's jobs that this node's state counts, on whichever connections they came."""
        return self._jobs.keys_of(self._exchange.peer, COVERED_MAX)

    def admit(
        self,
        header: JobHeader,
        payload: Buffer,
        *,
        stolen: bool = False,
        offer: int | None = None,
        estimate_s: float | None = None,
    ) -> None:
        """Take a job in and tell the core.

        Raises
        ------
        RemoteProtocolError
            The payload is not as long as the header says, or the key is already open on this connection.
        """
        if len(payload) != header.input_bytes:
            raise RemoteProtocolError(f"job says {header.input_bytes} bytes of input, its payload has {len(payload)}")
        if header.key in self._handles:
            raise RemoteProtocolError("peer sent one key twice on a connection")
        handle = self._handles[header.key] = self._jobs.mint()
        self._jobs.open_for(self._exchange.peer, handle, header.key)
        job = job_from_wire(header, now_s=self._driver.clock())
        room = self._exchange.take_room()
        place = None
        if isinstance(room, Loan):
            self._loans[header.key] = room
            # Another model's worker, a smaller variant's, must not see what else was sent to this one.
            place = room.place if len(header.models) == 1 else None
        self._jobs.add(
            JobEntry(
                handle=handle,
                job=job,
                body=header.body,
                payload=(payload,),
                responder=PeerResponder(self, header),
                place=place,
            )
        )
        self._driver.post(
            JobArrived(
                handle=handle,
                job=job,
                origin=self._exchange.peer,
                offer=offer,
                stolen=stolen,
                sender_estimate_s=estimate_s,
            )
        )

    def say(self, message: DataMessage) -> None:
        """Send a report, or queue it; an older report of the same kind and key that has not left yet is replaced."""
        for index, (waiting, _) in enumerate(self._outbox):
            if type(waiting) is type(message) and getattr(waiting, "key", None) == getattr(message, "key", None):
                self._outbox[index] = (message, ())
                return
        self._push(message, ())

    def end(self, key: bytes, message: DataMessage, payload: Sequence[Buffer] = ()) -> None:
        """Send a job's outcome, or queue it."""
        self._jobs.close_for(self._exchange.peer, self._handles.pop(key))
        loan = self._loans.pop(key, None)
        if loan is not None:
            loan.release()
        self._push(message, payload)
        self._look_round()

    @property
    def is_over(self) -> bool:
        """Whether every job has had its outcome, and all has left."""
        return not (self._handles or self._outbox or self._is_sending)

    def _push(self, message: DataMessage, payload: Sequence[Buffer]) -> None:
        """Send in this very call, if nothing waits and the connection takes it; else have a task do it."""
        if self._is_sending or not self._is_begun:
            self._outbox.append((message, payload))
            return
        try:
            if self._exchange.send_nowait(message, payload):
                return
        except trio.WouldBlock:
            self._outbox.append((message, payload))
        except PeerUnreachableError:
            return  # whoever listens finds the connection closed
        self._is_sending = True
        self._nursery.start_soon(self._send_waiting)

    async def _send_waiting(self) -> None:
        """Send what was queued, and the rest of what had begun to leave."""
        try:
            await self._exchange.flush()
            while self._outbox:
                message, payload = self._outbox.popleft()
                await self._exchange.send(message, payload)
        except PeerUnreachableError:
            self._outbox.clear()  # as above
        finally:
            self._is_sending = False
            self._look_round()

    def _look_round(self) -> None:
        """Give the connection free for the peer's next exchange once this one is over."""
        if self.is_over:
            self._exchange.finish()
            self._on_over()

    def cancel(self, key: bytes) -> None:
        """Tell the core that the peer wants no answer for a key; one that has ended is left."""
        handle = self._handles.get(key)
        if handle is not None:
            self._driver.post(CancelRequested(handle=handle))

    def abandon(self) -> None:
        """Cancel all open jobs: nobody waits for them any more."""
        for handle in tuple(self._handles.values()):  # each outcome takes its handle away
            self._driver.post(CancelRequested(handle=handle))

    async def run(self) -> None:
        """Listen until every job has had its outcome and the peer says something else, which is left for the next.

        A peer that has its answer may send its next job over this connection at once: nothing is awaited in between,
        so an exchange ends when the next one begins, or with the connection.

        Raises
        ------
        TransportError
            The connection broke before, or the peer broke the protocol.
        """
        self._is_begun = True
        if self._outbox:
            self._is_sending = True
            self._nursery.start_soon(self._send_waiting)
        try:
            while True:
                message, payload = await self._exchange.receive()
                if self.is_over:
                    self._exchange.unread(message, payload)
                    return
                if not isinstance(message, JobCancel):
                    raise RemoteProtocolError(f"peer sent {type(message).__name__} while its job is served")
                self.cancel(message.key)
        except PeerUnreachableError:
            if not self.is_over:
                self.abandon()
                raise
        except BaseException:
            self.abandon()
            raise
