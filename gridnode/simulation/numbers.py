"""How numbers are written: estimates with the interval in two figures and the mean to the same digit; times."""

import math
from typing import Final, Literal

from simulator.statistics import Estimate

Kind = Literal["time", "share", "points"]
"""Seconds; a share of 1; a difference of two shares."""
_UNITS: Final[dict[str, tuple[float, str]]] = {"share": (100.0, "%"), "points": (100.0, "pt")}
DECIMALS_MAX: Final = 3


def interval_parts(value: Estimate, kind: Kind = "time", *, sign: bool = False) -> tuple[str, str, str]:
    """Write mean, half width ("" where there is none) and unit.

    Examples
    --------
    >>> interval_parts(Estimate(mean=0.03996, half=0.0017, count=4))
    ('40.0', '1.7', 'ms')
    >>> interval_parts(Estimate(mean=0.83, half=0.0174, count=4), "share")
    ('83.0', '1.7', '%')
    >>> interval_parts(Estimate(mean=1.0, half=0.0, count=4), "share")
    ('100', '', '%')
    """
    if math.isnan(value.mean):
        return "–", "", ""
    factor, unit = _UNITS.get(kind) or ((1e3, "ms") if abs(value.mean) < 1 else (1.0, "s"))
    mean, half = value.mean * factor, value.half * factor
    has_half = math.isfinite(half) and half > 10**-DECIMALS_MAX
    decimals = _decimals(half, 2) if has_half else _decimals(mean, 3)
    text = f"{mean:{'+' if sign else ''}.{decimals}f}"
    return text, f"{half:.{decimals}f}" if has_half else "", unit


def _decimals(value: float, figures: int) -> int:
    """Return the decimals that show so many figures of a value."""
    if not value or not math.isfinite(value):
        return 0
    return min(DECIMALS_MAX, max(0, figures - 1 - math.floor(math.log10(abs(value)))))


def interval(value: Estimate, kind: Kind = "time", *, sign: bool = False) -> str:
    """Write an estimate for a terminal.

    Examples
    --------
    >>> interval(Estimate(mean=0.4, half=0.13, count=3)), interval(Estimate(mean=0.4, half=0.03, count=3), sign=True)
    ('400 ±130 ms', '+400 ±30 ms')
    """
    mean, half, unit = interval_parts(value, kind, sign=sign)
    return f"{mean} ±{half} {unit}" if half else f"{mean} {unit}".strip()


def seconds_text(value_s: float) -> str:
    """Write a time in three figures with its unit.

    Examples
    --------
    >>> seconds_text(0.0123), seconds_text(1.5), seconds_text(0.0002)
    ('12.3 ms', '1.5 s', '0.2 ms')
    """
    if math.isnan(value_s):
        return "–"
    if abs(value_s) < 1:
        return f"{value_s * 1e3:.3g} ms"
    return f"{value_s:.3g} s" if value_s < 1000 else f"{value_s:,.0f} s"
