"""What concerns gridnode alone: a grid of three that starts at once, and nodes that idle among many peers."""

import contextlib
import statistics
import time
from pathlib import Path
from typing import Any

from benches.peers import measuring, processes
from benches.peers.measuring import say
from benches.peers.peer_gridnode import Local, Remote, stop_all
from benches.peers.workloads import Requests
from gridnode.client import Grid
from gridnode.errors import GridError

MODEL = "squeezenet"
PEERS = (5, 20)
SETTLE_S = 60.0
"""Longest time until all nodes know of one another."""
CALM_S = 10.0
"""After that, before idle time is measured: gossip of the newcomers' cards has to end."""


def measure(folder: Path, plan: Any) -> dict[str, Any]:
    """Return the parts `grid` and `fleet` of a run's document; what fails is said, and missing in them."""
    found: dict[str, Any] = {"grid": {}, "fleet": {}}
    faults: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        stack.callback(stop_all)
        _fill(found, faults, folder, plan)
    return found | ({"fleet_errors": faults} if faults else {})


def _fill(found: dict[str, Any], faults: dict[str, str], folder: Path, plan: Any) -> None:
    local, remote = Local(folder), Remote(folder)
    with measuring.blaming("grid of three", faults):
        local.install([MODEL])
        remote.install([MODEL])
        local.grid.start(n1=[MODEL])
        local.grid.join("n2", "n3")
        found["grid"] = _cold(local, remote, folder, plan.starts)
    for peers in PEERS:
        with measuring.blaming(f"idle among {peers} peers", faults):
            found["fleet"][str(peers)] = _idle_among(local.grid, peers, plan.window_s)


def _cold(local: Local, remote: Remote, folder: Path, starts: int) -> dict[str, Any]:
    """Start three nodes at once, of which n1 has the model: time to the first local and the first remote answer."""
    requests = Requests(folder, MODEL)
    found: dict[str, list[float]] = {"local": [], "remote": []}
    for turn in range(starts):
        say(f"a grid of three starts: {turn + 1} of {starts}")
        local.grid.stop()
        begin_s = time.monotonic()
        local.grid.start(n1=[MODEL], n2=(), n3=())
        for name, took_s in measuring.first_answers_s([local, remote], requests, begin_s).items():
            found[name].append(took_s)
        for way in (local, remote):
            way.close()
    return {f"{name}_s": statistics.median(times) for name, times in found.items()} | {"each": found}


def _idle_among(grid: Any, peers: int, window_s: float) -> dict[str, Any]:
    """Let nodes without models idle among so many peers: the mean of what one costs."""
    names = [f"n{number}" for number in range(1, peers + 2)]
    say(f"idle among {peers} peers: {peers + 1} nodes")
    grid.join(*names[1:])
    grid.start(n1=[MODEL], **{name: () for name in names[1:]})
    _wait_acquainted(grid, names)
    time.sleep(CALM_S)
    pids = [pid for name in names[1:] for pid in grid.nodes[name].pids()]
    share = processes.idle_cpu(pids, window_s=window_s)
    return {"idle_cpu": share / peers, "pss_mb": processes.pss_bytes(pids) / peers / 1e6}


def _wait_acquainted(grid: Any, names: list[str]) -> None:
    """Wait until every node believes all others to be alive."""
    until_s = time.monotonic() + SETTLE_S
    waiting = list(names)
    while waiting and time.monotonic() < until_s:
        grid.nodes[waiting[0]].check()
        try:
            with Grid(str(grid.nodes[waiting[0]].socket)) as client:
                alive = client.status()["peers_alive"]
        except (GridError, OSError):
            alive = 0
        if alive >= len(names) - 1:
            waiting.pop(0)
        else:
            time.sleep(0.2)
    if waiting:
        say(f"after {SETTLE_S:.0f} s, {waiting[0]} knew of {alive} of {len(names) - 1} peers")
