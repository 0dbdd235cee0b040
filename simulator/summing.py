"""A world's numbers as a result. Reads what others have counted; counts nothing itself."""

import math
from collections import Counter
from collections.abc import Sequence

from simulator.metrics import quantile
from simulator.node import SimNode
from simulator.results import Flow, NodeResult, Result
from simulator.sampling import Sampler
from simulator.scenario import NodeGroup, Scenario
from simulator.world import World


def sum_up(
    world: World,
    scenario: Scenario,
    sampler: Sampler,
    *,
    capacity_hz: float,
    load: float,
    events: int,
    trace_hash: str,
) -> Result:
    """Return the result of a run.

    Parameters
    ----------
    world : World
        That was run.
    scenario : Scenario
        What was run.
    sampler : Sampler
        What it saw over time.
    capacity_hz : float
        Jobs per second that the fleet could serve.
    load : float
        Jobs offered over that.
    events : int
        Calls made.
    trace_hash : str
        Of all actions; empty where it was not asked for.
    """
    metrics = world.metrics
    ordered = sorted(metrics.sojourns_s)
    answered = len(ordered)
    counted_s = scenario.duration_s - scenario.warm_up_s
    in_time = answered - metrics.late
    moved = sum([jobs for (entry, executor), jobs in metrics.flows.items() if entry != executor])
    return Result(
        scenario=scenario.name,
        about=scenario.about,
        policy=scenario.policy,
        seed=str(scenario.seed),
        duration_s=scenario.duration_s,
        warm_up_s=scenario.warm_up_s,
        counted_s=counted_s,
        capacity_hz=capacity_hz,
        load=load,
        submitted=metrics.submitted,
        answered=answered,
        refused={reason.value: metrics.refused[reason] for reason in sorted(metrics.refused)},
        lost=_lost(world),
        late=metrics.late,
        unfinished=metrics.submitted - answered - metrics.refused.total(),
        mean_s=math.fsum(ordered) / answered if answered else math.nan,
        p50_s=quantile(ordered, 0.5),
        p95_s=quantile(ordered, 0.95),
        p99_s=quantile(ordered, 0.99),
        max_s=ordered[-1] if ordered else math.nan,
        cdf=cdf(ordered, scenario.measure.cdf_points),
        stages=metrics.stages(),
        goodput_hz=in_time / counted_s,
        within=in_time / metrics.submitted if metrics.submitted else math.nan,
        offloaded=moved / answered if answered else math.nan,
        hops=_trimmed(metrics.hops),
        nodes=_nodes(world, scenario, sampler, answered),
        flows=tuple(
            Flow(entry=entry, executor=executor, jobs=jobs) for (entry, executor), jobs in sorted(metrics.flows.items())
        ),
        open_jobs=sampler.open_jobs(),
        answers=metrics.answers(),
        little=metrics.little(world.engine.now_s),
        violations=sum([node.core.statistics().invariant_violations for node in world.nodes.values()]),
        events=events,
        trace_hash=trace_hash,
    )


def _lost(world: World) -> int:
    """Count jobs without an outcome that no node works on any more: their entry has forgotten them."""
    lost = 0
    for client in world.open:
        node = world.nodes[client.job.entry]
        lost += node.is_alive and client.handle not in node.jobs
    return lost


def cdf(ordered: Sequence[float], points: int) -> tuple[tuple[float, float], ...]:
    """Return points of a distribution function; the last ones are dense, for tails are what one looks at.

    Parameters
    ----------
    ordered : sequence of float
        Values, ascending.
    points : int
        How many there are to be, at least 2; fewer for fewer values.

    Examples
    --------
    >>> cdf([1.0, 2.0, 3.0, 4.0], 10)
    ((1.0, 0.25), (2.0, 0.5), (3.0, 0.75), (4.0, 1.0))
    """
    count = len(ordered)
    if count <= points:
        return tuple((value, (number + 1) / count) for number, value in enumerate(ordered))
    # Half of them even; the other half even in the logarithm of what is left, down to the last value.
    half = points // 2
    ranks = {math.ceil(count * (number + 1) / half) for number in range(half)}
    rest = points - half
    ranks |= {count - math.floor(count ** (number / rest)) + 1 for number in range(rest)}
    return tuple((ordered[rank - 1], rank / count) for rank in sorted(ranks) if 1 <= rank <= count)


def _trimmed(hops: list[int]) -> tuple[int, ...]:
    last = max((number for number, count in enumerate(hops) if count), default=0)
    return tuple(hops[: last + 1])


def _nodes(world: World, scenario: Scenario, sampler: Sampler, answered: int) -> tuple[NodeResult, ...]:
    executed: Counter[str] = Counter()
    for (_, executor), jobs in world.metrics.flows.items():
        executed[executor] += jobs
    traffic = world.network.traffic()
    return tuple(
        _node(
            world,
            scenario,
            sampler,
            world.nodes[name],
            group,
            executed=executed[name],
            answered=answered,
            traffic=traffic.get(name, (0, 0)),
        )
        for group in scenario.nodes
        for name in group.names
    )


def _node(
    world: World,
    scenario: Scenario,
    sampler: Sampler,
    node: SimNode,
    group: NodeGroup,
    *,
    executed: int,
    answered: int,
    traffic: tuple[int, int],
) -> NodeResult:
    metrics, counts, name = world.metrics, node.core.statistics(), node.name
    slots = group.slots
    span_s = world.engine.now_s
    return NodeResult(
        name=name,
        device=group.device,
        slots=slots,
        is_alive=node.is_alive,
        submitted=metrics.entries.get(name, 0),
        executed=executed,
        share=executed / answered if answered else 0.0,
        utilisation=metrics.busy_s.get(name, 0.0) / (slots * (scenario.duration_s - scenario.warm_up_s)),
        backlog=sampler.backlog(name),
        busy=metrics.busy(name, slots),
        heard_hz=node.heard / span_s if span_s else 0.0,
        jobs_in=counts.jobs_received,
        jobs_out=counts.jobs_offloaded,
        steals=counts.jobs_stolen,
        granted=counts.jobs_granted,
        hedges=counts.jobs_hedged,
        retries=counts.retries,
        losses=counts.executors_lost + counts.executors_silent,
        adverts=counts.adverts_sent,
        messages=traffic[0],
        sent_bytes=traffic[1],
    )
