"""What a node costs before any work comes: its imports, its memory, its start, its idling.

Real daemons, real workers, default settings but for free ports on 127.0.0.1. Five parts, all of them by default:

imports   modules of daemon, worker, client and command line, the time they take, and who imports what a light
          process should do without
memory    PSS, USS and RSS of an idle daemon with one worker that holds squeezenet, and what they are made of
cold      a node of a grid of three is started again: time from its start to the first right answer of its own worker
          (local) and of a model that only a peer has (remote), both through its own socket; then all three at once.
          cpu_s is the processor time of daemon, workers and checks soon after, which other work hardly changes
session   what a worker's way to load a model saves beside onnxruntime's plain session, and that it costs no speed
idle      processor time and switches per second of three nodes that do nothing

    goals: daemon and worker idle <= 120 MB of PSS (stretch 90); cold start, both ways <= 2.0 s (stretch 1.2)

PSS counts a page that others map too in part, so a second Python on the machine makes it smaller; "alone" beside it
is what both processes would take with nobody to share with.

Usage: .venv/bin/python -m benches.light_node [PART ...] [--repeats N] [--idle-s S] [--json FILE] [--keep-logs DIR]
"""

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from gridnode.client import Grid
from gridnode.errors import GridError

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("imports", "memory", "cold", "session", "idle")
LOCAL, FAR = "squeezenet", "far"
"""A model of all nodes, and one that only the third has."""
PSS_GOALS_MB = (120.0, 90.0)
COLD_GOALS_S = (2.0, 1.2)
SETTLE_S = 6.0
"""After the last start, before memory is read or idling is timed: the rush of first contacts is over."""
READY_MAX_S = 90.0

DISPENSABLE = {
    "daemon": (
        "onnxruntime", "onnx", "PIL", "matplotlib", "grpc", "aioquic", "numpy", "rich", "zeroconf", "requests",
        "urllib3", "http", "email", "asyncio", "nacl", "fastecdsa", "coincurve", "prometheus_client", "miniupnpc",
        "google.protobuf", "trio_typing", "async_service", "pydantic", "h11", "xml", "unittest", "pdb", "argparse",
        "msgpack", "psutil", "tomllib", "base58", "blake3", "mmh3", "rpcudp", "dns", "simulator",
    ),
    "worker": (
        "trio", "libp2p", "cryptography", "ssl", "asyncio", "PIL", "onnx", "rich", "tuf", "onnxruntime.transformers",
        "email", "http", "unittest", "multiprocessing", "numpy.ma", "numpy.random", "numpy.polynomial", "numpy.fft",
        "scheduler", "transport", "gridnode",
    ),
    "client": ("numpy", "PIL", "trio", "anyio", "asyncio", "ssl", "scheduler", "transport", "models", "email", "http"),
    "command line": ("numpy", "PIL", "trio", "rich", "msgspec.toml", "models", "transport", "scheduler"),
}  # fmt: skip
"""What one might do without, per process; found ones are listed with who imports them."""


# ---------------------------------------------------------------- imports


def import_tree(text: str) -> list[tuple[int, int, str, str]]:
    """Read `python -X importtime`: (own us, cumulative us, module, importer) in the order in which they ended.

    A module's line comes after those of what it imports, which are indented by two more spaces.
    """
    found, waiting = [], []
    for line in text.splitlines():
        match = re.fullmatch(r"import time:\s+(\d+) \|\s+(\d+) \| (\s*)(\S+)", line)
        if match is None:
            continue
        depth = len(match[3]) // 2
        name = match[4]
        while waiting and waiting[-1][0] > depth:
            index = waiting.pop()[1]
            found[index][3] = name
        found.append([int(match[1]), int(match[2]), name, ""])
        waiting.append((depth, len(found) - 1))
    return [tuple(entry) for entry in found]


def judge_imports(process: str, text: str) -> dict[str, object]:
    """Count a process's imports, and name those it could do without."""
    tree = import_tree(text)
    importers: dict[str, str] = {}
    for _, _, name, importer in tree:
        importers.setdefault(name, importer)
    found = {}
    for unwanted in DISPENSABLE[process]:
        loaded = [name for name in importers if name == unwanted or name.startswith(f"{unwanted}.")]
        if loaded:
            own_us = sum(own for own, _, name, _ in tree if name in loaded)
            by = chain(loaded[-1] if unwanted not in importers else unwanted, importers)
            found[unwanted] = {"modules": len(loaded), "own_ms": round(own_us / 1e3, 1), "by": by}
    packages: dict[str, list[int]] = {}
    for own, _, name, _ in tree:
        packages.setdefault(name.partition(".")[0], []).append(own)
    heaviest = sorted(packages.items(), key=lambda item: -sum(item[1]))[:12]
    return {
        "modules": len(importers),
        "import_ms": round(sum(own for own, _, _, _ in tree) / 1e3, 1),
        "heaviest": {name: {"modules": len(own), "own_ms": round(sum(own) / 1e3, 1)} for name, own in heaviest},
        "dispensable": found,
    }


def chain(name: str, importers: dict[str, str]) -> str:
    """Return who imports a module, and who them, up to four steps."""
    steps = []
    while importers.get(name) and len(steps) < 4:
        name = importers[name]
        steps.append(name)
    return " < ".join(steps) or "the main module, or in a function"


def bench_imports(grid: "BenchGrid") -> dict[str, object]:
    """Let each kind of process import what it does, once, with bytecode there."""
    first = grid["a"]
    first.start(environment={"PYTHONPROFILEIMPORTTIME": "1"})
    first.wait_models()
    daemon = judge_imports("daemon", first.stop_and_read_log())
    started = {
        "worker": "import models.worker, models.session",
        "client": "import gridnode.client",
        "command line": "import gridnode.cli.main; gridnode.cli.main.build_parser()",
    }
    found: dict[str, object] = {"daemon": daemon}
    for process, code in started.items():
        command = [sys.executable, "-P", "-X", "importtime", "-c", code]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        found[process] = judge_imports(process, done.stderr)
    return found


def print_imports(found: dict) -> None:
    for process, entry in found.items():
        print(f"\n{process}: {entry['modules']} modules, {entry['import_ms']:.0f} ms of imports")
        heavy = (f"{name} {own['own_ms']:.0f} ms/{own['modules']}" for name, own in entry["heaviest"].items())
        print("  heaviest: " + ", ".join(heavy))
        for name, own in entry["dispensable"].items():
            print(f"  {name:20} {own['modules']:4} modules {own['own_ms']:7.1f} ms  < {own['by']}")


# ---------------------------------------------------------------- a grid of three


class Node:
    """One daemon of the bench."""

    def __init__(self, folder: Path, name: str, models: tuple[str, ...], ports: tuple[int, int]) -> None:
        self.name = name
        self.folder = folder
        self.state = folder / name
        self.socket = folder / f"{name}.sock"
        self.log = folder / f"{name}.log"
        self.models = models
        self.ports = ports
        self.process: subprocess.Popen | None = None
        self.started_s = 0.0

    def start(self, environment: dict[str, str] | None = None) -> None:
        """Start the daemon on the ports it always has, as one on a real machine."""
        settings = {
            "network.control.port": self.ports[0],
            "network.data.port": self.ports[1],
            "runtime.models": json.dumps(list(self.models)),
        }
        command = [
            *(sys.executable, "-P", "-m", "gridnode", "run", "--preset", "loopback", "--name", self.name),
            *("--state-dir", str(self.state), "--socket", str(self.socket)),
            *(word for key, value in settings.items() for word in ("--set", f"{key}={value}")),
        ]
        with self.log.open("wb") as log:
            self.started_s = time.monotonic()
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=os.environ | (environment or {})
            )

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def stop_and_read_log(self) -> str:
        self.stop()
        return self.log.read_text(errors="replace")

    def ask(self, what: str, argument: str = "") -> dict:
        with Grid(str(self.socket), patience_s=0.5) as grid:
            return grid.ask(what, argument)

    def wait_models(self) -> None:
        """Wait until all models of this node are ready."""

        def is_ready() -> bool:
            states = [item["state"] for item in self.ask("models")["items"] if item["name"] in self.models]
            return len(states) == len(self.models) and set(states) == {"ready"}

        wait_until(is_ready, f"{self.name} to be ready, see {self.log}")

    def wait_peers(self, count: int) -> None:
        """Wait until jobs may be placed on so many peers."""

        def is_met() -> bool:
            peers = self.ask("peers")["items"]
            return sum(peer["status"] == "alive" and peer["backlog_s"] is not None for peer in peers) >= count

        wait_until(is_met, f"{self.name} to know {count} peers, see {self.log}")

    def pids(self) -> tuple[int, list[int]]:
        """Return the daemon's process and those of its workers."""
        assert self.process is not None
        return self.process.pid, [worker["pid"] for worker in self.ask("status")["workers"]]


def wait_until(condition, what: str) -> None:
    until_s = time.monotonic() + READY_MAX_S
    while time.monotonic() < until_s:
        with contextlib.suppress(GridError, KeyError):
            if condition():
                return
        time.sleep(0.05)
    raise SystemExit(f"waited {READY_MAX_S:g} s in vain for {what}")


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def write_models(folder: str) -> None:
    """Write both models, an input, and the right answers to it."""
    import numpy as np
    import onnxruntime

    from benches.peers.topologies import squeezenet, write

    x = np.random.default_rng(7).random((1, 3, 224, 224), dtype=np.float32)
    np.save(f"{folder}/input.npy", x)
    for seed, model in enumerate((LOCAL, FAR)):
        path = Path(folder) / f"{model}.onnx"
        write(squeezenet(seed=seed), path)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        np.save(f"{folder}/{model}.npy", session.run(None, {"x": x})[0])


class BenchGrid:
    """Three nodes of one grid, installed and stopped: a makes the grid, all have LOCAL, c has FAR too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ports = free_ports(6)
        wanted = {"a": (LOCAL,), "b": (LOCAL,), "c": (FAR, LOCAL)}
        self.nodes = {
            name: Node(folder, name, models, (ports[2 * i], ports[2 * i + 1]))
            for i, (name, models) in enumerate(wanted.items())
        }
        # In a process of its own: what this one maps would be shared with those whose memory is read.
        with ProcessPoolExecutor(1, get_context("spawn")) as maker:
            maker.submit(write_models, str(folder)).result()
        self._install()

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def _install(self) -> None:
        """Make the grid, publish, join, and run once, so that everything is on disk and measured."""
        first = self["a"]
        owner = ("--owner-dir", str(self.folder / "owner"))
        command("grid", "create", "bench", "--state-dir", str(first.state), *owner)
        for model in (LOCAL, FAR):
            words = ("model", "publish", str(self.folder / f"{model}.onnx"), "--name", model)
            command(*words, "--state-dir", str(first.state), "--socket", str(first.socket), *owner)
        first.start()
        first.wait_models()
        for name in ("b", "c"):
            token = command("invite", "--socket", str(first.socket)).split()[-1]
            node = self[name]
            command("join", token, "--name", name, "--state-dir", str(node.state))
            node.start()
        for node in self.nodes.values():
            node.wait_models()
            node.wait_peers(2)
        time.sleep(2.0)
        self.stop()

    def start(self) -> None:
        for node in self.nodes.values():
            node.start()
        for node in self.nodes.values():
            node.wait_models()
            node.wait_peers(2)

    def stop(self) -> None:
        for node in self.nodes.values():
            if node.process is not None:
                node.process.terminate()
        for node in self.nodes.values():
            node.stop()

    def kill(self) -> None:
        for node in self.nodes.values():
            if node.process is not None:
                node.process.kill()
                node.process.wait()


def command(*words: str) -> str:
    done = subprocess.run([sys.executable, "-P", "-m", "gridnode", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"gridnode {' '.join(words)}: {done.stderr}")
    return done.stdout


# ---------------------------------------------------------------- memory

KINDS = (
    ("onnxruntime", "onnxruntime"),
    ("numpy", "numpy"),
    ("pillow", r"/PIL/|pillow"),
    ("libssl, libcrypto", r"libssl|libcrypto"),
    ("cryptography", "/cryptography/"),
    ("protobuf", r"/google/|_upb"),
    ("libsodium", r"_sodium|libsodium|/nacl/"),
    ("python", r"/python3[^/]*$|libpython"),
    ("libc, loader", r"/ld-|/libc\.|/libc-|libm\.|libm-|libpthread|libstdc|libgcc"),
    ("shared memory", r"memfd:|/dev/shm"),
    ("other libraries", r"\.so"),
    ("heap", r"^\[heap\]"),
    ("stack", r"^\[stack"),
    ("anonymous", r"^$|^\[anon"),
    ("other files", ""),
)
"""What a mapping is, by its name; the first that fits."""


def memory(pid: int) -> dict[str, object]:
    """Read what a process takes, in MB, all of it and by kind of mapping."""
    kinds: dict[str, dict[str, float]] = {}
    kind = ""
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        header = re.match(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ *(.*)", line)
        if header:
            kind = next(name for name, pattern in KINDS if re.search(pattern, header[1]))
            continue
        key, _, value = line.partition(":")
        if key in ("Rss", "Pss", "Private_Clean", "Private_Dirty"):
            entry = kinds.setdefault(kind, {"pss": 0.0, "uss": 0.0, "rss": 0.0})
            size_mb = int(value.split()[0]) * 1024 / 1e6
            entry["uss" if key.startswith("Private") else key.lower()] += size_mb
    total = {key: round(sum(entry[key] for entry in kinds.values()), 1) for key in ("pss", "uss", "rss")}
    parts = sorted(((name, round(entry["pss"], 1)) for name, entry in kinds.items()), key=lambda item: -item[1])
    return total | {"parts": {name: pss for name, pss in parts if pss >= 0.05}}


def alone_mb(pids: list[int]) -> float:
    """Return what processes would take with nobody else to share with: each page of a file counts once, in MB."""
    private_kb = 0
    shared: dict[tuple[str, str], int] = {}
    for pid in pids:
        key = ("", "")
        for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
            header = re.match(r"[0-9a-f]+-[0-9a-f]+ (\S+) (\S+) \S+ (\d+) *(.*)", line)
            if header:
                key = (f"{header[4]} {header[3]}", header[2])
                rss_kb = dirty_kb = 0
                continue
            name, _, value = line.partition(":")
            if name == "Rss":
                rss_kb = int(value.split()[0])
            elif name == "Anonymous":
                # Comes after Rss: pages of a file that were written to are the process's own.
                dirty_kb = int(value.split()[0])
                private_kb += dirty_kb
                shared[key] = max(shared.get(key, 0), rss_kb - dirty_kb)
    return (private_kb + sum(shared.values())) * 1024 / 1e6


def bench_memory(grid: BenchGrid, repeats: int) -> dict[str, object]:
    """Read the memory of node b in an idle grid of three, and of one node alone."""
    found: dict[str, object] = {}
    for label, names in (("alone", "a"), ("of three", "abc")):
        totals, readings, alone = [], [], []
        for _ in range(repeats):
            for name in names:
                grid[name].start()
            for name in names:
                grid[name].wait_models()
                grid[name].wait_peers(len(names) - 1)
            time.sleep(SETTLE_S)
            daemon, workers = grid["b" if len(names) > 1 else "a"].pids()
            time.sleep(1.0)
            readings.append({"daemon": memory(daemon), "worker": memory(workers[0])})
            alone.append(alone_mb([daemon, workers[0]]))
            totals.append(sum(entry["pss"] for entry in readings[-1].values()))
            grid.stop()
        middle = totals.index(statistics.median_low(totals))
        found[label] = readings[middle] | {
            "pss_mb": round(totals[middle], 1),
            "alone_mb": round(alone[middle], 1),
            "pss_mb_all": totals,
        }
    return found


def print_memory(found: dict) -> None:
    for label, entry in found.items():
        verdict = judge(entry["pss_mb"], PSS_GOALS_MB)
        print(f"\nidle node {label}: {entry['pss_mb']} MB PSS ({entry['alone_mb']} alone), {verdict}")
        for process in ("daemon", "worker"):
            own = entry[process]
            print(f"  {process:7} PSS {own['pss']:6} MB  USS {own['uss']:6} MB  RSS {own['rss']:6} MB")
            print("          " + ", ".join(f"{name} {pss}" for name, pss in own["parts"].items()))


def judge(value: float, goals: tuple[float, float]) -> str:
    if value <= goals[1]:
        return f"stretch goal {goals[1]:g} met"
    return f"goal {goals[0]:g} {'met' if value <= goals[0] else 'MISSED'}, stretch {goals[1]:g} missed"


# ---------------------------------------------------------------- cold start


class Asker(threading.Thread):
    """Asks a node for one model until the answer is right and came from where it should; tells when that was."""

    def __init__(self, grid: BenchGrid, node: Node, model: str, from_whom: str) -> None:
        import numpy as np

        super().__init__(daemon=True)
        self._np = np
        self._node, self._model, self._from_whom = node, model, from_whom
        self._input = self._np.load(grid.folder / "input.npy")
        self._expected = self._np.load(grid.folder / f"{model}.npy")
        self.after_s = float("inf")
        self.socket_s = float("inf")
        self.refusals: list[str] = []

    def run(self) -> None:
        until_s = self._node.started_s + READY_MAX_S
        self._wait_socket(until_s)
        self.socket_s = time.monotonic() - self._node.started_s
        with Grid(str(self._node.socket)) as client:
            while time.monotonic() < until_s:
                if self._is_answered(client):
                    self.after_s = time.monotonic() - self._node.started_s
                    return
                time.sleep(0.004)

    def _wait_socket(self, until_s: float) -> None:
        while time.monotonic() < until_s:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self._node.socket))
                return
            time.sleep(0.004)

    def _is_answered(self, client: Grid) -> bool:
        try:
            result = client.infer(self._model, {"x": self._input}, deadline_s=1.5, raw_outputs=True)
        except GridError as error:
            text = f"{type(error).__name__}: {error}"[:120]
            if self.refusals[-1:] != [text]:
                self.refusals.append(text)
            return False
        [output] = result.tensors.values()
        assert self._np.allclose(output, self._expected, rtol=1e-3, atol=1e-3), f"{self._model} answered wrongly"
        return result.node == self._from_whom


def ask_both(grid: BenchGrid, node: Node) -> tuple[Asker, Asker]:
    local = Asker(grid, node, LOCAL, node.name)
    remote = Asker(grid, node, FAR, "c")
    local.start()
    remote.start()
    return local, remote


def timeline(node: Node) -> dict[str, float]:
    """Read from the log after how many seconds of its process a node's first events came."""
    ready = re.search(r"daemon_ready after_s=([\d.]+)", node.log.read_text(errors="replace"))
    found: dict[str, float] = {}
    moments: list[tuple[float, str]] = []
    for line in node.log.read_text(errors="replace").splitlines():
        match = re.match(r"(\d\d):(\d\d):(\d\d\.\d+) \S+\s+\S+ (\S+)", line)
        if match:
            moments.append((int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3]), match[4]))
    base = next((moment for moment, event in moments if event == "daemon_ready"), None)
    if base is None or ready is None:
        return found
    for moment, event in moments:
        found.setdefault(event, round(moment - base + float(ready[1]), 2))
    return found


def bench_cold(grid: BenchGrid, repeats: int, keep: Path | None) -> dict[str, object]:
    """Start one node of three again and again, then all three at once."""
    runs: list[dict] = []
    grid.start()
    for _ in range(repeats):
        node = grid["b"]
        node.stop()
        time.sleep(1.0)
        node.start()
        local, remote = ask_both(grid, node)
        local.join()
        remote.join()
        time.sleep(0.5)
        runs.append(row(node, local, remote, keep))
        node.wait_peers(2)
    grid.stop()
    together: list[dict] = []
    for _ in range(repeats):
        for node in grid.nodes.values():
            node.start()
        asked = {name: ask_both(grid, grid[name]) for name in ("a", "b")}
        for pair in asked.values():
            for asker in pair:
                asker.join()
        time.sleep(0.5)
        together.extend(row(grid[name], *pair, keep) for name, pair in asked.items())
        grid.stop()
    return {"one": summary(runs), "three at once": summary(together)}


def start_cpu_s(pid: int) -> float:
    """Return the processor time of a daemon so far, with its workers and what it has waited for."""
    ticks = 0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for process in (str(pid), *children):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK")


def row(node: Node, local: Asker, remote: Asker, keep: Path | None) -> dict:
    if keep is not None:
        shutil.copy(node.log, keep / f"{node.name}-{time.time_ns()}.log")
    return {
        "node": node.name,
        "socket_s": round(min(local.socket_s, remote.socket_s), 3),
        "local_s": round(local.after_s, 3),
        "remote_s": round(remote.after_s, 3),
        "both_s": round(max(local.after_s, remote.after_s), 3),
        "cpu_s": start_cpu_s(node.process.pid),
        "refusals": {"local": local.refusals, "remote": remote.refusals},
        "events": timeline(node),
    }


def summary(rows: list[dict]) -> dict:
    keys = ("socket_s", "local_s", "remote_s", "both_s", "cpu_s")
    events: dict[str, list[float]] = {}
    for each in rows:
        for event, moment in each["events"].items():
            events.setdefault(event, []).append(moment)
    medians = {event: statistics.median(moments) for event, moments in events.items()}
    return {
        "median": {key: round(statistics.median(each[key] for each in rows), 3) for key in keys},
        "worst": {key: max(each[key] for each in rows) for key in keys},
        "events_s": dict(sorted(medians.items(), key=lambda item: item[1])),
        "runs": rows,
    }


def print_cold(found: dict) -> None:
    for label, entry in found.items():
        middle, worst = entry["median"], entry["worst"]
        print(f"\ncold start, {label}: {middle['both_s']:.2f} s, {judge(middle['both_s'], COLD_GOALS_S)}")
        for key in middle:
            print(f"  {key:9} median {middle[key]:6.2f}  worst {worst[key]:6.2f}")
        print("  events: " + ", ".join(f"{event} {moment:.2f}" for event, moment in entry["events_s"].items()))


# ---------------------------------------------------------------- session


def make_session(kind: str, path: str):
    """Load the model as onnxruntime's own class does, or as a worker does; with the worker's options either way."""
    import onnxruntime

    from models import session
    from models.manifest import Manifest, TensorSpec, describe_shard

    graph = Path(path).read_bytes()
    if kind == "plain":
        session._register_arena()
        loaded = onnxruntime.InferenceSession(graph, session._options(1), providers=["CPUExecutionProvider"])
        return lambda x: loaded.run(["y"], {"x": x})
    manifest = Manifest(
        name=LOCAL,
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 3, 224, 224)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 1000)),),
        peak_memory_bytes=1 << 26,
        graph="graph.onnx",
        shards=(describe_shard("graph.onnx", [b"x"]),),
    )
    ours = session.Session(graph, manifest, threads=1, providers=("CPUExecutionProvider",))
    ours.warm_up()
    del graph
    session.give_back()
    return lambda x: ours._session.run(["y"], {"x": x}, session.RunOptions())


def session_memory(kind: str, path: str) -> float:
    """Return what a loaded model that has run adds to a process that has the libraries, in MB."""
    import numpy as np

    import models.session  # noqa: F401

    def own_mb() -> float:
        text = Path("/proc/self/smaps_rollup").read_text()
        return int(re.search(r"^Pss_Anon: +(\d+)", text, re.MULTILINE)[1]) * 1024 / 1e6

    x = np.zeros((1, 3, 224, 224), np.float32)
    before_mb = own_mb()
    run = make_session(kind, path)
    for _ in range(5):
        run(x)
    return own_mb() - before_mb


def session_speed(path: str, runs: int = 1000) -> dict[str, float]:
    """Return the median processor time of one run, in ms, both ways turn about in one process."""
    import numpy as np

    x = np.random.default_rng(0).random((1, 3, 224, 224), dtype=np.float32)
    ways = {kind: make_session(kind, path) for kind in ("plain", "worker")}
    times_ns: dict[str, list[int]] = {kind: [] for kind in ways}
    for number in range(runs):
        for kind in sorted(ways, reverse=number % 2 == 0):
            start_ns = time.thread_time_ns()
            ways[kind](x)
            times_ns[kind].append(time.thread_time_ns() - start_ns)
    return {kind: statistics.median(found[20:]) / 1e6 for kind, found in times_ns.items()}


def bench_session(grid: BenchGrid) -> dict[str, object]:
    path = str(grid.folder / f"{LOCAL}.onnx")

    def apart(work, *given):
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            return process.submit(work, *given).result()

    return {
        "speed_ms": apart(session_speed, path),
        "memory_mb": {kind: round(apart(session_memory, kind, path), 1) for kind in ("plain", "worker")},
    }


def print_session(found: dict) -> None:
    speed, size = found["speed_ms"], found["memory_mb"]
    print(f"\nsqueezenet, one thread: worker {speed['worker'] / speed['plain']:.3f}x the time of a plain session")
    print(f"  memory beside the libraries: worker {size['worker']} MB, plain {size['plain']} MB")


# ---------------------------------------------------------------- idling


def bench_idle(grid: BenchGrid, idle_s: float) -> dict[str, object]:
    """Time three idle nodes."""
    grid.start()
    time.sleep(SETTLE_S)
    processes = {}
    for name, node in grid.nodes.items():
        daemon, workers = node.pids()
        processes[f"daemon {name}"] = daemon
        processes |= {f"worker {name}{number}": pid for number, pid in enumerate(workers)}
    time.sleep(2.0)
    before = {name: spent(pid) for name, pid in processes.items()}
    time.sleep(idle_s)
    after = {name: spent(pid) for name, pid in processes.items()}
    grid.stop()
    return {
        name: {
            "cpu_percent": round((after[name][0] - before[name][0]) / idle_s * 100, 3),
            "switches_per_s": round((after[name][1] - before[name][1]) / idle_s, 1),
        }
        for name in processes
    }


def spent(pid: int) -> tuple[float, int]:
    """Return a process's processor time in seconds and its voluntary switches, of all threads there are now."""
    cpu_ns = switches = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            cpu_ns += int((thread / "schedstat").read_text().split()[0])
            text = (thread / "status").read_text()
            switches += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", text, re.MULTILINE)[1])
    return cpu_ns / 1e9, switches


def print_idle(found: dict) -> None:
    print()
    for name, entry in found.items():
        print(f"idle {name:10} {entry['cpu_percent']:6.2f} % of a core, {entry['switches_per_s']:6.1f} switches/s")


# ---------------------------------------------------------------- all


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--idle-s", type=float, default=30.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--keep-logs", type=Path)
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    if not set(parts) <= set(PARTS):
        parser.error(f"parts are {', '.join(PARTS)}")
    if options.keep_logs is not None:
        options.keep_logs.mkdir(parents=True, exist_ok=True)
    found: dict[str, object] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
        "commit": commit(),
        "load": os.getloadavg()[0],
    }
    print(f"{found['machine']}, commit {found['commit']}, load {found['load']:.1f}")
    with tempfile.TemporaryDirectory(prefix="gridnode-light-") as folder:
        grid = BenchGrid(Path(folder))
        try:
            for part in parts:
                match part:
                    case "imports":
                        found[part] = bench_imports(grid)
                        print_imports(found[part])
                    case "memory":
                        found[part] = bench_memory(grid, max(1, options.repeats // 2))
                        print_memory(found[part])
                    case "cold":
                        found[part] = bench_cold(grid, options.repeats, options.keep_logs)
                        print_cold(found[part])
                    case "session":
                        found[part] = bench_session(grid)
                        print_session(found[part])
                    case "idle":
                        found[part] = bench_idle(grid, options.idle_s)
                        print_idle(found[part])
        finally:
            grid.kill()
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
