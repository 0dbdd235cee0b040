"""The failure detector in whole grids: detectors of many nodes on one virtual clock."""

import heapq
import itertools
import random
import statistics
from collections.abc import Callable

from hypothesis import given, settings
from hypothesis import strategies as st

from transport.liveness import Liveness
from transport.liveness_events import (
    Changed,
    Event,
    LivenessConfig,
    NoticeReceived,
    PeerDoubted,
    PeersChanged,
    PeerSeen,
    PeerSpoke,
    ProbeAnswered,
    ProbeBroken,
    PublishHealth,
    SendPing,
    Status,
    TimerFired,
)
from transport.wire import HealthNotice

HELPER_PATIENCE_S = 0.5
"""How long a helper waits for the subject before it says that it did not reach it."""


class Cluster:
    """Nodes with a few neighbours each; messages take 1 to 5 ms and gossip 10 to 200 ms; both may get lost."""

    def __init__(self, size: int, seed: int, *, degree: int = 8, loss: float = 0.0) -> None:
        self.rng = random.Random(seed)
        self.loss = loss
        self.now_s = 0.0
        self.names = [f"n{i:03}" for i in range(size)]
        self.gone: set[str] = set()
        self.frozen: set[str] = set()
        self.reset: set[str] = set()
        self.apart: set[str] = set()
        """Nodes that only reach one another."""
        self.held: dict[str, list[Callable[[], None]]] = {}
        self.log: list[tuple[float, str, Changed]] = []
        self.heap: list[tuple[float, int, Callable[[], None]]] = []
        self.order = itertools.count()
        self.clocks = {n: random.Random(f"{seed}/{n}/clock").uniform(0.0, 1e6) for n in self.names}
        """What each node's clock showed at the start: their beats are not in step."""
        self.live = {n: Liveness(n, 1, random.Random(f"{seed}/{n}")) for n in self.names}
        self.peers: dict[str, set[str]] = {n: set() for n in self.names}
        for i, name in enumerate(self.names):
            others = [self.names[(i + 1) % size], *self.rng.sample(self.names, min(size, degree // 2))]
            for other in others:
                if other != name:
                    self.peers[name].add(other)
                    self.peers[other].add(name)
        for name in self.names:
            for other in self.names:
                self.feed(name, PeerSeen(node=other, epoch=1, direct=False))
            self.feed(name, PeersChanged(tuple(sorted(self.peers[name]))))

    def later(self, delay_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self.heap, (self.now_s + delay_s, next(self.order), call))

    def feed(self, name: str, event: Event) -> None:
        """Give a node an event; a frozen one gets it when it runs again."""
        if name in self.gone:
            return
        if name in self.frozen:
            self.held.setdefault(name, []).append(lambda: self.feed(name, event))
            return
        live = self.live[name]
        for action in live.handle(event, now_s=self.clocks[name] + self.now_s):
            match action:
                case SendPing():
                    self.ping(name, action)
                case PublishHealth():
                    self.gossip(name, action.notice)
                case Changed():
                    self.log.append((self.now_s, name, action))
        due_s = live.next_deadline_s() - self.clocks[name]
        assert due_s > self.now_s, "a detector must not spin"
        if due_s < float("inf"):
            self.later(due_s - self.now_s, lambda: self.fire(name))

    def fire(self, name: str) -> None:
        if name in self.frozen:
            self.held.setdefault(name, []).append(lambda: self.feed(name, TimerFired()))
        elif self.live[name].next_deadline_s() - self.clocks[name] <= self.now_s + 1e-6:
            self.feed(name, TimerFired())

    def lost(self, a: str, b: str) -> bool:
        return self.rng.random() < self.loss or (a in self.apart) != (b in self.apart)

    def ping(self, asker: str, ping: SendPing) -> None:
        first = ping.target if ping.via is None else ping.via
        rtt_s = self.rng.uniform(0.001, 0.005)
        if first in self.reset:
            self.later(rtt_s, lambda: self.feed(asker, ProbeBroken(probe=ping.probe, target=ping.target, via=ping.via)))
            return
        if first in self.gone or first in self.frozen or self.lost(asker, first):
            return
        self.later(rtt_s / 2, lambda: self.feed(first, PeerSpoke(asker)))
        reached, wait_s = True, rtt_s
        if ping.via is not None and (ping.target in self.gone | self.frozen or self.lost(first, ping.target)):
            reached, wait_s = False, (rtt_s if ping.target in self.reset else HELPER_PATIENCE_S)
        answer = ProbeAnswered(probe=ping.probe, target=ping.target, via=ping.via, reached=reached)
        self.later(wait_s, lambda: self.feed(asker, answer))

    def gossip(self, origin: str, notice: HealthNotice) -> None:
        for name in self.names:
            if name != origin and not self.lost(origin, name):
                event = NoticeReceived(origin=origin, notice=notice)
                self.later(self.rng.uniform(0.01, 0.2), lambda n=name, e=event: self.feed(n, e))  # type: ignore[misc]

    def thaw(self, name: str) -> None:
        self.frozen.discard(name)
        for call in self.held.pop(name, []):
            call()

    def run(self, duration_s: float) -> None:
        end_s = self.now_s + duration_s
        while self.heap and self.heap[0][0] <= end_s:
            self.now_s, _, call = heapq.heappop(self.heap)
            call()
        self.now_s = end_s

    def first_s(self, status: Status, subject: str, since_s: float) -> dict[str, float]:
        """When each other node first gave the subject this standing, in seconds since a time."""
        found: dict[str, float] = {}
        for at_s, name, change in self.log:
            if at_s >= since_s and change.node == subject and change.status is status:
                found.setdefault(name, at_s - since_s)
        return found


def test_a_silently_dead_node_is_suspected_in_time_and_dead_everywhere_within_fifteen_seconds() -> None:
    suspected: list[float] = []
    for seed, size in itertools.product(range(12), (3, 10, 50)):
        cluster = Cluster(size, seed)
        cluster.run(5.0 + cluster.rng.random())
        victim, since_s = cluster.names[1], cluster.now_s
        cluster.frozen.add(victim)
        cluster.run(15.0)
        suspected += cluster.first_s(Status.SUSPECT, victim, since_s).values()
        dead = cluster.first_s(Status.DEAD, victim, since_s)
        assert len(dead) == size - 1
        assert {c.node for at_s, _, c in cluster.log if c.status in (Status.SUSPECT, Status.DEAD)} == {victim}
    p50, p99 = statistics.median(suspected), statistics.quantiles(suspected, n=100)[98]
    assert p50 <= 2.0
    assert p99 <= 5.0


def test_a_killed_process_is_dead_everywhere_within_four_seconds() -> None:
    for seed, size in itertools.product(range(5), (3, 10, 50)):
        cluster = Cluster(size, seed)
        cluster.run(3.0)
        victim, since_s = cluster.names[1], cluster.now_s
        cluster.gone.add(victim)
        cluster.reset.add(victim)
        for peer in sorted(cluster.peers[victim]):
            cluster.feed(peer, PeerDoubted(victim))
        cluster.run(15.0)
        assert max(cluster.first_s(Status.SUSPECT, victim, since_s).values()) <= 1.0
        assert len(cluster.first_s(Status.DEAD, victim, since_s)) == size - 1
        assert max(cluster.first_s(Status.DEAD, victim, since_s).values()) <= 4.0


def test_a_node_that_stood_still_accuses_nobody_and_is_alive_everywhere_soon_after() -> None:
    for seed, stood_s in itertools.product(range(4), (1.0, 4.0, 20.0)):
        cluster = Cluster(10, seed)
        cluster.run(3.0)
        victim = cluster.names[1]
        cluster.frozen.add(victim)
        cluster.run(stood_s)
        cluster.thaw(victim)
        cluster.run(5.0)
        accused = {c.node for _, name, c in cluster.log if name == victim and c.status is Status.SUSPECT}
        assert accused == set()
        assert {cluster.live[n].status(victim) for n in cluster.names if n != victim} == {Status.ALIVE}


def test_an_overloaded_node_accuses_nobody_to_death_and_lives() -> None:
    cluster = Cluster(20, 3)
    cluster.run(3.0)
    victim = cluster.names[4]
    for _ in range(40):  # as the anomalies of the Lifeguard paper: stands still, runs a moment, stands still
        cluster.frozen.add(victim)
        cluster.run(1.0)
        cluster.thaw(victim)
        cluster.run(0.1)
    cluster.run(5.0)
    assert not [c for _, _, c in cluster.log if c.status is Status.DEAD]
    assert {c.node for _, _, c in cluster.log if c.status is Status.SUSPECT} <= {victim}
    assert {cluster.live[n].status(victim) for n in cluster.names if n != victim} == {Status.ALIVE}


def test_a_partition_makes_dead_and_its_end_makes_alive_without_flaps() -> None:
    for seed in range(4):
        cluster = Cluster(20, seed)
        cluster.run(3.0)
        cluster.apart = set(cluster.names[:9])
        cluster.run(45.0)
        for name, live in cluster.live.items():
            for other in cluster.names:
                same = (name in cluster.apart) == (other in cluster.apart)
                if name != other:
                    assert (live.status(other) is Status.ALIVE) == same
        cluster.apart = set()
        healed_s = cluster.now_s
        for name in cluster.names:  # as discovery does: old peers are dialled again
            cluster.feed(name, PeersChanged(()))
            cluster.feed(name, PeersChanged(tuple(sorted(cluster.peers[name]))))
        for _ in range(10):  # state records reach everyone again, once a second
            for name, other in itertools.permutations(cluster.names, 2):
                cluster.feed(name, PeerSeen(node=other, epoch=1, direct=False))
            cluster.run(1.0)
        for name, live in cluster.live.items():
            assert all(live.status(other) is Status.ALIVE for other in cluster.names if other != name)
        cluster.run(50.0)
        late = [c for at_s, _, c in cluster.log if at_s > healed_s + 10.0]
        assert [c for c in late if c.status in (Status.SUSPECT, Status.DEAD)] == []


def test_one_percent_loss_kills_nobody() -> None:
    cluster = Cluster(30, 5, loss=0.01)
    cluster.run(120.0)
    assert not [c for _, _, c in cluster.log if c.status is Status.DEAD]


def test_the_cost_per_node_does_not_grow_with_the_grid() -> None:
    rates = []
    for size in (10, 60):
        cluster = Cluster(size, 1)
        cluster.run(20.0)
        rates.append(max(live.statistics().probes for live in cluster.live.values()) / 20.0)
    assert max(rates) <= LivenessConfig().probes_per_period + 0.1


NAMES = st.sampled_from(["me", "a", "b", "c", "d"])
NOTICES = st.builds(
    HealthNotice,
    subject=NAMES,
    epoch=st.integers(0, 3),
    incarnation=st.integers(0, 3) | st.just(2**53),
    status=st.sampled_from(["suspect", "alive", "dead", "left"]),
)
EVENTS = st.one_of(
    st.builds(PeersChanged, st.lists(NAMES, max_size=5).map(tuple)),
    st.builds(PeerSeen, node=NAMES, epoch=st.integers(0, 3), direct=st.booleans()),
    st.builds(PeerSpoke, NAMES),
    st.builds(PeerDoubted, NAMES),
    st.builds(ProbeAnswered, probe=st.integers(1, 20), target=NAMES, via=st.none() | NAMES, reached=st.booleans()),
    st.builds(ProbeBroken, probe=st.integers(1, 20), target=NAMES, via=st.none() | NAMES),
    st.builds(NoticeReceived, origin=NAMES, notice=NOTICES),
    st.just(TimerFired()),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 3), EVENTS), max_size=60), st.integers(0, 3))
def test_no_order_of_events_breaks_the_detector(steps: list[tuple[float, Event]], seed: int) -> None:
    live = Liveness("me", 2, random.Random(seed), LivenessConfig(members_max=3))
    held: dict[str, Status] = {}
    now_s = 0.0
    for step_s, event in steps:
        now_s += step_s
        for action in live.handle(event, now_s=now_s):
            if isinstance(action, Changed):
                held[action.node] = action.status
            if isinstance(action, SendPing):
                assert action.target != "me"
                assert action.via != action.target
            if isinstance(action, PublishHealth) and action.notice.subject == "me":
                assert action.notice.status == "alive"
        assert live.next_deadline_s() > now_s
        assert live.status("me") is None
        known = [n for n in "abcd" if live.status(n) is not None]
        assert len(known) <= 3
        assert all(live.status(n) is held[n] for n in known), "every change is told"
