"""Checks of the kernel: plain queues on the engine (stations.py), no cores, against theory.

They show that clock, order and draws are right, and that numbers of theory come out of fleets too large for cores.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from simulator import theory
from simulator.engine import stream
from simulator.fluid_waiting import board_sojourn
from simulator.judging import Case, Check, Effort, Level, judge
from simulator.stations import Queues, Rule, run_station
from simulator.statistics import variance
from simulator.tally import Tally
from simulator.workload import Arrivals, GammaRenewal, Mmpp, Poisson

QUEUES: Final = 1000
"""Of checks against limits of infinitely many."""
SLOW_HZ, FAST_HZ = 1 / 0.263, 1 / 0.0113
MIXED_HZ: Final[tuple[float, ...]] = (SLOW_HZ,) * 16 + (FAST_HZ,) * 4
"""Rates of the mixed fleet of 16 small boards and 4 servers."""
SLOW: Final = 16

_RARE: Final = 0.02
"""Shares below it are not checked: too few jobs are among them, and a finite number of queues shows most there."""
_FINITE_DRAWN: Final = 0.03 * 100 / QUEUES
"""Bias of a finite number of queues with drawn choices: 3 % were seen at 100 queues; it falls as 1/n."""
_FINITE_LEAST: Final = 0.08 * 100 / QUEUES
"""The same where all go to the least: 7 to 8 % at 100."""


def _exponential(rng: random.Random) -> float:
    return rng.expovariate(1.0)


def _gamma(cv2: float) -> Callable[[random.Random], float]:
    return lambda rng: rng.gammavariate(1.0 / cv2, cv2)


def _constant(_: random.Random) -> float:
    return 1.0


def _seeds(name: str, effort: Effort) -> Iterator[str]:
    return (f"{name}/{number}" for number in range(effort.replications))


def _stations(
    name: str, effort: Effort, *, servers: int, load: float, draw: Callable[[random.Random], float], jobs: int
) -> list[Tally]:
    """Simulate stations whose mean service time is 1, for so many jobs beyond a warm-up."""
    rate_hz = servers * load
    # The memory of a queue near saturation: its relaxation time grows as 1 / (1 - load)^2.
    warm_s = 20.0 / (1.0 - load) ** 2
    end_s = warm_s + effort.length * jobs / rate_hz
    return [
        run_station(seed, servers=servers, rate_hz=rate_hz, draw_service=draw, warm_s=warm_s, end_s=end_s)
        for seed in _seeds(name, effort)
    ]


def check_mm1(load: float, effort: Effort) -> list[Check]:
    """Check one exponential server: mean, p99, and Little's law."""
    name = f"M/M/1 load {load}"
    runs = _stations(name, effort, servers=1, load=load, draw=_exponential, jobs=60_000)
    return [
        judge(
            f"{name} sojourn",
            "kernel",
            expected=theory.mm1_sojourn_s(load=load),
            values=[run.sojourn_s for run in runs],
            about="1 / (1 - load)",
        ),
        judge(
            f"{name} p99",
            "kernel",
            expected=theory.mm1_sojourn_quantile_s(0.99, load=load),
            values=[run.sojourn_s_p99 for run in runs],
            about="ln 100 / (1 - load)",
        ),
        judge(
            f"{name} Little",
            "kernel",
            expected=1.0,
            values=[run.jobs_present / (run.rate_hz * run.sojourn_s) for run in runs],
            about="jobs present / (rate x sojourn)",
        ),
    ]


def check_mmc(servers: int, load: float, effort: Effort) -> list[Check]:
    """Check several exponential servers with one queue."""
    name = f"M/M/{servers} load {load} waiting"
    runs = _stations(name, effort, servers=servers, load=load, draw=_exponential, jobs=20_000 * servers + 40_000)
    expected = theory.mmc_waiting_s(servers=servers, load=load)
    return [judge(name, "kernel", expected=expected, values=[run.waiting_s for run in runs], about="Erlang C")]


def check_mg1(cv2: float, load: float, effort: Effort) -> list[Check]:
    """Check one server of any variation."""
    name = f"M/G/1 load {load} cv2 {cv2} waiting"
    draw = _gamma(cv2) if cv2 else _constant
    runs = _stations(name, effort, servers=1, load=load, draw=draw, jobs=60_000)
    expected = theory.mg1_waiting_s(load=load, cv2=cv2)
    return [
        judge(name, "kernel", expected=expected, values=[run.waiting_s for run in runs], about="Pollaczek-Khinchine")
    ]


# ---------------------------------------------------------------- many queues


def _fleets(name: str, effort: Effort, *, load: float, rule: Callable[[], Rule], span_s: float) -> list[Queues]:
    """Simulate 1,000 queues of rate 1."""
    # Where all follow one board the queues take several times as long to come to their cycle.
    warm_s = (10.0 if rule().choices else 30.0) / (1.0 - load)
    runs = []
    for seed in _seeds(name, effort):
        queues = Queues(seed, rates_hz=[1.0] * QUEUES, arrival_hz=load * QUEUES, rule=rule(), warm_s=warm_s)
        queues.engine.run(warm_s + effort.length * span_s)
        runs.append(queues)
    return runs


def check_supermarket(choices: int, load: float, effort: Effort) -> list[Check]:
    """Check the shortest of d drawn queues: mean sojourn, and the tail as arrivals find it."""
    name = f"supermarket d={choices} load {load}"
    runs = _fleets(name, effort, load=load, rule=partial(Rule, choices=choices), span_s=150.0)
    about = f"Mitzenmacher 2001, {QUEUES} queues in place of infinitely many"
    sojourn_s = theory.supermarket_sojourn_s(load=load, choices=choices)
    checks = [
        judge(
            f"{name} sojourn",
            "kernel",
            expected=sojourn_s,
            values=[run.mean_sojourn_s() for run in runs],
            about=about,
            bias=_FINITE_DRAWN,
        )
    ]
    for length in (1, 2, 3):
        # A job finds k or more where it goes only if all d drawn queues have them: that is s_k to the power d.
        values = [sum(found >= length for found in run.found) / len(run.found) for run in runs]
        expected = theory.supermarket_tail(length, load=load, choices=choices) ** choices
        if expected < _RARE:
            break
        checks.append(
            judge(
                f"{name} finds >= {length}",
                "kernel",
                expected=expected,
                values=values,
                about=about,
                bias=_FINITE_DRAWN * choices,
            )
        )
    return checks


def check_board(choices: int, load: float, period: float, effort: Effort) -> list[Check]:
    """Check a bulletin board: queue lengths are shown to all every so many service times."""
    name = f"bulletin d={choices or 'all'} load {load} T={period:g}"
    rule = partial(Rule, choices=choices, period_s=period)
    # Whole periods: the mean over a part of one is another.
    span_s = period * math.ceil(150.0 / period)
    runs = _fleets(name, effort, load=load, rule=rule, span_s=span_s)
    return [
        judge(
            f"{name} sojourn",
            "kernel",
            expected=board_sojourn(load=load, period=period, choices=choices, longest=40 if load < 0.8 else 70),
            values=[run.mean_sojourn_s() for run in runs],
            about=f"fluid limit of Mitzenmacher 2000, {QUEUES} queues in place of infinitely many",
            bias=_FINITE_DRAWN if choices else _FINITE_LEAST,
        )
    ]


# ---------------------------------------------------------------- where rules become unstable


def drift_hz(counts: Sequence[tuple[float, float]]) -> float:
    """Return the slope of (time in seconds, jobs) by least squares, in jobs per second."""
    mean_s = math.fsum([at_s for at_s, _ in counts]) / len(counts)
    mean = math.fsum([jobs for _, jobs in counts]) / len(counts)
    above = math.fsum([(at_s - mean_s) * (jobs - mean) for at_s, jobs in counts])
    return above / math.fsum([(at_s - mean_s) ** 2 for at_s, _ in counts])


def overflow_hz(*, choices: int, arrival_hz: float) -> float:
    """Return by how much the small boards of the mixed fleet overflow, in jobs per second; below 0 they do not.

    Jobs go to them whenever all drawn nodes are boards: with long queues there, only then.
    """
    share = math.comb(SLOW, choices) / math.comb(len(MIXED_HZ), choices)
    return arrival_hz * share - SLOW * SLOW_HZ


def judge_drift(name: str, level: Level, *, choices: int, factor: float, values: Sequence[float]) -> Check:
    """Judge the growth of the queues of the small boards, as a share of what they can serve."""
    limit_hz = theory.shortest_of_limit(MIXED_HZ, choices=choices) * math.fsum(MIXED_HZ)
    expected = max(0.0, overflow_hz(choices=choices, arrival_hz=factor * limit_hz)) / (SLOW * SLOW_HZ)
    scaled = [value / (SLOW * SLOW_HZ) for value in values]
    return judge(
        name,
        level,
        expected=expected,
        values=scaled,
        about="growth of the slow nodes' queues over what they serve; stable up to "
        f"{limit_hz / math.fsum(MIXED_HZ):.3f} of the capacity",
    )


def limit_name(choices: int, factor: float) -> str:
    """Name a check of a stability limit."""
    rule = "uniform random" if choices == 1 else f"shortest of {choices}"
    return f"{rule} at {factor:g} of its limit, drift"


def check_limit(choices: int, factor: float, effort: Effort) -> list[Check]:
    """Check that a rule blind to speed diverges just above its limit, as fast as it must, and not just below."""
    name = limit_name(choices, factor)
    arrival_hz = factor * theory.shortest_of_limit(MIXED_HZ, choices=choices) * math.fsum(MIXED_HZ)
    values = []
    for seed in _seeds(name, effort):
        queues = Queues(seed, rates_hz=MIXED_HZ, arrival_hz=arrival_hz, rule=Rule(choices=choices), warm_s=0.0)
        end_s = 2000.0
        counts = [(queues.engine.now_s, float(sum(lengths[:SLOW]))) for lengths in queues.watch(5.0, end_s)]
        values.append(drift_hz(counts[len(counts) // 4 :]))
    return [judge_drift(name, "kernel", choices=choices, factor=factor, values=values)]


# ---------------------------------------------------------------- arrivals


def check_dispersion(name: str, law: Arrivals, window_s: float, expected: float, effort: Effort) -> list[Check]:
    """Check the index of dispersion of a law of arrivals: variance over mean of the counts in windows."""
    label = f"arrivals {name} dispersion in {window_s:g} s"
    values = []
    for seed in _seeds(label, effort):
        counts = [0] * round(1500 * effort.length)
        for at_s in law.times_s(stream(seed, "arrivals", "law"), 0.0):
            index = int(at_s / window_s)
            if index >= len(counts):
                break
            counts[index] += 1
        values.append(variance(counts) * len(counts) / sum(counts))
    return [judge(label, "kernel", expected=expected, values=values, about="Heffes and Lucantoni 1986; renewal theory")]


def _dispersion_cases() -> list[Case]:
    mmpp = Mmpp(burst_hz=30.0, calm_hz=5.0, burst_s=2.0, calm_s=8.0)
    idc = partial(theory.mmpp2_idc, rates_hz=(30.0, 5.0), leave_hz=(0.5, 0.125))
    laws: list[tuple[str, Arrivals, float, float]] = [
        ("Poisson", Poisson(10.0), 5.0, 1.0),
        ("MMPP-2", mmpp, 1.0, idc(window_s=1.0)),
        ("MMPP-2", mmpp, 20.0, idc(window_s=20.0)),
        # In windows of 500 gaps it is within 1 % of its limit.
        ("gamma cv 2", GammaRenewal(10.0, 2.0), 50.0, theory.renewal_idc(cv2=4.0)),
        ("gamma cv 0.5", GammaRenewal(10.0, 0.5), 50.0, theory.renewal_idc(cv2=0.25)),
    ]
    return [
        Case(name=f"arrivals {name} {window_s}", run=partial(check_dispersion, name, law, window_s, expected))
        for name, law, window_s, expected in laws
    ]


def cases() -> list[Case]:
    """Return the checks of this module."""
    found = _dispersion_cases()
    found += [Case(name=f"M/M/1 {load}", run=partial(check_mm1, load), is_fast=load < 0.9) for load in (0.5, 0.7, 0.9)]
    found += [
        Case(name=f"M/M/{servers}", run=partial(check_mmc, servers, 0.8), is_fast=servers == 8)
        for servers in (2, 4, 8, 16)
    ]
    found += [
        Case(name=f"M/G/1 {cv2}", run=partial(check_mg1, cv2, 0.8), is_fast=cv2 <= 1) for cv2 in (0.0, 0.25, 1.0, 4.0)
    ]
    found += [
        Case(name=f"supermarket {choices} {load}", run=partial(check_supermarket, choices, load), is_fast=load < 0.9)
        for load in (0.7, 0.9)
        for choices in (2, 3, 5)
    ]
    found += [
        Case(
            name=f"bulletin {choices} {load} {period}",
            run=partial(check_board, choices, load, period),
            is_fast=load < 0.9 and period == 5.0,
        )
        for load, periods in ((0.5, (1.0, 5.0, 10.0)), (0.9, (1.0, 5.0)))
        for period in periods
        for choices in (2, 3, 0)
    ]
    found += [
        Case(name=f"limit {choices} {factor}", run=partial(check_limit, choices, factor), is_fast=choices == 2)
        for choices in (1, 2)
        for factor in (0.9, 1.1)
    ]
    return found
