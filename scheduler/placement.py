"""Where a job goes: rungs, admission, the extra look, and sending it off. The comparison itself is the policy's.

For each acceptable model, best first, the policy names a node; the first model whose predicted finish makes the
deadline is taken. A job that would miss it everywhere among the few nodes compared gets one more look at the whole
active set, and is then refused with the best estimate known: work that is thrown away at its deadline costs the jobs
behind it theirs (Clockwork, arXiv:2006.02464; the pilot's goodput at load 1.3 is 0 % without it).
"""

from collections.abc import Callable

from msgspec.structs import replace

from scheduler import explanation
from scheduler.actions import Offer, Send
from scheduler.active import ActiveSet
from scheduler.advertise import Advertiser
from scheduler.explanation import Verdict
from scheduler.forecasts import Forecasts
from scheduler.jobs import Carriage, JobRecord, Shipment, Stage
from scheduler.ledger import Ledger
from scheduler.peer import Peer
from scheduler.policy import Choice, Policy, asker
from scheduler.types import Job, ModelDigest, NodeId, Reason
from scheduler.workbench import Workbench


class Placement(Forecasts):
    """Places jobs; it is the board the policies look at.

    Parameters
    ----------
    ledger : Ledger
        Shared state; actions go there.
    workbench : Workbench
        Local execution.
    active : ActiveSet
        Peers to place on.
    advertiser : Advertiser
        Maker of this node's state records.
    policy : Policy
        The rule that compares.
    """

    def __init__(
        self, ledger: Ledger, workbench: Workbench, active: ActiveSet, advertiser: Advertiser, policy: Policy
    ) -> None:
        super().__init__(ledger, workbench, active)
        self._advertiser = advertiser
        self._policy = policy
        self._ask = asker(policy)
        # What every decision reads stands by itself: a look into the configuration is two into records.
        placement, watch, offer = ledger.config.placement, ledger.config.watch, ledger.config.offer
        self._margin = 1.0 / placement.slack - 1.0
        self._sheds = placement.shedding
        self._hop_limit = placement.hop_limit
        self._explains = ledger.config.explain
        self._promises_gain = policy.promises_gain
        self._transfer_factor = watch.transfer_factor
        self._acknowledge_s = watch.acknowledge_s
        self._grace_s = watch.grace_s
        self._offers = offer.enabled
        self._offer_rtts = offer.rtts
        self._offer_bytes = offer.prior_bytes
        self._retry_ratio = ledger.config.retry.ratio
        self.on_sent: Callable[[Shipment], None] | None = None
        """Told of each job sent or offered, where somebody wants to know."""

    def place(
        self, record: JobRecord, *, reason: str, may_stay: bool = True, may_move: bool = True, may_end: bool = True
    ) -> bool:
        """Find a node for a job and send it there, or end it here.

        Parameters
        ----------
        record : JobRecord
            A job that is neither waiting nor running.
        reason : str
            What led to this placement, for the log.
        may_stay, may_move : bool, default True
            Whether this node, or another, may be chosen.
        may_end : bool, default True
            Whether a job without a place ends; otherwise nothing happens to it.

        Returns
        -------
        bool
            Whether a node was found.
        """
        choice, model = self._choose(record, may_stay=may_stay, may_move=may_move)
        if choice is None or model is None:
            if may_end:
                self._refuse(record, choice, reason)
            return False
        if choice.peer is not None and self._promises_gain:
            first, here_s = choice.looked[0]
            if first is None and choice.finish_s >= here_s:
                self._ledger.violate("moved without gain")
        if self._explains:
            self._ledger.decisions.append(Verdict(self.now_s, record.job.key, record.handle, model, choice, reason))
        if choice.peer is None:
            self._workbench.put(record, model)
        else:
            text = f"{reason}: {explanation.compare(choice)}" if self._explains else reason
            self._send(record, choice.peer, model, estimate_s=choice.finish_s, reason=text)
        return True

    def keep(self, record: JobRecord, *, limit_s: float | None) -> bool:
        """Take a peer's job in here if a rung makes its deadline, and the limit if there is one.

        Parameters
        ----------
        record : JobRecord
            A job that has just come.
        limit_s : float or None
            Longest own estimate, in seconds, at which it stays.

        Returns
        -------
        bool
            Whether it stayed.
        """
        self.now_s = self._ledger.now_s
        self._may_stay = True
        self.wait_s, self._has_room = self._workbench.look(record.job, record.turn_s)
        # A stolen job was asked for: the queue's bound has been thought of.
        self._has_room |= record.stolen
        budget_s = self.budget_s(record.job, record.origin)
        for model in record.job.models:
            finish_s = self.here_s(record.job, model)
            if finish_s is None or (limit_s is not None and finish_s > limit_s):
                continue
            if finish_s <= budget_s or not self._sheds:
                self._workbench.put(record, model)
                return True
        return False

    def budget_s(self, job: Job, origin: NodeId | None) -> float:
        """Return the time a job may still take here, in seconds, so that its answer is back in time."""
        back_s = 0.0
        if origin is not None:
            peer = self._ledger.view.get(origin)
            if peer is not None:
                back_s = peer.link.rtt_s / 2 + job.output_bytes / peer.link.goodput_bytes_s
        return job.deadline_s - self._ledger.now_s - back_s

    def best_here_s(self, job: Job) -> tuple[ModelDigest, float] | None:
        """Return the rung that finishes first here and when, in seconds; None when none can be had."""
        found: tuple[ModelDigest, float] | None = None
        wait_s, _ = self._workbench.look(job)
        for model in job.models:
            finish_s = self._workbench.finish_s(model, wait_s)
            if finish_s is not None and (found is None or finish_s < found[1]):
                found = (model, finish_s)
        return found

    @property
    def asks(self) -> bool:
        """Whether the policy wants peers to be asked before it chooses."""
        return self._ask is not None

    def candidates(self, record: JobRecord) -> list[Peer]:
        """Return the peers that the policy wants to ask about an own job that has just come."""
        ask = self._ask
        assert ask is not None, "only a policy that asks is asked whom"
        self._look_at(record, may_stay=True, may_move=True)
        if not self.may_move:
            return []
        found: dict[NodeId, Peer] = {}
        for model in record.job.models:
            for peer in ask(record.job, model, self):
                found.setdefault(peer.node_id, peer)
        return list(found.values())

    def place_asked(self, record: JobRecord, peers: list[Peer], *, reason: str) -> None:
        """Place a job whose policy has asked some peers."""
        self._asked = peers
        try:
            self.place(record, reason=reason)
        finally:
            self._asked = None

    def _look_at(self, record: JobRecord, *, may_stay: bool, may_move: bool) -> None:
        """Set the board up for one job."""
        ledger, job = self._ledger, record.job
        self.now_s = ledger.now_s
        self.may_move = may_move and job.hops < self._hop_limit and not record.stolen
        self._may_stay = may_stay
        self.wait_s, self._has_room = self._workbench.look(job, record.turn_s)
        visited = job.visited
        self._avoid = visited + record.avoid if record.avoid else visited

    def _choose(self, record: JobRecord, *, may_stay: bool, may_move: bool) -> tuple[Choice | None, ModelDigest | None]:
        """Return the choice with its model; without a model, the choice is the best that was too late."""
        job = record.job
        self._look_at(record, may_stay=may_stay, may_move=may_move)
        budget_s = self.budget_s(job, record.origin)
        # What is left of the way is the receiver's to decide: it knows its queue.
        margin = self._margin if record.origin is None and not record.attempt and not record.refusals else 0.0
        best: Choice | None = None
        best_model: ModelDigest | None = None
        for model in job.models:
            choice = self._policy.choose(job, model, self)
            if choice is None:
                continue
            if self._is_safe(choice, model, budget_s, margin):
                return choice, model
            if best is None or choice.finish_s < best.finish_s:
                best, best_model = choice, model
        if best is None or self._sheds:
            return self._look_again(job, best, budget_s, margin)
        return best, best_model

    def _is_safe(self, choice: Choice, model: ModelDigest, budget_s: float, margin: float) -> bool:
        """Return whether a choice makes the deadline even if its wait and its service are longer than predicted.

        Nodes are compared by what their queues have most likely become, but a job is promised nothing on the hope that
        a long queue has gone back to its mean: at the start of a burst it has not.
        """
        finish_s = choice.finish_s
        if choice.peer is not None:
            finish_s += self._hoped_s(choice.peer, model)
        if not margin or finish_s > budget_s:
            return finish_s <= budget_s
        if choice.peer is None:
            capability = self._workbench.models.capabilities[model]
        else:
            capability = choice.peer.capabilities[model][1]
        return finish_s + margin * choice.wait_s + (capability.p95_s - capability.mean_s) <= budget_s

    def _hoped_s(self, peer: Peer, model: ModelDigest) -> float:
        """Return how much of the wait that a peer told of is expected to be gone by now, in seconds."""
        state, service = peer.state, peer.service(model)
        if state is None or service is None:
            return 0.0
        return max(0.0, peer.wait_s - peer.expected_wait_s(service.value_s * state.slow_down, self.now_s))

    def _look_again(
        self, job: Job, best: Choice | None, budget_s: float, margin: float
    ) -> tuple[Choice | None, ModelDigest | None]:
        """Compare the whole active set once for a job that would miss its deadline, or has no place.

        After the peers that may take one more come those whose window is full. A window keeps jobs from piling up at
        a peer while there are other places; where it stands between a job and its only place it yields to the
        estimate, which counts what is on its way there and what doubts there are.
        """
        if not self.may_move:
            return best, None
        for is_beyond in (False, True):
            for model in job.models:
                found = self._least(job, model, is_beyond_window=is_beyond)
                if found is None:
                    continue
                if self._is_safe(found, model, budget_s, margin) or not self._sheds:
                    return found, model
                if best is None or found.finish_s < best.finish_s:
                    best = found
        return best, None

    def _least(self, job: Job, model: ModelDigest, *, is_beyond_window: bool) -> Choice | None:
        """Return the least finish of the peers within, or beyond, their windows."""
        now_s, avoid = self.now_s, self._avoid
        left = self.config.placement.extra_look
        least: Choice | None = None
        looked: list[tuple[Peer | None, float]] = []
        for peer in self._active.pool(model, now_s).peers:
            if peer.node_id in avoid or not peer.is_placeable(now_s) or peer.has_room is is_beyond_window:
                continue
            finish_s, wait_s = self.predict_s(peer, job, model)
            looked.append((peer, finish_s))
            if least is None or finish_s < least.finish_s:
                least = Choice(peer, finish_s, looked, wait_s)
            left -= 1
            if not left:
                break
        return least

    def _refuse(self, record: JobRecord, best: Choice | None, reason: str) -> None:
        """End a job that has no place: give a peer's back, refuse an own one."""
        estimate_s = None
        if best is not None:
            why, estimate_s = Reason.DEADLINE, best.finish_s
        elif record.last_reason is not None:
            why = record.last_reason
        elif not self._has_room or self._is_offered(record.job):
            why = Reason.QUEUE_FULL
        else:
            why = Reason.UNKNOWN_MODEL
        if record.job.deadline_s <= self._ledger.now_s:
            why = Reason.EXPIRED
        self.end(record, why=why, estimate_s=estimate_s, reason=f"{reason}: no node can take it in time")
        if self._explains:
            self._ledger.decisions.append(Verdict(self.now_s, record.job.key, record.handle, None, best, why.value))

    def end(self, record: JobRecord, *, why: Reason, estimate_s: float | None, reason: str) -> None:
        """End a job without a result: back to the peer it came from while it is unharmed, else with an error."""
        state = self._advertiser.state()
        if record.origin is not None and not record.losses and why not in _TERMINAL:
            self._ledger.nack(record, why=why, estimate_s=estimate_s, state=state, reason=reason)
        else:
            self._ledger.reject(record, why=why, estimate_s=estimate_s, state=state, reason=reason)

    def _is_offered(self, job: Job) -> bool:
        """Return whether any node known has one of the acceptable models."""
        mine = self._workbench.models.capabilities
        listed = self._ledger.view.listed
        return any(model in mine or any(model in peer.capabilities for peer in listed) for model in job.models)

    # Sending.

    def _send(self, record: JobRecord, peer: Peer, model: ModelDigest, *, estimate_s: float, reason: str) -> None:
        ledger, job = self._ledger, record.job
        self._check(record, peer)
        link = peer.link
        if not self._offers:
            is_offer = False
        elif link.is_measured:
            is_offer = job.input_bytes / link.goodput_bytes_s > self._offer_rtts * link.rtt_s
        else:
            is_offer = job.input_bytes > self._offer_bytes
        carriage = Carriage.OFFER if is_offer else Carriage.SEND
        shipment = self.ship(record, peer, model, carriage=carriage)
        if self.on_sent is not None:
            self.on_sent(shipment)
        ledger.counters["jobs_offloaded"] += 1
        ledger.retry_tokens.deposit(self._retry_ratio)
        make = Offer if is_offer else Send
        if is_offer:
            ledger.counters["jobs_offered"] += 1
        ledger.actions.append(
            make(
                command=shipment.command,
                handle=record.handle,
                peer=peer.node_id,
                estimate_s=estimate_s,
                reason=reason,
                job=self.outgoing(record),
            )
        )

    def ship(self, record: JobRecord, peer: Peer, model: ModelDigest, *, carriage: int) -> Shipment:
        """Enter a command at a peer into the books and set its watch; the action is the caller's."""
        ledger = self._ledger
        self.now_s = now_s = ledger.now_s
        quote = self.quote(peer, record.job, model)
        shipment = Shipment(
            command=ledger.new_command(),
            record=record,
            peer=peer,
            carriage=carriage,
            model=model,
            service_s=quote.service_s,
            transfer_s=quote.transfer_s,
            promised_s=quote.promised_s,
            now_s=now_s,
        )
        record.stage = Stage.AWAY
        ledger.open_shipment(shipment)
        if carriage == Carriage.OFFER:
            self.watch(shipment, first_word_s=0.0)
        else:
            ledger.uplink.push(record.job.input_bytes, peer.link.goodput_bytes_s, now_s)
            self.watch(shipment, first_word_s=quote.transfer_s)
        return shipment

    def watch(self, shipment: Shipment, *, first_word_s: float) -> None:
        """Set the time by which a peer must have said something about a job."""
        wait_s = self._transfer_factor * first_word_s + self._acknowledge_s + self._grace_s
        wait_s += 2.0 * shipment.peer.link.rtt_s
        self._ledger.timers.set(shipment, self._ledger.now_s + wait_s)

    def outgoing(self, record: JobRecord) -> Job:
        """Return the job as the next node is to see it."""
        job = record.job
        visited = job.visited + record.avoid + (self.node_id,)
        return replace(job, attempt=record.attempt, hops=job.hops + 1, visited=visited)

    def _check(self, record: JobRecord, peer: Peer) -> None:
        job = record.job
        if peer.node_id == job.entry:
            return
        if job.hops >= self._hop_limit:
            self._ledger.violate("hop limit")
        if peer.node_id in job.visited or peer.node_id in record.avoid:
            self._ledger.violate("visited twice")


_TERMINAL = frozenset({Reason.EXPIRED, Reason.CANCELLED, Reason.SUPERSEDED, Reason.POISON, Reason.MODEL_FAILED})
"""Ends that no other node could avert, so that a peer's job is not given back but ended."""
