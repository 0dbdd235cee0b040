"""What comes in: jobs of own clients, jobs and offers of peers, cancellations, and the wish to stop."""

import msgspec

from scheduler.actions import Accept, Drained, NackOffer
from scheduler.advertise import Advertiser
from scheduler.asking import Asking
from scheduler.events import CancelRequested, JobArrived, OfferReceived
from scheduler.jobs import JobRecord, Reservation, Stage
from scheduler.ledger import Ledger
from scheduler.listening import Listening
from scheduler.placement import Placement
from scheduler.timers import NEVER
from scheduler.types import Job, NodeId, Reason
from scheduler.workbench import Workbench


class Intake:
    """Handles arrivals.

    Parameters
    ----------
    ledger : Ledger
        Shared state; actions go there.
    workbench : Workbench
        Local execution.
    placement : Placement
        Finds a place for each job.
    listening : Listening
        Takes in states.
    advertiser : Advertiser
        Maker of state records.
    asking : Asking
        Places own jobs, after questions where the policy has some.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        workbench: Workbench,
        placement: Placement,
        listening: Listening,
        advertiser: Advertiser,
        asking: Asking,
    ) -> None:
        self._asking = asking
        self._ledger = ledger
        self._workbench = workbench
        self._placement = placement
        self._listening = listening
        self._advertiser = advertiser
        self._is_drained = False
        rules = ledger.config.placement
        self._expires = rules.expire
        self._hop_limit = rules.hop_limit
        self._redecides = rules.receiver == "redecides"
        self._keeps = rules.receiver == "keeps"
        self._factor = rules.reconsider_factor
        self._allowance_s = rules.reconsider_allowance_s
        self._jobs_max = ledger.config.queue.jobs
        self._acknowledge_s = ledger.config.watch.acknowledge_s

    def on_job(self, event: JobArrived) -> None:
        """Take a job in, pass it on, or refuse it.

        Raises
        ------
        ValueError
            When the handle is in use: the driver mints one per arrival.
        """
        ledger, job, handle, origin = self._ledger, event.job, event.handle, event.origin
        if handle in ledger.jobs:
            raise ValueError(f"handle {handle} is in use; the driver mints a new one per arrival")
        if job.deadline_s == NEVER:
            deadline_s = ledger.now_s + ledger.config.placement.default_deadline_s
            job = msgspec.structs.replace(job, deadline_s=deadline_s)
        record = JobRecord(
            handle=handle, job=job, origin=origin, stolen=event.stolen, sender_estimate_s=event.sender_estimate_s
        )
        ledger.jobs[handle] = record
        offer = event.offer
        reservation = None if offer is None else ledger.release(offer)
        if origin is None:
            ledger.counters["jobs_arrived"] += 1
        else:
            ledger.counters["jobs_received"] += 1
            if record.stolen:
                ledger.counters["jobs_stolen"] += 1
        why = self._objection(record)
        if why is not None:
            self._placement.end(record, why=why, estimate_s=None, reason="refused at arrival")
            return
        if job.newest_wins and job.stream and self._supersede(record):
            return
        if origin is None:
            self._asking.place(record, reason="arrived")
        else:
            self._consider(record, was_promised=reservation is not None)
        if record.stage != Stage.DONE:
            self._set_watch(record)

    def _objection(self, record: JobRecord) -> Reason | None:
        """Return why a job is refused before any estimate."""
        ledger, job = self._ledger, record.job
        if ledger.is_draining:
            return Reason.DRAINING
        if len(ledger.jobs) > self._jobs_max:
            return Reason.QUEUE_FULL
        if not job.models:
            return Reason.UNKNOWN_MODEL
        if record.origin is not None:
            return self._peer_objection(job)
        if self._expires and job.deadline_s <= ledger.now_s:
            return Reason.EXPIRED
        return None

    def _peer_objection(self, job: Job) -> Reason | None:
        ledger = self._ledger
        if job.entry != ledger.node_id:
            if ledger.node_id in job.visited:
                return Reason.ALREADY_VISITED
            if job.hops > self._hop_limit:
                return Reason.HOP_LIMIT
        return None

    def _supersede(self, record: JobRecord) -> bool:
        """Put the frame in the place of older waiting ones of its stream; return whether it is itself the older.

        With their place it takes their turn. Behind all others, a stream whose frames come faster than it is served
        would begin to wait anew with each of them, and never have its turn.
        """
        ledger, job = self._ledger, record.job
        for handle in ledger.streams.older(client=job.client, stream=job.stream, frame=job.frame):
            older = ledger.jobs[handle]
            record.turn_s = min(record.turn_s, older.turn_s)
            self._placement.end(older, why=Reason.SUPERSEDED, estimate_s=None, reason=f"frame {job.frame} came")
        if not ledger.streams.newer(client=job.client, stream=job.stream, frame=job.frame):
            return False
        self._placement.end(record, why=Reason.SUPERSEDED, estimate_s=None, reason="a newer frame waits here")
        return True

    def _consider(self, record: JobRecord, *, was_promised: bool) -> None:
        """Serve a peer's job here; pass it on only when the sender's estimate was far off, or it cannot be served."""
        can_pass_on = record.job.hops < self._hop_limit and not record.stolen
        limit_s = None
        if self._redecides and can_pass_on and not was_promised:
            self._placement.place(record, reason="decided anew")
            return
        if can_pass_on and not was_promised:
            limit_s = self._reconsider_above_s(record.sender_estimate_s)
        if self._placement.keep(record, limit_s=limit_s):
            return
        if can_pass_on:
            self._placement.place(record, reason="the sender expected it sooner" if limit_s else "no room here")
            return
        self._refuse(record)

    def _refuse(self, record: JobRecord) -> None:
        """Give a peer's job back that cannot be served here and must not go on."""
        best = self._placement.best_here_s(record.job)
        if best is None:
            why, estimate_s = Reason.UNKNOWN_MODEL, None
        elif best[1] > self._placement.budget_s(record.job, record.origin):
            why, estimate_s = Reason.DEADLINE, best[1]
        else:
            why, estimate_s = Reason.QUEUE_FULL, best[1]
        self._placement.end(record, why=why, estimate_s=estimate_s, reason="cannot be served here in time")

    def _reconsider_above_s(self, sender_estimate_s: float | None) -> float | None:
        if sender_estimate_s is None or self._keeps:
            return None
        return self._factor * sender_estimate_s + self._allowance_s

    def _refuse_above_s(self, sender_estimate_s: float | None) -> float | None:
        """Return the own estimate, in seconds, from which an offer is refused: its sender has to begin again then."""
        if sender_estimate_s is None or self._ledger.config.placement.receiver == "keeps":
            return None
        offer = self._ledger.config.offer
        return offer.refuse_factor * sender_estimate_s + offer.refuse_allowance_s

    def _set_watch(self, record: JobRecord) -> None:
        """Have a job looked after at its deadline, and a peer's before that to tell its origin of it."""
        ledger = self._ledger
        due_s = record.job.deadline_s if self._expires else NEVER
        if record.origin is not None:
            record.report_at_s = ledger.now_s + self._acknowledge_s
            due_s = min(due_s, record.report_at_s)
        ledger.timers.set(record, due_s)

    def on_offer(self, event: OfferReceived) -> None:
        """Keep room for an offered job, or refuse it while its payload is still at the sender."""
        self._listening.hear(event.state)
        ledger, job = self._ledger, event.job
        why, estimate_s = self._judge_offer(event)
        if why is not None:
            ledger.nacks[why.value] += 1
            ledger.actions.append(
                NackOffer(
                    offer=event.offer,
                    why=why,
                    estimate_s=estimate_s,
                    state=self._advertiser.state(),
                    reason="offer refused",
                )
            )
            return
        best = self._placement.best_here_s(job)
        assert best is not None, "an offer without a model here was refused"
        expires_s = ledger.now_s + ledger.config.offer.expire_s + self._transfer_s(event.peer, job)
        service_s = self._workbench.service_s(best[0])
        ledger.reserve(
            Reservation(offer=event.offer, peer_id=event.peer, input_bytes=job.input_bytes, service_s=service_s),
            expires_s,
        )
        ledger.actions.append(
            Accept(offer=event.offer, expires_s=expires_s, state=self._advertiser.state(), reason="room kept")
        )

    def _judge_offer(self, event: OfferReceived) -> tuple[Reason | None, float | None]:
        ledger, job = self._ledger, event.job
        if ledger.is_draining:
            return Reason.DRAINING, None
        why = self._peer_objection(job)
        if why is not None:
            return why, None
        if event.offer in ledger.reservations:
            raise ValueError(f"offer {event.offer} is open already; the driver mints a new one per offer")
        if ledger.reserved_bytes + job.input_bytes > ledger.config.queue.receive_budget_bytes:
            return Reason.NO_ROOM, None
        best = self._placement.best_here_s(job)
        if best is None:
            return Reason.UNKNOWN_MODEL, None
        transfer_s = self._transfer_s(event.peer, job)
        if event.sender_estimate_s is not None:
            # The sender has measured the way here; our own figure is of the way back, or a guess.
            transfer_s = min(transfer_s, event.sender_estimate_s)
        finish_s = max(best[1], transfer_s + self._workbench.service_s(best[0]))
        if finish_s > self._placement.budget_s(job, event.peer) and ledger.config.placement.shedding:
            return Reason.DEADLINE, finish_s
        limit_s = self._refuse_above_s(event.sender_estimate_s)
        # Only what waits and runs here can be worse than the sender thinks.
        if not self._workbench.look(job)[1] or (limit_s is not None and best[1] > limit_s):
            return Reason.QUEUE_FULL, finish_s
        return None, None

    def _transfer_s(self, node_id: NodeId, job: Job) -> float:
        peer = self._ledger.view.get(node_id)
        if peer is None:
            return job.input_bytes / self._ledger.config.estimate.goodput_prior_bytes_s
        return job.input_bytes / peer.link.goodput_bytes_s + peer.link.rtt_s

    def on_cancel(self, event: CancelRequested) -> None:
        """End a job that nobody wants any more; the word travels on to wherever it is."""
        record = self._ledger.jobs.get(event.handle)
        if record is None:
            self._ledger.counters["late_cancels"] += 1
            return
        self._placement.end(record, why=Reason.CANCELLED, estimate_s=None, reason="its origin cancelled it")

    def on_drain(self) -> None:
        """Take no more; give back what peers sent, hand over own jobs, finish what runs."""
        ledger = self._ledger
        if ledger.is_draining:
            return
        ledger.is_draining = True
        for offer in list(ledger.reservations):
            ledger.release(offer)
        waiting = [each for each in ledger.jobs.values() if each.stage <= Stage.PARKED]
        self._advertiser.tell_now("draining")
        for record in waiting:
            if record.origin is not None:
                self._placement.end(record, why=Reason.DRAINING, estimate_s=None, reason="draining")
            else:
                self._hand_over(record)

    def _hand_over(self, record: JobRecord) -> None:
        """Send an own waiting job to a peer that makes its deadline, or leave it where it is."""
        ledger = self._ledger
        ledger.withdraw(record)
        record.stage = Stage.UNPLACED
        if not self._placement.place(record, reason="draining", may_stay=False, may_end=False):
            self._workbench.put(record, record.model)

    def tell_drained(self) -> None:
        """Say once that a drain is complete; called after every event."""
        ledger = self._ledger
        if ledger.is_draining and not self._is_drained and not ledger.jobs and not ledger.runs:
            self._is_drained = True
            ledger.actions.append(Drained(reason="no job is left"))
