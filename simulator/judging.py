"""What a check against theory is, and how one is judged. Knows no queue and no formula.

A check compares what simulations gave with what theory says. The interval of the replications decides, not a share
picked by hand: a check fails when the expected value lies more than three standard errors (Student's t, for few
replications wider) from the mean, and also when the interval is too wide to say anything.
"""

from collections.abc import Callable, Sequence
from typing import Final, Literal

import msgspec

from simulator.statistics import SIGMA3, estimate

VAGUE: Final = 0.25
"""Half width of the deciding interval, as a share of the expected value: beyond it a check says too little to pass."""

Level = Literal["kernel", "node", "arithmetic"]
"""What was run: plain queues on the engine; nodes with their cores and a network; or neither."""


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One comparison."""

    check: str
    level: Level
    expected: float
    got: float
    ci95: tuple[float, float] | None
    """Interval of `got`; None where it is exact."""
    ok: bool
    about: str = ""
    """Source, or what was compared."""


class Effort(msgspec.Struct, frozen=True, kw_only=True):
    """How much is simulated."""

    replications: int
    length: float
    """Factor on the simulated time of each."""


FULL: Final = Effort(replications=8, length=1.0)
FAST: Final = Effort(replications=6, length=0.4)
"""For the suite: the same code, wider intervals."""


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """Something to run that gives one check or a few."""

    name: str
    run: Callable[[Effort], list[Check]]
    is_fast: bool = False
    """Whether it belongs to the fast subset."""


def judge(
    check: str, level: Level, *, expected: float, values: Sequence[float], about: str = "", bias: float = 0.0
) -> Check:
    """Judge replications.

    Parameters
    ----------
    check : str
        Its name.
    level : {"kernel", "node", "arithmetic"}
        What was run.
    expected : float
        Of theory.
    values : sequence of float
        One per replication, independent.
    bias : float, default 0.0
        Known deviation of what was run from what theory speaks of (a finite fleet, say), as a share of the expected
        value; its reason belongs into `about`.
    """
    deciding, shown = estimate(values, level=SIGMA3), estimate(values)
    scale = abs(expected) or 1.0
    is_near = abs(deciding.mean - expected) <= deciding.half + bias * scale
    return Check(
        check=check,
        level=level,
        expected=expected,
        got=shown.mean,
        ci95=(shown.low, shown.high),
        ok=is_near and deciding.half <= VAGUE * scale,
        about=about,
    )


def judge_exact(check: str, level: Level, *, expected: float, got: float, within: float, about: str = "") -> Check:
    """Judge a value without chance in it: its distance must not exceed `within`."""
    return Check(
        check=check,
        level=level,
        expected=expected,
        got=got,
        ci95=None,
        ok=abs(got - expected) <= within,
        about=about,
    )
