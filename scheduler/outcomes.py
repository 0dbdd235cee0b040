"""What peers answer to our commands, and what it means when they do not."""

from math import inf

from scheduler.advertise import Advertiser
from scheduler.events import (
    Accepted,
    Nacked,
    OfferAnswered,
    Progressed,
    ReplyReceived,
    SendFailed,
)
from scheduler.execution import Execution
from scheduler.hedging import Hedging
from scheduler.jobs import Carriage, JobRecord, Shipment
from scheduler.ledger import Ledger
from scheduler.listening import Listening
from scheduler.peer import Peer
from scheduler.placement import Placement
from scheduler.policy import Policy
from scheduler.types import NodeId, Reason, ServiceTimes

_FINAL = frozenset({Reason.EXPIRED, Reason.SUPERSEDED, Reason.POISON, Reason.MODEL_FAILED})
"""Failures that another node would only repeat."""


class Outcomes:
    """Handles the answers of peers.

    Parameters
    ----------
    ledger : Ledger
        Shared state; actions go there.
    placement : Placement
        Places again what came back.
    execution : Execution
        Knows what a lost executor means.
    listening : Listening
        Takes in states.
    advertiser : Advertiser
        Maker of state records.
    policy : Policy
        Told of each answer.
    hedging : Hedging or None
        Told of each answer too, where it is on.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        placement: Placement,
        execution: Execution,
        listening: Listening,
        advertiser: Advertiser,
        policy: Policy,
        hedging: Hedging | None,
    ) -> None:
        self._hedging = hedging
        self._ledger = ledger
        self._placement = placement
        self._execution = execution
        self._listening = listening
        self._advertiser = advertiser
        self._policy = policy
        self._is_learning = policy.is_learning
        config = ledger.config
        self._explains = config.explain
        self._counts_covered = config.placement.piggyback
        self._setup_allowance_s = config.estimate.setup_allowance_s
        self._patience_s = config.watch.missed * config.watch.progress_s + config.watch.grace_s

    def on_offer_answered(self, event: OfferAnswered) -> None:
        """Note that the payload is on its way now."""
        ledger = self._ledger
        self._listening.hear(event.state)
        shipment = ledger.shipments.get(event.command)
        if shipment is None:
            ledger.counters["late_answers"] += 1
            return
        peer = shipment.peer
        self._listening.answered(peer)
        if event.rtt_s is not None:
            peer.link.learn_rtt(event.rtt_s)
        if event.state is not None and self._counts_covered:
            # Room was reserved before the peer made that record.
            peer.cover(shipment)
        shipment.carriage = Carriage.SEND
        size_bytes = shipment.record.job.input_bytes
        transfer_s = ledger.uplink.delay_s(ledger.now_s) + size_bytes / peer.link.goodput_bytes_s
        ledger.uplink.push(size_bytes, peer.link.goodput_bytes_s, ledger.now_s)
        self._placement.watch(shipment, first_word_s=transfer_s)
        if self._hedging is not None:
            self._hedging.watch(shipment)

    def on_accepted(self, event: Accepted) -> None:
        """Note that the executor has the job, and which others its state counts."""
        ledger = self._ledger
        self._listening.hear(event.state)
        shipment = self._still_open(event.command)
        if shipment is None:
            return
        peer = shipment.peer
        self._listening.learn_link(peer, event.link)
        if self._counts_covered:
            peer.cover(shipment)
            for command in event.covered:
                other = ledger.shipments.get(command)
                if other is not None and other.peer is peer:
                    peer.cover(other)

    def on_progressed(self, event: Progressed) -> None:
        """Note that the executor still works on the job."""
        self._listening.hear(event.state)
        self._still_open(event.command)

    def _still_open(self, command: int) -> Shipment | None:
        ledger = self._ledger
        shipment = ledger.shipments.get(command)
        if shipment is None:
            ledger.counters["late_answers"] += 1
            return None
        self._listening.answered(shipment.peer)
        shipment.is_silent = False
        ledger.timers.set(shipment, ledger.now_s + (self._patience_s + 2.0 * shipment.peer.link.rtt_s))
        return shipment

    def on_nacked(self, event: Nacked) -> None:
        """Place a refused job again: once elsewhere, then here or nowhere."""
        self._listening.hear(event.state)
        shipment = self._ledger.close_shipment(event.command)
        if shipment is not None:
            self._refused(shipment, event.reason)

    def _refused(self, shipment: Shipment, why: Reason) -> None:
        ledger, record, peer = self._ledger, shipment.record, shipment.peer
        self._listening.answered(peer)
        ledger.refusals[why.value] += 1
        peer.blocked_until_s = max(peer.blocked_until_s, ledger.now_s + ledger.config.placement.cooling_s)
        self._avoid(record, peer.node_id)
        if self._execution.is_in_hand(record):
            return
        if record.last_reason is not Reason.LOST:
            record.last_reason = why
        if why is Reason.DRAINING:
            may_move = True
        else:
            record.refusals += 1
            may_move = record.refusals <= ledger.config.retry.refusals and ledger.retry_tokens.take()
        self._execution.place_again(record, reason=f"refused ({why.value})", may_move=may_move)

    def on_reply(self, event: ReplyReceived) -> None:
        """Pass a result on, or judge a failure."""
        ledger = self._ledger
        self._listening.hear(event.state)
        shipment = ledger.close_shipment(event.command)
        if shipment is None:
            return
        record, peer = shipment.record, shipment.peer
        link, why = event.link, event.failure
        self._listening.learn_link(peer, link)
        if why is None:
            self._listening.answered(peer)
            self._learn(shipment, event.times, setup_s=0.0 if link is None else link.setup_s)
            state = self._advertiser.state()
            reason = f"from {peer.node_id[-8:]}" if self._explains else "from a peer"
            ledger.reply(record, command=shipment.command, state=state, reason=reason)
        elif why is Reason.LOST:
            self._lost(shipment, reason="executor lost")
        elif why in _FINAL:
            self._listening.answered(peer)
            self._placement.end(record, why=why, estimate_s=None, reason=f"{peer.node_id[-8:]} ended it")
        else:
            self._refused(shipment, why)

    def _learn(self, shipment: Shipment, times: ServiceTimes | None, *, setup_s: float) -> None:
        ledger, peer = self._ledger, shipment.peer
        actual_s = ledger.now_s - shipment.sent_s - min(setup_s, self._setup_allowance_s)
        waiting_s = service_s = 0.0
        told_s = -1.0 if times is None else times.service_s
        if times is not None and 0.0 <= told_s < inf:
            waiting_s, service_s = times.waiting_s, told_s
            service, state = peer.service(shipment.model), peer.state
            if service is not None and state is not None:
                service.learn(service_s / max(state.slow_down, 1.0), ledger.config.estimate)
        if self._hedging is not None:
            self._hedging.learn(promised_s=shipment.promised_s, actual_s=actual_s)
        peer.window.learn(waiting_s=waiting_s, actual_s=actual_s, promised_s=shipment.promised_s)
        peer.trust.learn(promised_s=shipment.promised_s, actual_s=actual_s, now_s=ledger.now_s)
        if self._is_learning:
            self._policy.observe(peer, actual_s=actual_s, waiting_s=waiting_s, service_s=service_s, now_s=ledger.now_s)

    def on_send_failed(self, event: SendFailed) -> None:
        """Place a job again whose connection died."""
        shipment = self._ledger.close_shipment(event.command)
        if shipment is None:
            return
        if event.connected and shipment.carriage != Carriage.OFFER:
            self._lost(shipment, reason="connection lost")
        else:
            self._unreached(shipment, reason="peer not reached")

    def _lost(self, shipment: Shipment, *, reason: str) -> None:
        self._avoid(shipment.record, shipment.peer.node_id)
        shipment.peer.window.close()
        self._execution.lose(shipment.record, reason=reason)

    def _unreached(self, shipment: Shipment, *, reason: str) -> None:
        """Place a job again that never got there: no loss, since nothing of it can have run."""
        ledger, record = self._ledger, shipment.record
        self._listening.isolate(shipment.peer)
        self._avoid(record, shipment.peer.node_id)
        if self._execution.is_in_hand(record):
            return
        self._execution.place_again(record, reason=reason, may_move=ledger.retry_tokens.take())

    def on_overdue(self, shipment: Shipment) -> None:
        """Place a job again whose executor says nothing; whichever answers first wins.

        Without a place for it now, the silent peer keeps it and the search goes on later.
        """
        ledger, record = self._ledger, shipment.record
        if not shipment.is_silent:
            shipment.is_silent = True
            ledger.counters["executors_silent"] += 1
            self._listening.went_silent(shipment)
            self._avoid(record, shipment.peer.node_id)
            record.attempt += 1
            record.last_reason = Reason.LOST
        if self._execution.is_in_hand(record):
            return
        self._execution.place_again(record, reason="executor silent", may_move=ledger.retry_tokens.take())

    def on_peer_lost(self, peer: Peer) -> None:
        """Place again, at once, everything that a dead peer had of ours; drop what it had asked of us."""
        ledger = self._ledger
        open_there = sorted(peer.shipments)
        for command in open_there:
            shipment = ledger.close_shipment(command)
            if shipment is None:
                continue
            if shipment.carriage == Carriage.OFFER:
                self._unreached(shipment, reason="peer lost")
            else:
                self._lost(shipment, reason="peer lost")
        orphans = [each for each in ledger.jobs.values() if each.origin == peer.node_id]
        for record in orphans:
            if record.handle in ledger.jobs:
                self._placement.end(record, why=Reason.CANCELLED, estimate_s=None, reason="its origin is gone")
        for offer in [each.offer for each in ledger.reservations.values() if each.peer_id == peer.node_id]:
            ledger.release(offer)

    @staticmethod
    def _avoid(record: JobRecord, node_id: NodeId) -> None:
        if node_id not in record.avoid and node_id not in record.job.visited:
            record.avoid += (node_id,)
