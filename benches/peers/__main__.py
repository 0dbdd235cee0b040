"""Compare gridnode with what a user would pick instead: make bench-peers ARGS="..."

One run interleaves all ways round by round, checks every answer, and prints latency, processor time, requests per
second, cold start and idle cost, as ratios to in-process onnxruntime and to gRPC of the same run. docs/BENCHMARKS.md
has the rules and the figures.
"""

import argparse
import json
import sys
from pathlib import Path

from benches.peers import machine, tables, workloads
from benches.peers.goals import Judgement
from benches.peers.measuring import say
from benches.peers.processes import die_politely
from benches.peers.run import FLOORS, PARTS, WAYS, Plan, perform
from benches.peers.ways import PeerError

USUAL = tuple(name for name in WAYS if name not in FLOORS)

QUICK = {"rounds": 3, "calls": 30, "flood_s": 0.3, "starts": 1, "window_s": 3.0}


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        prog="make bench-peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--rounds", type=int, default=5, help="interleaved repetitions (default 5)")
    found.add_argument(
        "--calls", type=int, default=100, help="calls per way and round, half for networks (default 100)"
    )
    found.add_argument("--only", type=_words, default=USUAL, help=f"ways that take part: {','.join(WAYS)}")
    found.add_argument(
        "--sizes", type=_words, default=tuple(workloads.SIZES), help="of the transport-only model: %(default)s"
    )
    found.add_argument(
        "--models",
        type=_words,
        default=(*workloads.NETWORKS, workloads.DETECTOR),
        help="real models, or none: %(default)s",
    )
    found.add_argument("--parts", type=_words, default=PARTS, help=f"of the run: {','.join(PARTS)}")
    found.add_argument("--quick", action="store_true", help="few calls, short windows: to see that it works")
    found.add_argument("--goals", action="store_true", help="print the goals only, and exit with 1 if one is missed")
    found.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    found.add_argument("--markdown", type=Path, metavar="FILE", help="replace the figures between this file's markers")
    found.add_argument("--from-json", type=Path, metavar="FILE", help="show an earlier run instead of measuring")
    return found


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.strip().lower() for word in text.split(",") if word.strip())


def make_plan(options: argparse.Namespace) -> Plan:
    """Turn the command line into a plan; raises ValueError for a name that does not exist."""
    models = () if options.models == ("none",) else options.models
    for what, given, known in (
        ("way", options.only, tuple(WAYS)),
        ("size", options.sizes, tuple(workloads.SIZES)),
        ("model", models, (*workloads.NETWORKS, workloads.DETECTOR)),
        ("part", options.parts, PARTS),
    ):
        for name in given:
            if name not in known:
                raise ValueError(f"there is no {what} {name!r}; there are: {', '.join(known)}")
    settings = {"rounds": options.rounds, "calls": options.calls, "flood_s": 1.0, "starts": 3, "window_s": 10.0}
    if options.quick:
        settings = QUICK
    chosen = tuple(name for name in WAYS if name in options.only)
    asked = (*(f"slice-{size}" for size in options.sizes), *models)
    return Plan(only=chosen, workloads=asked, parts=options.parts, **settings)


def heading(document: dict) -> str:
    """Say where the figures come from."""
    settings = document["settings"]
    text = f"{machine.line(document['machine'])}. {settings['rounds']} rounds of {settings['calls']} calls per way, "
    text += f"{document['took_s'] / 60:.0f} minutes."
    skipped = ", ".join(document["skipped"])
    return f"{text} Left out because not installed: {skipped}." if skipped else text


def main() -> int:
    arguments = parser()
    options = arguments.parse_args()
    try:
        plan = make_plan(options)
    except ValueError as error:
        arguments.error(str(error))
    markdown = options.markdown.read_text() if options.markdown else ""
    if options.markdown:
        tables.replace_between_markers(markdown, "")  # a file without markers should not be found out after 15 minutes
    try:
        document = json.loads(options.from_json.read_text()) if options.from_json else perform(plan)
    except PeerError as error:
        say(f"error: {error}")
        return 1
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    judged = [Judgement(**item) for item in document["goals"]]
    every = tables.all_tables(document)
    if options.markdown:
        figures = tables.markdown([tables.goals_table(judged), *every], heading=heading(document))
        options.markdown.write_text(tables.replace_between_markers(markdown, figures))
    if options.goals:
        show(document, [tables.goals_table(judged)])
    else:
        measured = [item for item in judged if item.verdict != "not measured"]
        show(document, [*every, *([tables.goals_table(measured)] if measured else [])])
    return 1 if options.goals and any(item.verdict == "missed" for item in judged) else 0


def show(document: dict, shown: list[tables.Table]) -> None:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    console.print(heading(document), markup=False)
    console.print(
        "between: processes other than the caller's that a request passes, the model's own among them\n", style="dim"
    )
    tables.draw(console, shown)


if __name__ == "__main__":
    die_politely()
    raise SystemExit(main())
