"""What is kept of a job at a node, who waits for its outcome, and who hears of it from afar.

With `simulator.answers` the simulator's gridnode.jobtable, without the bytes.
"""

from typing import Protocol

from scheduler.types import Job, PeerState, Reason
from simulator.answers import Answer, Failure


class Answerer(Protocol):
    """Takes what a job's origin is to hear; exactly one of the last three calls ends the job."""

    __slots__ = ()

    def accepted(self, state: PeerState) -> None:
        """Say that the job is here and not done yet."""

    def progress(self, state: PeerState) -> None:
        """Say that the job is still in hand."""

    def answer(self, answer: Answer, state: PeerState) -> None:
        """Give the result."""

    def fail(self, failure: Failure, state: PeerState, estimate_s: float | None) -> None:
        """Say that the job ended without a result."""

    def give_back(self, reason: Reason, state: PeerState, estimate_s: float | None) -> None:
        """Give the job back unharmed."""


class Entry:
    """One job at a node.

    Parameters
    ----------
    handle : int
        Its name there.
    job : Job
        As the node got it.
    body_bytes : int
        Length of the encoded request that goes with its header.
    answerer : Answerer
        Who waits for it.
    """

    __slots__ = ("answerer", "body_bytes", "handle", "job", "started_s")

    def __init__(self, handle: int, job: Job, *, body_bytes: int, answerer: Answerer) -> None:
        self.handle = handle
        self.job = job
        self.body_bytes = body_bytes
        self.answerer = answerer
        self.started_s = 0.0
        """When its execution here began."""


class Hearer(Protocol):
    """Hears what an executor says of jobs that it got from here."""

    def hear_accepted(self, key: bytes, covered: tuple[bytes, ...], state: PeerState) -> None:
        """Hear that a job is there, with the keys that the state counts."""

    def hear_progress(self, key: bytes, state: PeerState) -> None:
        """Hear that a job is in hand."""

    def hear_refused(self, key: bytes, reason: Reason, estimate_s: float | None, state: PeerState) -> None:
        """Hear that a job comes back unharmed."""

    def hear_result(self, key: bytes, answer: Answer, state: PeerState) -> None:
        """Hear the result."""

    def hear_failed(self, key: bytes, failure: Failure, state: PeerState) -> None:
        """Hear that a job ended."""
