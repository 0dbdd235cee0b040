"""What a node's machine does: executions that take drawn times, and models that are loaded and evicted.

The twin of gridnode.hands' executions over models.emulated. The core decides how much runs at once; the machine
serves what it is told, requests of a batch one after the other, and ends each at its deadline.
"""

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING

import msgspec

from scheduler.actions import Execute
from scheduler.events import ModelChanged, ServiceFailed, ServiceFinished, ServiceStarted
from scheduler.types import Capability, ModelDigest, Reason
from simulator import messages
from simulator.answers import Answer, Entry, Failure
from simulator.distributions import ServiceTime

if TYPE_CHECKING:
    from simulator.node import SimNode


class ModelProfile(msgspec.Struct, frozen=True, kw_only=True):
    """What a model costs on a device."""

    capability: Capability
    """What the node tells of it."""
    service: ServiceTime
    """What it really takes."""


class _Run:
    """An execution under way."""

    __slots__ = ("action", "entries", "number", "outcomes", "service_s", "started")

    def __init__(self, action: Execute, entries: list[Entry]) -> None:
        self.action = action
        self.entries = entries
        self.outcomes: dict[int, Answer | Failure] = {}
        self.service_s = 0.0
        self.started = False
        self.number = 0
        """Of the call at the end of the request that is served now."""


class Machine:
    """Executes and loads for one node.

    Parameters
    ----------
    node : SimNode
        Whom it works for.
    models : mapping of digest to ModelProfile
        What it can run.
    loaded : frozenset of digest
        Models in memory at the start.
    rng : random.Random
        Draws service times.
    """

    def __init__(
        self,
        node: "SimNode",
        models: Mapping[ModelDigest, ModelProfile],
        loaded: frozenset[ModelDigest],
        *,
        rng: random.Random,
    ) -> None:
        self._node = node
        self._models = dict(models)
        self._loaded = set(loaded)
        self._rng = rng
        self._running: dict[int, _Run] = {}
        self.capabilities = tuple([models[digest].capability for digest in sorted(models)])
        self.table_digest = messages.table_digest(self.capabilities)

    # Models.

    def tell_models(self) -> None:
        """Tell the core which models there are and which are loaded."""
        self._node.post(
            ModelChanged(table_digest=self.table_digest, capabilities=self.capabilities, loaded=frozenset(self._loaded))
        )

    def load(self, model: ModelDigest) -> None:
        """Load a model; the core hears of it when it is ready."""
        engine = self._node.engine
        engine.at(engine.now_s + self._models[model].capability.load_s, self._on_loaded, model)

    def _on_loaded(self, model: ModelDigest) -> None:
        self._loaded.add(model)
        self.tell_models()

    def evict(self, model: ModelDigest) -> None:
        """Unload a model."""
        self._loaded.discard(model)
        self.tell_models()

    # Executions.

    def execute(self, action: Execute) -> None:
        """Begin an execution."""
        jobs = self._node.jobs
        run = _Run(action, [jobs[handle] for handle in action.handles])
        self._running[action.command] = run
        self._serve_next(run)

    def _serve_next(self, run: _Run) -> None:
        """Serve the first request that has no outcome yet, or end the run."""
        node, engine = self._node, self._node.engine
        for entry in run.entries[len(run.outcomes) :]:
            deadline_s = entry.job.deadline_s
            if deadline_s <= engine.now_s:
                run.outcomes[entry.handle] = _TOO_LATE
                continue
            if not run.started:
                run.started = True
                for each in run.entries:
                    each.started_s = engine.now_s
                node.post(ServiceStarted(command=run.action.command))
            service_s = self._models[run.action.model].service.draw_s(self._rng)
            end_s = engine.now_s + service_s
            if end_s <= deadline_s:
                run.number = engine.at(end_s, self._on_served, run, entry, service_s)
            else:
                run.number = engine.at(deadline_s, self._on_served, run, entry, None)
            return
        self._end(run)

    def _on_served(self, run: _Run, entry: Entry, service_s: float | None) -> None:
        outcome: Answer | Failure = _TOO_LATE
        if service_s is not None:
            run.service_s += service_s
            outcome = Answer(
                model=run.action.model,
                node=self._node.name,
                hops=entry.job.hops,
                waiting_s=max(0.0, entry.started_s - entry.job.arrival_s),
                service_s=service_s,
            )
        run.outcomes[entry.handle] = outcome
        self._serve_next(run)

    def _end(self, run: _Run) -> None:
        command = run.action.command
        del self._running[command]
        first = run.outcomes[run.entries[0].handle]
        if len(run.entries) == 1 and isinstance(first, Failure):
            self._node.post(ServiceFailed(command=command, reason=first.reason), first)
        else:
            self._node.post(ServiceFinished(command=command, service_s=run.service_s), run.outcomes)

    def cancel(self, command: int) -> bool:
        """Terminate an execution; False when there is none of that command."""
        run = self._running.pop(command, None)
        if run is None:
            return False
        self._node.engine.cancel(run.number)
        self._node.post(ServiceFailed(command=command, reason=Reason.CANCELLED))
        return True


_TOO_LATE = Failure(reason=Reason.EXPIRED, message="the deadline passed before the result was there; allow more time")
