"""What a simulated node begins at peers: sending and offering a job, stealing, and pulling a table.

Each ends by posting the event that answers its command, whatever happened. The daemon's gridnode.outbound and
gridnode.stolen are the models.
"""

from scheduler.actions import Offer, Send, Steal
from scheduler.events import OfferAnswered, SendFailed, StealAnswered, TableReceived
from simulator.conversation import Conversation
from simulator.engine import Timer
from simulator.following import Way, follow, post_refused
from simulator.pool import Attempt, End
from simulator.records import HANDOVER_TIMEOUT_S, Entry, Site
from simulator.wording import clamp_s, job_to_wire, state_from_wire, state_to_wire, table_from_wire
from transport.wire import (
    DataMessage,
    JobCancel,
    JobOffer,
    JobPayload,
    JobRefused,
    JobSend,
    OfferAccepted,
    StealAnswer,
    StealRequest,
    Table,
    TableRequest,
)


class _Errand:
    """One connection to a peer for one command."""

    def __init__(self, site: Site, peer: str, command: int) -> None:
        self.site = site
        self.peer = peer
        self.command = command
        self.end: End | None = None
        self.is_over = False
        self.asked_s = 0.0
        """When the connection was asked for."""
        self._attempt: Attempt | None = None

    def start(self) -> None:
        """Begin, once the core has said all it had to say."""
        self.site.errands[self.command] = self
        self.site.engine.soon(self._begin)

    def _begin(self) -> None:
        self.asked_s = self.site.engine.now_s
        if not self.is_over:
            self._attempt = self.site.plane.lease(self.peer, self)

    def connected(self, end: End) -> None:
        """Take the connection; see pool.Caller."""
        self.end = end
        end.reader = self
        self.greet(end)

    def greet(self, end: End) -> None:
        """Send the first message."""
        raise NotImplementedError

    def take(self, end: End, message: DataMessage) -> None:
        """Take a message; see pool.Reader."""
        raise NotImplementedError

    def refused(self) -> None:
        """Fail without a connection; see pool.Caller."""
        self.fail()

    def lose(self, end: End) -> None:
        """Fail since the connection broke; see pool.Reader."""
        self.fail()

    def cancel(self) -> None:
        """Stop: close the connection."""
        self.fail()

    def finish(self) -> None:
        """Give the connection back: the exchange is complete."""
        self._conclude()
        assert self.end is not None, "only a connection carries answers"
        self.site.plane.release(self.end)

    def fail(self) -> None:
        """End without an answer."""
        if self.is_over:
            return
        self._conclude()
        if self.end is not None:
            self.site.plane.close(self.end)
        elif self._attempt is not None:
            self._attempt.give_up()
        self.tell_failed()

    def tell_failed(self) -> None:
        """Post the event of a failure."""
        self.site.post(SendFailed(command=self.command, connected=self.end is not None))

    def _conclude(self) -> None:
        self.is_over = True
        self.site.errands.pop(self.command, None)


class SendErrand(_Errand):
    """Sends a job, or offers it first, and follows it to its outcome."""

    def __init__(self, site: Site, action: Send | Offer, entry: Entry) -> None:
        super().__init__(site, action.peer, action.command)
        self._action = action
        self._entry = entry
        self._way: Way | None = None
        self._is_sent = False
        self._patience: Timer | None = None
        site.commands[action.peer, entry.job.key] = action.command

    def greet(self, end: End) -> None:
        """Send the job, or the offer."""
        action = self._action
        assert action.job is not None, "the core says how a job leaves"
        now_s = self.site.engine.now_s
        self._way = Way(began_s=now_s, setup_s=now_s - self.asked_s, input_bytes=self._entry.job.input_bytes)
        header = job_to_wire(action.job, self.site.body, now_s=now_s)
        estimate_s, state = clamp_s(action.estimate_s), state_to_wire(self.site.own_state())
        if isinstance(action, Offer):
            end.send(JobOffer(job=header, estimate_s=estimate_s, state=state))
        else:
            message = JobSend(job=header, estimate_s=estimate_s, state=state)
            end.send(message, self._entry.job.input_bytes, self._note_sent)

    def _note_sent(self) -> None:
        self._is_sent = True

    def take(self, end: End, message: DataMessage) -> None:
        """Take the answer to the offer, or what the executor says."""
        if isinstance(self._action, Offer) and not self._is_sent:
            self._take_ruling(end, message)
            return
        if follow(self.site, self.peer, self.command, message, self._way):
            self.finish()

    def _take_ruling(self, end: End, message: DataMessage) -> None:
        if isinstance(message, JobRefused):
            post_refused(self.site, self.command, message)
            self.finish()
            return
        assert isinstance(message, OfferAccepted), "an offer is accepted or refused"
        assert self._way is not None, "an answer came over a connection"
        rtt_s = self.site.engine.now_s - self._way.began_s
        self.site.post(OfferAnswered(command=self.command, state=state_from_wire(message.state), rtt_s=rtt_s))
        if not self.is_over:
            job = self._entry.job
            end.send(JobPayload(key=job.key), job.input_bytes, self._note_sent)

    def cancel(self) -> None:
        """Close the connection while the payload is under way; tell the executor afterwards."""
        if not self._is_sent or self.end is None:
            self.site.engine.soon(self.fail)
        elif self._patience is None:
            self._patience = self.site.engine.after(HANDOVER_TIMEOUT_S, self.fail)
            self.end.send(JobCancel(key=self._entry.job.key))

    def _conclude(self) -> None:
        super()._conclude()
        if self._patience is not None:
            self._patience.cancel()
        place = self.peer, self._entry.job.key
        if self.site.commands.get(place) == self.command:
            del self.site.commands[place]


class StealErrand(_Errand):
    """Asks a peer for work and serves what it grants."""

    def __init__(self, site: Site, action: Steal) -> None:
        super().__init__(site, action.victim, action.command)
        self._action = action
        self._conversation: Conversation | None = None
        self._is_answered = False
        self._due = 0
        """Granted jobs still to come."""
        self._patience: Timer | None = None

    def greet(self, end: End) -> None:
        """Ask."""
        action = self._action
        end.send(StealRequest(models=action.models, room=action.room, state=state_to_wire(action.state)))

    def take(self, end: End, message: DataMessage) -> None:
        """Take the answer, granted jobs, cancels of theirs, and the last word."""
        match message:
            case StealAnswer() if not self._is_answered:
                self._take_answer(end, message)
            case StealAnswer():
                self.finish()
            case JobSend() if self._conversation is not None and self._due:
                self._due -= 1
                self._conversation.admit(message.job, stolen=True)
                if not self._due:
                    self._stop_waiting()
                    self._conversation.run()
            case JobCancel() if self._conversation is not None:
                self._conversation.cancel(message.key)
            case _:
                raise AssertionError(f"a victim said {type(message).__name__}")

    def _take_answer(self, end: End, message: StealAnswer) -> None:
        self._is_answered = True
        state = state_from_wire(message.state)
        self.site.post(StealAnswered(command=self.command, granted=message.granted, state=state))
        if message.granted:
            self._due = message.granted
            self._conversation = Conversation(self.site, end, on_over=self._await_bracket)
            self._wait()
        else:
            self.finish()

    def _await_bracket(self) -> None:
        self._wait()

    def _wait(self) -> None:
        self._stop_waiting()
        self._patience = self.site.engine.after(HANDOVER_TIMEOUT_S, self.fail)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()

    def tell_failed(self) -> None:
        """Say that there was no answer, or cancel what came: nobody waits for it."""
        if not self._is_answered:
            super().tell_failed()
        elif self._conversation is not None:
            self._conversation.abandon()

    def _conclude(self) -> None:
        super()._conclude()
        self._stop_waiting()


class PullErrand(_Errand):
    """Fetches a peer's capability table; the core asks again while it lacks one."""

    def start(self) -> None:
        """Begin; there is no command."""
        self.site.engine.soon(self._begin)

    def greet(self, end: End) -> None:
        """Ask."""
        end.send(TableRequest())

    def take(self, end: End, message: DataMessage) -> None:
        """Take the table."""
        assert isinstance(message, Table), "a request for a table is answered with one"
        self.finish()
        self.site.post(TableReceived(table=table_from_wire(message)))

    def tell_failed(self) -> None:
        """Say nothing."""

    def _conclude(self) -> None:
        self.is_over = True
