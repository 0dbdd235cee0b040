"""One run of the comparison: which ways take part, in which phases, and what is kept of it."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benches.peers import goals, machine, measuring, workloads
from benches.peers.measuring import say
from benches.peers.processes import ROOT, die_politely
from benches.peers.ways import PeerError, Way
from benches.peers.workloads import Requests

WAYS = {
    "inprocess": "peer_inprocess:InProcess",
    "inprocess-spinning": "peer_inprocess:Spinning",
    "socket": "peer_socket:BareSocket",
    "grpc": "peer_grpc:Grpc",
    "grpc-tls": "peer_grpc:GrpcTls",
    "zenoh": "peer_zenoh:Zenoh",
    "fastapi": "peer_fastapi:FastApi",
    "local": "peer_gridnode:Local",
    "local-decided": "peer_gridnode:Decided",
    "remote": "peer_gridnode:Remote",
    "remote-decided": "peer_gridnode:RemoteDecided",
    "http": "peer_gridnode:Http",
    "relay": "peer_relay:Relay",
    "ray-http": "peer_ray:RayHttp",
    "ray-handle": "peer_ray:RayHandle",
    "ray-http-optimised": "peer_ray:RayHttpOptimised",
    "ray-handle-optimised": "peer_ray:RayHandleOptimised",
}
"""All ways, in the order in which they are shown."""

FLOORS = frozenset({"relay"})
"""Ways that nobody would pick: they take part where they are named."""

PHASES: dict[str, tuple[str, ...]] = {
    "main": tuple(name for name in WAYS if not name.startswith("ray-")),
    "Ray": ("inprocess", "grpc", "ray-http", "ray-handle"),
    "Ray, optimised": ("inprocess", "grpc", "ray-http-optimised", "ray-handle-optimised"),
}
"""Which ways are interleaved. A cluster of a dozen processes would disturb the others, and its mode is set by the
environment: so each has a phase and a process of its own, with the two ways beside it that ratios are taken to."""


def phase_environment(phase: str) -> dict[str, str]:
    """Return what the processes of a phase find in their environment, beside ours."""
    if phase == "main":
        return {}
    from benches.peers import peer_ray

    return peer_ray.environment(peer_ray.DEFAULT if phase == "Ray" else peer_ray.OPTIMISED)


@dataclass(frozen=True)
class Plan:
    """What a run is asked to do."""

    only: tuple[str, ...]
    workloads: tuple[str, ...]
    rounds: int
    calls: int
    flood_s: float
    parts: tuple[str, ...]
    """latency, throughput, standing, fleet."""
    starts: int
    """Cold starts per way."""
    window_s: float
    """Of idle processor time, in seconds."""


FLOODED = ("slice-150kb", "squeezenet")
"""Workloads whose requests per second are measured: one of transport alone, one of a network."""
BUSY = 0.3
"""Load per core before the run above which figures are doubtful."""
PARTS = ("standing", "fleet", "latency", "throughput")


def way_class(name: str) -> type[Way]:
    module, _, attribute = WAYS[name].partition(":")
    found = getattr(import_module(f"benches.peers.{module}"), attribute)
    assert issubclass(found, Way)
    return found


def perform(plan: Plan) -> dict[str, Any]:
    """Carry a run out and return it as a document that JSON can hold."""
    begin_s = time.monotonic()
    chosen, skipped = {}, {}
    for name in plan.only:
        why = way_class(name).missing()
        (skipped if why else chosen)[name] = why or way_class(name)
    for name, why in skipped.items():
        say(f"skipped: {name}: {why}")
    document: dict[str, Any] = {
        "machine": machine.describe(),
        "settings": {"rounds": plan.rounds, "calls": plan.calls, "flood_s": plan.flood_s, "starts": plan.starts},
        "skipped": skipped,
        "ways": {n: {"label": w.label, "encrypted": w.encrypted, "between": w.between} for n, w in chosen.items()},
        "phases": {},
        "standing": {},
    }
    warn_of_load()
    with tempfile.TemporaryDirectory(prefix="bench-peers-", ignore_cleanup_errors=True) as scratch:
        folder = Path(scratch)
        say(f"preparing {len(plan.workloads)} models")
        wanted = sorted({*plan.workloads, *(("squeezenet",) if {"standing", "fleet"} & set(plan.parts) else ())})
        # In a process of its own: onnx and a runtime here would share pages with the servers and falsify their memory.
        command = [sys.executable, "-m", "benches.peers.workloads", str(folder), *wanted]
        subprocess.run(command, cwd=ROOT, check=True)
        document["workloads"] = {
            name: {"kind": found.kind, "request_bytes": found.request_bytes}
            for name in wanted
            for found in [workloads.describe(folder, name)]
        }
        if "fleet" in plan.parts and {"local", "remote"} & set(chosen):
            from benches.peers import fleet

            document |= fleet.measure(folder, plan)
        for phase, members in PHASES.items():
            names = tuple(name for name in members if name in chosen)
            if names and (phase == "main" or set(names) - set(PHASES["main"])):
                say(f"phase {phase}: {', '.join(names)}")
                found = _phase_in_a_process(phase, names, folder, plan)
                document["standing"] |= found.pop("standing")
                document["phases"][phase] = found
    main = document["phases"].get("main", {"latency": {}, "throughput": {}})
    document["goals"] = [vars(item) for item in goals.judge(document | main)]
    document["took_s"] = round(time.monotonic() - begin_s, 1)
    return document


def warn_of_load() -> None:
    """Say so where the machine is busy with something else: who passes several processes waits for each of them."""
    load, cores = os.getloadavg()[0], len(os.sched_getaffinity(0))
    if load > BUSY * cores:
        say(f"warning: load {load:.1f} on {cores} cores: ways of several processes will look worse than they are")


def _phase_in_a_process(phase: str, names: Sequence[str], folder: Path, plan: Plan) -> dict[str, Any]:
    """Measure a phase in a process of its own, which shares no pages with servers that this run loaded before."""
    order, answer = folder / "order.json", folder / "answer.json"
    order.write_text(json.dumps({"names": names, "plan": asdict(plan)}))
    environment = dict(os.environ) | phase_environment(phase)
    command = [sys.executable, "-m", "benches.peers.run", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, env=environment) as child:
        try:
            child.wait()
        finally:
            child.terminate()  # where we are ended ourselves: it takes its servers along
    if child.returncode:
        raise PeerError(f"phase {phase} failed with exit code {child.returncode}; its last words are above")
    found: dict[str, Any] = json.loads(answer.read_text())
    return found


def _measure_phase(folder: Path) -> None:
    """Measure one phase: first what servers cost one at a time, then all of them in turn."""
    order = json.loads((folder / "order.json").read_text())
    plan = Plan(**{key: tuple(value) if isinstance(value, list) else value for key, value in order["plan"].items()})
    classes = {name: way_class(name) for name in order["names"]}
    found: dict[str, Any] = {"standing": {}, "latency": {}, "throughput": {}}
    if "standing" in plan.parts:
        own = {name: cls for name, cls in classes.items() if name in PHASES["main"]}
        heavy = {name: cls for name, cls in classes.items() if cls.is_heavy}
        found["standing"] = _standing(heavy or own, folder, plan)
    if {"latency", "throughput"} & set(plan.parts):
        found |= _in_turn(classes, folder, plan)
    (folder / "answer.json").write_text(json.dumps(found))


def _standing(classes: Mapping[str, type[Way]], folder: Path, plan: Plan) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    requests = Requests(folder, "squeezenet")
    for name, cls in classes.items():
        if cls.stands:
            say(f"cold start and idle: {name}")
            way = cls(folder)
            faults: dict[str, str] = {}
            with contextlib.ExitStack() as stack, measuring.blaming(name, faults):
                stack.callback(way.stop)
                starts = 1 if cls.is_heavy else plan.starts
                rows[name] = measuring.standing(way, requests, starts=starts, window_s=plan.window_s)
            if faults:
                rows[name] = {"error": faults[name]}
    return rows


def _in_turn(classes: Mapping[str, type[Way]], folder: Path, plan: Plan) -> dict[str, Any]:
    """Start the ways of a phase, measure them in turn, end them. One that does not start has a row that says so."""
    found: dict[str, Any] = {"latency": {}, "throughput": {}}
    faults: dict[str, str] = {}
    with _running(classes, folder, plan.workloads, faults) as ways:
        absent = {name: {"error": fault} for name, fault in faults.items()}
        for name in plan.workloads:
            requests = Requests(folder, name)
            for way in ways.values():
                with measuring.blaming(way.name, {}):  # it will fail again below, where its row is made
                    measuring.first_answer(way, requests)
            if "latency" in plan.parts:
                say(f"latency: {name}")
                calls = plan.calls if requests.workload.kind == "slice" else max(1, plan.calls // 2)
                rows = measuring.latency(ways, requests, rounds=plan.rounds, calls=calls)
                found["latency"][name] = rows | absent
            if "throughput" in plan.parts and name in FLOODED:
                say(f"requests per second: {name}")
                rows = measuring.throughput(ways, requests, rounds=plan.rounds, seconds=plan.flood_s)
                found["throughput"][name] = rows | absent
    return found


@contextlib.contextmanager
def _running(
    classes: Mapping[str, type[Way]], folder: Path, models: Sequence[str], faults: dict[str, str]
) -> Iterator[dict[str, Way]]:
    """Hold the servers and clients of some ways; what does not start is put into ``faults``."""
    with contextlib.ExitStack() as stack:
        ways = {name: cls(folder) for name, cls in classes.items()}
        for name, way in ways.items():
            stack.callback(way.stop)
            with measuring.blaming(name, faults):
                way.install(models)
        for name, way in ways.items():
            if name not in faults:
                with measuring.blaming(name, faults):
                    way.start(models)
                    way.open()
                    stack.callback(way.close)
        yield {name: way for name, way in ways.items() if name not in faults}


if __name__ == "__main__":
    die_politely()
    _measure_phase(Path(sys.argv[1]))
