"""``gridnode submit``: pictures into the grid, detections out."""

import argparse
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from gridnode.cli.options import UsageError, add_json, add_socket, duration_s
from gridnode.cli.output import console, millis, print_json
from gridnode.errors import GridError, InvalidInputError

if TYPE_CHECKING:
    from rich.progress import Progress

    from gridnode.client import Grid, Handle, Result

PICTURES: Final = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp")
"""What is taken from a folder; a file that is named is tried whatever its name."""
WINDOW: Final = 16
"""Pictures in the grid at once: enough for several nodes, few enough to keep memory small."""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the group's commands."""
    submit = commands.add_parser("submit", help="run a model on pictures")
    submit.add_argument("model", metavar="MODEL", help="name of a published model, or name@digest")
    submit.add_argument("files", nargs="+", type=Path, metavar="FILE", help="pictures, and folders of pictures")
    submit.add_argument("--annotate", type=Path, metavar="DIR", help="draw the boxes on copies of the pictures there")
    submit.add_argument(
        "--deadline", type=duration_s, metavar="TIME", help="time until a picture's answer is worth nothing"
    )
    submit.add_argument("--priority", type=int, choices=range(4), default=1, help="0 first, 3 last (default: 1)")
    submit.add_argument("--no-rungs", action="store_true", help="take no answer from a smaller variant of the model")
    submit.add_argument("--score", type=float, metavar="MIN", help="replaces the model's threshold, 0 to 1")
    add_socket(submit)
    add_json(submit)
    submit.set_defaults(run=submit_pictures)


def find_pictures(paths: Iterable[Path]) -> list[Path]:
    """Return the pictures meant: files as named, folders with all that is in them, sorted; raises UsageError."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.is_file())
            if not inside:
                raise UsageError(f"folder {path} holds no pictures ({', '.join(PICTURES)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise UsageError(f"there is no picture {path}; check the path")
    return found


def submit_pictures(options: argparse.Namespace) -> int:
    """Run `gridnode submit`: 0 when every picture was answered, else 1; the errors are named, one by one."""
    from gridnode.client import Grid

    pictures = find_pictures(options.files)
    easel = None if options.annotate is None else Easel(options.annotate)
    bar = _progress_bar(len(pictures))
    lines: list[dict[str, Any]] = []
    started_s = _now_s()
    with Grid(options.socket or None) as grid, bar or nullcontext():
        for path, outcome in _run(grid, pictures, options):
            line = describe(path, outcome)
            if easel is not None and not isinstance(outcome, GridError):
                line["annotated"] = str(easel.draw(path, outcome))
            lines.append(line)
            if bar is not None:
                bar.advance(bar.task_ids[0])
            if not options.json:
                _print_line(line)
    failed = sum("error" in line for line in lines)
    if options.json:
        print_json({"model": options.model, "results": lines, "failed": failed})
    else:
        _print_sum(lines, elapsed_s=_now_s() - started_s)
    return 1 if failed else 0


def _run(
    grid: "Grid", pictures: list[Path], options: argparse.Namespace
) -> Iterator[tuple[Path, "Result | GridError"]]:
    """Keep WINDOW pictures in the grid; yield the outcomes in the pictures' order."""
    waiting: deque[tuple[Path, Handle | GridError]] = deque()
    for path in pictures:
        if len(waiting) >= WINDOW:
            yield _outcome(*waiting.popleft())
        try:
            handle: Handle | GridError = grid.submit(
                options.model,
                path,
                deadline_s=options.deadline,
                priority=options.priority,
                rungs=not options.no_rungs,
                score_threshold=options.score,
            )
        except InvalidInputError as error:
            handle = error
        waiting.append((path, handle))
    while waiting:
        yield _outcome(*waiting.popleft())


def _outcome(path: Path, handle: "Handle | GridError") -> tuple[Path, "Result | GridError"]:
    """Wait for one picture. Without any daemon the whole command fails, as there is nothing more to try."""
    from gridnode.errors import DaemonUnreachableError

    if isinstance(handle, GridError):
        return path, handle
    try:
        return path, handle.result()
    except DaemonUnreachableError:
        raise
    except GridError as error:
        return path, error


def describe(path: Path, outcome: "Result | GridError") -> dict[str, Any]:
    """Return one picture's outcome as a document."""
    if isinstance(outcome, GridError):
        return {"file": str(path), "error": type(outcome).__name__, "message": str(outcome)}
    return {
        "file": str(path),
        "key": outcome.key.hex(),
        "model": outcome.model,
        "model_digest": outcome.model_digest,
        "node": outcome.node,
        "node_id": outcome.node_id,
        "hops": outcome.hops,
        "emulated": outcome.emulated,
        "timings": outcome.timings,
        "image_size": outcome.image_size,
        "detections": outcome.detections,
        "classes": outcome.classes,
    }


class Easel:
    """Draws results into a folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._taken: set[Path] = set()

    def draw(self, path: Path, result: "Result") -> Path:
        """Draw one result on a copy of its picture; two pictures of one name get different copies."""
        target, number = self._folder / f"{path.stem}.jpg", 1
        while target in self._taken:
            number += 1
            target = self._folder / f"{path.stem}-{number}.jpg"
        self._taken.add(target)
        result.annotate(path).save(target, quality=90)
        return target


def _progress_bar(count: int) -> "Progress | None":
    """Return a bar on stderr; None where nobody looks or one picture is all."""
    if count < 2 or not sys.stderr.isatty():
        return None
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console(stderr=True),
        transient=True,
    )  # fmt: skip
    bar.add_task("pictures", total=count)
    return bar


def _print_line(line: dict[str, Any]) -> None:
    from rich.text import Text

    text = Text(line["file"] + "  ")
    if "error" in line:
        text.append(line["error"], style="red").append(": " + line["message"])
    else:
        where = line["node"] + (f", {line['hops']} hop{'s' * (line['hops'] > 1)}" if line["hops"] else "")
        took = millis(line["timings"].client_s * 1000)
        text.append(summary_text(line), style="bold").append(f"  {where}, {took}, {line['model']}", style="dim")
    console().print(text, soft_wrap=True)


def summary_text(line: dict[str, Any]) -> str:
    """Say in a few words what was found."""
    if line["classes"]:
        best = line["classes"][0]
        return f"{best.class_name} {best.score:.0%}"
    counts: dict[str, int] = {}
    for detection in line["detections"]:
        counts[detection.class_name] = counts.get(detection.class_name, 0) + 1
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "nothing found"


def _print_sum(lines: list[dict[str, Any]], *, elapsed_s: float) -> None:
    if len(lines) < 2:
        return
    nodes: dict[str, int] = {}
    for line in lines:
        if "error" not in line:
            nodes[line["node"]] = nodes.get(line["node"], 0) + 1
    shares = ", ".join(f"{name} {count}" for name, count in sorted(nodes.items(), key=lambda item: -item[1]))
    failed = sum("error" in line for line in lines)
    rate = len(lines) / elapsed_s if elapsed_s > 0 else 0.0
    console().print(
        f"{len(lines)} pictures in {elapsed_s:.1f} s ({rate:.1f}/s), {failed} without an answer; by node: {shares}"
    )


def _now_s() -> float:
    return time.monotonic()
