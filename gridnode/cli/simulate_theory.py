"""``gridnode simulate theory``: the simulator against queueing theory, arithmetic and its own seed.

The checks are the simulator's (simulator.checks). Here they are run and shown, and the ones across processes are made:
the simulator starts none.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gridnode.cli.options import UsageError
from gridnode.cli.output import console, print_json
from gridnode.cli.progress import progress_of

if TYPE_CHECKING:
    from rich.table import Table

    from simulator.judging import Check

_SEED: Final = "7"
_HASH_SEEDS: Final = ("1", "2")
"""Of Python's own hashes: the order of sets of texts differs between them."""
_PROCESS_LIMIT_S: Final = 60.0
"""For one small run in a process of its own; it takes a second."""
_FAILED: Final = 1


def add_commands(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    theory = parts.add_parser(
        "theory",
        help="check the simulator against queueing theory",
        description="Runs queues, fleets and transfers whose results are known (M/M/c, Pollaczek-Khinchine, the "
        "supermarket model, stale bulletin boards, stability limits, shared links, one seed in several processes) and "
        "says what came out. Takes some minutes; exit code 1 when a check fails.",
    )
    theory.add_argument("--fast", action="store_true", help="the subset that the test suite runs, in seconds")
    theory.add_argument("--only", default="", metavar="TEXT", help="checks whose name contains this")
    theory.add_argument("--json", action="store_true", help="print JSON for programs instead of text for people")
    theory.set_defaults(run=run_theory)


def run_theory(options: argparse.Namespace) -> int:
    """Run `gridnode simulate theory`."""
    found = make_checks(fast=options.fast, only=options.only)
    if not found:
        raise UsageError(f"no check has {options.only!r} in its name; `gridnode simulate theory --fast` shows names")
    if options.json:
        print_json(found)
    else:
        console().print(_table(found))
        failed = sum(not check.ok for check in found)
        console().print(f"\n{len(found)} checks, " + (f"[bold red]{failed} failed" if failed else "all in order"))
    return 0 if all(check.ok for check in found) else _FAILED


def make_checks(*, fast: bool, only: str = "") -> "list[Check]":
    """Run all checks whose names contain a text, or the fast ones of them."""
    from simulator import checks

    found: list[Check] = []
    total = len(checks.cases(fast=fast, only=only)) + 1
    with progress_of("theory") as told:
        for number, (_, some) in enumerate(checks.run(fast=fast, only=only), start=1):
            found += some
            if told is not None:
                told(number / total)
        if only.lower() in _ACROSS:
            found.append(check_processes())
    return found


_ACROSS: Final = "same seed, same trace in other processes"


def check_processes() -> "Check":
    """Check that one seed gives one trace in processes whose hashes of texts differ."""
    import simulator
    from simulator.checks import trace_hash
    from simulator.judging import judge_exact

    root = Path(simulator.__file__).parents[1]
    program = f"from simulator.checks import trace_hash; print(trace_hash({_SEED!r}))"
    traces = {trace_hash(_SEED)}
    for seed in _HASH_SEEDS:
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            timeout=_PROCESS_LIMIT_S,
            check=True,
        )
        traces.add(done.stdout.strip())
    return judge_exact(
        _ACROSS,
        "node",
        expected=1.0,
        got=float(len(traces)),
        within=0.0,
        about=f"different traces of this process and {len(_HASH_SEEDS)} others with other PYTHONHASHSEED",
    )


def _table(found: "list[Check]") -> "Table":
    """Lay out the checks."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("check")
    table.add_column("level", style="dim")
    for name in ("expected", "got", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for check in found:
        table.add_row(
            "[green]ok[/]" if check.ok else "[bold red]FAILED[/]",
            check.check,
            check.level,
            f"{check.expected:.6g}",
            f"{check.got:.6g}",
            "exact" if check.ci95 is None else f"{check.ci95[0]:.5g} to {check.ci95[1]:.5g}",
        )
    return table
