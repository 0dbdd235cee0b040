"""Draws that a simulation makes by the million, spelled out: the same numbers from the same stream as `random` gives.

Apart from the records that name distributions, so that it can be compiled.
"""

import math
import random
from typing import Final

_WIDTH: Final = 4.0 * math.exp(-0.5) / math.sqrt(2.0)
"""Of the rectangle that Kinderman and Monahan (1977) draw from."""


def lognormal(rng: random.Random, mean: float, cv: float) -> float:
    """Draw from a lognormal distribution, to the last bit what `rng.lognormvariate` would give.

    Parameters
    ----------
    rng : random.Random
        Stream of draws.
    mean : float
        Mean of the distribution, > 0.
    cv : float
        Standard deviation over mean, > 0.
    """
    variance = math.log1p(cv**2)
    draw = rng.random
    while True:
        first = draw()
        second = 1.0 - draw()
        z = _WIDTH * (first - 0.5) / second
        if z * z / 4.0 <= -math.log(second):
            break
    return math.exp(math.log(mean) - variance / 2 + z * math.sqrt(variance))
