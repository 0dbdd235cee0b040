"""A scenario's run: the world is built, time passes in slices, a result comes out.

Reads no clock and no file: how long a run takes, and where its result goes, are its caller's.
"""

import hashlib
import struct
from collections.abc import Callable, Iterable
from math import inf
from typing import Final

import msgspec

from scheduler.actions import Action
from scheduler.config import CoreConfig
from scheduler.types import SchedulerError
from scheduler.variants import configure
from simulator import oracle
from simulator.faults import plan_faults
from simulator.feeding import feed_all
from simulator.fleet import node_specs, offered, source_rates_hz
from simulator.node import Observer
from simulator.results import Result
from simulator.sampling import Sampler
from simulator.scenario import Scenario
from simulator.summing import sum_up
from simulator.values import ScenarioError
from simulator.wiring import network_config, wire
from simulator.world import World

SLICES: Final = 200
"""Steps of a run between which its caller is told how far it is."""

Progress = Callable[[float], object]
"""Told of the share of the simulated time that has passed, 0 to 1."""


class TraceHash:
    """SHA-256 over every action of every core, with its time, in their order."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()
        self._encode = msgspec.msgpack.Encoder().encode

    def __call__(self, name: str, now_s: float, action: Action) -> None:
        """Take in an action; see node.Observer."""
        update = self._hash.update
        update(struct.pack("<d", now_s))
        update(f"{name}\n{type(action).__name__}\n".encode())
        update(self._encode(action))

    def hexdigest(self) -> str:
        """Return the hash so far."""
        return self._hash.hexdigest()


class Run:
    """A scenario under way.

    Parameters
    ----------
    scenario : Scenario
        What is to happen.
    seed : str, optional
        In place of the scenario's.
    policy : str, optional
        In place of the scenario's.
    observers : iterable of callables
        Told of each action of each core.
    hashed : bool, default False
        Whether the result has the trace hash; costs about a third of the time.

    Raises
    ------
    ScenarioError
        The author's fault: an unknown policy, device or link.
    """

    def __init__(
        self,
        scenario: Scenario,
        *,
        seed: str | None = None,
        policy: str | None = None,
        observers: Iterable[Observer] = (),
        hashed: bool = False,
    ) -> None:
        changes = {"seed": str(scenario.seed) if seed is None else seed}
        self.scenario = scenario = msgspec.structs.replace(scenario, **changes, policy=policy or scenario.policy)
        self._hash = TraceHash() if hashed else None
        watchers = [*observers]
        if self._hash is not None:
            watchers.append(self._hash)
        self._rates_hz = source_rates_hz(scenario)
        self.world = World(
            node_specs(scenario, core_config(scenario)),
            seed=changes["seed"],
            network=network_config(scenario),
            warm_s=scenario.warm_up_s,
            until_s=scenario.duration_s,
            failover=True,
            observer=_joined(watchers),
            policy=lambda world: oracle.make(scenario.policy, world),
        )
        neighbours = wire(self.world, scenario)
        self._sampler = Sampler(self.world, scenario)
        plan_faults(self.world, scenario)
        self.world.start(neighbours)
        feed_all(self.world, scenario, self._rates_hz)
        self.events = 0

    @property
    def end_s(self) -> float:
        """When it ends at the latest, in seconds."""
        return self.scenario.duration_s + self.scenario.drain_s

    @property
    def is_over(self) -> bool:
        """Whether nothing counts any more: the last job has arrived and all have their outcome, or time is up."""
        now_s = self.world.engine.now_s
        return now_s >= self.end_s or (now_s >= self.scenario.duration_s and not self.world.open)

    def advance(self, until_s: float) -> None:
        """Let time pass."""
        self.events += self.world.run(min(until_s, self.end_s))

    def finish(self, progress: Progress | None = None) -> Result:
        """Run to the end, telling how far it is, and sum up."""
        step_s = self.scenario.duration_s / SLICES
        number = round(self.world.engine.now_s / step_s)
        while not self.is_over:
            number += 1
            self.advance(self.scenario.duration_s if number == SLICES else number * step_s)
            if progress is not None:
                progress(min(1.0, number / SLICES))
        return self.result()

    def result(self) -> Result:
        """Return the numbers so far."""
        jobs_hz, load = offered(self.scenario, self._rates_hz)
        return sum_up(
            self.world,
            self.scenario,
            self._sampler,
            capacity_hz=jobs_hz / load if load else inf,
            load=load,
            events=self.events,
            trace_hash="" if self._hash is None else self._hash.hexdigest(),
        )


def run(
    scenario: Scenario,
    *,
    seed: str | None = None,
    policy: str | None = None,
    progress: Progress | None = None,
    observers: Iterable[Observer] = (),
    hashed: bool = False,
) -> Result:
    """Run a scenario; see Run."""
    return Run(scenario, seed=seed, policy=policy, observers=observers, hashed=hashed).finish(progress)


def _joined(observers: list[Observer]) -> Observer | None:
    if len(observers) < 2:
        return observers[0] if observers else None

    def tell_all(name: str, now_s: float, action: Action) -> None:
        for observer in observers:
            observer(name, now_s, action)

    return tell_all


def core_config(scenario: Scenario) -> CoreConfig:
    """Return the configuration of the cores under the scenario's policy.

    Raises
    ------
    ScenarioError
        When there is no such policy, or it has no such argument.
    """
    name = scenario.policy
    try:
        if oracle.is_known(name):
            oracle.check(name)
            return oracle.tune(scenario.core, nodes=len(scenario.node_names))
        return configure(scenario.core, name)
    except oracle.OraclePolicyError as error:
        raise ScenarioError(str(error), ("policy",)) from None
    except (ValueError, SchedulerError) as unknown:
        raise ScenarioError(f"{unknown}; of the simulator alone: {', '.join(oracle.names())}", ("policy",)) from None
