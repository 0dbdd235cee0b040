"""What a node's machine does: executions that take drawn times, and models that are loaded and evicted.

The twin of gridnode.hands' executions over models.emulated. The core decides how much runs at once; the machine
serves what it is told, requests of a batch one after the other (or together, where the profile has a curve for it), and
ends each at its deadline.

What may make an execution longer than its draw: the first one after a load, a slow machine, heat, a node's own clock
that runs fast, and processor time that messages take meanwhile. The last is exact for inference that uses all cores in
step: its layers wait for the slowest thread, so time taken from one core is taken from all.
"""

import math
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from scheduler.actions import Execute
from scheduler.events import LoadSampled, ModelChanged, ServiceFailed, ServiceFinished, ServiceStarted
from scheduler.types import ModelDigest, Reason
from simulator import messages
from simulator.answers import Answer, Failure
from simulator.config import Heat, MachineConfig
from simulator.entries import Entry
from simulator.specs import ModelProfile

if TYPE_CHECKING:
    from simulator.node import SimNode


SLOW_DOWN_TOLD: Final = 0.1
"""Change of the slow-down by heat, as a share, that the core is told: the daemon samples its load likewise."""


class _Run:
    """An execution under way."""

    __slots__ = ("command", "entries", "model", "number", "outcomes", "service_s", "started", "taken_s")

    def __init__(self, command: int, model: ModelDigest, entries: list[Entry]) -> None:
        self.command = command
        self.model = model
        self.entries = entries
        self.outcomes: dict[int, Answer | Failure] = {}
        self.service_s = 0.0
        self.started = False
        self.taken_s = 0.0
        """Processor time that messages had taken when the present request was last looked at."""
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
    config : MachineConfig, optional
        Memory and heat.
    """

    def __init__(
        self,
        node: "SimNode",
        models: Mapping[ModelDigest, ModelProfile],
        loaded: frozenset[ModelDigest],
        *,
        rng: random.Random,
        config: MachineConfig | None = None,
    ) -> None:
        self._node = node
        self._models = dict(models)
        self._loaded = set(loaded)
        self._rng = rng
        self._running: dict[int, _Run] = {}
        self._config = config or MachineConfig()
        self._loading: dict[ModelDigest, int] = {}
        self._loads_s: dict[ModelDigest, tuple[float, float]] = {}
        """Begin and end of the last load of each model, in seconds."""
        self._cold: set[ModelDigest] = set()
        """Loaded, and not executed since."""
        self._pace = 1.0
        self._clock_rate = 1.0
        self._taken_s = 0.0
        self._warmth = 0.0
        self._warmth_s = 0.0
        self._told_slow_down = 1.0
        self.loads_failed = 0
        """For want of memory."""
        self._is_bent = self._config.heat is not None
        """Whether executions take anything but what is drawn."""
        self.capabilities = tuple([models[digest].capability for digest in sorted(models)])
        self.table_digest = messages.table_digest(self.capabilities)

    # Models.

    def told_means_s(self) -> dict[ModelDigest, float]:
        """Return the mean service times that the node tells, in seconds."""
        return {model: profile.capability.mean_s for model, profile in self._models.items()}

    def tell_models(self) -> None:
        """Tell the core which models there are and which are loaded."""
        self._node.post(
            ModelChanged(table_digest=self.table_digest, capabilities=self.capabilities, loaded=frozenset(self._loaded))
        )

    def load(self, model: ModelDigest) -> None:
        """Load a model; the core hears of it when it is ready, or when there is no memory for it."""
        engine = self._node.engine
        load_s = self._models[model].capability.load_s
        self._loading[model] = engine.at(engine.now_s + load_s, self._on_loaded, model)
        self._loads_s[model] = engine.now_s, engine.now_s + load_s

    def _on_loaded(self, model: ModelDigest) -> None:
        del self._loading[model]
        if self._has_room(model):
            self._loaded.add(model)
            if self._models[model].warm_up > 1.0:
                self._cold.add(model)
                self._is_bent = True
        else:
            self.loads_failed += 1
        self.tell_models()

    def _has_room(self, model: ModelDigest) -> bool:
        limit = self._config.memory_bytes
        return limit is None or self._memory_bytes({*self._loaded, model}) <= limit

    def _memory_bytes(self, models: "set[ModelDigest]") -> int:
        return sum([self._models[model].capability.memory_bytes for model in models])

    def evict(self, model: ModelDigest) -> None:
        """Unload a model."""
        self._loaded.discard(model)
        self._cold.discard(model)
        self.tell_models()

    # What slows it down.

    def set_pace(self, factor: float) -> None:
        """Take so much longer from the next execution on, > 0, without saying so; 1 is the profile's."""
        self._pace = factor
        self._bend()

    def set_clock_rate(self, rate: float) -> None:
        """Have the node's clock show so many seconds per second: true service times are longer or shorter on it."""
        self._clock_rate = rate
        self._bend()

    def _bend(self) -> None:
        is_even = self._pace == 1.0 and self._clock_rate == 1.0 and not self._cold
        self._is_bent = not is_even or self._config.heat is not None

    def burden(self, cpu_s: float) -> None:
        """Take processor time, in seconds, from whatever runs now; an idle machine has it to spare."""
        if self._running:
            self._taken_s += cpu_s

    def _bent_s(self, service_s: float, model: ModelDigest) -> float:
        """Return what a draw becomes on this machine now, in seconds of the node's clock."""
        service_s *= self._pace * self._clock_rate
        if model in self._cold:
            self._cold.discard(model)
            self._bend()
            service_s *= self._models[model].warm_up
        if self._config.heat is not None:
            service_s *= self._heated(self._config.heat)
        return service_s

    def _warm(self, heat: Heat, load: float) -> None:
        """Bring warmth up to now: the machine was at work or idle since it was last looked at."""
        now_s = self._node.engine.now_s
        self._warmth = load + (self._warmth - load) * math.exp((self._warmth_s - now_s) / heat.lag_s)
        self._warmth_s = now_s

    def _heated(self, heat: Heat) -> float:
        """Return the slow-down by heat now, and tell the core when it has changed."""
        slow_down = heat.slow_down(self._warmth)
        if abs(slow_down - self._told_slow_down) > SLOW_DOWN_TOLD * self._told_slow_down:
            self._told_slow_down = slow_down
            limit = self._config.memory_bytes
            free_bytes = 0 if limit is None else max(0, limit - self._memory_bytes(self._loaded))
            self._node.post(LoadSampled(slow_down=slow_down, memory_free_bytes=free_bytes))
        return slow_down

    def _note_load(self) -> None:
        """Before the number of executions changes, warm up or cool down."""
        heat = self._config.heat
        if heat is not None:
            self._warm(heat, 1.0 if self._running else 0.0)

    # Executions.

    def execute(self, action: Execute) -> None:
        """Begin an execution."""
        if self._is_bent:
            self._note_load()
        jobs = self._node.jobs
        run = _Run(action.command, action.model, [jobs[handle] for handle in action.handles])
        self._running[run.command] = run
        self._serve_next(run)

    def _serve_next(self, run: _Run) -> None:
        """Serve the first request that has no outcome yet, or end the run."""
        node, engine = self._node, self._node.engine
        now_s = engine.now_s
        entries, outcomes = run.entries, run.outcomes
        while len(outcomes) < len(entries):
            entry = entries[len(outcomes)]
            deadline_s = entry.job.deadline_s
            if deadline_s <= now_s:
                outcomes[entry.handle] = _TOO_LATE
                continue
            if not run.started:
                run.started = True
                for each in entries:
                    each.started_s = now_s
                node.post(ServiceStarted(command=run.command))
            model = self._models[run.model]
            service_s = model.service.draw_s(self._rng)
            if self._is_bent:
                service_s = self._bent_s(service_s, run.model)
            run.taken_s = self._taken_s
            if len(entries) > 1 and model.batch:
                self._serve_together(run, service_s * model.batch[min(len(entries), len(model.batch)) - 1])
                return
            end_s = now_s + service_s
            if end_s <= deadline_s:
                run.number = engine.at(end_s, self._on_served, run, entry, service_s)
            else:
                run.number = engine.at(deadline_s, self._on_served, run, entry, None)
            return
        self._end(run)

    def _late_s(self, run: _Run) -> float:
        """Return the processor time that messages took since the present request was last looked at."""
        late_s = self._taken_s - run.taken_s
        run.taken_s = self._taken_s
        return late_s

    def _on_served(self, run: _Run, entry: Entry, service_s: float | None) -> None:
        outcome: Answer | Failure = _TOO_LATE
        if service_s is not None:
            if self._taken_s != run.taken_s:
                self._serve_on(run, entry, service_s, self._late_s(run))
                return
            run.service_s += service_s
            outcome = self._answer(run, entry, service_s)
        run.outcomes[entry.handle] = outcome
        self._serve_next(run)

    def _serve_on(self, run: _Run, entry: Entry, service_s: float, late_s: float) -> None:
        """Go on with a request for what messages took of its time."""
        engine, deadline_s = self._node.engine, entry.job.deadline_s
        end_s = engine.now_s + late_s
        if end_s <= deadline_s:
            run.number = engine.at(end_s, self._on_served, run, entry, service_s + late_s)
        else:
            run.number = engine.at(max(deadline_s, engine.now_s), self._on_served, run, entry, None)

    def _serve_together(self, run: _Run, service_s: float) -> None:
        engine = self._node.engine
        run.number = engine.at(engine.now_s + service_s, self._on_served_together, run, service_s)

    def _on_served_together(self, run: _Run, service_s: float) -> None:
        """End a batch; what is late by then has no result."""
        engine = self._node.engine
        if self._taken_s != run.taken_s:
            late_s = self._late_s(run)
            run.number = engine.at(engine.now_s + late_s, self._on_served_together, run, service_s + late_s)
            return
        run.service_s = service_s
        for entry in run.entries:
            is_late = entry.handle in run.outcomes or entry.job.deadline_s < engine.now_s
            run.outcomes[entry.handle] = _TOO_LATE if is_late else self._answer(run, entry, service_s)
        self._end(run)

    def _answer(self, run: _Run, entry: Entry, service_s: float) -> Answer:
        job = entry.job
        return Answer(
            model=run.model,
            node=self._node.name,
            hops=job.hops,
            waiting_s=max(0.0, entry.started_s - job.arrival_s),
            service_s=service_s,
            load_s=self._load_s(run.model, entry) if self._loads_s else 0.0,
        )

    def _load_s(self, model: ModelDigest, entry: Entry) -> float:
        """Return how long a job waited while its model was loaded, in seconds."""
        begin_s, end_s = self._loads_s.get(model, (math.inf, math.inf))
        return max(0.0, min(end_s, entry.started_s) - max(begin_s, entry.job.arrival_s))

    def _end(self, run: _Run) -> None:
        if self._is_bent:
            self._note_load()
        command = run.command
        del self._running[command]
        if len(run.entries) == 1:
            first = run.outcomes[run.entries[0].handle]
            if not isinstance(first, Answer):
                self._node.post(ServiceFailed(command=command, reason=first.reason), first)
                return
        self._node.post(ServiceFinished(command=command, service_s=run.service_s), run.outcomes)

    def cancel(self, command: int) -> bool:
        """Terminate an execution; False when there is none of that command."""
        run = self._running.get(command)
        if run is None:
            return False
        if self._is_bent:
            self._note_load()
        del self._running[command]
        self._node.engine.cancel(run.number)
        self._node.post(ServiceFailed(command=command, reason=Reason.CANCELLED))
        return True

    def stop(self) -> None:
        """Stop at once, as a process does that dies."""
        numbers = [*self._loading.values(), *[run.number for run in self._running.values()]]
        for number in numbers:
            self._node.engine.cancel(number)
        self._loading.clear()
        self._running.clear()


_TOO_LATE = Failure(reason=Reason.EXPIRED, message="the deadline passed before the result was there; allow more time")
