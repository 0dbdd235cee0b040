"""``gridnode simulate plan``: how a fleet would fare with fewer or more devices or cameras."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gridnode.cli.fitting import Column, fitted
from gridnode.cli.options import UsageError
from gridnode.cli.output import console, print_json
from gridnode.cli.progress import progress_of
from gridnode.cli.simulate_options import add_pool, add_scenario, changes_asked, pool_of, prepare_folder

if TYPE_CHECKING:
    from rich.console import RenderableType

    from gridnode.simulation.plan import Plan
    from gridnode.simulation.recordedload import Observed, RecordedLoad
    from simulator.scenario import Scenario


def add_commands(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    command = parts.add_parser(
        "plan",
        help="what if: fewer or more devices or cameras",
        description="Runs a fleet as it is and as it could be, under recorded or foreseen arrivals and the same seeds, "
        "and says how many deadlines are missed.",
    )
    add_scenario(command, is_needed=False, more="; the recorded fleet where traces are given and no scenario is")
    command.add_argument(
        "--trace",
        type=Path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="what daemons recorded (trace.path), one file per node; or, with a scenario, one CSV file with timestamps "
        "first, in place of the arrivals of its first source, which says model, entries and deadline",
    )
    command.add_argument(
        "--align",
        choices=("clock", "start"),
        default="clock",
        help="how traces of several nodes lie in time: as their clocks say (default), or all begun at once",
    )
    command.add_argument("--last", type=_seconds, metavar="S", help="only the last S seconds of the traces")
    command.add_argument(
        "--spread",
        action="store_true",
        help="recorded nodes that the scenario does not have come in at its own in turn",
    )
    command.add_argument(
        "--what-if",
        action="append",
        default=[],
        metavar="CHANGES",
        help="NAME-N, NAME+N or NAME+N%%, several with commas, such as pi-4 or 'fast+1,cameras+50%%'; NAME is a group "
        "of nodes, a source, or cameras for all sources; repeat it for more variants",
    )
    command.add_argument("--policy", metavar="P", help="in place of the scenario's")
    add_pool(command, replications=10)
    command.add_argument("--json", action="store_true", help="print JSON for programs instead of text for people")
    command.add_argument("--out", type=Path, metavar="DIR", help="write tables and an HTML report into this folder")
    command.set_defaults(run=run_plan)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def run_plan(options: argparse.Namespace) -> int:
    """Run `gridnode simulate plan`."""
    from gridnode.simulation import planpage
    from gridnode.simulation.plan import plan
    from gridnode.simulation.tables import write_plan

    scenario, recorded = _read(options)
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
            recorded=recorded,
        )
    if options.out is not None:
        for path in [*write_plan(found, options.out), *planpage.write(found, options.out)]:
            sys.stderr.write(f"wrote {path}\n")
    if options.json:
        print_json(found)
    else:
        screen = console()
        screen.print(show_plan(found, width=screen.width))
    return 0


def _read(options: argparse.Namespace) -> "tuple[Scenario, RecordedLoad | None]":
    """Return the fleet as it is with what comes in, and what daemons recorded of it."""
    from gridnode.simulation.load import arrivals_of, is_trace_file, load, with_changes
    from gridnode.simulation.plan import with_times
    from gridnode.simulation.recorded import read_recording
    from gridnode.simulation.recordedload import load_of

    changes = changes_asked(options)
    if options.scenario is None and not options.trace:
        raise UsageError("nothing to plan with; give a scenario, or what daemons recorded with --trace FILE")
    if not options.what_if and not options.trace:
        raise UsageError("the following arguments are required: --what-if, or --trace with what daemons recorded")
    fleet = None if options.scenario is None else load(options.scenario, changes)
    if fleet is not None and not options.trace:
        return fleet, None
    if fleet is not None and len(options.trace) == 1 and not is_trace_file(options.trace[0]):
        return with_times(fleet, arrivals_of(options.trace[0])), None
    recordings = [read_recording(path) for path in options.trace]
    recorded = load_of(recordings, fleet=fleet, align=options.align, spread=options.spread, last_s=options.last)
    if fleet is not None:
        return recorded.scenario, recorded
    return with_changes(recorded.scenario, changes), recorded


_COLUMNS: Final = (
    Column("what if", is_words=True),
    Column("nodes", 4),
    Column("load", 1),
    Column("missed"),
    Column("difference"),
    Column("mean", 3),
    Column("p95", 5),
    Column("p99", 2),
    Column("at best"),
)


def show_plan(found: "Plan", *, width: int) -> "RenderableType":
    """Return the table for a terminal."""
    from rich.console import Group
    from rich.text import Text

    from gridnode.simulation.numbers import interval

    title = Text.assemble((found.scenario, "bold"), "  ", found.about, "\n")
    title.append(f"policy {found.policy}, {found.replications} replications, means with 95 % intervals\n", "dim")
    if found.observed is not None:
        title.append(_recorded_text(found.observed), "dim")
    rows: list[list[str | Text]] = []
    if found.observed is not None:
        rows.append([Text(cell, "dim") for cell in _observed_row(found.observed)])
    for number, each in enumerate(found.variants):
        less = each.less_now["miss"]
        is_known = bool(number) and not less.holds(0.0)
        worse = "red" if less.mean > 0 else "green"
        ceiling = each.bounds.goodput_ceiling
        rows.append(
            [
                each.what_if or "as it is",
                str(each.nodes),
                f"{each.load:.3g}",
                interval(each.values["miss"], "share"),
                Text(interval(less, "points", sign=True) if number else "–", worse if is_known else ""),
                *(interval(each.values[name]) for name in ("mean_s", "p95_s", "p99_s")),
                "–" if ceiling is None else f"{(1 - ceiling) * 100:.1f} %",
            ]
        )
    table = fitted(_COLUMNS, rows, width=width)
    said = Text("".join(f"\n{each}" for each in found.notes), "yellow")
    note = Text("\nmissed: jobs not answered within their deadline; at best: what any policy must miss", "dim")
    return Group(title, table, note, said) if found.notes else Group(title, table, note)


def _recorded_text(observed: "Observed") -> str:
    def counted(count: int, what: str) -> str:
        return f"{count} {what}" if count == 1 else f"{count} {what}s"

    jobs, cameras = counted(observed.jobs, "job"), counted(observed.cameras, "camera")
    return f"recorded: {jobs} of {cameras} at {counted(observed.nodes, 'node')} in {observed.span_s:.3g} s\n"


def _observed_row(observed: "Observed") -> tuple[str, ...]:
    """Return what really happened, in the columns of the table."""
    from gridnode.simulation.numbers import interval
    from simulator.statistics import Estimate

    values_s = (observed.mean_s, observed.p95_s, observed.p99_s)
    times = [interval(Estimate(mean=value_s, half=0.0, count=1)) for value_s in values_s]
    return ("recorded", "", "", interval(Estimate(mean=observed.miss, half=0.0, count=1), "share"), "", *times, "")
