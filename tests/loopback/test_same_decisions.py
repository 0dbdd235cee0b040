"""The daemon's driver and the simulator take the same decisions, action by action, from one seed.

On one side stand the daemon's own parts (driver, job table, hands, sending and serving, the emulated executor and the
network in memory) on trio's virtual clock, on the other the simulator. The control plane is left out on both: a state
record reaches every other node after the link's delay.

Two things are held fixed. Arrivals, sizes and links are such that events of different origin do not fall on one
instant. And trio, which shuffles tasks that wake at one instant, is made to run them first in, first out: a node that
becomes idle sends a result and asks for work at the same instant, over two connections, and either may come first.
"""

import math
import random
from collections import Counter

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
from scheduler.config import CoreConfig, StealConfig
from scheduler.core import Core
from scheduler.events import AdvertReceived, JobArrived, ModelChanged
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


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    seed: int
    jobs: int
    load: float = 1.0
    cv: float = 0.0
    config: CoreConfig = CoreConfig()


def workload(scenario):
    """Poisson requests at two nodes with payloads of all sizes, and bursts of a camera in between."""
    streams = Engine(scenario.seed)
    slow = Request(entry="slow", client="slow", models=(LARGE, SMALL), budget_s=2.03, input_bytes=(2_000, 90_000))
    mid = Request(entry="mid", client="mid", models=(LARGE,), budget_s=4.1, input_bytes=(100_000, 400_000))
    fast = Request(entry="fast", client="fast", models=(LARGE,), budget_s=3.07, input_bytes=(20_000, 20_000))
    sources = [
        poisson(slow, rate_hz=22.0 * scenario.load, rng=streams.stream("workload", "slow")),
        poisson(mid, rate_hz=14.0 * scenario.load, rng=streams.stream("workload", "mid")),
        camera(fast, rate_hz=11.0 * scenario.load, rng=streams.stream("workload", "fast"), jitter_s=0.013),
    ]
    found = []
    for job in merge(sources, until_s=math.inf):
        found.append(job)
        if len(found) == scenario.jobs:
            return found
    return found


# ------------------------------------------------------------ the simulator


def simulate(scenario, jobs, end_s):
    """Return the actions of each core as the simulator has them."""
    seen = {name: [] for name in COSTS}
    devices = [
        Device(
            name=name, models={model: ModelCost(mean_s=mean_s, cv=scenario.cv) for model, mean_s in costs.items()}
        )
        for name, costs in COSTS.items()
    ]
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
    world.run(end_s)
    return seen, [each.core.statistics() for each in world.nodes.values()]


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

    def __init__(self, name, scenario, planes, nursery, seen, fleet):
        self.name = name
        self.planes = planes
        self._fleet = fleet
        self._nursery = nursery
        costs = COSTS[name]
        rng = random.Random(f"{scenario.seed}/core/{name}")
        self.core = Core(scenario.config, node_id=name, epoch=1, rng=rng, now_s=0.0)
        self.driver = Driver(self.core)
        self.jobs = JobTable()
        self.capabilities = capabilities_of(
            {model: ModelCost(mean_s=mean_s, cv=scenario.cv) for model, mean_s in costs.items()}
        )
        self.digest = table_digest(self.capabilities)
        models = {model[:1]: EmulatedModel(mean_s=mean_s, cv=scenario.cv) for model, mean_s in costs.items()}
        self.executor = PatientExecutor(
            DeviceProfile(models=models), random.Random(f"{scenario.seed}/service/{name}")
        )
        outbound = Outbound(
            node=name,
            data=planes.data,
            jobs=self.jobs,
            driver=self.driver,
            nursery=nursery,
            own_state=lambda: self.core.state_record(trio.current_time()),
            on_unreachable=pytest.fail,
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
            residents=None,  # all models are loaded, and stay
            mouth=self,
            report=Report(),
            nursery=nursery,
            on_drained=pytest.fail,
        )
        self.hands = Recording(hands, seen)

    def advertise(self, action):
        record = state_to_wire(action.state)
        for other in self._fleet.values():
            if other is not self:
                self._nursery.start_soon(self._tell, other, record)

    async def _tell(self, other, record):
        link = LINKS.get((self.name, other.name)) or LINKS[other.name, self.name]
        await trio.sleep(link["delay_s"])
        other.driver.post(AdvertReceived(state=state_from_wire(record)))

    def pull_table(self, action):
        self._mouth.pull_table(action)

    async def handle(self, exchange, message, payload):
        if not await self.inbound.handle(exchange, message, payload):
            assert isinstance(message, TableRequest)
            table = CapabilityTable(node_id=self.name, digest=self.digest, entries=self.capabilities)
            await exchange.send(table_to_wire(table))
            exchange.finish()

    def take(self, job, payload):
        handle = self.jobs.mint()
        self.jobs.add(JobEntry(handle=handle, job=job, body=BODY, payload=(payload,), responder=Client()))
        self.driver.post(JobArrived(handle=handle, job=job, origin=None))

    async def start(self):
        for model in COSTS[self.name]:
            manifest = msgspec.structs.replace(MANIFEST, name=model[:1])
            await self.executor.load(model, manifest, None)
        return await self._nursery.start(self.planes.data.serve, self.handle)

    def drive(self):
        self.driver.post(
            ModelChanged(
                table_digest=self.digest, capabilities=self.capabilities, loaded=frozenset(COSTS[self.name])
            )
        )
        self._nursery.start_soon(self.driver.run, self.hands)


def run_daemons(scenario, jobs, end_s):
    """Return the actions of each core as the daemon's driver has them."""
    seen = {name: [] for name in COSTS}
    fleet = {}

    async def main():
        network = MemoryNetwork(random.Random(scenario.seed))
        for (a, b), link in LINKS.items():
            network.set_link(a, b, Link(**link))
        async with trio.open_nursery() as nursery:
            await nursery.start(network.serve)
            for name in COSTS:
                fleet[name] = Daemon(name, scenario, network.join(name), nursery, seen[name], fleet)
            addresses = {name: await daemon.start() for name, daemon in fleet.items()}
            for daemon in fleet.values():
                for name, (host, port) in addresses.items():
                    daemon.planes.data.set_address(name, [DataAddress(host=host, port=port)])
            for daemon in fleet.values():
                daemon.drive()
            payload = bytes(max(job.input_bytes for job in jobs))
            for job in jobs:
                await trio.sleep_until(job.arrival_s)
                fleet[job.entry].take(job, memoryview(payload)[: job.input_bytes])
            await trio.sleep_until(end_s)
            for daemon in fleet.values():
                daemon.hands.is_over = True
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return seen, [each.core.statistics() for each in fleet.values()]


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
        return [each for i, pair in enumerate(zip(here, there)) for each in differences(*pair, f"{path}[{i}]")]
    return [] if here == there else [f"{path}: {here!r} / {there!r}"]


def described(entry):
    now_s, action = entry
    return {"now_s": now_s, "kind": type(action).__name__, **msgspec.structs.asdict(action), "reason": ""}


def plain(value):
    return msgspec.to_builtins(value, builtin_types=(bytes,))


def compare(node, simulated, real):
    for number, (here, there) in enumerate(zip(simulated, real)):
        found = differences(plain(described(here)), plain(described(there)))
        assert not found, f"{node}, action {number} (simulated / real): {found}\n{here}\n{there}"
    assert len(simulated) == len(real), node


@pytest.fixture(autouse=True)
def first_in_first_out(monkeypatch):
    monkeypatch.setattr(trio._core._run, "_r", FirstInFirstOut())


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(seed=1, jobs=1000),
        Scenario(seed=2, jobs=1000, cv=0.4, load=1.2),
    ],
    ids=lambda scenario: f"seed {scenario.seed}",
)
def test_the_daemons_driver_and_the_simulator_decide_alike(scenario):
    jobs = workload(scenario)
    end_s = jobs[-1].arrival_s + 6.0317
    simulated, statistics = simulate(scenario, jobs, end_s)
    real, _ = run_daemons(scenario, jobs, end_s)
    for node in COSTS:
        compare(node, simulated[node], real[node])
    kinds = Counter(type(action).__name__ for actions in simulated.values() for _, action in actions)
    print(kinds, statistics[0])
