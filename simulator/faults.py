"""What goes wrong with nodes and what lies between them, put on the clock of a world.

Owns when and to whom; what a fault does to a node is the node's and its machine's. Each kind is a method that acts now;
`plan` puts those of a scenario at their times. Draws of churn have a stream per node.

======================= =============================================================================================
crash                   kill -9: nothing is said, connections break. It may return under a higher epoch: its core and
                        its models' memory are empty, its peers find it again by themselves
freeze                  SIGSTOP: timers stand still, nothing passes; then all of it happens at once
slow                    service times grow without a word of it; the estimates of others have to find out
drift                   its clock runs fast or slow: periods, timeouts and the times it tells are off, its speed is not
lie                     it tells that it is idle and serves late, or swallows jobs: see simulator.lies
partition               nothing passes between groups; TCP keeps what was sent until it heals, or a timeout ends it
churn                   crashes and returns, both after exponential times
======================= =============================================================================================

Clients of a dead node are the world's business (World.kill). With faults every node runs the daemon's failure detector,
so that cores hear of the suspect, the dead and the returned when the daemon's would.
"""

import random
from collections.abc import Callable, Iterable, Mapping
from math import inf
from typing import Protocol

from simulator.engine import Engine, stream
from simulator.faultspecs import (
    ChurnFault,
    CrashFault,
    DriftFault,
    Fault,
    LiarFault,
    PartitionFault,
    PauseFault,
    SlowFault,
)
from simulator.lies import Lie
from simulator.network import Network
from simulator.node import SimNode
from simulator.scenario import Scenario
from transport.liveness_events import LivenessConfig


class Fleet(Protocol):
    """What a world has that faults need."""

    @property
    def seed(self) -> str:
        """Of every draw."""

    @property
    def engine(self) -> Engine:
        """True time."""

    @property
    def network(self) -> Network:
        """All links."""

    @property
    def nodes(self) -> Mapping[str, SimNode]:
        """By name; a node that returns takes its own place."""

    def kill(self, name: str) -> None:
        """End a node as kill -9 would, and tell its clients."""


class Faults:
    """All faults of one world.

    Parameters
    ----------
    fleet : Fleet
        The world.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self.crashes = 0
        self.returns = 0

    # Now.

    def crash(self, name: str, *, back_after_s: float = inf) -> None:
        """End a node, and bring it back after a time in seconds; a dead one stays dead."""
        if self._fleet.nodes[name].is_alive:
            self.crashes += 1
            self._fleet.kill(name)
            if back_after_s != inf:
                self._after(back_after_s, self.bring_back, name)

    def bring_back(self, name: str) -> None:
        """Start a dead node's next life."""
        if not self._fleet.nodes[name].is_alive:
            self.returns += 1
            self._fleet.nodes[name].reborn()

    def freeze(self, name: str, for_s: float) -> None:
        """Stop a node's process for a time in seconds; it needs a clock of its own since before it started."""
        node = self._fleet.nodes[name]
        node.freeze()
        self._after(for_s, node.thaw)

    def slow(self, name: str, factor: float, for_s: float = inf) -> None:
        """Make a node serve so many times longer, for a time in seconds."""
        self._fleet.nodes[name].machine.set_pace(factor)
        self._after(for_s, self._quicken, name)

    def _quicken(self, name: str) -> None:
        self._fleet.nodes[name].machine.set_pace(1.0)

    def lie(self, name: str, lie: Lie, for_s: float = inf) -> None:
        """Have a node lie, for a time in seconds."""
        self._fleet.nodes[name].set_lie(lie)
        self._after(for_s, self._be_honest, name)

    def _be_honest(self, name: str) -> None:
        self._fleet.nodes[name].set_lie(None)

    def churn(self, name: str, rng: random.Random, *, up_s: float, down_s: float, until_s: float) -> None:
        """Crash a node and bring it back again and again, after exponential times with these means, in seconds."""
        up, down = rng.expovariate(1.0 / up_s), rng.expovariate(1.0 / down_s)
        if self._fleet.engine.now_s + up < until_s:
            self._after(up, self.crash, name)
            self._after(up + down, self._return_to_churn, name, rng, up_s, down_s, until_s)

    def _return_to_churn(self, name: str, rng: random.Random, up_s: float, down_s: float, until_s: float) -> None:
        self.bring_back(name)
        self.churn(name, rng, up_s=up_s, down_s=down_s, until_s=until_s)

    def _after(self, wait_s: float, call: Callable[..., object], *args: object) -> None:
        if wait_s != inf:
            self._fleet.engine.at(self._fleet.engine.now_s + wait_s, call, *args)

    # Later.

    def watch(self, config: LivenessConfig | None = None) -> None:
        """Have all nodes run the failure detector; before they start."""
        for node in self._fleet.nodes.values():
            node.add_watch(config or LivenessConfig())

    def plan(self, fault: Fault, names: Iterable[str], groups: Iterable[Iterable[str]] = ()) -> None:
        """Put a fault of a scenario on the clock; before the nodes start.

        Parameters
        ----------
        fault : Fault
            The record.
        names : iterable of str
            Nodes it meets; none for a partition.
        groups : iterable of iterable of str
            Of a partition.
        """
        fleet, engine = self._fleet, self._fleet.engine
        at_s = engine.now_s + fault.at_s
        if isinstance(fault, PartitionFault):
            engine.at(at_s, fleet.network.partition, *[tuple(group) for group in groups])
            if fault.for_s != inf:
                engine.at(at_s + fault.for_s, fleet.network.heal)
            return
        for name in names:
            if isinstance(fault, PauseFault | DriftFault):
                fleet.nodes[name].own_clock()
            engine.at(at_s, self._act, fault, name)

    def _act(self, fault: Fault, name: str) -> None:
        """Do to one node what a fault does."""
        match fault:
            case CrashFault():
                self.crash(name, back_after_s=fault.back_after_s)
            case PauseFault():
                self.freeze(name, fault.for_s)
            case SlowFault():
                self.slow(name, fault.factor, fault.for_s)
            case DriftFault():
                self._fleet.nodes[name].drift(fault.rate)
            case LiarFault():
                self.lie(name, Lie(does=fault.does, delay_s=fault.delay_s), fault.for_s)
            case ChurnFault():
                rng = stream(self._fleet.seed, "churn", name)
                until_s = self._fleet.engine.now_s + fault.for_s
                self.churn(name, rng, up_s=fault.up_s, down_s=fault.down_s, until_s=until_s)


def plan_faults(fleet: Fleet, scenario: Scenario) -> Faults:
    """Put all faults of a scenario on the clock, with failure detection where there are any; before the nodes start."""
    faults = Faults(fleet)
    if scenario.faults:
        faults.watch()
    for fault in scenario.faults:
        if isinstance(fault, PartitionFault):
            faults.plan(fault, (), [scenario.select(group) for group in fault.groups])
        else:
            faults.plan(fault, scenario.select(fault.nodes))
    return faults
