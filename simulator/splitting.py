"""The best fixed shares when several models share the nodes; computed, not simulated.

A comparison, no bound: what weights found in advance can do without any news (`bounds.static_split` is the exact answer
for one model).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from simulator.bounds import NodeClass, OverloadError
from simulator.theory import erlang_c

_LOAD_MAX: Final = 1.0 - 1e-6
"""Of a node; above it the queue is replaced by a steep straight line, so that a search may start anywhere."""
_STEEP: Final = 1e7
"""Seconds per second for each whole unit of load beyond that."""
_ROUNDS_MAX: Final = 400
"""Sweeps over the models; fleets of five models and twenty classes took under a hundred."""
_GAIN_MIN: Final = 1e-7
"""A sweep that gains less, as a share of the whole, is the last one."""
_SECTIONS: Final = 40
"""Golden sections of one move: they find its length to 1e-8 of the range."""
_GOLDEN: Final = (math.sqrt(5.0) - 1.0) / 2.0


def static_split_of_models_s(fleets: Mapping[str, Sequence[NodeClass]]) -> float:
    """Return the mean sojourn time over several models with the best fixed shares found, in seconds.

    Parameters
    ----------
    fleets : mapping of str to sequence of NodeClass
        The same classes in the same order for each model, as for `bounds.zero_queue_of_models_s`.

    Raises
    ------
    OverloadError
        When no shares were found with which every node can serve what it gets.

    Notes
    -----
    Each node is an M/G/1 queue over the mix of models it gets (Pollaczek-Khinchine; several slots as in
    `bounds.static_split`). Shares of one model are moved from the class where the last job costs most to the one where
    the next costs least, as far as that helps, until no move helps. With several models the time spent is not convex,
    so this is the best of its neighbourhood: starts at shares by speed.
    """
    split = _Split([list(fleet) for fleet in fleets.values()])
    spent = split.spent()
    for _ in range(_ROUNDS_MAX):
        for model in range(len(split.models)):
            split.improve(model)
        before, spent = spent, split.spent()
        if before - spent <= _GAIN_MIN * before:
            break
    if max(split.load(index) for index in range(split.classes)) >= _LOAD_MAX:
        raise OverloadError("no fixed shares were found that every node can serve; lower the load")
    return spent / split.total_hz


class _Split:
    """Rates of each model at one node of each class, and what they cost."""

    def __init__(self, models: list[list[NodeClass]]) -> None:
        self.models = models
        self.classes = len(models[0])
        coming = [math.fsum([each.count * each.arrivals_hz for each in fleet]) for fleet in models]
        self.total_hz = math.fsum(coming)
        self.rates: list[list[float]] = []
        for fleet, coming_hz in zip(models, coming, strict=True):
            whole_hz = math.fsum([each.count * each.capacity_hz for each in fleet])
            self.rates.append([coming_hz * each.capacity_hz / whole_hz for each in fleet])

    def load(self, index: int) -> float:
        """Return the share of its time that a node of a class is busy."""
        return math.fsum(
            [
                rates[index] / fleet[index].capacity_hz
                for rates, fleet in zip(self.rates, self.models, strict=True)
                if rates[index] > 0.0
            ]
        )

    def spent(self) -> float:
        """Return the seconds that jobs spend per second, at all nodes."""
        return math.fsum([self.models[0][index].count * self._spent_at(index) for index in range(self.classes)])

    def _spent_at(self, index: int) -> float:
        rate_hz = work = square = on_way = 0.0
        for rates, fleet in zip(self.rates, self.models, strict=True):
            each_hz, node = rates[index], fleet[index]
            if each_hz <= 0.0:
                continue
            rate_hz += each_hz
            work += each_hz * node.service_s
            square += each_hz * node.service_s**2 * (1.0 + node.cv2)
            on_way += max(0.0, each_hz - node.arrivals_hz) * node.transfer_s
        if rate_hz <= 0.0:
            return 0.0
        slots, load = self.models[0][index].slots, self.load(index)
        beyond, load = max(0.0, load - _LOAD_MAX), min(load, _LOAD_MAX)
        mean_s = work / rate_hz
        waiting_s = (
            erlang_c(servers=slots, load=load) / (slots / mean_s * (1.0 - load)) * square / (2.0 * work * mean_s)
        )
        return work + rate_hz * waiting_s + on_way + _STEEP * beyond

    def improve(self, model: int) -> None:
        """Move jobs of one model between two classes, as far as it helps."""
        fleet, rates = self.models[model], self.rates[model]
        able = [index for index, each in enumerate(fleet) if each.capacity_hz > 0.0]
        givers = [index for index in able if rates[index] > 0.0]
        if not givers:
            return
        giver = max(givers, key=lambda index: self._slope(model, index, -1.0))
        taker = min(able, key=lambda index: self._slope(model, index, 1.0))
        if giver == taker or self._slope(model, giver, -1.0) <= self._slope(model, taker, 1.0):
            return
        had, has = rates[giver], rates[taker]
        most_hz = fleet[giver].count * had

        def cost(moved_hz: float) -> float:
            rates[giver] = had - moved_hz / fleet[giver].count
            rates[taker] = has + moved_hz / fleet[taker].count
            return fleet[giver].count * self._spent_at(giver) + fleet[taker].count * self._spent_at(taker)

        cost(_shortest(cost, most_hz))
        rates[giver] = max(0.0, rates[giver])

    def _slope(self, model: int, index: int, direction: float) -> float:
        """Return what one more job per second costs at a class, or one less saves."""
        rates, node = self.rates[model], self.models[model][index]
        had = rates[index]
        step = 1e-7 * node.capacity_hz if direction > 0.0 else min(had, 1e-7 * node.capacity_hz)
        before = self._spent_at(index)
        rates[index] = had + direction * step
        after = self._spent_at(index)
        rates[index] = had
        return direction * (after - before) / step


def _shortest(cost: Callable[[float], float], most: float) -> float:
    """Return where in 0 to `most` a cost with one valley is least, by golden sections."""
    low, high = 0.0, most
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = cost(left), cost(right)
    for _ in range(_SECTIONS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = cost(right)
    return min((0.0, most, (low + high) / 2.0), key=cost)
