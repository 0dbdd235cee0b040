"""How the demo looks: a live table while it runs, a summary at its end. Pure: numbers in, renderables out.

Fits 80 columns.
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from gridnode.cli.output import millis
from gridnode.demo.plan import Plan
from gridnode.demo.tally import Summary
from models.average_precision import AveragePrecision

EVENTS_SHOWN: Final = 5
LOAD_CELLS: Final = 10
WIDTH_MAX: Final = 100
"""Columns used at most; a wider table is harder to read."""
IN_TIME_GOAL: Final = 0.95
_STATE_STYLES: Final = {"alive": "green", "killed": "bold red", "starting": "yellow", "joining": "yellow"}


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the live table."""

    name: str
    role: str
    """entry, or nothing."""
    cpu_share: float | None
    """None for a node that somebody else added."""
    state: str
    load: float
    """Share of its worker's time that was spent on frames lately, 0..1."""
    executed: int
    share: float
    """Share of all answers, 0..1."""
    p50_ms: float | None
    p99_ms: float | None
    offloaded: int
    stolen: int


class View(msgspec.Struct, frozen=True, kw_only=True):
    """The live table."""

    elapsed_s: float
    seconds: float
    sent: int
    answered: int
    refused: int
    open: int
    in_time: float
    """Share of the frames whose outcome is known, 0..1."""
    p50_ms: float | None
    p99_ms: float | None
    nodes: tuple[NodeView, ...]
    events: tuple[tuple[float, str], ...]
    """(seconds since the start, text)."""


def live_view(view: View, plan: Plan, *, columns: int) -> RenderableType:
    """Draw the demo while it runs."""
    parts: list[RenderableType] = [
        _progress(view),
        Text(plan_text(plan), style="dim"),
        "",
        _counts(view),
        "",
        _nodes(view.nodes),
        "",
    ]
    parts += [_event(at_s, text) for at_s, text in view.events[-EVENTS_SHOWN:]]
    parts += [""] * (EVENTS_SHOWN - len(view.events))
    return Panel(Group(*parts), title="gridnode demo", border_style="cyan", width=min(columns, WIDTH_MAX))


def plan_text(plan: Plan) -> str:
    """Say what is sent and why that is too much for one."""
    cameras = f"{plan.cameras} cameras send" if plan.cameras > 1 else "1 camera sends"
    return (
        f"{cameras} {plan.fps:g} frames/s into the slowest node, {plan.overload:.1f}x what it holds alone "
        f"({plan.alone_fps:g}/s); all nodes together hold {plan.grid_fps:g}/s"
    )


def _progress(view: View) -> RenderableType:
    bar = Table.grid(expand=True, padding=(0, 1))
    bar.add_column(no_wrap=True)
    bar.add_column(ratio=1)
    done = min(view.elapsed_s, view.seconds)
    bar.add_row(f"{_clock(done)} / {_clock(view.seconds)}", ProgressBar(total=view.seconds, completed=done))
    return bar


def _counts(view: View) -> RenderableType:
    table = Table.grid(expand=True)
    for _ in range(7):
        table.add_column(justify="center")
    good = view.in_time >= IN_TIME_GOAL
    figures = [
        (f"{view.sent}", "sent", ""),
        (f"{view.answered}", "answered", "green"),
        (f"{view.refused}", "refused", "yellow" if view.refused else ""),
        (f"{view.open}", "in flight", ""),
        (f"{view.in_time:.1%}", "in time", "green" if good else "red"),
        (millis(view.p50_ms), "p50", ""),
        (millis(view.p99_ms), "p99", ""),
    ]
    table.add_row(*(Text(value, style=f"bold {style}".strip()) for value, _, style in figures))
    table.add_row(*(Text(name, style="dim") for _, name, _ in figures))
    return table


def _nodes(nodes: Sequence[NodeView]) -> Table:
    table = Table(box=None, expand=True, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("node", no_wrap=True)
    table.add_column("cpu", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("load", no_wrap=True)
    for name in ("frames", "share", "p50", "p99", "moved", "stolen"):
        table.add_column(name, justify="right", no_wrap=True)
    for node in nodes:
        table.add_row(
            Text.assemble((node.name, "bold"), (f" {node.role}" if node.role else "", "dim")),
            "–" if node.cpu_share is None else f"{node.cpu_share:.0%}",
            Text(node.state, style=_STATE_STYLES.get(node.state, "")),
            _load(node.load),
            str(node.executed),
            f"{node.share:.0%}",
            millis(node.p50_ms),
            millis(node.p99_ms),
            str(node.offloaded),
            str(node.stolen),
        )
    return table


def _load(load: float) -> Text:
    cells = round(min(max(load, 0.0), 1.0) * LOAD_CELLS)
    style = "red" if load > 0.9 else "yellow" if load > 0.6 else "green"
    return Text.assemble(("█" * cells, style), ("░" * (LOAD_CELLS - cells), "dim"))


def _event(at_s: float, text: str) -> Text:
    return Text.assemble((f"{_clock(at_s)}  ", "dim"), text, overflow="ellipsis", no_wrap=True)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


# ---------------------------------------------------------------- the end


def summary_view(
    summary: Summary,
    precision: dict[str, AveragePrecision],
    *,
    refusals: dict[str, int],
    pictures: str,
    columns: int,
) -> RenderableType:
    """Draw the end of a demo."""
    parts: list[RenderableType] = [_verdict(summary), "", _summary_nodes(summary), "", _figures(summary, precision)]
    if refusals:
        named = ", ".join(f"{count} {name}" for name, count in sorted(refusals.items()))
        parts.append(Text(f"refused by name: {named}", style="yellow"))
    if pictures:
        parts += ["", Text.assemble("pictures with boxes: ", (pictures, "bold"), overflow="fold")]
    good = summary.frames_lost == 0
    return Panel(Group(*parts), title="summary", border_style="green" if good else "red", width=min(columns, WIDTH_MAX))


def _verdict(summary: Summary) -> Text:
    in_time = summary.frames_sent - summary.deadline_misses
    share = in_time / summary.frames_sent if summary.frames_sent else 0.0
    lost = summary.frames_lost
    return Text.assemble(
        (f"{lost} frames lost", "bold green" if not lost else "bold red"),
        f" of {summary.frames_sent}: {summary.frames_answered} answered, {summary.frames_refused} refused by name; ",
        (f"{share:.1%} in time", "bold green" if share >= IN_TIME_GOAL else "bold red"),
    )


def _summary_nodes(summary: Summary) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("node")
    for name in ("frames", "share", "service"):
        table.add_column(name, justify="right")
    table.add_column("")
    table.add_column("peer id", style="dim", overflow="fold")
    total = max(1, summary.frames_answered)
    for node in summary.nodes:
        share = node.executed / total
        table.add_row(
            Text(node.name, style="bold"),
            str(node.executed),
            f"{share:.0%}",
            millis(node.service_ms),
            Text("█" * round(share * 20), style="cyan"),
            f"…{node.peer_id[-8:]}",
        )
    return table


def _figures(summary: Summary, precision: dict[str, AveragePrecision]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    table.add_row("time to answer", f"p50 {millis(summary.p50_ms)}, p99 {millis(summary.p99_ms)}")
    table.add_row("moved", f"{summary.offloaded} offloaded, {summary.stolen} stolen")
    for model, found in precision.items():
        classes = ", ".join(f"{name} {value:.2f}" for name, value in found.per_class.items())
        table.add_row(f"mAP@0.5 {model or 'overall'}", f"{found.mean:.3f}  ({classes})")
    if summary.joined_late_s is not None:
        table.add_row("late node", f"answered its first frame {summary.joined_late_s:.1f} s after it was invited")
    return table
