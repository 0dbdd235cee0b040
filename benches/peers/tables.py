"""A run as tables: the same rows for the terminal and for Markdown. Pure but for drawing on the console it is given."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benches.peers.goals import Judgement

if TYPE_CHECKING:
    from rich.console import Console

BEGIN = "<!-- figures: written by make bench-peers, do not edit -->"
END = "<!-- end of figures -->"
DEPTHS = (1, 8, 32)


@dataclass(frozen=True)
class Table:
    """Text in rows; the first columns are words, the others numbers."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: tuple[int, ...] = (0,)
    """Columns of words, aligned to the left."""
    note: str = ""


class MarkerError(Exception):
    """A file has no place for the figures."""


def number(value: object, *, unit: str = "") -> str:
    """Write a figure with three digits that matter, a missing one as a dash.

    Examples
    --------
    >>> number(0.12345), number(12.345), number(1234.5), number(None)
    ('0.123', '12.3', '1,234', '-')
    """
    if not isinstance(value, int | float):
        return "-"
    magnitude = abs(value)
    digits = 0 if magnitude >= 100 else 1 if magnitude >= 10 else 2 if magnitude >= 1 else 3
    return f"{value:,.{digits}f}{unit}"


def times(value: object) -> str:
    """Write a ratio.

    Examples
    --------
    >>> times(0.254), times(12.34), times(None)
    ('0.25x', '12.3x', '-')
    """
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.0f}x" if value >= 100 else f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"


def against_grpc(way: str, row: Mapping[str, Any], key: str = "vs_grpc") -> str:
    """Write the ratio to gRPC: to the encrypted one for what is encrypted between machines."""
    tls = way.startswith("remote")
    text = times(row.get(f"{key}_tls" if tls else key))
    return f"{text} (TLS)" if tls and text != "-" else text


def latency_table(workload: str, rows: Mapping[str, Mapping[str, Any]], document: Mapping[str, Any]) -> Table:
    """Return the table of one workload."""
    about = document["ways"]
    body = [
        (
            about[way]["label"],
            about[way]["encrypted"],
            str(about[way]["between"]),
            number(row.get("p50_ms")),
            number(row.get("p99_ms")),
            number(row.get("cpu_ms")),
            times(row.get("vs_inprocess")),
            against_grpc(way, row),
            against_grpc(way, row, "cpu_vs_grpc"),
        )
        for way, row in rows.items()
    ]
    columns = ("way", "encrypted", "between", "p50 ms", "p99 ms", "CPU ms", "p50/in-process", "p50/gRPC", "CPU/gRPC")
    return Table(_workload_title(workload, document), columns, tuple(body), left=(0, 1), note=_errors(rows, about))


def throughput_table(workload: str, rows: Mapping[str, Mapping[str, Any]], document: Mapping[str, Any]) -> Table:
    """Return requests per second of one workload, with the ratio to two threads in process."""
    about = document["ways"]
    body = []
    for way, row in rows.items():
        cells = [about[way]["label"], about[way]["encrypted"]]
        cells += [number(row.get(f"rps_{depth}")) for depth in DEPTHS]
        cells += [times(row.get(f"rps_{depth}_vs_inprocess")) for depth in DEPTHS]
        cells += [str(row.get("unanswered", 0))]
        body.append(tuple(cells))
    columns = ("way", "encrypted", *(f"{depth} in flight" for depth in DEPTHS))
    columns += (*(f"{depth}/in-process" for depth in DEPTHS), "unanswered")
    title = f"requests/s, {_workload_title(workload, document)}"
    return Table(title, columns, tuple(body), left=(0, 1), note=_errors(rows, about))


def standing_table(document: Mapping[str, Any]) -> Table:
    """Return what servers cost before and between requests."""
    about = document["ways"]
    body = [
        (
            about[way]["label"],
            number(row.get("cold_s")),
            number(row.get("pss_mb")),
            number(100 * row["idle_cpu"]) if "idle_cpu" in row else "-",
            str(row.get("processes", "-")),
        )
        for way, row in document["standing"].items()
    ]
    columns = ("way", "cold start s", "idle PSS MB", "idle CPU %", "processes")
    return Table(
        "squeezenet loaded: first right answer, then nobody asks",
        columns,
        tuple(body),
        note=_errors(document["standing"], about),
    )


def grid_table(document: Mapping[str, Any]) -> Table:
    """Return what concerns gridnode alone: a grid of three that starts, nodes that idle among peers."""
    grid, fleet = document.get("grid", {}), document.get("fleet", {})
    body = []
    if grid:
        body.append(("three nodes started at once: first local answer", number(grid["local_s"], unit=" s")))
        body.append(("three nodes started at once: first remote answer", number(grid["remote_s"], unit=" s")))
    for peers, row in fleet.items():
        body.append((f"a node that idles with {peers} peers: CPU", number(100 * row["idle_cpu"], unit=" %")))
        body.append((f"a node that idles with {peers} peers: PSS", number(row["pss_mb"], unit=" MB")))
    return Table("gridnode alone", ("what", "figure"), tuple(body))


def goals_table(judgements: Iterable[Judgement]) -> Table:
    rows = tuple((j.what, j.goal, j.stretch, j.measured, j.verdict, j.detail) for j in judgements)
    columns = ("what", "goal", "stretch", "measured", "verdict", "by case")
    return Table("goals", columns, rows, left=(0, 4, 5))


def all_tables(document: Mapping[str, Any]) -> list[Table]:
    """Return every table that the run has figures for."""
    tables = []
    for phase in document["phases"]:
        heading = "" if phase == "main" else f" ({phase})"
        part = document["phases"][phase]
        found = [latency_table(name, rows, document) for name, rows in part["latency"].items()]
        found += [throughput_table(name, rows, document) for name, rows in part["throughput"].items()]
        tables += [Table(table.title + heading, table.columns, table.rows, table.left, table.note) for table in found]
    if document["standing"]:
        tables.append(standing_table(document))
    alone = grid_table(document)
    return [*tables, alone] if alone.rows else tables


def _workload_title(name: str, document: Mapping[str, Any]) -> str:
    workload = document["workloads"][name]
    kinds = {"slice": "transport only", "network": f"{name}", "detector": f"{name} detector on JPEG"}
    return f"{kinds[workload['kind']]}, {workload['request_bytes']:,} bytes"


def _errors(rows: Mapping[str, Mapping[str, Any]], about: Mapping[str, Any]) -> str:
    return "; ".join(f"{about[way]['label']}: {row['error']}" for way, row in rows.items() if "error" in row)


# ---------------------------------------------------------------- on the terminal


def draw(console: "Console", tables: Iterable[Table]) -> None:
    """Draw tables on a terminal."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table as Drawn
    from rich.text import Text

    for table in tables:
        drawn = Drawn(title=table.title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, padding=(0, 1))
        for place, column in enumerate(table.columns):
            drawn.add_column(column, justify="left" if place in table.left else "right")
        for row in table.rows:
            drawn.add_row(*(Text(cell, style=_style(cell)) for cell in row))
        console.print(drawn)
        if table.note:
            console.print(f"  {table.note}", style="red", markup=False)


def _style(cell: str) -> str:
    return {"missed": "bold red", "met": "green", "stretch met": "bold green", "not measured": "dim"}.get(cell, "")


# ---------------------------------------------------------------- in Markdown


def markdown(tables: Sequence[Table], *, heading: str) -> str:
    """Write tables as Markdown, under a line that says where the figures come from."""
    parts = [heading, ""]
    for table in tables:
        parts += [f"### {table.title}", ""]
        parts.append("| " + " | ".join(table.columns) + " |")
        parts.append(
            "|" + "|".join("---" if place in table.left else "---:" for place in range(len(table.columns))) + "|"
        )
        parts += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in table.rows]
        if table.note:
            parts += ["", f"Errors: {table.note}"]
        parts.append("")
    return "\n".join(parts)


def replace_between_markers(text: str, figures: str) -> str:
    """Put figures between the two marker lines of a document, and leave all else as it is.

    Raises
    ------
    MarkerError
        The markers are not there exactly once each, in order.
    """
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise MarkerError(f"the file needs one line {BEGIN!r} and after it one line {END!r}; between them figures go")
    head, rest = text.split(BEGIN)
    _, tail = rest.split(END)
    return f"{head}{BEGIN}\n\n{figures.strip()}\n\n{END}{tail}"
