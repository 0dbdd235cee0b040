"""Results cut down to what fits a picture: many nodes become devices or bands of nodes, many steps fewer. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Final, Literal

import msgspec

from simulator.results import Result, Series

ROWS_MAX: Final = 40
"""Rows of a heat map."""
STEPS_MAX: Final = 120
"""Values in a row: a rectangle each at worst."""
ENDS_MAX: Final = 12
"""Nodes on a side of the offload graph."""


class Rows(msgspec.Struct, frozen=True, kw_only=True):
    """Values over time per node, or per band of nodes."""

    rows: list[tuple[str, list[float]]]
    start_s: float = 0.0
    step_s: float = 1.0
    note: str = ""
    """What was condensed, to be said behind a caption."""


def busy_rows(run: Result) -> Rows:
    """Return utilisations."""
    return _rows(run, "busy")


def backlog_rows(run: Result) -> Rows:
    """Return backlogs in seconds."""
    return _rows(run, "backlog")


def _rows(run: Result, field: Literal["busy", "backlog"]) -> Rows:
    measured: list[tuple[str, Series]] = []
    for node in run.nodes:
        series: Series | None = getattr(node, field)
        if series is not None and series.values:
            measured.append((node.name, series))
    if not measured:
        return Rows(rows=[])
    first = measured[0][1]
    every = -(-len(first.values) // STEPS_MAX)
    rows = [(name, _fewer(series.values, every)) for name, series in measured]
    note = ""
    if len(rows) > ROWS_MAX:
        size = -(-len(rows) // ROWS_MAX)
        rows = [_band(rows[place : place + size]) for place in range(0, len(rows), size)]
        note = f" (mean of {size} nodes a row)"
    return Rows(rows=rows, start_s=first.start_s, step_s=first.step_s * every, note=note)


def _fewer(values: Sequence[float], every: int) -> list[float]:
    parts = [values[place : place + every] for place in range(0, len(values), every)]
    return [sum(part) / len(part) for part in parts]


def _band(rows: Sequence[tuple[str, list[float]]]) -> tuple[str, list[float]]:
    name = rows[0][0] if len(rows) == 1 else f"{rows[0][0]} …"
    return name, [sum(values) / len(rows) for values in zip(*(values for _, values in rows), strict=True)]


def flow_rows(run: Result) -> tuple[list[tuple[str, str, int]], str]:
    """Return (entry, executor, jobs), by device where there are many nodes, and what to say of it."""
    if len({flow.entry for flow in run.flows} | {flow.executor for flow in run.flows}) <= ENDS_MAX:
        return [(flow.entry, flow.executor, flow.jobs) for flow in run.flows], ""
    device = {node.name: node.device for node in run.nodes}
    sums: dict[tuple[str, str], int] = defaultdict(int)
    for flow in run.flows:
        sums[device[flow.entry], device[flow.executor]] += flow.jobs
    return [(entry, executor, jobs) for (entry, executor), jobs in sums.items()], ", by device"
