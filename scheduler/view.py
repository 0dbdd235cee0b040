"""The peer table: what this node holds to be true of others.

State records arrive in any order, several times, by gossip and attached to answers. Of two records of one node the
one with the larger (epoch, sequence) counts, so merging is commutative, associative and idempotent, and a replayed
record changes nothing.

Whether a peer is alive is not the table's judgement: probes and signed words of others say so, as events.

    alive   --PeerSuspected-->  suspect   (no new jobs; those there stay)
    suspect --PeerRefuted---->  alive
    any     --PeerLost------->  forgotten (a newer record brings it back as alive)

The age of a record never moves a peer between these. A peer that was silent about a job of ours is in quarantine: a
judgement of this node alone, on the clock, which a direct answer ends.
"""

import enum
import math
from collections import deque
from collections.abc import Mapping

import msgspec

from scheduler.config import CoreConfig
from scheduler.estimate import LinkEstimate, ServiceEstimate, Trust, Window
from scheduler.jobs import Shipment
from scheduler.types import Capability, CapabilityTable, ModelDigest, NodeId, PeerState

Capabilities = Mapping[ModelDigest, tuple[int, Capability]]
"""Place in the table, and entry, by model. Shared by all peers with the same table."""

_PULL_RETRY_DOUBLINGS = 5
_NOTHING: deque[Shipment] = deque()
_NO_SHIPMENTS: dict[int, Shipment] = {}
_NO_SERVICES: dict[ModelDigest, ServiceEstimate] = {}
"""Shared by all peers that were never sent a job, which is most of a large grid: a peer takes 0.3 kB with these and
what `Stranger` holds, and 1.7 kB with its own."""
_NONE_WARM: frozenset[ModelDigest] = frozenset()
_BATTERY_LOW = 2


class Liveness(enum.IntEnum):
    """What events said of a peer."""

    ALIVE = 0
    SUSPECT = 1


def is_newer(state: PeerState, than: PeerState) -> bool:
    """Return whether one record of a node replaces another of the same node.

    Records with equal (epoch, sequence) and different contents are a fault of their node; the larger content wins,
    for no reason but that all nodes then agree.
    """
    epoch, old_epoch = state.epoch, than.epoch
    if epoch != old_epoch:
        return epoch > old_epoch
    sequence, old_sequence = state.sequence, than.sequence
    if sequence != old_sequence:
        return sequence > old_sequence
    return msgspec.structs.astuple(state) > msgspec.structs.astuple(than)


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
        self.warm_models = _NONE_WARM
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


class View:
    """All known peers, their tables, and which of them changed.

    Parameters
    ----------
    node_id : str
        This node, whose own records are no peer's.
    config : CoreConfig
        Bounds and priors.
    """

    def __init__(self, node_id: NodeId, config: CoreConfig) -> None:
        self._node_id = node_id
        self._config = config
        self._stranger = Stranger(config)
        self.peers: dict[NodeId, Peer] = {}
        self.listed: list[Peer] = []
        """The same peers, for drawing one at random."""
        self.version = 0
        """Grows when a peer comes, goes, or may or may not be drawn any more."""
        self.met = 0
        """Peers that a first record came from, forgotten ones too."""
        self._rated: list[Peer] = []
        """Peers whose speed was learned since they were last taken."""
        self._tables: dict[bytes, Capabilities] = {}
        self._pulling: dict[bytes, float] = {}
        self._warm: dict[tuple[bytes, int], frozenset[ModelDigest]] = {}
        """Models by table and bits of `warm`: equal devices share these too."""
        self._gone: dict[NodeId, PeerState] = {}
        """Last records of forgotten peers: older ones that still travel must not bring them back."""

    def get(self, node_id: NodeId) -> Peer | None:
        """Return a peer, or None."""
        return self.peers.get(node_id)

    def touch(self, node_id: NodeId) -> Peer | None:
        """Return a peer, made known if there is room; None for this node itself and for one too many."""
        peer = self.peers.get(node_id)
        if peer is not None:
            return peer
        if node_id == self._node_id or len(self.listed) >= self._config.peers.peers:
            return None
        peer = self.peers[node_id] = Peer(node_id, self._config, self._stranger)
        peer.place = len(self.listed)
        self.listed.append(peer)
        return peer

    def merge(self, state: PeerState, *, now_s: float) -> bool:
        """Take in a record; return whether it was news."""
        peer = self.peers.get(state.node_id)
        if peer is None:
            gone = self._gone.get(state.node_id)
            if gone is not None and not is_newer(state, gone):
                return False
            peer = self.touch(state.node_id)
            if peer is None:
                return False
            self._gone.pop(state.node_id, None)
        old = peer.state
        if old is not None and not is_newer(state, old):
            return False
        is_anew = old is not None and state.epoch > old.epoch
        self.met += old is None
        peer.hear(state, now_s, is_first=old is None or is_anew)
        if is_anew:
            peer.begin_anew()
        digest = state.table_digest
        if digest != peer.table_digest:
            self._look_up(peer, digest)
        elif (
            old is None
            or old.warm != state.warm
            or old.draining != state.draining
            or old.power_class != state.power_class
        ):
            self._judge(peer)
        return True

    def wants_table(self, peer: Peer, *, now_s: float) -> bytes | None:
        """Return the digest to pull from a peer now, or None; answers once per retry time."""
        state = peer.state
        if state is None or state.table_digest == peer.table_digest or not state.table_digest:
            return None
        digest = state.table_digest
        if now_s < peer.pull_after_s or now_s < self._pulling.get(digest, 0.0):
            return None
        first = self._config.peers.pull_retry_s
        peer.pull_wait_s = min(2 * peer.pull_wait_s, first * 2**_PULL_RETRY_DOUBLINGS) if peer.pull_wait_s else first
        peer.pull_after_s = now_s + peer.pull_wait_s
        # Equal devices have equal tables: while one of them is asked, the others are not.
        self._pulling[digest] = now_s + first
        if len(self._pulling) > self._config.peers.tables:
            del self._pulling[next(iter(self._pulling))]
        return digest

    def learn_table(self, table: CapabilityTable) -> None:
        """Take in a pulled table. That its digest is right is the driver's to check."""
        entries = table.entries[: self._config.peers.table_entries]
        capabilities = {entry.model: (index, entry) for index, entry in enumerate(entries)}
        self._warm.clear()
        self._tables.pop(table.digest, None)
        self._tables[table.digest] = capabilities
        if len(self._tables) > self._config.peers.tables:
            del self._tables[next(iter(self._tables))]
        self._pulling.pop(table.digest, None)
        # Nodes with an equal table were not asked meanwhile; in a large grid their next record is minutes away.
        for peer in self.listed:
            state = peer.state
            if state is None or state.table_digest != table.digest:
                continue
            if peer.table_digest != table.digest or not peer.capabilities or peer.node_id == table.node_id:
                self._look_up(peer, table.digest)

    def forget(self, node_id: NodeId) -> Peer | None:
        """Drop a peer and return it; None when it was unknown."""
        peer = self.peers.pop(node_id, None)
        if peer is None:
            return None
        last = self.listed.pop()
        if last is not peer:
            self.listed[peer.place] = last
            last.place = peer.place
        if peer.state is not None:
            self._gone[node_id] = peer.state
            if len(self._gone) > self._config.peers.peers:
                del self._gone[next(iter(self._gone))]
        self.version += 1
        return peer

    def take_rated(self) -> list[Peer]:
        """Return the peers whose speed was learned since the last call, some of them gone meanwhile."""
        rated, self._rated = self._rated, []
        return rated

    def set_liveness(self, node_id: NodeId, liveness: Liveness) -> None:
        """Note a word on a peer's liveness; on an unknown one there is nothing to note."""
        peer = self.peers.get(node_id)
        if peer is not None and peer.liveness is not liveness:
            peer.liveness = liveness
            self._judge(peer)

    def set_reachable(self, node_id: NodeId, *, reachable: bool) -> None:
        """Note whether a peer's data port answers."""
        peer = self.touch(node_id)
        if peer is not None and peer.is_reachable != reachable:
            peer.is_reachable = reachable
            self._judge(peer)

    def expected_period_s(self) -> float:
        """Return the mean time between two records of one peer, in seconds: gossip has a budget per listener."""
        advert = self._config.advert
        return max(advert.period_s, (len(self.listed) + 1) / advert.heard_hz)

    def _judge(self, peer: Peer) -> None:
        self.version += 1
        peer.judge(self._warm_models(peer))

    def _warm_models(self, peer: Peer) -> frozenset[ModelDigest]:
        warm = 0 if peer.state is None else peer.state.warm
        if not warm or not peer.capabilities:
            return _NONE_WARM
        key = peer.table_digest, warm
        found = self._warm.get(key)
        if found is None:
            if len(self._warm) >= self._config.peers.tables:
                self._warm.clear()
            models = [model for model, (index, _) in peer.capabilities.items() if warm >> index & 1]
            found = self._warm[key] = frozenset(models)
        return found

    def _look_up(self, peer: Peer, digest: bytes) -> None:
        """Give a peer the table of its digest, or none: bits of `warm` mean nothing with an old table."""
        capabilities = self._tables.get(digest)
        was_rated = peer.speed > 0
        if capabilities is None:
            peer.capabilities = {}
            peer.speed = 0.0
            self._judge(peer)
            return
        peer.table_digest = digest
        peer.capabilities = capabilities
        self._judge(peer)
        peer.pull_wait_s = peer.pull_after_s = 0.0
        best_s = min((entry.mean_s for _, entry in capabilities.values()), default=0.0)
        slots = peer.state.slots if peer.state is not None else 1
        peer.speed = slots / best_s if best_s > 0 else 0.0
        if peer.speed > 0 and not was_rated:
            self._rated.append(peer)
            if len(self._rated) > 2 * self._config.peers.peers:
                self._rated = [each for each in self.listed if each.speed > 0]
        for model in list(peer.services):
            if model in capabilities:
                peer.services[model].advertise(capabilities[model][1].mean_s)
            else:
                del peer.services[model]
