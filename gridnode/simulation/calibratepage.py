"""The HTML report of a calibration: daemons and simulator side by side, times over load and shares of the nodes."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from gridnode.simulation import charts
from gridnode.simulation.calibration import GOAL, STALL_MAX_S, Calibration, LoadReport
from gridnode.simulation.numbers import seconds_text
from gridnode.simulation.page import figure, page, table
from gridnode.simulation.show import percent
from gridnode.simulation.tables import write_html

DRAWN: Final = (("mean_s", "mean"), ("p95_s", "p95"))
LISTED: Final = (("mean_s", "mean"), ("p50_s", "p50"), ("p95_s", "p95"))


def write(found: Calibration, directory: Path) -> list[Path]:
    """Write report.html; raises SimulationInputError."""
    return [write_html(directory, render(found))]


def render(found: Calibration) -> str:
    """Return the page."""
    costs = found.costs
    parts = [
        "<header><h1>Simulator beside five daemons</h1>"
        f"<p>The largest difference of mean and p95 is {percent(found.worst)}; at most {GOAL * 100:g} % is aimed at. "
        f"Proves {escape(found.proves)}.</p><p class=dim>{found.seconds:g} s per load · {escape(found.machine)} · "
        f"{found.cores} processors</p></header>",
        _times(found.loads),
        _differences(found.loads),
    ]
    parts += [_shares(each) for each in found.loads]
    parts.append(
        "<p class=dim>Noise: 95 % of single runs lie within, by the simulator's own scatter over seeds; differences "
        f"below it mean nothing. Measured on the idle grid and given to the simulator: {seconds_text(costs.socket_s)} "
        f"to the daemon and back, {seconds_text(costs.execution_s)} an execution, {seconds_text(costs.move_s)} a move."
        "</p>"
    )
    return page("calibration", parts)


def _times(loads: Sequence[LoadReport]) -> str:
    """Draw daemons and simulator over load; the simulator has the interval that single runs fall into."""
    series = []
    for field, name in DRAWN:
        daemon = [(each.load, getattr(each.daemon, field), 0.0) for each in loads]
        simulator = [
            (each.load, value := getattr(each.simulator, field), value * getattr(each.noise, field)) for each in loads
        ]
        series += [(f"daemons, {name}", sorted(daemon)), (f"simulator, {name}", sorted(simulator))]
    chart = charts.lines(
        series, x_label="load, as a share of what the fleet can serve", y_label="sojourn time in s", is_measured=True
    )
    return figure(chart, "Sojourn times, with the range of 95 % of single runs", [name for name, _ in series])


def _differences(loads: Sequence[LoadReport]) -> str:
    rows = []
    for each in loads:
        for number, (field, name) in enumerate(LISTED):
            difference = getattr(each.difference, field)
            said = f"{difference * 100:+.1f} %"
            rows.append(
                [
                    f"{each.load:g}" if not number else "",
                    name,
                    seconds_text(getattr(each.daemon, field)),
                    seconds_text(getattr(each.simulator, field)),
                    said if abs(difference) <= GOAL else f"<b class=bad>{said}</b>",
                    f"± {getattr(each.noise, field) * 100:.1f} %",
                ]
            )
    head = ["load", "", "daemons", "simulator", "difference", "noise"]
    return table(head, rows, left=2)


def _shares(each: LoadReport) -> str:
    rows = [(share.node, share.daemon, share.simulator) for share in each.shares]
    rows.append(("moved", each.moved_daemon, each.moved_simulator))
    chart = charts.pairs(rows, label="share of the jobs", text=lambda value: f"{value * 100:.3g} %")
    stood = ""
    if each.stall_s > STALL_MAX_S:
        stood = (
            f" <b class=bad>The machine stood still for {seconds_text(each.stall_s)}: this load is not comparable.</b>"
        )
    note = (
        f"<p class=dim>{each.jobs:,} jobs, {each.failed:,} failed, {each.cpu:.2f} processors busy; sent at most "
        f"{seconds_text(each.lateness_s)} late (p95), the latest {seconds_text(each.stall_s)}.{stood}</p>"
    )
    return figure(chart, f"Who served, at load {each.load:g}", ["daemons", "simulator"]) + note
