"""The peer table: what this node holds to be true of others.

State records arrive in any order, several times, by gossip and attached to answers. Of two records of one node the
one with the larger (epoch, sequence) counts, so merging is commutative, associative and idempotent, and a replayed
record changes nothing.

Whether a peer is alive is not the table's judgement: probes and signed words of others say so, as events.

    alive   --PeerSuspected-->  suspect   (no new jobs; those there stay)
    suspect --PeerRefuted---->  alive
    any     --PeerLost------->  forgotten (a newer record brings it back as alive)

The age of a record never moves a peer between these.
"""

from collections.abc import Sequence

import msgspec

from scheduler.config import CoreConfig
from scheduler.peer import NONE_WARM, Capabilities, Liveness, Peer, Stranger
from scheduler.types import CapabilityTable, ModelDigest, NodeId, PeerState

_PULL_RETRY_DOUBLINGS = 5


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
            self._look_up(peer, digest, is_kept=bool(digest) and not is_anew)
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

    def may_have(self, models: Sequence[ModelDigest]) -> bool:
        """Say whether a peer has one of these models, or may have: its table is not known."""
        for peer in self.listed:
            state = peer.state
            if state is not None and state.table_digest != peer.table_digest and state.table_digest:
                return True
            if any(model in peer.capabilities for model in models):
                return True
        return False

    def expected_period_s(self) -> float:
        """Return the mean time between two records of one peer, in seconds: gossip has a budget per listener."""
        advert = self._config.advert
        return max(advert.period_s, (len(self.listed) + 1) / advert.heard_hz)

    def _judge(self, peer: Peer) -> None:
        self.version += 1
        peer.judge(self._warm_models(peer))

    def _warm_models(self, peer: Peer) -> frozenset[ModelDigest]:
        state = peer.state
        if state is not None and state.table_digest != peer.table_digest and peer.capabilities:
            return peer.warm_models  # bits mean nothing with an old table
        warm = 0 if state is None else state.warm
        if not warm or not peer.capabilities:
            return NONE_WARM
        key = peer.table_digest, warm
        found = self._warm.get(key)
        if found is None:
            if len(self._warm) >= self._config.peers.tables:
                self._warm.clear()
            models = [model for model, (index, _) in peer.capabilities.items() if warm >> index & 1]
            found = self._warm[key] = frozenset(models)
        return found

    def _look_up(self, peer: Peer, digest: bytes, *, is_kept: bool = False) -> None:
        """Give a peer the table of its digest; where that is not here yet, none, or its old one if that is kept.

        Most changes of a table are a model more or a time measured anew. With no table the peer would have no model
        until the new one has come; with the old one, a job whose model has gone there is refused and placed again.
        """
        capabilities = self._tables.get(digest)
        was_rated = peer.speed > 0
        if capabilities is None and is_kept and peer.capabilities:
            self._judge(peer)
            return
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
