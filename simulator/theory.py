"""What queueing theory says in closed form: the values that simulated queues and fleets have to come out at.

Owns formulas with their sources; simulates nothing. `load` is the utilisation of a server, above 0 and below 1;
`servers` counts them; cv2 is the squared coefficient of variation of the service time. Rates are per second. The
fluid limit of stale news, which has no closed form, is in `fluid_waiting`; bounds of whole fleets are in `bounds`.
"""

import math
from collections.abc import Sequence

# ---------------------------------------------------------------- one queue


def mm1_sojourn_s(*, load: float, service_s: float = 1.0) -> float:
    """Return the mean sojourn time of M/M/1 in seconds: S / (1 - load).

    Examples
    --------
    >>> mm1_sojourn_s(load=0.5)
    2.0
    """
    return service_s / (1.0 - load)


def mm1_sojourn_quantile_s(share: float, *, load: float, service_s: float = 1.0) -> float:
    """Return a quantile of the sojourn time of M/M/1, which is exponential (Kleinrock, volume 1, section 5.12).

    Examples
    --------
    >>> round(mm1_sojourn_quantile_s(0.99, load=0.9), 3)
    46.052
    """
    return -math.log1p(-share) * mm1_sojourn_s(load=load, service_s=service_s)


def erlang_c(*, servers: int, load: float) -> float:
    """Return the probability that a job of M/M/c has to wait.

    Notes
    -----
    Erlang (1917), from the recursion of the blocking formula, B(c) = aB(c-1) / (c + aB(c-1)), which neither overflows
    nor cancels.

    Examples
    --------
    >>> round(erlang_c(servers=2, load=0.5), 6)
    0.333333
    """
    offered = load * servers
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = offered * blocked / (count + offered * blocked)
    return blocked / (1.0 - load * (1.0 - blocked))


def mmc_waiting_s(*, servers: int, load: float, service_s: float = 1.0) -> float:
    """Return the mean waiting time of M/M/c in seconds.

    Examples
    --------
    >>> round(mmc_waiting_s(servers=8, load=0.8), 6)
    0.286028
    """
    return erlang_c(servers=servers, load=load) * service_s / (servers * (1.0 - load))


def mg1_waiting_s(*, load: float, cv2: float, service_s: float = 1.0) -> float:
    """Return the mean waiting time of M/G/1 in seconds (Pollaczek 1930, Khinchine 1932).

    Examples
    --------
    >>> mg1_waiting_s(load=0.5, cv2=0.0)
    0.5
    """
    return load * (1.0 + cv2) * service_s / (2.0 * (1.0 - load))


def aligned_waiting_s(*, cameras: int, service_s: float) -> float:
    """Return the mean waiting time where frames of all cameras come at one instant: (n - 1) S / 2.

    Notes
    -----
    Periodic arrivals, constant service, n S within the period: the i-th of the batch waits (i - 1) S.

    Examples
    --------
    >>> aligned_waiting_s(cameras=5, service_s=0.01)
    0.02
    """
    return (cameras - 1) * service_s / 2.0


def processor_sharing_sojourn_s(*, load: float, service_s: float = 1.0) -> float:
    """Return the mean sojourn time of M/G/1-PS in seconds, whatever the distribution (Kleinrock, volume 2, 4.4)."""
    return service_s / (1.0 - load)


# ---------------------------------------------------------------- many queues, fresh news


def supermarket_tail(length: int, *, load: float, choices: int) -> float:
    """Return the share of queues with at least so many jobs, when each job joins the shortest of d drawn ones.

    Notes
    -----
    Fixed point of the limit of infinitely many exponential servers, load^((d^k - 1) / (d - 1)) (Vvedenskaya, Dobrushin
    and Karpelevich 1996; Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", TPDS 12(10), 2001).

    Examples
    --------
    >>> round(supermarket_tail(3, load=0.9, choices=2), 6)
    0.478297
    """
    exponent = length if choices == 1 else (choices**length - 1) / (choices - 1)
    return float(load**exponent)


def supermarket_sojourn_s(*, load: float, choices: int, service_s: float = 1.0) -> float:
    """Return the mean sojourn time in that limit, in seconds.

    Examples
    --------
    >>> round(supermarket_sojourn_s(load=0.9, choices=2), 6)
    2.614057
    """
    total, length = 0.0, 1
    while True:
        # Little: the mean length of all queues over the arrivals per queue.
        share = supermarket_tail(length, load=load, choices=choices) / load
        total += share
        if share < 1e-16 * total:
            return total * service_s
        length += 1


# ---------------------------------------------------------------- unequal servers: where rules become unstable


def random_limit(rates_hz: Sequence[float]) -> float:
    """Return the share of the fleet's capacity up to which uniform random placement is stable.

    Each node gets the same share, so the slowest one overflows first: n min(mu) / sum(mu).

    Examples
    --------
    >>> round(random_limit([1 / 0.263] * 16 + [1 / 0.0113] * 4), 3)
    0.183
    """
    return len(rates_hz) * min(rates_hz) / math.fsum(rates_hz)


def shortest_of_limit(rates_hz: Sequence[float], *, choices: int) -> float:
    """Return the share of capacity above which the shortest of d uniformly drawn queues is unstable.

    Notes
    -----
    For every set of k nodes, the jobs whose draw falls wholly into it must not exceed its capacity:
    lambda C(k, d) / C(n, d) < sum of its rates (Bramson 2011; arXiv:2004.00538). The k slowest are the worst set.

    Examples
    --------
    >>> round(shortest_of_limit([1 / 0.263] * 16 + [1 / 0.0113] * 4, choices=2), 3)
    0.232
    """
    ascending = sorted(rates_hz)
    count, total = len(ascending), math.fsum(rates_hz)
    limits = [
        math.fsum(ascending[:k]) * math.comb(count, choices) / math.comb(k, choices) for k in range(choices, count + 1)
    ]
    return min(limits) / total


# ---------------------------------------------------------------- arrivals


def mmpp2_idc(*, rates_hz: tuple[float, float], leave_hz: tuple[float, float], window_s: float = math.inf) -> float:
    """Return the index of dispersion for counts of a Poisson process with two rates.

    Parameters
    ----------
    rates_hz : pair of float
        Arrivals per second in either state.
    leave_hz : pair of float
        Rate at which either state is left, per second, > 0.
    window_s : float, default infinity
        Length of the window in which arrivals are counted, in seconds, > 0.

    Returns
    -------
    float
        Variance over mean of the count in a window; 1 for a Poisson process.

    Notes
    -----
    Heffes and Lucantoni (1986): 1 + 2 (l1 - l2)^2 r1 r2 / ((r1 + r2)^2 (l1 r2 + l2 r1)) x (1 - (1 - e^-x) / x),
    where x = (r1 + r2) t.

    Examples
    --------
    >>> mmpp2_idc(rates_hz=(3.0, 3.0), leave_hz=(1.0, 2.0))
    1.0
    >>> round(mmpp2_idc(rates_hz=(30.0, 5.0), leave_hz=(0.5, 0.125)), 3)
    33.0
    """
    (fast, slow), (r1, r2) = rates_hz, leave_hz
    limit = 2.0 * (fast - slow) ** 2 * r1 * r2 / ((r1 + r2) ** 2 * (fast * r2 + slow * r1))
    if window_s == math.inf:
        return 1.0 + limit
    x = (r1 + r2) * window_s
    return 1.0 + limit * (1.0 + math.expm1(-x) / x)


def renewal_idc(*, cv2: float) -> float:
    """Return the limit of the index of dispersion of a renewal process: the squared variation of its gaps."""
    return cv2
