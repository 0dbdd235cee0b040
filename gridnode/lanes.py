"""Who may speak to a worker without asking this daemon: the lanes of the programs here, and their tickets.

A program that asks for one thing after another, with a node that has nothing else to do, is answered the same each
time: run it here, now. So is one that has many requests under way, where no other node could run them. To such a
program this desk gives a *ticket*: so many runs by a lane, before the core is asked once more. Owns the rule by which
tickets are given and taken back, and the account of what was run on them. What the core decides, and what a lane is
made of (models.lanes here, gridnode.farlanes to a peer), it only asks.

The rule: RUNS_BEFORE jobs of the same kind from the same program in a row, with nothing else in hand, each of which the
core had run here or at the same peer: at once, or where only this node can. Any other work takes all tickets back, and
the row begins anew.
"""

import math
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

import trio

from gridnode.control import CLIENT_ID_BYTES, OpenLane, Ticket
from gridnode.driver import Driver
from gridnode.jobtable import Answer, JobEntry
from gridnode.logs import EventLog
from gridnode.recording import Recorder
from gridnode.report import Report
from models.executor import Executor
from models.lanes import Lane
from models.segments import Segment
from models.workerprotocol import LaneEnded, LaneRun
from scheduler.events import LaneRan
from scheduler.types import Job

if TYPE_CHECKING:
    from gridnode.farlanes import FarLanes

log = EventLog("frontdoor")

RUNS_BEFORE: Final = 8
"""Jobs in a row before a ticket: what others send now and then must not find one out."""
RUNS: Final = 32
"""Runs on one ticket, so that the core decides on every 33rd job at least: a node that hears of a faster peer acts on
it so much later."""
LASTS_S: Final = 0.1
"""Longest life of a ticket in use: a tenth of the time in which states of peers grow old."""
SOLE_RUNS: Final = 128
"""Runs on one ticket where no peer has the model, so that no word of a peer's would change what is decided."""
SOLE_LASTS_S: Final = 0.5
"""Longest life of such a ticket: a new version of the model, or a first peer that has it, is heeded so much later."""
SOLE_DEPTH: Final = 32
"""Requests under way on such a ticket: what is behind the first is passed at once when the ticket is taken back. What a
program sends beyond is the daemon's, and run beside the lanes."""
SERVICE_MAX_S: Final = 0.01
"""Longest run that comes by a lane: the core does not know of it, so others may wait for it unforeseen. Of a longer one
the daemon's part is less than a hundredth anyway."""
BUDGET_MIN_S: Final = 0.02
"""Least time that a request by a lane must have, and ten times its service: nobody ends it at its deadline."""
FAR_TAKES_MAX_S: Final = 0.05
"""Longest that a job may take to a peer and back to come by a lane: half a ticket, so that its end meets few."""
FAR_BUDGET_MIN_S: Final = 1.0
"""Least time of a request by a lane to a peer: what falls silent there can still be run elsewhere."""
PROGRAM_LANES_MAX: Final = 8
"""Lanes of one program, for all kinds of requests; as many as a worker has."""


class Resting(Protocol):
    """Knows whether the node has anything else to do."""

    @property
    def jobs_in_hand(self) -> int:
        """See scheduler.core.Core.jobs_in_hand."""
        ...

    @property
    def is_at_rest_but_for_one(self) -> bool:
        """See scheduler.core.Core.is_at_rest_but_for_one."""
        ...

    def serves_only(self, jobs: int, models: Sequence[str]) -> bool:
        """See scheduler.core.Core.serves_only."""
        ...


class Track:
    """One lane as this desk knows it.

    Parameters
    ----------
    number : int
        Names it between program and daemon.
    """

    __slots__ = ("lane", "number", "ticket")

    def __init__(self, number: int) -> None:
        self.number = number
        self.lane: Lane | None = None
        """None once it has ended."""
        self.ticket = 0
        """The newest."""


class Standing:
    """Requests of one kind from one program, and the lanes that it has for them.

    Parameters
    ----------
    words : OpenLane
        What all these requests have in common.
    models : tuple of str
        Digests of the models that may answer; by a lane the first one does.
    executor : str
        PeerID of the node where its jobs are run.
    client : bytes
        Id of the program, the head of all its keys.
    say : callable
        Sends a ticket to the program.
    """

    __slots__ = ("client", "executor", "is_sole", "models", "open", "row", "say", "tracks", "unserved", "words")

    def __init__(
        self,
        words: OpenLane,
        models: tuple[str, ...],
        *,
        executor: str,
        client: bytes,
        say: Callable[[Ticket], None],
    ) -> None:
        self.words = words
        self.models = models
        self.executor = executor
        self.client = client
        self.say = say
        self.tracks: list[Track] = []
        """Its lanes that have not ended."""
        self.open = 0
        """Jobs of this kind that the daemon owes the program."""
        self.row = 0
        """Jobs of this kind since another came."""
        self.unserved = 0
        """Jobs in a row that deserved a ticket while all lanes had one."""
        self.is_sole = False
        """Whether nobody else could run these jobs, as of its last ticket."""


class LaneDesk:
    """All lanes of a daemon.

    Parameters
    ----------
    node : str
        PeerID of this node.
    default_deadline_s : float
        Budget of a request that names none.
    slots : int
        Jobs that this node runs at once: lanes that a program gets for one kind of request, if it can have so many.
    """

    def __init__(
        self,
        *,
        node: str,
        core: Resting,
        driver: Driver,
        executor: Executor,
        report: Report,
        recorder: Recorder | None,
        default_deadline_s: float,
        slots: int,
    ) -> None:
        self._node = node
        self._slots = slots
        self._core = core
        self._driver = driver
        self._executor = executor
        self._report = report
        self._recorder = recorder
        self._default_deadline_s = default_deadline_s
        self.far: FarLanes | None = None
        """Opens lanes to peers, while the node lives."""
        self._in_row: Standing | None = None
        """Whose jobs came last."""
        self._out: set[Track] = set()
        """Those with a ticket that may be in use."""
        self._owing: set[Track] = set()
        """Those whose newest ticket has not been accounted for; some never begin to use it."""
        self._news = trio.Event()
        self._is_closing = False

    def open(self, standing: Standing, number: int, segment: Segment, descriptor: int) -> bool:
        """Open a lane; the descriptor is taken over. Returns whether there is one now."""
        track = Track(number)

        def on_word(word: LaneEnded | None) -> None:
            # Of the ticket before the newest one is told late at times: another thread of the worker was quicker.
            if word is None or word.is_closed or word.ticket == track.ticket:
                self._out.discard(track)
                self._owing.discard(track)
                self._news.set()
                self._news = trio.Event()
            if word is None or word.is_closed:
                track.lane = None
                if track in standing.tracks:
                    standing.tracks.remove(track)
            if word is not None and word.was_cut:
                standing.row = 0
            if word is not None and word.runs:
                self._account(standing, word.runs)

        is_own = standing.executor == self._node
        if len(standing.tracks) >= (self._slots if is_own else 1) or not self._may_earn(standing):
            os.close(descriptor)
            return False
        model = standing.models[0]
        if is_own:
            track.lane = self._executor.open_lane(model, segment, descriptor, on_word)
        else:
            assert self.far is not None, "programs come when the node lives"
            track.lane = self.far.open(standing.executor, model, segment, descriptor, on_word)
        if track.lane is not None:
            standing.tracks.append(track)
        return track.lane is not None

    def _may_earn(self, standing: Standing) -> bool:
        """Say whether requests of a kind could earn a ticket if they went on as they do."""
        in_hand = self._core.jobs_in_hand
        return in_hand <= 1 or self._core.serves_only(in_hand, standing.models)

    @property
    def in_use(self) -> int:
        """How many lanes have a ticket."""
        return len(self._out)

    def drain(self) -> None:
        """Give no ticket any more."""
        self._is_closing = True
        self.revoke()

    def close(self, standing: Standing) -> None:
        """End all lanes of a kind: its program has left."""
        if self._in_row is standing:
            self._in_row = None
        for track in standing.tracks:
            if track.lane is not None:
                track.lane.close()

    # ------------------------------------------------------------ when tickets come and go

    def begun(self, standing: Standing | None) -> None:
        """Note that a job begins here, of a kind that has a lane or of none: all tickets in use are taken back.

        Also that of a program which sends more while it has one: it does not ask for one thing after another. That does
        not matter where nobody else could run what it sends.
        """
        if standing is not self._in_row:
            self._in_row = standing
            if standing is not None:
                standing.row = 0
        elif standing is not None and standing.is_sole:
            return
        if self._out:
            self.revoke()

    def revoke(self) -> None:
        """Take all tickets back: the node has something else to do, or is about to."""
        out, self._out = self._out, set()
        for track in out:
            if track.lane is not None:
                track.lane.revoke(track.ticket)

    def ending_afar(self, entry: JobEntry, answer: Answer, takes_lanes: bool) -> None:
        """As ending(), of a job that a peer has run; it says whether it takes lanes."""
        if entry.lane is not None:
            took_s = self._driver.clock() - entry.job.arrival_s
            self.ending(entry.lane, answer, took_s=took_s if takes_lanes and answer.hops == 1 else math.inf)

    def ending(self, standing: Standing, answer: Answer, *, took_s: float) -> None:
        """Note that a job of a kind that has a lane is about to be answered, and give a ticket where one is deserved.

        It leaves before the answer, and the core has not heard of the run's end yet: a program that found the answer
        first would ask the daemon once more, which would look as if it did not wait for its answers.
        """
        if answer.node != standing.executor:
            self.close(standing)  # a lane to where such jobs are run now takes its place
        if standing is not self._in_row or not self._is_usual(standing, answer):
            standing.row = 0
            return
        standing.row += 1
        is_own = answer.node == self._node
        if answer.service_s > SERVICE_MAX_S or took_s > FAR_TAKES_MAX_S:
            return
        if standing.row >= RUNS_BEFORE and standing.tracks and not self._is_closing:
            in_hand = self._core.jobs_in_hand
            standing.is_sole = is_own and self._core.serves_only(in_hand, standing.models)
            if in_hand > 1 and not standing.is_sole:
                standing.row = 0
            else:
                self._give(standing, answer.service_s, in_hand=in_hand)

    def _is_usual(self, standing: Standing, answer: Answer) -> bool:
        """Say whether a job was run where jobs of its kind are, with nothing else in hand."""
        if answer.node != standing.executor or answer.model != standing.models[0]:
            return False
        in_hand = self._core.jobs_in_hand
        return self._core.is_at_rest_but_for_one if in_hand == 1 else in_hand == standing.open

    def _give(self, standing: Standing, service_s: float, *, in_hand: int) -> None:
        """Give a ticket to a lane that has none in use."""
        tracks = standing.tracks
        track = next((track for track in tracks if track not in self._out), None)
        if track is None:
            # The end of a ticket is told a moment late at times; and a program may have lost one that it never used.
            standing.unserved += 1
            if len(tracks) == in_hand == 1 or standing.unserved >= RUNS_BEFORE:
                track = min(tracks, key=lambda track: track.ticket)
        if track is None or track.lane is None:
            return  # all lanes have one; or this one has just ended
        standing.unserved = 0
        is_sole = standing.is_sole
        runs, lasts_s = (SOLE_RUNS, SOLE_LASTS_S) if is_sole else (RUNS, LASTS_S)
        ticket = track.ticket + 1
        if track.lane.give(ticket, runs=runs, lasts_s=lasts_s):
            track.ticket = ticket
            self._out.add(track)
            self._owing.add(track)
            standing.say(
                Ticket(
                    lane=track.number,
                    ticket=ticket,
                    runs=runs,
                    lasts_s=lasts_s,
                    depth=SOLE_DEPTH if is_sole else 1,
                    lanes=self._slots if is_sole else 1,
                    least_budget_s=max(
                        BUDGET_MIN_S if standing.executor == self._node else FAR_BUDGET_MIN_S, 10 * service_s
                    ),
                )
            )

    # ------------------------------------------------------------ accounts

    async def settle(self) -> None:
        """Wait until what was run on tickets is accounted for, for as long as a ticket lasts."""
        self.revoke()
        # A worker looks every models.laneserver.LOOK_S, as often as a ticket to a peer is looked at, and tells.
        with trio.move_on_after(2 * LASTS_S):
            while self._owing:
                await self._news.wait()

    def _account(self, standing: Standing, runs: tuple[LaneRun, ...]) -> None:
        """Tell everybody of runs who would have seen them pass; of runs under others' keys nobody is told."""
        now_s = self._driver.clock()
        owned = [run for run in runs if run.key[:CLIENT_ID_BYTES] == standing.client]
        if len(owned) < len(runs):
            log.warning("lane_misused", client=standing.client.hex()[:16], foreign=len(runs) - len(owned))
            self.close(standing)
        is_own = standing.executor == self._node
        executor = None if is_own else standing.executor
        keys = tuple([run.key for run in owned])
        self._driver.post(LaneRan(model=standing.models[0], keys=keys, executor=executor))
        for run in owned:
            self._report.ran_by_lane(run.service_s, transfer_s=run.transfer_s, own=is_own)
            if self._recorder is not None:
                self._record(self._recorder, standing, run, now_s)

    def _record(self, recorder: Recorder, standing: Standing, run: LaneRun, now_s: float) -> None:
        words, came_s = standing.words, now_s - run.age_s
        budget_s = self._default_deadline_s if run.budget_s is None else run.budget_s
        job = Job(
            key=run.key,
            entry=self._node,
            client=standing.client.hex()[:16],
            tenant=words.tenant,
            priority=words.priority,
            input_bytes=run.input_bytes,
            arrival_s=came_s,
            deadline_s=came_s + budget_s,
            models=standing.models,
        )
        recorder.ran_by_lane(
            job,
            output_bytes=run.output_bytes,
            service_s=run.service_s,
            transfer_s=run.transfer_s,
            executor=standing.executor,
        )
