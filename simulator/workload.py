"""When jobs arrive: each source has a stream of draws of its own, whatever else happens."""

import random
from collections.abc import Iterator
from typing import Protocol

import msgspec


class Arrivals(Protocol):
    """A law of arrivals."""

    def times_s(self, rng: random.Random, start_s: float) -> Iterator[float]:
        """Yield ascending times in seconds, without end, from a start on."""


class Poisson(msgspec.Struct, frozen=True):
    """Independent arrivals at a rate."""

    rate_hz: float

    def times_s(self, rng: random.Random, start_s: float) -> Iterator[float]:
        """Yield ascending times in seconds."""
        at_s = start_s
        while True:
            at_s += rng.expovariate(self.rate_hz)
            yield at_s


class Camera(msgspec.Struct, frozen=True):
    """Frames at a rate, from a random phase on, each a little late."""

    rate_hz: float
    jitter_s: float = 0.0
    """Most that a frame is late, uniformly, in seconds; below the period."""
    is_aligned: bool = False
    """Whether the phase is 0: all cameras at once, the worst case."""

    def times_s(self, rng: random.Random, start_s: float) -> Iterator[float]:
        """Yield ascending times in seconds."""
        period_s = 1.0 / self.rate_hz
        at_s = start_s + (0.0 if self.is_aligned else rng.random() * period_s)
        while True:
            yield at_s + (rng.random() * self.jitter_s if self.jitter_s else 0.0)
            at_s += period_s
