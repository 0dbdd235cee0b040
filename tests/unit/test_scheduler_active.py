"""The active set in a grid that grows: who is in it does not hang on who was heard of first."""

import random
from collections import Counter

from scheduler.active import ActiveSet
from scheduler.config import CoreConfig, PeersConfig
from scheduler.types import Capability, CapabilityTable, PeerState
from scheduler.view import View

CONFIG = CoreConfig(peers=PeersConfig(active=8))


def meet(view, name, mean_s):
    """Have a view hear of a node and its table."""
    digest = name.encode().ljust(8, b"-")
    state = PeerState(
        node_id=name,
        epoch=1,
        sequence=1,
        backlog_s=0.0,
        slots=1,
        running_until_s=0.0,
        slow_down=1.0,
        warm=1,
        memory_free_bytes=0,
        draining=False,
        power_class=0,
        table_digest=digest,
    )
    entry = Capability(model="m", mean_s=mean_s, p95_s=mean_s, memory_bytes=0, load_s=0.0)
    view.merge(state, now_s=0.0)
    view.learn_table(CapabilityTable(node_id=name, digest=digest, entries=(entry,)))


def grow(seed, count, *, looks):
    """Have a node hear of so many others, one in four ten times as fast, with a look at its set after each or not."""
    view = View("a", CONFIG)
    active = ActiveSet(view, CONFIG, rng=random.Random(seed), now_s=0.0)
    for number in range(count):
        meet(view, f"p{number:03d}", 0.01 if number % 4 == 0 else 0.1)
        if looks:
            active.members()
    return view, active


def test_the_last_heard_of_are_in_as_often_as_the_first():
    counts = {True: Counter(), False: Counter()}
    for looks, found in counts.items():
        for seed in range(300):
            found.update(peer.node_id for peer in grow(seed, 64, looks=looks)[1].members())
    for found in counts.values():
        assert sum(found.values()) == 300 * 8
        first, last = (sum(found[f"p{n:03d}"] for n in range(*span, 4)) for span in ((0, 32), (32, 64)))
        assert abs(first - last) < 0.12 * (first + last), (first, last)
        fast = sum(found[f"p{n:03d}"] for n in range(0, 64, 4))
        assert 0.65 < fast / (300 * 8) < 0.85, "16 of speed 100 and 48 of speed 10, without replacement"


def test_a_growing_grid_costs_few_warm_connections():
    view, active = grow(1, 8, looks=True)
    exchanges, before = 0, {peer.node_id for peer in active.members()}
    for number in range(8, 512):
        meet(view, f"p{number:03d}", 0.01)
        now = {peer.node_id for peer in active.members()}
        exchanges += len(now - before)
        assert len(now) == 8
        before = now
    assert exchanges < 80, "8 ln(512 / 8) are 33 for equal peers; the first were slower"


def test_one_that_left_is_replaced_and_the_place_is_not_the_next_comers():
    view, active = grow(1, 64, looks=True)
    gone = active.members()[0].node_id
    view.forget(gone)
    assert len(active.members()) == 8
    before = [peer.node_id for peer in active.members()]
    meet(view, "slow", 100.0)
    assert [peer.node_id for peer in active.members()] == before
