"""What is measured, and how: latency and processor time in turn, requests per second, cold start, idle cost."""

import os
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from benches.peers import processes
from benches.peers.figures import Series, rotated, with_ratios
from benches.peers.ways import Call, PeerError, Way, check
from benches.peers.workloads import Requests

WARM_UP = 20
"""Calls before the first that counts, each way and workload."""
POLL_S = 0.01
"""Between two tries to get the first answer."""
FIRST_ANSWER_S = 120.0
IN_FLIGHT = (1, 8, 32)
BASES = {"vs_inprocess": "inprocess", "vs_grpc": "grpc", "vs_grpc_tls": "grpc-tls", "vs_socket": "socket"}


def say(text: str) -> None:
    """Tell how far the run is; results go to standard output."""
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- latency


def latency(ways: Mapping[str, Way], requests: Requests, *, rounds: int, calls: int) -> dict[str, dict[str, object]]:
    """Ask all ways in turn, a block of calls each, and check every answer; return a row for each way."""
    callers = {name: way.caller(requests) for name, way in ways.items()}
    for name, call in callers.items():
        for number in range(WARM_UP):
            check(name, requests, number, call(number))
    found = {name: Series() for name in ways}
    for turn in range(rounds):
        for name in rotated(list(ways), turn):
            pids = [os.getpid(), *ways[name].server_pids()]
            before_s = processes.cpu_s(pids)
            times_s = _block(name, callers[name], requests, calls)
            found[name].cpu_s.append((processes.cpu_s(pids) - before_s) / calls)
            found[name].times_s.append(times_s)
    rows = {name: series.row() for name, series in found.items()}
    with_ratios(rows, {name: series.p50s() for name, series in found.items()}, bases=BASES)
    cpu = {name: series.cpu_s for name, series in found.items()}
    with_ratios(rows, cpu, bases={f"cpu_{key}": base for key, base in BASES.items()})
    return rows


def _block(name: str, call: Call, requests: Requests, calls: int) -> list[float]:
    """Ask one after the other; the check of an answer is no part of its time."""
    times_s = []
    for number in range(calls):
        start_s = time.perf_counter()
        answer = call(number)
        times_s.append(time.perf_counter() - start_s)
        check(name, requests, number, answer)
    return times_s


# ---------------------------------------------------------------- requests per second


def throughput(
    ways: Mapping[str, Way], requests: Requests, *, rounds: int, seconds: float
) -> dict[str, dict[str, object]]:
    """Keep 1, 8 and 32 requests in flight, all ways in turn; return a row for each way."""
    rates: dict[str, dict[int, list[float]]] = {name: {depth: [] for depth in IN_FLIGHT} for name in ways}
    refused: dict[str, Counter[str]] = {name: Counter() for name in ways}
    for depth in IN_FLIGHT:
        for turn in range(rounds):
            for name in rotated(list(ways), turn):
                flood = ways[name].flood(requests, depth, seconds)
                rates[name][depth].append(flood.answered / flood.took_s)
                refused[name].update(flood.refused)
    rows: dict[str, dict[str, object]] = {
        name: {f"rps_{depth}": statistics.median(rates[name][depth]) for depth in IN_FLIGHT} for name in ways
    }
    for name, counts in refused.items():
        rows[name]["unanswered"] = counts.total()
        if counts:
            rows[name]["error"] = "; ".join(f"{count} x {text}" for text, count in counts.most_common(3))
    for depth in IN_FLIGHT:
        per_round = {name: rates[name][depth] for name in ways}
        with_ratios(rows, per_round, bases={f"rps_{depth}_{key}": base for key, base in BASES.items()})
    return rows


# ---------------------------------------------------------------- cold start, idle cost


def first_answer(way: Way, requests: Requests) -> None:
    """Ask until the first right answer comes; what fails before is a server that is still starting."""
    until_s = time.monotonic() + FIRST_ANSWER_S
    while True:
        try:
            call = way.caller(requests)
            check(way.name, requests, 0, call(0))
            return
        except way.starting as error:
            if time.monotonic() > until_s:
                raise PeerError(f"{way.name}: no right answer within {FIRST_ANSWER_S:.0f} s: {error}") from error
        time.sleep(POLL_S)


def cold_start_s(way: Way, requests: Requests) -> float:
    """Return the time from the start of the server's processes to the first right answer; leaves it running."""
    start_s = time.monotonic()
    way.start([requests.workload.name])
    way.open()
    first_answer(way, requests)
    return time.monotonic() - start_s


def standing(way: Way, requests: Requests, *, starts: int, window_s: float) -> dict[str, object]:
    """Start a way's servers with one model, several times; then see what they cost while nobody asks."""
    way.install([requests.workload.name])
    cold_s = []
    for number in range(starts):
        cold_s.append(cold_start_s(way, requests))
        if number < starts - 1:
            way.close()
            way.stop()
    call = way.caller(requests)
    for number in range(WARM_UP):
        check(way.name, requests, number, call(number))
    row = idle(way.server_pids(), window_s=window_s)
    way.close()
    way.stop()
    return row | {"cold_s": statistics.median(cold_s), "cold_s_each": cold_s}


def idle(pids: list[int], *, window_s: float) -> dict[str, object]:
    """Return memory and processor share of processes that nobody asks anything."""
    time.sleep(1.0)  # what the last answer left to do
    share = processes.idle_cpu(pids, window_s=window_s)
    return {"pss_mb": processes.pss_bytes(pids) / 1e6, "idle_cpu": share, "processes": len(pids)}


def first_answers_s(ways: Sequence[Way], requests: Requests, begin: float) -> dict[str, float]:
    """Return, for each of several ways that start together, when its first right answer came after ``begin``."""
    found: dict[str, float] = {}

    def wait(way: Way) -> None:
        first_answer(way, requests)
        found[way.name] = time.monotonic() - begin

    threads = [threading.Thread(target=wait, args=(way,), daemon=True) for way in ways]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(found) < len(ways):
        raise PeerError(f"no first answer from {', '.join({way.name for way in ways} - set(found))}")
    return found
