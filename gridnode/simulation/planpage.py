"""The HTML report of a plan: how many deadlines each variant of a fleet misses, and how long its jobs take."""

import math
from html import escape
from pathlib import Path
from typing import Final

from gridnode.simulation import charts
from gridnode.simulation.numbers import seconds_text
from gridnode.simulation.page import figure, page, table, with_half
from gridnode.simulation.plan import Plan, Variant
from gridnode.simulation.recordedload import Observed
from gridnode.simulation.show import percent
from gridnode.simulation.tables import write_html

NOW: Final = "as it is"
RECORDED: Final = "recorded"
Row = tuple[str, float, float, float]
"""Name, low, mean and high."""


def write(found: Plan, directory: Path) -> list[Path]:
    """Write report.html; raises SimulationInputError."""
    return [write_html(directory, render(found))]


def render(found: Plan) -> str:
    """Return the page."""
    observed = found.observed
    parts = [
        f"<header><h1>{escape(found.scenario)}</h1><p>{escape(found.about)}</p><p class=dim>policy "
        f"{escape(found.policy)} · {found.replications} replications, all variants under the same arrivals; means with "
        f"95 % intervals{'' if observed is None else ' · ' + _recorded(observed)}</p></header>",
        _missed(found),
        _times(found),
        table(
            ["what if", "nodes", "load", "missed", "difference", "mean", "p95", "p99", "at best"],
            [*_observed_cells(observed), *(_cells(each, number) for number, each in enumerate(found.variants))],
        ),
        "<p class=dim>Missed: jobs not answered within their deadline. Differences are from the fleet as it is, seed "
        "by seed; bold where the interval leaves 0 out. At best: what any policy must miss.</p>",
    ]
    if found.notes:
        parts.append("<ul>" + "".join(f"<li>{escape(note)}</li>" for note in found.notes) + "</ul>")
    return page(f"{found.scenario} – plan", parts)


def _recorded(observed: Observed) -> str:
    return (
        f"recorded: {observed.jobs:,} jobs of {observed.cameras} cameras at {observed.nodes} nodes in "
        f"{seconds_text(observed.span_s)}"
    )


def _rows(found: Plan, quantity: str, recorded: float | None) -> list[Row]:
    """Return a row per variant, and what really happened before them."""
    rows: list[Row] = [] if recorded is None else [(RECORDED, math.nan, recorded, math.nan)]
    for each in found.variants:
        value = each.values[quantity]
        rows.append((each.what_if or NOW, value.low, value.mean, value.high))
    return rows


def _missed(found: Plan) -> str:
    rows = _rows(found, "miss", None if found.observed is None else found.observed.miss)
    if not any(mean > 0 for _, _, mean, _ in rows):
        return "<p>No variant misses a deadline.</p>"
    chart = charts.intervals(
        rows, label="share of the jobs, with 95 % intervals", log=False, text=lambda value: f"{value * 100:.3g} %"
    )
    return figure(chart, "Deadlines missed")


def _times(found: Plan) -> str:
    rows = _rows(found, "mean_s", None if found.observed is None else found.observed.mean_s)
    return figure(charts.intervals(rows, label="with 95 % intervals"), "Mean sojourn time of the answered")


def _observed_cells(observed: Observed | None) -> list[list[str]]:
    if observed is None:
        return []
    times = [seconds_text(value_s) for value_s in (observed.mean_s, observed.p95_s, observed.p99_s)]
    return [[RECORDED, "", "", percent(observed.miss), "", *times, ""]]


def _cells(each: Variant, number: int) -> list[str]:
    less, ceiling = each.less_now["miss"], each.bounds.goodput_ceiling
    difference = "–"
    if number and math.isfinite(less.mean):
        difference = with_half(less, "points", sign=True)
        if math.isfinite(less.half) and not less.holds(0.0):
            difference = f"<b{' class=bad' if less.mean > 0 else ''}>{difference}</b>"
    return [
        escape(each.what_if or NOW),
        f"{each.nodes:,}",
        f"{each.load:.3g}",
        with_half(each.values["miss"], "share"),
        difference,
        *(with_half(each.values[name]) for name in ("mean_s", "p95_s", "p99_s")),
        "–" if ceiling is None else percent(1 - ceiling),
    ]
