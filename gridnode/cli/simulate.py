"""``gridnode simulate``: scenarios run in the simulator, with the very decisions of the daemon.

Here are `run` and `list`; the other commands of the group have modules of their own, ``simulate_*.py``, each with an
``add_commands`` that takes the group's sub-parsers.
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import Final

from gridnode.cli import simulate_theory
from gridnode.cli.output import console, print_json
from gridnode.cli.progress import progress_of

_PARTS: Final[tuple[ModuleType, ...]] = (simulate_theory,)
"""Other commands of the group."""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group's commands."""
    group = commands.add_parser(
        "simulate",
        help="run a scenario in the simulator",
        description="Simulates fleets, networks, cameras and faults with the decision core of the daemon.",
    )
    parts = group.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_run(parts)
    listing = parts.add_parser("list", help="the scenarios that come with the simulator")
    listing.add_argument("--json", action="store_true", help="print JSON for programs instead of text for people")
    listing.set_defaults(run=run_list)
    for part in _PARTS:
        part.add_commands(parts)


def add_scenario(parser: argparse.ArgumentParser) -> None:
    """Add what every command needs that runs a scenario."""
    parser.add_argument(
        "scenario", metavar="SCENARIO", help="path of a .toml file, or a name of `gridnode simulate list`"
    )
    parser.add_argument("--seed", metavar="SEED", help="in place of the scenario's")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="a value in place of the scenario's, such as sources.0.load=0.9, nodes.pi.count=8 or "
        "core.steal.enabled=false; may be given several times",
    )


def _add_run(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    run = parts.add_parser(
        "run",
        help="run one scenario once",
        description="Runs a scenario and says what became of every job, where the time went and what each node did. "
        "The same seed gives the same run, to the last decision.",
    )
    add_scenario(run)
    run.add_argument("--policy", metavar="P", help="in place of the scenario's; may have arguments, as in 'jsq(d=2)'")
    run.add_argument("--json", action="store_true", help="print the whole result as JSON")
    run.add_argument(
        "--out", type=Path, metavar="DIR", help="write tables (CSV, JSON) into this folder, and the report"
    )
    run.add_argument(
        "--trace-out", type=Path, metavar="FILE", help="write a trace that chrome://tracing or Perfetto opens"
    )
    run.add_argument("--hash", action="store_true", help="hash every decision, to compare runs; costs time")
    run.set_defaults(run=run_run)


def run_run(options: argparse.Namespace) -> int:
    """Run `gridnode simulate run`."""
    from gridnode.simulation.load import changes_of, load
    from gridnode.simulation.run import run_scenario, write_tables
    from gridnode.simulation.show import show

    scenario = load(options.scenario, changes_of(options.settings))
    with progress_of(scenario.name) as told:
        outcome = run_scenario(scenario, seed=options.seed, policy=options.policy, progress=told, hashed=options.hash)
    if options.out is not None:
        for path in write_tables(outcome.result, options.out):
            sys.stderr.write(f"wrote {path}\n")
    if options.json:
        print_json(outcome.result)
    else:
        console().print(show(outcome))
    return 0


def run_list(options: argparse.Namespace) -> int:
    """Run `gridnode simulate list`."""
    from gridnode.simulation.load import load, shipped

    scenarios = {name: load(name) for name in shipped()}
    if options.json:
        print_json(
            [
                {"name": name, "about": each.about, "nodes": len(each.node_names), "duration_s": each.duration_s}
                for name, each in scenarios.items()
            ]
        )
        return 0
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("name", no_wrap=True, style="bold")
    table.add_column("nodes", justify="right")
    table.add_column("time", justify="right", no_wrap=True)
    table.add_column("about")
    for name, each in scenarios.items():
        table.add_row(name, str(len(each.node_names)), f"{each.duration_s:g} s", each.about)
    console().print(table)
    return 0
