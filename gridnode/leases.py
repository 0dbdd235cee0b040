"""The victim's side of a steal: what was granted is handed over, followed to its outcome, and cancelled where it is.

One connection, begun by the thief, carries all jobs of one grant. A job may end here while others are still being
sent; it is sent all the same, with a JobCancel behind it, so that the thief finds as many jobs as it was promised.
"""

import math
from collections.abc import Callable

import trio

from gridnode.config import HANDOVER_TIMEOUT_S
from gridnode.driver import Driver
from gridnode.jobtable import JobEntry, JobTable
from gridnode.outbound import Outbound
from gridnode.translate import job_to_wire, state_to_wire
from scheduler.actions import GrantLease
from scheduler.events import SendFailed
from scheduler.types import Job
from transport.base import Exchange
from transport.wire import (
    DataMessage,
    JobCancel,
    JobSend,
    PeerUnreachableError,
    RemoteProtocolError,
    StealAnswer,
)


class Lease:
    """One granted job; can be cancelled like any errand.

    Parameters
    ----------
    command : int
        Names the lease to the core.
    entry : JobEntry
        The job's bytes, kept until they have been handed over although the job may end before.
    job : Job
        The job as the thief gets it.
    """

    __slots__ = ("_on_cancel", "command", "cut_s", "entry", "is_cancelled", "job")

    def __init__(self, command: int, entry: JobEntry, job: Job) -> None:
        self.command = command
        self.entry = entry
        self.job = job
        self.is_cancelled = False
        self.cut_s = math.inf
        """When the connection is cut unless the thief has answered the cancel."""
        self._on_cancel: Callable[[trio.Nursery, Lease], None] | None = None

    def sent(self, on_cancel: "Callable[[trio.Nursery, Lease], None]") -> None:
        """Take note that the thief has the job, and must be told of a cancel."""
        self._on_cancel = on_cancel

    def cancel(self, nursery: trio.Nursery) -> None:
        """Have the thief told, now or behind the job."""
        if not self.is_cancelled:
            self.is_cancelled = True
            self.cut_s = trio.current_time() + HANDOVER_TIMEOUT_S
            if self._on_cancel is not None:
                self._on_cancel(nursery, self)


class Grant:
    """All leases of one ruling on a steal.

    Parameters
    ----------
    peer : str
        The thief.
    ruling : GrantLease
        What the core granted; to be used at once, while the jobs are surely here.
    """

    def __init__(self, peer: str, ruling: GrantLease, *, jobs: JobTable, driver: Driver, outbound: Outbound) -> None:
        self._ruling = ruling
        self._peer = peer
        self._driver = driver
        self._outbound = outbound
        self._scope = trio.CancelScope()
        self._open: dict[bytes, Lease] = {}
        self._exchange: Exchange | None = None
        for (command, handle), job in zip(ruling.grants, ruling.jobs, strict=True):
            entry = jobs.get(handle)
            assert entry is not None, "the core granted a job that has had its outcome"
            lease = self._open[job.key] = Lease(command, entry, job)
            outbound.adopt(command, lease, peer=peer, key=job.key)

    async def hand_over(self, exchange: Exchange) -> None:
        """Send the jobs and wait for their outcomes.

        Raises
        ------
        TransportError
            The connection broke, the thief broke the protocol, or it did not answer a cancel.
        """
        state = state_to_wire(self._ruling.state)
        self._exchange = exchange
        try:
            with self._scope:
                await exchange.send(StealAnswer(granted=len(self._open), state=state))
                if not self._open:
                    return
                for lease in tuple(self._open.values()):
                    await self._send(exchange, lease)
                await self._follow(exchange)
                # The bracket: a cancel of ours that crossed the last outcome lies before it on the wire.
                await exchange.send(StealAnswer(granted=0, state=state))
                return
            raise PeerUnreachableError(f"a thief did not answer a cancel within {HANDOVER_TIMEOUT_S} s")
        finally:
            self.fail(connected=True)

    def fail(self, *, connected: bool) -> None:
        """Take back what has no outcome yet: the thief is gone."""
        for key in tuple(self._open):
            lease = self._open.pop(key)
            self._outbound.release(lease.command)
            self._driver.post(SendFailed(command=lease.command, connected=connected))

    async def _send(self, exchange: Exchange, lease: Lease) -> None:
        header = job_to_wire(lease.job, lease.entry.body, now_s=trio.current_time())
        message = JobSend(job=header, estimate_s=0.0, state=state_to_wire(self._ruling.state))
        await exchange.send(message, lease.entry.payload)
        if lease.is_cancelled:
            await exchange.send(JobCancel(key=lease.job.key))
        lease.sent(self._cancelled)

    async def _follow(self, exchange: Exchange) -> None:
        """Post what the thief says of each job until all have had their outcome."""
        while self._open:
            self._set_limit()
            answer, payload = await exchange.receive()
            lease = self._lease_of(answer)
            if self._outbound.answers.take(self._peer, lease.command, lease.entry, answer, payload, way=None):
                del self._open[lease.job.key]
                self._outbound.release(lease.command)
        self._set_limit()

    def _cancelled(self, nursery: trio.Nursery, lease: Lease) -> None:
        self._set_limit()
        nursery.start_soon(self._tell, lease)

    def _set_limit(self) -> None:
        """Bound the wait for answers to cancels; of a lease that was not cancelled the thief reports progress."""
        self._scope.deadline = min((lease.cut_s for lease in self._open.values()), default=math.inf)

    async def _tell(self, lease: Lease) -> None:
        assert self._exchange is not None
        if lease.job.key not in self._open:
            return  # answered meanwhile
        try:
            with trio.move_on_at(lease.cut_s):
                await self._exchange.send(JobCancel(key=lease.job.key))
        except PeerUnreachableError:
            self._scope.cancel()

    def _lease_of(self, message: DataMessage) -> Lease:
        found = self._open.get(getattr(message, "key", b""))
        if found is None:
            raise RemoteProtocolError(f"thief sent {type(message).__name__} for a job it was not granted")
        return found
