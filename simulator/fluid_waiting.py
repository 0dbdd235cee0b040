"""The fluid limit of stale news: infinitely many queues whose lengths are told every T service times.

During one phase of length T every queue that the board showed at one length gets arrivals at one constant rate, so it
is an M/M/1 queue in transit, and the phases are iterated until they repeat (Mitzenmacher, "How Useful Is Old
Information?", TPDS 11(1), 2000, section 3). A transit is not integrated in time steps but summed exactly: with
uniformisation the distribution after T, and its mean over T, are Poisson-weighted powers of one step.
"""

import math
from collections.abc import Callable
from typing import Final

Shares = list[float]
"""Share of the queues by length."""

_CUT: Final = 1e-12
"""Poisson weight, and share of queues, that is left out."""


def board_sojourn(*, load: float, period: float, choices: int, longest: int = 60, digits: float = 1e-6) -> float:
    """Return the mean sojourn time, in service times.

    Parameters
    ----------
    load : float
        Arrivals per queue and service time, below 1.
    period : float
        Time between two boards, in service times, > 0.
    choices : int
        Queues drawn per job, of which the one shown shortest is taken; 0 for the least of all.
    longest : int, default 60
        Length at which queues are cut off; what exceeds it would come again as a lower result.
    digits : float, default 1e-6
        Change from phase to phase, relative, at which the iteration ends.

    Returns
    -------
    float
        Mean number of jobs in a queue over a phase, by Little's law.

    Examples
    --------
    >>> round(board_sojourn(load=0.5, period=1.0, choices=2, longest=20), 3)
    1.435
    """
    rates = _least_rates if choices == 0 else _drawn_rates(choices)
    shares = [(1.0 - load) * load**length for length in range(longest + 1)]
    before = 0.0
    while True:
        shares, mean_jobs = _phase(shares, rates(shares, load), period)
        if abs(mean_jobs - before) < digits * mean_jobs:
            return mean_jobs / load
        before = mean_jobs


def _drawn_rates(choices: int) -> Callable[[Shares, float], list[float]]:
    """Return what gives the arrivals per queue of each shown length, for the shortest of d draws."""

    def rates(shares: Shares, load: float) -> list[float]:
        found, longer = [0.0] * len(shares), 0.0
        for length in reversed(range(len(shares))):
            at_least = longer + shares[length]
            if shares[length] > _CUT:
                found[length] = load * (at_least**choices - longer**choices) / shares[length]
            longer = at_least
        return found

    return rates


def _least_rates(shares: Shares, load: float) -> list[float]:
    """Give all arrivals to the queues shown shortest."""
    least = next(length for length, share in enumerate(shares) if share > _CUT)
    return [load / share if length == least else 0.0 for length, share in enumerate(shares)]


def _phase(shares: Shares, rates: list[float], period: float) -> tuple[Shares, float]:
    """Let one phase pass: shares at its end, and the mean number of jobs per queue over it."""
    end = [0.0] * len(shares)
    mean_jobs = 0.0
    for length, share in enumerate(shares):
        if share > _CUT:
            later, jobs = _transit(length, rates[length], period, len(shares))
            mean_jobs += share * jobs
            for each, probability in enumerate(later):
                end[each] += share * probability
    total = math.fsum(end)
    return [share / total for share in end], mean_jobs


def _transit(start: int, rate: float, period: float, states: int) -> tuple[Shares, float]:
    """Follow M/M/1 from a length for a time: distribution at the end, and mean length over the time."""
    step = rate + 1.0
    up, down = rate / step, 1.0 / step
    expected = step * period
    now = [0.0] * states
    now[start] = 1.0
    end = [0.0] * states
    jobs = float(start)
    mean_jobs = gone = 0.0
    low = high = start
    for count in range(int(expected + 12.0 * math.sqrt(expected) + 30.0)):
        weight = math.exp(count * math.log(expected) - expected - math.lgamma(count + 1.0))
        gone += weight
        # The chance of more than `count` steps, over their rate, is the time spent after exactly so many.
        mean_jobs += max(0.0, 1.0 - gone) / expected * jobs
        if weight > _CUT * 1e-3:
            for each in range(low, high + 1):
                end[each] += weight * now[each]
        elif gone > 0.5:
            break
        low, high = max(0, low - 1), min(states - 1, high + 1)
        after = [0.0] * states
        for each in range(low, high + 1):
            inflow = up * now[each - 1] if each else down * now[0]
            if each + 1 < states:
                inflow += down * now[each + 1]
            else:
                inflow += up * now[each]
            after[each] = inflow
        now = after
        jobs = math.fsum([each * now[each] for each in range(low, high + 1)])
    return end, mean_jobs
