"""``gridnode doctor``: looks for what keeps a node from working, and says what to do about it."""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gridnode.cli.options import add_json, add_state_dir, state_dir
from gridnode.cli.output import console, print_json
from gridnode.cli.run import read_config
from gridnode.errors import GridError

if TYPE_CHECKING:
    from gridnode.cli.checks import Finding


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group's commands."""
    doctor = commands.add_parser("doctor", help="check this machine and this node's set-up")
    doctor.add_argument("--config", type=Path, metavar="FILE", help="configuration to check")
    add_state_dir(doctor)
    add_json(doctor)
    doctor.set_defaults(run=run_doctor, file=None, preset=None, name=None, socket=None, log_level=None, set=[])


def run_doctor(options: argparse.Namespace) -> int:
    """Run `gridnode doctor`: 0 unless something is bad."""
    findings = list(examine(options))
    if options.json:
        print_json(findings)
    else:
        _print(findings)
    return 1 if any(finding.verdict == "bad" for finding in findings) else 0


def examine(options: argparse.Namespace) -> "Iterator[Finding]":
    """Make all checks, the cheap ones first."""
    from gridnode.cli import checks

    yield checks.check_python()
    yield checks.check_clock(time.time())
    try:
        config, path = read_config(options)
    except GridError as error:
        yield checks.Finding(check="configuration", verdict="bad", seen=str(error), remedy="correct the file it names")
        return
    yield checks.Finding(check="configuration", verdict="good", seen=str(path or "no file, defaults"))
    folder = options.state_dir or (Path(config.node.state_dir) if config.node.state_dir else state_dir(options))
    yield from checks.check_state(folder)
    if not checks.is_running(folder):
        yield from checks.check_ports(config)
    yield from checks.check_trace(config, folder)
    yield from checks.check_bootstrap(config, folder)
    yield checks.check_runtime()


def _print(findings: "list[Finding]") -> None:
    from rich.table import Table
    from rich.text import Text

    signs = {
        "good": Text("ok", style="green"),
        "warning": Text("warn", style="yellow"),
        "bad": Text("BAD", style="red"),
    }
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        seen = Text(finding.seen)
        if finding.remedy:
            seen.append(f"\n→ {finding.remedy}", style="bold")
        table.add_row(signs[finding.verdict], finding.check, seen)
    console().print(table)
