"""``gridnode simulate plan``: how a fleet would fare with fewer or more devices or cameras."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gridnode.cli.output import console, print_json
from gridnode.cli.progress import progress_of
from gridnode.cli.simulate_options import add_pool, add_scenario, pool_of, prepare_folder

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gridnode.simulation.plan import Plan


def add_commands(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    command = parts.add_parser(
        "plan",
        help="what if: fewer or more devices or cameras",
        description="Runs a fleet as it is and as it could be, under recorded or foreseen arrivals and the same seeds, "
        "and says how many deadlines are missed.",
    )
    add_scenario(command)
    command.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="recorded arrivals in place of those of the scenario's first source, which says model, entries and "
        "deadline: CSV, timestamps first",
    )
    command.add_argument(
        "--what-if",
        action="append",
        required=True,
        metavar="CHANGES",
        help="NAME-N, NAME+N or NAME+N%%, several with commas, such as pi-4 or 'fast+1,cameras+50%%'; NAME is a group "
        "of nodes, a source, or cameras for all sources; repeat it for more variants",
    )
    command.add_argument("--policy", metavar="P", help="in place of the scenario's")
    add_pool(command, replications=10)
    command.add_argument("--json", action="store_true", help="print JSON for programs instead of text for people")
    command.add_argument("--out", type=Path, metavar="DIR", help="write plan.csv and plan.json into this folder")
    command.set_defaults(run=run_plan)


def run_plan(options: argparse.Namespace) -> int:
    """Run `gridnode simulate plan`."""
    from gridnode.simulation.load import arrivals_of, changes_of, load
    from gridnode.simulation.plan import plan, with_times
    from gridnode.simulation.tables import write_plan

    changes = changes_of(options.settings)
    if options.seed is not None:
        changes["seed"] = options.seed
    scenario = load(options.scenario, changes)
    if options.trace is not None:
        scenario = with_times(scenario, arrivals_of(options.trace))
    prepare_folder(options)
    with pool_of(options) as (executor, jobs), progress_of(scenario.name) as told:
        found = plan(
            scenario,
            options.what_if,
            policy=options.policy,
            replications=options.replications,
            executor=executor,
            jobs=jobs,
            progress=told,
        )
    if options.out is not None:
        for path in write_plan(found, options.out):
            sys.stderr.write(f"wrote {path}\n")
    if options.json:
        print_json(found)
    else:
        console().print(show_plan(found))
    return 0


def show_plan(found: "Plan") -> "RenderableType":
    """Return the table for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from gridnode.simulation.numbers import interval

    title = Text.assemble((found.scenario, "bold"), "  ", found.about, "\n")
    title.append(f"policy {found.policy}, {found.replications} replications, means with 95 % intervals\n", "dim")
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("what if", no_wrap=True)
    for name in ("nodes", "load", "missed", "difference", "mean", "p95", "p99", "at best"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, each in enumerate(found.variants):
        less = each.less_now["miss"]
        is_known = bool(number) and not less.holds(0.0)
        worse = "red" if less.mean > 0 else "green"
        ceiling = each.bounds.goodput_ceiling
        table.add_row(
            each.what_if or "as it is",
            str(each.nodes),
            f"{each.load:.3g}",
            interval(each.values["miss"], "share"),
            Text(interval(less, "points", sign=True) if number else "–", worse if is_known else ""),
            *(interval(each.values[name]) for name in ("mean_s", "p95_s", "p99_s")),
            "–" if ceiling is None else f"{1 - ceiling:.1%}",
        )
    note = Text("\nmissed: jobs not answered within their deadline; at best: what any policy must miss", "dim")
    return Group(title, table, note)
