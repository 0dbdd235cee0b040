"""A little random world of cores: whatever happens, each job gets exactly one outcome and no rule is broken."""

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scheduler import events as ev
from scheduler import variants
from scheduler.config import CoreConfig, OfferConfig, PlacementConfig, QueueConfig, RetryConfig
from scheduler.core import Core
from scheduler.types import Capability, CapabilityTable, Job, LinkSample, Reason, ServiceTimes

MODELS = ("large", "small")
MEAN_S = {"large": 0.2, "small": 0.05}


@dataclass
class Node:
    core: Core
    speed: float
    is_dead: bool = False
    frozen_until_s: float = 0.0
    timer_s: float | None = None
    loaded: set[str] = field(default_factory=set)


class World:
    """Nodes with delays between them. Draws come from one seed, so a failing case replays."""

    def __init__(self, seed, *, count, policy="capd", expire=True, prior_bytes=65_536, slots=1, batch=1):
        self.rng = random.Random(f"{seed}/world")
        self.now_s = 0.0
        self.heap = []
        self.sequence = 0
        self.next_id = 0
        self.nodes = {}
        self.jobs_of = {}  # (node, handle) -> job, for each job that ever came to a core
        self.outcomes = {}  # (node, handle) -> list of outcome actions
        self.peer_of = {}  # (node, handle) -> (sender, command)
        self.handle_of = {}  # (sender, command) -> (node, handle)
        self.offer_of = {}  # (node, offer) -> (sender, command, job)
        self.question_of = {}  # (node, request) -> (thief, command)
        self.gone = set()  # commands whose connection is closed
        self.running = {}  # (node, command) -> handles
        self.fate = Counter()  # what else happens: losses of connections, crashes of workers
        self.offers_on = {}
        self.log = []
        config = CoreConfig(
            placement=PlacementConfig(expire=expire),
            offer=OfferConfig(prior_bytes=prior_bytes),
            queue=QueueConfig(slots=slots, model_memory_bytes=150, batch_jobs=batch),
            retry=RetryConfig(burst=5.0),
        )
        config = variants.configure(config, policy)
        self.config = config
        for number in range(count):
            name = f"n{number}"
            speed = self.rng.choice([0.3, 1.0, 5.0])
            core = Core(config, node_id=name, epoch=1, rng=random.Random(f"{seed}/{name}"), now_s=0.0)
            self.nodes[name] = Node(core, speed, loaded={"small"} if number % 2 else {"large"})
            self.at(0.0, name, self.models_changed(name, batch))

    def capabilities(self, name, batch=1):
        speed = self.nodes[name].speed
        return tuple(
            Capability(
                model=model,
                mean_s=MEAN_S[model] / speed,
                p95_s=MEAN_S[model] * 1.5 / speed,
                memory_bytes=100,
                load_s=0.3,
                max_batch=4,
            )
            for model in MODELS
        )

    def models_changed(self, name, batch=1):
        return ev.ModelChanged(
            table_digest=name.encode().ljust(8, b"-"),
            capabilities=self.capabilities(name, batch),
            loaded=frozenset(self.nodes[name].loaded),
        )

    def at(self, time_s, name, event, guard=None):
        self.sequence += 1
        heapq.heappush(self.heap, (time_s, self.sequence, name, event, guard))

    def soon(self, name, event, guard=None, extra_s=0.0):
        self.at(self.now_s + self.rng.uniform(0.001, 0.03) + extra_s, name, event, guard)

    def mint(self):
        self.next_id += 1
        return self.next_id

    def run(self, until_s):
        while self.heap and self.heap[0][0] <= until_s:
            time_s, _, name, event, guard = heapq.heappop(self.heap)
            node = self.nodes.get(name)
            self.now_s = time_s
            if callable(event):
                event()
                continue
            if node.is_dead:
                continue
            if node.frozen_until_s > time_s:
                self.at(node.frozen_until_s, name, event, guard)
                continue
            if guard is not None and not guard():
                continue
            if isinstance(event, ev.TimerFired):
                if node.timer_s != time_s and node.timer_s is not None and node.timer_s > time_s:
                    continue
                node.timer_s = None
            self.feed(name, event)

    def feed(self, name, event):
        node = self.nodes[name]
        if isinstance(event, ev.JobArrived):
            self.check_arrival(name, event)
            self.jobs_of[name, event.handle] = event.job
        carried = node.core.handle(event, now_s=self.now_s)
        self.log.append((self.now_s, name, event, carried))
        for action in carried:
            self.carry_out(name, action)
        self.check_node(name)
        due_s = node.core.next_deadline_s()
        if due_s is not None and due_s != node.timer_s:
            node.timer_s = max(due_s, self.now_s)
            self.at(node.timer_s, name, ev.TimerFired())

    def check_arrival(self, name, event):
        job = event.job
        if job.entry != name:
            assert job.hops <= self.config.placement.hop_limit
            assert name not in job.visited
        assert len(job.visited) == len(set(job.visited) - {job.entry}) + job.visited.count(job.entry)

    def check_node(self, name):
        statistics = self.nodes[name].core.statistics()
        assert statistics.invariant_violations == 0
        longest_s = max(MEAN_S.values()) / self.nodes[name].speed
        assert statistics.backlog_s <= self.config.queue.bound_s + 3 * longest_s
        assert statistics.jobs_running <= self.config.queue.slots * self.config.queue.batch_jobs
        assert statistics.reserved_bytes >= 0

    # What a driver and a network do.

    def carry_out(self, name, action):
        method = getattr(self, f"do_{type(action).__name__.lower()}", None)
        if method is not None:
            method(name, action)

    def do_execute(self, name, action):
        assert action.handles
        for handle in action.handles:
            assert (name, handle) not in self.outcomes, "an ended job is executed"
        self.running[name, action.command] = action.handles
        service_s = MEAN_S[action.model] / self.nodes[name].speed * self.rng.uniform(0.8, 1.2)
        assert action.model in self.nodes[name].loaded
        key = (name, action.command)
        event = ev.ServiceFinished(command=action.command, service_s=service_s)
        if self.fate["crashes"] > 0 and self.rng.random() < 0.3:
            self.fate["crashes"] -= 1
            reason = self.rng.choice([Reason.LOST, Reason.LOST, Reason.MODEL_FAILED])
            event = ev.ServiceFailed(command=action.command, reason=reason)
        self.at(self.now_s, name, ev.ServiceStarted(command=action.command), lambda: key in self.running)
        self.at(self.now_s + service_s, name, event, lambda: self.running.pop(key, None) is not None)

    def is_open(self, sender, command):
        return lambda: (sender, command) not in self.gone

    def deliver_job(self, name, action, job, peer, *, offer=None, stolen=False, estimate_s=None, extra_s=0.0):
        self.open_session(name, action)
        key = (name, action)

        def arrive():
            if key in self.gone or self.nodes[peer].is_dead:
                return
            if self.nodes[peer].frozen_until_s > self.now_s:
                self.at(self.nodes[peer].frozen_until_s, peer, arrive)
                return
            handle = self.mint()
            self.peer_of[peer, handle] = key
            self.handle_of[key] = (peer, handle)
            event = ev.JobArrived(
                handle=handle,
                job=msgspec.structs.replace(job, arrival_s=self.now_s),
                origin=name,
                offer=offer,
                stolen=stolen,
                sender_estimate_s=estimate_s,
            )
            self.feed(peer, event)

        self.at(self.now_s + self.rng.uniform(0.002, 0.03) + extra_s, peer, arrive)

    def open_session(self, name, command):
        """Some connections die before their answer."""
        if self.fate["losses"] > 0 and self.rng.random() < 0.2:
            self.fate["losses"] -= 1
            self.soon(name, lambda: self.cut(name, command, connected=self.rng.random() < 0.7), extra_s=0.05)

    def cut(self, sender, command, *, connected=True):
        key = (sender, command)
        if key in self.gone or self.nodes[sender].is_dead:
            return
        self.gone.add(key)
        self.feed_or_wait(sender, ev.SendFailed(command=command, connected=connected))
        self.withdraw(key)

    def feed_or_wait(self, name, event):
        self.at(self.now_s, name, event)

    def withdraw(self, key):
        if key in self.handle_of:
            peer, handle = self.handle_of[key]
            self.soon(peer, ev.CancelRequested(handle=handle))

    def do_send(self, name, action):
        assert action.job.visited[-1] == name
        if self.nodes[action.peer].is_dead:
            self.soon(name, ev.SendFailed(command=action.command, connected=False))
            self.gone.add((name, action.command))
            return
        self.deliver_job(name, action.command, action.job, action.peer, estimate_s=action.estimate_s)

    def do_offer(self, name, action):
        if self.nodes[action.peer].is_dead:
            self.soon(name, ev.SendFailed(command=action.command, connected=False))
            self.gone.add((name, action.command))
            return
        offer = self.mint()
        self.offer_of[action.peer, offer] = (name, action.command, action.job)
        event = ev.OfferReceived(
            offer=offer, peer=name, job=action.job, state=None, sender_estimate_s=action.estimate_s
        )
        self.soon(action.peer, event, self.is_open(name, action.command))

    def do_accept(self, name, action):
        sender, command, job = self.offer_of[name, action.offer]

        def accepted():
            if (sender, command) in self.gone or self.nodes[sender].is_dead:
                return
            if self.nodes[sender].frozen_until_s > self.now_s:
                self.at(self.nodes[sender].frozen_until_s, sender, accepted)
                return
            self.feed(sender, ev.OfferAnswered(command=command, state=action.state, rtt_s=0.02))
            self.deliver_job(sender, command, job, name, offer=action.offer)

        self.at(self.now_s + 0.01, sender, accepted)

    def do_nackoffer(self, name, action):
        sender, command, _ = self.offer_of[name, action.offer]
        event = ev.Nacked(command=command, reason=action.why, state=action.state, estimate_s=action.estimate_s)
        self.answer((sender, command), event)

    def answer(self, key, event, *, final=True):
        sender, _ = key
        if key in self.gone:
            return
        if final:
            self.soon(sender, event, lambda: key not in self.gone and (self.gone.add(key) or True))
        else:
            self.soon(sender, event, lambda: key not in self.gone)

    def outcome(self, name, action):
        mine = (name, action.handle)
        assert mine in self.jobs_of
        assert mine not in self.outcomes, "a job has two outcomes"
        self.outcomes[mine] = action
        return self.peer_of.get(mine)

    def do_reply(self, name, action):
        key = self.outcome(name, action)
        if key is not None:
            times = ServiceTimes(waiting_s=0.01, service_s=0.1)
            link = LinkSample(rtt_s=0.02, sent_bytes=100_000, sent_s=0.01)
            event = ev.ReplyReceived(
                command=key[1], model="small", failure=None, state=action.state, times=times, link=link
            )
            self.answer(key, event)

    def do_reject(self, name, action):
        key = self.outcome(name, action)
        if key is not None:
            event = ev.ReplyReceived(command=key[1], model=None, failure=action.why, state=action.state, times=None)
            self.answer(key, event)

    def do_nack(self, name, action):
        key = self.outcome(name, action)
        assert key is not None, "an own client's job was given back"
        event = ev.Nacked(command=key[1], reason=action.why, state=action.state, estimate_s=action.estimate_s)
        self.answer(key, event)

    def do_acknowledge(self, name, action):
        assert (name, action.handle) not in self.outcomes
        key = self.peer_of[name, action.handle]
        event = ev.Accepted(command=key[1], state=action.state, covered=(key[1],))
        self.answer(key, event, final=False)

    def do_progress(self, name, action):
        assert (name, action.handle) not in self.outcomes
        key = self.peer_of[name, action.handle]
        self.answer(key, ev.Progressed(command=key[1], state=action.state), final=False)

    def do_cancel(self, name, action):
        key = (name, action.command)
        if key in self.running:
            event = ev.ServiceFailed(command=action.command, reason=Reason.CANCELLED)
            self.at(self.now_s + 0.005, name, event, lambda: self.running.pop(key, None) is not None)
            return
        self.gone.add(key)
        self.withdraw(key)

    def do_steal(self, name, action):
        if self.nodes[action.victim].is_dead:
            self.soon(name, ev.SendFailed(command=action.command, connected=False))
            return
        request = self.mint()
        self.question_of[action.victim, request] = (name, action.command)
        event = ev.StealRequested(
            request=request, peer=name, state=action.state, models=action.models, room=action.room
        )
        self.soon(action.victim, event)

    def do_probe(self, name, action):
        peer = self.nodes[action.peer]
        if peer.is_dead or self.rng.random() < 0.1:
            self.soon(name, ev.SendFailed(command=action.command, connected=False), extra_s=0.1)
        elif peer.frozen_until_s <= self.now_s:
            event = ev.ProbeAnswered(command=action.command, state=peer.core.state_record(self.now_s))
            self.soon(name, event, extra_s=self.rng.choice([0.0, 0.1]))

    def do_grantlease(self, name, action):
        thief, command = self.question_of.pop((name, action.request))
        assert len(action.jobs) == len(action.grants)
        self.soon(thief, ev.StealAnswered(command=command, granted=len(action.grants), state=action.state))
        for (lease, _), job in zip(action.grants, action.jobs, strict=True):
            self.deliver_job(name, lease, job, thief, stolen=True)

    def do_loadmodel(self, name, action):
        def loaded():
            if not self.nodes[name].is_dead and self.rng.random() < 0.9:
                self.nodes[name].loaded.add(action.model)
                self.at(self.now_s, name, self.models_changed(name))

        self.at(self.now_s + 0.3, name, loaded)

    def do_evictmodel(self, name, action):
        self.nodes[name].loaded.discard(action.model)
        self.at(self.now_s + 0.01, name, self.models_changed(name))

    def do_advertise(self, name, action):
        for other in self.nodes:
            if other != name and self.rng.random() < 0.9:
                self.soon(other, ev.AdvertReceived(state=action.state), extra_s=self.rng.choice([0.0, 0.3]))

    def do_pulltable(self, name, action):
        table = CapabilityTable(node_id=action.peer, digest=action.digest, entries=self.capabilities(action.peer))
        self.soon(name, ev.TableReceived(table=table))

    # What happens to them.

    def submit(self, name, *, budget_s, size, priority, frame, hurry):
        if self.nodes[name].is_dead:
            return
        handle = self.mint()
        job = Job(
            key=handle.to_bytes(24, "big"),
            entry=name,
            priority=priority,
            stream="camera" if frame else "",
            newest_wins=frame > 0,
            frame=frame,
            input_bytes=size,
            arrival_s=self.now_s,
            deadline_s=self.now_s + budget_s,
            models=MODELS if hurry else MODELS[:1],
        )
        self.feed_or_wait(name, ev.JobArrived(handle=handle, job=job, origin=None))

    def cancel_any(self, number):
        mine = [key for key in self.jobs_of if key not in self.outcomes and key not in self.peer_of]
        if mine:
            name, handle = mine[number % len(mine)]
            self.at(self.now_s, name, ev.CancelRequested(handle=handle))

    def kill(self, name):
        alive = [each for each, node in self.nodes.items() if not node.is_dead]
        if len(alive) <= 1 or self.nodes[name].is_dead:
            return
        self.nodes[name].is_dead = True
        for key in [key for key, (peer, _) in self.handle_of.items() if peer == name]:
            sender, command = key
            if key not in self.gone and self.rng.random() < 0.5:
                self.at(self.now_s + self.rng.uniform(0, 0.2), sender, lambda s=sender, c=command: self.cut(s, c))
        for other in alive:
            if other != name:
                self.at(self.now_s + 0.3, other, ev.PeerSuspected(peer=name))
                self.at(self.now_s + self.rng.uniform(0.5, 2.0), other, ev.PeerLost(peer=name))

    def freeze(self, name, for_s):
        self.nodes[name].frozen_until_s = self.now_s + for_s


NAMES = ["n0", "n1", "n2", "n3", "n4"]

steps = st.one_of(
    st.tuples(
        st.just("submit"),
        st.sampled_from(NAMES[:2]),
        st.sampled_from([0.1, 0.5, 2.0, 6.0]),
        st.sampled_from([1_000, 100_000, 1_000_000]),
        st.integers(0, 3),
        st.sampled_from([0, 0, 1, 2, 3]),
        st.booleans(),
    ),
    st.tuples(
        st.just("burst"), st.sampled_from(NAMES), st.integers(5, 25), st.sampled_from([0.5, 2.0, 6.0]), st.booleans()
    ),
    st.tuples(st.just("cancel"), st.integers(0, 1000)),
    st.tuples(st.just("kill"), st.sampled_from(NAMES)),
    st.tuples(st.just("freeze"), st.sampled_from(NAMES), st.sampled_from([0.3, 1.0, 4.0])),
    st.tuples(st.just("drain"), st.sampled_from(NAMES)),
    st.tuples(st.just("losses"), st.integers(1, 5)),
    st.tuples(st.just("crashes"), st.integers(1, 5)),
    st.tuples(st.just("suspect"), st.sampled_from(NAMES), st.sampled_from(NAMES)),
)


def take_step(world, step):
    kind, *rest = step
    names = list(world.nodes)
    if kind == "submit":
        name, budget_s, size, priority, frame, hurry = rest
        world.submit(name, budget_s=budget_s, size=size, priority=priority, frame=frame, hurry=hurry)
    elif kind == "burst":
        name, count, budget_s, hurry = rest
        name = names[NAMES.index(name) % len(names)]
        for _ in range(count):
            world.submit(name, budget_s=budget_s, size=100_000, priority=1, frame=0, hurry=hurry)
    elif kind == "cancel":
        world.cancel_any(rest[0])
    elif kind in ("losses", "crashes"):
        world.fate[kind] += rest[0]
    else:
        name = names[NAMES.index(rest[0]) % len(names)]
        if kind == "kill":
            world.kill(name)
        elif kind == "freeze":
            world.freeze(name, rest[1])
        elif kind == "drain":
            world.at(world.now_s, name, ev.DrainRequested())
        elif kind == "suspect":
            other = names[NAMES.index(rest[1]) % len(names)]
            if other != name:
                world.at(world.now_s, name, ev.PeerSuspected(peer=other))
                world.at(world.now_s + 0.5, name, ev.PeerRefuted(peer=other))


def play(world, script):
    time_s = 1.0
    for gap_s, step in script:
        time_s += gap_s
        world.at(time_s, "", lambda step=step: take_step(world, step))
    world.run(time_s + 40.0)


def check_end(world):
    for (name, handle), job in world.jobs_of.items():
        if not world.nodes[name].is_dead:
            assert (name, handle) in world.outcomes, f"job {handle} of {name} has no outcome: {job}"
    for node in world.nodes.values():
        if not node.is_dead:
            statistics = node.core.statistics()
            assert statistics.jobs_open == statistics.jobs_away == statistics.queue_length == 0
            assert statistics.jobs_running == 0
            assert statistics.reserved_bytes == 0
            assert statistics.backlog_s == pytest.approx(0.0)


scripts = st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.1, 0.7]), steps), min_size=1, max_size=25)
relaxed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@relaxed
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(2, 5),
    slots=st.integers(1, 3),
    prior_bytes=st.sampled_from([0, 65_536]),
    script=scripts,
)
def test_each_job_gets_exactly_one_outcome_whatever_happens(seed, count, slots, prior_bytes, script):
    world = World(seed, count=count, slots=slots, prior_bytes=prior_bytes, batch=4)
    play(world, script)
    check_end(world)


@settings(relaxed, max_examples=60)
@given(
    seed=st.integers(0, 2**32),
    policy=st.sampled_from(
        [*variants.names(), "probe(d=3, steal=yes)", "prequal(probes=0.5, window=yes)", "capd(hedge=0.5)"]
    ),
    script=scripts,
)
def test_every_policy_keeps_the_rules(seed, policy, script):
    world = World(seed, count=4, policy=policy)
    play(world, script)
    check_end(world)


@settings(relaxed, max_examples=15)
@given(seed=st.integers(0, 2**32), script=scripts)
def test_jobs_without_deadlines_end_too(seed, script):
    world = World(seed, count=4, expire=False)
    play(world, script)
    check_end(world)


@pytest.mark.parametrize("seed", range(6))
def test_a_busy_world_survives_a_storm(seed):
    """Sixty bursts, freezes, deaths and drains of one seed: long enough for every path to be taken."""
    rng = random.Random(f"{seed}/storm")
    world = World(seed, count=5, slots=1 + seed % 2, batch=4)
    script = []
    for _ in range(60):
        name, other = rng.choice(NAMES), rng.choice(NAMES)
        step = rng.choice(
            [
                ("burst", name, rng.randint(5, 20), rng.choice([0.5, 2.0, 6.0]), rng.random() < 0.5),
                ("burst", "n0", rng.randint(5, 40), 6.0, True),
                ("freeze", name, rng.choice([0.3, 1.0, 3.0])),
                ("losses", 3),
                ("crashes", 2),
                ("cancel", rng.randrange(1000)),
                ("suspect", name, other),
                ("submit", name, 2.0, 1_000_000, 0, rng.randint(0, 5), True),
            ]
        )
        script.append((rng.choice([0.0, 0.1, 0.5]), step))
    script[40] = (0.0, ("kill", "n4"))
    script[50] = (0.0, ("drain", "n3"))
    play(world, script)
    check_end(world)
    totals = Counter()
    for node in world.nodes.values():
        for name in ("jobs_offloaded", "replies", "retries", "late_answers"):
            totals[name] += getattr(node.core.statistics(), name)
    assert totals["jobs_offloaded"] > 0
    assert totals["replies"] > 0
