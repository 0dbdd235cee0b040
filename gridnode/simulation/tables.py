"""Tables as CSV files, and whole records as JSON beside them."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from gridnode.simulation.load import SimulationInputError

if TYPE_CHECKING:
    from gridnode.simulation.calibrate import Calibration


def make_folder(directory: Path) -> None:
    """Make a folder where it is missing; raises SimulationInputError where it cannot be."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
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
