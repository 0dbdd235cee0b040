"""What executors say of jobs that were handed to them: words into events for the core.

Owns in which order a result reaches its program and the core, and what it tells of the link. Knows nothing of how the
words came: gridnode.outbound and gridnode.leases listen.
"""

from collections.abc import Callable, Iterable
from typing import Final

import trio

from gridnode.driver import Driver
from gridnode.errands import Way
from gridnode.jobtable import Answer, Failure, JobEntry
from gridnode.translate import reason_from_wire, state_from_wire
from scheduler.events import Accepted, Nacked, Progressed, ReplyReceived
from scheduler.types import LinkSample, Reason, ServiceTimes
from transport.wire import (
    DataMessage,
    JobAccepted,
    JobFailed,
    JobProgress,
    JobRefused,
    JobResult,
    RemoteProtocolError,
)

SMALL_BYTES: Final = 32 * 1024
"""Up to this size a payload's transfer is a round trip; above it, it tells the link's goodput."""

_ABOUT_JOBS: Final = (JobAccepted, JobProgress, JobRefused, JobResult, JobFailed)
"""What an executor says; each names the job."""


class ExecutorAnswers:
    """Posts what executors say.

    Parameters
    ----------
    driver : Driver
        Takes the events.
    covered : callable
        Returns our commands behind keys that a peer says its state counts.
    on_answer : callable
        Told the PeerID of each peer that says something about a job: it lives.
    is_awaited : callable
        Says whether the core still waits for the answer to a command: it will then pass on the first result.
    before_answer : callable
        Told of each job whose program is about to be answered, of the answer, and whether its executor takes lanes.
    """

    def __init__(
        self,
        *,
        driver: Driver,
        covered: Callable[[str, Iterable[bytes]], tuple[int, ...]],
        on_answer: Callable[[str], None],
        is_awaited: Callable[[int], bool],
        before_answer: Callable[[JobEntry, Answer, bool], None],
    ) -> None:
        self._driver = driver
        self._covered = covered
        self._on_answer = on_answer
        self._is_awaited = is_awaited
        self._before_answer = before_answer

    def take(
        self,
        peer: str,
        command: int,
        entry: JobEntry,
        message: DataMessage,
        payload: memoryview,
        *,
        way: Way | None,
    ) -> bool:
        """Post the event for one message about a job; True when it was the outcome.

        Raises
        ------
        RemoteProtocolError
            The message is not about this job, or nothing an executor says.
        """
        if isinstance(message, _ABOUT_JOBS) and message.key != entry.job.key:
            raise RemoteProtocolError("peer answered for a job we did not send on this connection")
        self._on_answer(peer)
        post = self._driver.post
        match message:
            case JobResult():
                self._take_result(peer, command, entry, message, payload, way)
            case JobAccepted():
                covered = self._covered(peer, message.covered)
                post(Accepted(command=command, state=state_from_wire(message.state), covered=covered))
                return False
            case JobProgress():
                post(Progressed(command=command, state=state_from_wire(message.state)))
                return False
            case JobRefused():
                self.post_refused(command, message)
            case JobFailed():
                reason = Reason.MODEL_FAILED if message.reason == "bad_input" else reason_from_wire(message.reason)
                post(
                    ReplyReceived(
                        command=command,
                        model=None,
                        failure=reason,
                        state=state_from_wire(message.state),
                        times=None,
                    ),
                    Failure(reason=message.reason, message=message.message),
                )
            case _:
                raise RemoteProtocolError(f"peer answered a job with {type(message).__name__}")
        return True

    def _take_result(
        self, peer: str, command: int, entry: JobEntry, message: JobResult, payload: memoryview, way: Way | None
    ) -> None:
        """Answer a program that waits, then post the result."""
        answer = Answer(
            model=message.model,
            node=message.node,
            hops=message.hops,
            waiting_s=message.waiting_s,
            service_s=message.service_s,
            body=message.body,
            payload=payload,
        )
        link = _link_sample(message, way)
        if entry.is_hasty and not entry.is_answered and self._is_awaited(command):
            # As with a run of our own: the core passes on the first result of a command that it waits for.
            entry.is_answered = True
            # A peer speaks for itself: whether another takes lanes, only that one's results can say.
            self._before_answer(entry, answer, message.takes_lanes and message.node == peer)
            entry.responder.answer(answer, None)
        event = ReplyReceived(
            command=command,
            model=message.model,
            failure=None,
            state=state_from_wire(message.state),
            times=ServiceTimes(waiting_s=message.waiting_s, service_s=message.service_s),
            link=link,
        )
        self._driver.post(event, answer)

    def post_refused(self, command: int, message: JobRefused) -> None:
        """Post that a peer does not take a job."""
        self._driver.post(
            Nacked(
                command=command,
                reason=reason_from_wire(message.reason),
                state=state_from_wire(message.state),
                estimate_s=message.estimate_s,
            )
        )


def _link_sample(message: JobResult, way: Way | None) -> LinkSample | None:
    """Measure the link from what the whole took and what the executor says it spent.

    An answer that came over further hops tells nothing of the first link but how long its connection took to make.
    """
    if way is None:
        return None
    if message.node != message.state.node:
        return LinkSample(rtt_s=None, sent_bytes=0, sent_s=0.0, setup_s=way.setup_s)
    taken_s = max(0.0, trio.current_time() - way.began_s - message.waiting_s - message.service_s)
    if way.input_bytes <= SMALL_BYTES:
        return LinkSample(rtt_s=taken_s, sent_bytes=way.input_bytes, sent_s=0.0, setup_s=way.setup_s)
    return LinkSample(rtt_s=None, sent_bytes=way.input_bytes, sent_s=taken_s, setup_s=way.setup_s)
