"""Tables as CSV files, and whole records as JSON beside them."""

import csv
import errno
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from gridnode.simulation.load import SimulationInputError

if TYPE_CHECKING:
    from gridnode.simulation.calibration import Calibration
    from gridnode.simulation.plan import Plan
    from gridnode.simulation.sweep import Sweep
    from simulator.report import Comparison

REPORT: Final = "report.html"


def make_folder(directory: Path) -> None:
    """Make a folder where it is missing; raises SimulationInputError where it cannot be, or not written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise unwritable(directory, error) from None


def unwritable(path: Path, error: OSError) -> SimulationInputError:
    """Return the error for a place that cannot be written to."""
    return SimulationInputError(f"{path} cannot be written to: {error.strerror}; give another folder with --out")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> Path:
    """Write a table; raises SimulationInputError where it cannot be."""
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
    except OSError as error:
        raise unwritable(path, error) from None
    return path


def write_html(directory: Path, text: str) -> Path:
    """Write report.html into a folder, made where it is missing; raises SimulationInputError where it cannot be."""
    make_folder(directory)
    path = directory / REPORT
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise unwritable(directory, error) from None
    return path


def write_json(path: Path, document: object) -> Path:
    """Write a record; raises SimulationInputError where it cannot be."""
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))
    except OSError as error:
        raise unwritable(path, error) from None
    return path


def write_calibration(found: "Calibration", directory: Path) -> list[Path]:
    """Write a calibration: a row per load and quantity, and everything as JSON."""
    make_folder(directory)
    rows: list[list[object]] = []
    for each in found.loads:
        for field in each.daemon.__struct_fields__:
            values = [getattr(part, field) for part in (each.daemon, each.simulator, each.difference, each.noise)]
            rows.append([each.load, field, *values])
        rows += [
            [each.load, f"share.{share.node}", share.daemon, share.simulator, share.simulator - share.daemon, ""]
            for share in each.shares
        ]
    header = ("load", "quantity", "daemons", "simulator", "difference", "noise")
    return [
        write_csv(directory / "calibration.csv", header, rows),
        write_json(directory / "calibration.json", found),
    ]


def write_comparison(found: "Comparison", directory: Path) -> list[Path]:
    """Write a comparison: a row per policy and quantity, and everything as JSON."""
    make_folder(directory)
    rows: list[list[object]] = []
    for row in found.rows:
        for name, value in row.values.items():
            less = row.less_first[name]
            rows.append([row.policy, name, value.mean, value.half, value.count, less.mean, less.half])
    header = ("policy", "quantity", "mean", "half_width", "replications", "less_first", "less_first_half_width")
    return [
        write_csv(directory / "policies.csv", header, rows),
        write_json(directory / "comparison.json", found),
    ]


def write_sweep(found: "Sweep", directory: Path) -> list[Path]:
    """Write a sweep: a row per combination and policy, with mean and half width of every quantity."""
    make_folder(directory)
    names = list(found.points[0].values)
    header = [*found.keys, "policy", "load", "zero_queue_s", "static_split_s", "goodput_ceiling"]
    header += [column for name in names for column in (name, f"{name}_half_width")]
    rows: list[list[object]] = []
    for point in found.points:
        bounds = point.bounds
        row: list[object] = [point.parameters[key] for key in found.keys]
        row += [point.policy, point.load]
        row += ["" if each is None else each for each in (bounds.zero_queue_s, bounds.static_split_s)]
        row.append("" if bounds.goodput_ceiling is None else bounds.goodput_ceiling)
        row += [part for name in names for part in (point.values[name].mean, point.values[name].half)]
        rows.append(row)
    return [write_csv(directory / "sweep.csv", header, rows), write_json(directory / "sweep.json", found)]


def write_plan(found: "Plan", directory: Path) -> list[Path]:
    """Write a plan: a row per variant and quantity, and everything as JSON."""
    make_folder(directory)
    rows: list[list[object]] = []
    for each in found.variants:
        for name, value in each.values.items():
            less = each.less_now[name]
            rows.append([each.what_if, each.nodes, each.load, name, value.mean, value.half, less.mean, less.half])
    header = ("what_if", "nodes", "load", "quantity", "mean", "half_width", "less_now", "less_now_half_width")
    return [write_csv(directory / "plan.csv", header, rows), write_json(directory / "plan.json", found)]
