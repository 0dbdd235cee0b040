"""What peers send by their programs' lanes: runs it at once, where this node has nothing else to do, or passes.

A peer whose program asks for one thing after another, each of which was run here as soon as it came, sends the next
ones without the words that a placement needs. Owns the rule by which such a run is taken: the core says that it would
run the job now, nothing else that came so is under way, and a worker is free. All else is *passed*, and the peer's core
places the job. What the peer does with that is gridnode.farlanes's.
"""

from collections.abc import Callable
from typing import Final, Protocol

import trio

from gridnode.driver import Driver
from gridnode.lanes import SERVICE_MAX_S, LaneDesk
from gridnode.modelmemory import Loan
from gridnode.recording import Recorder
from gridnode.report import Report
from models.executor import Executor, RunOutcome, RunRequest, WorkerLostError
from models.tensors import InferenceError
from scheduler.events import LaneRan
from transport.base import Exchange, Room
from transport.wire import (
    PAYLOAD_MAX_BYTES,
    DataMessage,
    LaneDone,
    LanePassed,
    LaneRun,
    PeerUnreachableError,
    RemoteProtocolError,
)

RUN_MAX_S: Final = 1.0
"""After that a run is terminated, whatever time its job has left: it was expected to take SERVICE_MAX_S."""


class Ready(Protocol):
    """Knows whether a job would be run at once."""

    def runs_at_once(self, model: str, *, service_max_s: float) -> bool:
        """See scheduler.core.Core.runs_at_once."""
        ...


class LaneRuns:
    """Runs for peers that no decision comes before.

    Parameters
    ----------
    nursery : trio.Nursery
        The nursery of accepted jobs: what is still to be sent lives in it.
    """

    def __init__(
        self,
        *,
        core: Ready,
        driver: Driver,
        executor: Executor,
        desk: LaneDesk,
        report: Report,
        recorder: Recorder | None,
        nursery: trio.Nursery,
    ) -> None:
        self._core = core
        self._driver = driver
        self._executor = executor
        self._desk = desk
        self._report = report
        self._recorder = recorder
        self._nursery = nursery
        self.on_over: Callable[[], None] = lambda: None
        """Called when a run has been answered."""
        self._under_way: Exchange | None = None
        """Where the one run came from."""
        self._stop: Callable[[], None] = lambda: None
        """Terminates it."""
        self._room: Room | None = None
        """Where its payload lies, if that was chosen."""
        self._leaving: set[Exchange] = set()
        """Where a part of an answer is still to be sent."""

    @property
    def is_silent(self) -> bool:
        """Whether nothing is run, and all answers have left."""
        return self._under_way is None and not self._leaving

    def takes(self, model: str) -> bool:
        """Say whether a run of a model would be taken now."""
        return self._core.runs_at_once(model, service_max_s=SERVICE_MAX_S)

    async def serve(self, exchange: Exchange, message: DataMessage, payload: memoryview) -> None:
        """Serve a peer's runs, until it says something else, which is left for the next exchange.

        Raises
        ------
        TransportError
            The connection broke under a run, or the peer broke the protocol.
        """
        try:
            while isinstance(message, LaneRun):
                self._begin(exchange, message, payload)
                message, payload = await exchange.receive()
                if self._is_busy(exchange):
                    raise RemoteProtocolError(f"peer sent {type(message).__name__} while its run by a lane is served")
        except PeerUnreachableError:
            if self._is_busy(exchange):
                raise
            return
        finally:
            if self._under_way is exchange:  # nobody waits for the answer
                self._let_go()
                self._stop()
                self.on_over()
        exchange.unread(message, payload)

    def _is_busy(self, exchange: Exchange) -> bool:
        """Say whether a peer has not got its answer yet."""
        return exchange is self._under_way or exchange in self._leaving

    def _begin(self, exchange: Exchange, message: LaneRun, payload: memoryview) -> None:
        """Start a run, or pass it."""
        room = exchange.take_room()

        def ended(outcome: RunOutcome | InferenceError | WorkerLostError) -> None:
            self._let_go()
            self._answer(exchange, message, outcome)
            self.on_over()

        if self._under_way is None and self.takes(message.model):
            self._desk.begun(None)
            deadline_s = self._driver.clock() + min(message.budget_s, RUN_MAX_S)
            place = room.place if isinstance(room, Loan) else None
            request = RunRequest(body=message.body, payload=payload, deadline_s=deadline_s, place=place)
            stop = self._executor.begin(message.model, request, ended)
            if stop is not None:
                self._under_way, self._stop, self._room = exchange, stop, room
                return
        if room is not None:
            room.release()
        self._say(exchange, LanePassed(key=message.key, is_unfit=False))

    def _let_go(self) -> None:
        """Take note that the run is over."""
        self._under_way = None
        room, self._room = self._room, None
        if room is not None:
            room.release()

    def _answer(
        self, exchange: Exchange, message: LaneRun, outcome: RunOutcome | InferenceError | WorkerLostError
    ) -> None:
        """Tell the peer what came of a run, and then everybody here who would have seen it pass."""
        key = message.key
        if not isinstance(outcome, RunOutcome) or len(outcome.payload) > PAYLOAD_MAX_BYTES:
            self._say(exchange, LanePassed(key=key, is_unfit=not isinstance(outcome, WorkerLostError)))
            return
        done = LaneDone(key=key, service_s=outcome.service_s, body=outcome.body)
        self._say(exchange, done, outcome.payload)
        self._driver.post(LaneRan(model=message.model, keys=(key,), origin=exchange.peer))
        self._report.ran_by_lane(outcome.service_s)
        if self._recorder is not None:
            self._recorder.executed(message.model, outcome.service_s)

    def _say(self, exchange: Exchange, message: LaneDone | LanePassed, payload: bytearray | bytes = b"") -> None:
        exchange.finish()  # the peer may begin another exchange as soon as it has this; and the idle time begins
        try:
            has_left = exchange.send_nowait(message, (payload,) if payload else ())
        except (PeerUnreachableError, trio.WouldBlock):
            return  # whoever listens finds the connection closed; nothing else is sent on it meanwhile
        if not has_left and not self._nursery.cancel_scope.cancel_called:  # else the node ends, and takes no task
            self._leaving.add(exchange)
            self._nursery.start_soon(self._flush, exchange)

    async def _flush(self, exchange: Exchange) -> None:
        try:
            await exchange.flush()
        except PeerUnreachableError:
            return
        finally:
            self._leaving.discard(exchange)
            self.on_over()
