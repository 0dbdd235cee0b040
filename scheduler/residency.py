"""Which models this node can run, which of them are loaded, and which has to leave when memory is short.

Loading takes seconds on a board, so a model is loaded when a job has been placed here on it, and stays until another
needs its memory; the one unused for longest goes first.
"""

import math
from collections.abc import Callable

from scheduler.actions import EvictModel, LoadModel
from scheduler.estimate import ServiceEstimate
from scheduler.ledger import Ledger
from scheduler.timers import Timed
from scheduler.types import Capability, ModelDigest


class Load(Timed):
    """A model on its way into memory."""

    __slots__ = ("model", "ready_s")

    def __init__(self, model: ModelDigest, *, ready_s: float) -> None:
        self.model = model
        self.ready_s = ready_s
        """When it is expected to be ready."""
        self.due_s = math.inf


class Residency:
    """The models of this node.

    Parameters
    ----------
    ledger : Ledger
        Shared state; actions go there.
    is_in_use : callable
        Says whether a model has jobs waiting or running here, so it must stay.
    """

    def __init__(self, ledger: Ledger, is_in_use: Callable[[ModelDigest], bool]) -> None:
        self._ledger = ledger
        self._is_in_use = is_in_use
        self.table_digest = b""
        self.capabilities: dict[ModelDigest, Capability] = {}
        self.services: dict[ModelDigest, ServiceEstimate] = {}
        self.loading: dict[ModelDigest, Load] = {}
        self.warm_bits = 0
        """Bit i is set when entry i of the table is loaded."""
        self.used: dict[ModelDigest, None] = {}
        """Loaded models that stay, the one unused for longest first."""
        self._leaving: set[ModelDigest] = set()

    def __contains__(self, model: ModelDigest) -> bool:
        """Return whether a model is loaded and stays."""
        return model in self.used

    def loaded(self) -> tuple[ModelDigest, ...]:
        """Return the loaded models, sorted."""
        return tuple(sorted(self.used))

    def use(self, model: ModelDigest) -> None:
        """Note that a model is used now."""
        del self.used[model]
        self.used[model] = None

    def change(
        self, *, digest: bytes, capabilities: tuple[Capability, ...], loaded: frozenset[ModelDigest]
    ) -> list[ModelDigest]:
        """Take in what the machine says of its models; return those that came up or can be waited for no more."""
        self.table_digest = digest
        self.capabilities = {each.model: each for each in capabilities}
        for model in [each for each in self.services if each not in self.capabilities]:
            del self.services[model]
        for model, capability in self.capabilities.items():
            if model in self.services:
                self.services[model].advertise(capability.mean_s)
            else:
                self.services[model] = ServiceEstimate(capability.mean_s)
        self._leaving = {model for model in self._leaving if model in loaded}
        ready = [each for each in sorted(loaded) if each in self.capabilities and each not in self._leaving]
        kept = [each for each in self.used if each in ready]
        settled = [each for each in ready if each not in self.used]
        self.used = dict.fromkeys(kept + settled)
        for model in [each for each in self.loading if each in self.used or each not in self.capabilities]:
            self.drop_load(model)
            if model not in self.used:
                settled.append(model)
        self._count_bits()
        return settled

    def load_s(self, model: ModelDigest, now_s: float) -> float | None:
        """Predict the time until a model is ready, in seconds; None when it cannot be had here."""
        if model in self.used:
            return 0.0
        capability = self.capabilities.get(model)
        if capability is None or model in self._leaving:
            return None
        load = self.loading.get(model)
        if load is not None:
            return max(load.ready_s - now_s, 0.1 * capability.load_s)
        return capability.load_s if self._victims(capability) is not None else None

    def request(self, model: ModelDigest) -> bool:
        """Have a model loaded, evicting others if need be; return whether it is on its way."""
        if model in self.loading:
            return True
        capability = self.capabilities.get(model)
        victims = None if capability is None else self._victims(capability)
        if capability is None or victims is None:
            return False
        ledger = self._ledger
        for victim in victims:
            del self.used[victim]
            self._leaving.add(victim)
            ledger.actions.append(EvictModel(model=victim, reason=f"room for {model[:8]}, unused for longest"))
        self._count_bits()
        load = self.loading[model] = Load(model, ready_s=ledger.now_s + capability.load_s)
        patience_s = ledger.config.queue.load_patience * capability.load_s + 5.0
        ledger.timers.set(load, ledger.now_s + patience_s)
        ledger.actions.append(LoadModel(model=model, reason="a job waits for it"))
        return True

    def drop_load(self, model: ModelDigest) -> None:
        """Wait for a model no more."""
        load = self.loading.pop(model, None)
        if load is not None:
            load.due_s = math.inf

    def _victims(self, capability: Capability) -> list[ModelDigest] | None:
        """Choose what has to leave for a model; None when it cannot be made to fit."""
        budget = self._ledger.config.queue.model_memory_bytes
        taken = sum(self.capabilities[each].memory_bytes for each in self.used)
        taken += sum(self.capabilities[each].memory_bytes for each in self.loading)
        excess = taken + capability.memory_bytes - budget
        victims: list[ModelDigest] = []
        for model in self.used:
            if excess <= 0:
                break
            if not self._is_in_use(model):
                victims.append(model)
                excess -= self.capabilities[model].memory_bytes
        return victims if excess <= 0 else None

    def _count_bits(self) -> None:
        self.warm_bits = sum(1 << index for index, model in enumerate(self.capabilities) if model in self.used)
