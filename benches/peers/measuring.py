"""What is measured, and how: latency and processor time in turn, requests per second, cold start, idle cost."""

import contextlib
import os
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

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
Rows = dict[str, dict[str, object]]
"""Figures by way."""
BASES = {"vs_inprocess": "inprocess", "vs_grpc": "grpc", "vs_grpc_tls": "grpc-tls", "vs_socket": "socket"}


def say(text: str) -> None:
    """Tell how far the run is; results go to standard output."""
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- latency


def latency(ways: Mapping[str, Way], requests: Requests, *, rounds: int, calls: int) -> Rows:
    """Ask all ways in turn, a block of calls each, and check every answer; return a row for each way.

    A way that fails gets a row that says how, and takes no part from then on.
    """
    faults: dict[str, str] = {}
    found = {name: Series() for name in ways}
    callers: dict[str, Call] = {}
    with contextlib.ExitStack() as stack:
        for name, way in ways.items():
            stack.enter_context(way.passing_connections())
            with blaming(name, faults):
                callers[name] = way.caller(requests)
                _block(name, callers[name], requests, WARM_UP)
        for turn in range(rounds):
            for name in rotated(list(ways), turn):
                if name in faults:
                    continue
                with blaming(name, faults):
                    pids = [os.getpid(), *ways[name].server_pids()]
                    before_s = processes.cpu_s(pids)
                    times_s = _block(name, callers[name], requests, calls)
                    found[name].cpu_s.append((processes.cpu_s(pids) - before_s) / calls)
                    found[name].times_s.append(times_s)
    whole = {name: series for name, series in found.items() if name not in faults}
    rows = {name: series.row() for name, series in whole.items()}
    with_ratios(rows, {name: series.p50s() for name, series in whole.items()}, bases=BASES)
    with_ratios(
        rows,
        {name: series.cpu_s for name, series in whole.items()},
        bases={f"cpu_{key}": base for key, base in BASES.items()},
    )
    return with_faults(rows, faults, ways)


@contextlib.contextmanager
def blaming(name: str, faults: dict[str, str]) -> Iterator[None]:
    """Note what goes wrong with a way as that way's fault: one broken peer must not cost the others' figures."""
    try:
        yield
    except Exception as error:  # every peer's library has errors of its own
        faults[name] = f"{type(error).__name__}: {error!s:.300}"
        say(f"failed: {name}: {faults[name]}")


def with_faults(rows: Rows, faults: Mapping[str, str], order: Iterable[str]) -> Rows:
    """Return rows in the order of their ways, those of failed ways with the fault alone."""
    return {name: {"error": faults[name]} if name in faults else rows[name] for name in order}


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


def throughput(ways: Mapping[str, Way], requests: Requests, *, rounds: int, seconds: float) -> Rows:
    """Keep 1, 8 and 32 requests in flight, all ways in turn; return a row for each way."""
    rates: dict[str, dict[int, list[float]]] = {name: {depth: [] for depth in IN_FLIGHT} for name in ways}
    refused: dict[str, Counter[str]] = {name: Counter() for name in ways}
    faults: dict[str, str] = {}
    for depth in IN_FLIGHT:
        for turn in range(rounds):
            for name in rotated(list(ways), turn):
                if name in faults:
                    continue
                with blaming(name, faults):
                    flood = ways[name].flood(requests, depth, seconds)
                    rates[name][depth].append(flood.answered / flood.took_s)
                    refused[name].update(flood.refused)
    rows: Rows = {
        name: {f"rps_{depth}": statistics.median(rates[name][depth]) for depth in IN_FLIGHT}
        for name in ways
        if name not in faults
    }
    for name, row in rows.items():
        row["unanswered"] = refused[name].total()
        if refused[name]:
            row["error"] = "; ".join(f"{count} x {text}" for text, count in refused[name].most_common(3))
    for depth in IN_FLIGHT:
        per_round = {name: rates[name][depth] for name in rows}
        with_ratios(rows, per_round, bases={f"rps_{depth}_{key}": base for key, base in BASES.items()})
    return with_faults(rows, faults, ways)


# ---------------------------------------------------------------- cold start, idle cost


def first_answer(way: Way, requests: Requests) -> None:
    """Ask until the first right answer comes; what fails before is a server that is still starting."""
    until_s = time.monotonic() + FIRST_ANSWER_S
    while True:
        try:
            with way.passing_connections():
                check(way.name, requests, 0, way.caller(requests)(0))
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
        way.open()
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
