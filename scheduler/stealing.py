"""Work moves to idle nodes: an idle one asks a few peers at random, a loaded one grants from its tail.

Forwarding is the better half at low load and stealing at high load (Eager, Lazowska and Zahorjan 1986); here it is the
safety net under bad placements. Asking is bounded by one open question and a backoff; granting by the gain, the hop
limit and the visited set. What is granted stays in the victim's books until the thief has answered, like any job sent
to a peer.
"""

import math

from scheduler.actions import GrantLease, Steal
from scheduler.active import ActiveSet
from scheduler.advertise import Advertiser
from scheduler.events import StealAnswered, StealRequested
from scheduler.jobs import Carriage, JobRecord
from scheduler.ledger import Ledger
from scheduler.listening import Listening
from scheduler.peer import Peer
from scheduler.placement import Placement
from scheduler.queue import Waiting
from scheduler.timers import Alarm
from scheduler.types import Job, ModelDigest
from scheduler.workbench import Workbench

_LOOK_PER_GRANT = 4
"""Jobs looked at from the tail per job that may be granted."""

_FINISH_BEFORE_TIE_S = 1e-9


class Stealing:
    """Both sides of a steal.

    Parameters
    ----------
    ledger : Ledger
        Shared state; actions go there.
    workbench : Workbench
        Local execution.
    active : ActiveSet
        Draws victims.
    placement : Placement
        Predicts and ships what is granted.
    listening : Listening
        Takes in states.
    advertiser : Advertiser
        Maker of state records.
    """

    def __init__(
        self,
        ledger: Ledger,
        *,
        workbench: Workbench,
        active: ActiveSet,
        placement: Placement,
        listening: Listening,
        advertiser: Advertiser,
    ) -> None:
        self._ledger = ledger
        self._config = ledger.config.steal
        self._workbench = workbench
        self._active = active
        self._placement = placement
        self._listening = listening
        self._advertiser = advertiser
        self.alarm = Alarm("steal")
        """Rings when the next attempt may be made, or when the open one has had no answer."""
        self._backoff_s = self._config.backoff_s
        self.next_s = ledger.now_s if self._config.enabled else math.inf
        """When this node may ask again; infinity while a question is open."""
        self._command: int | None = None
        self._victim: Peer | None = None

    # The thief.

    def seek(self) -> None:
        """Ask for work if this node is idle; called after every event from `next_s` on."""
        ledger = self._ledger
        if not self._workbench.is_idle or ledger.is_draining:
            return
        models = self._workbench.models.loaded()
        victim = self._choose_victim(models) if models else None
        if victim is None:
            self._back_off()
            return
        self._command = ledger.new_command()
        self._victim = victim
        self.next_s = math.inf
        ledger.counters["steals_asked"] += 1
        assert victim.state is not None, "a victim was chosen by its state"
        ledger.actions.append(
            Steal(
                command=self._command,
                victim=victim.node_id,
                models=models,
                room=self._config.room * ledger.config.queue.slots,
                state=self._advertiser.state(),
                reason=f"idle, {victim.node_id[-8:]} has {victim.state.backlog_s:.3f} s of work",
            )
        )
        watch = ledger.config.watch
        ledger.timers.set(self.alarm, ledger.now_s + watch.progress_s + watch.grace_s + 2.0 * victim.link.rtt_s)

    def fire(self) -> None:
        """Give up an unanswered question; the next attempt follows from `seek`."""
        if self._command is not None:
            self._forget_question()
            self._back_off()

    def on_answered(self, event: StealAnswered) -> None:
        """Note what the victim granted."""
        self._listening.hear(event.state)
        if event.command != self._command:
            self._ledger.counters["late_answers"] += 1
            return
        self._forget_question()
        if event.granted > 0:
            self._backoff_s = self._config.backoff_s
            # The jobs are on their way; until they are here this node still looks idle to itself.
        self._back_off()

    def on_failed(self, command: int) -> bool:
        """Note that a question failed; return whether it was one of ours."""
        if command != self._command or self._command is None:
            return False
        victim = self._victim
        self._forget_question()
        if victim is not None:
            self._listening.isolate(victim)
        self._back_off()
        return True

    def on_peer_lost(self, peer: Peer) -> None:
        """Wait no more for a dead victim."""
        if self._victim is peer:
            self._forget_question()
            self._back_off()

    def _choose_victim(self, models: tuple[ModelDigest, ...]) -> Peer | None:
        now_s = self._ledger.now_s
        own_s = min(self._workbench.service_s(model) for model in models)
        best: Peer | None = None
        best_s = 0.0
        for peer in self._active.draw_any(self._config.victims):
            state = peer.state
            if state is None or not peer.is_placeable(now_s):
                continue
            # With a free slot, or with nothing behind what is running, there is nothing to be had.
            waiting_s = state.backlog_s - state.running_until_s if state.running_until_s > 0 else 0.0
            if waiting_s <= _FINISH_BEFORE_TIE_S or state.backlog_s < self._config.gain * (own_s + peer.link.rtt_s):
                continue
            if state.backlog_s > best_s:
                best, best_s = peer, state.backlog_s
        return best

    def _back_off(self) -> None:
        ledger = self._ledger
        self.next_s = ledger.now_s + self._backoff_s * ledger.rng.uniform(0.9, 1.1)
        self._backoff_s = min(2.0 * self._backoff_s, self._config.backoff_limit_s)
        ledger.timers.set(self.alarm, self.next_s)

    def _forget_question(self) -> None:
        self._command = None
        self._victim = None

    # The victim.

    def on_requested(self, event: StealRequested) -> None:
        """Grant what would be done sooner at the thief."""
        ledger = self._ledger
        self._listening.hear(event.state)
        peer = ledger.view.get(event.peer)
        grants: list[tuple[int, int]] = []
        jobs: list[Job] = []
        if peer is not None and peer.state is not None and not ledger.is_draining:
            for record, model in self._choose_grants(peer, event.models, event.room):
                ledger.withdraw(record)
                shipment = self._placement.ship(record, peer, model, carriage=Carriage.LEASE)
                grants.append((shipment.command, record.handle))
                jobs.append(self._placement.outgoing(record))
        ledger.counters["jobs_granted"] += len(grants)
        ledger.actions.append(
            GrantLease(
                request=event.request,
                grants=tuple(grants),
                state=self._advertiser.state(),
                reason="sooner done there" if grants else "nothing would be sooner done there",
                jobs=tuple(jobs),
            )
        )

    def _choose_grants(
        self, thief: Peer, models: tuple[ModelDigest, ...], room: int
    ) -> list[tuple[JobRecord, ModelDigest]]:
        ledger, queue = self._ledger, self._ledger.queue
        limit = min(room, (len(queue) + 1) // 2)
        gain = 1.0 - ledger.config.placement.hysteresis
        self._placement.now_s = ledger.now_s
        chosen: list[tuple[JobRecord, ModelDigest]] = []
        granted_s = 0.0
        for entry in queue.from_tail(_LOOK_PER_GRANT * limit):
            if len(chosen) == limit:
                break
            record = ledger.jobs[entry.handle]
            model = self._stealable_as(record, thief, models)
            if model is None:
                continue
            quote = self._placement.quote(thief, record.job, model)
            there_s = quote.promised_s + granted_s
            if there_s < gain * self._finish_here_s(entry):
                chosen.append((record, model))
                granted_s += quote.service_s
        return chosen

    def _finish_here_s(self, entry: Waiting) -> float:
        ledger = self._ledger
        ahead_s = (ledger.queue.ahead_of_s(entry) + ledger.reserved_s) / ledger.config.queue.slots
        return self._workbench.running_s()[0] + ahead_s + entry.service_s

    def _stealable_as(self, record: JobRecord, thief: Peer, models: tuple[ModelDigest, ...]) -> ModelDigest | None:
        """Choose the rung a thief would serve; None when the job must not go there."""
        job = record.job
        has_moved_enough = job.hops >= self._ledger.config.placement.hop_limit
        if thief.node_id != job.entry and (has_moved_enough or thief.node_id in job.visited):
            return None
        if record.stolen or thief.node_id in record.avoid or record.shipments:
            return None
        for model in job.models:
            if model in models and model in thief.capabilities:
                return model
        return None
