"""Charts as inline SVG, without any library: colours are the page's CSS variables, so they are right in dark and light.

Owns geometry; knows names and numbers only. `page` sets them in HTML, `plots` draws the same as PNG with matplotlib.
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
LEVELS: Final = 12
"""Shades of a heat map: neighbours of one shade are one rectangle."""
TICKS_MIN: Final = 4
CHARACTER: Final = 6.6
"""Width of a character of a label, in pixels."""


def figure_of(value: float) -> str:
    """Write a number for an axis.

    Examples
    --------
    >>> figure_of(0.05), figure_of(1200.0), figure_of(0.0), figure_of(2.5e6)
    ('0.05', '1200', '0', '2.5e+06')
    """
    return f"{value:.4g}"


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


def _svg(height: float, body: Sequence[str], label: str, width: float = WIDTH) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(label, quote=True)}">'
        + "".join(body)
        + "</svg>"
    )


def _text(x: float, y: float, text: str, *, anchor: str = "middle", extra: str = "") -> str:
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


def _grid(x: Axis, y: Axis, x_label: str, y_label: str, x_text: bool) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    body = []
    for value in x.ticks():
        at = x(value)
        body.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        body.append(_text(at, bottom + 16, seconds_text(value) if x_text else figure_of(value)))
    for value in y.ticks():
        at = y(value)
        body.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        body.append(_text(LEFT - 6, at + 4, figure_of(value), anchor="end"))
    body.append(_text((LEFT + right) / 2, HEIGHT - 6, x_label, extra=' class="axis"'))
    middle = (TOP + bottom) / 2
    turned = f' class="axis" transform="rotate(-90 14 {middle:.0f})"'
    body.append(_text(14, middle, y_label, extra=turned))
    return body


Lines = Sequence[tuple[str, Sequence[tuple[float, float]]]]
"""Names and points (x, y) of series, ascending in x."""


def lines(
    series: Lines,
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    y_high: float | None = None,
    x_seconds: bool = False,
) -> str:
    """Draw series as lines.

    Parameters
    ----------
    series : Lines
        What to draw.
    x_label, y_label : str
        With units.
    log_x, log_y : bool
        Logarithmic axes, for values above 0.
    y_high : float, optional
        End of the y axis; the largest value by default.
    x_seconds : bool, default False
        Whether the x values are seconds, to be written with a unit.
    """
    points = [point for _, each in series for point in each if all(map(math.isfinite, point))]
    if not points:
        return ""
    xs, ys = [x for x, _ in points if not log_x or x > 0], [y for _, y in points if not log_y or y > 0]
    if not xs or not ys:
        return ""
    x = Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT, log=log_x)
    low = min(ys) if log_y else 0.0
    y = Axis(low, y_high or max(ys), HEIGHT - BOTTOM, TOP, log=log_y)
    body = _grid(x, y, x_label, y_label, x_seconds)
    for number, (name, each) in enumerate(series):
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py in each if math.isfinite(px) and math.isfinite(py))
        body.append(f'<polyline class="line" style="stroke:var(--c{number % COLOURS})" points="{path}">')
        body.append(f"<title>{escape(name)}</title></polyline>")
    return _svg(HEIGHT, body, f"{y_label} over {x_label}")


def intervals(
    rows: Sequence[tuple[str, float, float, float]], *, label: str, marks: Sequence[tuple[str, float]]
) -> str:
    """Draw means with their intervals on a logarithmic axis of seconds.

    Parameters
    ----------
    rows : sequence of (name, low, mean, high)
        Times in seconds.
    label : str
        Of the axis.
    marks : sequence of (name, value)
        Vertical lines, such as bounds.
    """
    kept = [row for row in rows if math.isfinite(row[2]) and row[2] > 0]
    values = [value for _, *each in kept for value in each if math.isfinite(value) and value > 0]
    values += [value for _, value in marks if value > 0]
    if not kept:
        return ""
    left = 16 + CHARACTER * max(len(name) for name, *_ in kept)
    height = TOP + 26 * len(kept) + BOTTOM + 14 * len(marks)
    x = Axis(min(values) * 0.9, max(values) * 1.1, left, WIDTH - RIGHT, log=True)
    bottom = TOP + 26 * len(kept)
    body = []
    for value in x.ticks():
        at = x(value)
        body.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        body.append(_text(at, bottom + 16, seconds_text(value)))
    for number, (name, value) in enumerate(marks):
        at = x(value)
        body.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        said = f"{name} {seconds_text(value)}"
        body.append(
            _text(max(at, 4 + CHARACTER * len(said) / 2), bottom + 31 + 14 * number, said, extra=' class="note"')
        )
    for number, (name, low, mean, high) in enumerate(kept):
        at_y = TOP + 26 * number + 13
        colour = f"var(--c{number % COLOURS})"
        body.append(_text(left - 8, at_y + 4, name, anchor="end"))
        if math.isfinite(low) and math.isfinite(high):
            body.append(
                f'<line class="whisker" style="stroke:{colour}" x1="{x(max(low, 1e-9)):.1f}" x2="{x(high):.1f}" '
                f'y1="{at_y}" y2="{at_y}"/>'
            )
        body.append(f'<circle cx="{x(mean):.1f}" cy="{at_y}" r="4.5" style="fill:{colour}">')
        body.append(f"<title>{escape(name)}: {seconds_text(mean)}</title></circle>")
    body.append(_text((left + WIDTH - RIGHT) / 2, height - 4, label, extra=' class="axis"'))
    return _svg(height, body, label)


def heat_map(
    rows: Sequence[tuple[str, Sequence[float]]], *, start_s: float, step_s: float, high: float, unit: str
) -> str:
    """Draw values over time as shades, a row per name.

    Parameters
    ----------
    rows : sequence of (name, values)
        Equal lengths.
    start_s, step_s : float
        Of the values.
    high : float
        Value of the darkest shade.
    unit : str
        Of the values, for the legend.
    """
    if not rows or not rows[0][1]:
        return ""
    left = 16 + CHARACTER * max(len(name) for name, _ in rows)
    row_height = max(7.0, min(18.0, 420 / len(rows)))
    bottom = TOP + row_height * len(rows)
    count = len(rows[0][1])
    x = Axis(start_s, start_s + step_s * count, left, WIDTH - RIGHT)
    body = []
    for place, (name, values) in enumerate(rows):
        y = TOP + place * row_height
        if row_height >= 10 or place % 2 == 0:
            body.append(_text(left - 8, y + row_height / 2 + 4, name, anchor="end"))
        body += _shades(values, x, y, row_height - 1, start_s, step_s, high)
    for value in x.ticks():
        body.append(_text(x(value), bottom + 16, f"{figure_of(value)} s"))
    body += _legend(left, bottom + 26, high, unit)
    return _svg(bottom + 44, body, unit)


def _shades(
    values: Sequence[float], x: Axis, y: float, height: float, start_s: float, step_s: float, high: float
) -> list[str]:
    """Draw one row: runs of one shade as one rectangle."""
    shades = [round(min(1.0, max(0.0, value / high)) * LEVELS) if high else 0 for value in values]
    body, begin = [], 0
    for place in range(1, len(shades) + 1):
        if place < len(shades) and shades[place] == shades[begin]:
            continue
        if shades[begin]:
            at, end = x(start_s + begin * step_s), x(start_s + place * step_s)
            body.append(
                f'<rect class="heat" x="{at:.1f}" y="{y:.1f}" width="{end - at:.1f}" height="{height:.1f}" '
                f'fill-opacity="{shades[begin] / LEVELS:.2f}"/>'
            )
        begin = place
    body.append(
        f'<rect class="frame" x="{x(start_s):.1f}" y="{y:.1f}" '
        f'width="{x(start_s + step_s * len(values)) - x(start_s):.1f}" height="{height:.1f}"/>'
    )
    return body


def _legend(left: float, y: float, high: float, unit: str) -> list[str]:
    body = [_text(left, y + 10, "0", anchor="end", extra=' dx="-6"')]
    for shade in range(1, LEVELS + 1):
        body.append(
            f'<rect class="heat" x="{left + (shade - 1) * 12:.0f}" y="{y}" width="12" height="12" '
            f'fill-opacity="{shade / LEVELS:.2f}"/>'
        )
    body.append(_text(left + LEVELS * 12 + 6, y + 10, f"{figure_of(high)} {unit}", anchor="start"))
    return body


def offload_graph(flows: Sequence[tuple[str, str, int]]) -> str:
    """Draw jobs from where they came in (left) to where they ran (right), widths in proportion.

    Parameters
    ----------
    flows : sequence of (entry, executor, jobs)
        With jobs only.
    """
    total = sum(jobs for _, _, jobs in flows)
    if not total:
        return ""
    entries = list(dict.fromkeys(entry for entry, _, _ in flows))
    executors = sorted({executor for _, executor, _ in flows}, key=lambda name: (name not in entries, name))
    names = list(dict.fromkeys([*sorted(entries), *executors]))
    rows = max(len(entries), len(executors))
    gap = 6.0
    height = max(180.0, min(460.0, 34.0 * rows))
    scale = (height - gap * (rows - 1)) / total
    margin = 16 + CHARACTER * max(len(name) for name in names)
    tops = (
        _stack(sorted(entries), [(entry, jobs) for entry, _, jobs in flows], scale, gap),
        _stack(executors, [(executor, jobs) for _, executor, jobs in flows], scale, gap),
    )
    colour = {name: f"var(--c{place % COLOURS})" for place, name in enumerate(names)}
    x0, x1 = margin + 14, WIDTH - margin - 14
    body = _ribbons(sorted(flows), executors, tops, scale, (x0, x1), colour)
    for side, top in enumerate(tops):
        for name, (y, size) in top.items():
            at = x0 - 12 if not side else x1
            body.append(
                f'<rect x="{at:.1f}" y="{y + TOP:.1f}" width="12" height="{max(1.0, size):.1f}" '
                f'style="fill:{colour[name]}"/>'
            )
            label = at - 6 if not side else at + 18
            body.append(_text(label, y + TOP + size / 2 + 4, name, anchor="start" if side else "end"))
    return _svg(height + 2 * TOP, body, "jobs from entry to executor")


def _stack(
    names: Sequence[str], amounts: Sequence[tuple[str, int]], scale: float, gap: float
) -> dict[str, tuple[float, float]]:
    """Return top and height of each name's block, one below the other."""
    found, y = {}, 0.0
    for name in names:
        size = scale * sum(jobs for each, jobs in amounts if each == name)
        found[name] = (y, size)
        y += size + gap
    return found


def _ribbons(
    flows: Sequence[tuple[str, str, int]],
    executors: Sequence[str],
    tops: tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]],
    scale: float,
    ends: tuple[float, float],
    colour: dict[str, str],
) -> list[str]:
    """Draw a band per flow, in an order that crosses little."""
    left = {name: top for name, (top, _) in tops[0].items()}
    right = {name: top for name, (top, _) in tops[1].items()}
    (x0, x1), middle = ends, sum(ends) / 2
    body = []
    for entry, executor, jobs in sorted(flows, key=lambda flow: (flow[0], executors.index(flow[1]))):
        size = jobs * scale
        a, b = left[entry] + TOP, right[executor] + TOP
        left[entry] += size
        right[executor] += size
        body.append(
            f'<path class="ribbon" style="fill:{colour[entry]}" d="M{x0:.1f},{a:.1f} C{middle:.1f},{a:.1f} '
            f"{middle:.1f},{b:.1f} {x1:.1f},{b:.1f} L{x1:.1f},{b + size:.1f} C{middle:.1f},{b + size:.1f} "
            f'{middle:.1f},{a + size:.1f} {x0:.1f},{a + size:.1f} Z"><title>{escape(entry)} → {escape(executor)}: '
            f"{jobs} jobs</title></path>"
        )
    return body


def bar(parts: Sequence[tuple[str, float]]) -> str:
    """Draw shares of a whole as one bar."""
    total = sum(max(0.0, value) for _, value in parts)
    if not total:
        return ""
    body, x = [], 0.0
    for number, (name, value) in enumerate(parts):
        width = max(0.0, value) / total * WIDTH
        body.append(
            f'<rect x="{x:.1f}" y="0" width="{width:.1f}" height="22" style="fill:var(--c{number % COLOURS})">'
            f"<title>{escape(name)}: {seconds_text(value)}</title></rect>"
        )
        x += width
    return _svg(22, body, "where the time went")
