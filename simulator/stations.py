"""Plain queues on the engine, without cores and networks: what the kernel is checked and timed with.

Two systems: `Station`, one queue before several servers, and `Queues`, many single servers each with a queue of its
own, to which a rule sends each job on what it is shown. They are written as calls on the engine, as all of the
simulator is; a node with its core is another thing, checked on its own (checks.py).
"""

import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

from simulator.engine import Engine, stream
from simulator.tally import Tally

_LOOKS: Final = 10_000
"""At the number of jobs present: seen apart from the jobs' own times, so that Little's law is a check."""

Draw = Callable[[], float]
"""Draws a service time, or a gap between arrivals, in seconds."""


class Station:
    """One queue, first come first served, before equal servers.

    Parameters
    ----------
    engine : Engine
        The clock.
    servers : int
        Jobs served at once.
    draw_service : callable
        Draws a service time.
    warm_s : float, default 0.0
        Jobs that arrive before are not counted.
    """

    __slots__ = ("_at", "_draw", "_engine", "_free", "_queue", "_servers", "_warm_s", "sojourns_s", "waiting_s")

    def __init__(self, engine: Engine, *, servers: int, draw_service: Draw, warm_s: float = 0.0) -> None:
        self._engine = engine
        self._at = engine.at
        self._servers = self._free = servers
        self._draw = draw_service
        self._warm_s = warm_s
        self._queue: deque[float] = deque()
        self.waiting_s = 0.0
        """Sum over the counted jobs."""
        self.sojourns_s: list[float] = []
        """Of the counted jobs, in the order of their ends."""

    @property
    def present(self) -> int:
        """Jobs in the system."""
        return self._servers - self._free + len(self._queue)

    def arrive(self) -> None:
        """Take a job in now."""
        now_s = self._engine.now_s
        if self._free:
            self._free -= 1
            self._at(now_s + self._draw(), self._leave, now_s)
        else:
            self._queue.append(now_s)

    def _leave(self, arrival_s: float) -> None:
        now_s = self._engine.now_s
        if arrival_s >= self._warm_s:
            self.sojourns_s.append(now_s - arrival_s)
        if self._queue:
            arrival_s = self._queue.popleft()
            if arrival_s >= self._warm_s:
                self.waiting_s += now_s - arrival_s
            self._at(now_s + self._draw(), self._leave, arrival_s)
        else:
            self._free += 1


def run_station(
    seed: str,
    *,
    servers: int,
    rate_hz: float,
    draw_service: Callable[[random.Random], float],
    warm_s: float,
    end_s: float,
) -> Tally:
    """Simulate Poisson arrivals at a station from 0 until a time, in seconds."""
    engine = Engine()
    service, arrivals = stream(seed, "service", "station"), stream(seed, "arrivals", "station")
    station = Station(engine, servers=servers, draw_service=partial(draw_service, service), warm_s=warm_s)
    expovariate, at = arrivals.expovariate, engine.at
    looks_s = (end_s - warm_s) / _LOOKS
    present = 0

    def arrive() -> None:
        station.arrive()
        at(engine.now_s + expovariate(rate_hz), arrive)

    def look() -> None:
        nonlocal present
        present += station.present
        at(engine.now_s + looks_s, look)

    at(expovariate(rate_hz), arrive)
    at(warm_s + looks_s / 2.0, look)
    engine.run(end_s)
    ordered = sorted(station.sojourns_s)
    return Tally(
        jobs=len(ordered),
        waiting_s=station.waiting_s / len(ordered),
        sojourn_s=math.fsum(ordered) / len(ordered),
        sojourn_s_p99=ordered[int(0.99 * len(ordered))],
        jobs_present=present / _LOOKS,
        rate_hz=len(ordered) / (end_s - warm_s),
    )


# ---------------------------------------------------------------- many queues and a rule


class Rule:
    """Joins the shortest of d drawn queues, as it is shown their lengths.

    Parameters
    ----------
    choices : int
        Queues drawn per job, with equal chances, distinct; 0 for the least of all, ties drawn.
    period_s : float, default 0.0
        Age at which what is shown is renewed, for all at once; 0 shows the lengths as they are.
    """

    __slots__ = ("choices", "least", "period_s")

    def __init__(self, *, choices: int, period_s: float = 0.0) -> None:
        self.choices = choices
        self.period_s = period_s
        self.least: list[int] = []
        """Queues of the least shown length."""

    def renew(self, shown: Sequence[int]) -> None:
        """Note lengths that are shown from now on."""
        if not self.choices:
            least = min(shown)
            self.least = [index for index, length in enumerate(shown) if length == least]

    def pick(self, rng: random.Random, shown: Sequence[int]) -> int:
        """Return the queue for a job; ties go to the one drawn first."""
        draw, count, choices = rng.random, len(shown), self.choices
        if not choices:
            if not self.period_s:
                self.renew(shown)
            return self.least[int(draw() * len(self.least))]
        best = int(draw() * count)
        drawn = {best}
        while len(drawn) < choices:
            other = int(draw() * count)
            if other not in drawn:
                drawn.add(other)
                if shown[other] < shown[best]:
                    best = other
        return best


class Queues:
    """Single servers, each with a queue of its own, fed by one Poisson stream through a rule.

    Parameters
    ----------
    seed : str
        Seeds arrivals, service times and the rule's draws, each with a stream of its own.
    rates_hz : sequence of float
        Service rate of each server; service times are exponential.
    arrival_hz : float
        Jobs per second in all.
    rule : Rule
        Where jobs go.
    warm_s : float
        Jobs that arrive before are not counted.
    """

    def __init__(self, seed: str, *, rates_hz: Sequence[float], arrival_hz: float, rule: Rule, warm_s: float) -> None:
        self.engine = Engine()
        self.lengths = [0] * len(rates_hz)
        """Jobs at each server, the one in service included."""
        self.sojourns_s: list[float] = []
        self.found: list[int] = []
        """Length found by the counted jobs where they went."""
        self._rates_hz = list(rates_hz)
        self._free_at_s = [0.0] * len(rates_hz)
        self._arrival_hz = arrival_hz
        self._rule = rule
        self._warm_s = warm_s
        self._shown = self.lengths
        self._arrivals = stream(seed, "arrivals", "queues")
        self._service = stream(seed, "service", "queues")
        self._draws = stream(seed, "draws", "queues")
        if rule.period_s:
            self._renew()
        self.engine.at(self._arrivals.expovariate(arrival_hz), self._arrive)

    def _renew(self) -> None:
        self._shown = list(self.lengths)
        self._rule.renew(self._shown)
        self.engine.at(self.engine.now_s + self._rule.period_s, self._renew)

    def _arrive(self) -> None:
        engine, now_s = self.engine, self.engine.now_s
        index = self._rule.pick(self._draws, self._shown)
        # First come first served: the end is known on arrival.
        end_s = max(now_s, self._free_at_s[index]) + self._service.expovariate(self._rates_hz[index])
        self._free_at_s[index] = end_s
        if now_s >= self._warm_s:
            self.sojourns_s.append(end_s - now_s)
            self.found.append(self.lengths[index])
        self.lengths[index] += 1
        engine.at(end_s, self._leave, index)
        engine.at(now_s + self._arrivals.expovariate(self._arrival_hz), self._arrive)

    def _leave(self, index: int) -> None:
        self.lengths[index] -= 1

    def mean_sojourn_s(self) -> float:
        """Return the mean sojourn time of the counted jobs, in seconds."""
        return math.fsum(self.sojourns_s) / len(self.sojourns_s)

    def watch(self, every_s: float, end_s: float) -> Iterator[list[int]]:
        """Run until a time and yield the lengths every so often, both in seconds."""
        while self.engine.now_s < end_s:
            self.engine.run(min(end_s, self.engine.now_s + every_s))
            yield self.lengths
