"""Cameras into one node: does the age of answered frames stay bounded, and does nothing pile up at the client?

A grid of one node with default settings runs the street detector. Each camera is a program of its own that takes a JPEG
of about 100 kB at each tick of its clock and sends it by ``grid.stream``. An age runs from the tick to the moment in
which the program has the answer, so a frame that waits anywhere gets older.

Settings, in turn, each with the same cameras and the same film:

newest       as many frames as cameras give; one that finds the stream full waits, and a newer one takes its place
all          the same frames, each of them sent: the camera waits
newest, more and all, more: the same from cameras so fast that one node cannot do it (--more)
saturated    every frame at once, no clock: what the node can do at most
bound        no grid: decoding and onnxruntime in a plain loop of one process, alone and one loop per core

    goals for newest: p99 of the age <= one period + the time in which the same run answers (in flight + 1) frames of
    each camera; the median of a run's last third above that of its first by one period at most; at most one frame waits
    in a camera (p99); no camera gets less than 0.8 of what the best one gets

Usage: .venv/bin/python -m benches.cameras [--cameras 4] [--fps 30] [--more 120] [--seconds 20] [--rounds 3]
           [--deadline 1.0] [--in-flight 4] [--only SETTING,...] [--json FILE] [--markdown FILE] [--from-json FILE]
"""

import argparse
import contextlib
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benches.peers import machine, processes
from benches.peers.figures import quantile, rotated
from benches.peers.grids import PrivateGrid
from benches.peers.tables import Table, draw, markdown, number
from benches.peers.ways import PeerError

SIZE = (1280, 720)
QUALITY = 85
"""Of the JPEG: about 100 kB each."""
FRAME_BYTES = (80_000, 120_000)
FRAMES = 24
"""Of the film; the cameras go round it from different places."""
SHIFT = 5
SEED = "cameras"
LEAD_S = 2.0
"""From the start of the programs to their first frame."""
SATURATED_S = 5.0
SATURATED_DEADLINE_S = 10.0
"""So long that nothing is refused."""
BOUND_S = 3.0
PATIENCE_S = 120.0
LEAST_SHARE = 0.8
BEGIN = "<!-- figures: written by python -m benches.cameras, do not edit -->"
END = "<!-- end of figures -->"
Run = dict[str, Any]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- one run


def draw_film(path: Path) -> list[int]:
    """Draw the film as the demo draws its own; return the sizes of its frames in bytes. 4 s of a core."""
    from gridnode.demo.film import FILM_FPS
    from models.zoo.street.scenes import render_video

    drawn = render_video(seed=SEED, frames=FRAMES, fps=FILM_FPS, size=SIZE, quality=QUALITY)
    frames = [jpeg for jpeg, _ in drawn]
    sizes = [len(frame) for frame in frames]
    mean = statistics.mean(sizes)
    if not FRAME_BYTES[0] <= mean <= FRAME_BYTES[1]:
        raise PeerError(f"frames have {mean:.0f} bytes, wanted are {FRAME_BYTES[0]} to {FRAME_BYTES[1]}; set QUALITY")
    path.write_bytes(msgspec.msgpack.encode(frames))
    return sizes


def start_program(plan: Mapping[str, Any], log: Path) -> "subprocess.Popen[str]":
    words = ["-P", "-m", "benches.camera_programs", json.dumps(plan)]
    return processes.start(words, mark="cameras-program", log=log)


def finish(program: "subprocess.Popen[str]", log: Path) -> Run:
    """Wait for a program's figures."""
    try:
        text, _ = program.communicate(timeout=PATIENCE_S)
    finally:
        processes.stop(program)
    if program.returncode:
        raise PeerError(f"a program ended with code {program.returncode}: {log.read_text(errors='replace')[-2000:]}")
    found: Run = json.loads(text)
    return found


class Bench:
    """A grid of one node, its film, and what is run on them."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder = folder
        self._options = options
        self._log = folder / "programs.log"
        self.film = folder / "film.bin"
        self.grid = PrivateGrid(folder / "grid", folder, ["street"])
        self.node = self.grid.nodes["n1"]

    def start(self) -> None:
        """Start the node and wait until it has checked and measured the model, and answers."""
        from gridnode.client import Grid
        from gridnode.errors import GridError

        self.grid.start(n1=["street"])
        self.grid.wait_answering("n1")
        frame, until_s = msgspec.msgpack.decode(self.film.read_bytes(), type=list[bytes])[0], time.monotonic() + 60.0
        with Grid(str(self.node.socket)) as client:
            while True:
                self.node.check()
                try:
                    client.infer("street", frame, deadline_s=5.0)
                    return
                except GridError:
                    if time.monotonic() > until_s:
                        raise
                    time.sleep(0.1)

    def processes(self) -> dict[str, list[int]]:
        """Return the node's processes: the daemon, and what it has started."""
        found: dict[str, list[int]] = {"daemon": [], "worker": []}
        for pid in self.node.pids():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                found["daemon" if b"run" in words and b"gridnode" in words else "worker"].append(pid)
        return found

    def run(self, mode: str, *, fps: float, seconds: float, deadline_s: float) -> Run:
        """Let all cameras send for some seconds; return each one's figures and what the node's processes took."""
        options = self._options
        start_s = time.monotonic() + LEAD_S
        plan = {
            "program": "camera",
            "socket": str(self.node.socket),
            "film": str(self.film),
            "seconds": seconds,
            "fps": fps,
            "mode": mode,
            "deadline_s": deadline_s,
            "in_flight": options.in_flight,
        }
        with contextlib.ExitStack() as stack:
            programs = []
            for place in range(options.cameras):
                # Cameras do not tick together.
                phase_s = place / (options.cameras * fps) if fps else 0.0
                program = start_program(plan | {"start_s": start_s + phase_s, "shift": place * SHIFT}, self._log)
                stack.callback(processes.stop, program)
                programs.append(program)
            time.sleep(max(0.0, start_s - time.monotonic()))
            pids, begin_s = self.processes(), time.monotonic()
            before = {name: processes.cpu_s(found) for name, found in pids.items()}
            time.sleep(max(0.0, start_s + seconds - time.monotonic()))
            spent_s = time.monotonic() - begin_s
            cpu = {name: (processes.cpu_s(found) - before[name]) / spent_s for name, found in pids.items()}
            memory = {name: processes.pss_bytes(found) / 1e6 for name, found in pids.items()}
            cameras = [finish(program, self._log) for program in programs]
        self.node.check()
        return {"mode": mode, "fps": fps, "seconds": seconds, "cameras": cameras, "cpu": cpu, "pss_mb": memory}

    def bound(self) -> Run:
        plan = {"program": "bound", "film": str(self.film), "folder": str(self._folder), "seconds": BOUND_S}
        return finish(start_program(plan, self._log), self._log)


def settings(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return what is run in each round, by the name it is shown under."""
    found: dict[str, dict[str, Any]] = {}
    for heading, fps in (("", options.fps), (", more", options.more)):
        for mode in ("newest", "all"):
            found[mode + heading] = {
                "mode": mode,
                "fps": fps,
                "seconds": options.seconds,
                "deadline_s": options.deadline,
            }
    seconds = min(SATURATED_S, options.seconds)
    found["saturated"] = {"mode": "all", "fps": 0.0, "seconds": seconds, "deadline_s": SATURATED_DEADLINE_S}
    return found


def perform(options: argparse.Namespace) -> Run:
    """Run all settings in turn, round by round."""
    from models.zoo.packages import ZOO

    begin_s, chosen = time.monotonic(), settings(options)
    about = machine.describe()
    rounds: list[Run] = []
    with tempfile.TemporaryDirectory(prefix="cameras-") as place, contextlib.ExitStack() as stack:
        folder = Path(place)
        shutil.copyfile(ZOO["street"].graph_path, folder / "street.onnx")
        say("a grid of one node, and the film")
        bench = Bench(folder, options)
        sizes = draw_film(bench.film)
        stack.callback(bench.grid.stop)
        bench.start()
        names = [name for name in (*chosen, "bound") if not options.only or name in options.only]
        for turn in range(options.rounds):
            found: Run = {}
            for name in rotated(names, turn):
                say(f"round {turn + 1} of {options.rounds}: {name}")
                found[name] = bench.bound() if name == "bound" else bench.run(**chosen[name])
            rounds.append(found)
    kept = {name: getattr(options, name) for name in ("cameras", "fps", "more", "seconds", "deadline", "in_flight")}
    document = {"machine": about, "settings": kept, "frame_bytes": sizes, "took_s": time.monotonic() - begin_s}
    return document | {"figures": judge([{name: figures(run) for name, run in part.items()} for part in rounds], kept)}


# ---------------------------------------------------------------- figures of one run


def figures(run: Run) -> Run:
    """Return what a run comes to: in all, and for each camera."""
    if "cameras" not in run:
        return bound_figures(run)
    cameras, seconds = run["cameras"], run["seconds"]
    every = stream_figures(cameras, seconds)
    cpu = {**run["cpu"], "clients": sum(camera["cpu_s"] for camera in cameras) / seconds}
    memory = {**run["pss_mb"], "clients": sum(camera["pss_bytes"] for camera in cameras) / 1e6}
    rates = [len(camera["answers"]) for camera in cameras]
    return every | {
        "mode": run["mode"],
        "fps": run["fps"],
        "cpu": cpu,
        "cpu_ms_per_answer": sum(cpu.values()) * seconds / max(1, every["answered"]) * 1e3,
        "pss_mb": memory,
        "least_share": min(rates) / max(1, *rates),
        "each": [stream_figures([camera], seconds) for camera in cameras],
    }


def bound_figures(run: Run) -> Run:
    """Return the figures of the plain loops, and of making the model's input alone."""
    found: Run = {
        name: {
            "rate_hz": run[name]["rate_hz"],
            "p50_ms": quantile(run[name]["times_s"], 0.5) * 1e3,
            "p99_ms": quantile(run[name]["times_s"], 0.99) * 1e3,
            "cpu_ms": run[name]["cpu_s"] * 1e3,
        }
        for name in ("alone", "together")
    }
    for name, times in run["pictures"].items():
        found[name] = {"cpu_ms": statistics.median(times) * 1e3}
    return found


def stream_figures(cameras: Sequence[Run], seconds: float) -> Run:
    """Return the figures of some cameras of one run."""
    answers = [answer for camera in cameras for answer in camera["answers"]]
    fates: Counter[str] = Counter()
    for camera in cameras:
        fates.update(camera["fates"])
    return {
        "offered": sum(camera["offered"] for camera in cameras),
        "taken": sum(camera["taken"] for camera in cameras),
        "answered": len(answers),
        "rate_hz": len(answers) / seconds,
        "fates": dict(fates),
        "age_ms": spread_ms([age for _, age, _ in answers]),
        "age_thirds_ms": [spread_ms(third) for third in thirds(answers, seconds)],
        "service_ms": spread_ms([service for _, _, service in answers]),
        "gap_ms": spread_ms([gap for camera in cameras for gap in gaps(camera["answers"])]),
        "backlog_p99": quantile([n for camera in cameras for n in camera["backlog"]] or [0], 0.99),
        "backlog_max": max((n for camera in cameras for n in camera["backlog"]), default=0),
    }


def spread_ms(values_s: Sequence[float]) -> dict[str, float | None]:
    if not values_s:
        return {"p50": None, "p99": None, "max": None}
    return {
        "p50": quantile(values_s, 0.5) * 1e3,
        "p99": quantile(values_s, 0.99) * 1e3,
        "max": max(values_s) * 1e3,
    }


def thirds(answers: Iterable[Sequence[float]], seconds: float) -> list[list[float]]:
    """Return the ages of frames that were captured in the first, second and last third of a run.

    Examples
    --------
    >>> thirds([(0.1, 5.0, 0.0), (0.9, 6.0, 0.0)], 1.0)
    [[5.0], [], [6.0]]
    """
    found: list[list[float]] = [[], [], []]
    for captured_s, age_s, _ in answers:
        found[min(2, int(3 * captured_s / seconds))].append(age_s)
    return found


def gaps(answers: Sequence[Sequence[float]]) -> list[float]:
    """Return the times between the answers that one program had, in seconds.

    Examples
    --------
    >>> gaps([(0.0, 1.0, 0.0), (0.5, 1.0, 0.0)])
    [0.5]
    """
    had_s = [captured_s + age_s for captured_s, age_s, _ in answers]
    return [later - earlier for earlier, later in itertools.pairwise(had_s)]


# ---------------------------------------------------------------- over rounds


def judge(rounds: Sequence[Run], kept: Mapping[str, Any]) -> Run:
    """Take medians over rounds, and hold mode newest against the goals, round by round."""
    found: Run = {name: median_of([part[name] for part in rounds]) for name in rounds[0]}
    for name, row in found.items():
        if row.get("mode") == "newest":
            verdicts = [goals(part[name], kept) for part in rounds]
            row["goals"] = {what: [verdict[what] for verdict in verdicts] for what in verdicts[0]}
    return found


def goals(row: Run, kept: Mapping[str, Any]) -> dict[str, Any]:
    """Say for one run whether each goal is met; the bound in milliseconds beside them.

    Examples
    --------
    >>> row = {"fps": 50.0, "rate_hz": 100.0, "age_ms": {"p99": 70.0}, "backlog_p99": 0, "least_share": 0.7}
    >>> row["age_thirds_ms"] = [{"p50": 30.0}, {"p50": 35.0}, {"p50": 51.0}]
    >>> goals(row, {"cameras": 2, "in_flight": 2})
    {'bounded': True, 'does not grow': False, 'no backlog': True, 'fair': False, 'bound_ms': 80.0}
    """
    period_ms = 1e3 / row["fps"]
    first, _, last = [third["p50"] for third in row["age_thirds_ms"]]  # one pause of the machine moves a p99
    bound_ms = kept["cameras"] * (kept["in_flight"] + 1) / max(row["rate_hz"], 1e-9) * 1e3 + period_ms
    return {
        "bounded": row["age_ms"]["p99"] is not None and row["age_ms"]["p99"] <= bound_ms,
        "does not grow": None not in (first, last) and last <= first + period_ms,
        "no backlog": row["backlog_p99"] <= 1,
        "fair": row["least_share"] >= LEAST_SHARE,
        "bound_ms": bound_ms,
    }


def median_of(values: Sequence[Any]) -> Any:
    """Take the median of figures in the same place of equally made records; what is no number is the first one's.

    Examples
    --------
    >>> median_of([{"a": 1, "b": ["x"]}, {"a": 5, "b": ["x"]}, {"a": 2, "b": ["x"]}])
    {'a': 2, 'b': ['x']}
    """
    first = values[0]
    if isinstance(first, dict):
        keys = {key: None for value in values for key in value}
        return {key: median_of([value.get(key, 0) for value in values]) for key in keys}
    if isinstance(first, list):
        return [median_of(list(column)) for column in zip(*values, strict=True)]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    return statistics.median(numbers) if numbers else first


# ---------------------------------------------------------------- tables


def all_tables(document: Run) -> list[Table]:
    found = {name: row for name, row in document["figures"].items() if name != "bound"}
    tables = [frames_table(found), cost_table(found)]
    if bound := document["figures"].get("bound"):
        tables.append(bound_table(bound))
    tables += [cameras_table(name, row) for name, row in found.items() if row["mode"] == "newest"]
    tables.append(goals_table(found))
    return tables


def frames_table(found: Mapping[str, Run]) -> Table:
    body = []
    for name, row in found.items():
        ages, fates = row["age_ms"], dict(row["fates"])
        skipped, superseded = (fates.pop(what, 0) for what in ("skipped at the client", "superseded in the grid"))
        body.append(
            (
                name,
                f"{row['offered']:,.0f}" if row["fps"] else "-",
                f"{row['answered']:,.0f}",
                number(row["rate_hz"]),
                *(f"{value:,.0f}" for value in (skipped, superseded)),
                ", ".join(f"{what} {count:g}" for what, count in sorted(fates.items())) or "0",
                *(number(ages[which]) for which in ("p50", "p99", "max")),
                " / ".join(number(third["p99"]) for third in row["age_thirds_ms"]),
                number(row["gap_ms"]["p99"]),
                f"{row['backlog_p99']:g} / {row['backlog_max']:g}" if row["fps"] else "-",
            )
        )
    columns = ("setting", "offered", "answered", "per s", "skipped at client", "superseded in grid", "refused")
    columns += ("age p50 ms", "p99", "max", "p99 by thirds", "gap p99 ms", "backlog p99 / max")
    return Table("frames of all cameras", columns, tuple(body))


def cost_table(found: Mapping[str, Run]) -> Table:
    who = ("clients", "daemon", "worker")
    body = [
        (
            name,
            *(number(100 * row["cpu"][one]) for one in who),
            number(row["cpu_ms_per_answer"]),
            number(row["service_ms"]["p50"]),
            *(number(row["pss_mb"][one]) for one in who),
        )
        for name, row in found.items()
    ]
    columns = ("setting", *(f"CPU % {one}" for one in who), "CPU-ms per answer", "service p50 ms")
    return Table("what it takes", (*columns, *(f"PSS MB {one}" for one in who)), tuple(body))


def bound_table(bound: Mapping[str, Run]) -> Table:
    words = {
        "alone": "one frame at a time on all cores",
        "together": "one frame per core at once",
        "scaled": "the model's input alone, decoded at a part of the size",
        "whole": "the model's input alone, from all pixels",
    }
    body = [
        (words[name], *(number(row.get(key)) for key in ("rate_hz", "p50_ms", "p99_ms", "cpu_ms")))
        for name, row in bound.items()
    ]
    return Table(
        "bound: no grid, one process", ("loop", "frames/s", "p50 ms", "p99 ms", "CPU-ms per frame"), tuple(body)
    )


def cameras_table(name: str, row: Run) -> Table:
    body = [
        (
            str(place + 1),
            *(f"{one[key]:,.0f}" for key in ("offered", "answered")),
            number(one["rate_hz"]),
            *(number(one["age_ms"][which]) for which in ("p50", "p99", "max")),
            number(one["gap_ms"]["p99"]),
            f"{one['backlog_p99']:g} / {one['backlog_max']:g}",
        )
        for place, one in enumerate(row["each"])
    ]
    columns = ("camera", "offered", "answered", "per s", "age p50 ms", "p99", "max", "gap p99 ms", "backlog p99 / max")
    return Table(f"by camera: {name}", columns, tuple(body))


def goals_table(found: Mapping[str, Run]) -> Table:
    body = []
    for name, row in found.items():
        for what, verdicts in row.get("goals", {}).items():
            if what != "bound_ms":
                met = sum(map(bool, verdicts))
                bound = statistics.median(row["goals"]["bound_ms"]) if what == "bounded" else None
                detail = f"p99 {number(row['age_ms']['p99'])} <= {number(bound)} ms" if bound else ""
                body.append((name, what, f"{met} of {len(verdicts)} rounds", detail))
    return Table("goals", ("setting", "goal", "met in", ""), tuple(body), left=(0, 1, 3))


def heading(document: Run) -> str:
    kept, sizes = document["settings"], document["frame_bytes"]
    text = (
        f"{machine.line(document['machine'])}. {kept['cameras']} cameras, {kept['fps']:g} or {kept['more']:g} frames/s "
    )
    text += f"each, {SIZE[0]}x{SIZE[1]} JPEG of {statistics.mean(sizes) / 1e3:.0f} kB ({min(sizes) / 1e3:.0f} to "
    text += f"{max(sizes) / 1e3:.0f}), {kept['in_flight']} in flight, {kept['deadline']:g} s deadline, "
    return text + f"{kept['seconds']:g} s per setting; {document['took_s'] / 60:.0f} minutes."


def between_markers(page: str, text: str) -> str:
    """Put text between the two marker lines of a page.

    Examples
    --------
    >>> between_markers(f"a\\n{BEGIN}\\nold\\n{END}\\nb", "new") == f"a\\n{BEGIN}\\n\\nnew\\n\\n{END}\\nb"
    True
    """
    head, begun, rest = page.partition(BEGIN)
    _, ended, tail = rest.partition(END)
    if not begun or not ended:
        raise PeerError(f"the file needs a line {BEGIN!r} and after it a line {END!r}; between them figures go")
    return f"{head}{BEGIN}\n\n{text.strip()}\n\n{END}{tail}"


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--cameras", type=int, default=4)
    found.add_argument("--fps", type=float, default=30.0, help="frames per second of a camera")
    found.add_argument("--more", type=float, default=120.0, help="the same, of cameras that overload the node")
    found.add_argument("--seconds", type=float, default=20.0, help="per setting and round")
    found.add_argument("--rounds", type=int, default=3)
    found.add_argument("--deadline", type=float, default=1.0, help="of each frame, in seconds")
    found.add_argument("--in-flight", type=int, default=4, help="frames of a camera in the grid at once")
    found.add_argument("--only", type=lambda text: text.split(","), default=[], help="settings, separated by commas")
    found.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    found.add_argument("--markdown", type=Path, metavar="FILE", help="put the tables between this file's markers")
    found.add_argument("--from-json", type=Path, metavar="FILE", help="show an earlier run instead of measuring")
    return found


def main() -> int:
    options = parser().parse_args()
    processes.die_politely()
    try:
        if options.markdown:  # a page without markers should not be found out after five minutes
            between_markers(options.markdown.read_text(), "")
        document = json.loads(options.from_json.read_text()) if options.from_json else perform(options)
    except PeerError as error:
        say(f"error: {error}")
        return 1
    if options.json:
        options.json.write_text(json.dumps(document, indent=1) + "\n")
    tables = all_tables(document)
    if options.markdown:
        text = markdown(tables, heading=heading(document))
        options.markdown.write_text(between_markers(options.markdown.read_text(), text))
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    console.print(heading(document), markup=False)
    draw(console, tables)
    return 0


if __name__ == "__main__":
    sys.exit(main())
