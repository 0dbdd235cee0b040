"""The executor's side of one connection: jobs that came over it, and what their sender is told.

The twin of gridnode.conversation. A connection carries one job, or the jobs of one steal; when it breaks before each
has had its outcome, nobody waits for the answers any more and the jobs are cancelled.
"""

from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from msgspec.structs import replace

from scheduler.events import CancelRequested, JobArrived
from scheduler.types import Job, PeerState, Reason
from simulator import messages
from simulator.answers import Answer, Failure
from simulator.entries import Answerer, Entry, Hearer
from simulator.ways import Call

if TYPE_CHECKING:
    from simulator.node import SimNode

COVERED_MAX = 256
"""Keys listed in one acknowledgement."""


def clamp_s(value: float) -> float:
    """Fit seconds into the wire's range."""
    return min(max(value, 0.0), 1e6)


class JobAnswerer(Answerer):
    """Tells a peer about one job it handed over."""

    __slots__ = ("_attempt", "_key", "_talk")

    def __init__(self, talk: "Conversation", key: bytes, attempt: int) -> None:
        self._talk = talk
        self._key = key
        self._attempt = attempt

    def accepted(self, state: PeerState) -> None:
        """Send an acknowledgement with the sender's open jobs here."""
        talk = self._talk
        covered = talk.covered()
        size = messages.job_accepted(self._key, self._attempt, covered, state) if talk.is_limited else 0
        talk.say(size, talk.hearer.hear_accepted, (self._key, covered, state))

    def progress(self, state: PeerState) -> None:
        """Send a progress report."""
        talk = self._talk
        size = messages.job_progress(self._key, self._attempt, state) if talk.is_limited else 0
        talk.say(size, talk.hearer.hear_progress, (self._key, state))

    def answer(self, answer: Answer, state: PeerState) -> None:
        """Send the result."""
        talk = self._talk
        size = 0
        if talk.is_limited:
            parts = (answer.model, answer.node, answer.hops, talk.result_bytes, answer.output_bytes)
            size = messages.job_result(self._key, self._attempt, state, answer=parts)
        talk.end(self._key, size, talk.hearer.hear_result, (self._key, answer, state))

    def fail(self, failure: Failure, state: PeerState, estimate_s: float | None) -> None:
        """Send the failure; one with an estimate is a refusal, which the sender may use."""
        if estimate_s is not None:
            self.give_back(failure.reason, state, estimate_s)
            return
        talk = self._talk
        size = 0
        if talk.is_limited:
            text = failure.message[:1024]
            size = messages.job_failed(self._key, self._attempt, failure.reason.value, text, state)
        talk.end(self._key, size, talk.hearer.hear_failed, (self._key, failure, state))

    def give_back(self, reason: Reason, state: PeerState, estimate_s: float | None) -> None:
        """Send a refusal."""
        talk = self._talk
        told_s = None if estimate_s is None else clamp_s(estimate_s)
        size = 0
        if talk.is_limited:
            size = messages.job_refused(self._key, self._attempt, reason.value, told_s, state)
        talk.end(self._key, size, talk.hearer.hear_refused, (self._key, reason, told_s, state))


class Conversation:
    """All jobs of one connection.

    Parameters
    ----------
    node : SimNode
        The executor.
    peer : str
        Who handed the jobs over.
    send : callable
        Sends on the connection: size, call at the other side, its arguments.
    hearer : Hearer
        Who hears it there.
    is_live : bool, default True
        Whether anything is sent yet: a thief listens first until it has all it was granted.
    """

    __slots__ = ("_handles", "_is_live", "_node", "_outbox", "_peer", "_send", "hearer", "is_limited")

    def __init__(
        self, node: "SimNode", peer: str, send: Callable[..., None], hearer: Hearer, *, is_live: bool = True
    ) -> None:
        self._node = node
        self._peer = peer
        self._send = send
        self._is_live = is_live
        self._handles: dict[bytes, int] = {}
        self._outbox: list[tuple[int, Call, tuple[object, ...]]] = []
        self.hearer = hearer
        self.is_limited = node.endpoint.to(peer).is_limited
        """Whether sizes matter."""

    @property
    def result_bytes(self) -> int:
        """Length of an encoded result without its payload."""
        return self._node.result_bytes

    def covered(self) -> tuple[bytes, ...]:
        """Return the keys of the peer's jobs that this node's state counts, on whichever connections they came."""
        return tuple(islice(self._node.waited_for[self._peer].values(), COVERED_MAX))

    def admit(
        self,
        job: Job,
        budget_s: float,
        body_bytes: int,
        *,
        stolen: bool = False,
        offer: int | None = None,
        estimate_s: float | None = None,
    ) -> None:
        """Take a job in and tell the core."""
        node = self._node
        if node.lie is not None and node.lie.does == "drop":
            return  # never to be heard of again
        handle = self._handles[job.key] = node.mint()
        node.waited_for.setdefault(self._peer, {})[handle] = job.key
        now_s = node.engine.now_s
        arrived = replace(job, arrival_s=now_s, deadline_s=now_s + budget_s)
        answerer = JobAnswerer(self, job.key, job.attempt)
        node.jobs[handle] = Entry(handle, arrived, body_bytes=body_bytes, answerer=answerer)
        node.post(
            JobArrived(
                handle=handle,
                job=arrived,
                origin=self._peer,
                offer=offer,
                stolen=stolen,
                sender_estimate_s=estimate_s,
            )
        )

    def begin(self) -> None:
        """Send what had to wait, and from now on everything at once."""
        self._is_live = True
        outbox, self._outbox = self._outbox, []
        for size_bytes, call, args in outbox:
            self._send(size_bytes, call, *args)

    def say(self, size_bytes: int, call: Call, args: tuple[object, ...]) -> None:
        """Send a report: its size, a call at the other side, and its arguments."""
        if self._is_live:
            self._send(size_bytes, call, *args)
        else:
            self._outbox.append((size_bytes, call, args))

    def end(self, key: bytes, size_bytes: int, call: Call, args: tuple[object, ...]) -> None:
        """Send a job's outcome."""
        del self._node.waited_for[self._peer][self._handles.pop(key)]
        self.say(size_bytes, call, args)

    def cancel(self, key: bytes) -> None:
        """Tell the core that nobody wants an answer for a key; one that has ended is left."""
        handle = self._handles.get(key)
        if handle is not None:
            self._node.post(CancelRequested(handle=handle))

    def on_broken(self) -> None:
        """Cancel all open jobs: nobody waits for them any more."""
        self._node.post_all([CancelRequested(handle=handle) for handle in self._handles.values()])
