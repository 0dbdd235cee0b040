"""``gridnode simulate compare``: policies side by side, with confidence intervals."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gridnode.cli.fitting import Column, fitted
from gridnode.cli.output import console, note, print_json
from gridnode.cli.progress import progress_of
from gridnode.cli.simulate_options import add_pool, add_scenario, changes_asked, pool_of, prepare_folder

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gridnode.simulation.compare import Compared
    from simulator.report import Bounds, Comparison


def add_commands(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    command = parts.add_parser(
        "compare",
        help="policies side by side on one scenario",
        description="Runs policies under the same seeds: all meet the same arrivals, so differences are known better "
        "than means. The greedy oracle, which sees everything, and two bounds stand beside them.",
    )
    add_scenario(command)
    command.add_argument(
        "--policy",
        action="append",
        metavar="P",
        help="a policy, with arguments where it has any, as in 'jsq(d=2)'; repeat it; the first is what the others are "
        "compared with (default: the scenario's)",
    )
    command.add_argument("--no-oracle", action="store_true", help="without the greedy oracle")
    add_pool(command, replications=10)
    command.add_argument("--json", action="store_true", help="print JSON for programs instead of text for people")
    command.add_argument("--out", type=Path, metavar="DIR", help="write tables, plots and an HTML report here")
    command.set_defaults(run=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    """Run `gridnode simulate compare`."""
    from gridnode.simulation.compare import compare
    from gridnode.simulation.load import load

    changes = changes_asked(options)
    scenario = load(options.scenario, changes)
    prepare_folder(options)
    with pool_of(options) as (executor, jobs), progress_of(scenario.name) as told:
        found = compare(
            scenario,
            options.policy or [scenario.policy],
            replications=options.replications,
            oracle=not options.no_oracle,
            executor=executor,
            jobs=jobs,
            progress=told,
        )
    if options.out is not None:
        _write(found, options.out)
    if options.json:
        print_json(found.comparison)
    else:
        screen = console()
        screen.print(show_comparison(found.comparison, width=screen.width))
    return 0


def _write(found: "Compared", directory: Path) -> None:
    from gridnode.simulation import page, plots
    from gridnode.simulation.tables import write_comparison

    written = write_comparison(found.comparison, directory)
    firsts = [runs[0] for runs in found.results.values()]
    written += page.write(firsts, directory, comparison=found.comparison)
    for path in written:
        sys.stderr.write(f"wrote {path}\n")
    if not plots.is_available():
        note(plots.HOW_TO_INSTALL)


_COLUMNS: Final = (
    Column("policy", is_words=True),
    Column("mean"),
    Column("difference", 1),
    Column("p95", 4),
    Column("p99"),
    Column("in time"),
    Column("offloaded", 5),
    Column("/oracle", 3),
    Column("/bound", 2),
)


def show_comparison(found: "Comparison", *, width: int) -> "RenderableType":
    """Return the table for a terminal."""
    from rich.console import Group
    from rich.text import Text

    from gridnode.simulation.numbers import interval

    title = Text.assemble((found.scenario, "bold"), "  ", found.about, "\n")
    title.append(f"{len(found.seeds)} replications, means with 95 % intervals\n", "dim")
    rows: list[list[str | Text]] = []
    for number, row in enumerate(found.rows):
        less = row.less_first["mean_s"]
        is_known = bool(number) and not less.holds(0.0)
        over = row.mean_over_oracle
        rows.append(
            [
                row.policy,
                interval(row.values["mean_s"]),
                Text(interval(less, sign=True) if number else "–", "bold" if is_known else ""),
                interval(row.values["p95_s"]),
                interval(row.values["p99_s"]),
                interval(row.values["within"], "share"),
                interval(row.values["offloaded"], "share"),
                "–" if over is None else f"{over.mean:.2f}",
                "–" if row.mean_over_bound is None else f"{row.mean_over_bound:.2f}",
            ]
        )
    said = Text(f"\n{bounds_text(found.bounds)}", "dim")
    lost = [row.policy for row in found.rows if row.values["lost"].mean > 0]
    if lost:
        said.append(f"\njobs were lost under {', '.join(lost)}", "bold red")
    return Group(title, fitted(_COLUMNS, rows, width=width), said)


def bounds_text(bounds: "Bounds") -> str:
    """Say what the bounds are."""
    from gridnode.simulation.numbers import seconds_text
    from gridnode.simulation.show import percent

    parts = []
    if bounds.zero_queue_s is not None:
        parts.append(f"zero-queue bound {seconds_text(bounds.zero_queue_s)}")
    if bounds.static_split_s is not None:
        parts.append(f"best static split {seconds_text(bounds.static_split_s)}")
    if bounds.goodput_ceiling is not None and bounds.goodput_ceiling < 1:
        parts.append(f"at most {percent(bounds.goodput_ceiling)} in time")
    if bounds.note:
        parts.append(bounds.note)
    return "bounds: " + "; ".join(parts) if parts else ""
