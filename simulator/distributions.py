"""Service times: what one execution takes, as a draw.

A distribution is asked with the stream of draws of the node that serves, so that nodes do not shift one another.
"""

import math
import random
from typing import Protocol

import msgspec


class ServiceTime(Protocol):
    """A distribution of service times."""

    def draw_s(self, rng: random.Random) -> float:
        """Draw a service time in seconds."""


class Constant(msgspec.Struct, frozen=True):
    """The same each time: inference alone on a machine is nearly that."""

    mean_s: float

    def draw_s(self, rng: random.Random) -> float:
        """Return the mean."""
        return self.mean_s


class Gamma(msgspec.Struct, frozen=True):
    """Gamma distributed: positive, any variation; what the emulated executor draws."""

    mean_s: float
    cv: float
    """Coefficient of variation, > 0."""

    def draw_s(self, rng: random.Random) -> float:
        """Draw a service time in seconds."""
        shape = 1 / self.cv**2
        return rng.gammavariate(shape, self.mean_s / shape)


class Lognormal(msgspec.Struct, frozen=True):
    """Lognormal: a sharp lower end and a tail."""

    mean_s: float
    cv: float

    def draw_s(self, rng: random.Random) -> float:
        """Draw a service time in seconds."""
        variance = math.log1p(self.cv**2)
        return rng.lognormvariate(math.log(self.mean_s) - variance / 2, math.sqrt(variance))


class Exponential(msgspec.Struct, frozen=True):
    """Exponential: for checks against queueing theory."""

    mean_s: float

    def draw_s(self, rng: random.Random) -> float:
        """Draw a service time in seconds."""
        return rng.expovariate(1.0 / self.mean_s)
