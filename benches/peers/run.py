"""One run of the comparison: which ways take part, in which phases, and what is kept of it."""

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from benches.peers import goals, machine, measuring, workloads
from benches.peers.measuring import say
from benches.peers.processes import ROOT
from benches.peers.ways import Way
from benches.peers.workloads import Requests

WAYS = {
    "inprocess": "peer_inprocess:InProcess",
    "inprocess-spinning": "peer_inprocess:Spinning",
    "socket": "peer_socket:BareSocket",
    "grpc": "peer_grpc:Grpc",
    "grpc-tls": "peer_grpc:GrpcTls",
    "local": "peer_gridnode:Local",
    "remote": "peer_gridnode:Remote",
}
"""All ways, in the order in which they are shown."""

PHASES: dict[str, tuple[str, ...]] = {
    "main": tuple(WAYS),
}
"""Which ways are interleaved: what is too heavy to stand beside others has a phase of its own, with the two ways that
ratios are taken to."""


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
        if "standing" in plan.parts:
            document["standing"] = _standing(chosen, folder, plan)
        if "fleet" in plan.parts and {"local", "remote"} & set(chosen):
            from benches.peers import fleet

            document |= fleet.measure(folder, plan)
        for phase, members in PHASES.items():
            ways = {name: chosen[name] for name in members if name in chosen}
            if ways and (phase == "main" or set(ways) - set(PHASES["main"])):
                say(f"phase {phase}: {', '.join(ways)}")
                document["phases"][phase] = _phase(ways, folder, plan)
    main = document["phases"].get("main", {"latency": {}, "throughput": {}})
    document["goals"] = [vars(item) for item in goals.judge(document | main)]
    document["took_s"] = round(time.monotonic() - begin_s, 1)
    return document


def _standing(chosen: Mapping[str, type[Way]], folder: Path, plan: Plan) -> dict[str, Any]:
    rows: dict[str, Any] = {}
    requests = Requests(folder, "squeezenet")
    for name, cls in chosen.items():
        if cls.stands:
            say(f"cold start and idle: {name}")
            way = cls(folder)
            with contextlib.ExitStack() as stack:
                stack.callback(way.stop)
                rows[name] = measuring.standing(way, requests, starts=plan.starts, window_s=plan.window_s)
    return rows


def _phase(classes: Mapping[str, type[Way]], folder: Path, plan: Plan) -> dict[str, Any]:
    """Start the ways of a phase, measure them in turn, end them."""
    found: dict[str, Any] = {"latency": {}, "throughput": {}}
    with _running(classes, folder, plan.workloads) as ways:
        for name in plan.workloads:
            requests = Requests(folder, name)
            for way in ways.values():
                measuring.first_answer(way, requests)
            if "latency" in plan.parts:
                say(f"latency: {name}")
                calls = plan.calls if requests.workload.kind == "slice" else max(1, plan.calls // 2)
                found["latency"][name] = measuring.latency(ways, requests, rounds=plan.rounds, calls=calls)
            if "throughput" in plan.parts and name in ("squeezenet", "slice-150kb"):
                say(f"requests per second: {name}")
                found["throughput"][name] = measuring.throughput(
                    ways, requests, rounds=plan.rounds, seconds=plan.flood_s
                )
    return found


@contextlib.contextmanager
def _running(classes: Mapping[str, type[Way]], folder: Path, models: Sequence[str]) -> Iterator[dict[str, Way]]:
    """Hold the servers and clients of some ways."""
    with contextlib.ExitStack() as stack:
        ways = {}
        for name, cls in classes.items():
            way = ways[name] = cls(folder)
            way.install(models)
            stack.callback(way.stop)
            way.start(models)
            way.open()
            stack.callback(way.close)
        yield ways
