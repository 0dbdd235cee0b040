"""The daemon's driver and the simulator take the same decisions, action by action, from one seed.

On one side stand the daemon's own parts (driver, job table, hands, sending and serving, the emulated executor and the
network in memory) on trio's virtual clock, on the other the simulator. The control plane is left out on both: a state
record reaches every other node after the link's delay.

Two things are held fixed. Arrivals, sizes and links are such that events of different origin do not fall on one
instant. And trio, which shuffles tasks that wake at one instant, is made to run them first in, first out: where one
event makes a node say several things to one peer over several connections (a result and a steal when it becomes idle,
the results of a batch, what a drain gives back), any of them may reach the wire first, and on a line of finite
bandwidth that changes when they arrive. A second test shows that nothing else hangs on trio's order.
"""

import functools
import itertools
import math
import random

import msgspec
import pytest
import trio
import trio._core._run
import trio.testing

from gridnode.driver import Driver
from gridnode.hands import DaemonHands
from gridnode.inbound import Inbound
from gridnode.jobtable import JobEntry, JobTable
from gridnode.mouth import GridMouth
from gridnode.outbound import Outbound
from gridnode.report import Report
from gridnode.translate import state_from_wire, state_to_wire, table_digest, table_to_wire
from models import tensors
from models.emulated import DeviceProfile, EmulatedExecutor, EmulatedModel
from models.manifest import ImagePreprocessing, Manifest, TensorSpec, describe_shard
from scheduler import actions
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.events import AdvertReceived, CancelRequested, DrainRequested, JobArrived, ModelChanged, PeerLost
from scheduler.types import CapabilityTable
from simulator.engine import Engine
from simulator.execution import ModelCost, capabilities_of
from simulator.network import Link as SimulatedLink
from simulator.node import Bodies, Device
from simulator.workload import Request, camera, merge, poisson
from simulator.world import World
from transport.base import DataAddress
from transport.memory import Link, MemoryNetwork
from transport.wire import TableRequest

LARGE, SMALL = "a" * 64, "b" * 64
MANIFEST = Manifest(
    name="toy",
    inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 3, 8, 8)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(2,)),),
    preprocessing=ImagePreprocessing(input="x", width=8, height=8),
    peak_memory_bytes=1,
    graph="graph.onnx",
    shards=(describe_shard("graph.onnx", [b"x"]),),
)
ZEROS = bytes(400_000)
BODY = tensors.encode_request(tensors.RequestBody(kind="image"))
RESULT = tensors.encode_result(tensors.ResultBody(emulated=True))
LINKS = {
    ("slow", "mid"): {"delay_s": 0.00113, "bytes_per_s": 11.7e6},
    ("slow", "fast"): {"delay_s": 0.00171, "bytes_per_s": 9.3e6},
    ("mid", "fast"): {"delay_s": 0.00057, "bytes_per_s": 110.1e6},
}
COSTS = {
    "slow": {LARGE: 0.2617, SMALL: 0.0831},
    "mid": {LARGE: 0.0913, SMALL: 0.0297},
    "fast": {LARGE: 0.0311, SMALL: 0.0103},
}


NOTICED_AFTER_S = 1.0
"""Time after which the others know that a node was killed, on both sides."""


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What happens; `shows` names what must have happened for the comparison to mean anything."""

    name: str
    seed: int
    shows: tuple[str, ...]
    jobs: int = 1000
    load: float = 1.0
    cv: float = 0.0
    policy: str = "capd"
    max_batch: int = 1
    is_cold: bool = False
    """Whether models are loaded when they are wanted; only one of the two fits."""
    cancel_every: int = 0
    """Each so many jobs one is cancelled by its client a moment after it came; 0 for none."""
    drain_s: float | None = None
    """When node mid drains."""
    kill_s: float | None = None
    """When node fast is killed."""
    steals: bool = True

    @property
    def config(self):
        config = CoreConfig()
        placement = msgspec.structs.replace(config.placement, policy=self.policy)
        queue = msgspec.structs.replace(config.queue, model_memory_bytes=150)
        steal = msgspec.structs.replace(config.steal, enabled=self.steals)
        return msgspec.structs.replace(config, placement=placement, queue=queue, steal=steal)

    def costs(self, node):
        """Return what each model costs on a node."""
        memory_bytes, load_s = (100, 0.717 * COSTS[node][LARGE]) if self.is_cold else (1, 0.0)
        return {
            model: ModelCost(
                mean_s=mean_s, cv=self.cv, max_batch=self.max_batch, memory_bytes=memory_bytes, load_s=load_s
            )
            for model, mean_s in COSTS[node].items()
        }

    def loaded(self, node):
        """Return which models are ready at the start."""
        return frozenset() if self.is_cold else frozenset(COSTS[node])


def workload(scenario):
    """Poisson requests at two nodes with payloads of all sizes, and a camera that wants its newest frame."""
    streams = Engine(scenario.seed)
    slow = Request(entry="slow", client="slow", models=(LARGE, SMALL), budget_s=2.03, input_bytes=(2_000, 90_000))
    other = (SMALL,) if scenario.is_cold else (LARGE,)
    mid = Request(entry="mid", client="mid", models=other, budget_s=4.1, input_bytes=(100_000, 400_000))
    film = Request(
        entry="fast", client="film", models=(LARGE,), budget_s=3.07, input_bytes=(20_000, 20_000), newest_wins=True
    )
    sources = [
        poisson(slow, rate_hz=22.0 * scenario.load, rng=streams.stream("workload", "slow")),
        poisson(mid, rate_hz=14.0 * scenario.load, rng=streams.stream("workload", "mid")),
        camera(film, rate_hz=11.0 * scenario.load, rng=streams.stream("workload", "film"), jitter_s=0.013),
    ]
    return list(itertools.islice(merge(sources, until_s=math.inf), scenario.jobs))


def cancels(scenario, jobs):
    """Return (time, job) of each cancel."""
    rng = Engine(scenario.seed).stream("cancel", "clients")
    chosen = jobs[:: scenario.cancel_every] if scenario.cancel_every else []
    return [(job.arrival_s + rng.uniform(0.001, 0.2), job) for job in chosen]


# ------------------------------------------------------------ the simulator


def simulate(scenario, jobs, end_s):
    """Return the actions of each core as the simulator has them."""
    seen = {name: [] for name in COSTS}
    devices = [Device(name=name, models=scenario.costs(name), loaded=scenario.loaded(name)) for name in COSTS]
    world = World(
        devices,
        seed=scenario.seed,
        config=scenario.config,
        bodies=Bodies(request=BODY, result=RESULT),
        on_action=lambda node, now_s, action: seen[node].append((now_s, action)),
    )
    for (a, b), link in LINKS.items():
        world.wire.set_link(a, b, SimulatedLink(**link))
    world.submit(jobs)
    for at_s, job in cancels(scenario, jobs):
        world.cancel(job.key, at_s)
    if scenario.drain_s is not None:
        world.drain("mid", scenario.drain_s)
    if scenario.kill_s is not None:
        world.kill("fast", scenario.kill_s, noticed_after_s=NOTICED_AFTER_S)
    world.run(end_s)
    assert not any(node.core.statistics().invariant_violations for node in world.nodes.values())
    assert len(world.outcomes) == len(jobs), "a job without an outcome, or with two"
    return seen


# ------------------------------------------------------------ the daemon


class FirstInFirstOut:
    """Stands for trio's generator: a batch of tasks is never left reversed."""

    def random(self):
        return 0.0


class Recording:
    """Notes each action, then has the daemon's hands carry it out."""

    def __init__(self, hands, seen):
        self._hands = hands
        self._seen = seen
        self.is_over = False

    def carry_out(self, action, attachment):
        if not self.is_over:
            self._seen.append((trio.current_time(), action))
            self._hands.carry_out(action, attachment)


class PatientExecutor(EmulatedExecutor):
    """Ends a run a moment after its deadline.

    The core's timer is due at the deadline too, and which of two scopes that expire at one instant trio cancels first
    depends on their addresses. The simulator lets the core's come first.
    """

    async def run(self, digest, requests, *, on_started=None):
        late = [msgspec.structs.replace(each, deadline_s=each.deadline_s + 1e-6) for each in requests]
        return await super().run(digest, late, on_started=on_started)


class Client:
    """Waits for a job of its own."""

    def accepted(self, state):
        pass

    def progress(self, state):
        pass

    def answer(self, answer, state):
        pass

    def fail(self, failure, state, *, estimate_s):
        pass

    def give_back(self, reason, state, *, estimate_s):
        pass


class Daemon:
    """The parts of one daemon that decide and carry out, without its front door and membership."""

    def __init__(self, name, scenario, network, seen, fleet):
        self.name = name
        self.is_dead = False
        self.driver = self.core = self.hands = self.inbound = None
        self.jobs = JobTable()
        self.planes = network.join(name)
        self.executor = PatientExecutor(
            DeviceProfile(
                models={
                    model[0]: EmulatedModel(mean_s=cost.mean_s, cv=cost.cv, load_s=cost.load_s)
                    for model, cost in scenario.costs(name).items()
                }
            ),
            random.Random(f"{scenario.seed}/service/{name}"),
        )
        self._scenario = scenario
        self._network = network
        self._seen = seen
        self._fleet = fleet
        self._capabilities = capabilities_of(scenario.costs(name))
        self._digest = table_digest(self._capabilities)
        self._handles = {}
        self._nursery = None

    async def live(self, *, task_status):
        """Run until killed; reports the address of the data port."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._assemble(nursery)
            for model in self._scenario.loaded(self.name):
                await self._load(model)
            task_status.started(await nursery.start(self.planes.data.serve, self._handle))

    def _assemble(self, nursery):
        name, scenario, planes = self.name, self._scenario, self.planes
        rng = random.Random(f"{scenario.seed}/core/{name}")
        self.core = Core(scenario.config, node_id=name, epoch=1, rng=rng, now_s=0.0)
        self.driver = Driver(self.core)
        outbound = Outbound(
            node=name,
            data=planes.data,
            jobs=self.jobs,
            driver=self.driver,
            nursery=nursery,
            own_state=lambda: self.core.state_record(trio.current_time()),
            on_unreachable=lambda peer: None,
            on_misbehaviour=lambda peer, what: pytest.fail(f"{peer}: {what}"),
        )
        self.inbound = Inbound(node=name, jobs=self.jobs, driver=self.driver, outbound=outbound)
        self._mouth = GridMouth(control=planes.control, data=planes.data, driver=self.driver, nursery=nursery)
        hands = DaemonHands(
            node=name,
            jobs=self.jobs,
            driver=self.driver,
            executor=self.executor,
            outbound=outbound,
            inbound=self.inbound,
            residents=self,
            mouth=self,
            report=Report(),
            nursery=nursery,
            on_drained=lambda: None,
        )
        self.hands = Recording(hands, self._seen)

    def drive(self):
        """Begin to drive the core."""
        self._tell_models()
        self._nursery.start_soon(self.driver.run, self.hands)

    def kill(self):
        """Stop at once."""
        self.is_dead = True
        self.hands.is_over = True
        self._network.kill(self.name)
        self._nursery.cancel_scope.cancel()

    # What the hands want of membership and of the house of models.

    def advertise(self, action):
        record = state_to_wire(action.state)
        for other in self._fleet.values():
            if other is not self and not other.is_dead:
                self._network.outer.start_soon(self._tell, other, record)

    async def _tell(self, other, record):
        link = LINKS.get((self.name, other.name)) or LINKS[other.name, self.name]
        await trio.sleep(link["delay_s"])
        if not other.is_dead:
            other.driver.post(AdvertReceived(state=state_from_wire(record)))

    def pull_table(self, action):
        self._mouth.pull_table(action)

    def load(self, model):
        self._nursery.start_soon(self._load_and_tell, model)

    def evict(self, model):
        self._nursery.start_soon(self._unload_and_tell, model)

    async def _load(self, model):
        await self.executor.load(model, msgspec.structs.replace(MANIFEST, name=model[0]), None)

    async def _load_and_tell(self, model):
        await self._load(model)
        self._tell_models()

    async def _unload_and_tell(self, model):
        await self.executor.unload(model)
        self._tell_models()

    def _tell_models(self):
        self.driver.post(
            ModelChanged(table_digest=self._digest, capabilities=self._capabilities, loaded=self.executor.loaded())
        )

    # What comes from outside.

    async def _handle(self, exchange, message, payload):
        if not await self.inbound.handle(exchange, message, payload):
            assert isinstance(message, TableRequest)
            table = CapabilityTable(node_id=self.name, digest=self._digest, entries=self._capabilities)
            await exchange.send(table_to_wire(table))
            exchange.finish()

    def take(self, job):
        """Take a job of an own client."""
        if self.is_dead:
            return
        handle = self._handles[job.key] = self.jobs.mint()
        payload = memoryview(ZEROS)[: job.input_bytes]
        self.jobs.add(JobEntry(handle=handle, job=job, body=BODY, payload=(payload,), responder=Client()))
        self.driver.post(JobArrived(handle=handle, job=job, origin=None))

    def cancel(self, job):
        """Cancel a job whose client still waits for it."""
        if not self.is_dead and self.jobs.get(self._handles[job.key]) is not None:
            self.driver.post(CancelRequested(handle=self._handles[job.key]))


def agenda(scenario, jobs, fleet):
    """Return what happens from outside, as (time, call), in order."""

    def notice():
        for each in fleet.values():
            if not each.is_dead:
                each.driver.post(PeerLost(peer="fast"))

    entries = [(job.arrival_s, functools.partial(fleet[job.entry].take, job)) for job in jobs]
    entries += [(at_s, functools.partial(fleet[job.entry].cancel, job)) for at_s, job in cancels(scenario, jobs)]
    if scenario.drain_s is not None:
        entries.append((scenario.drain_s, lambda: fleet["mid"].driver.post(DrainRequested())))
    if scenario.kill_s is not None:
        entries += [(scenario.kill_s, fleet["fast"].kill), (scenario.kill_s + NOTICED_AFTER_S, notice)]
    return sorted(entries, key=lambda entry: entry[0])


def run_daemons(scenario, jobs, end_s):
    """Return the actions of each core as the daemon's driver has them."""
    seen = {name: [] for name in COSTS}
    fleet = {}

    async def main():
        network = MemoryNetwork(random.Random(scenario.seed))
        for (a, b), link in LINKS.items():
            network.set_link(a, b, Link(**link))
        async with trio.open_nursery() as nursery:
            network.outer = nursery
            await nursery.start(network.serve)
            for name in COSTS:
                fleet[name] = Daemon(name, scenario, network, seen[name], fleet)
            addresses = {name: await nursery.start(daemon.live) for name, daemon in fleet.items()}
            for daemon in fleet.values():
                for name, (host, port) in addresses.items():
                    daemon.planes.data.set_address(name, [DataAddress(host=host, port=port)])
            for daemon in fleet.values():
                daemon.drive()
            for at_s, call in agenda(scenario, jobs, fleet):
                await trio.sleep_until(at_s)
                call()
            await trio.sleep_until(end_s)
            for daemon in fleet.values():
                daemon.hands.is_over = True
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return seen


# ------------------------------------------------------------ the comparison


def differences(here, there, path=""):
    """Return where two values differ; floating-point numbers may differ by rounding."""
    if isinstance(here, float) and isinstance(there, float):
        return [] if math.isclose(here, there, rel_tol=1e-9, abs_tol=1e-9) else [f"{path}: {here!r} / {there!r}"]
    if type(here) is not type(there):
        return [f"{path}: {here!r} / {there!r}"]
    if isinstance(here, dict):
        keys = sorted({*here, *there})
        return [each for key in keys for each in differences(here.get(key), there.get(key), f"{path}.{key}")]
    if isinstance(here, list | tuple) and len(here) == len(there):
        pairs = enumerate(zip(here, there, strict=True))
        return [each for i, pair in pairs for each in differences(*pair, f"{path}[{i}]")]
    return [] if here == there else [f"{path}: {here!r} / {there!r}"]


def described(entry):
    now_s, action = entry
    return {"now_s": now_s, "kind": type(action).__name__, **msgspec.structs.asdict(action), "reason": ""}


def plain(value):
    return msgspec.to_builtins(value, builtin_types=(bytes,))


def compare(node, simulated, real):
    for number, (here, there) in enumerate(zip(simulated, real, strict=False)):
        found = differences(plain(described(here)), plain(described(there)))
        assert not found, f"{node}, action {number} (simulated / real): {found}\n{here}\n{there}"
    assert len(simulated) == len(real), node


SCENARIOS = [
    Scenario(name="sharing", seed=1, shows=("Send", "Offer", "Accept", "Acknowledge", "Progress", "Steal", "grant")),
    Scenario(
        name="overload", seed=2, cv=0.4, load=1.3, shows=("Send", "Offer", "deadline", "queue_full", "superseded")
    ),
    Scenario(name="steals", seed=3, cv=0.4, policy="local_only", shows=("Steal", "grant", "Cancel", "expired")),
    Scenario(name="careless", seed=24, cv=0.3, load=1.7, policy="random", shows=("Nack", "NackOffer", "Send", "hop")),
    Scenario(name="batches", seed=5, cv=0.2, load=1.2, max_batch=4, shows=("batch", "Send")),
    Scenario(name="cold", seed=6, load=0.8, is_cold=True, shows=("LoadModel", "EvictModel", "Send")),
    Scenario(name="cancels", seed=7, cv=0.3, cancel_every=3, shows=("Cancel", "cancelled", "Send")),
    Scenario(name="drain", seed=8, cv=0.3, policy="random", drain_s=7.1234, shows=("Drained", "Nack", "draining")),
    Scenario(name="death", seed=9, cv=0.3, load=0.7, kill_s=7.1234, shows=("Send", "Nack", "again")),
]


def shown(seen):
    """Return the kinds of all actions, and what else a scenario may have to show."""
    found = set()
    for _, action in itertools.chain.from_iterable(seen.values()):
        found.add(type(action).__name__)
        match action:
            case actions.GrantLease(grants=grants) if grants:
                found.add("grant")
            case actions.Execute(handles=handles) if len(handles) > 1:
                found.add("batch")
            case actions.Send(job=job) if job.attempt:
                found.add("again")
            case actions.Send(job=job) if job.hops > 1:
                found.add("hop")
            case actions.Reject() | actions.Nack():
                found.add(action.why.value)
    return found


def check_same(scenario):
    """Run a scenario on both sides and compare; returns the actions."""
    jobs = workload(scenario)
    end_s = jobs[-1].arrival_s + 6.0317
    simulated = simulate(scenario, jobs, end_s)
    real = run_daemons(scenario, jobs, end_s)
    for node in COSTS:
        compare(node, simulated[node], real[node])
    return simulated


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_the_daemons_driver_and_the_simulator_decide_alike(scenario, monkeypatch):
    monkeypatch.setattr(trio._core._run, "_r", FirstInFirstOut())
    assert not set(scenario.shows) - shown(check_same(scenario))


@pytest.mark.parametrize("shuffle", [1, 2])
@pytest.mark.parametrize("name", ["sharing", "overload", "careless", "cold", "cancels", "death"])
def test_nothing_else_hangs_on_the_order_in_which_trio_runs_tasks(name, shuffle, monkeypatch):
    """Without what makes one node say several things to one peer at one instant: steals, batches, drains."""
    monkeypatch.setattr(trio._core._run, "_r", random.Random(shuffle))
    [scenario] = [each for each in SCENARIOS if each.name == name]
    check_same(msgspec.structs.replace(scenario, jobs=400, steals=False))
