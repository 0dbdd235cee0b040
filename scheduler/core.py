"""The decision core of a node: events and the time go in, actions come out.

It awaits nothing, reads no clock, draws from no generator but its own, logs nothing. The daemon and the simulator
drive this very class; for one seed and one list of events it gives one list of actions.

A job is in one of these places, and leaves by exactly one outcome (Reply, Reject or Nack):

    arrives --> UNPLACED --+--> WAITING --> RUNNING --> outcome
                   ^       +--> PARKED  --> WAITING          (until its model is loaded)
                   |       +--> AWAY    --> outcome          (offered, sent or leased to a peer)
                   +--- refused, lost, silent: placed again, within the retry rules

A job can be AWAY at a silent peer and, at the same time, waiting or running here or at another: the first outcome wins
and cancels the rest. Everything asked of others is a command in the ledger until it is answered or the job is over;
answers to other commands are late, and counted.

The parts, each in a module of its own, share one `Ledger`: `intake` (what comes), `placement` with a policy (where it
goes), `workbench` and `execution` (own workers), `outcomes` (answers of peers), `stealing`, `advertise`, `listening`.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from scheduler import explanation, variants
from scheduler.actions import Acknowledge, Action, Progress
from scheduler.active import ActiveSet
from scheduler.advertise import Advertiser
from scheduler.asking import Asking
from scheduler.config import CoreConfig
from scheduler.events import (
    Accepted,
    AdvertReceived,
    CancelRequested,
    DrainRequested,
    Event,
    JobArrived,
    LaneRan,
    LoadSampled,
    ModelChanged,
    Nacked,
    OfferAnswered,
    OfferReceived,
    PeerLost,
    PeerReachable,
    PeerRefuted,
    PeerSuspected,
    ProbeAnswered,
    Progressed,
    ReplyReceived,
    SendFailed,
    ServiceFailed,
    ServiceFinished,
    ServiceStarted,
    StealAnswered,
    StealRequested,
    TableReceived,
    TimerFired,
)
from scheduler.execution import Execution
from scheduler.hedging import Hedge, Hedging
from scheduler.intake import Intake
from scheduler.jobs import Inquiry, JobRecord, Reservation, Shipment
from scheduler.ledger import Ledger
from scheduler.listening import Listening
from scheduler.outcomes import Outcomes
from scheduler.peer import Liveness
from scheduler.placement import Placement
from scheduler.policy import Policy
from scheduler.records import Decision, Statistics
from scheduler.residency import Load
from scheduler.snapshot import PeerSnapshot, snapshot_peers
from scheduler.stealing import Stealing
from scheduler.timers import NEVER, Alarm
from scheduler.types import ModelDigest, NodeId, PeerState, Reason
from scheduler.workbench import Workbench


class Core:
    """Decides for one node.

    Parameters
    ----------
    config : CoreConfig
        All bounds and parameters.
    node_id : str
        This node.
    epoch : int
        Boot counter of this node, larger than in any earlier life.
    rng : random.Random
        Source of all draws, used by nothing else.
    now_s : float
        Present time in seconds on the local monotonic clock.
    policy : Policy, optional
        A placement policy to use in place of the one the configuration names.

    Examples
    --------
    >>> core = Core(CoreConfig(), node_id="a", epoch=1, rng=random.Random("7/a"), now_s=0.0)
    >>> core.handle(TimerFired(), now_s=0.0)
    []
    """

    def __init__(
        self,
        config: CoreConfig,
        *,
        node_id: NodeId,
        epoch: int,
        rng: random.Random,
        now_s: float,
        policy: Policy | None = None,
    ) -> None:
        chosen = variants.make(config.placement.policy) if policy is None else policy
        self._policy = chosen
        ledger = self._ledger = Ledger(config, node_id=node_id, rng=rng, now_s=now_s)
        self._workbench = Workbench(ledger)
        self._advertiser = Advertiser(ledger, self._workbench, epoch=epoch)
        self._active = ActiveSet(ledger.view, config, rng=rng, now_s=now_s)
        self._placement = Placement(ledger, self._workbench, self._active, self._advertiser, chosen)
        self._listening = Listening(ledger, self._advertiser, chosen)
        self._execution = Execution(ledger, self._workbench, self._placement, self._advertiser)
        self._hedging: Hedging | None = None
        if config.hedge.share > 0.0:
            self._hedging = Hedging(ledger, self._placement, self._active)
            self._placement.on_sent = self._hedging.watch
        self._outcomes = Outcomes(
            ledger,
            placement=self._placement,
            execution=self._execution,
            listening=self._listening,
            advertiser=self._advertiser,
            policy=chosen,
            hedging=self._hedging,
        )
        self._asking = Asking(ledger, self._placement, self._listening)
        self._intake = Intake(
            ledger,
            workbench=self._workbench,
            placement=self._placement,
            listening=self._listening,
            advertiser=self._advertiser,
            asking=self._asking,
        )
        self._stealing = Stealing(
            ledger,
            workbench=self._workbench,
            active=self._active,
            placement=self._placement,
            listening=self._listening,
            advertiser=self._advertiser,
        )
        self._exchange = Alarm("exchange")
        ledger.timers.set(self._exchange, self._active.next_exchange_s)
        self._slots = config.queue.slots
        self._handlers = self._make_handlers()

    def handle(self, event: Event, *, now_s: float) -> list[Action]:
        """Take in one event.

        Parameters
        ----------
        event : Event
            What happened.
        now_s : float
            Present time in seconds; it never goes back.

        Returns
        -------
        list of Action
            To be carried out in order, after this call has returned.

        Raises
        ------
        ValueError
            When the driver mints a handle or an offer twice.
        """
        ledger = self._ledger
        assert now_s >= ledger.now_s, f"time went back from {ledger.now_s} to {now_s}"
        ledger.now_s = now_s
        actions: list[Action] = []
        ledger.actions = actions
        self._handlers[type(event)](event)
        if ledger.queue.length and len(ledger.runs) < self._slots:
            self._execution.feed()
        if now_s >= self._advertiser.token_at_s:
            self._advertiser.tell_change()
        if now_s >= self._stealing.next_s:
            self._stealing.seek()
        if ledger.is_draining:
            self._intake.tell_drained()
        return actions

    def awaits(self, command: int) -> bool:
        """Say whether the next result of a command is passed on: it was sent, and its job has had no outcome."""
        return command in self._ledger.shipments

    def next_deadline_s(self) -> float | None:
        """Return when TimerFired is wanted at the latest, in seconds; None for not at all."""
        return self._ledger.timers.next_due_s()

    @property
    def epoch(self) -> int:
        """Boot counter in use: above the one given when records of a later life were heard of. Keep it on disk."""
        return self._advertiser.epoch

    @property
    def is_at_rest_but_for_one(self) -> bool:
        """Whether one job, running here or at a peer, is all there is in hand: the next would be decided like it.

        That is so for policies that move a job only for a predicted gain; others may send the next one elsewhere.
        """
        ledger = self._ledger
        is_one = len(ledger.jobs) == len(ledger.runs) + len(ledger.shipments) == 1
        return is_one and self._policy.promises_gain and not (ledger.reservations or ledger.is_draining)

    @property
    def jobs_in_hand(self) -> int:
        """How many jobs have not had their outcome."""
        return len(self._ledger.jobs)

    def serves_only(self, jobs: int, models: Sequence[ModelDigest]) -> bool:
        """Say whether so many jobs here are all there is in hand, and no peer is known that has one of the models.

        More like them are served here, then, one after another; for what policies, is_at_rest_but_for_one says.
        """
        ledger = self._ledger
        if len(ledger.jobs) != jobs or ledger.shipments or ledger.parked or ledger.reservations or ledger.is_draining:
            return False
        return self._policy.promises_gain and not ledger.view.may_have(models)

    def runs_at_once(self, model: ModelDigest, *, service_max_s: float) -> bool:
        """Say whether a job that came now would be run here at once, and be over within that many seconds.

        It would where nothing else is in hand and the model is loaded; for what policies, is_at_rest_but_for_one says.
        """
        ledger = self._ledger
        if ledger.jobs or ledger.reservations or ledger.is_draining or not self._policy.promises_gain:
            return False
        return model in self._workbench.models.used and self._workbench.service_s(model) <= service_max_s

    def state_record(self, now_s: float) -> PeerState:
        """Make this node's state record, for a message that answers nothing."""
        self._ledger.now_s = max(self._ledger.now_s, now_s)
        return self._advertiser.state()

    def decisions(self) -> list[Decision]:
        """Return the recent placements, oldest first, with what each was compared with."""
        ledger = self._ledger
        return [explanation.tell(verdict, here=ledger.node_id) for verdict in ledger.decisions]

    def peers(self) -> tuple[PeerSnapshot, ...]:
        """Return what is known of the other nodes, sorted by node."""
        return snapshot_peers(self._ledger.view)

    def statistics(self) -> Statistics:
        """Return all counters and gauges as of the last event."""
        ledger = self._ledger
        counters = ledger.counters
        return Statistics(
            jobs_arrived=counters["jobs_arrived"],
            jobs_received=counters["jobs_received"],
            jobs_stolen=counters["jobs_stolen"],
            jobs_granted=counters["jobs_granted"],
            jobs_offloaded=counters["jobs_offloaded"],
            jobs_offered=counters["jobs_offered"],
            jobs_executed=counters["jobs_executed"],
            replies=counters["replies"],
            rejects=dict(sorted(ledger.rejects.items())),
            nacks=dict(sorted(ledger.nacks.items())),
            refusals=dict(sorted(ledger.refusals.items())),
            retries=counters["retries"],
            executors_lost=counters["executors_lost"],
            executors_silent=counters["executors_silent"],
            late_answers=counters["late_answers"],
            adverts_sent=counters["adverts_sent"],
            steals_asked=counters["steals_asked"],
            probes_sent=counters["probes_sent"],
            jobs_hedged=counters["jobs_hedged"],
            invariant_violations=counters["invariant_violations"],
            queue_length=ledger.queue.length,
            backlog_s=self._workbench.backlog_s(),
            jobs_running=sum(len(run.records) for run in ledger.runs.values()),
            jobs_away=len(ledger.shipments),
            jobs_open=len(ledger.jobs),
            peers_alive=sum(1 for peer in ledger.view.listed if peer.liveness is Liveness.ALIVE),
            peers_active=len(self._active),
            reserved_bytes=ledger.reserved_bytes,
            models_loaded=len(self._workbench.models.loaded()),
            draining=ledger.is_draining,
        )

    def _make_handlers(self) -> dict[type, Callable[[Any], None]]:
        """Tie each event to the part that handles it. Any: each handler takes its own event, the key ensures it."""
        return {
            JobArrived: self._intake.on_job,
            OfferReceived: self._intake.on_offer,
            CancelRequested: self._intake.on_cancel,
            DrainRequested: self._on_drain,
            OfferAnswered: self._outcomes.on_offer_answered,
            Accepted: self._outcomes.on_accepted,
            Progressed: self._outcomes.on_progressed,
            Nacked: self._outcomes.on_nacked,
            ReplyReceived: self._outcomes.on_reply,
            SendFailed: self._on_send_failed,
            ServiceStarted: self._execution.on_started,
            ServiceFinished: self._execution.on_finished,
            ServiceFailed: self._execution.on_failed,
            LaneRan: self._execution.on_lane,
            ModelChanged: self._execution.on_models,
            StealRequested: self._stealing.on_requested,
            StealAnswered: self._stealing.on_answered,
            AdvertReceived: self._on_advert,
            TableReceived: self._on_table,
            ProbeAnswered: self._asking.on_answered,
            PeerReachable: self._on_reachable,
            PeerSuspected: self._on_suspected,
            PeerRefuted: self._on_refuted,
            PeerLost: self._on_lost,
            LoadSampled: self._on_load,
            TimerFired: self._on_timer,
        }

    def _on_drain(self, event: DrainRequested) -> None:
        self._intake.on_drain()

    def _on_send_failed(self, event: SendFailed) -> None:
        if not self._stealing.on_failed(event.command) and not self._asking.on_failed(event.command):
            self._outcomes.on_send_failed(event)

    def _on_advert(self, event: AdvertReceived) -> None:
        self._listening.hear_gossip(event.state)

    def _on_table(self, event: TableReceived) -> None:
        self._ledger.view.learn_table(event.table)

    def _on_reachable(self, event: PeerReachable) -> None:
        self._ledger.view.set_reachable(event.peer, reachable=event.reachable)

    def _on_suspected(self, event: PeerSuspected) -> None:
        self._ledger.view.set_liveness(event.peer, Liveness.SUSPECT)

    def _on_refuted(self, event: PeerRefuted) -> None:
        self._ledger.view.set_liveness(event.peer, Liveness.ALIVE)

    def _on_lost(self, event: PeerLost) -> None:
        peer = self._ledger.view.forget(event.peer)
        if peer is not None:
            self._stealing.on_peer_lost(peer)
            self._outcomes.on_peer_lost(peer)

    def _on_load(self, event: LoadSampled) -> None:
        self._workbench.slow_down = max(1.0, event.slow_down)
        self._workbench.memory_free_bytes = event.memory_free_bytes
        self._workbench.power_class = event.power_class

    def _on_timer(self, event: TimerFired) -> None:
        timers, now_s = self._ledger.timers, self._ledger.now_s
        while (target := timers.pop_due(now_s)) is not None:
            if isinstance(target, Shipment):
                self._outcomes.on_overdue(target)
            elif isinstance(target, JobRecord):
                self._look_after(target)
            elif isinstance(target, Alarm):
                self._ring(target)
            elif isinstance(target, Reservation):
                self._ledger.release(target.offer)
            elif isinstance(target, Inquiry):
                self._asking.settle(target)
            elif isinstance(target, Hedge) and self._hedging is not None:
                self._hedging.fire(target)
            elif isinstance(target, Load):
                self._execution.on_overdue_load(target)

    def _ring(self, alarm: Alarm) -> None:
        if alarm is self._advertiser.alarm:
            self._advertiser.fire()
        elif alarm is self._stealing.alarm:
            self._stealing.fire()
        elif alarm is self._workbench.alarm:
            self._execution.feed()
        else:
            self._active.exchange(self._ledger.now_s)
            self._ledger.timers.set(self._exchange, self._active.next_exchange_s)

    def _look_after(self, record: JobRecord) -> None:
        """End a job at its deadline, or tell the peer it came from that it is still in hand."""
        ledger = self._ledger
        config, now_s = ledger.config, ledger.now_s
        if config.placement.expire and now_s >= record.job.deadline_s:
            was_lost = record.last_reason is Reason.LOST and record.run is None
            why = Reason.LOST if was_lost else Reason.EXPIRED
            self._placement.end(record, why=why, estimate_s=None, reason="its deadline has passed")
            return
        due_s = record.job.deadline_s if config.placement.expire else NEVER
        if record.origin is not None:
            if now_s >= record.report_at_s:
                self._report(record)
            due_s = min(due_s, record.report_at_s)
        ledger.timers.set(record, due_s)

    def _report(self, record: JobRecord) -> None:
        state = self._advertiser.state()
        record.report_at_s = self._ledger.now_s + self._ledger.config.watch.progress_s
        if record.acknowledged:
            self._ledger.actions.append(Progress(handle=record.handle, state=state, reason="still in hand"))
        else:
            record.acknowledged = True
            self._ledger.actions.append(Acknowledge(handle=record.handle, state=state, reason="not done yet"))
