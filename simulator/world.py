"""A fleet on one clock: nodes, what lies between them, the jobs they get, and what goes wrong.

Owns the wiring and the clients' side; decides nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from math import inf
from typing import Any, Final

import msgspec

from scheduler.config import CoreConfig
from scheduler.events import CancelRequested, Event
from scheduler.policy import Policy
from scheduler.types import Job, Reason
from simulator.client import Client
from simulator.config import NetworkConfig
from simulator.engine import Engine, stream
from simulator.links import Link
from simulator.metrics import Metrics
from simulator.network import Network
from simulator.node import Observer, SimNode
from simulator.specs import JobSpec, NodeSpec
from simulator.workload import Arrivals

RESUBMIT_S: Final = 0.05
"""After this time a client whose node is gone has found another: a broken socket is seen at once."""


class _Source:
    """A stream of jobs that arrive at one node."""

    __slots__ = ("_client", "_count", "_end_s", "_entry", "_spec", "_times", "_world")

    def __init__(
        self, world: "World", times: Iterator[float], entry: str, spec: JobSpec, client: bytes, end_s: float
    ) -> None:
        self._world = world
        self._times = times
        self._entry = entry
        self._spec = spec
        self._client = client
        self._end_s = end_s
        self._count = 0

    def await_next(self) -> None:
        """Have the next job arrive at its time, if that is before the end."""
        at_s = next(self._times)
        if at_s < self._end_s:
            self._world.engine.at(at_s, self._arrive)

    def _arrive(self) -> None:
        self._count += 1
        count, spec = self._count, self._spec
        key = self._client + count.to_bytes(8, "big")
        self._world.submit(self._entry, spec, key=key, frame=count if spec.stream else 0)
        self.await_next()


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
    failover : bool, default False
        Whether clients of a dead node send their jobs to the next one, under the same keys, as the real client does
        that knows several; otherwise such jobs stay open.
    until_s : float, default infinity
        When the last job arrives, in seconds after the start; see metrics.Metrics.
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
        failover: bool = False,
        until_s: float = inf,
    ) -> None:
        self.seed = seed
        self.engine = Engine(start_s)
        self.network = Network(self.engine, seed=network_seed or seed, link=link, config=network)
        self.metrics = Metrics(start_s + warm_s, start_s, start_s + until_s)
        self.nodes: dict[str, SimNode] = {}
        self.open: dict[Client, None] = {}
        """Clients without an outcome, oldest first."""
        self._failover = failover
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
        _Source(self, times, entry, spec, self._sources.to_bytes(16, "big"), end_s).await_next()

    def submit(
        self, entry: str, spec: JobSpec, *, key: bytes, frame: int = 0, stages: tuple[JobSpec, ...] = ()
    ) -> Client:
        """Have one job arrive now, with the stages that are to follow."""
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
        client = Client(self, job, body_bytes=spec.body_bytes, stages=stages)
        self.metrics.arrived(client, now_s)
        self.open[client] = None
        self.send(client)
        return client

    def send(self, client: Client) -> None:
        """Give a client's job to its entry node, or to the next that lives where clients do so."""
        node = self.nodes[client.job.entry]
        if node.is_alive:
            client.handle = node.submit(client.job, client, body_bytes=client.body_bytes)
        elif self._failover:
            self._send_elsewhere(client)

    def _send_elsewhere(self, client: Client) -> None:
        """Give a job to the next living node; the client asks all of them until its time is over."""
        now_s, job = self.engine.now_s, client.job
        names = list(self.nodes)
        first = names.index(job.entry)
        for name in (*names[first:], *names[:first]):
            if self.nodes[name].is_alive:
                client.job = msgspec.structs.replace(job, entry=name, arrival_s=now_s)
                client.handle = self.nodes[name].submit(client.job, client, body_bytes=client.body_bytes)
                return
        if now_s + RESUBMIT_S < job.deadline_s:
            self.engine.at(now_s + RESUBMIT_S, self._send_elsewhere, client)
        else:
            client.end(Reason.LOST)

    def ended(self, client: Client) -> None:
        """Forget a client that has its outcome."""
        del self.open[client]

    def cancel(self, client: Client) -> None:
        """Have a client lose interest."""
        if client.is_open:
            self.nodes[client.job.entry].post(CancelRequested(handle=client.handle))

    # What goes wrong.

    def kill(self, name: str) -> None:
        """End a node as kill -9 would."""
        self.nodes[name].kill()
        if self._failover:
            due_s = self.engine.now_s + RESUBMIT_S
            for client in [each for each in self.open if each.job.entry == name]:
                self.engine.at(due_s, self._send_elsewhere, client)

    def tell_all(self, event: Event) -> None:
        """Give every node that lives an event, in their order."""
        for node in self.nodes.values():
            node.post(event)
