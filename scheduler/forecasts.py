"""What is known of here and of others for the job at hand: predictions, draws of peers, questions to them.

Owns the arithmetic from state records, links and service times to seconds; decides nothing. Policies look at it as
their `Board`, and `scheduler.placement` is one.
"""

import math
import random

from scheduler.actions import Probe
from scheduler.active import ActiveSet
from scheduler.config import CoreConfig
from scheduler.jobs import Inquiry
from scheduler.ledger import Ledger
from scheduler.peer import Peer
from scheduler.policy import Board
from scheduler.types import Job, ModelDigest, NodeId
from scheduler.workbench import Workbench


class Quote:
    """A prediction for one job at one peer, in its parts, all in seconds."""

    __slots__ = ("promised_s", "service_s", "transfer_s")

    def __init__(self, transfer_s: float, promised_s: float, service_s: float) -> None:
        self.transfer_s = transfer_s
        """Until the payload is there."""
        self.promised_s = promised_s
        """Until the answer is back, if the peer's records are right."""
        self.service_s = service_s


class Forecasts(Board):
    """The board that policies look at.

    Parameters
    ----------
    ledger : Ledger
        Shared state; probes go there.
    workbench : Workbench
        Local execution.
    active : ActiveSet
        Peers to place on.
    """

    def __init__(self, ledger: Ledger, workbench: Workbench, active: ActiveSet) -> None:
        self._ledger = ledger
        self._workbench = workbench
        self._active = active
        self.config: CoreConfig = ledger.config
        self.rng: random.Random = ledger.rng
        self.node_id: NodeId = ledger.node_id
        self.now_s = ledger.now_s
        self.may_move = True
        self._counts_inflight = ledger.config.placement.inflight_correction
        self._may_stay = True
        self.wait_s = 0.0
        self._has_room = True
        self._avoid: tuple[NodeId, ...] = ()
        self._asked: list[Peer] | None = None

    def here_s(self, job: Job, model: ModelDigest) -> float | None:
        """Predict the seconds until done here; None when it cannot or must not run here."""
        if not self._may_stay or not self._has_room:
            return None
        return self._workbench.finish_s(model, self.wait_s)

    def backlog_s(self) -> float:
        """Return the own backlog per slot, in seconds."""
        return self._workbench.backlog_s()

    def service_s(self, model: ModelDigest) -> float | None:
        """Return the own service time in seconds; None without the model."""
        return self._workbench.service_s(model) if model in self._workbench.models.services else None

    def draw(self, model: ModelDigest, count: int) -> list[Peer]:
        """Draw eligible peers by speed."""
        now_s = self.now_s
        return self._active.draw(self._active.pool(model, now_s), count, avoid=self._avoid, now_s=now_s)

    def eligible(self, model: ModelDigest) -> list[Peer]:
        """Return all eligible peers of the active set that have a model."""
        now_s, avoid = self.now_s, self._avoid
        return [
            peer for peer in self._active.pool(model, now_s).peers if peer.node_id not in avoid and peer.may_take(now_s)
        ]

    def is_eligible(self, peer: Peer) -> bool:
        """Return whether the job at hand may go to a peer now."""
        return peer.node_id not in self._avoid and peer.may_take(self.now_s)

    def draw_evenly(self, model: ModelDigest, count: int) -> list[Peer]:
        """Draw eligible peers, all alike."""
        peers = self.eligible(model)
        return peers if len(peers) <= count else self.rng.sample(peers, count)

    def jobs_here(self) -> int:
        """Return how many jobs wait or are served here."""
        ledger = self._ledger
        return ledger.queue.length + sum(len(run.records) for run in ledger.runs.values())

    def jobs_at(self, peer: Peer, model: ModelDigest) -> int:
        """Count the jobs at a peer: records tell of seconds, so it is their work in units of the model's service."""
        state, service = peer.state, peer.service(model)
        assert state is not None, "a peer without a record is not eligible"
        assert service is not None, "a peer without the model is not eligible"
        # The one being served counts whole, and rounding must not make one more.
        jobs = math.ceil(state.backlog_s * state.slots / (service.value_s * state.slow_down) - 0.01)
        if self._counts_inflight:
            jobs += sum(1 for shipment in peer.on_the_way if not shipment.covered)
        return jobs

    def finish_s(self, peer: Peer, job: Job, model: ModelDigest) -> float:
        """Predict the seconds until a peer's answer is back."""
        return self.predict_s(peer, job, model)[0]

    def predict_s(self, peer: Peer, job: Job, model: ModelDigest) -> tuple[float, float]:
        """Predict the seconds until a peer's answer is back, and of these the wait in its queue."""
        state, service = peer.state, peer.services.get(model)
        if service is None:
            service = peer.service(model)
        assert state is not None, "a peer without a record is not eligible"
        assert service is not None, "a peer without the model is not eligible"
        now_s, link = self.now_s, peer.link
        work_s = service.value_s * state.slow_down
        wait_s = peer.expected_wait_s(work_s, now_s)
        if peer.uncovered_s > 0.0 and self._counts_inflight:
            wait_s += peer.uncovered_s / state.slots
        if model not in peer.warm_models:
            work_s += peer.capabilities[model][1].load_s
        net_s = link.rtt_s + (job.input_bytes + job.output_bytes) / link.goodput_bytes_s
        uplink_s = self._ledger.uplink.free_at_s - now_s
        if uplink_s > 0.0:
            net_s += uplink_s
        if not peer.trust.is_full:
            doubt = peer.trust.factor(now_s)
            work_s *= doubt
            wait_s *= doubt
        return net_s + work_s + wait_s, wait_s

    def _told_s(self, peer: Peer, model: ModelDigest) -> float:
        """Return wait, loading and service at a peer as its last record tells them: what it is held to."""
        state, service = peer.state, peer.services.get(model)
        if service is None:
            service = peer.service(model)
        assert state is not None, "a peer without a record is not eligible"
        assert service is not None, "a peer without the model is not eligible"
        service_s = service.value_s * state.slow_down
        # With less to be expected than it told, by the mean of its records, it is still held to what it told.
        told_s = service_s + max(peer.wait_s, peer.expected_wait_s(service_s, self.now_s))
        if self._counts_inflight:
            told_s += peer.uncovered_s / state.slots
        if model not in peer.warm_models:
            told_s += peer.capabilities[model][1].load_s
        return told_s

    def probe(self, peer: Peer) -> bool:
        """Ask a peer for its state; the answer is heard like any other record."""
        ledger = self._ledger
        if len(ledger.probes) >= self.config.probe.open:
            return False
        self.send_probe(peer, None)
        return True

    def send_probe(self, peer: Peer, inquiry: Inquiry | None) -> int:
        """Ask a peer for its state, for a job or in advance; return the command."""
        ledger = self._ledger
        command = ledger.new_command()
        ledger.probes[command] = inquiry
        ledger.counters["probes_sent"] += 1
        ledger.actions.append(Probe(command=command, peer=peer.node_id, reason="how does it stand"))
        return command

    @property
    def asked(self) -> list[Peer] | None:
        """Peers asked for the job at hand that may take it."""
        if self._asked is None:
            return None
        now_s = self.now_s
        return [peer for peer in self._asked if peer.node_id not in self._avoid and peer.may_take(now_s)]

    def can_beat(self, model: ModelDigest, finish_s: float) -> bool:
        """Return whether any peer, were it idle, could be done before that."""
        return self._active.pool(model, self.now_s).least_s < finish_s

    def quote(self, peer: Peer, job: Job, model: ModelDigest) -> Quote:
        """Predict a job at a peer in parts, without our doubts of its records."""
        state, service = peer.state, peer.service(model)
        service_s = 0.0 if service is None or state is None else service.value_s * state.slow_down
        link = peer.link
        transfer_s = self._ledger.uplink.delay_s(self.now_s) + job.input_bytes / link.goodput_bytes_s + link.rtt_s / 2
        net_s = transfer_s + job.output_bytes / link.goodput_bytes_s + link.rtt_s / 2
        return Quote(transfer_s, net_s + self._told_s(peer, model), service_s)
