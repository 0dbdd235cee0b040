"""Laws of the scheduler's parts: order of the queue, merging of views, timers, draws, and determinism."""

import hashlib
import importlib.util
import math
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.actions import Send
from scheduler.active import ActiveSet
from scheduler.config import CoreConfig, PeersConfig, PlacementConfig, WindowConfig
from scheduler.core import Core
from scheduler.events import AdvertReceived, JobArrived, TableReceived
from scheduler.queue import LocalQueue, Waiting
from scheduler.timers import Alarm, Timers
from scheduler.types import Capability, CapabilityTable, Job, PeerState
from scheduler.view import View, is_newer

ROOT = Path(__file__).resolve().parents[2]


class QueueAgainstSortedList(RuleBasedStateMachine):
    """The queue in blocks does what a list sorted by (priority, deadline, arrival) does."""

    def __init__(self):
        super().__init__()
        self.queue = LocalQueue()
        self.model = []
        self.count = 0

    @rule(
        priority=st.integers(0, 3),
        deadline=st.integers(0, 30),
        service=st.sampled_from([0.25, 0.5, 1.0]),
        model=st.sampled_from("ab"),
        copies=st.sampled_from([1, 1, 1, 50]),
    )
    def insert(self, priority, deadline, service, model, copies):
        for _ in range(copies):
            self.count += 1
            entry = Waiting(
                handle=self.count, model=model, service_s=service, priority=priority, deadline_s=float(deadline)
            )
            self.queue.insert(entry)
            self.model.append((priority, float(deadline), self.count, service, model))
        self.model.sort()

    @precondition(lambda self: self.model)
    @rule()
    def pop_first(self):
        assert self.queue.pop_first().handle == self.model.pop(0)[2]

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def remove(self, data):
        entry = data.draw(st.sampled_from(self.model))
        removed = self.queue.remove(entry[2])
        assert removed is not None
        assert removed.handle == entry[2]
        self.model.remove(entry)
        assert self.queue.remove(entry[2]) is None

    @rule(priority=st.integers(0, 3), deadline=st.integers(0, 30))
    def look(self, priority, deadline):
        ahead = sum(entry[3] for entry in self.model if entry[:2] <= (priority, float(deadline)))
        assert self.queue.ahead_s(priority=priority, deadline_s=float(deadline)) == pytest.approx(ahead)

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def look_at_one(self, data):
        entry = data.draw(st.sampled_from(self.model))
        ahead = sum(other[3] for other in self.model if other[:3] < entry[:3])
        assert self.queue.ahead_of_s(self.queue.get(entry[2])) == pytest.approx(ahead)

    @invariant()
    def same_order(self):
        handles = [entry[2] for entry in self.model]
        assert [entry.handle for entry in self.queue.from_front(len(handles) + 1)] == handles
        assert [entry.handle for entry in self.queue.from_tail(3)] == handles[::-1][:3]
        assert len(self.queue) == len(handles)
        assert self.queue.total_s == pytest.approx(sum(entry[3] for entry in self.model))
        assert {model: self.queue.count(model) for model in "ab"} == {
            model: sum(1 for entry in self.model if entry[4] == model) for model in "ab"
        }


TestQueueAgainstSortedList = QueueAgainstSortedList.TestCase
TestQueueAgainstSortedList.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


def state(node_id, epoch, sequence, backlog_s=0.0, **fields):
    return PeerState(
        node_id=node_id,
        epoch=epoch,
        sequence=sequence,
        backlog_s=backlog_s,
        slots=1,
        running_until_s=0.0,
        slow_down=1.0,
        warm=1,
        memory_free_bytes=0,
        draining=fields.get("draining", False),
        power_class=0,
        table_digest=fields.get("digest", b"d" * 8),
    )


states = st.builds(
    state,
    st.sampled_from(["b", "c"]),
    st.integers(1, 3),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.5, 1.5]),
)


def known(view):
    return {peer.node_id: peer.state for peer in view.listed}


@given(st.lists(states, max_size=12), st.randoms())
def test_the_view_does_not_depend_on_the_order_or_number_of_records(records, shuffler):
    straight, shuffled = View("a", CoreConfig()), View("a", CoreConfig())
    for record in records:
        straight.merge(record, now_s=0.0)
    again = records + records
    shuffler.shuffle(again)
    for record in again:
        shuffled.merge(record, now_s=0.0)
    assert known(straight) == known(shuffled)


@given(states, states)
def test_of_two_different_records_of_a_node_exactly_one_is_newer(one, other):
    if one.node_id == other.node_id and one != other:
        assert is_newer(one, other) != is_newer(other, one)
    assert not is_newer(one, one)


@given(st.lists(states, max_size=8), states)
def test_merging_tells_whether_it_was_news(records, last):
    view = View("a", CoreConfig())
    for record in records:
        view.merge(record, now_s=0.0)
    before = known(view)
    assert view.merge(last, now_s=1.0) == (known(view) != before)
    assert not view.merge(last, now_s=2.0)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 20)), max_size=60))
def test_timers_fire_once_each_in_order_of_their_last_setting(settings_made):
    timers = Timers()
    alarms = [Alarm(str(number)) for number in range(6)]
    wanted = {}
    for number, due_s in settings_made:
        timers.set(alarms[number], float(due_s))
        wanted[number] = float(due_s)
    assert timers.next_due_s() == (min(wanted.values()) if wanted else None)
    fired = []
    while (target := timers.pop_due(100.0)) is not None:
        fired.append(int(target.name))
    assert sorted(fired) == sorted(wanted)
    assert [wanted[number] for number in fired] == sorted(wanted.values())
    assert timers.next_due_s() is None


def test_timers_drop_entries_that_no_longer_count():
    timers = Timers()
    alarm = Alarm("often set")
    for number in range(10_000):
        timers.set(alarm, 1e6 + number)
    assert len(timers._heap) <= 2048


def draw_counts(count, draws, speeds, avoid=()):
    view = View("me", CoreConfig())
    for number, mean_s in enumerate(speeds):
        name = f"p{number:04d}"
        digest = str(mean_s).encode().ljust(8, b"-")[:8]
        entry = Capability(model="m", mean_s=mean_s, p95_s=mean_s, memory_bytes=1, load_s=1.0)
        view.merge(state(name, 1, 1, digest=digest), now_s=0.0)
        view.learn_table(CapabilityTable(node_id=name, digest=digest, entries=(entry,)))
    active = ActiveSet(view, CoreConfig(), rng=random.Random(1), now_s=0.0)
    counts = Counter()
    for _ in range(draws):
        drawn = active.draw(active.pool("m", 0.0), count, avoid=avoid, now_s=0.0)
        assert len({peer.node_id for peer in drawn}) == len(drawn)
        counts.update(peer.node_id for peer in drawn)
    return counts, active, view


def test_peers_are_drawn_in_proportion_to_their_speed():
    counts, _, _ = draw_counts(1, 20_000, [0.4, 0.2, 0.1, 0.1])
    shares = [counts[f"p{number:04d}"] / 20_000 for number in range(4)]
    assert shares == pytest.approx([1 / 11, 2 / 11, 4 / 11, 4 / 11], abs=0.012)


def test_avoided_peers_are_not_drawn_and_few_are_all_drawn():
    counts, _, _ = draw_counts(3, 50, [0.1, 0.1, 0.1, 0.1], avoid=("p0001", "p0002"))
    assert counts == {"p0000": 50, "p0003": 50}


def test_the_active_set_of_a_large_grid_is_bounded_and_mostly_fast():
    speeds = [0.01 if number % 10 == 0 else 1.0 for number in range(400)]
    _, active, _ = draw_counts(3, 1, speeds)
    members = active.members()
    assert len(members) == 32
    assert sum(1 for peer in members if peer.speed > 50) >= 24


def test_the_active_set_follows_a_growing_grid():
    """The first peers heard of are slow; the set is drawn anew as the number of known peers doubles."""
    view = View("me", CoreConfig())
    active = ActiveSet(view, CoreConfig(), rng=random.Random(1), now_s=0.0)
    for number in range(200):
        mean_s = 1.0 if number < 40 else 0.01
        digest = f"{mean_s}".encode().ljust(8, b"-")
        entry = Capability(model="m", mean_s=mean_s, p95_s=mean_s, memory_bytes=1, load_s=1.0)
        view.merge(state(f"p{number:04d}", 1, 1, digest=digest), now_s=0.0)
        view.learn_table(CapabilityTable(node_id=f"p{number:04d}", digest=digest, entries=(entry,)))
        assert len(active.members()) == min(number + 1, 32)
    assert sum(1 for peer in active.members() if peer.speed > 50) >= 28


def test_one_active_peer_is_exchanged_at_a_time_and_lost_ones_are_replaced():
    _, active, view = draw_counts(3, 1, [0.1] * 100)
    before = {peer.node_id for peer in active.members()}
    active.exchange(10.0)
    after = {peer.node_id for peer in active.members()}
    assert len(after - before) == len(before - after) == 1
    view.forget(sorted(after)[0])
    again = {peer.node_id for peer in active.members()}
    assert len(again) == 32
    assert len(again - after) == 1


def test_small_grids_are_active_whole():
    _, active, _ = draw_counts(3, 1, [0.1] * 7)
    assert len(active.members()) == 7


def test_the_view_is_bounded():
    view = View("me", CoreConfig(peers=PeersConfig(peers=40)))
    for number in range(60):
        view.merge(state(f"p{number:02d}", 1, 1), now_s=0.0)
    assert len(view.listed) == 40
    assert math.isclose(view.expected_period_s(), 41 / 8)


def world_module():
    path = ROOT / "tests" / "property" / "test_scheduler_world.py"
    spec = importlib.util.spec_from_file_location("scheduler_world", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["scheduler_world"] = module
    spec.loader.exec_module(module)
    return module


def digest_of_a_world(seed):
    module = world_module()
    world = module.World(seed, count=5, slots=2)
    script = []
    rng = random.Random(f"{seed}/script")
    for _ in range(30):
        name = rng.choice(module.NAMES)
        script.append((0.2, ("burst", name, rng.randint(3, 15), 2.0, True)))
        script.append((0.1, rng.choice([("freeze", name, 1.0), ("losses", 2), ("crashes", 1), ("cancel", 3)])))
    module.play(world, script)
    assert len(world.log) > 1000
    return hashlib.sha256(repr(world.log).encode()).hexdigest()


_CHILD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("laws", sys.argv[1])
laws = importlib.util.module_from_spec(spec)
spec.loader.exec_module(laws)
print(laws.digest_of_a_world(7))
"""


def test_one_seed_gives_one_list_of_actions_whatever_the_hash_seed():
    digests = set()
    for hash_seed in ("0", "1", "4242"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, __file__], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        digests.add(done.stdout.strip())
    assert len(digests) == 1


@given(
    initial=st.sampled_from([1.0, 2.0, 4.0]),
    service_s=st.sampled_from([0.01, 0.1, 0.4]),
    budgets=st.lists(st.sampled_from([0.1, 0.5, 2.0, 10.0]), min_size=1, max_size=20),
    sheds=st.booleans(),
)
def test_no_job_is_refused_for_a_window_alone(initial, service_s, budgets, sheds):
    """A node without the model sends what it would send if there were no window, whatever the burst."""

    def sent(window):
        config = CoreConfig(window=window, placement=PlacementConfig(shedding=sheds))
        core = Core(config, node_id="a", epoch=1, rng=random.Random(1), now_s=0.0)
        core.handle(AdvertReceived(state=state("b", 1, 1)), now_s=0.0)
        entry = Capability(model="m", mean_s=service_s, p95_s=service_s, memory_bytes=1, load_s=0.0)
        core.handle(TableReceived(table=CapabilityTable(node_id="b", digest=b"d" * 8, entries=(entry,))), now_s=0.0)
        found = []
        for number, budget_s in enumerate(budgets):
            key = number.to_bytes(24, "big")
            job = Job(key=key, entry="a", input_bytes=1, arrival_s=1.0, deadline_s=1.0 + budget_s, models=("m",))
            actions = core.handle(JobArrived(handle=number, job=job, origin=None), now_s=1.0)
            found += [each.handle for each in actions if isinstance(each, Send)]
        return found

    assert sent(WindowConfig(initial=initial)) == sent(WindowConfig(enabled=False))
