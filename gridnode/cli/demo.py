"""``gridnode demo``: a throw-away grid of three daemons on this machine, watched while one of them is killed."""

import argparse
import os
from pathlib import Path

from gridnode.cli.options import add_json, positive
from gridnode.cli.output import console

SECONDS_MIN = 5.0
"""A shorter demo has no room for a killing and a return."""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group's commands."""
    demo = commands.add_parser(
        "demo",
        help="three daemons, street films, one node killed half way",
        description="Makes a grid of three daemons on this machine, whose workers really get 100, 40 and 15 % of a "
        "core, lets street cameras send frames into the slowest one faster than it could answer, and kills a node half "
        "way. At the end it counts what became of every frame. Nothing is left but pictures and films in the cache.",
    )
    demo.add_argument("--seconds", type=_seconds, default=60.0, metavar="N", help="how long (default: 60)")
    demo.add_argument(
        "--kill",
        choices=("middle", "entry", "none"),
        default="middle",
        help="which node gets SIGKILL half way; entry: the one the frames enter (default: middle)",
    )
    demo.add_argument("--fps", type=positive, metavar="F", help="frames/s in all (default: from the measured nodes)")
    demo.add_argument("--join-late", action="store_true", help="let a fourth node join after a third of the time")
    demo.add_argument("--annotate", type=Path, metavar="DIR", help="folder for the pictures (default: in the cache)")
    demo.add_argument("--keep", type=Path, metavar="DIR", help="keep the grid's files and logs in this empty folder")
    add_json(demo)
    demo.set_defaults(run=run_demo)


def _seconds(text: str) -> float:
    seconds = positive(text)
    if seconds < SECONDS_MIN:
        raise argparse.ArgumentTypeError(f"{text} s is too short, at least {SECONDS_MIN:g} are needed")
    return seconds


def run_demo(options: argparse.Namespace) -> int:
    """Run `gridnode demo`: 0 where no frame was lost. With --json everything but the summary goes to stderr."""
    import msgspec
    import trio

    from gridnode.demo.show import DemoOptions
    from gridnode.demo.show import run_demo as run

    wish = DemoOptions(
        seconds=options.seconds,
        kill=options.kill,
        fps=options.fps,
        join_late=options.join_late,
        keep=options.keep.absolute() if options.keep else None,
        annotate=options.annotate,
    )
    screen = console(stderr=options.json)

    summary = trio.run(lambda: run(wish, environment=os.environ, console=screen))
    if options.json:
        print(msgspec.json.encode(summary).decode())
    return 0 if summary.frames_lost == 0 else 1
