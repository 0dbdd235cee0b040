"""How each node stands, and how words about it change that. The table behind transport.liveness; pure.

Owns members, suspicion and its end. Knows nothing of probes: the detector tells it what they proved.
"""

import math
from typing import Final

from transport.liveness_events import Action, Changed, LivenessConfig, PublishHealth, Status
from transport.wire import HealthNotice

NEVER: Final = math.inf


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


class Member:
    """What is held about one node."""

    __slots__ = (
        "accusers",
        "broken",
        "detour",
        "epoch",
        "heard_s",
        "held_until_s",
        "hold_s",
        "incarnation",
        "since_s",
        "status",
        "told",
    )

    def __init__(self, epoch: int, now_s: float) -> None:
        self.status = Status.ALIVE
        self.epoch = epoch
        self.incarnation = 0
        self.since_s = now_s
        """When the status was taken."""
        self.heard_s = -NEVER
        """Last direct proof of life."""
        self.detour = False
        """Helpers reach it and we do not: a broken connection of ours says nothing then."""
        self.hold_s = 0.0
        self.held_until_s = -NEVER
        """Until then our own failed probes say nothing: it refuted them by gossip."""
        self.accusers: set[str] = set()
        self.broken = False
        self.told = False
        """Whether we published our suspicion."""


class Standings:
    """What one node holds of all others.

    Parameters
    ----------
    node : str
        PeerID of this node, which has no standing here.
    """

    def __init__(self, node: str, config: LivenessConfig) -> None:
        self._node = node
        self._config = config
        self._now_s = -NEVER
        self._actions: list[Action] = []
        self.members: Final[dict[str, Member]] = {}
        self.ends: Final[dict[str, float]] = {}
        """When suspects die and the dead are forgotten."""
        self.notices_ignored = 0

    def begin(self, now_s: float, actions: list[Action]) -> None:
        """Take the time of an event, and the list that gets what is to be done."""
        self._now_s = now_s
        self._actions = actions

    def status(self, node: str) -> Status | None:
        """Return the standing of a node; None for an unknown one."""
        member = self.members.get(node)
        return None if member is None else member.status

    def epoch(self, node: str) -> int:
        """Return the boot epoch of a node as last heard; 0 for an unknown one."""
        member = self.members.get(node)
        return 0 if member is None else member.epoch

    def alive_since_s(self, node: str) -> float:
        """Return since when a node has been alive without a break; infinity for one that is not."""
        member = self.members.get(node)
        return NEVER if member is None or member.status is not Status.ALIVE else member.since_s

    def next_end_s(self) -> float:
        """Return when the next suspicion or remembrance ends."""
        return min(self.ends.values(), default=NEVER)

    def postpone(self, late_s: float) -> None:
        """Move all ends by time in which this process did not run."""
        for node in self.ends:
            self.ends[node] += late_s

    def learn(self, node: str, epoch: int) -> Member | None:
        """Return the member, made if it is new; None when there is no room."""
        member = self.members.get(node)
        if member is not None or node == self._node:
            return member
        if len(self.members) >= self._config.members_max:
            gone = [n for n, m in self.members.items() if m.status in (Status.DEAD, Status.LEFT)]
            if not gone:
                return None
            self._forget(min(gone, key=lambda n: (self.members[n].since_s, n)))
        self.members[node] = member = Member(epoch, self._now_s)
        self._actions.append(Changed(node=node, status=Status.ALIVE, epoch=epoch, reason="joined"))
        return member

    def _forget(self, node: str) -> None:
        del self.members[node]
        self.ends.pop(node, None)

    def _turn(self, node: str, member: Member, status: Status, reason: str) -> None:
        member.status = status
        member.since_s = self._now_s
        self.ends.pop(node, None)
        if status in (Status.DEAD, Status.LEFT):
            self.ends[node] = self._now_s + self._config.dead_ttl_s
        if status is not Status.SUSPECT:
            member.accusers.clear()
            member.broken = member.told = False
        self._actions.append(Changed(node=node, status=status, epoch=member.epoch, reason=reason))

    def renew(self, node: str, member: Member, epoch: int) -> None:
        """Take note of a higher epoch: whatever was said of the life before is void."""
        if epoch <= member.epoch:
            return
        known = member.epoch > 0
        member.epoch, member.incarnation = epoch, 0
        if known or member.status is not Status.ALIVE:
            self._turn(node, member, Status.ALIVE, "restarted")

    def heard(self, node: str, *, detour: bool) -> None:
        """Take note of a proof of life: from the node itself, or (detour) through a helper."""
        member = self.learn(node, 0)
        if member is None or member.status is Status.LEFT:
            return
        member.heard_s = self._now_s
        member.hold_s, member.held_until_s = 0.0, -NEVER
        member.detour = detour
        if member.status is Status.DEAD:
            # The others hold it dead as well: remind it, so that it refutes.
            self.publish(node, Status.SUSPECT, "answered although called dead")
        if member.status is not Status.ALIVE:
            self._turn(node, member, Status.ALIVE, "answered a helper" if detour else "answered")

    def suspect(self, node: str, member: Member, accuser: str, reason: str, *, broken: bool = False) -> None:
        """Count an accuser, this node or another; broken says that the node's process is gone."""
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
        self.ends[node] = min(self.ends.get(node, NEVER), member.since_s + duration_s)

    def _nodes(self) -> int:
        return 1 + sum(m.status in (Status.ALIVE, Status.SUSPECT) for m in self.members.values())

    def end(self, node: str) -> None:
        """Call a suspect dead, or forget one that was dead or gone long enough."""
        member = self.members[node]
        if member.status is not Status.SUSPECT:
            self._forget(node)
            return
        tell = member.told
        self._turn(node, member, Status.DEAD, "suspicion time over")
        if tell:
            self.publish(node, Status.DEAD, "suspicion time over")

    def take_own_word(self, notice: HealthNotice, status: Status) -> None:
        """Take a node's alive or left."""
        member = self.learn(notice.subject, notice.epoch)
        if member is None:
            return
        self.renew(notice.subject, member, notice.epoch)
        said = (notice.epoch, notice.incarnation)
        held = (member.epoch, member.incarnation)
        if said < held or (said == held and status is Status.ALIVE):
            return
        member.incarnation = notice.incarnation
        if self._node in member.accusers:
            member.hold_s = min(max(2 * member.hold_s, self._config.hold_s), self._config.hold_max_s)
            member.held_until_s = self._now_s + member.hold_s
        if member.status is not status:
            self._turn(notice.subject, member, status, "said so")

    def take_accusation(self, origin: str, notice: HealthNotice, status: Status) -> bool:
        """Take another node's suspect or dead; True when the subject is better probed than believed dead."""
        member = self.members.get(notice.subject)
        if member is None or (notice.epoch, notice.incarnation) < (member.epoch, member.incarnation):
            self.notices_ignored += 1
            return False
        if member.status is Status.ALIVE and self._now_s - member.heard_s < self._config.fresh_s:
            return True
        suspect_s = self._now_s - member.since_s
        if status is Status.DEAD and member.status is Status.SUSPECT and suspect_s >= self._config.refutable_s:
            self._turn(notice.subject, member, Status.DEAD, "others say so")
        else:
            self.suspect(notice.subject, member, origin, "others say so")
        return False

    def publish(self, subject: str, status: Status, reason: str) -> None:
        """Gossip a word about a node, as it is known here."""
        member = self.members[subject]
        notice = HealthNotice(subject=subject, epoch=member.epoch, incarnation=member.incarnation, status=status.value)
        self._actions.append(PublishHealth(notice=notice, reason=reason))
