"""What lies between the nodes of a scenario: links of pairs from the links of nodes, and the mesh of gossip."""

import random
from collections.abc import Mapping

from simulator.engine import stream
from simulator.network import Link, NetworkConfig
from simulator.scenario import LinkSpec, NodeGroup, Scenario, ScenarioError
from simulator.world import World

_BYTES_PER_MBIT = 1e6 / 8


def network_config(scenario: Scenario) -> NetworkConfig:
    """Return what connections cost."""
    network = scenario.network
    return NetworkConfig(
        connect_round_trips=network.connect_round_trips,
        idle_connections=network.idle_connections,
        forwards_gossip=network.mesh_degree > 0,
    )


def link_spec(scenario: Scenario, group: NodeGroup) -> LinkSpec:
    """Return the link of the nodes of a group."""
    link = scenario.network.link if group.link is None else group.link
    if isinstance(link, str):
        raise ScenarioError(f"no link profile is named {link!r}")
    return link


def join(source: LinkSpec, target: LinkSpec) -> Link:
    """Return the way from a node to another."""
    rates = [rate for rate in (source.up_mbit_s, target.down_mbit_s) if rate is not None]
    return Link(
        delay_s=source.latency_s + target.latency_s,
        jitter_s=source.jitter_s + target.jitter_s,
        gossip_loss=1.0 - (1.0 - source.loss) * (1.0 - target.loss),
        bytes_per_s=min(rates) * _BYTES_PER_MBIT if rates else None,
    )


def wire(world: World, scenario: Scenario) -> Mapping[str, list[str]]:
    """Set the links of a world; returns each node's neighbours in the mesh of gossip, empty without one."""
    specs = [(group, link_spec(scenario, group)) for group in scenario.nodes]
    world.network.default = join(specs[0][1], specs[0][1])
    for group, own in specs:
        for other, their in specs:
            link = join(own, their)
            if link != world.network.default:
                for source in group.names:
                    for target in other.names:
                        if source != target:
                            world.network.set_link(source, target, link)
    degree = scenario.network.mesh_degree
    return mesh(scenario.node_names, degree, stream(world.seed, "mesh", "all")) if degree else {}


def mesh(names: tuple[str, ...], degree: int, rng: random.Random) -> dict[str, list[str]]:
    """Draw a connected graph of about this degree: a ring in a drawn order, and drawn chords.

    Examples
    --------
    >>> mesh(("a", "b", "c"), 2, random.Random("1"))
    {'a': ['b', 'c'], 'b': ['a', 'c'], 'c': ['a', 'b']}
    """
    found: dict[str, set[str]] = {name: set() for name in names}
    ring = list(names)
    rng.shuffle(ring)
    for own, other in zip(ring, [*ring[1:], ring[0]], strict=True):
        if own != other:
            found[own].add(other)
            found[other].add(own)
    for own in ring:
        for other in rng.sample(ring, min(len(ring), 4 * degree)):
            if len(found[own]) >= degree:
                break
            if other != own and len(found[other]) < degree:
                found[own].add(other)
                found[other].add(own)
    return {name: sorted(found[name]) for name in names}
