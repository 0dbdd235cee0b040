"""The goals of the wire-speed work, judged by a run's figures. Pure.

A goal over several sizes is judged by the worst of them. Gossip and camera streams have benches of their own.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Document = Mapping[str, Any]
"""A run, as it is written to JSON."""

SMALL = ("slice-10kb", "slice-150kb", "slice-600kb")


class _MissingError(Exception):
    """The run did not measure what a goal needs."""


@dataclass(frozen=True)
class Goal:
    """One line of the table of goals."""

    what: str
    goal: float
    stretch: float
    measure: Callable[[Document], tuple[float, str]]
    """Returns the figure, and where it comes from."""
    unit: str = "x"
    at_least: bool = False
    """Whether more is better."""


@dataclass(frozen=True)
class Judgement:
    """A goal and what a run says of it."""

    what: str
    goal: str
    stretch: str
    measured: str
    verdict: Literal["stretch met", "met", "missed", "not measured"]
    detail: str = ""


def _figure(document: Document, part: str, *path: str) -> float:
    found: Any = document.get(part, {})
    for key in path:
        if not isinstance(found, Mapping) or found.get(key) is None:
            raise _MissingError
        found = found[key]
    return float(found)


def _worst(figures: Mapping[str, float], *, least: bool = False) -> tuple[float, str]:
    choose = min if least else max
    place = choose(figures, key=lambda key: figures[key])
    return figures[place], ", ".join(f"{key} {value:.2f}" for key, value in figures.items()) if len(
        figures
    ) > 1 else place


def _latency(way: str, key: str, *workloads: str) -> Callable[[Document], tuple[float, str]]:
    return lambda document: _worst({name: _figure(document, "latency", name, way, key) for name in workloads})


def _rate(document: Document) -> tuple[float, str]:
    return _worst(
        {
            f"{depth} in flight": _figure(document, "throughput", "squeezenet", "local", f"rps_{depth}_vs_inprocess")
            for depth in (8, 32)
        },
        least=True,
    )


def _cold(document: Document) -> tuple[float, str]:
    return _worst({way: _figure(document, "grid", f"{way}_s") for way in ("local", "remote")})


def _plain(part: str, *path: str, scale: float = 1.0) -> Callable[[Document], tuple[float, str]]:
    return lambda document: (_figure(document, part, *path) * scale, "")


GOALS = (
    Goal("local, squeezenet 600 kB, p50 vs in-process", 1.12, 1.06, _latency("local", "vs_inprocess", "squeezenet")),
    Goal("local, transport only 10-600 kB, p50 vs gRPC", 0.35, 0.25, _latency("local", "vs_grpc", *SMALL)),
    Goal("local, 2.7 MB, p50 vs bare socket", 0.6, 0.4, _latency("local", "vs_socket", "slice-2.7mb")),
    Goal("remote, transport only 10-600 kB, p50 vs gRPC TLS", 1.0, 0.7, _latency("remote", "vs_grpc_tls", *SMALL)),
    Goal("remote, 2.7 MB, p50 vs gRPC TLS", 1.2, 0.8, _latency("remote", "vs_grpc_tls", "slice-2.7mb")),
    Goal("requests/s squeezenet, 8 and 32 in flight, vs in-process", 0.90, 0.95, _rate, at_least=True),
    Goal("CPU per request, local 150 kB, vs gRPC", 0.5, 0.3, _latency("local", "cpu_vs_grpc", "slice-150kb")),
    Goal("idle PSS, daemon + worker with squeezenet", 120, 90, _plain("standing", "local", "pss_mb"), unit=" MB"),
    Goal("cold start, local and remote, grid of three", 2.0, 1.2, _cold, unit=" s"),
    Goal("idle CPU per node with 5 peers", 0.5, 0.2, _plain("fleet", "5", "idle_cpu", scale=100), unit=" %"),
    Goal("idle CPU per node with 20 peers", 2.0, 1.0, _plain("fleet", "20", "idle_cpu", scale=100), unit=" %"),
)


def judge(document: Document) -> list[Judgement]:
    """Say of every goal what the run says of it."""
    return [_judge(goal, document) for goal in GOALS]


def _judge(goal: Goal, document: Document) -> Judgement:
    sign = ">=" if goal.at_least else "<="
    wanted = f"{sign} {goal.goal:g}{goal.unit}", f"{goal.stretch:g}{goal.unit}"
    try:
        value, detail = goal.measure(document)
    except _MissingError:
        return Judgement(goal.what, *wanted, "-", "not measured")
    met, more = (
        (value >= goal.goal, value >= goal.stretch) if goal.at_least else (value <= goal.goal, value <= goal.stretch)
    )
    verdict: Literal["stretch met", "met", "missed"] = "stretch met" if more else "met" if met else "missed"
    return Judgement(goal.what, *wanted, f"{value:.3g}{goal.unit}", verdict, detail)
