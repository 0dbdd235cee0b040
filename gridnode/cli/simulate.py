"""``gridnode simulate``: scenarios run in the simulator, with the very decisions of the daemon.

Here are `run` and `list`; the other commands of the group have modules of their own, ``simulate_*.py``, each with an
``add_commands`` that takes the group's sub-parsers.
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Final

from gridnode.cli import simulate_calibrate, simulate_compare, simulate_plan, simulate_sweep, simulate_theory
from gridnode.cli.output import console, note, print_json
from gridnode.cli.progress import progress_of
from gridnode.cli.simulate_options import add_scenario, prepare_folder

if TYPE_CHECKING:
    from simulator.results import Result
    from simulator.scenario import Scenario

_PARTS: Final[tuple[ModuleType, ...]] = (
    simulate_compare, simulate_sweep, simulate_plan, simulate_theory, simulate_calibrate,
)  # fmt: skip
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
        "--trace-out",
        type=Path,
        metavar="FILE",
        help="write a trace that chrome://tracing or Perfetto opens, of the first measure.trace_jobs jobs (20,000), "
        "about 700 bytes each",
    )
    run.add_argument("--hash", action="store_true", help="hash every decision, to compare runs; costs time")
    run.set_defaults(run=run_run)


def run_run(options: argparse.Namespace) -> int:
    """Run `gridnode simulate run`."""
    from gridnode.simulation.load import changes_of, load
    from gridnode.simulation.run import run_scenario, run_traced
    from gridnode.simulation.show import show

    scenario = load(options.scenario, changes_of(options.settings))
    prepare_folder(options)
    with progress_of(scenario.name) as told:
        common = {"seed": options.seed, "policy": options.policy, "progress": told, "hashed": options.hash}
        if options.trace_out is None:
            outcome = run_scenario(scenario, **common)
        else:
            outcome = run_traced(scenario, options.trace_out, **common)
            sys.stderr.write(f"wrote {options.trace_out}\n")
    if options.out is not None:
        _write(scenario, outcome.result, options.out)
    if options.json:
        print_json(outcome.result)
    else:
        console().print(show(outcome))
    return 0


def _write(scenario: "Scenario", result: "Result", directory: Path) -> None:
    """Write tables, plots and the report of a run."""
    from gridnode.simulation import page, plots
    from gridnode.simulation.run import write_tables
    from simulator.report import bounds_of

    written = [*write_tables(result, directory), *page.write(result, directory, bounds=bounds_of(scenario))]
    for path in written:
        sys.stderr.write(f"wrote {path}\n")
    if not plots.is_available():
        note(plots.HOW_TO_INSTALL)


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
