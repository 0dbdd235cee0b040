"""The daemon's driver and the simulator's node take the same decisions from one seed.

The daemon's side is its real parts (core, driver, hands, conversations, planes in memory, emulated executor) on a
virtual clock; the other side is the simulator. Both get one scenario: unequal nodes, jobs with and without deadlines
that can be met, offers, steals, models to be loaded, clients that lose interest, a node that falls silent and one that
is killed. Every action of every core is compared, with its time: they are the same to the last bit.
"""

import functools
import math
import random
from collections import Counter

import msgspec
import pytest
import trio
import trio.testing

from gridnode.driver import Driver
from gridnode.hands import DaemonHands
from gridnode.inbound import Inbound
from gridnode.jobtable import JobEntry, JobTable
from gridnode.laneruns import LaneRuns
from gridnode.lanes import LaneDesk
from gridnode.mouth import GridMouth
from gridnode.outbound import Outbound
from gridnode.report import Report
from gridnode.translate import state_from_wire, state_to_wire, table_digest, table_to_wire
from gridnode.turns import Turns
from models import emulated
from models.bodies import RequestBody, encode_request
from models.emulated import DeviceProfile, EmulatedExecutor, EmulatedModel
from models.manifest import Manifest, TensorSpec, describe_shard
from models.tensors import TensorHeader
from scheduler.actions import Execute, GrantLease, Nack, NackOffer, Offer, Reject, Send
from scheduler.config import CoreConfig, PlacementConfig, QueueConfig
from scheduler.core import Core
from scheduler.events import (
    AdvertReceived,
    CancelRequested,
    DrainRequested,
    JobArrived,
    ModelChanged,
    PeerLost,
    PeerSuspected,
)
from scheduler.types import Capability, CapabilityTable, Job
from simulator.config import NetworkConfig
from simulator.distributions import Gamma
from simulator.engine import stream
from simulator.links import Link as SimLink
from simulator.specs import JobSpec, ModelProfile, NodeSpec
from simulator.world import World
from transport.base import DataAddress, Dial
from transport.memory import Link, MemoryNetwork
from transport.wire import Ping, Pong, TableRequest, decode_state

START_S = 1024.0
"""Both clocks begin here: from here to twice this the jumps of trio's clock do not round."""
BIG, SMALL = "a" * 64, "b" * 64
MEAN_S = {BIG: 0.060, SMALL: 0.015}
CV = 0.2
LOAD_S = 0.3
MEMORY = 100
NODES = {"n1": 1.0, "n2": 1.5, "n3": 4.0, "n4": 8.0, "n5": 0.7}
"""Name to speed."""
SLOTS = {"n4": 2}
NARROW = "n5"
"""A node with memory for one model."""
DELAY_S, JITTER_S, BYTES_PER_S = 0.001, 0.0007, 12.5e6


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """What happens."""

    seed: str
    policy: str = "capd"
    jobs: int = 2_000
    load: float = 1.0
    """Factor on the rate of arrivals; at 1 bursts are above the capacity."""
    shows: tuple[str, ...] = ()
    """What must have happened for the comparison to mean anything."""


class Arrival(msgspec.Struct, frozen=True):
    """A job of the scenario."""

    at_s: float
    entry: str
    spec: JobSpec
    frame: int
    cancel_after_s: float | None


def capability(model, node):
    """Return what a node tells of a model."""
    mean_s = MEAN_S[model] / NODES[node]
    return Capability(model=model, mean_s=mean_s, p95_s=1.4 * mean_s, memory_bytes=MEMORY, load_s=LOAD_S, max_batch=2)


def core_config(node, policy):
    """Return the configuration of a node's core: the daemon's, but for the policy and what the machine bounds."""
    memory = MEMORY if node == NARROW else 10 * MEMORY
    return CoreConfig(
        placement=PlacementConfig(policy=policy),
        queue=QueueConfig(slots=SLOTS.get(node, 1), model_memory_bytes=memory, bound_s=1.0),
    )


def loaded_first(node):
    return frozenset([BIG]) if node == NARROW else frozenset([BIG, SMALL])


@functools.cache
def request_body(size):
    header = TensorHeader(name="x", dtype="uint8", shape=(size,))
    return encode_request(RequestBody(kind="tensors", tensors=(header,)))


def make_arrivals(scenario):
    """Draw the jobs of a scenario: bursts above the capacity and quiet times."""
    rng = random.Random(f"{scenario.seed}/scenario")
    at_s = START_S + 1.0
    found = []
    for number in range(scenario.jobs):
        is_burst = (number // 200) % 3 == 2
        at_s += rng.expovariate(scenario.load * (900.0 if is_burst else 200.0))
        size = rng.choice([200, 2_000, 20_000, 50_000, 70_000, 100_000])
        is_frame = rng.random() < 0.2
        spec = JobSpec(
            models=rng.choice([(BIG,), (BIG, SMALL), (SMALL,)]),
            input_bytes=size,
            output_bytes=rng.choice([1_000, 4_096]),
            body_bytes=len(request_body(size)),
            budget_s=rng.choice([0.08, 0.2, 0.5, 2.0, math.inf]),
            priority=rng.choice([0, 1, 1, 1, 2]),
            stream=rng.choice(["left", "right"]) if is_frame else "",
            newest_wins=is_frame,
        )
        cancel_after_s = rng.uniform(0.0, 0.2) if rng.random() < 0.1 else None
        entry = rng.choices(list(NODES), weights=[4, 2, 1, 1, 3])[0]
        found.append(Arrival(at_s, entry, spec, number if is_frame else 0, cancel_after_s))
    return found


def make_script(scenario):
    """Return (time, kind, argument) of all that happens from outside, in order."""
    arrivals = make_arrivals(scenario)
    script = []
    for number, arrival in enumerate(arrivals):
        script.append((arrival.at_s, "submit", (number, arrival)))
        if arrival.cancel_after_s is not None:
            script.append((arrival.at_s + arrival.cancel_after_s, "cancel", number))
    length_s = arrivals[-1].at_s - START_S
    pause_s, kill_s = START_S + 0.3 * length_s, START_S + 0.6 * length_s
    script += [(pause_s, "pause", "n2"), (pause_s + 1.7, "resume", "n2")]
    script += [(kill_s, "kill", "n3"), (kill_s + 0.4, "suspect", "n3"), (kill_s + 0.9, "lose", "n3")]
    script.append((START_S + 0.9 * length_s, "drain", "n5"))
    script.append((START_S + length_s + 12.0, "end", None))
    return sorted(script, key=lambda each: each[0])


def key_of(number):
    return number.to_bytes(24, "big")


class Recorder:
    """All actions, per node."""

    def __init__(self):
        self.actions = {name: [] for name in NODES}
        self.dead = set()

    def __call__(self, node, now_s, action):
        if node not in self.dead:
            self.actions[node].append((now_s, action))


# ---------------------------------------------------------------- the simulator


def run_simulator(scenario, script, network_seed):
    recorder = Recorder()
    specs = [
        NodeSpec(
            name=name,
            models={
                model: ModelProfile(capability=capability(model, name), service=Gamma(MEAN_S[model] / speed, CV))
                for model in MEAN_S
            },
            loaded=loaded_first(name),
            config=core_config(name, scenario.policy),
        )
        for name, speed in NODES.items()
    ]
    world = World(
        specs,
        seed=scenario.seed,
        link=SimLink(delay_s=DELAY_S, jitter_s=JITTER_S, bytes_per_s=BYTES_PER_S),
        network=NetworkConfig(forwards_gossip=True),
        network_seed=network_seed,
        start_s=START_S,
        observer=recorder,
    )
    clients = {}

    def submit(number, arrival):
        clients[number] = world.submit(arrival.entry, arrival.spec, key=key_of(number), frame=arrival.frame)

    def kill(name):
        recorder.dead.add(name)
        world.kill(name)

    steps = {
        "submit": lambda both: submit(*both),
        "cancel": lambda number: world.cancel(clients[number]),
        "pause": world.network.pause,
        "resume": world.network.resume,
        "kill": kill,
        "suspect": lambda name: world.tell_all(PeerSuspected(peer=name)),
        "lose": lambda name: world.tell_all(PeerLost(peer=name)),
        "drain": lambda name: world.nodes[name].post(DrainRequested()),
        "end": lambda _: None,
    }
    for node in world.nodes.values():
        node.result_bytes = len(emulated._RESULT)
    world.start({name: [other for other in NODES if other != name] for name in NODES})
    for at_s, kind, argument in script:
        world.at(at_s, steps[kind], argument)
    world.run(script[-1][0])
    return recorder.actions, world


# ---------------------------------------------------------------- the daemon


class Waiter:
    """An own client's side of one job."""

    def __init__(self):
        self.is_open = True
        self.handle = 0

    def accepted(self, state):
        pass

    def progress(self, state):
        pass

    def answer(self, answer, state):
        self.is_open = False

    def fail(self, failure, state, *, estimate_s):
        self.is_open = False

    def give_back(self, reason, state, *, estimate_s):
        raise AssertionError("given back to an own client")


class RecordingHands:
    def __init__(self, node, hands, recorder):
        self._node, self._hands, self._recorder = node, hands, recorder

    def carry_out(self, action, attachment):
        self._recorder(self._node, trio.current_time(), action)
        self._hands.carry_out(action, attachment)


def manifest(model):
    return Manifest(
        name=model,
        inputs=(TensorSpec(name="x", dtype="uint8", shape=(-1,)),),
        outputs=(TensorSpec(name="y", dtype="uint8", shape=(-1,)),),
        peak_memory_bytes=MEMORY,
        graph="graph",
        shards=(describe_shard("graph", [b"x"]),),
    )


class House:
    """The models of a node: what gridnode.modelhouse does, without files."""

    def __init__(self, node, executor, driver, nursery):
        self._node, self._executor, self._driver, self._nursery = node, executor, driver, nursery
        self.capabilities = tuple(capability(model, node) for model in sorted(MEAN_S))
        self.digest = table_digest(self.capabilities)

    def tell(self):
        loaded = self._executor.loaded()
        event = ModelChanged(table_digest=self.digest, capabilities=self.capabilities, loaded=loaded)
        self._driver.post(event)

    def load(self, model):
        self._nursery.start_soon(self._load, model)

    async def _load(self, model):
        await self._executor.load(model, manifest(model), None)
        self.tell()

    def evict(self, model):
        self._nursery.start_soon(self._evict, model)

    async def _evict(self, model):
        await self._executor.unload(model)
        self.tell()


class DaemonNode:
    """The daemon's parts that decide and speak, put together as gridnode.node does."""

    def __init__(self, name, planes, seed, recorder):
        self.name, self.planes, self.recorder = name, planes, recorder
        self.jobs = JobTable()
        self.scope = trio.CancelScope()
        cost = {
            model: EmulatedModel(mean_s=mean_s / NODES[name], cv=CV, load_s=LOAD_S) for model, mean_s in MEAN_S.items()
        }
        profile = DeviceProfile(models=cost, slots=SLOTS.get(name, 1))
        self.executor = EmulatedExecutor(profile, stream(seed, "service", name))
        self.address = None
        self.port = None

    async def serve(self, *, task_status):
        """Open the planes and load the first models: before the scenario begins."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                self.nursery = nursery
                await nursery.start(self.executor.serve)
                for model in sorted(loaded_first(self.name)):
                    await self.executor.load(model, manifest(model), None)
                _, self.port = await nursery.start(self.planes.control.serve)
                host, port = await nursery.start(self.planes.data.serve, self._handle)
                self.address = DataAddress(host=host, port=port)
                task_status.started()

    def begin(self, scenario, turns):
        """Make the core and drive it."""
        name, nursery = self.name, self.nursery
        rng = stream(scenario.seed, "core", name)
        core = self.core = Core(
            core_config(name, scenario.policy), node_id=name, epoch=1, rng=rng, now_s=trio.current_time()
        )
        driver = self.driver = Driver(core, turns=turns)
        outbound = Outbound(
            node=name,
            data=self.planes.data,
            jobs=self.jobs,
            driver=driver,
            nursery=nursery,
            own_state=lambda: core.state_record(trio.current_time()),
            on_unreachable=lambda peer: None,
            on_misbehaviour=lambda peer, what: pytest.fail(f"{peer}: {what}"),
        )
        self.house = House(name, self.executor, driver, nursery)
        report = Report()
        lanes = LaneDesk(
            node=name,
            core=core,
            driver=driver,
            executor=self.executor,
            report=report,
            recorder=None,
            default_deadline_s=10.0,
            slots=1,
        )
        lane_runs = LaneRuns(
            core=core,
            driver=driver,
            executor=self.executor,
            desk=lanes,
            report=report,
            recorder=None,
            nursery=nursery,
        )
        self.inbound = Inbound(
            node=name, jobs=self.jobs, driver=driver, outbound=outbound, lane_runs=lane_runs, nursery=nursery
        )
        hands = DaemonHands(
            node=name,
            jobs=self.jobs,
            driver=driver,
            executor=self.executor,
            outbound=outbound,
            inbound=self.inbound,
            residents=self.house,
            mouth=GridMouth(control=self.planes.control, data=self.planes.data, driver=driver, nursery=nursery),
            report=report,
            lanes=lanes,
            nursery=nursery,
            on_drained=lambda: None,
        )
        nursery.start_soon(driver.run, RecordingHands(name, hands, self.recorder))
        nursery.start_soon(self._listen)

    async def _listen(self):
        async for message in self.planes.control.messages():
            self.driver.post(AdvertReceived(state=state_from_wire(decode_state(message.data))))

    async def _handle(self, exchange, message, payload):
        if isinstance(message, TableRequest):
            table = CapabilityTable(node_id=self.name, digest=self.house.digest, entries=self.house.capabilities)
            await exchange.send(table_to_wire(table))
            exchange.finish()
        elif isinstance(message, Ping):
            state = state_to_wire(self.core.state_record(trio.current_time()))
            await exchange.send(Pong(nonce=message.nonce, reached=True, state=state))
            exchange.finish()
        else:
            assert await self.inbound.handle(exchange, message, payload)

    def submit(self, number, arrival):
        now_s = trio.current_time()
        spec, waiter = arrival.spec, Waiter()
        job = Job(
            key=key_of(number),
            entry=self.name,
            priority=spec.priority,
            stream=spec.stream,
            frame=arrival.frame,
            newest_wins=spec.newest_wins,
            input_bytes=spec.input_bytes,
            output_bytes=spec.output_bytes,
            arrival_s=now_s,
            deadline_s=now_s + spec.budget_s,
            models=spec.models,
        )
        waiter.handle = self.jobs.mint()
        body = request_body(spec.input_bytes)
        entry = JobEntry(handle=waiter.handle, job=job, body=body, payload=(bytes(spec.input_bytes),), responder=waiter)
        self.jobs.add(entry)
        self.driver.post(JobArrived(handle=waiter.handle, job=job, origin=None))
        return waiter


class DaemonGrid:
    """All nodes in one trio run."""

    def __init__(self, scenario, script, network_rng):
        self._scenario, self._script = scenario, script
        self.recorder = Recorder()
        self.turns = Turns()
        self.network = MemoryNetwork(network_rng, Link(delay_s=DELAY_S), turn=self.turns.wait_delivery)
        self.nodes = {}
        self._waiters = {}

    async def run(self):
        async with trio.open_nursery() as nursery:
            await nursery.start(self.turns.serve)
            await nursery.start(self.network.serve)
            for name in NODES:
                node = self.nodes[name] = DaemonNode(name, self.network.join(name), self._scenario.seed, self.recorder)
                await nursery.start(node.serve)
            await self._meet()
            await trio.sleep_until(START_S)
            for node in self.nodes.values():
                node.begin(self._scenario, self.turns)
            await trio.testing.wait_all_tasks_blocked()
            for node in self.nodes.values():
                node.house.tell()
            for at_s, kind, argument in self._script:
                await trio.sleep_until(at_s)
                getattr(self, f"_{kind}")(argument)
            nursery.cancel_scope.cancel()

    async def _meet(self):
        """Connect all with all, then give the links what makes them differ."""
        for name, node in self.nodes.items():
            for other in self.nodes.values():
                if other is not node:
                    node.planes.data.set_address(other.name, (other.address,))
                if other.name > name:
                    await node.planes.control.connect(Dial(node=other.name, host="memory", port=other.port))
                    link = Link(delay_s=DELAY_S, jitter_s=JITTER_S, bytes_per_s=BYTES_PER_S)
                    self.network.set_link(name, other.name, link)

    def _submit(self, both):
        number, arrival = both
        if arrival.entry not in self.recorder.dead:
            self._waiters[number] = self.nodes[arrival.entry].submit(number, arrival), arrival.entry

    def _cancel(self, number):
        waiter, entry = self._waiters.get(number, (None, None))
        if waiter is not None and waiter.is_open and entry not in self.recorder.dead:
            self.nodes[entry].driver.post(CancelRequested(handle=waiter.handle))

    def _pause(self, name):
        self.network.pause(name)

    def _resume(self, name):
        self.network.resume(name)

    def _kill(self, name):
        self.recorder.dead.add(name)
        self.network.kill(name)
        self.nodes[name].scope.cancel()

    def _tell_all(self, event):
        for name, node in self.nodes.items():
            if name not in self.recorder.dead:
                node.driver.post(event)

    def _suspect(self, name):
        self._tell_all(PeerSuspected(peer=name))

    def _lose(self, name):
        self._tell_all(PeerLost(peer=name))

    def _drain(self, name):
        self.nodes[name].driver.post(DrainRequested())

    def _end(self, _):
        pass


def run_daemon(scenario, script, network_rng):
    grid = DaemonGrid(scenario, script, network_rng)
    trio.run(grid.run, clock=trio.testing.MockClock(autojump_threshold=0))
    return grid.recorder.actions


# ---------------------------------------------------------------- the comparison


def run_both(scenario):
    """Return the actions of both sides, per node."""
    script = make_script(scenario)
    network_seed = str(random.Random(f"{scenario.seed}/network").getrandbits(64))
    simulated, world = run_simulator(scenario, script, network_seed)
    driven = run_daemon(scenario, script, random.Random(f"{scenario.seed}/network"))
    for node in world.nodes.values():
        assert node.core.statistics().invariant_violations == 0
        assert not node.is_alive or not (node.jobs or node.errands), f"{node.name} is not at rest"
    return simulated, driven


def compare(simulated, driven):
    """Fail at the first action that differs, in the order of time."""
    first = None
    for name in NODES:
        for place, (ours, theirs) in enumerate(zip(simulated[name], driven[name], strict=False)):
            if ours != theirs:
                if first is None or min(ours[0], theirs[0]) < first[0]:
                    first = (min(ours[0], theirs[0]), name, place)
                break
        else:
            shorter = min(len(simulated[name]), len(driven[name]))
            if len(simulated[name]) != len(driven[name]) and first is None:
                first = (math.inf, name, shorter)
    if first is not None:
        _, name, place = first
        told = [f"{name}, action {place}:"]
        for side, actions in (("simulator", simulated), ("daemon", driven)):
            told += [f"  {side}: {each!r}" for each in actions[name][max(0, place - 3) : place + 3]]
        pytest.fail("\n".join(told))


def shown(actions):
    """Return what happened: kinds of actions, reasons of refusals, and how jobs went."""
    found = Counter()
    for _, action in (each for of_node in actions.values() for each in of_node):
        found[type(action).__name__] += 1
        match action:
            case Execute(handles=handles) if len(handles) > 1:
                found["batch"] += 1
            case GrantLease(grants=grants):
                found["granted"] += len(grants)
            case Send(job=job) | Offer(job=job):
                found["second hop"] += job.hops > 1
                found["second attempt"] += job.attempt > 0
            case Reject() | Nack() | NackOffer():
                found[action.why.value] += 1
    return found


SCENARIOS = [
    Scenario(seed="10", shows=("Offer", "Acknowledge", "granted", "Cancel", "superseded", "lost")),
    Scenario(seed="2", load=2.0, shows=("deadline", "queue_full", "expired", "NackOffer", "Progress")),
    Scenario(seed="3", policy="random", shows=("second hop", "second attempt", "unknown_model", "EvictModel")),
    Scenario(seed="4", policy="local_only", load=0.4, shows=("granted", "LoadModel", "batch")),
    Scenario(seed="8", policy="probe(d=2)", shows=("Probe", "Offer", "superseded", "lost")),
    Scenario(seed="9", policy="prequal(probes=1)", load=0.7, shows=("Probe", "Offer", "deadline")),
    Scenario(seed="54", policy="max_spare", shows=("granted", "expired")),
]


def check(scenario):
    simulated, driven = run_both(scenario)
    compare(simulated, driven)
    found = shown(simulated)
    assert not [each for each in (*scenario.shows, "Drained") if not found[each]], found


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: f"{scenario.policy}-{scenario.seed}")
def test_daemon_and_simulator_take_the_same_decisions(scenario):
    check(scenario)


@pytest.mark.slow
def test_daemon_and_simulator_take_the_same_decisions_over_ten_thousand_jobs():
    check(Scenario(seed="6", jobs=10_000, load=1.2))


def test_daemon_and_simulator_take_the_same_decisions_over_a_few_jobs():
    check(Scenario(seed="7", jobs=300))
