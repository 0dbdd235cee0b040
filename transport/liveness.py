"""Who is alive: a failure detector of constant cost per node. Pure.

The model is SWIM (Das, Gupta, Motivala, DSN 2002) with the local health awareness of Lifeguard (Dadgar, Phillips,
Currey, 2018). It knows no socket and no clock: events with a time go in, actions come out. The daemon carries pings
over the data plane, where an answer also proves that work can be sent, and words about others over gossip.

How a node's standing changes::

    alive --silent to us and to our helpers, or the connection broke, or others say so--> suspect
    suspect --answered us or a helper, or said alive with a higher incarnation--> alive
    suspect --suspicion time over, or others say dead--> dead    (remembered, so that no late word revives it)
    alive, suspect --said left--> left
    dead, left --higher epoch or incarnation; dead also: answered us--> alive

Four rules keep a sick node from accusing healthy ones. A suspicion is published only when a helper confirms it: a
node that nobody answers is probably itself the one cut off. Time during which this process did not run is nobody's
silence: all timers move by it. Each failure that looks like our own fault stretches our timeouts. And a word about
somebody is never taken to be newer than what the subject has said itself, so that numbers of a liar cannot outrun
refutation.

Probes go to the peers we are connected to in turn, and now and then to a node we are not connected to, so that the
far side of a partition is noticed even where no connection crossed it.
"""

import random

from transport.beats import next_beat_s
from transport.liveness_events import (
    Action,
    Event,
    LeaveRequested,
    LivenessConfig,
    LivenessStatistics,
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
from transport.standing import NEVER, Standings
from transport.wire import HealthNotice


class _Probe:
    """One probe under way."""

    __slots__ = ("asked", "broken", "direct_s", "refused", "target", "waiting", "window_s")

    def __init__(self, target: str, direct_s: float, window_s: float) -> None:
        self.target = target
        self.direct_s = direct_s
        """When helpers are asked; never once they were."""
        self.window_s = window_s
        """When the probe has failed."""
        self.asked = 0
        self.waiting: set[str] = set()
        self.refused = 0
        """Helpers that answered that they do not reach it either."""
        self.broken = False


class Liveness:
    """Failure detector of one node.

    Parameters
    ----------
    node : str
        PeerID of this node.
    epoch : int
        Boot counter of this node.
    rng : random.Random
        Source of the probe order and the choice of helpers.
    """

    def __init__(self, node: str, epoch: int, rng: random.Random, config: LivenessConfig | None = None) -> None:
        self._node = node
        self._epoch = epoch
        self._rng = rng
        self._config = config or LivenessConfig()
        self._now_s = -NEVER
        self._actions: list[Action] = []
        self._standings = Standings(node, self._config)
        self._candidates: list[str] = []
        self._rotation: list[str] = []
        self._spoke: dict[str, float] = {}
        """When a candidate last spoke to us."""
        self._passed: set[str] = set()
        """Candidates whose last turn has passed without a probe."""
        self._probes: dict[int, _Probe] = {}
        self._targets: dict[str, int] = {}
        self._next_probe_s = NEVER
        self._next_stranger_s = -NEVER
        self._next_return_s = -NEVER
        self._next_alive_s = -NEVER
        self._alive_owed = False
        self._leaving = False
        self._incarnation = 0
        self._said = 0
        """Incarnation the others were told; one not told yet refutes all accusations so far."""
        self._awareness = 0
        self._probes_started = 0
        self._probes_failed = 0
        self._stalls = 0

    # ------------------------------------------------------------ interface

    def handle(self, event: Event, *, now_s: float) -> list[Action]:
        """Take an event and return what is to be done, in order.

        Parameters
        ----------
        now_s : float
            Local monotonic time in seconds; must not go back.
        """
        assert now_s >= self._now_s, f"time went back from {self._now_s} to {now_s}"
        self._now_s = now_s
        self._actions = []
        self._standings.begin(now_s, self._actions)
        self._forgive_stall()
        match event:
            case PeersChanged():
                self._on_peers_changed(event)
            case PeerSeen():
                self._on_peer_seen(event)
            case PeerSpoke():
                if event.node in self._candidates:
                    self._spoke[event.node] = now_s
            case PeerDoubted():
                self._probe(event.node)
            case ProbeAnswered():
                self._on_answered(event)
            case ProbeBroken():
                self._on_broken(event)
            case NoticeReceived():
                self._on_notice(event.origin, event.notice)
            case LeaveRequested():
                self._leaving = True
                self._publish_own(Status.LEFT, "leaving")
            case TimerFired():
                pass
        self._run_timers()
        return self._actions

    def next_deadline_s(self) -> float:
        """Return when a TimerFired is due; infinity while there is nothing to wait for."""
        due_s = min(self._next_probe_s, self._next_alive_s if self._alive_owed else NEVER, self._standings.next_end_s())
        for probe in self._probes.values():
            due_s = min(due_s, probe.direct_s, probe.window_s)
        return due_s

    def status(self, node: str) -> Status | None:
        """Return the standing of a node; None for an unknown one."""
        return self._standings.status(node)

    def epoch(self, node: str) -> int:
        """Return a node's boot epoch as last heard; 0 for an unknown one."""
        return self._standings.epoch(node)

    def alive_since_s(self, node: str) -> float:
        """Return since when a node has been alive without a break, in seconds; infinity for one that is not."""
        return self._standings.alive_since_s(node)

    def statistics(self) -> LivenessStatistics:
        """Return counters and the present standing."""
        standing = [member.status for member in self._standings.members.values()]
        return LivenessStatistics(
            alive=standing.count(Status.ALIVE),
            suspect=standing.count(Status.SUSPECT),
            dead=standing.count(Status.DEAD),
            awareness=self._awareness,
            incarnation=self._incarnation,
            probes=self._probes_started,
            probes_failed=self._probes_failed,
            stalls=self._stalls,
            refutations=self._incarnation,
            notices_ignored=self._standings.notices_ignored,
        )

    # ------------------------------------------------------------ time

    def _forgive_stall(self) -> None:
        late_s = self._now_s - self.next_deadline_s()
        if late_s < self._config.stall_s:
            return
        self._stalls += 1
        self._feel(1)
        self._next_probe_s += late_s
        for probe in self._probes.values():
            probe.direct_s += late_s
            probe.window_s += late_s
        self._standings.postpone(late_s)

    def _run_timers(self) -> None:
        for key, probe in list(self._probes.items()):
            if probe.direct_s <= self._now_s:
                self._ask_helpers(key, probe)
            if probe.window_s <= self._now_s:
                self._fail(key, probe)
        for node, end_s in list(self._standings.ends.items()):
            if end_s <= self._now_s:
                self._standings.end(node)
        if self._alive_owed and self._next_alive_s <= self._now_s:
            self._say_alive()
        if self._next_probe_s <= self._now_s:
            self._probe_some()

    def _feel(self, delta: int) -> None:
        self._awareness = max(0, min(self._config.awareness_max, self._awareness + delta))

    def _stretch(self) -> float:
        return 1.0 + self._awareness

    # ------------------------------------------------------------ probes

    def _on_peers_changed(self, event: PeersChanged) -> None:
        before = self._candidates
        self._candidates = sorted(set(event.nodes) - {self._node})[: self._config.members_max]
        for node in self._candidates:
            self._standings.learn(node, 0)
            if node not in before:
                self._rotation.insert(self._rng.randint(0, len(self._rotation)), node)
        self._spoke = {node: at_s for node, at_s in self._spoke.items() if node in self._candidates}
        self._passed.intersection_update(self._candidates)
        for node in before:
            # A peer whose connections are all gone has died as often as it was let go.
            if node not in self._candidates and self.status(node) is Status.ALIVE:
                self._probe(node)
        if not self._candidates:
            self._next_probe_s = NEVER
        elif self._next_probe_s == NEVER:
            self._next_probe_s = next_beat_s(self._now_s, self._config.period_s)

    def _probe_some(self) -> None:
        """Give the next ones of the rotation their turns."""
        self._next_probe_s = next_beat_s(self._now_s, self._config.period_s * self._stretch())
        for _ in range(min(self._config.probes_per_period, len(self._candidates))):
            self._probe_next()

    def _probe_next(self) -> None:
        """Probe the next of the rotation; each peer has its turn before any has a second (SWIM, section 4.3)."""
        if self._next_stranger_s <= self._now_s and self._probe_stranger():
            return
        for _ in range(2):
            while self._rotation:
                node = self._rotation.pop()
                member = self._standings.members.get(node)
                doubted = member is not None and self._node in member.accusers
                left = member is not None and member.status is Status.LEFT
                if node not in self._targets and not left and (doubted or node in self._candidates):
                    if doubted or not self._may_pass(node):
                        self._probe(node)
                    return
            doubts = {node for node, member in self._standings.members.items() if self._node in member.accusers}
            nodes = sorted(doubts.union(self._candidates))
            self._rotation = self._rng.sample(nodes, len(nodes))

    def _may_pass(self, node: str) -> bool:
        """Say whether a turn may pass: one of two, for a peer that answers us and whose own probes come."""
        member = self._standings.members.get(node)
        is_quiet = self._now_s - self._spoke.get(node, -NEVER) >= self._config.spoke_s
        if is_quiet or node in self._passed or member is None or member.detour or member.heard_s == -NEVER:
            self._passed.discard(node)
            return False
        self._passed.add(node)
        return member.status is Status.ALIVE

    def _probe_stranger(self) -> bool:
        self._next_stranger_s = self._now_s + self._config.stranger_s
        known = sorted(
            n for n, m in self._standings.members.items() if m.status is Status.ALIVE and n not in self._targets
        )
        strangers = [node for node in known if node not in self._candidates]
        if strangers:
            self._probe(self._rng.choice(strangers))
        return bool(strangers)

    def _probe(self, node: str) -> None:
        if node in self._targets or node == self._node:
            return
        self._probes_started += 1
        key = self._probes_started
        stretch = self._stretch()
        self._probes[key] = _Probe(
            node, self._now_s + self._config.direct_s * stretch, self._now_s + self._config.window_s * stretch
        )
        self._targets[node] = key
        self._actions.append(SendPing(probe=key, target=node, via=None, timeout_s=self._config.window_s * stretch))

    def _ask_helpers(self, key: int, probe: _Probe) -> None:
        probe.direct_s = NEVER
        able = [n for n in self._candidates if n != probe.target and self.status(n) is Status.ALIVE]
        for helper in self._rng.sample(able, min(self._config.helpers, len(able))):
            probe.waiting.add(helper)
            left_s = probe.window_s - self._now_s
            self._actions.append(SendPing(probe=key, target=probe.target, via=helper, timeout_s=left_s))
        probe.asked = len(probe.waiting)

    def _on_answered(self, event: ProbeAnswered) -> None:
        probe = self._probes.get(event.probe)
        if event.reached:
            if probe is not None:
                self._drop(event.probe, probe)
                self._feel(-1)
            self._standings.heard(event.target, detour=event.via is not None)
        elif probe is not None and event.via in probe.waiting:
            probe.waiting.discard(event.via)
            probe.refused += 1
            self._conclude_early(event.probe, probe)

    def _on_broken(self, event: ProbeBroken) -> None:
        probe = self._probes.get(event.probe)
        if probe is None:
            return
        member = self._standings.members.get(probe.target)
        if event.via is not None:
            probe.waiting.discard(event.via)
        elif member is None or member.heard_s == -NEVER:
            return  # an address that never worked, or is not known yet, proves no more than silence
        elif not probe.broken:
            probe.broken = True
            if probe.direct_s != NEVER:
                self._ask_helpers(event.probe, probe)
            if not member.detour and self._now_s >= member.held_until_s:
                self._standings.suspect(probe.target, member, self._node, "connection broke", broken=True)
        self._conclude_early(event.probe, probe)

    def _conclude_early(self, key: int, probe: _Probe) -> None:
        # A silent peer may still answer until the window ends; behind a broken connection nobody will.
        if probe.broken and not probe.waiting:
            self._fail(key, probe)

    def _fail(self, key: int, probe: _Probe) -> None:
        self._drop(key, probe)
        self._probes_failed += 1
        silent = probe.asked - probe.refused
        self._feel(silent if probe.asked else 1)
        member = self._standings.members.get(probe.target)
        if member is None or member.status in (Status.DEAD, Status.LEFT) or self._now_s < member.held_until_s:
            return
        reason = "connection broke" if probe.broken else "silent"
        self._standings.suspect(probe.target, member, self._node, reason, broken=probe.broken)
        if probe.refused and not member.told and len(member.accusers) <= self._config.confirmations:
            member.told = True
            self._standings.publish(probe.target, Status.SUSPECT, reason)

    def _drop(self, key: int, probe: _Probe) -> None:
        del self._probes[key]
        del self._targets[probe.target]

    # ------------------------------------------------------------ news

    def _on_peer_seen(self, event: PeerSeen) -> None:
        member = self._standings.learn(event.node, event.epoch)
        if member is None or event.epoch < member.epoch:
            return
        self._standings.renew(event.node, member, event.epoch)
        if event.direct:
            self._standings.heard(event.node, detour=False)
        lingered = member.status is Status.DEAD and self._now_s - member.since_s >= self._config.linger_s
        if lingered and self._next_return_s <= self._now_s:
            self._next_return_s = self._now_s + self._config.return_s
            self._probe(event.node)

    # ------------------------------------------------------------ words of others

    def _on_notice(self, origin: str, notice: HealthNotice) -> None:
        status = Status(notice.status)
        own_word = status in (Status.ALIVE, Status.LEFT)
        if own_word != (origin == notice.subject) or origin == self._node:
            self._standings.notices_ignored += 1
        elif notice.subject == self._node:
            self._on_accused(notice)
        elif own_word:
            self._standings.take_own_word(notice, status)
        elif self._standings.take_accusation(origin, notice, status):
            self._probe(notice.subject)

    def _on_accused(self, notice: HealthNotice) -> None:
        if self._leaving or notice.epoch > self._epoch:
            self._standings.notices_ignored += 1
            return
        if notice.epoch == self._epoch and notice.incarnation >= self._incarnation == self._said:
            self._incarnation += 1
            self._feel(1)
        self._alive_owed = True

    def _say_alive(self) -> None:
        self._alive_owed = False
        self._said = self._incarnation
        self._next_alive_s = self._now_s + self._config.refute_interval_s
        self._publish_own(Status.ALIVE, "was suspected")

    def _publish_own(self, status: Status, reason: str) -> None:
        notice = HealthNotice(subject=self._node, epoch=self._epoch, incarnation=self._incarnation, status=status.value)
        self._actions.append(PublishHealth(notice=notice, reason=reason))
