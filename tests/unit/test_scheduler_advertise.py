"""Records of many nodes that start together: their first ones, and that later ones are spread over the period."""

import random

from scheduler.actions import Advertise
from scheduler.config import AdvertConfig, CoreConfig
from scheduler.core import Core
from scheduler.events import AdvertReceived, ModelChanged, TimerFired
from scheduler.types import Capability

ENTRY = Capability(model="m", mean_s=0.1, p95_s=0.1, memory_bytes=0, load_s=0.0)


def start(count, until_s, **advert):
    """Start so many cores at once, all of which hear all; return the times at which each gossips."""
    config = CoreConfig(advert=AdvertConfig(**advert))
    cores = {
        name: Core(config, node_id=name, epoch=1, rng=random.Random(name), now_s=0.0)
        for name in [f"n{number:03d}" for number in range(count)]
    }
    models = ModelChanged(table_digest=b"table", capabilities=(ENTRY,), loaded=frozenset("m"))
    told = {name: [] for name in cores}
    for name, core in cores.items():
        spread(cores, told, name, core.handle(models, now_s=0.0), 0.0)
    while True:
        name, core = min(cores.items(), key=lambda each: each[1].next_deadline_s())
        now_s = core.next_deadline_s()
        if now_s > until_s:
            return told
        spread(cores, told, name, core.handle(TimerFired(), now_s=now_s), now_s)


def spread(cores, told, origin, actions, now_s):
    for action in actions:
        if isinstance(action, Advertise):
            told[origin].append(now_s)
            for name, core in cores.items():
                if name != origin:
                    core.handle(AdvertReceived(state=action.state), now_s=now_s)


def most_per_second(times):
    return max(sum(1 for each in times if begin <= each < begin + 1.0) for begin in times)


def test_a_few_nodes_know_one_another_at_once():
    told = start(8, 1.0)
    assert all(len(times) == 1 and times[0] <= 0.25 for times in told.values())


def test_the_first_records_of_a_large_grid_do_not_come_at_once():
    told = start(120, 120.0, start_hz=4.0, heard_hz=2.0)
    firsts = sorted(times[0] for times in told.values())
    assert most_per_second(firsts) <= 3 * 4.0, "120 came at once before, three times"
    assert firsts[-1] < 100.0, "30 s at the rate wanted; who was unlucky draws from twice the time"


def test_those_that_started_together_do_not_stay_together():
    told = start(40, 100.0, heard_hz=4.0)
    later = [each for times in told.values() for each in times[1:]]
    assert 0.7 * 4.0 * 90.0 < len([each for each in later if each >= 10.0]) < 1.3 * 4.0 * 90.0
    assert most_per_second([each for each in later if each >= 10.0]) < 4 * 4.0


def test_one_more_node_is_heard_at_once_by_a_large_grid():
    config = CoreConfig()
    core = Core(config, node_id="a", epoch=1, rng=random.Random("a"), now_s=0.0)
    core.handle(ModelChanged(table_digest=b"table", capabilities=(ENTRY,), loaded=frozenset("m")), now_s=0.0)
    assert core.next_deadline_s() <= 0.25
