"""What comes back from this node's own workers, and keeping them fed."""

from math import inf

from scheduler.advertise import Advertiser
from scheduler.events import LaneRan, ModelChanged, ServiceFailed, ServiceFinished, ServiceStarted
from scheduler.explanation import Verdict
from scheduler.jobs import JobRecord, Run, Stage
from scheduler.ledger import Ledger
from scheduler.placement import Placement
from scheduler.residency import Load
from scheduler.types import Reason
from scheduler.workbench import Workbench


class Execution:
    """Handles the events of local workers and models.

    Parameters
    ----------
    ledger : Ledger
        Shared state; actions go there.
    workbench : Workbench
        Local execution.
    placement : Placement
        Places again what a worker lost.
    advertiser : Advertiser
        Maker of state records.
    """

    def __init__(self, ledger: Ledger, workbench: Workbench, placement: Placement, advertiser: Advertiser) -> None:
        self._ledger = ledger
        self._workbench = workbench
        self._placement = placement
        self._advertiser = advertiser

    def feed(self) -> None:
        """Start what can start; find another place for what would come too late."""
        for dropped in self._workbench.start_waiting():
            record = dropped.record
            if record.shipments or (dropped.why is Reason.DEADLINE and record.origin is None):
                self.place_again(record, reason="too late here", may_stay=False)
            else:
                self._placement.end(
                    record, why=dropped.why, estimate_s=dropped.estimate_s, reason="its turn came too late"
                )

    def on_started(self, event: ServiceStarted) -> None:
        """Count the service from here."""
        run = self._ledger.runs.get(event.command)
        if run is not None:
            run.started_s = self._ledger.now_s

    def on_finished(self, event: ServiceFinished) -> None:
        """Learn the service time, start the next job, answer this one."""
        ledger = self._ledger
        run = ledger.runs.pop(event.command, None)
        if run is None:
            ledger.counters["late_answers"] += 1
            return
        ledger.counters["jobs_executed"] += len(run.records)
        self._learn(run, event.service_s)
        live = [record for record in run.records if record.stage == Stage.RUNNING and record.run is run]
        for record in live:
            record.run = None
        if ledger.queue.length:
            self.feed()
        if not live:
            return
        # Made after the next job started, so that it tells of the node as the answer leaves it.
        state = self._advertiser.state()
        for record in live:
            if record.stage != Stage.DONE:
                ledger.reply(record, command=run.command, state=state, reason="done here")

    def on_lane(self, event: LaneRan) -> None:
        """Take note of jobs that came and went without a decision of their own."""
        ledger, models, executor = self._ledger, self._workbench.models, event.executor
        came = "jobs_arrived" if event.origin is None else "jobs_received"
        went = "jobs_executed" if executor is None else "jobs_offloaded"
        for counter in (came, went, "replies"):
            ledger.counters[counter] += len(event.keys)
        if executor is None and event.model in models.used:
            models.use(event.model)
        reason = "by a lane, on a ticket" if event.origin is None else "by a peer's lane"
        for key in event.keys if ledger.config.explain else ():
            ledger.decisions.append(Verdict(ledger.now_s, key, 0, event.model, None, reason, executor))

    def on_failed(self, event: ServiceFailed) -> None:
        """End or place again the jobs of a failed execution."""
        ledger = self._ledger
        run = ledger.runs.pop(event.command, None)
        if run is None:
            ledger.counters["late_answers"] += 1
            return
        live = [record for record in run.records if record.stage == Stage.RUNNING and record.run is run]
        for record in live:
            record.run = None
            record.stage = Stage.UNPLACED
            self._fail(record, event.reason, was_alone=len(run.records) == 1)

    def _fail(self, record: JobRecord, why: Reason, *, was_alone: bool) -> None:
        if why is Reason.LOST:
            self.lose(record, reason="worker lost")
            return
        is_over = why is Reason.EXPIRED and record.job.deadline_s <= self._ledger.now_s
        if is_over or (was_alone and why is not Reason.CANCELLED):
            self._placement.end(record, why=why, estimate_s=None, reason="execution failed")
        else:
            # One bad input fails a whole batch: each job gets a run of its own to show which it was.
            record.is_alone = True
            self.place_again(record, reason="batch failed")

    def lose(self, record: JobRecord, *, reason: str) -> None:
        """Place a job again whose executor was lost, or suspect the job itself.

        The first loss is not charged: after the crash of a node all of its jobs are retried at the same moment, and
        no budget may drop some of them. A second loss under the same key is hardly chance.
        """
        ledger = self._ledger
        ledger.counters["executors_lost"] += 1
        record.losses += 1
        record.attempt += 1
        record.is_alone = True
        record.last_reason = Reason.LOST
        if record.losses >= ledger.config.retry.losses:
            self._placement.end(record, why=Reason.POISON, estimate_s=None, reason=f"{reason}, not the first time")
        elif not self.is_in_hand(record):
            self.place_again(record, reason=reason)

    def is_in_hand(self, record: JobRecord) -> bool:
        """Return whether a job waits or is served somewhere that is not silent."""
        return record.stage <= Stage.RUNNING or any(not each.is_silent for each in record.shipments)

    def place_again(self, record: JobRecord, *, reason: str, may_stay: bool = True, may_move: bool = True) -> None:
        """Place a job once more; one without a place now that is still at a silent peer is left there for a while."""
        ledger = self._ledger
        has_hope = bool(record.shipments)
        if self._placement.place(record, reason=reason, may_stay=may_stay, may_move=may_move, may_end=not has_hope):
            ledger.counters["retries"] += 1
        elif has_hope:
            ledger.timers.set(record.shipments[0], ledger.now_s + ledger.config.watch.progress_s)

    def on_models(self, event: ModelChanged) -> None:
        """Take in which models there are, and queue the jobs that waited for one."""
        ledger = self._ledger
        models = self._workbench.models
        old = (models.table_digest, models.warm_bits)
        settled = models.change(digest=event.table_digest, capabilities=event.capabilities, loaded=event.loaded)
        for model in settled:
            self._settle(model)
        for model in [each for each in ledger.parked if each not in models.loading]:
            self._settle(model)
        for model in sorted({entry.model for entry in ledger.queue.from_front(ledger.queue.length)}):
            if model not in models:
                self._requeue(model)
        if old != (models.table_digest, models.warm_bits):
            self._advertiser.tell_now("models changed")

    def on_overdue_load(self, load: Load) -> None:
        """Give up a model that does not come up."""
        self._workbench.models.drop_load(load.model)
        self._settle(load.model)

    def _settle(self, model: str) -> None:
        for record in self._workbench.settle(model):
            record.last_reason = Reason.LOST
            self.place_again(record, reason=f"model {model[:8]} cannot be had here", may_stay=False)

    def _requeue(self, model: str) -> None:
        """Place again the jobs whose planned model went away under them."""
        ledger = self._ledger
        for entry in ledger.queue.from_front(ledger.queue.length):
            if entry.model == model:
                record = ledger.jobs[entry.handle]
                ledger.withdraw(record)
                record.stage = Stage.UNPLACED
                self.place_again(record, reason=f"model {model[:8]} left")

    def _learn(self, run: Run, service_s: float) -> None:
        workbench = self._workbench
        service = workbench.models.services.get(run.model)
        if service is None or not 0.0 <= service_s < inf:
            return
        if len(run.records) == 1:
            service.learn(service_s / workbench.slow_down, self._ledger.config.estimate)
        elif all(record.stage != Stage.DONE for record in run.records):
            # One that was cancelled or late may not have been served.
            service.learn_batch(len(run.records), service_s / workbench.slow_down, self._ledger.config.estimate)
