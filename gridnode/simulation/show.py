"""How a run looks in a terminal: what became of the jobs, where the time went, what the nodes did. Fits 80 columns."""

import math
from collections import defaultdict
from typing import Final

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from gridnode.cli.output import millis
from gridnode.simulation.run import Outcome
from simulator.results import NodeResult, Result, Stages

_BAR: Final = 40
"""Cells of the bar that shows where the time went."""
_ROWS_MAX: Final = 12
"""Nodes listed one by one; more are shown by device."""
_STAGES: Final = (("network", "blue"), ("queue", "yellow"), ("service", "green"), ("load", "magenta"))
_SMALL: Final = 0.001


def show(outcome: Outcome) -> RenderableType:
    """Return the summary of a run."""
    result = outcome.result
    parts: list[RenderableType] = [_title(result), _jobs(result)]
    if result.answered:
        parts += [_times(result), _stages(result.stages, result.mean_s)]
    parts += [_nodes(result), _proof(outcome)]
    return Group(*(Padding(part, (0, 0, 1, 0)) for part in parts[:-1]), parts[-1])


def _title(result: Result) -> Text:
    text = Text.assemble((result.scenario, "bold"), "  ", result.about, "\n")
    text.append(f"policy {result.policy}, seed {result.seed}, {result.duration_s:g} s simulated", "dim")
    text.append(f" of which the first {result.warm_up_s:g} s do not count", "dim")
    return text


def percent(share: float) -> str:
    """Write a share in three figures.

    Examples
    --------
    >>> percent(0.5), percent(0.99951), percent(1.3), percent(0.00004), percent(0.0), percent(float("nan"))
    ('50.0 %', '99.95 %', '130.0 %', '<0.01 %', '0 %', '–')
    """
    if math.isnan(share):
        return "–"
    if share in (0.0, 1.0):
        return f"{share:.0%}".replace("%", " %")
    if share < 0.0001:
        return "<0.01 %"
    digits = 2 if 0.99 < share < 1 or share < 0.01 else 1
    return f"{share * 100:.{digits}f} %"


def _grid(*, right: int = 1) -> Table:
    table = Table.grid(padding=(0, 3, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    for _ in range(right):
        table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    return table


def _jobs(result: Result) -> Table:
    table = _grid(right=2)
    everything = result.submitted or 1
    hz = result.submitted / result.counted_s
    load = f"{percent(result.load)} of the fleet's {result.capacity_hz:.4g} jobs/s" if result.load else ""
    table.add_row("submitted", str(result.submitted), f"{hz:.4g}/s", load)
    in_time = result.answered - result.late
    table.add_row("in time", str(in_time), percent(in_time / everything), f"goodput {result.goodput_hz:.4g}/s")
    if result.late:
        table.add_row("late", str(result.late), percent(result.late / everything), "")
    for reason, count in result.refused.items():
        table.add_row(f"ended: {reason}", str(count), percent(count / everything), "")
    if result.unfinished:
        table.add_row("unfinished", str(result.unfinished), percent(result.unfinished / everything), "")
    lost = Text(str(result.lost), "bold red" if result.lost else "green")
    table.add_row("lost", lost, percent(result.lost / everything), "")
    return table


def _times(result: Result) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    for name in ("sojourn time", "mean", "p50", "p95", "p99", "max"):
        table.add_column(name, justify="left" if name == "sojourn time" else "right", no_wrap=True)
    values = (result.mean_s, result.p50_s, result.p95_s, result.p99_s, result.max_s)
    table.add_row("", *(millis(value * 1e3) for value in values))
    return table


def _stages(stages: Stages, mean_s: float) -> RenderableType:
    bar, legend = Text(), Text()
    for name, colour in _STAGES:
        value_s: float = getattr(stages, f"{name}_s")
        share = value_s / mean_s if mean_s else 0.0
        if abs(share) < _SMALL:
            continue
        bar.append("█" * max(1, round(share * _BAR)), colour)
        legend.append("■ ", colour)
        legend.append(f"{name} {millis(value_s * 1e3)} ({share:.0%})   ")
    return Group(bar, legend)


def _nodes(result: Result) -> Table:
    """Return one line per node, or per device where there are many."""
    groups: dict[str, list[NodeResult]] = defaultdict(list)
    for node in result.nodes:
        key = node.device if len(result.nodes) > _ROWS_MAX else node.name
        groups[key].append(node)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("device" if len(result.nodes) > _ROWS_MAX else "node", no_wrap=True)
    for name in ("nodes", "busy", "share", "entered", "served", "sent on", "stolen", "retries", "heard/s"):
        table.add_column(name, justify="right", no_wrap=True)
    for key, nodes in groups.items():
        count = len(nodes)
        alive = sum(node.is_alive for node in nodes)
        table.add_row(
            key,
            str(count) if alive == count else Text(f"{alive} of {count}", "red"),
            percent(sum(node.utilisation for node in nodes) / count),
            percent(sum(node.share for node in nodes)),
            *(
                str(sum(getattr(node, name) for node in nodes))
                for name in ("submitted", "executed", "jobs_out", "steals", "retries")
            ),
            f"{sum(node.heard_hz for node in nodes) / count:.1f}",
        )
    return table


def _proof(outcome: Outcome) -> Text:
    result = outcome.result
    little = result.little
    text = Text()
    text.append("✓ " if little.holds else "✗ ", "green" if little.holds else "bold red")
    text.append(
        f"Little's law: {little.number:.4g} jobs open = {little.rate_hz:.4g}/s x {millis(little.sojourn_s * 1e3)}"
    )
    text.append("\n")
    text.append("✓ " if not result.violations else "✗ ", "green" if not result.violations else "bold red")
    text.append(f"{result.violations} broken promises of cores")
    speed = f"{result.submitted / outcome.cpu_s:,.0f} jobs" if outcome.cpu_s else ""
    text.append(f"\n{result.events:,} events in {outcome.cpu_s:.1f} s of processor time, {speed} per second", "dim")
    if result.trace_hash:
        text.append(f"\ntrace {result.trace_hash}", "dim")
    return text
