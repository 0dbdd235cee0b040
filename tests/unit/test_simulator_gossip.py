"""News reaches all nodes once over a mesh of bounded degree, and costs what it costs."""

import pytest

from scheduler.config import AdvertConfig, CoreConfig
from simulator.config import NetworkConfig
from simulator.distributions import Constant
from simulator.gossip import GOSSIP_CPU_S, MESH_DEGREE, build_mesh
from simulator.links import Link
from simulator.specs import JobSpec, NodeSpec, profile
from simulator.world import World

NAMES = [f"n{number:03d}" for number in range(40)]


def reached(mesh, start):
    found, waiting = {start}, [start]
    while waiting:
        for other in mesh[waiting.pop()]:
            if other not in found:
                found.add(other)
                waiting.append(other)
    return found


@pytest.mark.parametrize("degree", [2, 3, 4, 8])
@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 40, 200])
def test_a_mesh_is_connected_mutual_and_of_bounded_degree(count, degree):
    names = [f"n{number}" for number in range(count)]
    mesh = build_mesh(reversed(names), degree=degree, seed="7")
    assert reached(mesh, names[0]) == set(names)
    for name, neighbours in mesh.items():
        assert name not in neighbours
        assert list(neighbours) == sorted(set(neighbours))
        assert all(name in mesh[other] for other in neighbours)
        assert len(neighbours) <= max(degree + 1, 2)
    if count > degree + 1:
        mean = sum(map(len, mesh.values())) / count
        assert mean > 0.65 * degree


def test_a_mesh_is_a_function_of_its_seed():
    assert build_mesh(NAMES, seed="7") == build_mesh(list(reversed(NAMES)), seed="7") != build_mesh(NAMES, seed="8")


def fleet(link=None, *, names=NAMES, degree=MESH_DEGREE, advert=None, **config):
    specs = [NodeSpec(name=name, models={"m": profile("m", Constant(0.1), mean_s=0.1)}) for name in names]
    world = World(
        specs,
        seed="7",
        config=CoreConfig(explain=False, advert=advert or AdvertConfig()),
        link=link or Link(delay_s=0.002),
        network=NetworkConfig(forwards_gossip=True, **config),
    )
    world.start(build_mesh(names, degree=degree, seed="7"))
    return world


def told(world):
    return sum(node.core.statistics().adverts_sent for node in world.nodes.values())


@pytest.mark.parametrize("link", [Link(delay_s=0.002), Link(delay_s=0.002, jitter_s=0.001)])
def test_each_record_reaches_each_other_node_once(link):
    world = fleet(link)
    world.run(30.0)
    sent = told(world)
    world.run(31.0)
    heard = sum(node.gossip.heard for node in world.nodes.values())
    assert sent * (len(NAMES) - 1) <= heard <= told(world) * (len(NAMES) - 1)
    assert all(node.core.statistics().peers_alive == len(NAMES) - 1 for node in world.nodes.values())


def test_duplicates_are_as_many_whether_they_are_carried_or_counted():
    """A record crosses each link at most once each way; a way without jitter carries only what is news."""
    plain, carried = fleet(), fleet(Link(delay_s=0.002, jitter_s=1e-9))
    plain_events, carried_events = plain.run(20.0), carried.run(20.0)
    duplicates = [sum(node.gossip.duplicates for node in world.nodes.values()) for world in (plain, carried)]
    assert duplicates[0] == pytest.approx(duplicates[1], rel=0.05)
    assert duplicates[0] > 3 * sum(node.gossip.heard for node in plain.nodes.values())
    assert plain_events < 0.4 * carried_events


def test_sizes_are_real():
    world = fleet(is_metered=True)
    world.run(20.0)
    messages, size = map(sum, zip(*world.network.traffic().values(), strict=True))
    assert messages > 1000
    assert 200 < size / messages < 600, "a state record with what libp2p adds"


def test_gossip_takes_processor_time_from_what_is_served():
    """One node at work, 39 that gossip: its service is longer by what it hears meanwhile, an idle one's is not."""
    job = JobSpec(models=("m",), input_bytes=0, budget_s=100.0)
    advert = AdvertConfig(period_s=0.2)
    found = []
    for cpu_s in (0.0, GOSSIP_CPU_S):
        world = fleet(advert=advert, gossip_cpu_s=cpu_s)
        for number in range(40):
            key = bytes(16) + number.to_bytes(8, "big")
            world.at(10.0 + 0.25 * number, lambda world=world, key=key: world.submit("n000", job, key=key))
        world.run(30.0)
        found.append(world.metrics.summary().mean_s)
    assert found[0] == pytest.approx(0.1)
    assert found[1] > 0.1
    extra = 40 * (found[1] - found[0])
    assert extra == pytest.approx(round(extra / GOSSIP_CPU_S) * GOSSIP_CPU_S), "a whole number of messages"


def test_a_lost_neighbour_is_forgotten_and_news_goes_round():
    world = fleet(degree=4)
    world.run(5.0)
    victim = world.nodes["n000"]
    neighbours = victim.gossip.neighbours
    world.kill("n000")
    world.run(6.0)
    assert all("n000" not in world.nodes[name].gossip.neighbours for name in neighbours)
    before = {name: world.nodes[name].gossip.heard for name in NAMES[1:]}
    world.run(16.0)
    assert all(world.nodes[name].gossip.heard > before[name] for name in NAMES[1:])
    assert victim.gossip.home == neighbours


def test_a_later_life_is_not_taken_for_the_earlier():
    world = fleet(degree=4)
    world.run(5.0)
    world.kill("n000")
    world.run(6.0)
    node = world.nodes["n000"].reborn()
    assert node.gossip.neighbours
    before = world.nodes["n001"].gossip.heard
    sent = told(world)
    world.run(7.0)
    assert node.core.statistics().adverts_sent > 0
    assert world.nodes["n001"].gossip.heard - before >= (told(world) - sent) * 0.5


def direct(link=None, *, audience=None):
    """Make a fleet in which each node is heard by all, or by so many, without a mesh."""
    specs = [NodeSpec(name=name, models={"m": profile("m", Constant(0.1), mean_s=0.1)}) for name in NAMES]
    world = World(specs, seed="7", config=CoreConfig(explain=False), link=link or Link(delay_s=0.002))
    if audience is not None:
        for name, others in build_mesh(NAMES, degree=audience, seed="7").items():
            world.nodes[name].gossip.limit(others)
    world.start()
    return world


def test_equal_ways_are_one_event_and_make_no_difference():
    found = []
    for link in (Link(delay_s=0.002), Link(delay_s=0.002, gossip_loss=1e-12)):
        world = direct(link)
        events = world.run(20.0)
        found.append((events, [node.core.peers() for node in world.nodes.values()]))
    assert found[0][1] == found[1][1]
    assert found[0][0] < found[1][0] / 3


def test_a_record_on_equal_ways_waits_for_a_partition_to_heal():
    world = direct()
    world.run(10.0)
    one, rest = world.nodes[NAMES[0]], NAMES[1:]
    world.network.partition([NAMES[0]], rest)
    before = one.heard
    world.run(20.0)
    assert one.heard == before
    world.network.heal()
    world.run(20.1)
    assert one.heard > before


def test_a_dead_node_is_heard_no_more_on_equal_ways():
    world = direct()
    world.run(5.0)
    victim = world.nodes[NAMES[0]]
    victim.kill()
    world.run(5.1)
    told = victim.gossip.heard
    victim.gossip.publish(victim.core.state_record(5.1))
    others = [node.heard for node in world.nodes.values()]
    world.run(5.11)
    assert [node.heard for node in world.nodes.values()] == others
    assert victim.gossip.heard == told


def test_an_audience_alone_hears():
    world = direct(audience=4)
    world.run(20.0)
    assert all(3 <= node.core.statistics().peers_alive <= 5 for node in world.nodes.values())
