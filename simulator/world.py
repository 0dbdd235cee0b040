"""A fleet on one clock: nodes, what lies between them, the jobs they get, and what goes wrong.

Owns the wiring and the clients' side; decides nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from scheduler.config import CoreConfig
from scheduler.events import CancelRequested, Event
from scheduler.policy import Policy
from scheduler.types import DEFAULT_PRIORITY, Capability, Job, ModelDigest, PeerState, Reason
from simulator.answers import Answer, Failure
from simulator.distributions import ServiceTime
from simulator.engine import Engine, stream
from simulator.machine import ModelProfile
from simulator.metrics import Metrics
from simulator.network import Link, Network, NetworkConfig
from simulator.node import Observer, SimNode
from simulator.workload import Arrivals


class NodeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One node of a fleet."""

    name: str
    models: Mapping[ModelDigest, ModelProfile]
    loaded: frozenset[ModelDigest] | None = None
    """Models in memory at the start; None for all."""
    config: CoreConfig | None = None
    """Of its core; None for the fleet's."""


class JobSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a source sends."""

    models: tuple[ModelDigest, ...]
    input_bytes: int
    output_bytes: int = 4096
    """Expected; a prior of the transfer estimate."""
    body_bytes: int = 40
    """Length of the encoded request that goes with the header."""
    budget_s: float = 5.0
    priority: int = DEFAULT_PRIORITY
    stream: str = ""
    newest_wins: bool = False


def profile(
    model: ModelDigest, service: ServiceTime, *, mean_s: float, load_s: float = 0.0, memory_bytes: int = 0
) -> ModelProfile:
    """Make a model profile of a node that tells the truth of its mean."""
    capability = Capability(model=model, mean_s=mean_s, p95_s=mean_s, memory_bytes=memory_bytes, load_s=load_s)
    return ModelProfile(capability=capability, service=service)


class Client:
    """Waits for the one outcome of a job; see answers.Answerer."""

    __slots__ = ("_metrics", "_world", "handle", "is_open", "job")

    def __init__(self, world: "World", job: Job) -> None:
        self._world = world
        self._metrics = world.metrics
        self.job = job
        self.handle = 0
        self.is_open = True

    def accepted(self, state: PeerState) -> None:
        """Do nothing: an own client is not told."""

    def progress(self, state: PeerState) -> None:
        """Do nothing: an own client is not told."""

    def answer(self, answer: Answer, state: PeerState) -> None:
        """Count the result."""
        self.is_open = False
        job = self.job
        self._metrics.answered(
            entry=job.entry,
            executor=answer.node,
            arrival_s=job.arrival_s,
            deadline_s=job.deadline_s,
            now_s=self._world.engine.now_s,
        )

    def fail(self, failure: Failure, state: PeerState, estimate_s: float | None) -> None:
        """Count the end."""
        self.is_open = False
        self._metrics.ended(failure.reason, self.job.arrival_s)

    def give_back(self, reason: Reason, state: PeerState, estimate_s: float | None) -> None:
        """Count the end; a core gives nothing back to an own client."""
        self.fail(Failure(reason=reason), state, estimate_s)


class World:
    """A fleet.

    Parameters
    ----------
    specs : iterable of NodeSpec
        The nodes; all know all.
    seed : str
        Seeds every draw, one stream per purpose and entity.
    config : CoreConfig
        Of the cores.
    link : Link, optional
        Every link.
    network : NetworkConfig, optional
        What connections cost.
    network_seed : str, optional
        Of jitter and loss; `seed` where not given.
    start_s : float, default 0.0
        Time at the start, in seconds.
    warm_s : float, default 0.0
        Jobs that arrive earlier after the start are not counted.
    observer : callable, optional
        Told of each action of each core.
    policy : callable, optional
        Makes, of this world with its engine and its table of nodes, the one policy of all cores in place of the one
        that the configuration names; it may give None. For policies that see more than a node can: `oracle.make`.
    """

    def __init__(
        self,
        specs: Iterable[NodeSpec],
        *,
        seed: str,
        config: CoreConfig | None = None,
        link: Link | None = None,
        network: NetworkConfig | None = None,
        network_seed: str | None = None,
        start_s: float = 0.0,
        warm_s: float = 0.0,
        observer: Observer | None = None,
        policy: "Callable[[World], Policy | None] | None" = None,
    ) -> None:
        self.seed = seed
        self.engine = Engine(start_s)
        self.network = Network(self.engine, seed=network_seed or seed, link=link, config=network)
        self.metrics = Metrics(start_s + warm_s)
        self.nodes: dict[str, SimNode] = {}
        self._sources = 0
        shared = None if policy is None else policy(self)
        for spec in specs:
            SimNode(
                spec.name,
                network=self.network,
                seed=seed,
                config=spec.config or config or CoreConfig(),
                models=spec.models,
                loaded=spec.loaded,
                peers=self.nodes,
                observer=observer,
                policy=shared,
            )

    def start(self, neighbours: Mapping[str, Iterable[str]] | None = None) -> None:
        """Switch all nodes on, with the mesh where gossip is forwarded."""
        for name, others in (neighbours or {}).items():
            for other in others:
                self.nodes[name].gossip.connect(other)
        for node in self.nodes.values():
            node.start()

    def at(self, due_s: float, call: Callable[..., object], *args: Any) -> None:  # noqa: ANN401
        """Have something happen at a time."""
        self.engine.at(due_s, call, *args)

    def run(self, until_s: float) -> int:
        """Let time pass; returns the calls made."""
        return self.engine.run(until_s)

    # Jobs.

    def feed(self, entry: str, arrivals: Arrivals, spec: JobSpec, *, start_s: float, end_s: float) -> None:
        """Have jobs arrive at a node between two times, by a source of its own."""
        self._sources += 1
        name = f"{entry}/{self._sources}"
        times = arrivals.times_s(stream(self.seed, "arrivals", name), start_s)
        self._next_arrival(times, entry, spec, self._sources.to_bytes(16, "big"), 1, end_s)

    def _next_arrival(
        self, times: Iterator[float], entry: str, spec: JobSpec, client: bytes, count: int, end_s: float
    ) -> None:
        at_s = next(times)
        if at_s < end_s:
            self.engine.at(at_s, self._arrive, times, entry, spec, client, count, end_s)

    def _arrive(
        self, times: Iterator[float], entry: str, spec: JobSpec, client: bytes, count: int, end_s: float
    ) -> None:
        self.submit(entry, spec, key=client + count.to_bytes(8, "big"), frame=count if spec.stream else 0)
        self._next_arrival(times, entry, spec, client, count + 1, end_s)

    def submit(self, entry: str, spec: JobSpec, *, key: bytes, frame: int = 0) -> Client:
        """Have one job arrive now."""
        now_s = self.engine.now_s
        job = Job(
            key=key,
            entry=entry,
            priority=spec.priority,
            stream=spec.stream,
            frame=frame,
            newest_wins=spec.newest_wins,
            input_bytes=spec.input_bytes,
            output_bytes=spec.output_bytes,
            arrival_s=now_s,
            deadline_s=now_s + spec.budget_s,
            models=spec.models,
        )
        client = Client(self, job)
        self.metrics.submitted(now_s)
        node = self.nodes[entry]
        if node.is_alive:
            client.handle = node.submit(job, client, body_bytes=spec.body_bytes)
        return client

    def cancel(self, client: Client) -> None:
        """Have a client lose interest."""
        if client.is_open:
            self.nodes[client.job.entry].post(CancelRequested(handle=client.handle))

    # What goes wrong.

    def kill(self, name: str) -> None:
        """End a node as kill -9 would."""
        self.nodes[name].kill()

    def tell_all(self, event: Event) -> None:
        """Give every node that lives an event, in their order."""
        for node in self.nodes.values():
            node.post(event)
