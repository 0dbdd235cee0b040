"""The own state record: how it is made, and when it is gossiped.

Every answer carries a fresh record; gossip is for those who get no answers. All gossiped records of a node, periodic
or on change, share one token bucket of `heard_hz / N` per second, N being the nodes known, so that a node hears the
same number of records per second in a grid of any size.

A node that starts knows nobody, and many may start with it, after a power failure all of them. So its first record
waits for a moment drawn from a short time, and where more than `start_hz` others per second were heard of until then
the node draws again, from twice the time. The moment of its second record is drawn too: all that started together
would be heard together once per period otherwise.
"""

import math
from typing import Final

from scheduler.actions import Advertise
from scheduler.estimate import TokenBucket
from scheduler.ledger import Ledger
from scheduler.timers import Alarm
from scheduler.types import PeerState
from scheduler.workbench import Workbench

_FIRST_SHARE: Final = 0.125
"""Share of a period from which a node that has models draws when it tells its first record: it wants to be known."""
_BURST_S: Final = 1.0
"""Seconds of first records that may come at once."""


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
        self.token_at_s = math.inf
        """When the next record may be sent."""
        self._told_backlog_s = 0.0
        self._told_idle = True
        self._has_told = False
        self._is_hurried = False
        self._price = 1.0
        """Tokens that the next record costs: drawn around 1, so that nodes that started together do not stay so."""
        # The first period is drawn whole: nodes switched on together must not stay in step.
        self._spread_s = self._config.period_s
        """Time from which the moment of the first record was drawn."""
        self._started_s = ledger.now_s
        self.alarm = Alarm("advertise")
        self._draw_first()

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
        """Send the periodic record, or wait for a token; the first one may have to wait for others."""
        ledger = self._ledger
        if not self._has_told:
            if self._is_too_soon():
                self._spread_s *= 2.0
                self._draw_first()
            else:
                self._begin()
        elif not self._gossip("period"):
            ledger.timers.set(self.alarm, self.token_at_s)

    def _is_too_soon(self) -> bool:
        """Return whether too many others were heard of in the time since the start."""
        ledger = self._ledger
        return ledger.view.met > self._config.start_hz * (ledger.now_s - self._started_s + _BURST_S)

    def _draw_first(self) -> None:
        ledger = self._ledger
        ledger.timers.set(self.alarm, ledger.now_s + ledger.rng.uniform(0.0, self._spread_s))

    def _begin(self) -> None:
        """Tell the first record; the moment of the second is drawn from all the time it has, and the burst is spent."""
        ledger = self._ledger
        self._has_told = True
        self._bucket.accrue(0.0, ledger.now_s)
        self._bucket.tokens = 0.0
        self._draw_price(1.0)
        self._send("started")
        self._set_token_time()

    def tell_change(self) -> None:
        """Send a record when the load has changed much since the last one; called when there is a token."""
        if not self._config.on_change:
            return
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
        """Send a record whatever the budget says: drains and new models are rare and others wait for them.

        A node that has not told anything yet does so soon.
        """
        if self._has_told or self._ledger.is_draining:
            self._send(reason)
        elif not self._is_hurried:
            self._is_hurried = True
            self._spread_s *= _FIRST_SHARE
            self._draw_first()

    def _gossip(self, reason: str) -> bool:
        ledger = self._ledger
        self._bucket.accrue(self._rate_hz(), ledger.now_s)
        is_sent = self._bucket.take(self._price)
        if is_sent:
            self._draw_price(self._config.jitter)
            self._send(reason)
        self._set_token_time()
        return is_sent

    def _draw_price(self, jitter: float) -> None:
        self._price = min(self._ledger.rng.uniform(1.0 - jitter, 1.0 + jitter), self._bucket.burst)

    def _rate_hz(self) -> float:
        """Return the records per second that this node may send."""
        return self._config.heard_hz / (len(self._ledger.view.listed) + 1)

    def _set_token_time(self) -> None:
        lack = self._price - self._bucket.tokens
        # A little late rather than early: rounding must not wake us before the token is there.
        self.token_at_s = self._ledger.now_s + max(0.0, lack / self._rate_hz()) * (1.0 + 1e-9)

    def _send(self, reason: str) -> None:
        ledger, config = self._ledger, self._config
        state = self.state()
        self._told_backlog_s = state.backlog_s
        self._told_idle = self._workbench.is_idle
        ledger.counters["adverts_sent"] += 1
        ledger.actions.append(Advertise(state=state, reason=reason))
        period_s = config.period_s * ledger.rng.uniform(1.0 - config.jitter, 1.0 + config.jitter)
        ledger.timers.set(self.alarm, ledger.now_s + period_s)
