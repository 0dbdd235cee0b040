"""A fleet of simulated nodes with its jobs and faults: what a scenario is made of.

Owns the nodes, the network between them and the outcomes of jobs. All nodes know one another by gossip, which reaches
each of them directly; a mesh of bounded degree is not modelled.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import msgspec

from scheduler.actions import Action
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.events import AdvertReceived, CancelRequested, DrainRequested, PeerLost
from scheduler.types import Job, ModelDigest, NodeId, PeerState, Reason
from simulator.engine import Engine
from simulator.network import Link, Wire
from simulator.node import Bodies, Device, Node
from simulator.pool import Plane
from simulator.records import Answer, Failure

ActionWatcher = Callable[[NodeId, float, Action], None]
"""Told node, time in seconds and action, before the action is carried out."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """The one end of one job, as its client sees it."""

    key: bytes
    entry: NodeId
    stream: str
    arrival_s: float
    end_s: float
    failure: str | None
    """Why there was no result; None when there was one."""
    executor: NodeId | None = None
    model: ModelDigest | None = None
    hops: int = 0
    waiting_s: float = 0.0
    service_s: float = 0.0

    @property
    def sojourn_s(self) -> float:
        """Time from arrival to outcome, in seconds."""
        return self.end_s - self.arrival_s


class World:
    """A fleet.

    Parameters
    ----------
    devices : sequence of Device
        The nodes; all are switched on at time 0, in this order.
    seed : int or str
        Of all random draws. One seed and one scenario give one history.
    config : CoreConfig
        Of every node.
    link : Link
        Between any two nodes; `wire.set_link` changes single ones.
    bodies : Bodies
        Of requests and results.
    on_action : callable, optional
        Told of every action of every node.

    Examples
    --------
    >>> from simulator.execution import ModelCost
    >>> world = World([Device(name="a", models={"m": ModelCost(mean_s=0.1)})], seed=7)
    >>> key = b"0" * 24
    >>> job = Job(key=key, entry="a", input_bytes=0, arrival_s=1.0, deadline_s=6.0, models=("m",))
    >>> world.submit([job])
    >>> world.run(2.0)
    >>> [(each.executor, round(each.sojourn_s, 3)) for each in world.outcomes]
    [('a', 0.1)]
    """

    def __init__(
        self,
        devices: Sequence[Device],
        *,
        seed: int | str,
        config: CoreConfig | None = None,
        link: Link | None = None,
        bodies: Bodies | None = None,
        on_action: ActionWatcher | None = None,
    ) -> None:
        self.engine = Engine(seed)
        self.wire = Wire(self.engine, link or Link())
        self.outcomes: list[Outcome] = []
        self.nodes: dict[NodeId, Node] = {}
        self.drained_s: dict[NodeId, float] = {}
        """When drains were complete."""
        self._on_action = on_action
        self._open: dict[bytes, _Client] = {}
        self._planes: dict[str, Plane] = {}
        for device in devices:
            self._add(device, config or CoreConfig(), bodies or Bodies())
        self.engine.soon(self._start)

    def _add(self, device: Device, config: CoreConfig, bodies: Bodies) -> None:
        if device.name in self.nodes:
            raise ValueError(f"two devices are named {device.name!r}; give each a name of its own")
        rng = self.engine.stream("core", device.name)
        core = Core(config, node_id=device.name, epoch=1, rng=rng, now_s=0.0)
        self.nodes[device.name] = Node(
            device,
            core,
            engine=self.engine,
            wire=self.wire,
            planes=self._planes,
            watcher=self,
            bodies=bodies,
        )

    def _start(self) -> None:
        for node in self.nodes.values():
            node.start()

    # ------------------------------------------------------------ what happens

    def submit(self, jobs: Iterable[Job]) -> None:
        """Let jobs arrive at their entry nodes at their arrival times."""
        for job in jobs:
            self.engine.at(job.arrival_s, partial(self._arrive, job))

    def feed(self, jobs: Iterable[Job]) -> None:
        """Let jobs of an endless workload arrive, in the order of their arrival times; one is looked ahead."""
        rest = iter(jobs)

        def next_one() -> None:
            job = next(rest, None)
            if job is not None:
                self.engine.at(job.arrival_s, lambda: arrive(job))

        def arrive(job: Job) -> None:
            self._arrive(job)
            next_one()

        next_one()

    def kill(self, name: NodeId, at_s: float, *, noticed_after_s: float = 1.0) -> None:
        """Kill a node at a time; the others take it for lost some seconds later."""
        self.engine.at(at_s, lambda: self._kill(name, noticed_after_s))

    def drain(self, name: NodeId, at_s: float) -> None:
        """Let a node drain from a time on."""
        self.engine.at(at_s, lambda: self.nodes[name].post(DrainRequested()))

    def cancel(self, key: bytes, at_s: float) -> None:
        """Let the client of a job want it no more at a time."""
        self.engine.at(at_s, lambda: self._cancel(key))

    def run(self, until_s: float = math.inf) -> None:
        """Let time pass. Nodes gossip for ever, so there has to be an end."""
        self.engine.run(until_s)

    @property
    def open_jobs(self) -> int:
        """Jobs that have arrived and have no outcome yet."""
        return len(self._open)

    # ------------------------------------------------------------ what nodes say

    def acted(self, node: NodeId, action: Action) -> None:
        """Take note of an action; see node.Watcher."""
        if self._on_action is not None:
            self._on_action(node, self.engine.now_s, action)

    def advertised(self, node: NodeId, state: PeerState) -> None:
        """Gossip a state record to all others; see node.Watcher."""
        event = AdvertReceived(state=state)
        for name, other in self.nodes.items():
            if name != node and not other.is_dead:
                self.wire.gossip(node, name, partial(other.post, event))

    def drained(self, node: NodeId) -> None:
        """Take note of a complete drain; see node.Watcher."""
        self.drained_s[node] = self.engine.now_s

    # ------------------------------------------------------------

    def _arrive(self, job: Job) -> None:
        node = self.nodes[job.entry]
        client = _Client(self, job)
        if node.is_dead:
            client.fail_with(Reason.LOST.value)
            return
        self._open[job.key] = client
        client.handle = node.mint()
        node.arrive(client.handle, job, client)

    def _cancel(self, key: bytes) -> None:
        client = self._open.get(key)
        if client is not None:
            self.nodes[client.job.entry].post(CancelRequested(handle=client.handle))

    def _kill(self, name: NodeId, noticed_after_s: float) -> None:
        node = self.nodes[name]
        node.die()
        self.wire.remove(name)
        for client in [each for each in self._open.values() if each.job.entry == name]:
            client.fail_with(Reason.LOST.value)
        self.engine.after(noticed_after_s, lambda: self._notice(name))

    def _notice(self, name: NodeId) -> None:
        for node in self.nodes.values():
            if not node.is_dead:
                node.post(PeerLost(peer=name))

    def end(self, outcome: Outcome) -> None:
        """Keep the outcome of a job."""
        self._open.pop(outcome.key, None)
        self.outcomes.append(outcome)


class _Client:
    """Waits for one job; see records.Responder."""

    def __init__(self, world: World, job: Job) -> None:
        self._world = world
        self.job = job
        self.handle = 0

    def accepted(self, state: PeerState) -> None:
        """Nothing: clients only want outcomes."""

    def progress(self, state: PeerState) -> None:
        """Nothing: clients only want outcomes."""

    def answer(self, answer: Answer, state: PeerState) -> None:
        job = self.job
        self._world.end(
            Outcome(
                key=job.key,
                entry=job.entry,
                stream=job.stream,
                arrival_s=job.arrival_s,
                end_s=self._world.engine.now_s,
                failure=None,
                executor=answer.node,
                model=answer.model,
                hops=answer.hops,
                waiting_s=answer.waiting_s,
                service_s=answer.service_s,
            )
        )

    def fail(self, failure: Failure, state: PeerState, *, estimate_s: float | None) -> None:
        self.fail_with(failure.reason)

    def give_back(self, reason: Reason, state: PeerState, *, estimate_s: float | None) -> None:
        self.fail_with(reason.value)

    def fail_with(self, reason: str) -> None:
        job = self.job
        self._world.end(
            Outcome(
                key=job.key,
                entry=job.entry,
                stream=job.stream,
                arrival_s=job.arrival_s,
                end_s=self._world.engine.now_s,
                failure=reason,
            )
        )
