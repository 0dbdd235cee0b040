"""One simulated node: drives one decision core, and carries out what it asks for.

The twin of gridnode.driver and gridnode.hands. Events reach the core one at a time, in the order (due time, sequence),
never from inside the carrying out of an action.
"""

from collections import deque
from collections.abc import Mapping
from typing import Protocol

import msgspec

from scheduler import actions
from scheduler.core import Core
from scheduler.events import Event, JobArrived, ModelChanged, TimerFired
from scheduler.types import CapabilityTable, Job, ModelDigest, NodeId, PeerState, Reason
from simulator.engine import Engine, Timer
from simulator.errands import PullErrand, SendErrand, StealErrand
from simulator.execution import ModelCost, Run, capabilities_of
from simulator.network import Wire
from simulator.pool import End, Plane
from simulator.records import Answer, Attachment, Cancellable, Entry, Failure, Question, Responder
from simulator.serving import Considered, Grant, Service
from simulator.wording import table_digest, table_to_wire
from transport.wire import DataMessage, JobOffer, JobSend, StealRequest, TableRequest


class Device(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A node as it is switched on."""

    name: NodeId
    models: Mapping[ModelDigest, ModelCost]
    """All models it may run."""
    loaded: frozenset[ModelDigest] | None = None
    """Those that are ready from the start; None for all."""


class Watcher(Protocol):
    """Sees what happens to the nodes."""

    def acted(self, node: NodeId, action: actions.Action) -> None:
        """Take note of an action before it is carried out."""
        ...

    def advertised(self, node: NodeId, state: PeerState) -> None:
        """Carry a state record to the other nodes."""
        ...

    def drained(self, node: NodeId) -> None:
        """Take note that a drain is complete."""
        ...


class Bodies(msgspec.Struct, frozen=True, kw_only=True):
    """Encoded bodies of requests and results; only their lengths count."""

    request: bytes = b"\x81\xa4kind\xa5image"
    result: bytes = b"\x81\xa8emulated\xc3"


class Node:
    """One node.

    Parameters
    ----------
    device : Device
        What it is.
    core : Core
        Its decision core.
    engine : Engine
        The clock.
    wire : Wire
        What lies between the nodes.
    planes : dict
        The data planes of all nodes.
    watcher : Watcher
        Sees what happens.
    bodies : Bodies
        Of requests and results.
    """

    def __init__(
        self,
        device: Device,
        core: Core,
        *,
        engine: Engine,
        wire: Wire,
        planes: dict[str, Plane],
        watcher: Watcher,
        bodies: Bodies,
    ) -> None:
        self.name = device.name
        self.core = core
        self.engine = engine
        self.body = bodies.request
        self.result_body = bodies.result
        self.plane = Plane(device.name, wire, planes, self.idle_end)
        self.entries: dict[int, Entry] = {}
        self.errands: dict[int, Cancellable] = {}
        self.commands: dict[tuple[NodeId, bytes], int] = {}
        self.is_dead = False
        self._device = device
        self._watcher = watcher
        self._service_rng = engine.stream("service", device.name)
        self._capabilities = capabilities_of(device.models)
        self._table_digest = table_digest(self._capabilities)
        self._loaded = set(device.models if device.loaded is None else device.loaded)
        self._runs: dict[int, Run] = {}
        self._questions: dict[int, Question] = {}
        self._asked = 0
        self._minted = 0
        self._inbox: deque[tuple[Event, Attachment]] = deque()
        self._is_feeding = False
        self._timer: Timer | None = None

    # ------------------------------------------------------------ the driver

    def start(self) -> None:
        """Tell the core its models; from now on it is driven."""
        self._tell_models()

    def post(self, event: Event, attachment: Attachment = None) -> None:
        """Give the core an event; it takes it now, or in its turn while an action is carried out."""
        if self.is_dead:
            return
        self._inbox.append((event, attachment))
        if not self._is_feeding:
            self._take_all()

    def _take_all(self) -> None:
        self._is_feeding = True
        core, now_s = self.core, self.engine.now_s
        while self._inbox:
            event, attachment = self._inbox.popleft()
            for action in core.handle(event, now_s=now_s):
                self._watcher.acted(self.name, action)
                self._carry_out(action, attachment)
        self._is_feeding = False
        self._keep_time()

    def _keep_time(self) -> None:
        """Wake at the core's next deadline. A timer that is too early is left: it finds nothing to do."""
        due_s = self.core.next_deadline_s()
        if due_s is None or (self._timer is not None and self._timer.due_s <= due_s):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.engine.at(due_s, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self.is_dead:
            return
        due_s = self.core.next_deadline_s()
        if due_s is not None and due_s <= self.engine.now_s:
            self.post(TimerFired())
        else:
            self._keep_time()

    def die(self) -> None:
        """Stop at once, as a killed process."""
        self.is_dead = True
        self.plane.break_all()
        if self._timer is not None:
            self._timer.cancel()

    # ------------------------------------------------------------ the hands

    def arrive(self, handle: int, job: Job, responder: Responder) -> None:
        """Take a job of an own client under a handle that was minted for it."""
        self.entries[handle] = Entry(handle, job, responder)
        self.post(JobArrived(handle=handle, job=job, origin=None))

    def mint(self) -> int:
        """Return a new handle."""
        self._minted += 1
        return self._minted

    def own_state(self) -> PeerState:
        """Return the core's state record of now."""
        return self.core.state_record(self.engine.now_s)

    def _carry_out(self, action: actions.Action, attachment: Attachment) -> None:
        match action:
            case actions.Execute():
                Run(self, action, self._device.models[action.model], self._service_rng, self._runs)
            case actions.Send() | actions.Offer():
                SendErrand(self, action, self.entries[action.handle]).start()
            case actions.Steal():
                StealErrand(self, action).start()
            case actions.Accept() | actions.NackOffer():
                if (question := self._questions.pop(action.offer, None)) is not None:
                    question.rule(action)
            case actions.GrantLease():
                self._questions.pop(action.request).rule(action)
            case actions.Reply():
                self._reply(action, attachment)
            case actions.Reject() | actions.Nack():
                self._end(action, attachment)
            case actions.Acknowledge() | actions.Progress():
                self._tell(action)
            case actions.Cancel():
                self._cancel(action.command)
            case actions.LoadModel():
                self.engine.after(self._device.models[action.model].load_s, lambda: self._set_loaded(action.model))
            case actions.EvictModel():
                self.engine.soon(lambda: self._set_evicted(action.model))
            case actions.Advertise():
                self._watcher.advertised(self.name, action.state)
            case actions.PullTable():
                PullErrand(self, action.peer, -1).start()
            case actions.Drained():
                self._watcher.drained(self.name)

    def _reply(self, action: actions.Reply, attachment: Attachment) -> None:
        responder = self.entries.pop(action.handle).responder
        outcome = attachment.get(action.handle) if isinstance(attachment, dict) else attachment
        if isinstance(outcome, Answer):
            responder.answer(outcome, action.state)
        else:
            failure = outcome if outcome is not None else Failure(reason=Reason.LOST.value)
            responder.fail(failure, action.state, estimate_s=None)

    def _end(self, action: actions.Reject | actions.Nack, attachment: Attachment) -> None:
        responder = self.entries.pop(action.handle).responder
        if isinstance(action, actions.Nack):
            responder.give_back(action.why, action.state, estimate_s=action.estimate_s)
            return
        failure = Failure(reason=action.why.value, message=action.reason)
        if isinstance(attachment, Failure) and action.why in (Reason.MODEL_FAILED, Reason.EXPIRED):
            failure = attachment
        responder.fail(failure, action.state, estimate_s=action.estimate_s)

    def _tell(self, action: actions.Acknowledge | actions.Progress) -> None:
        entry = self.entries.get(action.handle)
        if entry is None:
            return
        if isinstance(action, actions.Acknowledge):
            entry.responder.accepted(action.state)
        else:
            entry.responder.progress(action.state)

    def _cancel(self, command: int) -> None:
        found = self._runs.get(command) or self.errands.get(command)
        if found is not None:
            found.cancel()

    # ------------------------------------------------------------ models

    def _tell_models(self) -> None:
        self.post(
            ModelChanged(
                table_digest=self._table_digest, capabilities=self._capabilities, loaded=frozenset(self._loaded)
            )
        )

    def _set_loaded(self, model: ModelDigest) -> None:
        self._loaded.add(model)
        self._tell_models()

    def _set_evicted(self, model: ModelDigest) -> None:
        self._loaded.discard(model)
        self._tell_models()

    # ------------------------------------------------------------ what peers begin

    def ask(self, question: Question) -> int:
        """Keep a question until the core's ruling; returns its number."""
        self._asked += 1
        self._questions[self._asked] = question
        return self._asked

    def idle_end(self, end: End) -> None:
        """Let a connection that a peer made wait for its next exchange."""
        end.reader = self

    def take(self, end: End, message: DataMessage) -> None:
        """Begin to serve an exchange; see pool.Reader."""
        match message:
            case JobSend():
                Service(self, end).begin(message)
            case JobOffer():
                Considered(self, end, message).consider()
            case StealRequest():
                Grant(self, end, message).ask()
            case TableRequest():
                table = CapabilityTable(node_id=self.name, digest=self._table_digest, entries=self._capabilities)
                end.send(table_to_wire(table))
            case _:
                pass  # a cancel that crossed our outcome

    def lose(self, end: End) -> None:
        """Forget an idle connection; see pool.Reader."""
        self.plane.close(end)
