"""Distributions of times: what an execution takes, what a link adds, as draws.

A distribution is asked with the stream of draws of whoever uses it, so that entities do not shift one another. Each
knows its mean and its squared coefficient of variation (variance over squared mean), which the formulas of queueing
theory want. Times are in seconds.
"""

import math
import random
from bisect import bisect_right
from itertools import pairwise
from typing import Final, Protocol

import msgspec

from simulator.draws import lognormal


class ServiceTime(Protocol):
    """A distribution of times."""

    @property
    def mean_s(self) -> float:
        """Mean."""

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation."""

    def draw_s(self, rng: random.Random) -> float:
        """Draw a time in seconds."""


def _check(record: msgspec.Struct, **values: float) -> None:
    for name, value in values.items():
        if not 0.0 < value < math.inf:
            raise ValueError(f"{type(record).__name__}.{name} is {value}; it must be above 0 and finite")


class Constant(msgspec.Struct, frozen=True):
    """The same each time: inference alone on a machine is nearly that."""

    mean_s: float

    @property
    def cv2(self) -> float:
        """Nothing varies."""
        return 0.0

    def draw_s(self, rng: random.Random) -> float:
        """Return the mean."""
        return self.mean_s


class Gamma(msgspec.Struct, frozen=True):
    """Gamma distributed: positive, any variation; what the emulated executor draws."""

    mean_s: float
    cv: float
    """Coefficient of variation, > 0."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check(self, mean_s=self.mean_s, cv=self.cv)

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation."""
        return self.cv**2

    def draw_s(self, rng: random.Random) -> float:
        """Draw a time in seconds."""
        shape = 1 / self.cv**2
        return rng.gammavariate(shape, self.mean_s / shape)


class Lognormal(msgspec.Struct, frozen=True):
    """Lognormal: a sharp lower end and a tail."""

    mean_s: float
    cv: float
    """Coefficient of variation, > 0."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check(self, mean_s=self.mean_s, cv=self.cv)

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation."""
        return self.cv**2

    def draw_s(self, rng: random.Random) -> float:
        """Draw a time in seconds."""
        return lognormal(rng, self.mean_s, self.cv)


_NORMAL_P99: Final = 2.3263478740408408
"""The 0.99 quantile of the standard normal distribution."""


def lognormal_of_quantiles(*, median_s: float, p99_s: float) -> Lognormal:
    """Return the lognormal distribution with a median and a 0.99 quantile, in seconds; the second is the larger.

    Examples
    --------
    >>> tail = lognormal_of_quantiles(median_s=0.005, p99_s=0.5)
    >>> round(tail.mean_s, 4), round(tail.cv, 2)
    (0.0355, 7.02)
    """
    if not 0.0 < median_s < p99_s:
        raise ValueError(f"the median is {median_s} s and the p99 {p99_s} s; they must be above 0 and ascend")
    variance = (math.log(p99_s / median_s) / _NORMAL_P99) ** 2
    return Lognormal(mean_s=median_s * math.exp(variance / 2), cv=math.sqrt(math.expm1(variance)))


class Exponential(msgspec.Struct, frozen=True):
    """Exponential: for checks against queueing theory."""

    mean_s: float

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check(self, mean_s=self.mean_s)

    @property
    def cv2(self) -> float:
        """The standard deviation is the mean."""
        return 1.0

    def draw_s(self, rng: random.Random) -> float:
        """Draw a time in seconds."""
        return rng.expovariate(1.0 / self.mean_s)


class Erlang(msgspec.Struct, frozen=True):
    """Sum of equal exponential stages: between exponential and constant."""

    mean_s: float
    stages: int
    """At least 1."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check(self, mean_s=self.mean_s, stages=self.stages)

    @property
    def cv2(self) -> float:
        """One over the stages."""
        return 1.0 / self.stages

    def draw_s(self, rng: random.Random) -> float:
        """Draw a time in seconds."""
        return rng.gammavariate(float(self.stages), self.mean_s / self.stages)


class Hyperexponential(msgspec.Struct, frozen=True):
    """One of two exponentials, balanced means: varies more than exponential.

    Notes
    -----
    Balanced means: both branches carry half of the mean (Allen, Probability, Statistics and Queueing Theory, 1990).
    """

    mean_s: float
    cv: float
    """Coefficient of variation, > 1."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        _check(self, mean_s=self.mean_s)
        if not 1.0 < self.cv < math.inf:
            raise ValueError(f"Hyperexponential.cv is {self.cv}; it must be above 1: take Exponential or Gamma below")

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation."""
        return self.cv**2

    def draw_s(self, rng: random.Random) -> float:
        """Draw a time in seconds."""
        cv2 = self.cv**2
        share = (1.0 + math.sqrt((cv2 - 1.0) / (cv2 + 1.0))) / 2.0
        if rng.random() >= share:
            share = 1.0 - share
        return rng.expovariate(2.0 * share / self.mean_s)


class Uniform(msgspec.Struct, frozen=True):
    """Any time between two alike."""

    low_s: float
    high_s: float

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if not 0.0 <= self.low_s < self.high_s < math.inf:
            raise ValueError(
                f"a uniform time from {self.low_s} to {self.high_s} s; the bounds must be 0 or more, ascend"
            )

    @property
    def mean_s(self) -> float:
        """Half-way."""
        return (self.low_s + self.high_s) / 2.0

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation."""
        return ((self.high_s - self.low_s) / self.mean_s) ** 2 / 12.0

    def draw_s(self, rng: random.Random) -> float:
        """Draw a time in seconds."""
        return self.low_s + rng.random() * (self.high_s - self.low_s)


class Empirical(msgspec.Struct, frozen=True):
    """One of the values that were measured, each as often as it is listed."""

    values_s: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        if not self.values_s or not min(self.values_s) >= 0.0 or not math.fsum(self.values_s) < math.inf:
            raise ValueError(f"{len(self.values_s)} empirical values; at least one is needed, all 0 or more and finite")

    @property
    def mean_s(self) -> float:
        """Mean of the values."""
        return math.fsum(self.values_s) / len(self.values_s)

    @property
    def cv2(self) -> float:
        """Of the values as the whole population."""
        mean_s = self.mean_s
        if not mean_s:
            return 0.0
        return math.fsum([(value - mean_s) ** 2 for value in self.values_s]) / len(self.values_s) / mean_s**2

    def scaled(self, mean_s: float) -> "Empirical":
        """Return the same shape around another mean, in seconds."""
        factor = mean_s / self.mean_s
        return Empirical(tuple([value * factor for value in self.values_s]))

    def draw_s(self, rng: random.Random) -> float:
        """Draw a time in seconds."""
        return self.values_s[int(rng.random() * len(self.values_s))]


class Quantiles(msgspec.Struct, frozen=True):
    """Straight lines between known quantiles: what a report with p50, p95 and p99 tells.

    Examples
    --------
    >>> Quantiles(((0.0, 0.1), (1.0, 0.3))).mean_s
    0.2
    """

    points: tuple[tuple[float, float], ...]
    """(share from 0 to 1, seconds), both ascending; the first share is 0, the last 1."""

    def __post_init__(self) -> None:
        """Refuse values without a meaning."""
        points = self.points
        is_whole = len(points) > 1 and points[0][0] == 0.0 and points[-1][0] == 1.0
        if not is_whole or points[0][1] < 0.0 or any(a[0] >= b[0] or a[1] > b[1] for a, b in pairwise(points)):
            raise ValueError(f"quantiles {points}; shares must ascend from 0 to 1, their seconds too, from 0 or more")

    @property
    def mean_s(self) -> float:
        """Mean of the pieces."""
        return math.fsum([(b[0] - a[0]) * (a[1] + b[1]) / 2.0 for a, b in pairwise(self.points)])

    @property
    def cv2(self) -> float:
        """Squared coefficient of variation."""
        mean_s = self.mean_s
        if not mean_s:
            return 0.0
        pieces = [(b[0] - a[0]) * (a[1] ** 2 + a[1] * b[1] + b[1] ** 2) / 3.0 for a, b in pairwise(self.points)]
        return math.fsum(pieces) / mean_s**2 - 1.0

    def draw_s(self, rng: random.Random) -> float:
        """Draw a time in seconds."""
        share, points = rng.random(), self.points
        place = min(bisect_right(points, (share, math.inf)), len(points) - 1)
        (low, low_s), (high, high_s) = points[place - 1], points[place]
        return low_s + (share - low) / (high - low) * (high_s - low_s)
