"""Checks of nodes: real cores, connections and machines, against theory.

A node under a patient configuration (nothing is shed, nothing expires, no batches, no stealing) and a network without
delay is a queue; a fleet under a policy is a network of queues. These checks show that what the daemon's core decides
and the simulator carries out adds up to the queues that theory speaks of, and that a run is a function of its seed.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Final

import msgspec

from scheduler.actions import Action
from scheduler.config import AdvertConfig, CoreConfig, PlacementConfig, QueueConfig, StealConfig
from scheduler.policy import Policy
from simulator import oracle, theory
from simulator.checks_kernel import MIXED_HZ, SLOW, drift_hz, judge_drift, limit_name
from simulator.config import NetworkConfig
from simulator.distributions import Constant, Exponential, Gamma, ServiceTime
from simulator.judging import Case, Check, Effort, judge, judge_exact
from simulator.links import Link
from simulator.specs import JobSpec, NodeSpec, profile
from simulator.stations import Queues, Rule
from simulator.statistics import estimate
from simulator.workload import Camera, Poisson
from simulator.world import World

_AT_ONCE: Final = Link(delay_s=0.0)
_CONNECTED: Final = NetworkConfig(connect_round_trips=0)
_JOB: Final = JobSpec(models=("m",), input_bytes=0, budget_s=1e9)
_BOOT_S: Final = 5.0
"""Time until all nodes know all others."""


def patient(*, slots: int = 1, period_s: float = 1e6) -> CoreConfig:
    """Return the configuration of a node that takes every job and never gives one up, as theory does.

    Gossip is heard once by all and then seldom: none of the rules checked here looks at it.
    """
    return CoreConfig(
        placement=PlacementConfig(policy="local_only", default_deadline_s=1e9, shedding=False, expire=False),
        queue=QueueConfig(bound_s=math.inf, jobs=10_000_000, batch_jobs=1, slots=slots),
        advert=AdvertConfig(period_s=period_s, heard_hz=0.5),
        steal=StealConfig(enabled=False),
        explain=False,
    )


def _seeds(name: str, effort: Effort) -> Iterator[str]:
    return (f"{name}/node/{number}" for number in range(effort.replications))


def _node(name: str, service: ServiceTime, mean_s: float) -> NodeSpec:
    return NodeSpec(name=name, models={"m": profile("m", service, mean_s=mean_s)})


def _world(
    specs: list[NodeSpec],
    seed: str,
    config: CoreConfig,
    *,
    warm_s: float = 0.0,
    policy: Callable[[World], Policy | None] | None = None,
) -> World:
    """Make a world whose messages arrive at once."""
    return World(specs, seed=seed, config=config, warm_s=warm_s, policy=policy, link=_AT_ONCE, network=_CONNECTED)


def _sojourn_s(seed: str, service: ServiceTime, *, load: float, jobs: float, slots: int = 1) -> float:
    """Simulate one node of mean service time 1 s and return the mean sojourn time of its jobs."""
    warm_s = 20.0 / (1.0 - load) ** 2
    end_s = warm_s + jobs / (slots * load)
    world = World(
        [_node("a", service, 1.0)],
        seed=seed,
        config=patient(slots=slots),
        warm_s=warm_s,
        link=_AT_ONCE,
        network=_CONNECTED,
    )
    world.start()
    world.feed("a", Poisson(rate_hz=slots * load), _JOB, start_s=0.0, end_s=end_s)
    world.run(end_s + 1e5)
    summary = world.metrics.summary()
    assert summary.unfinished == 0, f"{summary.unfinished} jobs of {seed} have no outcome"
    return summary.mean_s


def check_mg1(name: str, service: ServiceTime, cv2: float, load: float, effort: Effort) -> list[Check]:
    """Check one node with one slot."""
    jobs = effort.length * 12_000
    values = [_sojourn_s(seed, service, load=load, jobs=jobs) for seed in _seeds(name, effort)]
    expected = 1.0 + theory.mg1_waiting_s(load=load, cv2=cv2)
    label = f"node {name} load {load} sojourn"
    return [judge(label, "node", expected=expected, values=values, about="Pollaczek-Khinchine; one node, real core")]


def check_mmc(slots: int, load: float, effort: Effort) -> list[Check]:
    """Check one node with several slots."""
    name, jobs = f"M/M/{slots}", effort.length * 12_000
    values = [_sojourn_s(seed, Exponential(1.0), load=load, jobs=jobs, slots=slots) for seed in _seeds(name, effort)]
    expected = 1.0 + theory.mmc_waiting_s(servers=slots, load=load)
    label = f"node {name} load {load} sojourn"
    return [judge(label, "node", expected=expected, values=values, about="Erlang C; one node with slots, real core")]


def check_cameras(effort: Effort) -> list[Check]:
    """Check aligned cameras: nothing is random, so the mean is exact."""
    cameras, service_s = 5, 0.01
    world = World(
        [_node("a", Constant(service_s), service_s)],
        seed="cameras",
        config=patient(),
        link=_AT_ONCE,
        network=_CONNECTED,
    )
    world.start()
    for _ in range(cameras):
        world.feed("a", Camera(rate_hz=4.0, is_aligned=True), _JOB, start_s=1.0, end_s=1.0 + 25.0 * effort.replications)
    world.run(1e4)
    expected = service_s + theory.aligned_waiting_s(cameras=cameras, service_s=service_s)
    got = world.metrics.summary().mean_s
    return [
        judge_exact(
            f"node D/D/1 {cameras} aligned cameras sojourn",
            "node",
            expected=expected,
            got=got,
            within=1e-9,
            about="S + (n - 1) S / 2",
        )
    ]


# ---------------------------------------------------------------- fleets


def _nodes(rates_hz: Sequence[float], law: type[Exponential | Constant] = Exponential) -> list[NodeSpec]:
    """Make nodes n00, n01, ... of given service rates."""
    return [_node(f"n{i:02d}", law(1.0 / rate_hz), 1.0 / rate_hz) for i, rate_hz in enumerate(rates_hz)]


def _fleet(
    specs: list[NodeSpec], seed: str, policy: str, *, arrival_hz: float, end_s: float, warm_s: float = 0.0
) -> World:
    """Make a fleet under a policy, fed alike at all nodes."""
    config = oracle.tune(patient(period_s=2.0), nodes=len(specs))
    make = partial(oracle.make, policy) if oracle.is_known(policy) else None
    if make is None:
        placement = msgspec.structs.replace(config.placement, policy=policy)
        config = msgspec.structs.replace(config, placement=placement)
    world = World(
        specs, seed=seed, config=config, policy=make, warm_s=_BOOT_S + warm_s, link=_AT_ONCE, network=_CONNECTED
    )
    world.start()
    for spec in specs:
        world.feed(spec.name, Poisson(rate_hz=arrival_hz / len(specs)), _JOB, start_s=_BOOT_S, end_s=end_s)
    return world


def check_limit(choices: int, factor: float, effort: Effort) -> list[Check]:
    """Check that a fleet under a rule blind to speed diverges just above its limit and not just below."""
    name = f"node {limit_name(choices, factor)}"
    arrival_hz = factor * theory.shortest_of_limit(MIXED_HZ, choices=choices) * math.fsum(MIXED_HZ)
    policy = "random" if choices == 1 else f"perfect_jsq(d={choices})"
    values = []
    for seed in _seeds(name, effort):
        end_s = 250.0
        world = _fleet(_nodes(MIXED_HZ, Constant), seed, policy, arrival_hz=arrival_hz, end_s=end_s)
        counts = []
        slow = [world.nodes[f"n{i:02d}"] for i in range(SLOW)]
        while world.engine.now_s < end_s:
            world.run(world.engine.now_s + 4.0)
            counts.append((world.engine.now_s, float(sum(len(node.jobs) - len(node.errands) for node in slow))))
        values.append(drift_hz(counts[len(counts) // 4 :]))
    return [judge_drift(name, "node", choices=choices, factor=factor, values=values)]


def check_random_below(effort: Effort) -> list[Check]:
    """Check the mixed fleet under uniform random placement below its limit: each node is M/M/1, and Little's law."""
    factor, name = 0.8, "node uniform random at 0.8 of its limit"
    arrival_hz = factor * theory.random_limit(MIXED_HZ) * math.fsum(MIXED_HZ)
    sojourns, littles = [], []
    for seed in _seeds(name, effort):
        end_s = 60.0 + 300.0 * effort.length
        world = _fleet(_nodes(MIXED_HZ), seed, "random", arrival_hz=arrival_hz, end_s=end_s, warm_s=40.0)
        world.run(_BOOT_S + 40.0)
        present = []
        while world.engine.now_s < end_s:
            world.run(world.engine.now_s + 0.25)
            present.append(len(world.open))
        world.run(end_s + 1e4)
        summary = world.metrics.summary()
        rate_hz = summary.answered / (end_s - _BOOT_S - 40.0)
        sojourns.append(summary.mean_s)
        littles.append(sum(present) / len(present) / (rate_hz * summary.mean_s))
    share_hz = arrival_hz / len(MIXED_HZ)
    expected = math.fsum([theory.mm1_sojourn_s(load=share_hz / each, service_s=1.0 / each) for each in MIXED_HZ])
    return [
        judge(
            f"{name}, sojourn",
            "node",
            expected=expected / len(MIXED_HZ),
            values=sojourns,
            about="mean of 20 queues M/M/1; 20 nodes, real cores",
        ),
        judge(
            f"{name}, Little",
            "node",
            expected=1.0,
            values=littles,
            about="open jobs, looked at four times a second, / (rate x sojourn)",
        ),
    ]


def check_same_queues(choices: int, period_s: float, effort: Effort) -> list[Check]:
    """Check that nodes under a rule are the plain queues under it: same size of fleet, other code."""
    count, load = 20, 0.7
    drawn = choices or oracle.ALL
    policy = f"bulletin(d={drawn}, period={period_s})" if period_s else f"perfect_jsq(d={drawn})"
    name = f"node {policy} load {load} n={count} sojourn"
    nodes, plain = [], []
    for seed in _seeds(name, effort):
        end_s = _BOOT_S + 60.0 + 600.0 * effort.length
        world = _fleet(_nodes([1.0] * count), seed, policy, arrival_hz=load * count, end_s=end_s, warm_s=60.0)
        world.run(end_s + 1e4)
        nodes.append(world.metrics.summary().mean_s)
        rule = Rule(choices=choices, period_s=period_s)
        queues = Queues(seed, rates_hz=[1.0] * count, arrival_hz=load * count, rule=rule, warm_s=60.0)
        queues.engine.run(60.0 + 6000.0 * effort.length)
        plain.append(queues.mean_sojourn_s())
    expected = estimate(plain)
    about = "plain queues of the same number under the same rule, ten times as long"
    return [judge(name, "node", expected=expected.mean, values=nodes, about=about, bias=expected.half / expected.mean)]


# ---------------------------------------------------------------- a run is a function of its seed


def trace_hash(seed: str, policy: str = "capd") -> str:
    """Run a small fleet with jitter, a late loss of a node and offers, and hash every action of every core.

    Returns
    -------
    str
        Hex SHA-256 over node, time and all fields of each action, in their order.
    """
    trace = hashlib.sha256()

    def observe(name: str, now_s: float, action: Action) -> None:
        trace.update(f"{name} {now_s!r} {action!r}\n".encode())

    specs = [_node(name, Gamma(mean_s, 0.3), mean_s) for name, mean_s in (("a", 0.2), ("b", 0.05), ("c", 0.02))]
    link = Link(delay_s=0.002, jitter_s=0.001, bytes_per_s=12.5e6)
    config = CoreConfig(placement=PlacementConfig(policy=policy))
    world = World(specs, seed=seed, link=link, config=config, observer=observe)
    world.start()
    for name in ("a", "b"):
        for size in (2_000, 100_000):
            spec = JobSpec(models=("m",), input_bytes=size, budget_s=1.0)
            world.feed(name, Poisson(rate_hz=10.0), spec, start_s=3.0, end_s=20.0)
    world.at(12.0, world.kill, "b")
    world.run(40.0)
    return trace.hexdigest()


def check_determinism(effort: Effort) -> list[Check]:
    """Check that one seed gives one run within this process; other processes are the caller's to start."""
    first, again, other = trace_hash("7"), trace_hash("7"), trace_hash("8")
    return [
        judge_exact("node same seed, same trace", "node", expected=1.0, got=float(first == again), within=0.0),
        judge_exact("node other seed, other trace", "node", expected=1.0, got=float(first != other), within=0.0),
    ]


def check_common_numbers(effort: Effort) -> list[Check]:
    """Check that neither the policy nor one more node shifts the arrivals."""
    seen = []
    for policy, count in (("capd", 3), ("local_only", 3), ("capd", 4)):
        specs = [_node(f"n{i}", Gamma(0.05, 0.3), 0.05) for i in range(count)]
        world = World(specs, seed="7", config=CoreConfig(placement=PlacementConfig(policy=policy)))
        world.start()
        for name in ("n0", "n1", "n2"):
            world.feed(name, Poisson(rate_hz=20.0), _JOB, start_s=1.0, end_s=10.0)
        arrivals: dict[bytes, float] = {}
        while world.engine.now_s < 10.0:
            world.run(world.engine.now_s + 0.01)
            arrivals.update((client.job.key, client.job.arrival_s) for client in world.open)
        seen.append(arrivals)
    shared = set(seen[0]) & set(seen[1]) & set(seen[2])
    shifted = sum(1 for key in shared if not seen[0][key] == seen[1][key] == seen[2][key])
    assert len(shared) > 200, f"only {len(shared)} jobs were seen in all three runs"
    return [
        judge_exact(
            "node arrivals are the same under another policy and with one more node",
            "node",
            expected=0.0,
            got=float(shifted),
            within=0.0,
            about=f"jobs shifted, of {len(shared)} seen",
        )
    ]


def cases() -> list[Case]:
    """Return the checks of this module."""
    laws: tuple[tuple[str, ServiceTime, float], ...] = (
        ("M/D/1", Constant(1.0), 0.0),
        ("M/E4/1", Gamma(1.0, 0.5), 0.25),
        ("M/M/1", Exponential(1.0), 1.0),
        ("M/G/1 cv2 4", Gamma(1.0, 2.0), 4.0),
    )
    found = [
        Case(
            name=f"node {name} {load}",
            run=partial(check_mg1, name, service, cv2, load),
            is_fast=cv2 == 1 and load < 0.7,
        )
        for name, service, cv2 in laws
        for load in (0.5, 0.8)
    ]
    found.append(Case(name="node M/M/4", run=partial(check_mmc, 4, 0.8)))
    found.append(Case(name="node D/D/1", run=check_cameras, is_fast=True))
    found.append(Case(name="node random below", run=check_random_below))
    found += [
        Case(name=f"node limit {choices} {factor}", run=partial(check_limit, choices, factor))
        for choices in (1, 2)
        for factor in (0.9, 1.1)
    ]
    found += [
        Case(name=f"node same queues {choices} {period_s}", run=partial(check_same_queues, choices, period_s))
        for choices, period_s in ((2, 0.0), (3, 0.0), (2, 5.0), (0, 2.0))
    ]
    found.append(Case(name="node determinism", run=check_determinism, is_fast=True))
    found.append(Case(name="node common numbers", run=check_common_numbers, is_fast=True))
    return found
