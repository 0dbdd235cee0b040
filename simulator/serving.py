"""What peers begin at a simulated node: jobs sent, offers, steals, and requests for its table.

The daemon's gridnode.inbound and gridnode.leases are the models.
"""

from scheduler.actions import Accept, GrantLease, NackOffer
from scheduler.events import OfferReceived, SendFailed, StealRequested
from scheduler.types import Job, PeerState
from simulator.conversation import Conversation
from simulator.engine import Timer
from simulator.following import follow
from simulator.pool import End
from simulator.records import HANDOVER_TIMEOUT_S, Site
from simulator.wording import estimate_to_wire, job_from_wire, job_to_wire, state_from_wire, state_to_wire
from transport.wire import (
    DataMessage,
    JobCancel,
    JobOffer,
    JobPayload,
    JobRefused,
    JobSend,
    OfferAccepted,
    StateRecord,
    StealAnswer,
    StealRequest,
)


class Service:
    """Serves one job that a peer sent; also the second half of an accepted offer."""

    def __init__(self, site: Site, end: End) -> None:
        self.site = site
        self.end = end
        self.conversation = Conversation(site, end, on_over=self._finish)
        end.reader = self

    def begin(self, message: JobSend) -> None:
        """Take the job in."""
        self.conversation.admit(message.job, estimate_s=message.estimate_s)
        self.conversation.run()

    def take(self, end: End, message: DataMessage) -> None:
        """Take a cancel."""
        assert isinstance(message, JobCancel), f"a sender said {type(message).__name__}"
        self.conversation.cancel(message.key)

    def lose(self, end: End) -> None:
        """Cancel what nobody waits for any more."""
        self.conversation.abandon()

    def _finish(self) -> None:
        self.site.idle_end(self.end)


class Considered(Service):
    """An offer: asks the core, and takes the payload if it agrees."""

    def __init__(self, site: Site, end: End, offer: JobOffer) -> None:
        super().__init__(site, end)
        self._offer = offer
        self._number = site.ask(self)
        self._patience: Timer | None = None
        self._has_payload = False

    def consider(self) -> None:
        """Ask the core."""
        offer = self._offer
        self.site.post(
            OfferReceived(
                offer=self._number,
                peer=self.end.peer,
                job=job_from_wire(offer.job, now_s=self.site.engine.now_s),
                state=_state_of(self.end, offer.state),
                sender_estimate_s=offer.estimate_s,
            )
        )

    def rule(self, ruling: Accept | NackOffer | GrantLease) -> None:
        """Take the core's answer; see records.Question."""
        self.site.engine.soon(lambda: self._answer(ruling))

    def _answer(self, ruling: Accept | NackOffer | GrantLease) -> None:
        header = self._offer.job
        if isinstance(ruling, Accept):
            self.end.send(OfferAccepted(key=header.key, state=state_to_wire(ruling.state)))
            self._patience = self.site.engine.at(ruling.expires_s + HANDOVER_TIMEOUT_S, self._give_up)
            return
        assert isinstance(ruling, NackOffer), "an offer is accepted or refused"
        message = JobRefused(
            key=header.key,
            attempt=header.attempt,
            reason=ruling.why.value,
            estimate_s=estimate_to_wire(ruling.estimate_s),
            state=state_to_wire(ruling.state),
        )
        self.end.send(message, on_sent=self._finish)

    def take(self, end: End, message: DataMessage) -> None:
        """Take the payload, then cancels."""
        if self._has_payload:
            super().take(end, message)
            return
        assert isinstance(message, JobPayload), "an accepted offer is followed by its payload"
        self._has_payload = True
        self._stop_waiting()
        self.conversation.admit(self._offer.job, offer=self._number, estimate_s=self._offer.estimate_s)
        self.conversation.run()

    def lose(self, end: End) -> None:
        """Wait no more."""
        self._stop_waiting()
        super().lose(end)

    def _give_up(self) -> None:
        self.site.plane.close(self.end)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()


class Lease:
    """One granted job; can be cancelled like any errand."""

    def __init__(self, grant: "Grant", command: int, job: Job) -> None:
        self._grant = grant
        self.command = command
        self.job = job
        self.is_sent = False
        self.cut: Timer | None = None
        """Closes the connection unless the thief answers the cancel before."""

    def cancel(self) -> None:
        """Have the thief told, now or behind the job; see records.Cancellable."""
        if self.cut is None:
            self.cut = self._grant.cut_later()
            if self.is_sent:
                self._grant.tell_cancelled(self)


class Grant:
    """A steal: asks the core, hands over what it grants and follows it."""

    def __init__(self, site: Site, end: End, request: StealRequest) -> None:
        self._site = site
        self._end = end
        self._request = request
        self._open: dict[bytes, Lease] = {}
        self._state: StateRecord | None = None
        self._number = site.ask(self)
        end.reader = self

    def ask(self) -> None:
        """Ask the core."""
        request = self._request
        self._site.post(
            StealRequested(
                request=self._number,
                peer=self._end.peer,
                state=_state_of(self._end, request.state),
                models=request.models,
                room=request.room,
            )
        )

    def rule(self, ruling: Accept | NackOffer | GrantLease) -> None:
        """Take the core's answer; see records.Question."""
        assert isinstance(ruling, GrantLease), "a steal is answered with a grant"
        self._state = state_to_wire(ruling.state)
        for (command, _), job in zip(ruling.grants, ruling.jobs, strict=True):
            lease = self._open[job.key] = Lease(self, command, job)
            self._site.errands[command] = lease
            self._site.commands[self._end.peer, job.key] = command
        self._site.engine.soon(self._hand_over)

    def _hand_over(self) -> None:
        assert self._state is not None, "there was a ruling"
        waiting = list(self._open.values())
        then = self._finish if not waiting else lambda: self._send_next(waiting)
        self._end.send(StealAnswer(granted=len(waiting), state=self._state), on_sent=then)

    def _send_next(self, waiting: list[Lease]) -> None:
        if not waiting:
            return
        lease = waiting.pop(0)
        assert self._state is not None, "there was a ruling"
        header = job_to_wire(lease.job, self._site.body, now_s=self._site.engine.now_s)
        message = JobSend(job=header, estimate_s=0.0, state=self._state)

        def sent() -> None:
            if lease.cut is not None:
                self.tell_cancelled(lease)
            lease.is_sent = True
            self._send_next(waiting)

        self._end.send(message, lease.job.input_bytes, sent)

    def take(self, end: End, message: DataMessage) -> None:
        """Take what the thief says of a job."""
        lease = self._open[getattr(message, "key", b"")]
        if not follow(self._site, end.peer, lease.command, message, None):
            return
        self._close(lease)
        if not self._open:
            assert self._state is not None, "there was a ruling"
            end.send(StealAnswer(granted=0, state=self._state), on_sent=self._finish)

    def lose(self, end: End) -> None:
        """Take back what has no outcome yet: the thief is gone."""
        while self._open:
            lease = next(iter(self._open.values()))
            self._close(lease)
            self._site.post(SendFailed(command=lease.command, connected=True))

    def cut_later(self) -> Timer:
        """Close the connection if a cancel stays without an answer."""
        return self._site.engine.after(HANDOVER_TIMEOUT_S, self._cut)

    def tell_cancelled(self, lease: Lease) -> None:
        """Tell the thief of a cancel."""
        self._end.send(JobCancel(key=lease.job.key))

    def _cut(self) -> None:
        self._site.plane.close(self._end)
        self.lose(self._end)

    def _close(self, lease: Lease) -> None:
        if lease.cut is not None:
            lease.cut.cancel()
        del self._open[lease.job.key]
        self._site.errands.pop(lease.command, None)
        place = self._end.peer, lease.job.key
        if self._site.commands.get(place) == lease.command:
            del self._site.commands[place]

    def _finish(self) -> None:
        self._site.idle_end(self._end)


def _state_of(end: End, record: StateRecord) -> PeerState | None:
    """Return the state that came with a question, if it is the asker's own."""
    return state_from_wire(record) if record.node == end.peer else None
