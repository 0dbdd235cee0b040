"""The executor's side of one connection: jobs that came over it, and what their sender is told.

The daemon's gridnode.conversation is the model.
"""

from collections import deque

from scheduler.events import CancelRequested, JobArrived
from scheduler.types import PeerState, Reason
from simulator.engine import Call
from simulator.pool import End
from simulator.records import Answer, Entry, Failure, Site
from simulator.wording import estimate_to_wire, job_from_wire, state_to_wire
from transport.wire import DataMessage, JobAccepted, JobFailed, JobHeader, JobProgress, JobRefused, JobResult

_COVERED_MAX = 256
"""Keys listed in one JobAccepted."""
_MESSAGE_MAX = 1024
"""Characters of a failure's text on the wire."""


class PeerResponder:
    """Tells a peer about one job it handed over."""

    def __init__(self, conversation: "Conversation", header: JobHeader) -> None:
        self._conversation = conversation
        self._key = header.key
        self._attempt = header.attempt

    def accepted(self, state: PeerState) -> None:
        """Say which of the sender's jobs are here."""
        covered = self._conversation.open_keys()[:_COVERED_MAX]
        self._conversation.say(
            JobAccepted(key=self._key, attempt=self._attempt, covered=covered, state=state_to_wire(state))
        )

    def progress(self, state: PeerState) -> None:
        """Say that the job is still in hand."""
        self._conversation.say(JobProgress(key=self._key, attempt=self._attempt, state=state_to_wire(state)))

    def answer(self, answer: Answer, state: PeerState) -> None:
        """Send the result."""
        message = JobResult(
            key=self._key,
            attempt=self._attempt,
            model=answer.model,
            node=answer.node,
            hops=answer.hops,
            waiting_s=answer.waiting_s,
            service_s=answer.service_s,
            body=self._conversation.site.result_body,
            state=state_to_wire(state),
        )
        self._conversation.end(self._key, message)

    def fail(self, failure: Failure, state: PeerState, *, estimate_s: float | None) -> None:
        """Send the failure; with an estimate it is a refusal."""
        if estimate_s is not None:
            self._refuse(failure.reason, state, estimate_s)
            return
        message = JobFailed(
            key=self._key,
            attempt=self._attempt,
            reason=failure.reason,
            message=failure.message[:_MESSAGE_MAX],
            state=state_to_wire(state),
        )
        self._conversation.end(self._key, message)

    def give_back(self, reason: Reason, state: PeerState, *, estimate_s: float | None) -> None:
        """Send the refusal."""
        self._refuse(reason.value, state, estimate_s)

    def _refuse(self, reason: str, state: PeerState, estimate_s: float | None) -> None:
        message = JobRefused(
            key=self._key,
            attempt=self._attempt,
            reason=reason,
            estimate_s=estimate_to_wire(estimate_s),
            state=state_to_wire(state),
        )
        self._conversation.end(self._key, message)


class Conversation:
    """All jobs of one connection.

    Parameters
    ----------
    site : Site
        This node.
    end : End
        The connection.
    on_over : callable
        Called when each job has had its outcome and all of them have left.
    """

    def __init__(self, site: Site, end: End, *, on_over: Call) -> None:
        self.site = site
        self._end = end
        self._on_over = on_over
        self._handles: dict[bytes, int] = {}
        self._outbox: deque[DataMessage] = deque()
        self._is_running = False
        self._is_called = False
        self._unsent = 0

    def open_keys(self) -> tuple[bytes, ...]:
        """Return the keys of the peer's jobs on this connection that wait for their outcome."""
        return tuple(self._handles)

    def admit(
        self, header: JobHeader, *, stolen: bool = False, offer: int | None = None, estimate_s: float | None = None
    ) -> None:
        """Take a job in and tell the core."""
        site = self.site
        handle = self._handles[header.key] = site.mint()
        job = job_from_wire(header, now_s=site.engine.now_s)
        site.entries[handle] = Entry(handle, job, PeerResponder(self, header))
        site.post(
            JobArrived(
                handle=handle,
                job=job,
                origin=self._end.peer,
                offer=offer,
                stolen=stolen,
                sender_estimate_s=estimate_s,
            )
        )

    def run(self) -> None:
        """Begin to talk: all jobs are here."""
        self._is_running = True
        self._call()

    def say(self, message: JobAccepted | JobProgress) -> None:
        """Queue a report; an older one of the same kind and key that has not left yet is replaced."""
        for index, waiting in enumerate(self._outbox):
            if type(waiting) is type(message) and getattr(waiting, "key", None) == message.key:
                self._outbox[index] = message
                return
        self._outbox.append(message)
        self._call()

    def end(self, key: bytes, message: DataMessage) -> None:
        """Queue a job's outcome."""
        self._handles.pop(key, None)
        self._outbox.append(message)
        self._call()

    def cancel(self, key: bytes) -> None:
        """Tell the core that the peer wants no answer for a key; one that has ended is left."""
        handle = self._handles.get(key)
        if handle is not None:
            self.site.post(CancelRequested(handle=handle))

    def abandon(self) -> None:
        """Cancel all open jobs: nobody waits for them any more."""
        self._is_running = False
        for handle in tuple(self._handles.values()):
            self.site.post(CancelRequested(handle=handle))

    def _call(self) -> None:
        if self._is_running and not self._is_called:
            self._is_called = True
            self.site.engine.soon(self._talk)

    def _talk(self) -> None:
        self._is_called = False
        while self._is_running and self._outbox:
            self._unsent += 1
            self._end.send(self._outbox.popleft(), on_sent=self._note_sent)

    def _note_sent(self) -> None:
        self._unsent -= 1
        if self._is_running and not self._handles and not self._outbox and not self._unsent:
            self._is_running = False
            self._on_over()
