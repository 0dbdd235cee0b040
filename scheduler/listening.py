"""What is learned from any word of a peer: its state, its table, that it answers at all."""

from scheduler.actions import PullTable
from scheduler.advertise import Advertiser
from scheduler.jobs import Shipment
from scheduler.ledger import Ledger
from scheduler.peer import Peer
from scheduler.policy import Policy
from scheduler.types import LinkSample, PeerState

_GOSSIP_DELAY_S = 0.25
"""Time a gossiped record may have travelled: jobs sent since then are not in it for sure."""


class Listening:
    """Merges states into the view.

    Parameters
    ----------
    ledger : Ledger
        Shared state; actions go there.
    advertiser : Advertiser
        Told when a record of this very node comes back from an earlier life.
    policy : Policy
        Told of each record that is news.
    """

    def __init__(self, ledger: Ledger, advertiser: Advertiser, policy: Policy) -> None:
        self._ledger = ledger
        self._advertiser = advertiser
        self._policy = policy
        self._is_learning = policy.is_learning
        self._hears_answers = ledger.config.placement.piggyback

    def hear_gossip(self, state: PeerState) -> None:
        """Take in a record that travelled over others."""
        self._merge(state, delay_s=_GOSSIP_DELAY_S)

    def hear(self, state: PeerState | None) -> None:
        """Take in a record that came straight from its node, with an answer or a question."""
        if state is not None and self._hears_answers:
            self._merge(state, delay_s=None)

    def hear_probe(self, state: PeerState) -> None:
        """Take in a record that we asked for."""
        self._merge(state, delay_s=None)

    def _merge(self, state: PeerState, *, delay_s: float | None) -> None:
        ledger, node_id = self._ledger, state.node_id
        if node_id == ledger.node_id:
            self._advertiser.outrun(state)
            return
        now_s = ledger.now_s
        if not ledger.view.merge(state, now_s=now_s):
            return
        peer = ledger.view.peers[node_id]
        if peer.on_the_way:
            peer.cover_until(now_s - (peer.link.rtt_s / 2 if delay_s is None else delay_s))
        if state.table_digest != peer.table_digest:
            digest = ledger.view.wants_table(peer, now_s=now_s)
            if digest is not None:
                ledger.actions.append(PullTable(peer=peer.node_id, digest=digest, reason="its state names a new table"))
        if self._is_learning:
            self._policy.hear(peer, now_s=now_s)

    def answered(self, peer: Peer) -> None:
        """Note that a peer answered about a job: it is not silent."""
        if peer.quarantine_s:
            peer.quarantine_s = 0.0
            peer.blocked_until_s = 0.0

    def learn_link(self, peer: Peer, sample: LinkSample | None) -> None:
        """Take in a measured exchange."""
        if sample is None:
            return
        if sample.rtt_s is not None:
            peer.link.learn_rtt(sample.rtt_s)
        peer.link.learn_transfer(sample.sent_bytes, sample.sent_s)

    def went_silent(self, shipment: Shipment) -> None:
        """Stop placing on a peer that does not answer: longer each time, until it does."""
        self.isolate(shipment.peer)
        shipment.peer.window.reset()

    def isolate(self, peer: Peer) -> None:
        """Quarantine a peer."""
        watch = self._ledger.config.watch
        # Several jobs that fall silent in one quarantine are one silence.
        if peer.quarantine_s and peer.blocked_until_s > self._ledger.now_s:
            return
        peer.quarantine_s = min(2.0 * peer.quarantine_s or watch.quarantine_s, watch.quarantine_limit_s)
        peer.blocked_until_s = self._ledger.now_s + peer.quarantine_s
