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

Four rules keep a sick node from accusing healthy ones. A probe that others could confirm needs one helper's answer
before the suspicion is published: a node that nobody answers is probably itself the one cut off. Time during which
this process did not run is nobody's silence: all timers move by it. Each failure that looks like our own fault
stretches our timeouts. And a word about somebody is never taken to be newer than what the subject has said itself,
so that numbers of a liar cannot outrun refutation.
"""

import math
import random
from typing import Final

from transport.liveness_events import (
    Action,
    Changed,
    Event,
    LeaveRequested,
    LivenessConfig,
    LivenessStatistics,
    NoticeReceived,
    PeerDoubted,
    PeersChanged,
    PeerSeen,
    ProbeAnswered,
    ProbeBroken,
    PublishHealth,
    SendPing,
    Status,
    TimerFired,
)
from transport.wire import HealthNotice

_NEVER: Final = math.inf


def suspicion_time_s(config: LivenessConfig, *, nodes: int, confirmations: int) -> float:
    """Return how long a silent node stays suspect before it is dead.

    Parameters
    ----------
    nodes : int
        Nodes in the grid, this one included, >= 1.
    confirmations : int
        Other nodes that suspect it too, >= 0.

    Notes
    -----
    Lifeguard's decay, max - (max - min) * log(c + 1) / log(k + 1). Where a grid is too small for k confirmations
    the number it can have stands for k, and where it can have none the shortest time holds.

    Examples
    --------
    >>> [round(suspicion_time_s(LivenessConfig(), nodes=50, confirmations=c), 2) for c in range(4)]
    [8.49, 6.37, 5.13, 4.25]
    """
    shortest_s = min(config.suspicion_s * max(1.0, math.log10(nodes)), config.suspicion_max_s)
    longest_s = min(shortest_s * config.suspicion_factor, config.suspicion_max_s)
    expected = min(config.confirmations, nodes - 2)
    if expected < 1:
        return shortest_s
    progress = math.log(min(confirmations, expected) + 1) / math.log(expected + 1)
    return longest_s - (longest_s - shortest_s) * progress


class _Member:
    """What is held about one node."""

    __slots__ = ("accusers", "broken", "detour", "epoch", "heard_s", "incarnation", "since_s", "status", "told")

    def __init__(self, epoch: int, now_s: float) -> None:
        self.status = Status.ALIVE
        self.epoch = epoch
        self.incarnation = 0
        self.since_s = now_s
        """When the status was taken."""
        self.heard_s = -_NEVER
        """Last direct proof of life."""
        self.detour = False
        """Helpers reach it and we do not: a broken connection of ours says nothing then."""
        self.accusers: set[str] = set()
        self.broken = False
        self.told = False
        """Whether we published our suspicion."""


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
        self._now_s = -_NEVER
        self._actions: list[Action] = []
        self._members: dict[str, _Member] = {}
        self._candidates: list[str] = []
        self._rotation: list[str] = []
        self._probes: dict[int, _Probe] = {}
        self._targets: dict[str, int] = {}
        self._ends: dict[str, float] = {}
        """When suspects die and the dead are forgotten."""
        self._next_probe_s = _NEVER
        self._next_alive_s = -_NEVER
        self._alive_owed = False
        self._leaving = False
        self._incarnation = 0
        self._said = 0
        """Incarnation the others were told; one not told yet refutes all accusations so far."""
        self._awareness = 0
        self._probes_started = 0
        self._probes_failed = 0
        self._stalls = 0
        self._notices_ignored = 0

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
        self._forgive_stall()
        match event:
            case PeersChanged():
                self._on_peers_changed(event)
            case PeerSeen():
                self._on_peer_seen(event)
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
                self._publish(self._node, Status.LEFT, "leaving")
            case TimerFired():
                pass
        self._run_timers()
        return self._actions

    def next_deadline_s(self) -> float:
        """Return when a TimerFired is due; infinity while there is nothing to wait for."""
        due_s = min(self._next_probe_s, self._next_alive_s if self._alive_owed else _NEVER)
        for probe in self._probes.values():
            due_s = min(due_s, probe.direct_s, probe.window_s)
        return min(due_s, min(self._ends.values(), default=_NEVER))

    def status(self, node: str) -> Status | None:
        """Return the standing of a node; None for an unknown one."""
        member = self._members.get(node)
        return None if member is None else member.status

    def statistics(self) -> LivenessStatistics:
        """Return counters and the present standing."""
        standing = [member.status for member in self._members.values()]
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
            notices_ignored=self._notices_ignored,
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
        for node in self._ends:
            self._ends[node] += late_s

    def _run_timers(self) -> None:
        for key, probe in list(self._probes.items()):
            if probe.direct_s <= self._now_s:
                self._ask_helpers(key, probe)
            if probe.window_s <= self._now_s:
                self._fail(key, probe)
        for node, end_s in list(self._ends.items()):
            if end_s <= self._now_s:
                self._end(node)
        if self._alive_owed and self._next_alive_s <= self._now_s:
            self._say_alive()
        if self._next_probe_s <= self._now_s:
            self._probe_next()

    def _feel(self, delta: int) -> None:
        self._awareness = max(0, min(self._config.awareness_max, self._awareness + delta))

    def _stretch(self) -> float:
        return 1.0 + self._awareness

    # ------------------------------------------------------------ probes

    def _on_peers_changed(self, event: PeersChanged) -> None:
        before = self._candidates
        self._candidates = sorted(set(event.nodes) - {self._node})[: self._config.members_max]
        for node in self._candidates:
            self._learn(node, 0)
            if node not in before:
                self._rotation.insert(self._rng.randint(0, len(self._rotation)), node)
        for node in before:
            # A peer whose connections are all gone has died as often as it was let go.
            if node not in self._candidates and self.status(node) is Status.ALIVE:
                self._probe(node)
        if not self._candidates:
            self._next_probe_s = _NEVER
        elif self._next_probe_s == _NEVER:
            self._next_probe_s = self._now_s + self._rng.random() * self._interval_s()

    def _interval_s(self) -> float:
        probes = min(self._config.probes_per_period, max(1, len(self._candidates)))
        return self._config.period_s * self._stretch() / probes

    def _probe_next(self) -> None:
        """Probe the next of the rotation; each peer has its turn before any has a second (SWIM, section 4.3)."""
        self._next_probe_s = self._now_s + self._interval_s()
        for _ in range(2):
            while self._rotation:
                node = self._rotation.pop()
                member = self._members.get(node)
                doubted = member is not None and self._node in member.accusers
                left = member is not None and member.status is Status.LEFT
                if node not in self._targets and not left and (doubted or node in self._candidates):
                    self._probe(node)
                    return
            doubts = {node for node, member in self._members.items() if self._node in member.accusers}
            nodes = sorted(doubts.union(self._candidates))
            self._rotation = self._rng.sample(nodes, len(nodes))

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
        probe.direct_s = _NEVER
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
            self._heard(event.target, detour=event.via is not None)
        elif probe is not None and event.via in probe.waiting:
            probe.waiting.discard(event.via)
            probe.refused += 1
            self._conclude_early(event.probe, probe)

    def _on_broken(self, event: ProbeBroken) -> None:
        probe = self._probes.get(event.probe)
        if probe is None:
            return
        member = self._members.get(probe.target)
        if event.via is not None:
            probe.waiting.discard(event.via)
        elif member is None or member.heard_s == -_NEVER:
            return  # an address that never worked, or is not known yet, proves no more than silence
        elif not probe.broken:
            probe.broken = True
            if probe.direct_s != _NEVER:
                self._ask_helpers(event.probe, probe)
            if not member.detour:
                self._suspect(probe.target, member, self._node, "connection broke", broken=True)
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
        member = self._members.get(probe.target)
        if member is None or member.status in (Status.DEAD, Status.LEFT):
            return
        reason = "connection broke" if probe.broken else "silent"
        self._suspect(probe.target, member, self._node, reason, broken=probe.broken)
        if probe.refused and not member.told and len(member.accusers) <= self._config.confirmations:
            member.told = True
            self._publish(probe.target, Status.SUSPECT, reason)

    def _drop(self, key: int, probe: _Probe) -> None:
        del self._probes[key]
        del self._targets[probe.target]

    # ------------------------------------------------------------ standing

    def _learn(self, node: str, epoch: int) -> _Member | None:
        """Return the member, made if it is new; None when there is no room."""
        member = self._members.get(node)
        if member is not None or node == self._node:
            return member
        if len(self._members) >= self._config.members_max:
            gone = [n for n, m in self._members.items() if m.status in (Status.DEAD, Status.LEFT)]
            if not gone:
                return None
            self._forget(min(gone, key=lambda n: (self._members[n].since_s, n)))
        self._members[node] = member = _Member(epoch, self._now_s)
        self._actions.append(Changed(node=node, status=Status.ALIVE, epoch=epoch, reason="joined"))
        return member

    def _forget(self, node: str) -> None:
        del self._members[node]
        self._ends.pop(node, None)

    def _turn(self, node: str, member: _Member, status: Status, reason: str) -> None:
        member.status = status
        member.since_s = self._now_s
        self._ends.pop(node, None)
        if status in (Status.DEAD, Status.LEFT):
            self._ends[node] = self._now_s + self._config.dead_ttl_s
        if status is not Status.SUSPECT:
            member.accusers.clear()
            member.broken = member.told = False
        self._actions.append(Changed(node=node, status=status, epoch=member.epoch, reason=reason))

    def _on_peer_seen(self, event: PeerSeen) -> None:
        member = self._learn(event.node, event.epoch)
        if member is None or event.epoch < member.epoch:
            return
        self._renew(event.node, member, event.epoch)
        if event.direct:
            self._heard(event.node, detour=False)

    def _renew(self, node: str, member: _Member, epoch: int) -> None:
        """Take note of a higher epoch: whatever was said of the life before is void."""
        if epoch <= member.epoch:
            return
        known = member.epoch > 0
        member.epoch, member.incarnation = epoch, 0
        if known or member.status is not Status.ALIVE:
            self._turn(node, member, Status.ALIVE, "restarted")

    def _heard(self, node: str, *, detour: bool) -> None:
        member = self._learn(node, 0)
        if member is None or member.status is Status.LEFT:
            return
        member.heard_s = self._now_s
        member.detour = detour
        if member.status is Status.DEAD:
            # The others hold it dead as well: remind it, so that it refutes.
            self._publish(node, Status.SUSPECT, "answered although called dead")
        if member.status is not Status.ALIVE:
            self._turn(node, member, Status.ALIVE, "answered a helper" if detour else "answered")

    def _suspect(self, node: str, member: _Member, accuser: str, reason: str, *, broken: bool = False) -> None:
        if member.status in (Status.DEAD, Status.LEFT):
            return
        if member.status is Status.ALIVE:
            self._turn(node, member, Status.SUSPECT, reason)
        member.accusers.add(accuser)
        member.broken = member.broken or broken
        confirmations = len(member.accusers) - 1
        duration_s = suspicion_time_s(self._config, nodes=self._nodes(), confirmations=confirmations)
        if member.broken:
            duration_s = min(duration_s, self._config.broken_suspicion_s)
        # Only ever earlier: more evidence, or a grown grid, must not push the end away.
        self._ends[node] = min(self._ends.get(node, _NEVER), member.since_s + duration_s)

    def _nodes(self) -> int:
        return 1 + sum(m.status in (Status.ALIVE, Status.SUSPECT) for m in self._members.values())

    def _end(self, node: str) -> None:
        member = self._members[node]
        if member.status is not Status.SUSPECT:
            self._forget(node)
            return
        tell = member.told
        self._turn(node, member, Status.DEAD, "suspicion time over")
        if tell:
            self._publish(node, Status.DEAD, "suspicion time over")

    # ------------------------------------------------------------ words of others

    def _on_notice(self, origin: str, notice: HealthNotice) -> None:
        status = Status(notice.status)
        own_word = status in (Status.ALIVE, Status.LEFT)
        if own_word != (origin == notice.subject) or origin == self._node:
            self._notices_ignored += 1
        elif notice.subject == self._node:
            self._on_accused(notice)
        elif own_word:
            self._on_own_word(notice, status)
        else:
            self._on_accusation(origin, notice, status)

    def _on_accused(self, notice: HealthNotice) -> None:
        if self._leaving or notice.epoch > self._epoch:
            self._notices_ignored += 1
            return
        if notice.epoch == self._epoch and notice.incarnation >= self._incarnation == self._said:
            self._incarnation += 1
            self._feel(1)
        self._alive_owed = True

    def _say_alive(self) -> None:
        self._alive_owed = False
        self._said = self._incarnation
        self._next_alive_s = self._now_s + self._config.refute_interval_s
        self._publish(self._node, Status.ALIVE, "was suspected")

    def _on_own_word(self, notice: HealthNotice, status: Status) -> None:
        member = self._learn(notice.subject, notice.epoch)
        if member is None:
            return
        self._renew(notice.subject, member, notice.epoch)
        said = (notice.epoch, notice.incarnation)
        held = (member.epoch, member.incarnation)
        if said < held or (said == held and status is Status.ALIVE):
            return
        member.incarnation = notice.incarnation
        if member.status is not status:
            self._turn(notice.subject, member, status, "said so")

    def _on_accusation(self, origin: str, notice: HealthNotice, status: Status) -> None:
        member = self._members.get(notice.subject)
        if member is None or (notice.epoch, notice.incarnation) < (member.epoch, member.incarnation):
            self._notices_ignored += 1
            return
        if member.status is Status.ALIVE and self._now_s - member.heard_s < self._config.fresh_s:
            self._probe(notice.subject)
            return
        suspect_s = self._now_s - member.since_s
        if status is Status.DEAD and member.status is Status.SUSPECT and suspect_s >= self._config.refutable_s:
            self._turn(notice.subject, member, Status.DEAD, "others say so")
        else:
            self._suspect(notice.subject, member, origin, "others say so")

    def _publish(self, subject: str, status: Status, reason: str) -> None:
        epoch, incarnation = self._epoch, self._incarnation
        if subject != self._node:
            epoch, incarnation = self._members[subject].epoch, self._members[subject].incarnation
        notice = HealthNotice(subject=subject, epoch=epoch, incarnation=incarnation, status=status.value)
        self._actions.append(PublishHealth(notice=notice, reason=reason))
