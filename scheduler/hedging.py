"""Second copies of jobs that take unusually long at a peer, within a budget. Off by default.

A job whose answer is not there at about the p95 of what its estimate meant is placed once more, at another node; the
first outcome wins and the other is cancelled, as after a silence. Copies are made for own jobs only, one per job, while
few of the active peers are busy, and never more than a share of the jobs placed: a copy costs what a job costs.
"""

import math

from scheduler.active import ActiveSet
from scheduler.estimate import TokenBucket
from scheduler.jobs import Carriage, Shipment
from scheduler.ledger import Ledger
from scheduler.placement import Placement
from scheduler.timers import Timed

_ALPHA = 0.05
"""Weight of a new answer in the averages: a tail wants some dozens of samples."""
_LEAST_SAMPLES = 20
"""Answers before any copy: until then nothing is known of the tail."""


class Hedge(Timed):
    """When a job at a peer is to be looked at."""

    __slots__ = ("shipment",)

    def __init__(self, shipment: Shipment) -> None:
        self.shipment = shipment
        self.due_s = math.inf


class Hedging:
    """Watches own jobs at peers.

    Parameters
    ----------
    ledger : Ledger
        Shared state; actions go there.
    placement : Placement
        Places the copies.
    active : ActiveSet
        The peers whose load says whether there is time for copies.
    """

    def __init__(self, ledger: Ledger, placement: Placement, active: ActiveSet) -> None:
        self._ledger = ledger
        self._placement = placement
        self._active = active
        self._config = ledger.config.hedge
        self._tokens = TokenBucket(self._config.burst, ledger.now_s)
        self._late_s = self._deviation_s = 0.0
        self._samples = 0

    def watch(self, shipment: Shipment) -> None:
        """Have a job that was just sent looked at when it is late."""
        if self._config.share <= 0.0 or shipment.record.origin is not None or shipment.carriage != Carriage.SEND:
            return
        self._tokens.deposit(self._config.share)
        if self._samples >= _LEAST_SAMPLES:
            late_s = max(0.0, self._late_s + self._config.deviations * self._deviation_s)
            self._ledger.timers.set(Hedge(shipment), shipment.sent_s + shipment.promised_s + late_s)

    def learn(self, *, promised_s: float, actual_s: float) -> None:
        """Take in how long a job took against its estimate, in seconds."""
        late_s = actual_s - promised_s
        self._samples += 1
        weight = max(_ALPHA, 1.0 / self._samples)
        self._late_s += weight * (late_s - self._late_s)
        self._deviation_s += weight * (abs(late_s - self._late_s) - self._deviation_s)

    def fire(self, hedge: Hedge) -> None:
        """Make a copy of a job that is late, if there is a place and a budget for it."""
        ledger, shipment = self._ledger, hedge.shipment
        record = shipment.record
        if record.shipments != [shipment] or record.run is not None or shipment.is_silent or record.attempt:
            return
        if self._is_grid_busy() or not self._tokens.take():
            return
        avoid = record.avoid
        record.avoid = (*avoid, shipment.peer.node_id)
        record.attempt += 1
        if self._placement.place(record, reason="late, a second copy", may_end=False):
            ledger.counters["jobs_hedged"] += 1
        else:
            record.avoid = avoid
            record.attempt -= 1
            self._tokens.deposit(1.0)

    def _is_grid_busy(self) -> bool:
        states = [peer.state for peer in self._active.members() if peer.state is not None]
        busy = sum(1 for state in states if state.backlog_s > 0.0)
        return busy >= self._config.busy_below * len(states)
