"""A report as one HTML file that needs nothing else: tables and SVG inside, no script, no request, dark and light.

Owns what stands where; `charts` draws, `plots` makes PNG files of the same where matplotlib is installed.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Final

from gridnode.simulation import charts, plots
from gridnode.simulation.condense import backlog_rows, busy_rows, flow_rows
from gridnode.simulation.numbers import Kind, interval_parts, seconds_text
from gridnode.simulation.offload import offload_graph
from gridnode.simulation.show import percent
from gridnode.simulation.style import STYLE
from gridnode.simulation.svg import COLOURS
from gridnode.simulation.tables import unwritable, write_html
from simulator.report import Bounds, Comparison, PolicyRow
from simulator.results import NodeResult, Result, Series
from simulator.statistics import Estimate

WORDS_LONG: Final = 26
"""Characters of a cell that may go on in the next line."""
NODES_LISTED: Final = 40
"""Rows of a table of nodes; more are summed up by device."""


def write(
    results: Result | Sequence[Result],
    directory: Path,
    *,
    comparison: Comparison | None = None,
    bounds: Bounds | None = None,
) -> list[Path]:
    """Write report.html, and PNG plots where matplotlib is installed.

    Parameters
    ----------
    results : Result or sequence of Result
        One run, or one per policy.
    directory : Path
        Made where it is missing; files in it are replaced.
    comparison : Comparison, optional
        With the intervals of replications.
    bounds : Bounds, optional
        Of the scenario, where there is no comparison.

    Returns
    -------
    list of Path
        What was written.

    Raises
    ------
    SimulationInputError
        When it cannot be written to.
    """
    runs = [results] if isinstance(results, Result) else list(results)
    if bounds is None and comparison is not None:
        bounds = comparison.bounds
    path = write_html(directory, render(runs, comparison=comparison, bounds=bounds))
    try:
        return [path, *plots.write(runs, directory, comparison=comparison)]
    except OSError as error:
        raise unwritable(directory, error) from None


def render(runs: Sequence[Result], *, comparison: Comparison | None = None, bounds: Bounds | None = None) -> str:
    """Return the page."""
    first = runs[0]
    parts = [_head(first, runs, comparison)]
    if comparison is not None:
        parts += [_comparison(comparison)]
    elif bounds is not None:
        parts += [f"<p>{_bounds(bounds)}</p>"]
    parts.append(_distribution(runs))
    if len(runs) == 1:
        parts.append(_run(first))
    else:
        parts.append("<h2>Each policy</h2><p class=dim>The first replication of each.</p>")
        for number, run in enumerate(runs):
            opened = " open" if not number else ""
            parts.append(f"<details{opened}><summary>{escape(run.policy)}</summary>{_run(run)}</details>")
    return page(f"{first.scenario} – simulation", parts)


def page(title: str, parts: Iterable[str]) -> str:
    """Return a whole page of parts."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>\n"
    )


# ---------------------------------------------------------------- the top


def _head(first: Result, runs: Sequence[Result], comparison: Comparison | None) -> str:
    names = [f"policy {escape(run.policy)}" for run in runs] if len(runs) == 1 else [f"{len(runs)} policies"]
    seeds = f"seed {escape(first.seed)}" if comparison is None else f"{len(comparison.seeds)} replications"
    load = f", load {percent(first.load)}" if first.load and math.isfinite(first.load) else ""
    about = (
        f"<p class=dim>{names[0]} · {seeds} · {first.duration_s:g} s simulated, the first {first.warm_up_s:g} s do not "
        f"count · {len(first.nodes)} nodes{load}</p>"
    )
    tiles = "" if len(runs) > 1 else _tiles(first)
    return f"<header><h1>{escape(first.scenario)}</h1><p>{escape(first.about)}</p>{about}</header>{tiles}"


def _tiles(run: Result) -> str:
    tiles = [
        ("jobs", f"{run.submitted:,}", f"{run.submitted / run.counted_s:.4g}/s"),
        ("in time", percent(run.within), f"{run.goodput_hz:.4g}/s"),
        ("mean", seconds_text(run.mean_s), f"median {seconds_text(run.p50_s)}"),
        ("p95", seconds_text(run.p95_s), ""),
        ("p99", seconds_text(run.p99_s), f"max {seconds_text(run.max_s)}"),
        ("offloaded", percent(run.offloaded), ""),
        ("lost", str(run.lost), f"{run.unfinished} unfinished" if run.unfinished else ""),
    ]
    cells = "".join(
        f"<div class=tile><span>{name}</span><b{' class=bad' if name == 'lost' and run.lost else ''}>{value}</b>"
        f"<small>{small}</small></div>"
        for name, value, small in tiles
    )
    return f"<div class=tiles>{cells}</div>"


def _bounds(bounds: Bounds) -> str:
    parts = []
    if bounds.zero_queue_s is not None:
        parts.append(f"no policy's mean is below {seconds_text(bounds.zero_queue_s)} (nobody waits)")
    if bounds.static_split_s is not None:
        parts.append(f"the best fixed shares reach {seconds_text(bounds.static_split_s)}")
    if bounds.goodput_ceiling is not None and bounds.goodput_ceiling < 1:
        parts.append(f"no policy answers more than {percent(bounds.goodput_ceiling)} in time")
    if bounds.note:
        parts.append(escape(bounds.note))
    text = "; ".join(parts)
    return f"Bounds: {text}." if text else ""


# ---------------------------------------------------------------- policies


def _comparison(comparison: Comparison) -> str:
    bounds = comparison.bounds
    marks = [
        (name, value)
        for name, value in (("zero-queue bound", bounds.zero_queue_s), ("static split", bounds.static_split_s))
        if value is not None
    ]
    rows = [
        (row.policy, row.values["mean_s"].low, row.values["mean_s"].mean, row.values["mean_s"].high)
        for row in comparison.rows
    ]
    chart = charts.intervals(rows, label="mean sojourn time, with 95 % intervals", marks=marks)
    return (
        f"<h2>Policies</h2>{figure(chart, '')}{comparison_table(comparison)}"
        f"<p class=dim>Means over {len(comparison.seeds)} replications with 95 % intervals (Student's t). Differences "
        f"are from {escape(comparison.rows[0].policy)}, seed by seed: all policies meet the same arrivals, so they are "
        f"known better than either mean; bold where the interval leaves 0 out. {_bounds(bounds)}</p>"
    )


def comparison_table(comparison: Comparison) -> str:
    """Return the table of policies."""
    head = [
        "policy",
        "mean",
        "difference",
        "p50",
        "p95",
        "p99",
        "in time",
        "refused",
        "offloaded",
        "/ oracle",
        "/ bound",
    ]
    return table(head, [_policy_cells(row, number) for number, row in enumerate(comparison.rows)])


def _policy_cells(row: PolicyRow, number: int) -> list[str]:
    values, less = row.values, row.less_first["mean_s"]
    difference = "–"
    if number and math.isfinite(less.mean):
        difference = with_half(less, sign=True)
        if math.isfinite(less.half) and not less.holds(0.0):
            difference = f"<b>{difference}</b>"
    over = row.mean_over_oracle
    return [
        escape(row.policy),
        with_half(values["mean_s"]),
        difference,
        *(with_half(values[name]) for name in ("p50_s", "p95_s", "p99_s")),
        *(with_half(values[name], "share") for name in ("within", "refused", "offloaded")),
        "–" if over is None else f"{over.mean:.2f}",
        "–" if row.mean_over_bound is None else f"{row.mean_over_bound:.2f}",
    ]


def with_half(value: Estimate, kind: Kind = "time", *, sign: bool = False) -> str:
    """Write an estimate as HTML."""
    mean, half, unit = interval_parts(value, kind, sign=sign)
    text = f"{mean} {unit}".strip()
    return f"{text} <i>± {half}</i>" if half else text


def _distribution(runs: Sequence[Result]) -> str:
    series = [(run.policy, [(at_s, share, 0.0) for at_s, share in run.cdf]) for run in runs if run.cdf]
    chart = charts.lines(
        series, x_label="sojourn time", y_label="share answered", log_x=True, y_high=1.0, x_text=seconds_text
    )
    return figure(chart, "Sojourn times: share of the answered that took no longer", [name for name, _ in series])


# ---------------------------------------------------------------- one run


def _run(run: Result) -> str:
    if not run.submitted:
        return f"<p>No job came in after the warm-up.</p>{_nodes(run)}{_proof(run)}"
    parts = [] if not run.answered else [_stages(run)]
    busy, backlog = busy_rows(run), backlog_rows(run)
    if busy.rows:
        chart = charts.heat_map(busy.rows, start_s=busy.start_s, step_s=busy.step_s, high=1.0, unit="busy")
        parts.append(figure(chart, f"Utilisation over time{busy.note}"))
    if backlog.rows:
        high = max((value for _, values in backlog.rows for value in values), default=0.0)
        chart = charts.heat_map(
            backlog.rows, start_s=backlog.start_s, step_s=backlog.step_s, high=high, unit="s of work waiting"
        )
        parts.append(figure(chart, f"Backlog over time: work accepted and not done yet, per slot{backlog.note}"))
    lines = [(name, _points(each)) for name, each in (("jobs open", run.open_jobs),) if each is not None]
    parts.append(figure(charts.lines(lines, x_label="time in s", y_label="jobs open"), "Jobs open in the grid"))
    flows, note = flow_rows(run)
    parts.append(figure(offload_graph(flows), f"Where jobs came in (left) and where they ran (right){note}"))
    parts += [_outcomes(run), _nodes(run), _proof(run)]
    return "".join(parts)


def _points(series: Series) -> list[tuple[float, float, float]]:
    return [(series.start_s + place * series.step_s, value, 0.0) for place, value in enumerate(series.values)]


def _stages(run: Result) -> str:
    stages = run.stages
    parts = [(name, getattr(stages, f"{name}_s")) for name in ("network", "queue", "service", "load")]
    shown = [(name, value) for name, value in parts if value > 0.0005 * run.mean_s]
    legend = [f"{name} {seconds_text(value)}" for name, value in shown]
    return figure(charts.bar(shown), f"Where the mean of {seconds_text(run.mean_s)} went", legend)


def _outcomes(run: Result) -> str:
    rows = [["in time", f"{run.answered - run.late:,}", percent(run.within)]]
    others = [("late", run.late), *run.refused.items(), ("unfinished", run.unfinished), ("lost", run.lost)]
    rows += [[escape(name), f"{count:,}", percent(count / max(1, run.submitted))] for name, count in others]
    hops = ", ".join(f"{count:,} moved {number}x" for number, count in enumerate(run.hops) if count)
    return f"<h3>Outcomes</h3>{table(['outcome', 'jobs', 'share'], rows)}<p class=dim>{hops}</p>"


def _nodes(run: Result) -> str:
    groups: dict[str, list[NodeResult]] = defaultdict(list)
    for node in run.nodes:
        groups[node.name if len(run.nodes) <= NODES_LISTED else node.device].append(node)
    head = ["node", "device", "busy", "share", "entered", "served", "sent on", "stolen", "retries", "records heard/s"]
    rows = []
    for name, nodes in groups.items():
        count = len(nodes)
        alive = sum(node.is_alive for node in nodes)
        label = escape(name) if alive == count else f"{escape(name)} <b class=bad>{count - alive} dead</b>"
        rows.append(
            [
                label,
                escape(nodes[0].device) if count == 1 else f"{count} nodes",
                percent(sum(node.utilisation for node in nodes) / count),
                percent(sum(node.share for node in nodes)),
                *(
                    f"{sum(getattr(node, field) for node in nodes):,}"
                    for field in ("submitted", "executed", "jobs_out", "steals", "retries")
                ),
                f"{sum(node.heard_hz for node in nodes) / count:.1f}",
            ]
        )
    return f"<h3>Nodes</h3>{table(head, rows, left=2)}"


def _proof(run: Result) -> str:
    little = run.little
    law = "✓" if little.holds else "<b class=bad>✗</b>"
    kept = "✓" if not run.violations else "<b class=bad>✗</b>"
    return (
        f"<p class=dim>{law} Little's law: {little.number:.4g} jobs open = {little.rate_hz:.4g}/s × "
        f"{seconds_text(little.sojourn_s)}. {kept} {run.violations} broken promises of cores. {run.events:,} events."
        f"{' Trace ' + run.trace_hash if run.trace_hash else ''}</p>"
    )


# ---------------------------------------------------------------- pieces


def figure(chart: str, caption: str, legend: Sequence[str] = ()) -> str:
    """Return a chart with its caption and the names of its colours; nothing without a chart."""
    if not chart:
        return ""
    keys = "".join(
        f'<span class=key><i style="background:var(--c{number % COLOURS})"></i>{escape(name)}</span>'
        for number, name in enumerate(legend)
    )
    title = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{title}{chart}<div class=keys>{keys}</div></figure>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a table of cells that are HTML; the first columns are words."""
    cells = "".join(f"<th{' class=w' if place < left else ''}>{name}</th>" for place, name in enumerate(head))
    body = "".join(
        "<tr>"
        + "".join(_words(cell) if place < left else f"<td>{cell}</td>" for place, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    return f"<div class=scroll><table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>"


def _words(cell: str) -> str:
    """Return a cell of words."""
    return f'<td class="w long">{cell}</td>' if len(cell) > WORDS_LONG else f"<td class=w>{cell}</td>"
