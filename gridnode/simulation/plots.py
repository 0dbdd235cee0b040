"""PNG plots of results, with matplotlib, which gridnode does not ask for: without it there are none."""

import importlib.util
import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from gridnode.simulation.condense import Rows, backlog_rows, busy_rows, flow_rows
from simulator.report import Comparison
from simulator.results import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from gridnode.simulation.sweep import Sweep

HOW_TO_INSTALL: Final = "PNG plots need matplotlib: pip install matplotlib; the HTML report does without"
DPI: Final = 140
DECADE: Final = 10.0
"""Values of a parameter that are this factor apart are drawn on a logarithmic axis."""
NAME_WIDTH: Final = 24
"""Characters of a policy's name in a line."""
COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f6fb0", "#6b7680")
"""Okabe and Ito's, as in the HTML report."""


def is_available() -> bool:
    """Return whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def write(runs: Sequence[Result], directory: Path, *, comparison: Comparison | None = None) -> list[Path]:
    """Draw the plots of runs.

    Parameters
    ----------
    runs : sequence of Result
        One, or one per policy; plots of nodes are of the first.
    directory : Path
        That exists.
    comparison : Comparison, optional
        With intervals.

    Returns
    -------
    list of Path
        What was written; nothing without matplotlib.
    """
    if not is_available():
        return []
    first = runs[0]
    drawn: list[tuple[str, Callable[[Axes, Figure], object], bool]] = [
        ("cdf.png", lambda axes, _: _cdf(axes, runs), any(run.cdf for run in runs)),
        ("utilisation.png", lambda axes, figure: _heat(axes, figure, busy_rows(first), "busy", 1.0), _has(first)),
        ("backlog.png", lambda axes, figure: _heat(axes, figure, backlog_rows(first), "s waiting", None), _has(first)),
        ("offload.png", lambda axes, _: _offload(axes, first), bool(first.flows)),
    ]
    if comparison is not None:
        drawn.append(("policies.png", lambda axes, _: _policies(axes, comparison), True))
    return [_save(directory / name, draw) for name, draw, is_wanted in drawn if is_wanted]


def write_sweep(found: "Sweep", directory: Path) -> list[Path]:
    """Draw means over the first parameter, where that is a number; a line per policy and other parameters."""
    series = sweep_lines(found, "mean_s")
    if not series or not is_available():
        return []

    def draw(axes: "Axes", _: "Figure") -> None:
        for number, (name, points) in enumerate(series):
            xs, ys, halves = zip(*points, strict=True)
            bars = [half if math.isfinite(half) else 0.0 for half in halves]
            axes.errorbar(xs, ys, yerr=bars, label=name, color=COLOURS[number % len(COLOURS)], capsize=3, marker="o")
        places = sorted({x for _, points in series for x, *_ in points})
        if places[0] > 0 and places[-1] >= DECADE * places[0]:
            axes.set_xscale("log")
        axes.set_xticks(places, [f"{x:g}" for x in places])
        axes.minorticks_off()
        _seconds_axis(axes, "y")
        axes.set_xlabel(found.keys[0])
        axes.set_ylabel("mean sojourn time")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, frameon=False)

    return [_save(directory / "sweep.png", draw)]


SweepLine = tuple[str, list[tuple[float, float, float]]]
"""Name and (x, mean, half width) of a line."""


def sweep_lines(found: "Sweep", quantity: str) -> list[SweepLine]:
    """Return the lines of a sweep over its first parameter; none where that is not a number."""
    lines: dict[str, list[tuple[float, float, float]]] = {}
    for point in found.points:
        x = point.parameters[found.keys[0]] if found.keys else None
        if isinstance(x, bool) or not isinstance(x, int | float):
            return []
        rest = [f"{key}={point.parameters[key]}" for key in found.keys[1:]]
        value = point.values[quantity]
        if math.isfinite(value.mean):
            lines.setdefault(", ".join([point.policy, *rest]), []).append((float(x), value.mean, value.half))
    return [(name, sorted(points)) for name, points in lines.items()]


def _has(run: Result) -> bool:
    return bool(busy_rows(run).rows)


def _save(path: Path, draw: "Callable[[Axes, Figure], object]") -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes, figure)
    figure.savefig(path, dpi=DPI)
    return path


def _cdf(axes: "Axes", runs: Sequence[Result]) -> None:
    for number, run in enumerate(runs):
        points = [(at_s, share) for at_s, share in run.cdf if at_s > 0]
        if points:
            xs, ys = zip(*points, strict=True)
            axes.plot(xs, ys, label=run.policy, color=COLOURS[number % len(COLOURS)])
    _seconds_axis(axes)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("sojourn time")
    axes.set_ylabel("share of the answered")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _heat(axes: "Axes", figure: "Figure", rows: Rows, label: str, high: float | None) -> None:
    if not rows.rows:
        return
    values = [values for _, values in rows.rows]
    end_s = rows.start_s + rows.step_s * len(values[0])
    image = axes.imshow(
        values, aspect="auto", cmap="viridis", vmin=0, vmax=high, interpolation="nearest",
        extent=(rows.start_s, end_s, len(values) - 0.5, -0.5),
    )  # fmt: skip
    every = -(-len(values) // 25)
    axes.set_yticks(range(0, len(values), every), [name for name, _ in rows.rows][::every], fontsize=7)
    axes.set_xlabel("time in s")
    figure.colorbar(image, ax=axes, label=label)


def _offload(axes: "Axes", run: Result) -> None:
    """Draw entries and executors as two columns, and a line per flow, its width in proportion."""
    flows, note = flow_rows(run)
    most = max((jobs for *_, jobs in flows), default=1)
    entries, executors = sorted({flow[0] for flow in flows}), sorted({flow[1] for flow in flows})
    for entry, executor, jobs in flows:
        number = entries.index(entry)
        axes.plot(
            [0, 1], [_place(number, entries), _place(executors.index(executor), executors)],
            color=COLOURS[number % len(COLOURS)], linewidth=0.3 + 11 * jobs / most, alpha=0.45, solid_capstyle="butt",
        )  # fmt: skip
    for x, names in ((0.0, entries), (1.0, executors)):
        for number, name in enumerate(names):
            side = "right" if not x else "left"
            axes.text(x + (-0.03 if not x else 0.03), _place(number, names), name, ha=side, va="center", fontsize=8)
    axes.set_xlim(-0.35, 1.35)
    axes.axis("off")
    axes.set_title(f"where jobs came in, and where they ran{note}", fontsize=9)


def _seconds_axis(axes: "Axes", name: Literal["x", "y"] = "x") -> None:
    """Make an axis one of times, logarithmic."""
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axis = axes.xaxis if name == "x" else axes.yaxis
    (axes.set_xscale if name == "x" else axes.set_yscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(EngFormatter(unit="s"))
    axis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis=name, labelsize=8)


def _place(number: int, names: Sequence[str]) -> float:
    return -(number + 0.5) / len(names)


def _policies(axes: "Axes", comparison: Comparison) -> None:
    rows = [row for row in comparison.rows if math.isfinite(row.values["mean_s"].mean)]
    for number, row in enumerate(rows):
        value = row.values["mean_s"]
        half = value.half if math.isfinite(value.half) else 0.0
        axes.errorbar([value.mean], [-number], xerr=[half], fmt="o", capsize=4, color=COLOURS[number % len(COLOURS)])
    bounds = comparison.bounds
    for name, at_s, style in (
        ("zero-queue bound", bounds.zero_queue_s, ":"),
        ("static split", bounds.static_split_s, "--"),
    ):
        if at_s is not None:
            axes.axvline(at_s, linestyle=style, color="gray", label=name)
    _seconds_axis(axes)
    names = [textwrap.fill(row.policy, NAME_WIDTH) for row in rows]
    axes.set_yticks([-number for number in range(len(rows))], names, fontsize=8)
    axes.set_xlabel("mean sojourn time, with 95 % intervals")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)
