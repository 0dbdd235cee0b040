"""``gridnode model publish | list | show | verify | remove``."""

import argparse
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridnode.cli.options import (
    UsageError,
    add_json,
    add_owner_dir,
    add_socket,
    add_state_dir,
    connect,
    owner_dir,
    state_dir,
)
from gridnode.cli.output import console, millis, note, print_json, size
from gridnode.errors import DaemonUnreachableError, GridError

if TYPE_CHECKING:
    from gridnode.publish import Built, Published
    from gridnode.status import ModelStatus

TAKEN_S = 30.0
"""How long a publisher waits to see that the daemon took what was published."""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group's commands."""
    model = commands.add_parser("model", help="publish, list and check models").add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )
    publish = model.add_parser("publish", help="pack, run, sign and share a model (needs the owner's keys)")
    publish.add_argument(
        "source", nargs="?", type=Path, metavar="FILE.onnx|DIR", help="the model; model.toml beside it"
    )
    publish.add_argument("--name", help="of the model (default: the file's)")
    publish.add_argument("--zoo", metavar="NAME", help="publish a model that comes with gridnode, its rungs too")
    publish.set_defaults(run=publish_model)
    listing = model.add_parser("list", help="the published models, as they stand on this node")
    listing.set_defaults(run=list_models)
    show = model.add_parser("show", help="one model's manifest")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(run=show_model)
    verify = model.add_parser("verify", help="check signatures, and re-hash what is on disk")
    verify.add_argument("name", nargs="?", metavar="NAME")
    verify.add_argument("--all", action="store_true", help="every published model")
    verify.set_defaults(run=verify_models)
    remove = model.add_parser("remove", help="withdraw a model from the grid (needs the owner's keys)")
    remove.add_argument("name", metavar="NAME")
    remove.set_defaults(run=remove_model)
    for parser in (publish, show, verify, remove):
        add_state_dir(parser)
    for parser in (publish, remove):
        add_owner_dir(parser)
    for parser in (publish, listing, show, remove):
        add_socket(parser)
    for parser in (publish, listing, show, verify, remove):
        add_json(parser)


# ---------------------------------------------------------------- publish, remove


def publish_model(options: argparse.Namespace) -> int:
    """Run `gridnode model publish`."""
    if (options.source is None) == (options.zoo is None):
        raise UsageError("give either FILE.onnx (or a folder) or --zoo NAME")
    import trio

    from gridnode.publish import publish
    from gridnode.statedir import StateDirectory

    built = trio.run(_build, options)
    folder = state_dir(options)
    published = publish(StateDirectory(folder), owner_dir(options), built, clock=time.time)
    taken = _poke(options, {entry.name: entry.digest for entry in published})
    if options.json:
        print_json({"published": published, "taken": taken})
        return 0
    for entry in published:
        _print_published(entry, notes=options.zoo is None)
    note(_taken_text(taken))
    return 0


async def _build(options: argparse.Namespace) -> "list[Built]":
    from gridnode.publish import build

    if options.zoo is not None:
        from gridnode.zoo import build_zoo

        return await build_zoo(options.zoo)
    if not options.source.exists():
        raise UsageError(f"there is no {options.source}; give an .onnx file, or a folder that holds one")
    return [await build(options.source, name=options.name, threads=_cores())]


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _print_published(entry: "Published", *, notes: bool) -> None:
    """Say what was published; the notes are guesses about a graph that came without a word."""
    screen = console()
    what = "was published already" if entry.unchanged else "is published"
    screen.print(f"[bold]{entry.name}[/] {what}: version {entry.version}, digest {entry.digest[:12]}")
    rungs = f", rungs {', '.join(entry.rungs)}" if entry.rungs else ""
    memory = size(entry.peak_memory_bytes)
    screen.print(f"  {size(entry.size_bytes)}, {millis(entry.service_ms)} a picture here, {memory} of memory{rungs}")
    for text in entry.notes if notes else ():
        screen.print(f"  note: {text}", style="dim", markup=False)


def _poke(options: argparse.Namespace, wanted: dict[str, str | None]) -> bool:
    """Tell the daemon that there is news and wait until it shows; False where none runs or it did not show in time."""
    try:
        with connect(options) as grid:
            grid.ask("reload_trust")
            until_s = _now_s() + TAKEN_S
            while _now_s() < until_s:
                shown = {item["name"]: item["digest"] for item in grid.models().get("items", [])}
                if all(shown.get(name) == digest for name, digest in wanted.items()):
                    return True
                time.sleep(0.1)
    except DaemonUnreachableError:
        return False
    return False


def _taken_text(taken: bool) -> str:
    if taken:
        return "the daemon took it; the other nodes follow by themselves"
    return "the daemon of this machine did not take it yet: it does when it starts, or when an admit node is reachable"


def remove_model(options: argparse.Namespace) -> int:
    """Run `gridnode model remove`."""
    from gridnode.publish import withdraw
    from gridnode.statedir import StateDirectory

    folder = state_dir(options)
    withdraw(StateDirectory(folder), owner_dir(options), options.name, clock=time.time)
    taken = _poke(options, {options.name: None})
    if options.json:
        print_json({"removed": options.name, "taken": taken})
        return 0
    console().print(f"{options.name} is withdrawn from the grid")
    note(_taken_text(taken))
    return 0


# ---------------------------------------------------------------- list, show, verify


def list_models(options: argparse.Namespace) -> int:
    """Run `gridnode model list`."""
    with connect(options) as grid:
        items = grid.models().get("items", [])
    if options.json:
        print_json(items)
        return 0
    from gridnode.cli.tables import models_table

    screen = console()
    if not items:
        screen.print("no model is published; publish one with 'gridnode model publish FILE.onnx' or '--zoo street'")
        return 0
    screen.print(models_table(_records(items), columns=screen.width))
    return 0


def _records(items: list[dict[str, Any]]) -> "list[ModelStatus]":
    from gridnode.cli.status import read_list
    from gridnode.status import ModelStatus

    return read_list({"items": items}, ModelStatus)


def show_model(options: argparse.Namespace) -> int:
    """Run `gridnode model show`: the manifest from this node's signed state, and how the model stands here."""
    from gridnode.modelcheck import read_manifest
    from gridnode.statedir import StateDirectory

    digest, manifest = read_manifest(StateDirectory(state_dir(options)), options.name)
    standing = _standing(options)
    if options.json:
        print_json({"digest": digest, "manifest": manifest, "here": standing})
        return 0
    from gridnode.cli.tables import manifest_view, models_table

    screen = console()
    screen.print(manifest_view(digest, manifest))
    if standing is not None:
        screen.print()
        screen.print(models_table(_records([standing]), columns=screen.width))
    return 0


def _standing(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return how a model stands on this node; None where no daemon answers."""
    try:
        with connect(options, patience_s=0.5) as grid:
            return next((item for item in grid.models().get("items", []) if item["name"] == options.name), None)
    except GridError:
        return None


def verify_models(options: argparse.Namespace) -> int:
    """Run `gridnode model verify`: 1 where anything is wrong or a file is damaged."""
    if (options.name is None) == (not options.all):
        raise UsageError("give one model's NAME or --all")
    from gridnode.modelcheck import verify
    from gridnode.statedir import StateDirectory

    verdicts = verify(StateDirectory(state_dir(options)), options.name, now_s=time.time())
    if options.json:
        print_json(verdicts)
    else:
        from gridnode.cli.tables import verdicts_table

        console().print(verdicts_table(verdicts))
    return 1 if any(verdict.problem for verdict in verdicts) else 0


def _now_s() -> float:
    return time.monotonic()
