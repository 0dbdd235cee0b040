"""Charts as inline SVG, without any library: colours are the page's CSS variables, so they are right in dark and light.

Owns geometry; knows names and numbers only. `page` sets them in HTML, `plots` draws the same as PNG with matplotlib.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import Final

from gridnode.simulation.numbers import seconds_text
from gridnode.simulation.svg import (
    BOTTOM,
    CHARACTER,
    COLOURS,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Axis,
    figure_of,
    svg,
    text_at,
)

ROW: Final = 26
"""Height of a row of dots."""
DASHES: Final = ("none", "9 5", "2 5", "9 4 2 4")
LEVELS: Final = 12
"""Shades of a heat map: neighbours of one shade are one rectangle."""

Label = Callable[[float], str]
"""Writes a value of an axis."""


def _grid(x: Axis, y: Axis, x_ticks: Sequence[float], x_label: str, y_label: str, x_text: Label) -> list[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    body = []
    for value in x_ticks:
        at = x(value)
        body.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        body.append(text_at(at, bottom + 16, x_text(value)))
    for value in y.ticks():
        at = y(value)
        body.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        body.append(text_at(LEFT - 6, at + 4, figure_of(value), anchor="end"))
    body.append(text_at((LEFT + right) / 2, HEIGHT - 6, x_label, extra=' class="axis"'))
    middle = (TOP + bottom) / 2
    turned = f' class="axis" transform="rotate(-90 14 {middle:.0f})"'
    body.append(text_at(14, middle, y_label, extra=turned))
    return body


Points = Sequence[tuple[float, float, float]]
"""Points (x, y, half width of y's interval), ascending in x; a half of 0 is none."""


def lines(
    series: Sequence[tuple[str, Points]],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    y_high: float | None = None,
    x_text: Label = figure_of,
    is_measured: bool = False,
) -> str:
    """Draw series as lines.

    Parameters
    ----------
    series : sequence of (name, points)
        What to draw.
    x_label, y_label : str
        With units.
    log_x, log_y : bool
        Logarithmic axes, for values above 0.
    y_high : float, optional
        End of the y axis; the largest value by default.
    x_text : callable
        Writes a value of the x axis.
    is_measured : bool, default False
        Whether the points are all that is known: each gets a dot and a tick, and lines that cover one another are
        broken so that both are seen.
    """
    points = [point for _, each in series for point in each if all(map(math.isfinite, point[:2]))]
    xs, ys = [x for x, *_ in points if not log_x or x > 0], [y for _, y, _ in points if not log_y or y > 0]
    if not xs or not ys:
        return ""
    x = Axis(min(xs), max(xs), LEFT + 8 * is_measured, WIDTH - RIGHT - 8 * is_measured, log=log_x)
    low = min(ys) * 0.9 if log_y else 0.0
    y = Axis(low, y_high or max(ys) * (1.1 if is_measured else 1.0), HEIGHT - BOTTOM, TOP, log=log_y)
    ticks = _apart(sorted(set(xs)) if is_measured else x.ticks(), x, x_text)
    body = _grid(x, y, ticks, x_label, y_label, x_text)
    for number, (name, each) in enumerate(series):
        known = [point for point in each if math.isfinite(point[0]) and math.isfinite(point[1])]
        path = " ".join(f"{x(px):.1f},{y(py):.1f}" for px, py, _ in known)
        style = f"stroke:var(--c{number % COLOURS})"
        if is_measured:
            body += _dots(known, x, y, number % COLOURS)
            style += f";stroke-dasharray:{DASHES[number % len(DASHES)]}"
        body.append(f'<polyline class="line" style="{style}" points="{path}"><title>{escape(name)}</title></polyline>')
    return svg(HEIGHT, body, f"{y_label} over {x_label}")


def _apart(values: Sequence[float], x: Axis, x_text: Label) -> list[float]:
    """Return the values whose labels do not touch that of the one before."""
    kept: list[float] = []
    for value in values:
        width = CHARACTER * max(len(x_text(each)) for each in (value, kept[-1] if kept else value))
        if not kept or x(value) - x(kept[-1]) > width + 8:
            kept.append(value)
    return kept


def _dots(points: Points, x: Axis, y: Axis, colour: int) -> list[str]:
    """Draw points with their intervals."""
    body = []
    for px, py, half in points:
        at = f"{x(px):.1f}"
        if math.isfinite(half) and half > 0:
            low, high = (y(each) for each in (py - half, py + half))
            body.append(
                f'<line class="whisker thin" style="stroke:var(--c{colour})" x1="{at}" x2="{at}" y1="{low:.1f}" '
                f'y2="{high:.1f}"/>'
            )
        body.append(f'<circle cx="{at}" cy="{y(py):.1f}" r="3" style="fill:var(--c{colour})"/>')
    return body


def intervals(
    rows: Sequence[tuple[str, float, float, float]],
    *,
    label: str,
    marks: Sequence[tuple[str, float]] = (),
    log: bool = True,
    text: Label = seconds_text,
) -> str:
    """Draw means with their intervals, a row each.

    Parameters
    ----------
    rows : sequence of (name, low, mean, high)
        Of a logarithmic axis above 0; rows without a mean are left out.
    label : str
        Of the axis.
    marks : sequence of (name, value)
        Vertical lines, such as bounds.
    log : bool, default True
        Whether the axis is logarithmic; otherwise it begins at 0.
    text : callable
        Writes a value.
    """
    kept = [row for row in rows if math.isfinite(row[2]) and (row[2] > 0 or not log)]
    values = [value for _, *each in kept for value in each if math.isfinite(value) and (value > 0 or not log)]
    values += [value for _, value in marks if value > 0]
    if not kept:
        return ""
    left = 16 + CHARACTER * max(len(name) for name, *_ in kept)
    height = TOP + ROW * len(kept) + BOTTOM + 14 * len(marks)
    x = Axis(min(values) * 0.9 if log else 0.0, max(values) * 1.1, left, WIDTH - RIGHT - 12, log=log)
    bottom = TOP + ROW * len(kept)
    body = []
    for value in _apart(x.ticks(), x, text):
        at = x(value)
        body.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        body.append(text_at(at, bottom + 16, text(value)))
    for number, (name, value) in enumerate(marks):
        at = x(value)
        body.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        said = f"{name} {text(value)}"
        body.append(
            text_at(max(at, 4 + CHARACTER * len(said) / 2), bottom + 31 + 14 * number, said, extra=' class="note"')
        )
    for number, (name, low, mean, high) in enumerate(kept):
        at_y = TOP + ROW * number + ROW / 2
        colour = f"var(--c{number % COLOURS})"
        body.append(text_at(left - 8, at_y + 4, name, anchor="end"))
        if math.isfinite(low) and math.isfinite(high):
            body.append(
                f'<line class="whisker" style="stroke:{colour}" x1="{x(low):.1f}" x2="{x(high):.1f}" '
                f'y1="{at_y}" y2="{at_y}"/>'
            )
        body.append(f'<circle cx="{x(mean):.1f}" cy="{at_y}" r="4.5" style="fill:{colour}">')
        body.append(f"<title>{escape(name)}: {escape(text(mean))}</title></circle>")
    body.append(text_at((left + WIDTH - RIGHT) / 2, height - 4, label, extra=' class="axis"'))
    return svg(height, body, label)


def pairs(rows: Sequence[tuple[str, float, float]], *, label: str, text: Label) -> str:
    """Draw two values per name on one axis from 0: the first a dot, the second a ring.

    Parameters
    ----------
    rows : sequence of (name, first, second)
        Finite, 0 or more.
    label : str
        Of the axis.
    text : callable
        Writes a value.
    """
    if not rows:
        return ""
    left = 16 + CHARACTER * max(len(name) for name, *_ in rows)
    bottom = TOP + ROW * len(rows)
    x = Axis(0.0, max(max(values) for _, *values in rows) * 1.05, left, WIDTH - RIGHT - 12)
    body = []
    for value in _apart(x.ticks(), x, text):
        at = x(value)
        body.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>')
        body.append(text_at(at, bottom + 16, text(value)))
    for number, (name, first, second) in enumerate(rows):
        at_y = TOP + ROW * number + ROW / 2
        body.append(text_at(left - 8, at_y + 4, name, anchor="end"))
        body.append(
            f'<line class="grid" x1="{x(first):.1f}" x2="{x(second):.1f}" y1="{at_y}" y2="{at_y}"/>'
            f'<circle cx="{x(first):.1f}" cy="{at_y}" r="4.5" style="fill:var(--c0)"/>'
            f'<circle class="ring" cx="{x(second):.1f}" cy="{at_y}" r="6.5" style="stroke:var(--c1)"/>'
        )
    body.append(text_at((left + WIDTH - RIGHT) / 2, bottom + BOTTOM - 8, label, extra=' class="axis"'))
    return svg(bottom + BOTTOM, body, label)


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
        if row_height >= 12 or place % 2 == 0:
            body.append(text_at(left - 8, y + row_height / 2 + 4, name, anchor="end"))
        body += _shades(values, x, y, row_height - 1, start_s, step_s, high)
    for value in x.ticks():
        body.append(text_at(x(value), bottom + 16, f"{figure_of(value)} s"))
    body += _legend(left, bottom + 26, high, unit)
    return svg(bottom + 44, body, unit)


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
    body = [text_at(left, y + 10, "0", anchor="end", extra=' dx="-6"')]
    for shade in range(1, LEVELS + 1):
        body.append(
            f'<rect class="heat" x="{left + (shade - 1) * 12:.0f}" y="{y}" width="12" height="12" '
            f'fill-opacity="{shade / LEVELS:.2f}"/>'
        )
    body.append(text_at(left + LEVELS * 12 + 6, y + 10, f"{high:.3g} {unit}", anchor="start"))
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
    return svg(22, body, "where the time went")
