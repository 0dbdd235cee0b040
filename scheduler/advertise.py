"""The own state record: how it is made, and when it is gossiped.

Every answer carries a fresh record; gossip is for those who get no answers. All gossiped records of a node, periodic
or on change, share one token bucket of `heard_hz / N` per second, N being the nodes known, so that a node hears the
same number of records per second in a grid of any size.
"""

from scheduler.actions import Advertise
from scheduler.estimate import TokenBucket
from scheduler.ledger import Ledger
from scheduler.timers import Alarm
from scheduler.types import PeerState
from scheduler.workbench import Workbench


class Advertiser:
    """Makes and sends state records.

    Parameters
    ----------
    ledger : Ledger
        Shared state; actions go there.
    workbench : Workbench
        What the record tells of.
    epoch : int
        Boot counter of this node.
    """

    def __init__(self, ledger: Ledger, workbench: Workbench, *, epoch: int) -> None:
        self._ledger = ledger
        self._workbench = workbench
        self._config = ledger.config.advert
        self._slots = ledger.config.queue.slots
        self.epoch = epoch
        self._sequence = 0
        self._bucket = TokenBucket(self._config.burst, ledger.now_s)
        self.token_at_s = ledger.now_s
        """When the next record may be sent."""
        self._told_backlog_s = 0.0
        self._told_idle = True
        self.alarm = Alarm("advertise")
        # The first period is drawn whole: nodes switched on together must not stay in step.
        ledger.timers.set(self.alarm, ledger.now_s + ledger.rng.uniform(0.0, self._config.period_s))

    def state(self) -> PeerState:
        """Make a record of now."""
        ledger, workbench = self._ledger, self._workbench
        self._sequence += 1
        free_s, backlog_s = workbench.load_s()
        return PeerState(
            node_id=ledger.node_id,
            epoch=self.epoch,
            sequence=self._sequence,
            backlog_s=backlog_s,
            slots=self._slots,
            running_until_s=free_s,
            slow_down=workbench.slow_down,
            warm=workbench.models.warm_bits,
            memory_free_bytes=workbench.memory_free_bytes,
            draining=ledger.is_draining,
            power_class=workbench.power_class,
            table_digest=workbench.models.table_digest,
        )

    def outrun(self, state: PeerState) -> None:
        """Jump above a record of this very node that an earlier life of it made."""
        if state.epoch > self.epoch:
            self.epoch = state.epoch + 1
            self._sequence = 0
        elif state.epoch == self.epoch and state.sequence > self._sequence:
            self._sequence = state.sequence

    def fire(self) -> None:
        """Send the periodic record, or wait for a token."""
        if not self._gossip("period"):
            self._ledger.timers.set(self.alarm, self.token_at_s)

    def tell_change(self) -> None:
        """Send a record when the load has changed much since the last one; called when there is a token."""
        is_idle = self._workbench.is_idle
        if is_idle != self._told_idle:
            self._gossip("idle" if is_idle else "busy")
            return
        if is_idle:
            return
        backlog_s = self._workbench.backlog_s()
        change_s = abs(backlog_s - self._told_backlog_s)
        if change_s > self._config.change_s and change_s > self._config.change_share * self._told_backlog_s:
            self._gossip("backlog changed")

    def tell_now(self, reason: str) -> None:
        """Send a record whatever the budget says: drains and new models are rare and others wait for them."""
        self._send(reason)

    def _gossip(self, reason: str) -> bool:
        ledger = self._ledger
        rate_hz = self._config.heard_hz / (len(ledger.view.listed) + 1)
        self._bucket.accrue(rate_hz, ledger.now_s)
        is_sent = self._bucket.take()
        if is_sent:
            self._send(reason)
        lack = 1.0 - self._bucket.tokens
        # A little late rather than early: rounding must not wake us before the token is there.
        self.token_at_s = ledger.now_s + max(0.0, lack / rate_hz) * (1.0 + 1e-9)
        return is_sent

    def _send(self, reason: str) -> None:
        ledger, config = self._ledger, self._config
        state = self.state()
        self._told_backlog_s = state.backlog_s
        self._told_idle = self._workbench.is_idle
        ledger.counters["adverts_sent"] += 1
        ledger.actions.append(Advertise(state=state, reason=reason))
        period_s = config.period_s * ledger.rng.uniform(1.0 - config.jitter, 1.0 + config.jitter)
        ledger.timers.set(self.alarm, ledger.now_s + period_s)
