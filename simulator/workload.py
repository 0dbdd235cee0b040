"""When jobs arrive: laws of arrival times, each with a stream of draws of its own whatever else happens.

A law knows neither nodes nor jobs. Times are seconds, ascending. Sources: notes on each law; the index of dispersion
for counts (IDC) is the variance of the number of arrivals in a long time over its mean, 1 for Poisson.
"""

import random
from bisect import bisect
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import inf
from typing import Final, Protocol

import msgspec

_CUT: Final = 3.0
"""A camera's jitter is cut at this many standard deviations: a frame is never a period late."""


class Arrivals(Protocol):
    """A law of arrivals."""

    def times_s(self, rng: random.Random, start_s: float) -> Iterator[float]:
        """Yield ascending times in seconds from a start on, without end where the law has none."""


class Poisson(msgspec.Struct, frozen=True):
    """Independent arrivals at a rate."""

    rate_hz: float

    def times_s(self, rng: random.Random, start_s: float) -> Iterator[float]:
        """Yield ascending times in seconds."""
        at_s, draw, rate_hz = start_s, rng.expovariate, self.rate_hz
        while True:
            at_s += draw(rate_hz)
            yield at_s


class Mmpp(msgspec.Struct, frozen=True, kw_only=True):
    """Markov-modulated Poisson arrivals of two states, each of exponential length; begins in its steady state."""

    burst_hz: float
    """Rate in a burst."""
    calm_hz: float
    """Rate otherwise; may be 0."""
    burst_s: float
    """Mean length of a burst."""
    calm_s: float

    @property
    def mean_hz(self) -> float:
        """Long-run rate."""
        return (self.burst_hz * self.burst_s + self.calm_hz * self.calm_s) / (self.burst_s + self.calm_s)

    @property
    def idc(self) -> float:
        """Index of dispersion for counts over a long time.

        Notes
        -----
        1 + 2 (a - b)^2 r s / ((r + s)^2 (a s + b r)) for rates a, b and rates r, s of leaving their states.
        """
        leave, back = 1.0 / self.burst_s, 1.0 / self.calm_s
        top = 2.0 * (self.burst_hz - self.calm_hz) ** 2 * leave * back
        return 1.0 + top / ((leave + back) ** 2 * (self.burst_hz * back + self.calm_hz * leave))

    def times_s(self, rng: random.Random, start_s: float) -> Iterator[float]:
        """Yield ascending times in seconds."""
        is_burst = rng.random() < self.burst_s / (self.burst_s + self.calm_s)
        at_s = start_s
        while True:
            length_s = rng.expovariate(1.0 / (self.burst_s if is_burst else self.calm_s))
            yield from _poisson_between(rng, self.burst_hz if is_burst else self.calm_hz, at_s, at_s + length_s)
            at_s += length_s
            is_burst = not is_burst


class SquareWave(msgspec.Struct, frozen=True, kw_only=True):
    """Poisson arrivals at two rates in turn, each for a fixed time; begins calm."""

    burst_hz: float
    calm_hz: float
    burst_s: float
    calm_s: float

    def times_s(self, rng: random.Random, start_s: float) -> Iterator[float]:
        """Yield ascending times in seconds."""
        at_s = start_s
        while True:
            yield from _poisson_between(rng, self.calm_hz, at_s, at_s + self.calm_s)
            at_s += self.calm_s
            yield from _poisson_between(rng, self.burst_hz, at_s, at_s + self.burst_s)
            at_s += self.burst_s


def _poisson_between(rng: random.Random, rate_hz: float, at_s: float, end_s: float) -> Iterator[float]:
    """Yield Poisson arrivals of a time span; what lies beyond its end is forgotten, as it may be."""
    while rate_hz > 0.0:
        at_s += rng.expovariate(rate_hz)
        if at_s >= end_s:
            return
        yield at_s


def rates_hz(mean_hz: float, *, burst: float, burst_s: float, calm_s: float) -> tuple[float, float]:
    """Return the rates in bursts and in calms for a mean rate and a factor on it in bursts.

    Examples
    --------
    >>> rates_hz(10.0, burst=3.0, burst_s=2.0, calm_s=8.0)
    (30.0, 5.0)
    """
    cycle_s = burst_s + calm_s
    return mean_hz * burst, max(0.0, mean_hz * (cycle_s - burst * burst_s) / calm_s)


class GammaRenewal(msgspec.Struct, frozen=True):
    """Independent gamma distributed times between arrivals; begins as if it had gone on for ever."""

    rate_hz: float
    cv: float
    """Coefficient of variation of these times, above 0; their IDC is its square."""

    def times_s(self, rng: random.Random, start_s: float) -> Iterator[float]:
        """Yield ascending times in seconds."""
        shape = 1.0 / self.cv**2
        scale_s = 1.0 / (self.rate_hz * shape)
        # The time span around a given instant is drawn in proportion to its length: gamma of one more in shape.
        at_s = start_s + rng.random() * rng.gammavariate(shape + 1.0, scale_s)
        while True:
            yield at_s
            at_s += rng.gammavariate(shape, scale_s)


class Camera(msgspec.Struct, frozen=True):
    """Frames at a rate, from a random phase on, each a little early or late, and only while something moves."""

    rate_hz: float
    jitter_s: float = 0.0
    """Standard deviation of a frame's time, normal, cut at 3 of it."""
    is_aligned: bool = False
    """Whether the phase is 0: all cameras at once, the worst case."""
    on_s: float | None = None
    """Mean time with motion, exponential; None for always."""
    off_s: float = 0.0
    """Mean time without, exponential."""

    def times_s(self, rng: random.Random, start_s: float) -> Iterator[float]:
        """Yield ascending times in seconds."""
        period_s = 1.0 / self.rate_hz
        phase_s = 0.0 if self.is_aligned else rng.random() * period_s
        last_s = start_s
        gate = iter(((start_s, inf),)) if self.on_s is None else _gate(rng, self.on_s, self.off_s, start_s)
        on_s, end_s = next(gate)
        number = 0
        while True:
            frame_s = start_s + phase_s + number * period_s
            number += 1
            while frame_s >= end_s:
                on_s, end_s = next(gate)
            if frame_s < on_s:
                number += int((on_s - frame_s) / period_s)  # nothing before that
                continue
            if self.jitter_s:
                frame_s += self.jitter_s * min(max(rng.gauss(0.0, 1.0), -_CUT), _CUT)
            last_s = max(last_s, frame_s)
            yield last_s


def _gate(rng: random.Random, on_s: float, off_s: float, start_s: float) -> Iterator[tuple[float, float]]:
    """Yield spans of motion; begins in its steady state."""
    at_s = start_s
    if rng.random() >= on_s / (on_s + off_s):
        at_s += rng.expovariate(1.0 / off_s)
    while True:
        end_s = at_s + rng.expovariate(1.0 / on_s)
        yield at_s, end_s
        at_s = end_s + rng.expovariate(1.0 / off_s)


class Replay(msgspec.Struct, frozen=True, kw_only=True):
    """Recorded times, from 0 on."""

    recorded_s: tuple[float, ...]
    speed_up: float = 1.0
    """Divides the times."""
    keep: float = 1.0
    """Share kept, drawn one by one. A thinned renewal process is none: mind the IDC."""

    def times_s(self, rng: random.Random, start_s: float) -> Iterator[float]:
        """Yield ascending times in seconds; ends with the recording."""
        for number in self.kept(rng):
            yield start_s + self.recorded_s[number] / self.speed_up

    def kept(self, rng: random.Random) -> Iterator[int]:
        """Yield the numbers of the arrivals that are kept."""
        for number in range(len(self.recorded_s)):
            if self.keep >= 1.0 or rng.random() < self.keep:
                yield number


# ---------------------------------------------------------------- skew


def zipf(count: int, exponent: float) -> list[float]:
    """Return the shares of Zipf's law over ranks 1 to count; all alike for exponent 0.

    Examples
    --------
    >>> [round(share, 3) for share in zipf(3, 1.0)]
    [0.545, 0.273, 0.182]
    """
    weights = [(rank + 1) ** -exponent for rank in range(count)]
    total = sum(weights)
    return [weight / total for weight in weights]


class Draw:
    """Draws numbers from 0 on with given shares.

    Parameters
    ----------
    shares : sequence of float
        Weights, not all 0.
    """

    __slots__ = ("_sums",)

    def __init__(self, shares: Sequence[float]) -> None:
        self._sums = list(accumulate(shares))

    def __call__(self, rng: random.Random) -> int:
        """Draw one."""
        sums = self._sums
        return 0 if len(sums) == 1 else bisect(sums, rng.random() * sums[-1], 0, len(sums) - 1)


class MovingHotSpot:
    """Draws numbers of which one is hot for a time, then the next.

    Parameters
    ----------
    others : Draw
        Of what does not go to the hot one.
    count : int
        How many there are.
    share : float
        Of all, to the hot one, 0 to 1.
    every_s : float
        How long each is hot, in seconds.
    """

    __slots__ = ("_count", "_every_s", "_others", "_share")

    def __init__(self, others: Draw, *, count: int, share: float, every_s: float) -> None:
        self._others = others
        self._count = count
        self._share = share
        self._every_s = every_s

    def __call__(self, rng: random.Random, at_s: float) -> int:
        """Draw one at a time."""
        other = self._others(rng)  # drawn in any case: draws stay in step whatever the share
        return int(at_s / self._every_s) % self._count if rng.random() < self._share else other
