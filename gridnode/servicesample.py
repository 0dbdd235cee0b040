"""A bounded sample of service times, as quantiles. Knows nothing of who measured them."""

import random
from typing import Final

from gridnode.tracerecords import QUANTILES

KEPT_MAX: Final = 512
"""Times kept of each model: the 95 % quantile of so many is right to about a percent in rank. 4 kB."""


class ServiceSample:
    """A uniform sample of all times of a model (Vitter 1985, algorithm R), with their number and sum.

    Parameters
    ----------
    seed : str
        Of its draws.
    """

    __slots__ = ("_kept", "_rng", "count", "total_s")

    def __init__(self, seed: str) -> None:
        self.count = 0
        self.total_s = 0.0
        self._kept: list[float] = []
        self._rng = random.Random(seed)

    def add(self, service_s: float) -> None:
        """Take in a time in seconds."""
        self.count += 1
        self.total_s += service_s
        if len(self._kept) < KEPT_MAX:
            self._kept.append(service_s)
        elif (place := int(self._rng.random() * self.count)) < KEPT_MAX:
            self._kept[place] = service_s

    def quantiles_s(self) -> tuple[float, ...]:
        """Return values at equal steps of rank, the least and the largest among them; fewer where there are fewer.

        Examples
        --------
        >>> sample = ServiceSample("x")
        >>> for number in range(65):
        ...     sample.add(float(number))
        >>> sample.quantiles_s()[:3], len(sample.quantiles_s())
        ((0.0, 2.0, 4.0), 33)
        """
        ordered = sorted(self._kept)
        if len(ordered) <= QUANTILES:
            return tuple(ordered)
        last = len(ordered) - 1
        return tuple([ordered[round(step * last / (QUANTILES - 1))] for step in range(QUANTILES)])
