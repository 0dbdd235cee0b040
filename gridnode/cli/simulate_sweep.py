"""``gridnode simulate sweep``: a grid of parameters, in parallel processes or on a cluster."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gridnode.cli.fitting import Column, fitted
from gridnode.cli.output import console, note, print_json
from gridnode.cli.progress import progress_of
from gridnode.cli.simulate_options import add_pool, add_scenario, changes_asked, pool_of, prepare_folder

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gridnode.simulation.sweep import Sweep


def add_commands(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    command = parts.add_parser(
        "sweep",
        help="every combination of some parameters",
        description="Runs a scenario at every combination of values, for every policy, under the same seeds.",
    )
    add_scenario(command)
    command.add_argument(
        "--vary",
        action="append",
        required=True,
        metavar="KEY=A,B,...",
        help="values of a key of the scenario, such as sources.0.load=0.5,0.7,0.9; repeat it for a grid",
    )
    command.add_argument("--policy", action="append", metavar="P", help="a policy; repeat it (default: the scenario's)")
    add_pool(command, replications=3)
    command.add_argument("--json", action="store_true", help="print JSON for programs instead of text for people")
    command.add_argument("--out", type=Path, metavar="DIR", help="write tables, plots and an HTML report here")
    command.set_defaults(run=run_sweep)


def run_sweep(options: argparse.Namespace) -> int:
    """Run `gridnode simulate sweep`."""
    from gridnode.simulation.sweep import read_vary, sweep

    changes = changes_asked(options)
    prepare_folder(options)
    with pool_of(options) as (executor, jobs), progress_of("sweep") as told:
        found = sweep(
            options.scenario,
            dict(read_vary(each) for each in options.vary),
            changes=changes,
            policies=options.policy or (),
            replications=options.replications,
            executor=executor,
            jobs=jobs,
            progress=told,
        )
    if options.out is not None:
        _write(found, options.out)
    if options.json:
        print_json(found)
    else:
        screen = console()
        screen.print(show_sweep(found, width=screen.width))
    return 0


def _write(found: "Sweep", directory: Path) -> None:
    from gridnode.simulation import plots
    from gridnode.simulation.sweeppage import write
    from gridnode.simulation.tables import write_sweep

    for path in [*write_sweep(found, directory), *write(found, directory)]:
        sys.stderr.write(f"wrote {path}\n")
    if not plots.is_available():
        note(plots.HOW_TO_INSTALL)


def show_sweep(found: "Sweep", *, width: int) -> "RenderableType":
    """Return the table for a terminal."""
    from rich.console import Group
    from rich.text import Text

    from gridnode.simulation.numbers import interval, seconds_text

    title = Text.assemble((found.scenario, "bold"), "  ", found.about, "\n")
    title.append(f"{found.replications} replications of each, means with 95 % intervals\n", "dim")
    columns = [
        *(Column(name, is_words=True) for name in (*found.keys, "policy")),
        Column("load", 3),
        Column("mean"),
        Column("p95", 2),
        Column("p99"),
        Column("in time"),
        Column("bound", 1),
    ]
    rows = []
    for point in found.points:
        bound_s = point.bounds.zero_queue_s
        rows.append(
            [
                *(str(point.parameters[key]) for key in found.keys),
                point.policy,
                f"{point.load:.3g}",
                *(interval(point.values[name]) for name in ("mean_s", "p95_s", "p99_s")),
                interval(point.values["within"], "share"),
                "–" if bound_s is None else seconds_text(bound_s),
            ]
        )
    return Group(title, fitted(columns, rows, width=width))
