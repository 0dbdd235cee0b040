"""One other node as seen from here: its last record, what was learned of it, our jobs there.

Whether a record is newer, who is forgotten and which tables are known is the view's (scheduler.view). A peer that was
silent about a job of ours is in quarantine: a judgement of this node alone, on the clock, which a direct answer ends.
"""

import enum
import math
from collections import deque
from collections.abc import Mapping

from scheduler.config import CoreConfig
from scheduler.estimate import LinkEstimate, ServiceEstimate, Trust, Window
from scheduler.jobs import Shipment
from scheduler.types import Capability, ModelDigest, NodeId, PeerState

Capabilities = Mapping[ModelDigest, tuple[int, Capability]]
"""Place in the table, and entry, by model. Shared by all peers with the same table."""

_NOTHING: deque[Shipment] = deque()
_NO_SHIPMENTS: dict[int, Shipment] = {}
_NO_SERVICES: dict[ModelDigest, ServiceEstimate] = {}
"""Shared by all peers that were never sent a job, which is most of a large grid: a peer takes 0.3 kB with these and
what `Stranger` holds, and 1.7 kB with its own."""
NONE_WARM: frozenset[ModelDigest] = frozenset()
_BATTERY_LOW = 2


class Liveness(enum.IntEnum):
    """What events said of a peer."""

    ALIVE = 0
    SUSPECT = 1


class Stranger:
    """What is assumed of a node that was never sent a job: shared by all of them, and never changed."""

    __slots__ = ("link", "trust", "window")

    def __init__(self, config: CoreConfig) -> None:
        self.link = LinkEstimate(config.estimate)
        self.window = Window(config.window)
        self.trust = Trust(config.estimate)


class Peer:
    """One other node, as seen from here."""

    __slots__ = (
        "_config",
        "_horizon_s",
        "_reversion",
        "_weight_max",
        "blocked_until_s",
        "capabilities",
        "heard_s",
        "is_open",
        "is_reachable",
        "is_stranger",
        "link",
        "liveness",
        "mean_wait_s",
        "node_id",
        "on_the_way",
        "place",
        "pull_after_s",
        "pull_wait_s",
        "quarantine_s",
        "services",
        "shipments",
        "speed",
        "state",
        "table_digest",
        "trust",
        "uncovered_s",
        "wait_s",
        "warm_models",
        "window",
    )

    def __init__(self, node_id: NodeId, config: CoreConfig, stranger: Stranger) -> None:
        self._config = config
        self._reversion = config.estimate.reversion_services
        self._horizon_s = config.estimate.reversion_horizon_s
        self._weight_max = 1.0 / config.estimate.reversion_records
        self.node_id = node_id
        self.state: PeerState | None = None
        self.heard_s = 0.0
        """When the newest record came."""
        self.wait_s = 0.0
        """Wait that a job would have met there when that record was made, in seconds."""
        self.mean_wait_s = 0.0
        """Its mean over the records of the last few seconds."""
        self.liveness = Liveness.ALIVE
        self.is_reachable = True
        self.capabilities: Capabilities = {}
        self.table_digest = b""
        self.services = _NO_SERVICES
        self.link = stranger.link
        self.window = stranger.window
        self.trust = stranger.trust
        self.is_stranger = True
        """Whether no job was ever sent there, so that what is assumed of it is everybody's."""
        self.warm_models = NONE_WARM
        """Models that its last record says are loaded."""
        self.is_open = False
        """Whether it takes jobs at all: alive, reachable, not draining, not short of power, and its state known."""
        self.blocked_until_s = 0.0
        """Until when it gets no jobs: it refused one of ours, or was silent about one."""
        self.quarantine_s = 0.0
        """Length of the last quarantine for silence; 0 after an answer."""
        self.shipments = _NO_SHIPMENTS
        """Our open commands there."""
        self.on_the_way: deque[Shipment] = _NOTHING
        """Those its state may not count yet, in order of expected arrival."""
        self.uncovered_s = 0.0
        """Their service times together."""
        self.pull_after_s = 0.0
        self.pull_wait_s = 0.0
        self.speed = 0.0
        """Jobs per second of its fastest model; 0 while its table is unknown."""
        self.place = 0
        """Index in the view's list."""

    def hear(self, state: PeerState, now_s: float, *, is_first: bool) -> None:
        """Take in a newer record; after the first one of a life there is something to average."""
        # A free slot means no wait. With one slot the backlog says the same, and keeps the room promised to others.
        wait_s = state.backlog_s
        if wait_s and state.running_until_s <= 0.0 and state.slots != 1:
            wait_s = 0.0
        if is_first:
            self.mean_wait_s = wait_s
        else:
            # Weighed by the time that a record stands for: ten answers within a moment are one piece of news.
            weight = 1.0 - math.exp((self.heard_s - now_s) / self._horizon_s)
            if weight > self._weight_max:
                weight = self._weight_max
            self.mean_wait_s += weight * (wait_s - self.mean_wait_s)
        self.state = state
        self.wait_s = wait_s
        self.heard_s = now_s

    def meet(self) -> None:
        """Have estimates of its own from now on: answers will tell of it."""
        self.is_stranger = False
        self.link = LinkEstimate(self._config.estimate)
        self.window = Window(self._config.window)
        self.trust = Trust(self._config.estimate)
        self.shipments = {}
        self.on_the_way = deque()

    def begin_anew(self) -> None:
        """Forget what an earlier life of the node made us doubt."""
        if self.is_stranger:
            self.meet()
        self.trust = Trust(self._config.estimate)
        self.window = Window(self._config.window)
        self.blocked_until_s = 0.0
        self.quarantine_s = 0.0

    def is_placeable(self, now_s: float) -> bool:
        """Return whether a new job may go there at all, whatever its model."""
        return self.is_open and self.blocked_until_s <= now_s

    @property
    def has_room(self) -> bool:
        """Whether its window admits one more job."""
        return len(self.shipments) < self.window.size

    def may_take(self, now_s: float) -> bool:
        """Return whether it may get one more job now: placeable, and its window open."""
        return self.is_open and self.blocked_until_s <= now_s and len(self.shipments) < self.window.size

    def judge(self, warm_models: frozenset[ModelDigest]) -> None:
        """Work out anew what follows from its state, its table and the words of others."""
        state = self.state
        self.is_open = (
            state is not None
            and self.liveness is Liveness.ALIVE
            and self.is_reachable
            and not state.draining
            and state.power_class < _BATTERY_LOW
        )
        self.warm_models = warm_models

    def service(self, model: ModelDigest) -> ServiceEstimate | None:
        """Return the estimate of one model's service time there; None where it has not got the model."""
        estimate = self.services.get(model)
        if estimate is None:
            entry = self.capabilities.get(model)
            if entry is None:
                return None
            if self.services is _NO_SERVICES:
                self.services = {}
            estimate = self.services[model] = ServiceEstimate(entry[1].mean_s)
        return estimate

    def add_shipment(self, shipment: Shipment) -> None:
        """Count a job on its way there."""
        if self.is_stranger:
            self.meet()
        self.shipments[shipment.command] = shipment
        self.on_the_way.append(shipment)
        self.uncovered_s += shipment.service_s

    def drop_shipment(self, shipment: Shipment) -> None:
        """Count a job no more."""
        if self.shipments.pop(shipment.command, None) is not None:
            self.cover(shipment)

    def cover(self, shipment: Shipment) -> None:
        """Note that the peer's state counts a job, or that it is gone."""
        if shipment.covered:
            return
        shipment.covered = True
        self.uncovered_s -= shipment.service_s
        waiting = self.on_the_way
        while waiting and waiting[0].covered:
            waiting.popleft()
        if not waiting:
            self.uncovered_s = 0.0

    def expected_wait_s(self, service_s: float, now_s: float) -> float:
        """Predict the wait there now, from its last record and from what its records say on the average.

        Parameters
        ----------
        service_s : float
            Service time there of the job in question, in seconds, > 0.
        now_s : float
            Present time in seconds.

        Returns
        -------
        float
            Seconds, without own jobs on their way.

        Notes
        -----
        A queue forgets its state within a few service times, and then is what it is on the average: the wait last
        told decays towards the mean with that time constant. Nodes with short service times are judged by their mean
        soon, slow ones by their last word for seconds. That old news has to count less, by its age in service times,
        is Dahlin's result (2000, "Interpreting Stale Load Information"); what it must not do is to drain to nothing,
        since others send there too: the pilot's mean got worse by 40 % with that.
        """
        services = self._reversion
        if services <= 0.0:
            return self.wait_s
        mean_s = self.mean_wait_s
        return mean_s + (self.wait_s - mean_s) * math.exp((self.heard_s - now_s) / (services * service_s))

    def cover_until(self, made_s: float) -> None:
        """Note that the peer's state was made at this time of ours: it counts what had arrived by then."""
        waiting = self.on_the_way
        while waiting and (waiting[0].covered or waiting[0].expected_arrival_s <= made_s):
            shipment = waiting.popleft()
            if not shipment.covered:
                shipment.covered = True
                self.uncovered_s -= shipment.service_s
        if not waiting:
            self.uncovered_s = 0.0
