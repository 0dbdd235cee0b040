"""The own workers: what runs, what waits, how long a newcomer would wait, and what starts next.

`slots` jobs run at once. The wait of a newcomer is predicted from what is running, what waits before its place in the
queue, and the room kept for accepted offers:

    wait = shortest rest of a running job + (service times ahead of it + reserved) / slots

That is exact for one slot. For several it is what a work-conserving queue needs at least; the error is below one
service time. A free slot means no wait.
"""

from scheduler.actions import Execute
from scheduler.jobs import JobRecord, Run, Stage
from scheduler.ledger import Ledger
from scheduler.queue import Waiting
from scheduler.residency import Residency
from scheduler.timers import NEVER, Alarm
from scheduler.types import Job, ModelDigest, Reason

_OVERDUE_SHARE = 0.1
"""Rest assumed of a run past its expected end, as a share of its expectation: an overdue worker is not a free one."""


class Dropped:
    """A job that left the queue without being served."""

    __slots__ = ("estimate_s", "record", "why")

    def __init__(self, record: JobRecord, why: Reason, estimate_s: float | None) -> None:
        self.record = record
        self.why = why
        self.estimate_s = estimate_s


class Workbench:
    """Local execution.

    Parameters
    ----------
    ledger : Ledger
        Shared state; actions go there.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._config = ledger.config.queue
        self._slots = ledger.config.queue.slots
        self._bound_s = ledger.config.queue.bound_s
        self._batch_jobs = ledger.config.queue.batch_jobs
        self._may_hold = ledger.config.queue.batch_wait_s > 0.0 and ledger.config.queue.batch_jobs > 1
        """Whether a free slot ever waits for a batch to fill."""
        self._expires = ledger.config.placement.expire
        self.models = Residency(ledger, self._is_in_use)
        self.slow_down = 1.0
        self.memory_free_bytes = 0
        self.power_class = 0
        self.alarm = Alarm("batch")
        """Rings when a batch has waited long enough to be filled; the core then feeds the slots."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs, waits or is about to come."""
        ledger = self._ledger
        return not (ledger.runs or ledger.queue.length or ledger.parked or ledger.reservations)

    def service_s(self, model: ModelDigest) -> float:
        """Predict one job's service time here, in seconds."""
        return self.models.services[model].value_s * self.slow_down

    def running_s(self) -> tuple[float, float]:
        """Return the shortest and the summed rest of what runs, in seconds; the shortest is 0 with a free slot."""
        runs = self._ledger.runs
        if not runs:
            return 0.0, 0.0
        now_s = self._ledger.now_s
        least_s, sum_s = NEVER, 0.0
        for run in runs.values():
            rest_s = run.started_s + run.expected_s - now_s
            overdue_s = _OVERDUE_SHARE * run.expected_s
            if rest_s < overdue_s:
                rest_s = overdue_s
            sum_s += rest_s
            if rest_s < least_s:
                least_s = rest_s
        return (least_s if len(runs) >= self._slots else 0.0), sum_s

    def load_s(self) -> tuple[float, float]:
        """Return the time until a slot is free, and the backlog per slot, both in seconds."""
        ledger = self._ledger
        free_s, work_s = self.running_s()
        work_s += ledger.queue.total_s + ledger.reserved_s
        if ledger.parked:
            for model, records in ledger.parked.items():
                if model in self.models.services:
                    work_s += len(records) * self.service_s(model)
        return free_s, work_s / self._slots

    def backlog_s(self) -> float:
        """Return the service time still to be done for accepted work, per slot, in seconds."""
        return self.load_s()[1]

    def look(self, job: Job, turn_s: float | None = None) -> tuple[float, bool]:
        """Predict how long a newcomer would wait for a slot, in seconds, and say whether the bound admits it.

        It is served in order of its deadline, or of ``turn_s`` where it takes the place of another job.
        """
        if self.is_idle:
            return 0.0, True
        ledger = self._ledger
        free_s, backlog_s = self.load_s()
        turn_s = job.deadline_s if turn_s is None else turn_s
        ahead_s = ledger.queue.ahead_s(priority=job.priority, deadline_s=turn_s) + ledger.reserved_s
        return free_s + ahead_s / self._slots, backlog_s <= self._bound_s

    def finish_s(self, model: ModelDigest, wait_s: float) -> float | None:
        """Predict the time until a newcomer with that wait would be done here; None when the model cannot be had."""
        if model in self.models.used:
            return wait_s + self.models.services[model].value_s * self.slow_down
        load_s = self.models.load_s(model, self._ledger.now_s)
        if load_s is None:
            return None
        return (wait_s if wait_s > load_s else load_s) + self.service_s(model)

    def put(self, record: JobRecord, model: ModelDigest) -> None:
        """Take a job in: at once into a free slot, into the queue, or beside it until its model is loaded."""
        ledger = self._ledger
        record.model = model
        if model not in self.models.used:
            record.stage = Stage.PARKED
            self.models.request(model)
            ledger.parked.setdefault(model, []).append(record)
            self._note_frame(record)
            return
        job = record.job
        if len(ledger.runs) < self._slots and not ledger.queue.length and not self._fills(model):
            self._run([record], model)
            return
        record.stage = Stage.WAITING
        ledger.queue.insert(
            Waiting(
                handle=record.handle,
                model=model,
                service_s=self.service_s(model),
                priority=job.priority,
                deadline_s=job.deadline_s,
                turn_s=record.turn_s,
            )
        )
        self._note_frame(record)

    def settle(self, model: ModelDigest) -> list[JobRecord]:
        """Queue the jobs that waited for a model; return those for which it cannot be had any more."""
        records = self._ledger.parked.pop(model, [])
        if model not in self.models:
            for record in records:
                self._ledger.forget_frame(record)
                record.stage = Stage.UNPLACED
            return records
        for record in records:
            self._ledger.forget_frame(record)
            self.put(record, model)
        return []

    def start_waiting(self) -> list[Dropped]:
        """Fill free slots from the queue; return what could not be served in time any more."""
        ledger = self._ledger
        queue = ledger.queue
        dropped: list[Dropped] = []
        while len(ledger.runs) < self._slots and queue.length:
            if self._may_hold and self._is_held():
                break
            entry = queue.pop_first()
            record = ledger.jobs[entry.handle]
            ledger.forget_frame(record)
            model = self._rung_in_time(record)
            if model is None:
                record.stage = Stage.UNPLACED
                late = ledger.now_s >= record.job.deadline_s
                dropped.append(
                    Dropped(record, Reason.EXPIRED, None)
                    if late
                    else Dropped(record, Reason.DEADLINE, self._least_service_s(record))
                )
                continue
            companions = self._companions(record, model)
            self._run([record, *companions] if companions else [record], model)
        return dropped

    def _fills(self, model: ModelDigest) -> bool:
        """Return whether batches of a model pay, so that a free slot may wait for more jobs of it."""
        return (
            self._may_hold
            and self.models.services[model].batch_share < self._config.batch_pays_below
            and self.models.capabilities[model].max_batch > 1
        )

    def _is_held(self) -> bool:
        """Return whether the first job waits for its batch to fill; the alarm rings when it has waited enough.

        It waits `batch_wait_s` at most, and a share of its time to spare: what a batch saves the jobs behind is not
        to cost the first one its deadline.
        """
        ledger, config = self._ledger, self._config
        entry = ledger.queue.first()
        assert entry is not None, "an empty queue holds nothing"
        if entry.model not in self.models.used or ledger.jobs[entry.handle].is_alone:
            return False
        service = self.models.services[entry.model]
        limit = min(self.models.capabilities[entry.model].max_batch, config.batch_jobs)
        if not self._fills(entry.model) or ledger.queue.count(entry.model) >= limit:
            return False
        now_s, record = ledger.now_s, ledger.jobs[entry.handle]
        if record.held_s is None:
            record.held_s = now_s
        spare_s = entry.deadline_s - record.held_s - service.batch_s(limit) * self.slow_down
        until_s = record.held_s + min(config.batch_wait_s, config.batch_wait_share * max(0.0, spare_s))
        if now_s >= until_s:
            return False
        ledger.timers.set(self.alarm, until_s)
        return True

    def _rung_in_time(self, record: JobRecord) -> ModelDigest | None:
        """Choose the planned rung, or a later one that is still in time; the first one without deadlines."""
        job = record.job
        models = self.models
        if not self._expires and record.model in models.used:
            return record.model
        left_s = job.deadline_s - self._ledger.now_s
        planned = record.model
        if planned in models.used and self.service_s(planned) <= left_s:
            return planned
        if left_s <= 0:
            return None
        start = job.models.index(planned) if planned in job.models else 0
        for model in job.models[start:]:
            if model in models.used and self.service_s(model) <= left_s:
                return model
        return None

    def _least_service_s(self, record: JobRecord) -> float | None:
        known = [self.service_s(model) for model in record.job.models if model in self.models.services]
        return min(known, default=None)

    def _companions(self, record: JobRecord, model: ModelDigest) -> list[JobRecord]:
        """Take jobs of the same model from the front of the queue, as many as the batch limits allow."""
        ledger = self._ledger
        if self._batch_jobs <= 1 or record.is_alone or not ledger.queue.count(model):
            return []
        limit = min(self.models.capabilities[model].max_batch, self._batch_jobs)
        if limit <= 1:
            return []
        if not self.models.services[model].batches_pay(self._config.batch_pays_below):
            return []
        found: list[JobRecord] = []
        for entry in ledger.queue.from_front(self._config.batch_look):
            other = ledger.jobs[entry.handle]
            if entry.model == model and not other.is_alone and other.job.deadline_s > ledger.now_s:
                ledger.queue.remove(entry.handle)
                ledger.forget_frame(other)
                found.append(other)
                if len(found) == limit - 1:
                    break
        return found

    def _run(self, records: list[JobRecord], model: ModelDigest) -> None:
        ledger = self._ledger
        command = ledger.new_command()
        run = Run(
            command=command,
            records=records,
            model=model,
            expected_s=self.models.services[model].batch_s(len(records)) * self.slow_down,
            now_s=ledger.now_s,
        )
        for record in records:
            record.stage = Stage.RUNNING
            record.model = model
            record.run = run
        ledger.runs[command] = run
        if len(self.models.used) > 1:
            self.models.use(model)
        if len(records) == 1:
            handles: tuple[int, ...] = (records[0].handle,)
            deadline_s = records[0].job.deadline_s
        else:
            handles = tuple([record.handle for record in records])
            deadline_s = max(record.job.deadline_s for record in records)
        ledger.actions.append(
            Execute(command=command, handles=handles, model=model, deadline_s=deadline_s, reason="earliest deadline")
        )

    def _note_frame(self, record: JobRecord) -> None:
        job = record.job
        if job.newest_wins and job.stream:
            self._ledger.streams.add(client=job.client, stream=job.stream, frame=job.frame, handle=record.handle)

    def _is_in_use(self, model: ModelDigest) -> bool:
        ledger = self._ledger
        return ledger.queue.count(model) > 0 or any(run.model == model for run in ledger.runs.values())
