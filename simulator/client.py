"""A client's side of one frame: it sends a job, and after its answer the next stage's, and takes the one outcome.

Decides nothing but where to send again when its node is gone, as the real client does.
"""

import typing

import msgspec

from scheduler.types import Job, PeerState, Reason
from simulator.answers import Answer, Failure
from simulator.entries import Answerer
from simulator.specs import JobSpec

if typing.TYPE_CHECKING:
    from simulator.world import World


class Client(Answerer):
    """Waits for the one outcome of a frame; see answers.Answerer.

    Parameters
    ----------
    world : World
        Where it lives.
    job : Job
        The first stage.
    body_bytes : int
        Length of its encoded request.
    stages : tuple of JobSpec
        What follows; each is sent when the one before is answered, in what is left of the time of the first.
    """

    __slots__ = (
        "_world",
        "arrival_s",
        "body_bytes",
        "entry",
        "handle",
        "hops",
        "is_open",
        "job",
        "load_s",
        "service_s",
        "stages",
        "waiting_s",
    )

    def __init__(self, world: "World", job: Job, *, body_bytes: int, stages: tuple[JobSpec, ...] = ()) -> None:
        self._world = world
        self.job = job
        self.body_bytes = body_bytes
        self.stages = stages
        self.arrival_s = job.arrival_s
        self.entry = job.entry
        """Where the frame came in first."""
        self.handle = 0
        self.is_open = True
        self.hops = 0
        self.waiting_s = 0.0
        self.service_s = 0.0
        self.load_s = 0.0

    def accepted(self, state: PeerState) -> None:
        """Do nothing: an own client is not told."""

    def progress(self, state: PeerState) -> None:
        """Do nothing: an own client is not told."""

    def answer(self, answer: Answer, state: PeerState) -> None:
        """Take a result: the next stage, or the end."""
        executor, service_s = answer.node, answer.service_s
        self.hops += answer.hops
        self.waiting_s += answer.waiting_s
        self.service_s += service_s
        self.load_s += answer.load_s
        world = self._world
        now_s = world.engine.now_s
        world.metrics.served(executor, service_s, now_s)
        if self.stages:
            self._next_stage()
            return
        self.is_open = False
        world.ended(self)
        world.metrics.answered(self, executor, now_s)

    def _next_stage(self) -> None:
        """Send the next job; its key is the first's with the stage's number in the counter's top byte."""
        spec, *rest = self.stages
        self.stages = tuple(rest)
        before = self.job
        key = before.key[:16] + bytes((before.key[16] + 1,)) + before.key[17:]
        self.body_bytes = spec.body_bytes
        self.job = msgspec.structs.replace(
            before,
            key=key,
            parent=before.key,
            models=spec.models,
            input_bytes=spec.input_bytes,
            output_bytes=spec.output_bytes,
            arrival_s=self._world.engine.now_s,
        )
        self._world.send(self)

    def fail(self, failure: Failure, state: PeerState, estimate_s: float | None) -> None:
        """Take the end."""
        self.end(failure.reason)

    def give_back(self, reason: Reason, state: PeerState, estimate_s: float | None) -> None:
        """Take the end; a core gives nothing back to an own client."""
        self.end(reason)

    def end(self, reason: Reason) -> None:
        """End without a result."""
        self.is_open = False
        self._world.ended(self)
        self._world.metrics.ended(self, reason, self._world.engine.now_s)
