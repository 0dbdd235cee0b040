"""Carries out what the core asks for: one method per kind of action, none of which blocks.

Owns the running executions. Sending and stealing is gridnode.outbound's, rulings on peers' questions are
gridnode.inbound's, models are gridnode.modelhouse's; this module hands on.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import trio

from gridnode.driver import Driver
from gridnode.inbound import Inbound
from gridnode.jobtable import Answer, Failure, JobEntry, JobTable
from gridnode.lanes import LaneDesk
from gridnode.logs import EventLog, short
from gridnode.outbound import Outbound
from gridnode.recording import Recorder
from gridnode.report import Report
from models.executor import Executor, ModelNotLoadedError, RunDeadlineError, RunOutcome, RunRequest, WorkerLostError
from models.tensors import BadInputError, InferenceError
from scheduler import actions
from scheduler.events import ServiceFailed, ServiceFinished, ServiceStarted
from scheduler.types import ModelDigest, Reason
from transport.wire import PAYLOAD_MAX_BYTES

log = EventLog("core")

Outcomes = dict[int, Answer | Failure]
"""Handle to outcome: what an execution posts with its ServiceFinished."""


class Residents(Protocol):
    """Loads and evicts models."""

    def load(self, model: ModelDigest) -> None:
        """Start to load a model; ModelChanged is posted when it is ready or has failed."""
        ...

    def evict(self, model: ModelDigest) -> None:
        """Start to unload a model."""
        ...


class Mouth(Protocol):
    """Speaks to the grid on the core's behalf."""

    def advertise(self, action: actions.Advertise) -> None:
        """Gossip the state record."""
        ...

    def pull_table(self, action: actions.PullTable) -> None:
        """Fetch a peer's capability table."""
        ...

    def probe(self, action: actions.Probe) -> None:
        """Ask a peer for its state."""
        ...


class DaemonHands:
    """The daemon's hands.

    Parameters
    ----------
    node : str
        PeerID of this node.
    nursery : trio.Nursery
        The nursery of accepted jobs: executions live in it.
    on_drained : callable
        Called once when a requested drain is complete.
    recorder : Recorder, optional
        Takes note of outcomes.
    """

    def __init__(
        self,
        *,
        node: str,
        jobs: JobTable,
        driver: Driver,
        executor: Executor,
        outbound: Outbound,
        inbound: Inbound,
        residents: Residents,
        mouth: Mouth,
        report: Report,
        lanes: LaneDesk,
        nursery: trio.Nursery,
        on_drained: Callable[[], None],
        recorder: Recorder | None = None,
    ) -> None:
        self._node = node
        self._jobs = jobs
        self._driver = driver
        self._executor = executor
        self._outbound = outbound
        self._inbound = inbound
        self._residents = residents
        self._mouth = mouth
        self._report = report
        self._lanes = lanes
        self._nursery = nursery
        self._on_drained = on_drained
        self._recorder = recorder
        self._running: dict[int, trio.CancelScope] = {}
        """Executions in a task of their own, by command."""
        self._begun: dict[int, Callable[[], None]] = {}
        """How to stop the others."""
        self._ways = self._make_ways()
        self._is_verbose = log.is_verbose
        """Whether each action is logged; asked once, since it is settled before a node starts."""

    def carry_out(self, action: actions.Action, attachment: object) -> None:
        """Start an action; see driver.Hands."""
        if self._is_verbose:
            log.debug("action", kind=type(action).__name__, reason=action.reason)
        self._ways[type(action)](action, attachment)

    def _make_ways(self) -> dict[type, Callable[[Any, object], None]]:
        """Tie each action to how it is carried out. Any: each takes its own action, the key ensures it."""
        return {
            actions.Execute: self._execute,
            actions.Send: self._send,
            actions.Offer: self._send,
            actions.Steal: lambda action, _: self._outbound.start_steal(action),
            actions.Accept: self._accept,
            actions.NackOffer: lambda action, _: self._inbound.rule(action),
            actions.GrantLease: lambda action, _: self._inbound.rule(action),
            actions.Reply: self._reply,
            actions.Reject: self._end,
            actions.Nack: self._end,
            actions.Acknowledge: self._tell,
            actions.Progress: self._tell,
            actions.Cancel: self._cancel,
            actions.LoadModel: lambda action, _: self._residents.load(action.model),
            actions.EvictModel: lambda action, _: self._residents.evict(action.model),
            actions.Advertise: lambda action, _: self._mouth.advertise(action),
            actions.PullTable: lambda action, _: self._mouth.pull_table(action),
            actions.Probe: lambda action, _: self._mouth.probe(action),
            actions.Drained: lambda _, __: self._on_drained(),
        }

    def _accept(self, action: actions.Accept, _: object) -> None:
        self._lanes.revoke()
        self._inbound.rule(action)

    def _send(self, action: actions.Send | actions.Offer, _: object) -> None:
        entry = self._jobs.get(action.handle)
        assert entry is not None, "the core sent a job that has had its outcome"
        self._lanes.begun(entry.lane)
        if self._is_verbose:
            log.debug("job_offloaded", peer=short(action.peer), reason=action.reason)
        self._outbound.start(action, entry)

    # ------------------------------------------------------------ outcomes

    def _reply(self, action: actions.Reply, attachment: object) -> None:
        entry = self._jobs.pop(action.handle)
        assert entry is not None, "the core answered a job twice"
        outcome = attachment.get(action.handle) if isinstance(attachment, dict) else attachment
        if isinstance(outcome, Answer):
            if not entry.is_answered:
                entry.responder.answer(outcome, action.state)
            self._report.answered(entry.job, outcome, own=outcome.node == self._node, now_s=self._driver.now_s)
            if self._recorder is not None:
                self._recorder.answered(entry.job, outcome, now_s=self._driver.now_s)
            return
        failure = outcome if isinstance(outcome, Failure) else Failure(reason=Reason.LOST.value)
        self._note_end(entry, failure.reason)
        entry.responder.fail(failure, action.state, estimate_s=None)

    def _end(self, action: actions.Reject | actions.Nack, attachment: object) -> None:
        entry = self._jobs.pop(action.handle)
        assert entry is not None, "the core ended a job twice"
        assert not entry.is_answered, "the core ended a job whose run succeeded"
        self._note_end(entry, action.why.value)
        if isinstance(action, actions.Nack):
            entry.responder.give_back(action.why, action.state, estimate_s=action.estimate_s)
            return
        failure = Failure(reason=action.why.value, message=action.reason)
        if isinstance(attachment, Failure) and action.why in (Reason.MODEL_FAILED, Reason.EXPIRED):
            failure = attachment
        log.debug("job_rejected", why=failure.reason, reason=action.reason)
        entry.responder.fail(failure, action.state, estimate_s=action.estimate_s)

    def _note_end(self, entry: JobEntry, reason: str) -> None:
        self._report.ended(reason)
        if self._recorder is not None:
            self._recorder.ended(entry.job, reason, now_s=self._driver.now_s)

    def _tell(self, action: actions.Acknowledge | actions.Progress, _: object) -> None:
        entry = self._jobs.get(action.handle)
        if entry is None:
            return
        if isinstance(action, actions.Acknowledge):
            entry.responder.accepted(action.state)
        else:
            entry.responder.progress(action.state)

    # ------------------------------------------------------------ executions

    def _cancel(self, action: actions.Cancel, _: object) -> None:
        command = action.command
        if (scope := self._running.get(command)) is not None:
            scope.cancel()
        elif (stop := self._begun.pop(command, None)) is not None:
            stop()
            self._driver.post(ServiceFailed(command=command, reason=Reason.CANCELLED))
        else:
            self._outbound.cancel(command)

    def _execute(self, action: actions.Execute, _: object) -> None:
        if len(action.handles) == 1:
            entry = self._jobs.get(action.handles[0])
            if entry is not None:
                self._lanes.begun(entry.lane)
                if self._begin(action, entry):
                    return
        else:
            self._lanes.begun(None)
        entries = [entry for handle in action.handles if (entry := self._jobs.get(handle)) is not None]
        assert len(entries) == len(action.handles), "the core executes a job that has had its outcome"
        self._nursery.start_soon(self._run, action, entries)

    def _begin(self, action: actions.Execute, entry: JobEntry) -> bool:
        """Start a job in this very call, if its worker can: a task would cost more than the hand-over.

        The core counts the service from Execute, so there is nothing to tell it.
        """

        def ended(outcome: RunOutcome | InferenceError | WorkerLostError) -> None:
            del self._begun[action.command]
            if isinstance(outcome, WorkerLostError):
                self._lose(action, outcome)
            else:
                self._finish_one(action, entry, outcome)

        stop = self._executor.begin(action.model, _request(entry), ended)
        if stop is None:
            return False
        self._begun[action.command] = stop
        entry.started_s = self._driver.now_s
        return True

    async def _run(self, action: actions.Execute, entries: list[JobEntry]) -> None:
        """Execute jobs that wait for their worker, or come as a batch."""

        def started() -> None:
            now_s = trio.current_time()
            for entry in entries:
                entry.started_s = now_s
            self._driver.post(ServiceStarted(command=action.command))

        requests = [_request(entry) for entry in entries]
        with trio.CancelScope() as scope:
            self._running[action.command] = scope
            try:
                results = await self._executor.run(action.model, requests, on_started=started)
            except (WorkerLostError, ModelNotLoadedError) as error:
                self._lose(action, error)
                return
            finally:
                del self._running[action.command]
        if scope.cancelled_caught:
            self._driver.post(ServiceFailed(command=action.command, reason=Reason.CANCELLED))
            return
        self._finish(action, entries, results)

    def _lose(self, action: actions.Execute, error: WorkerLostError | ModelNotLoadedError) -> None:
        log.warning("worker_lost", model=action.model[:12], error=error)
        self._driver.post(ServiceFailed(command=action.command, reason=Reason.LOST))

    def _finish(
        self, action: actions.Execute, entries: Sequence[JobEntry], results: Sequence[RunOutcome | InferenceError]
    ) -> None:
        """Post what an execution came to."""
        if len(entries) == 1:
            self._finish_one(action, entries[0], results[0])
            return
        outcomes: Outcomes = {
            entry.handle: self._outcome(action.model, entry, result)
            for entry, result in zip(entries, results, strict=True)
        }
        service_s = sum(result.service_s for result in results if isinstance(result, RunOutcome))
        self._driver.post(ServiceFinished(command=action.command, service_s=service_s), outcomes)

    def _finish_one(self, action: actions.Execute, entry: JobEntry, result: RunOutcome | InferenceError) -> None:
        """Post what the execution of one job came to, after its program was answered."""
        outcome = self._outcome(action.model, entry, result)
        if isinstance(outcome, Failure):
            reason = Reason.EXPIRED if outcome.reason == Reason.EXPIRED.value else Reason.MODEL_FAILED
            self._driver.post(ServiceFailed(command=action.command, reason=reason), outcome)
            return
        if entry.is_hasty and self._jobs.get(entry.handle) is entry:
            # A job that is still open when its run succeeds is always answered: the core's own accounts, which take as
            # long as all else here, need not keep the program waiting.
            entry.is_answered = True
            if entry.lane is not None:
                self._lanes.ending(entry.lane, outcome, took_s=outcome.service_s)
            entry.responder.answer(outcome, None)
        self._driver.post(ServiceFinished(command=action.command, service_s=outcome.service_s), {entry.handle: outcome})

    def _outcome(self, model: str, entry: JobEntry, result: RunOutcome | InferenceError) -> Answer | Failure:
        match result:
            case RunOutcome() if len(result.payload) > PAYLOAD_MAX_BYTES:
                size = f"raw outputs take {len(result.payload)} bytes, at most {PAYLOAD_MAX_BYTES} can be sent"
                return Failure(reason=Reason.MODEL_FAILED.value, message=f"{size}; do without raw outputs")
            case RunOutcome():
                return Answer(
                    model=model,
                    node=self._node,
                    hops=entry.job.hops,
                    waiting_s=max(0.0, entry.started_s - entry.job.arrival_s),
                    service_s=result.service_s,
                    body=result.body,
                    payload=result.payload,
                )
            case BadInputError():
                return Failure(reason="bad_input", message=str(result))
            case RunDeadlineError():
                return Failure(reason=Reason.EXPIRED.value, message=str(result))
            case _:
                return Failure(reason=Reason.MODEL_FAILED.value, message=str(result))


def _request(entry: JobEntry) -> RunRequest:
    """Return what the worker gets; the payload nearly always is one buffer already."""
    payload = entry.payload[0] if len(entry.payload) == 1 else b"".join(entry.payload)
    return RunRequest(body=entry.body, payload=payload, deadline_s=entry.job.deadline_s, place=entry.place)
