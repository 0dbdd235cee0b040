"""A simulated node: drives one decision core and carries out what it asks for.

The twin of gridnode.driver. The core is scheduler.core.Core, the very class that the daemon drives; a standing test
holds that both drivers take the same decisions. Events reach the core one at a time, in the order in which they
happened, never from inside the carrying out of an action.
"""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import inf
from typing import Final, Protocol

from msgspec.structs import replace

from scheduler.actions import Action
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.events import AdvertReceived, Event, JobArrived, TimerFired
from scheduler.policy import Policy
from scheduler.types import Job, ModelDigest, PeerState
from simulator.config import MachineConfig
from simulator.connection import Endpoint, Opener, Pending
from simulator.engine import Clock, LocalClock, stream
from simulator.entries import Answerer, Entry
from simulator.gossip import Gossip
from simulator.hands import Hands
from simulator.inbound import Inbound
from simulator.lies import Lie
from simulator.machine import Machine
from simulator.membership import Watch
from simulator.network import Network
from simulator.specs import ModelProfile
from transport.liveness_events import LivenessConfig
from transport.wire import HealthNotice


class Cancellable(Protocol):
    """Something of ours at a peer."""

    def cancel(self) -> None:
        """Stop it."""


Observer = Callable[[str, float, Action], None]
"""Told of each action of each core before it is carried out: node, time in seconds, action."""

_TIMER_FIRED: Final = TimerFired()


class SimNode:
    """One node.

    Parameters
    ----------
    name : str
        Its id.
    network : Network
        All links.
    seed : str
        Seeds the streams of draws of its core and its machine.
    config : CoreConfig
        For its core.
    models : mapping of digest to ModelProfile
        What its machine can run.
    peers : dict of str to SimNode
        All nodes of the world by name; the node enters itself.
    loaded : frozenset of digest, optional
        Models in memory at the start; all where not given.
    epoch : int, default 1
        Boot counter.
    policy : Policy, optional
        In place of the one the configuration names.
    observer : callable, optional
        Told of each action.
    machine : MachineConfig, optional
        Memory and heat of its machine.
    watch : LivenessConfig, optional
        Of its failure detector; none where not given: then somebody has to tell who is gone.
    """

    def __init__(
        self,
        name: str,
        *,
        network: Network,
        seed: str,
        config: CoreConfig,
        models: Mapping[ModelDigest, ModelProfile],
        peers: "dict[str, SimNode]",
        loaded: frozenset[ModelDigest] | None = None,
        epoch: int = 1,
        policy: Policy | None = None,
        observer: Observer | None = None,
        machine: MachineConfig | None = None,
        watch: LivenessConfig | None = None,
    ) -> None:
        self._next_life = partial(
            SimNode,
            name,
            network=network,
            seed=seed,
            config=config,
            models=models,
            peers=peers,
            loaded=frozenset(),
            epoch=epoch + 1,
            policy=policy,
            observer=observer,
            machine=machine,
            watch=watch,
        )
        self.name = name
        self._seed = seed
        self.epoch = epoch
        self._is_started = False
        self.engine: Clock = network.engine
        """True time, or a clock of its own: see own_clock."""
        self.endpoint = Endpoint(name, network)
        self.peers = peers
        peers[name] = self
        life = name if epoch == 1 else f"{name}/{epoch}"
        rng = stream(seed, "core", life)
        self.core = Core(config, node_id=name, epoch=epoch, rng=rng, now_s=self.engine.now_s, policy=policy)
        kept = frozenset(models) if loaded is None else loaded
        self.machine = Machine(self, models, kept, rng=stream(seed, "service", life), config=machine)
        self.endpoint.burden = self.machine.burden
        self.watch: Watch | None = None
        hear = self._on_costly_advert if network.config.gossip_cpu_s else self._on_advert
        self.gossip = Gossip(self.endpoint, hear, peers, self._on_notice, epoch=epoch)
        if watch is not None:
            self.add_watch(watch)
        self.inbound = Inbound(self)
        """What peers begin with it."""
        self._hands = Hands(self)
        self.jobs: dict[int, Entry] = {}
        self.errands: dict[int, Cancellable] = {}
        """What can be cancelled at peers, by command."""
        self.commands: dict[tuple[str, bytes], int] = {}
        """(peer, key) of jobs open at peers."""
        self.waited_for: dict[str, dict[int, bytes]] = {}
        """Keys that a peer waits for here, by peer and handle, oldest first."""
        self.result_bytes = 64
        """Length of an encoded result without its payload."""
        self.heard = 0
        """State records of peers that came by gossip."""
        self.is_alive = True
        self.is_drained = False
        self.lie: Lie | None = None
        """What it tells in place of the truth."""
        self._observer = observer
        self._inbox: deque[tuple[Event, object]] = deque()
        self._is_feeding = False
        self._is_frozen = False
        self._ring_s = inf
        self._minted = 0
        self._carry = self._hands.by_action()

    # The driver.

    def start(self) -> None:
        """Tell the core of its models; from now on it gossips."""
        self._is_started = True
        self.machine.tell_models()
        self._arm(self.core.next_deadline_s())
        if self.watch is not None:
            self.watch.start()

    def post(self, event: Event, attachment: object = None) -> None:
        """Give the core an event, behind those that wait."""
        if not self.is_alive:
            return
        if self._is_feeding:
            self._inbox.append((event, attachment))
        else:
            self._feed(event, attachment)

    def post_all(self, events: Sequence[Event]) -> None:
        """Give the core events that happened together: none is carried out before all wait."""
        if self.is_alive and events:
            self._inbox.extend([(event, None) for event in events])
            if not self._is_feeding:
                self._feed_waiting()

    def _feed_waiting(self) -> None:
        if self._inbox:
            event, attachment = self._inbox.popleft()
            self._feed(event, attachment)

    def _feed(self, event: Event, attachment: object) -> None:
        """Feed the core an event, and then the inbox until it is empty; what actions post joins its end."""
        self._is_feeding = True
        core, inbox, carry, observer = self.core, self._inbox, self._carry, self._observer
        now_s = self.engine.now_s
        while True:
            for action in core.handle(event, now_s=now_s):
                if observer is not None:
                    observer(self.name, now_s, action)
                carry[type(action)](action, attachment)
            if not inbox:
                break
            event, attachment = inbox.popleft()
        self._is_feeding = False
        due_s = self.core.next_deadline_s()
        if due_s is not None and due_s < self._ring_s:
            self._arm(due_s)

    def add_watch(self, config: LivenessConfig) -> None:
        """Have the node, and its later lives, find out who is gone; to be called before it starts."""
        assert not self._is_started, f"{self.name} runs already"
        life = self.name if self.epoch == 1 else f"{self.name}/{self.epoch}"
        self.watch = Watch(self, config, rng=stream(self._seed, "watch", life))
        self.gossip.on_state = self._on_costly_advert
        self._next_life = partial(self._next_life, watch=config)

    # Its time.

    def own_clock(self) -> LocalClock:
        """Give the node a clock of its own, which can drift and stand still; to be called before it starts."""
        if not isinstance(self.engine, LocalClock):
            assert not self._is_started, f"{self.name} runs already: what it waits for is on another clock"
            self.engine = LocalClock(self.endpoint.network.engine)
        return self.engine

    def drift(self, rate: float) -> None:
        """Have the node's clock show so many seconds per second: its periods change, its speed does not."""
        self.own_clock().set_rate(rate)
        self.machine.set_clock_rate(rate)

    def freeze(self) -> None:
        """Stand still, as a process does that was stopped; nothing passes to or from it. Needs a clock of its own."""
        if self.is_alive and not self._is_frozen:
            self._is_frozen = self._is_feeding = True
            self.own_clock().stop()
            self.endpoint.network.pause(self.name)

    def thaw(self) -> None:
        """Go on: what was due meanwhile happens now."""
        if self._is_frozen:
            self._is_frozen = self._is_feeding = False
            self.own_clock().go()
            self.endpoint.network.resume(self.name)
            self._feed_waiting()

    def _arm(self, due_s: float | None) -> None:
        """Have the timer of the core ring at its next deadline."""
        if due_s is not None:
            at_s = self._ring_s = max(due_s, self.engine.now_s)
            self.engine.at(at_s, self._ring, at_s, False)

    def _ring(self, at_s: float, is_last: bool) -> None:
        if at_s != self._ring_s or not self.is_alive:
            return  # another was set since
        now_s = self.engine.now_s
        if not is_last and self.engine.next_s() == now_s:
            # After all else that happens at this instant: an execution may end at the deadline of its job.
            self.engine.at(now_s, self._ring, at_s, True)
            return
        self._ring_s = inf
        due_s = self.core.next_deadline_s()
        if due_s is not None and due_s <= now_s:
            self.post(_TIMER_FIRED)
        if self._ring_s == inf:
            self._arm(self.core.next_deadline_s())

    # Jobs.

    def mint(self) -> int:
        """Return a new handle."""
        self._minted += 1
        return self._minted

    def submit(self, job: Job, answerer: Answerer, *, body_bytes: int = 0) -> int:
        """Take a job of an own client; returns its handle."""
        handle = self.mint()
        if isinstance(self.engine, LocalClock):
            # The client's budget, on this node's clock.
            now_s = self.engine.now_s
            budget_s = job.deadline_s - self.endpoint.network.engine.now_s
            job = replace(job, arrival_s=now_s, deadline_s=now_s + budget_s)
        self.jobs[handle] = Entry(handle, job, body_bytes=body_bytes, answerer=answerer)
        self.post(JobArrived(handle=handle, job=job, origin=None))
        return handle

    def own_state(self) -> PeerState:
        """Return what the node says of itself now."""
        state = self.core.state_record(self.engine.now_s)
        return state if self.lie is None else self.lie.told(state)

    def set_lie(self, lie: Lie | None) -> None:
        """Lie from now on, or tell the truth again."""
        self.lie = lie
        self._carry = self._hands.by_action()
        if lie is not None:
            self._carry = {kind: lie.wrap(hand) for kind, hand in self._carry.items()}

    def covered(self, peer: str, keys: tuple[bytes, ...]) -> tuple[int, ...]:
        """Return our commands behind keys that a peer says its state counts."""
        found = [self.commands.get((peer, key)) for key in keys]
        return tuple([command for command in found if command is not None])

    def lease(self, peer: str, opener: Opener) -> Pending | None:
        """Get a connection to a peer."""
        return self.endpoint.lease(self.peers[peer].endpoint, opener)

    def kill(self) -> None:
        """End as kill -9 would: nothing is said, connections break."""
        self.is_alive = False
        self.machine.stop()
        self.gossip.break_all()
        self.endpoint.break_all()
        self.endpoint.network.remove(self.name)

    def reborn(self) -> "SimNode":
        """Return the next life of a dead node, started: a higher epoch, nothing in memory.

        It takes its place among the peers, and finds the mesh where it was in it.
        """
        assert not self.is_alive, f"{self.name} lives"
        self.endpoint.network.restore(self.name)
        node = self._next_life()
        if isinstance(self.engine, LocalClock):
            node.drift(self.engine.rate)
        node.result_bytes = self.result_bytes
        for peer in self.gossip.home:
            if self.peers[peer].is_alive:
                node.gossip.connect(peer)
                self.peers[peer].gossip.connect(self.name)
        node.start()
        return node

    # Gossip.

    def _on_costly_advert(self, state: PeerState) -> None:
        """Hear a record where it costs time, or is a sign of life."""
        self.machine.burden(self.endpoint.network.config.gossip_cpu_s)
        self._on_advert(state)
        if self.watch is not None:
            self.watch.seen(state.node_id, state.epoch)

    def _on_notice(self, origin: str, notice: HealthNotice) -> None:
        self.machine.burden(self.endpoint.network.config.gossip_cpu_s)
        if self.watch is not None:
            self.watch.heard(origin, notice)

    def _on_advert(self, state: PeerState) -> None:
        self.heard += 1
        self.post(AdvertReceived(state=state))
