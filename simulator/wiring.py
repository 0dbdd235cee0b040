"""What lies between the nodes of a scenario: the access of each node to the network, and the mesh of gossip.

Turns the network's records of `scenario` into those that `network` takes.
"""

from collections.abc import Mapping

from simulator.config import NetworkConfig
from simulator.connection import DAEMON_POOL, HANDSHAKE_BYTES
from simulator.devices import LINKS
from simulator.distributions import Uniform
from simulator.flowmodels import MODELS
from simulator.gossip import build_mesh
from simulator.links import Access, Link, access_of, joined
from simulator.scenario import LinkSpec, NodeGroup, Scenario
from simulator.values import ScenarioError
from simulator.world import World

_BYTES_PER_MBIT = 1e6 / 8


def network_config(scenario: Scenario) -> NetworkConfig:
    """Return what connections cost, how gossip spreads, whether bandwidth is shared."""
    network = scenario.network
    pool = DAEMON_POOL if network.pool else {"idle_connections": network.idle_connections}
    has_bytes = network.pool and network.connect_round_trips == len(HANDSHAKE_BYTES)
    return NetworkConfig(
        connect_round_trips=network.connect_round_trips,
        connect_cpu_s=network.connect_cpu_s,
        handshake_bytes=HANDSHAKE_BYTES if has_bytes else (),
        forwards_gossip=network.mesh_degree > 0,
        gossip_cpu_s=network.gossip_cpu_s,
        sharing=MODELS.get(network.sharing),
        media={name: rate * _BYTES_PER_MBIT for name, rate in network.media_mbit_s.items()},
        is_metered=scenario.measure.traffic,
        **pool,
    )


def access(scenario: Scenario, group: NodeGroup) -> Access:
    """Return what lies between the nodes of a group and the middle of the network.

    Raises
    ------
    ScenarioError
        When it names a profile that there is not.
    """
    link = scenario.network.link if group.link is None else group.link
    if isinstance(link, LinkSpec):
        return _access(link, group.medium)
    if link not in LINKS:
        path = ("network", "link") if group.link is None else ("nodes", scenario.nodes.index(group), "link")
        raise ScenarioError(f"no link is named {link!r}; there are {', '.join(LINKS)}, or give a table", path)
    return access_of(LINKS[link], medium=group.medium)


def _access(link: LinkSpec, medium: str | None) -> Access:
    up, down = link.up_mbit_s, link.down_mbit_s
    return Access(
        latency_s=link.latency_s,
        jitter=Uniform(0.0, link.jitter_s) if link.jitter_s else None,
        loss=link.loss,
        up_bytes_s=None if up is None else up * _BYTES_PER_MBIT,
        down_bytes_s=None if down is None else down * _BYTES_PER_MBIT,
        medium=medium,
    )


def way(scenario: Scenario, source: NodeGroup, target: NodeGroup) -> Link:
    """Return the way from a node of one group to one of another."""
    return joined(access(scenario, source), access(scenario, target))


def wire(world: World, scenario: Scenario) -> Mapping[str, tuple[str, ...]]:
    """Give the nodes of a world their accesses; returns each node's neighbours in the mesh, empty without one.

    Where all are alike and no bandwidth is shared, one link stands for all ways: pairs of nodes are many.
    """
    accesses = [access(scenario, group) for group in scenario.nodes]
    if scenario.network.sharing == "none" and all(each == accesses[0] for each in accesses):
        world.network.default = joined(accesses[0], accesses[0])
    else:
        for group, own in zip(scenario.nodes, accesses, strict=True):
            for name in group.names:
                world.network.attach(name, own)
    degree = scenario.network.mesh_degree
    return build_mesh(scenario.node_names, degree=degree, seed=world.seed) if degree else {}
