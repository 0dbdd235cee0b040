"""Jobs whose policy asks some peers how they stand before it decides.

The job waits until all have answered or the time is up; then it is placed by what is known, which is fresh where there
was an answer. Only own jobs that have just come are asked about: whatever else happens to a job has used up its time.
"""

from scheduler.events import ProbeAnswered
from scheduler.jobs import Inquiry, JobRecord, Stage
from scheduler.ledger import Ledger
from scheduler.listening import Listening
from scheduler.placement import Placement


class Asking:
    """Asks and waits.

    Parameters
    ----------
    ledger : Ledger
        Shared state; actions go there.
    placement : Placement
        Knows whom to ask, and places afterwards.
    listening : Listening
        Takes in states.
    """

    def __init__(self, ledger: Ledger, placement: Placement, listening: Listening) -> None:
        self._ledger = ledger
        self._config = ledger.config.probe
        self._placement = placement
        self._listening = listening
        self._is_used = placement.asks

    def place(self, record: JobRecord, *, reason: str) -> None:
        """Place an own job, at once or after questions."""
        ledger, config = self._ledger, self._config
        if self._is_used and len(ledger.probes) < config.open:
            peers = self._placement.candidates(record)
            if peers:
                record.stage = Stage.ASKING
                inquiry = Inquiry(record, peers, reason=reason)
                inquiry.open = {self._placement.send_probe(peer, inquiry) for peer in peers}
                ledger.timers.set(inquiry, ledger.now_s + config.timeout_s)
                return
        self._placement.place(record, reason=reason)

    def on_answered(self, event: ProbeAnswered) -> None:
        """Take in a state; place the job when it was the last one awaited."""
        is_open = event.command in self._ledger.probes
        # A policy that asks wants to hear the answer, whatever it does with states on other messages.
        self._listening.hear_probe(event.state)
        if is_open:
            self._close(event.command)
        else:
            self._ledger.counters["late_answers"] += 1

    def on_failed(self, command: int) -> bool:
        """Note that a question failed; return whether it was one of ours."""
        if command not in self._ledger.probes:
            return False
        self._close(command)
        return True

    def _close(self, command: int) -> None:
        inquiry = self._ledger.probes.pop(command)
        if inquiry is not None:
            inquiry.open.discard(command)
            if not inquiry.open:
                self.settle(inquiry)

    def settle(self, inquiry: Inquiry) -> None:
        """Place the job with the answers that there are."""
        inquiry.due_s = float("inf")
        for command in sorted(inquiry.open):
            self._ledger.probes[command] = None
        inquiry.open.clear()
        record = inquiry.record
        if record.stage == Stage.ASKING:
            record.stage = Stage.UNPLACED
            self._placement.place_asked(record, inquiry.peers, reason=inquiry.reason)
