"""The HTML report of a sweep: a line per policy over the first parameter, and every combination as a table."""

from html import escape
from pathlib import Path
from typing import Final

from gridnode.simulation import charts, plots
from gridnode.simulation.numbers import seconds_text
from gridnode.simulation.page import figure, page, table, with_half
from gridnode.simulation.sweep import Sweep
from gridnode.simulation.tables import unwritable, write_html

DRAWN: Final = (
    ("mean_s", "Mean sojourn time", "seconds"),
    ("p99_s", "99 % quantile of the sojourn time", "seconds"),
    ("within", "Answered within the deadline", "share of the jobs"),
)
"""Quantity, caption and label of its axis."""

SHARES: Final = ("within", "refused")


def write(found: Sweep, directory: Path) -> list[Path]:
    """Write report.html, and a PNG plot where matplotlib is installed; raises SimulationInputError."""
    path = write_html(directory, render(found))
    try:
        return [path, *plots.write_sweep(found, directory)]
    except OSError as error:
        raise unwritable(directory, error) from None


def render(found: Sweep) -> str:
    """Return the page."""
    parts = [
        f"<header><h1>{escape(found.scenario)}</h1><p>{escape(found.about)}</p><p class=dim>{len(found.points)} "
        f"combinations, {found.replications} replications of each under the same seeds; means with 95 % intervals</p>"
        "</header>"
    ]
    parts += [_chart(found, *each) for each in DRAWN] if _is_numeric(found) else [_rows(found)]
    head = [*found.keys, "policy", "load", "mean", "p95", "p99", "in time", "refused", "bound"]
    rows = []
    for point in found.points:
        bound_s = point.bounds.zero_queue_s
        rows.append(
            [
                *(escape(str(point.parameters[key])) for key in found.keys),
                escape(point.policy),
                f"{point.load:.3g}",
                *(
                    with_half(point.values[name], "share" if name in SHARES else "time")
                    for name in ("mean_s", "p95_s", "p99_s", "within", "refused")
                ),
                "–" if bound_s is None else seconds_text(bound_s),
            ]
        )
    parts.append(table([escape(name) for name in head], rows, left=len(found.keys) + 1))
    return page(f"{found.scenario} – sweep", parts)


def _is_numeric(found: Sweep) -> bool:
    """Return whether the first parameter can be an axis."""
    return bool(plots.sweep_lines(found, "mean_s"))


def _rows(found: Sweep) -> str:
    """Draw the means of all combinations, a row each, where no parameter can be an axis."""
    rows = []
    for point in found.points:
        value, texts = point.values["mean_s"], [str(point.parameters[key]) for key in found.keys]
        rows.append((", ".join([*texts, point.policy]), value.low, value.mean, value.high))
    return figure(charts.intervals(rows, label="with 95 % intervals"), "Mean sojourn time")


def _chart(found: Sweep, quantity: str, caption: str, label: str) -> str:
    lines = plots.sweep_lines(found, quantity)
    xs = [x for _, points in lines for x, *_ in points]
    is_time = quantity != "within"
    chart = charts.lines(
        lines,
        x_label=found.keys[0] if found.keys else "",
        y_label=label,
        log_x=bool(xs) and min(xs) > 0 and max(xs) >= plots.DECADE * min(xs),
        log_y=is_time,
        y_high=None if is_time else 1.0,
        is_measured=True,
    )
    return figure(chart, caption, [name for name, _ in lines])
