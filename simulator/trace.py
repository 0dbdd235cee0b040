"""A run as a trace that chrome://tracing and Perfetto open: nodes as processes, slots as lanes, jobs from end to end.

Format: Trace Event Format (Google): an object with `traceEvents`, times in whole microseconds, so that what follows on
a lane never overlaps by a rounding. Watches the actions of cores and changes nothing; bounded by a number of jobs, the
first that arrive, and as many loads of models: about 700 bytes a job, and 100 a value of a series.
"""

from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from scheduler import actions
from scheduler.actions import Action
from simulator.node import SimNode
from simulator.results import Result

_DECISIONS: Final = 0
"""Lane of a node for what its core decided; slots follow from 1 on."""
_FOREVER_S: Final = 1e9
"""A budget of more is none; JSON has no infinity."""

Event = dict[str, object]


class _Span:
    """An execution under way."""

    __slots__ = ("begin_s", "keys", "model")

    def __init__(self, begin_s: float, model: str, keys: tuple[bytes, ...]) -> None:
        self.begin_s = begin_s
        self.model = model
        self.keys = keys


class Tracer:
    """Collects the trace of one run: an observer of a Run, told of its nodes before anything happens.

    Parameters
    ----------
    jobs : int
        Most jobs that are followed.
    """

    def __init__(self, jobs: int) -> None:
        self._jobs_max = jobs
        self._nodes: Mapping[str, SimNode] = {}
        self._places: dict[str, int] = {}
        self._keys: set[bytes] = set()
        self._loads = 0
        self._events: list[Event] = []
        self._spans: dict[tuple[str, int], _Span] = {}
        self._commands: dict[tuple[str, int], int] = {}
        """Executions by node and job."""
        self._executions: dict[str, list[Event]] = {}

    def watch(self, nodes: Mapping[str, SimNode]) -> None:
        """Say which nodes there are."""
        self._nodes = nodes
        self._places = {name: number for number, name in enumerate(nodes, start=1)}
        self._executions = {name: [] for name in nodes}

    def __call__(self, name: str, now_s: float, action: Action) -> None:
        """Take in an action; see node.Observer."""
        match action:
            case actions.Execute():
                self._begin(name, now_s, action)
            case actions.Reply() | actions.Reject():
                self._outcome(name, now_s, action)
            case actions.Nack():
                self._end(name, now_s, self._commands.pop((name, action.handle), None), action.why.value)
                self._decide(name, now_s, action.handle, f"gave back: {action.why.value}", action.reason)
            case actions.Cancel():
                self._end(name, now_s, action.command, "cancelled")
            case actions.Send() | actions.Offer():
                what = "offered to" if isinstance(action, actions.Offer) else "sent to"
                self._decide(name, now_s, action.handle, f"{what} {action.peer}", action.reason)
            case actions.GrantLease():
                for _, handle in action.grants:
                    self._decide(name, now_s, handle, "given to a thief", action.reason)
            case actions.LoadModel() if self._places and self._loads < self._jobs_max:
                self._loads += 1
                self._instant(name, now_s, f"loads {action.model}", {"reason": action.reason})

    # What is seen.

    def _key(self, name: str, handle: int) -> bytes | None:
        """Return the key of a job at a node, if it is one that is followed."""
        node = self._nodes.get(name)
        entry = None if node is None else node.jobs.get(handle)
        if entry is None:
            return None
        key = entry.job.key
        if key not in self._keys:
            if len(self._keys) >= self._jobs_max:
                return None
            self._keys.add(key)
        return key

    def _begin(self, name: str, now_s: float, action: actions.Execute) -> None:
        keys = tuple(key for handle in action.handles if (key := self._key(name, handle)) is not None)
        if keys:
            self._commands.update({(name, handle): action.command for handle in action.handles})
            self._spans[name, action.command] = _Span(now_s, action.model, keys)

    def _end(self, name: str, now_s: float, command: int | None, outcome: str) -> None:
        span = None if command is None else self._spans.pop((name, command), None)
        if span is None:
            return
        self._executions[name].append(
            {
                "ph": "X",
                "cat": "execution",
                "name": span.model,
                "pid": self._places[name],
                "ts": _us(span.begin_s),
                "dur": _us(now_s) - _us(span.begin_s),
                "args": {"jobs": [key.hex() for key in span.keys], "outcome": outcome},
            }
        )

    def _outcome(self, name: str, now_s: float, action: actions.Reply | actions.Reject) -> None:
        """End the execution that an outcome ends, and at the entry the job."""
        outcome = "answered" if isinstance(action, actions.Reply) else action.why.value
        self._end(name, now_s, self._commands.pop((name, action.handle), None), outcome)
        if isinstance(action, actions.Reject):
            self._decide(name, now_s, action.handle, f"ended: {outcome}", action.reason)
        key = self._key(name, action.handle)
        if key is None:
            return
        job = self._nodes[name].jobs[action.handle].job
        if job.entry != name or job.hops:
            return
        common: Event = {"cat": "job", "name": job.models[0], "id": key.hex(), "pid": self._places[name], "tid": 0}
        deadline_s = job.deadline_s - job.arrival_s
        args = {"budget_s": deadline_s if deadline_s < _FOREVER_S else None, "bytes": job.input_bytes}
        self._events.append({"ph": "b", "ts": _us(job.arrival_s), "args": args, **common})
        self._events.append({"ph": "e", "ts": _us(now_s), "args": {"outcome": outcome}, **common})

    def _decide(self, name: str, now_s: float, handle: int, what: str, reason: str) -> None:
        key = self._key(name, handle)
        if key is not None:
            self._instant(name, now_s, what, {"job": key.hex(), "reason": reason})

    def _instant(self, name: str, now_s: float, what: str, args: Event) -> None:
        self._events.append(
            {
                "ph": "i",
                "s": "t",
                "cat": "decision",
                "name": what,
                "pid": self._places[name],
                "tid": _DECISIONS,
                "ts": _us(now_s),
                "args": args,
            }
        )

    # What comes of it.

    def pieces(self, result: Result) -> Iterator[bytes]:
        """Yield the file, in pieces of one event each.

        Parameters
        ----------
        result : Result
            Of the same run: its backlogs are drawn as counters.
        """
        encode = msgspec.json.encode
        yield b'{"displayTimeUnit":"ms","traceEvents":['
        separator = b"\n"
        for event in self._all(result):
            yield separator + encode(event)
            separator = b",\n"
        about = {"scenario": result.scenario, "policy": result.policy, "seed": result.seed, "jobs": len(self._keys)}
        yield b'\n],"otherData":' + encode(about) + b"}\n"

    def _all(self, result: Result) -> Iterator[Event]:
        for name, place in self._places.items():
            yield _named("process_name", place, _DECISIONS, name)
            yield {"ph": "M", "name": "process_sort_index", "pid": place, "tid": 0, "args": {"sort_index": place}}
            yield _named("thread_name", place, _DECISIONS, "decisions")
            yield from _in_lanes(self._executions[name], place)
        yield from sorted(self._events, key=_time_us)
        for node in result.nodes:
            if node.backlog is not None:
                for number, value in enumerate(node.backlog.values):
                    at_us = _us(node.backlog.start_s + number * node.backlog.step_s)
                    place = self._places[node.name]
                    args = {"seconds": value}
                    yield {"ph": "C", "name": "backlog", "pid": place, "tid": 0, "ts": at_us, "args": args}


def _in_lanes(executions: list[Event], place: int) -> Iterator[Event]:
    """Give executions that overlap lanes of their own: as many as the node had slots."""
    free_us: list[int] = []
    for event in sorted(executions, key=_time_us):
        begin_us, length_us = _time_us(event), event["dur"]
        assert isinstance(length_us, int), "every execution has a length"
        lane = next((number for number, each_us in enumerate(free_us) if each_us <= begin_us), len(free_us))
        if lane == len(free_us):
            free_us.append(0)
            yield _named("thread_name", place, lane + 1, f"slot {lane + 1}")
        free_us[lane] = begin_us + length_us
        yield {**event, "tid": lane + 1}


def _us(at_s: float) -> int:
    """Return a time in whole microseconds."""
    return round(at_s * 1e6)


def _time_us(event: Event) -> int:
    at_us = event["ts"]
    assert isinstance(at_us, int), "every event has a time"
    return at_us


def _named(kind: str, place: int, lane: int, name: str) -> Event:
    return {"ph": "M", "name": kind, "pid": place, "tid": lane, "args": {"name": name}}
