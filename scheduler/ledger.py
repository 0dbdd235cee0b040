"""What all parts of the core share: the present time, the jobs, the open commands, the counters, the actions so far.

It keeps the promise that each job gets exactly one outcome, and counts it when our own code breaks a promise. It
decides nothing.
"""

import random
from collections import Counter, deque
from typing import Final

from scheduler.actions import Action, Cancel, Nack, Reject, Reply
from scheduler.config import CoreConfig
from scheduler.estimate import TokenBucket, Uplink
from scheduler.explanation import Verdict
from scheduler.jobs import Inquiry, JobRecord, Reservation, Run, Shipment, Stage
from scheduler.queue import LocalQueue, Streams
from scheduler.timers import NEVER, Timers
from scheduler.types import ModelDigest, NodeId, PeerState, Reason
from scheduler.view import View

COUNTED: Final = (
    "jobs_arrived",
    "jobs_received",
    "jobs_stolen",
    "jobs_granted",
    "jobs_offloaded",
    "jobs_offered",
    "jobs_executed",
    "jobs_hedged",
    "replies",
    "retries",
    "executors_lost",
    "executors_silent",
    "late_answers",
    "late_cancels",
    "adverts_sent",
    "steals_asked",
    "probes_sent",
    "invariant_violations",
)
"""Names of the counters; broken promises of our own have one each besides, made when they happen."""


class Ledger:
    """Shared state of one core.

    Parameters
    ----------
    config : CoreConfig
        All bounds and parameters.
    node_id : str
        This node.
    rng : random.Random
        Source of all draws of this node.
    now_s : float
        Time of the start in seconds.
    """

    def __init__(self, config: CoreConfig, *, node_id: NodeId, rng: random.Random, now_s: float) -> None:
        self.config = config
        self.node_id = node_id
        self.rng = rng
        self.now_s = now_s
        self.actions: list[Action] = []
        self.view = View(node_id, config)
        self.timers = Timers()
        self.uplink = Uplink()
        self.jobs: dict[int, JobRecord] = {}
        self.shipments: dict[int, Shipment] = {}
        self.runs: dict[int, Run] = {}
        self.queue = LocalQueue()
        self.streams = Streams()
        self.parked: dict[ModelDigest, list[JobRecord]] = {}
        """Jobs that wait for a model to be loaded, in order of arrival."""
        self.reservations: dict[int, Reservation] = {}
        self.reserved_bytes = 0
        self.reserved_s = 0.0
        self.probes: dict[int, Inquiry | None] = {}
        """Open questions for the state of peers; with the inquiry they belong to, if a job waits for it."""
        self.retry_tokens = TokenBucket(config.retry.burst, now_s)
        self.is_draining = False
        # A plain dictionary: adding to a Counter takes several times as long, and ten things are counted per job.
        self.counters: dict[str, int] = dict.fromkeys(COUNTED, 0)
        self.rejects: Counter[str] = Counter()
        self.nacks: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.decisions: deque[Verdict] = deque(maxlen=config.decisions)
        self._command = 0

    def new_command(self) -> int:
        """Mint the id of a command."""
        self._command += 1
        return self._command

    def violate(self, what: str) -> None:
        """Count a broken promise of our own; the name shows in `counters` for whoever looks for the bug."""
        self.counters["invariant_violations"] += 1
        name = f"violated {what}"
        self.counters[name] = self.counters.get(name, 0) + 1

    # Outcomes: the three ways in which a job leaves.

    def reply(self, record: JobRecord, *, command: int, state: PeerState, reason: str) -> None:
        """End a job with the result that the driver holds under a command."""
        if self._close(record):
            self.counters["replies"] += 1
            self.actions.append(Reply(handle=record.handle, command=command, state=state, reason=reason))

    def reject(
        self, record: JobRecord, *, why: Reason, estimate_s: float | None, state: PeerState, reason: str
    ) -> None:
        """End a job with an error."""
        if self._close(record):
            self.rejects[why.value] += 1
            self.actions.append(
                Reject(handle=record.handle, why=why, estimate_s=estimate_s, state=state, reason=reason)
            )

    def nack(self, record: JobRecord, *, why: Reason, estimate_s: float | None, state: PeerState, reason: str) -> None:
        """End a peer's job here by giving it back unharmed."""
        if record.origin is None:
            self.violate("nack to an own client")
        if self._close(record):
            self.nacks[why.value] += 1
            self.actions.append(Nack(handle=record.handle, why=why, estimate_s=estimate_s, state=state, reason=reason))

    def _close(self, record: JobRecord) -> bool:
        """Take a job out of the books, with whatever is still asked of others for it."""
        if self.jobs.pop(record.handle, None) is None:
            self.violate("second outcome")
            return False
        if record.stage <= Stage.PARKED:
            self.withdraw(record)
        record.stage = Stage.DONE
        record.due_s = NEVER
        if record.shipments:
            for shipment in record.shipments:
                self._drop(shipment)
                self.actions.append(Cancel(command=shipment.command, reason="job is over"))
            record.shipments = []
        run = record.run
        if run is not None:
            record.run = None
            # The worker holds its slot until it has answered; it is stopped when nobody waits for it any more.
            if run.command in self.runs and all(each.stage == Stage.DONE for each in run.records):
                self.actions.append(Cancel(command=run.command, reason="nobody waits for it"))
        return True

    def withdraw(self, record: JobRecord) -> None:
        """Take a job out of the local queue, or from among those that wait for their model."""
        if record.stage == Stage.WAITING:
            self.queue.remove(record.handle)
            self.forget_frame(record)
        elif record.stage == Stage.PARKED:
            waiting = self.parked.get(record.model, [])
            waiting[:] = [each for each in waiting if each is not record]
            if not waiting:
                self.parked.pop(record.model, None)
            self.forget_frame(record)

    def forget_frame(self, record: JobRecord) -> None:
        """Note that a frame of a newest-wins stream waits no more."""
        job = record.job
        if job.newest_wins and job.stream:
            self.streams.discard(client=job.client, stream=job.stream, frame=job.frame, handle=record.handle)

    # Commands at peers.

    def open_shipment(self, shipment: Shipment) -> None:
        """Note a command at a peer."""
        self.shipments[shipment.command] = shipment
        shipment.record.shipments.append(shipment)
        shipment.peer.add_shipment(shipment)

    def close_shipment(self, command: int) -> Shipment | None:
        """Take an answered command out of the books; None, and counted as late, when it is not open."""
        shipment = self.shipments.get(command)
        if shipment is None:
            self.counters["late_answers"] += 1
            return None
        self._drop(shipment)
        shipment.record.shipments.remove(shipment)
        return shipment

    def _drop(self, shipment: Shipment) -> None:
        del self.shipments[shipment.command]
        shipment.due_s = NEVER
        shipment.peer.drop_shipment(shipment)

    # Room kept for accepted offers.

    def reserve(self, reservation: Reservation, expires_s: float) -> None:
        """Keep room for an accepted offer until a time."""
        self.reservations[reservation.offer] = reservation
        self.reserved_bytes += reservation.input_bytes
        self.reserved_s += reservation.service_s
        self.timers.set(reservation, expires_s)

    def release(self, offer: int) -> Reservation | None:
        """Give up the room kept for an offer; None when there is none any more."""
        reservation = self.reservations.pop(offer, None)
        if reservation is None:
            return None
        reservation.due_s = NEVER
        self.reserved_bytes -= reservation.input_bytes
        self.reserved_s = self.reserved_s - reservation.service_s if self.reservations else 0.0
        return reservation
