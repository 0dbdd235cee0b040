"""Emulated executor slots: runs wait out service times drawn from a device profile.

models.emulated.EmulatedExecutor is the model: a batch is served one request after the other, and a request whose
deadline comes first ends there.
"""

import random
from collections.abc import Mapping
from typing import Final

import msgspec

from scheduler.actions import Execute
from scheduler.events import ServiceFailed, ServiceFinished, ServiceStarted
from scheduler.types import Capability, ModelDigest, Reason
from simulator.engine import Timer
from simulator.records import Answer, Entry, Failure, Site

_LATE: Final = Failure(
    reason=Reason.EXPIRED.value, message="the deadline passed before the result was there; allow more time"
)


class ModelCost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a model costs on a device."""

    mean_s: float
    """Mean service time in seconds."""
    cv: float = 0.0
    """Coefficient of variation of service times: standard deviation over mean; 0 for a constant."""
    load_s: float = 0.0
    """Time from cold to ready, in seconds."""
    memory_bytes: int = 0
    max_batch: int = 1

    def draw_s(self, rng: random.Random) -> float:
        """Draw a service time in seconds, gamma distributed."""
        if self.cv == 0:
            return self.mean_s
        shape = 1 / self.cv**2
        return rng.gammavariate(shape, self.mean_s / shape)


def capabilities_of(costs: Mapping[ModelDigest, ModelCost]) -> tuple[Capability, ...]:
    """Return the capability table of a device, sorted by model, as a measurement of it would show it."""
    return tuple(
        Capability(
            model=model,
            mean_s=cost.mean_s,
            p95_s=cost.mean_s * (1.0 + 1.645 * cost.cv),
            memory_bytes=cost.memory_bytes,
            load_s=cost.load_s,
            max_batch=cost.max_batch,
        )
        for model, cost in sorted(costs.items())
    )


class Run:
    """One execution; ends by posting the event that answers its command.

    Parameters
    ----------
    site : Site
        This node.
    action : Execute
        What the core asked for.
    cost : ModelCost
        Of the model.
    rng : random.Random
        Draws service times.
    runs : dict
        Running executions of the node by command; this one leaves at its end.
    """

    def __init__(
        self, site: Site, action: Execute, cost: ModelCost, rng: random.Random, runs: "dict[int, Run]"
    ) -> None:
        self._site = site
        self._action = action
        self._cost = cost
        self._rng = rng
        self._runs = runs
        self._entries: list[Entry] = [site.entries[handle] for handle in action.handles]
        self._outcomes: dict[int, Answer | Failure] = {}
        self._has_started = False
        self._is_over = False
        self._timer: Timer | None = None
        self._service_s = 0.0
        runs[action.command] = self
        site.engine.soon(self._next)

    def cancel(self) -> None:
        """Terminate the run; see records.Cancellable."""
        if self._timer is not None:
            self._timer.cancel()
        self._conclude()
        event = ServiceFailed(command=self._action.command, reason=Reason.CANCELLED)
        self._site.engine.soon(lambda: self._site.post(event))

    def _next(self) -> None:
        """Serve the next request of the batch, or end."""
        if self._is_over:
            return
        now_s = self._site.engine.now_s
        for entry in self._entries[len(self._outcomes) :]:
            if entry.job.deadline_s > now_s:
                self._serve(entry)
                return
            self._outcomes[entry.handle] = _LATE
        self._end()

    def _serve(self, entry: Entry) -> None:
        self._start()
        if self._action.command not in self._runs:
            return  # cancelled by what the core made of the start
        engine = self._site.engine
        service_s = self._cost.draw_s(self._rng)
        if engine.now_s + service_s >= entry.job.deadline_s:
            # The core's own timer for the deadline comes first: it is the one that says why the job ends.
            self._timer = engine.at(entry.job.deadline_s, lambda: engine.soon(lambda: self._note(entry, None)))
        else:
            self._timer = engine.after(service_s, lambda: self._note(entry, service_s))

    def _start(self) -> None:
        if self._has_started:
            return
        self._has_started = True
        for entry in self._entries:
            entry.started_s = self._site.engine.now_s
        self._site.post(ServiceStarted(command=self._action.command))

    def _note(self, entry: Entry, service_s: float | None) -> None:
        """Keep the outcome of one request; without a service time it came too late."""
        if self._is_over:
            return
        if service_s is None:
            self._outcomes[entry.handle] = _LATE
        else:
            self._service_s += service_s
            self._outcomes[entry.handle] = Answer(
                model=self._action.model,
                node=self._site.name,
                hops=entry.job.hops,
                waiting_s=max(0.0, entry.started_s - entry.job.arrival_s),
                service_s=service_s,
            )
        self._next()

    def _end(self) -> None:
        if len(self._entries) == 1 and isinstance(failure := self._outcomes[self._entries[0].handle], Failure):
            self._conclude()
            self._site.post(ServiceFailed(command=self._action.command, reason=Reason.EXPIRED), failure)
            return
        self._conclude()
        event = ServiceFinished(command=self._action.command, service_s=self._service_s)
        self._site.post(event, self._outcomes)

    def _conclude(self) -> None:
        self._is_over = True
        self._runs.pop(self._action.command, None)
