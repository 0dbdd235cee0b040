"""Jobs in the order of their arrival: Poisson requests and cameras with a fixed frame rate.

Each source draws from a stream of its own, given by the caller, so that adding one does not shift the others.
"""

import heapq
import random
from collections.abc import Iterator, Sequence

import msgspec

from scheduler.types import Job, ModelDigest, NodeId

_CLIENT_BYTES = 16
_COUNTER_BYTES = 8


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all jobs of one source have in common."""

    entry: NodeId
    """Node they arrive at."""
    client: str
    """Name of the source, at most 16 bytes; no two sources may share one, since keys are made of it."""
    models: tuple[ModelDigest, ...]
    """Acceptable models, best first."""
    budget_s: float = 5.0
    """Time from arrival to deadline, in seconds."""
    input_bytes: tuple[int, int] = (30_000, 30_000)
    """Least and largest size of a payload; sizes are drawn uniformly."""
    output_bytes: int = 4096
    priority: int = 1
    newest_wins: bool = False
    """Whether a newer frame replaces an older one that waits; cameras only."""

    def __post_init__(self) -> None:
        """Refuse what makes no jobs."""
        if len(self.client.encode()) > _CLIENT_BYTES:
            raise ValueError(f"client {self.client!r} is longer than {_CLIENT_BYTES} bytes; shorten it")
        if not 0 <= self.input_bytes[0] <= self.input_bytes[1]:
            raise ValueError(f"input_bytes is {self.input_bytes}; give the smaller size first")
        if not self.budget_s > 0:
            raise ValueError(f"budget_s is {self.budget_s}; it must be above 0")

    def make(self, number: int, arrival_s: float, rng: random.Random, *, stream: str = "") -> Job:
        """Make one job."""
        return Job(
            key=self.client.encode().ljust(_CLIENT_BYTES, b"\0") + number.to_bytes(_COUNTER_BYTES, "big"),
            entry=self.entry,
            client=self.client,
            priority=self.priority,
            stream=stream,
            frame=number if stream else 0,
            newest_wins=self.newest_wins and bool(stream),
            input_bytes=rng.randint(*self.input_bytes),
            output_bytes=self.output_bytes,
            arrival_s=arrival_s,
            deadline_s=arrival_s + self.budget_s,
            models=self.models,
        )


def poisson(request: Request, *, rate_hz: float, rng: random.Random, start_s: float = 0.0) -> Iterator[Job]:
    """Make requests without memory, for ever.

    Parameters
    ----------
    request : Request
        What they have in common.
    rate_hz : float
        Mean number per second.
    rng : random.Random
        Draws of this source.
    start_s : float
        Time from which on, in seconds.
    """
    if not rate_hz > 0:
        raise ValueError(f"rate_hz is {rate_hz}; it must be above 0")
    now_s, number = start_s, 0
    while True:
        now_s += rng.expovariate(rate_hz)
        yield request.make(number, now_s, rng)
        number += 1


def camera(
    request: Request, *, rate_hz: float, rng: random.Random, start_s: float = 0.0, jitter_s: float = 0.0
) -> Iterator[Job]:
    """Make the frames of a camera, for ever: one stream, periodic, with a phase drawn once.

    Parameters
    ----------
    request : Request
        What they have in common.
    rate_hz : float
        Frames per second.
    rng : random.Random
        Draws of this source.
    start_s : float
        Time from which on, in seconds.
    jitter_s : float
        Most that a frame comes late, uniformly, in seconds; less than a period, so that frames keep their order.
    """
    if not 0 <= jitter_s * rate_hz < 1:
        raise ValueError(f"jitter_s is {jitter_s}; it must be below the period of {1 / rate_hz} s")
    phase_s = start_s + rng.random() / rate_hz
    number = 0
    while True:
        late_s = rng.random() * jitter_s
        yield request.make(number, phase_s + number / rate_hz + late_s, rng, stream=request.client)
        number += 1


def merge(sources: Sequence[Iterator[Job]], *, until_s: float) -> Iterator[Job]:
    """Put the jobs of all sources that arrive before a time in the order of their arrival."""
    for job in heapq.merge(*sources, key=lambda job: job.arrival_s):
        if job.arrival_s >= until_s:
            return
        yield job
