"""``gridnode simulate calibrate``: the simulator beside five real daemons."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gridnode.cli.options import positive
from gridnode.cli.output import console, millis, note, print_json
from gridnode.cli.progress import progress_of
from gridnode.cli.simulate_options import prepare_folder

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gridnode.simulation.calibration import Calibration, LoadReport

SECONDS_MIN: Final = 4.0
"""Of a load: shorter ones have no jobs to compare."""
LOADS_MAX: Final = 0.95
"""Nearer to what the fleet can serve, no run is long enough to tell a mean."""


def add_commands(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    command = parts.add_parser(
        "calibrate",
        help="the simulator beside five real daemons on this machine",
        description="Starts a grid of five daemons on loopback whose executors wait out given service times, sends it "
        "jobs at several loads, and simulates the same fleet with the same arrivals. It proves scheduling and network "
        "fidelity, not device fidelity: service times are given to both.",
    )
    command.add_argument("--seconds", type=_seconds, default=60.0, metavar="N", help="per load (default: 60)")
    command.add_argument(
        "--load",
        type=_load,
        action="append",
        metavar="R",
        help=f"share of the fleet's capacity, at most {LOADS_MAX:g}; may be repeated (default: 0.3, 0.6 and 0.85)",
    )
    command.add_argument("--seed", default="1", metavar="SEED", help="of the arrivals (default: 1)")
    command.add_argument("--json", action="store_true", help="print JSON for programs instead of text for people")
    command.add_argument("--out", type=Path, metavar="DIR", help="write tables and an HTML report into this folder")
    command.add_argument("--keep", type=Path, metavar="DIR", help="keep the grid's files and logs in this empty folder")
    command.set_defaults(run=run_calibrate)


def _seconds(text: str) -> float:
    seconds = positive(text)
    if seconds < SECONDS_MIN:
        raise argparse.ArgumentTypeError(f"{text} s is too short, at least {SECONDS_MIN:g} are needed")
    return seconds


def _load(text: str) -> float:
    load = positive(text)
    if load > LOADS_MAX:
        raise argparse.ArgumentTypeError(f"{text} is too much to be compared, at most {LOADS_MAX:g}")
    return load


def run_calibrate(options: argparse.Namespace) -> int:
    """Run `gridnode simulate calibrate`."""
    import trio

    from gridnode.simulation import calibratepage
    from gridnode.simulation.calibrate import LOADS, CalibrationOptions, calibrate
    from gridnode.simulation.tables import write_calibration

    prepare_folder(options)
    wish = CalibrationOptions(
        seconds=options.seconds,
        loads=tuple(options.load or LOADS),
        seed=options.seed,
        keep=options.keep.absolute() if options.keep else None,
    )
    with progress_of("calibrate") as told:
        found = trio.run(lambda: calibrate(wish, say=note, progress=told))
    if options.out is not None:
        for path in [*write_calibration(found, options.out), *calibratepage.write(found, options.out)]:
            sys.stderr.write(f"wrote {path}\n")
    if options.json:
        print_json(found)
    else:
        console().print(show_calibration(found))
    return 0


def show_calibration(found: "Calibration") -> "RenderableType":
    """Return the report for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from gridnode.simulation.calibration import GOAL, STALL_MAX_S

    times = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    times.add_column("load", no_wrap=True)
    for name in ("", "daemons", "simulator", "difference", "noise"):
        times.add_column(name, justify="left" if not name else "right", no_wrap=True)
    for each in found.loads:
        for number, (name, field) in enumerate((("mean", "mean_s"), ("p50", "p50_s"), ("p95", "p95_s"))):
            difference = getattr(each.difference, field)
            style = "green" if abs(difference) <= GOAL else "yellow"
            times.add_row(
                f"{each.load:g}" if not number else f"{each.jobs} jobs" if number == 1 else "",
                name,
                millis(getattr(each.daemon, field) * 1e3),
                millis(getattr(each.simulator, field) * 1e3),
                Text(f"{difference * 100:+.1f} %", style),
                f"±{getattr(each.noise, field) * 100:.1f} %",
            )
    parts: list[RenderableType] = [times, Text(), _shares(found.loads), Text()]
    text = Text(f"largest difference of mean and p95: {found.worst * 100:.1f} % (aimed at: {GOAL * 100:g} %)\n")
    text.append(f"proves {found.proves}\n", "dim")
    text.append(
        "noise: 95 % of single runs lie within, by the simulator's own scatter over seeds\n"
        f"measured on the idle grid and given to the simulator: {millis(found.costs.socket_s * 1e3)} to the daemon and "
        f"back, {millis(found.costs.execution_s * 1e3)} an execution, {millis(found.costs.move_s * 1e3)} a move",
        "dim",
    )
    for each in found.loads:
        text.append(
            f"\nload {each.load:g}: {each.cpu:.2f} of {found.cores} processors busy, jobs sent at most "
            f"{millis(each.lateness_s * 1e3)} late (p95; at most {millis(each.stall_s * 1e3)}), {each.failed} failed",
            "dim",
        )
        if each.stall_s > STALL_MAX_S:
            text.append("; the machine stood still, so this load is not comparable", "red")
    return Group(*parts, text)


def _shares(loads: "tuple[LoadReport, ...]") -> "RenderableType":
    """Return shares per node, daemons and simulator side by side."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("daemons / simulator", no_wrap=True)
    for each in loads:
        table.add_column(f"load {each.load:g}", justify="right", no_wrap=True)
    for number, share in enumerate(loads[0].shares):
        both = [each.shares[number] for each in loads]
        table.add_row(f"share of {share.node}", *(_both(each.daemon, each.simulator) for each in both))
    table.add_row("moved", *(_both(each.moved_daemon, each.moved_simulator) for each in loads))
    return table


def _both(daemon: float, simulator: float) -> str:
    return f"{daemon * 100:.1f} / {simulator * 100:.1f} %"
