"""What charts are made of: an SVG element with its text, axes with round ticks, numbers as labels.

Owns the size of a chart; knows nothing of what is drawn.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import Final

WIDTH: Final = 1000
HEIGHT: Final = 320
LEFT: Final = 62
RIGHT: Final = 16
TOP: Final = 12
BOTTOM: Final = 44
COLOURS: Final = 8
"""Series colours of the page, --c0 and on; more series take them again."""
TICKS_MIN: Final = 4
CHARACTER: Final = 7.4
"""Room for a character of a label, in pixels: enough for the larger text of narrow screens."""


def figure_of(value: float) -> str:
    """Write a number for an axis.

    Examples
    --------
    >>> figure_of(0.05), figure_of(1200.0), figure_of(0.0), figure_of(2.5e6)
    ('0.05', '1200', '0', '2.5e+06')
    """
    return f"{value:.4g}"


def svg(height: float, body: Sequence[str], label: str) -> str:
    """Return an SVG element of the width of a chart."""
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(label, quote=True)}">'
        + "".join(body)
        + "</svg>"
    )


def text_at(x: float, y: float, text: str, *, anchor: str = "middle", extra: str = "") -> str:
    """Return a text at a place."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{escape(text)}</text>'


class Axis:
    """A scale from values to pixels.

    Parameters
    ----------
    low, high : float
        Ends of the values; of a logarithmic axis above 0.
    begin, end : float
        Pixels.
    log : bool, default False
        Whether it is logarithmic.
    """

    def __init__(self, low: float, high: float, begin: float, end: float, *, log: bool = False) -> None:
        if log:
            low, high = math.log10(low), math.log10(high)
        if high <= low:
            high = low + (1.0 if not log else 0.1)
        self._low, self._high, self._begin, self._end, self.log = low, high, begin, end, log

    def __call__(self, value: float) -> float:
        """Return the pixel of a value, within the axis."""
        place = math.log10(max(value, 1e-12)) if self.log else value
        share = min(1.0, max(0.0, (place - self._low) / (self._high - self._low)))
        return self._begin + share * (self._end - self._begin)

    def ticks(self) -> list[float]:
        """Return four to ten round values."""
        if self.log:
            return self._log_ticks()
        rough = (self._high - self._low) / 5
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * digit for digit in (1, 2, 2.5, 5, 10) if power * digit >= rough * 0.999)
        first = math.ceil(self._low / step - 1e-9)
        last = math.floor(self._high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]

    def _log_ticks(self) -> list[float]:
        """Return powers of ten, and as many values between as it takes to have four."""
        inside: list[float] = []
        for digits in ((1.0,), (1.0, 2.0, 5.0), (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)):
            powers = range(math.floor(self._low), math.ceil(self._high) + 1)
            found = [digit * 10.0**power for power in powers for digit in digits]
            inside = [each for each in found if self._low - 1e-9 <= math.log10(each) <= self._high + 1e-9]
            if len(inside) >= TICKS_MIN:
                break
        return inside or [10**self._low, 10**self._high]
