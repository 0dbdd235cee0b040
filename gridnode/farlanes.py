"""Lanes to workers at peers: this daemon carries what a program sends, and decides nothing while the ticket lasts.

A program's lane ends in a worker where its jobs are run here (models.lanes), and in this daemon where they are run at
one peer: TLS ends in daemons, so one must stay in the middle. It hands each request to the peer as a LaneRun, on one
connection that it keeps for as long as the ticket is in use. Owns the lanes' ends, their tickets, and the account of
what was run. Who deserves a ticket is gridnode.lanes's to say; what the peer makes of it gridnode.laneruns's. What
program and daemon say to each other is models.laneprotocol, as with a worker.
"""

import contextlib
import math
import os
import socket
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from gridnode.driver import Driver
from gridnode.lanes import LASTS_S, RUNS
from gridnode.logs import EventLog, short
from models import laneprotocol as protocol
from models.lanes import OnWord, is_line
from models.segments import Segment, SegmentRefusedError
from models.workerprotocol import LaneEnded
from models.workerprotocol import LaneRun as RunAccount
from transport.base import DataPlane, Exchange
from transport.wire import (
    DataMessage,
    FrameTooLargeError,
    LaneDone,
    LanePassed,
    LaneRun,
    RemoteProtocolError,
    TransportError,
)

log = EventLog("farlanes")

LANES_MAX: Final = 16
"""Lanes to peers: each has a task and a socket here."""
SILENCE_MAX_S: Final = 0.25
"""Time past the ticket's end that a peer has to answer; then the request is placed as any other, perhaps elsewhere."""

_AT_ONCE: Final = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
"""Never wait in the kernel: a program that has kept our end may set it so that we would."""


class FarLane:
    """One lane to a peer; implements models.lanes.Lane and transport.base.Listener.

    Parameters
    ----------
    lanes : FarLanes
        All of them.
    peer : str
        PeerID of the executor.
    model : str
        Digest of the model.
    segment : Segment
        Memory that the program's payloads lie in.
    line : socket
        Connected to the program; owned by this object.
    on_word : callable
        Told what was run, and of the lane's end.
    """

    def __init__(
        self, lanes: "FarLanes", peer: str, model: str, segment: Segment, line: socket.socket, on_word: OnWord
    ) -> None:
        self._lanes = lanes
        self._peer = peer
        self._model = model
        self._segment = segment
        self._line = line
        self._on_word = on_word
        self._due_s = math.inf
        """When the ticket in use, or the answer to the run under way, is overdue."""
        self._scope = trio.CancelScope()
        """Ends the wait for requests then."""
        self._given = self._ticket = 0
        """The newest ticket, and the one in use (0: none)."""
        self._left = 0
        self._until_s = 0.0
        self._is_cut = False
        """Whether the ticket in use ends before its time, with runs left: somebody wants something else."""
        self._is_closing = False
        self._exchange: Exchange | None = None
        """The connection that is kept while a ticket is in use."""
        self._request: protocol.LaneRequest | None = None
        """The one under way."""
        self._is_leaving = False
        """Whether a part of its payload is still to be sent."""
        self._came_s = 0.0
        self._passed = 0
        """Requests in a row that were not run."""
        self._runs: list[tuple[protocol.LaneRequest, float, float, float, int]] = []
        """On the ticket in use: request, time of its coming, service and transfer in seconds, length of the answer."""

    # ------------------------------------------------------------ the desk's

    def give(self, ticket: int, *, runs: int, lasts_s: float) -> bool:
        """See models.lanes.Lane.give; what a ticket is good for is the same for all."""
        assert (runs, lasts_s) == (RUNS, LASTS_S), "tickets are alike"
        if self._is_closing:
            return False
        self._given = ticket
        return True

    def revoke(self, ticket: int) -> None:
        """See models.lanes.Lane.revoke."""
        if self._given <= ticket:
            self._given = 0
        if self._ticket and self._ticket <= ticket:
            self._is_cut = self._left > 0
            if self._request is None:
                self._end()

    def close(self) -> None:
        """See models.lanes.Lane.close."""
        if not self._is_closing:
            self._is_closing = True
            with contextlib.suppress(OSError):  # the program has gone before
                self._line.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------------------ the lane's task's

    async def serve(self) -> None:
        """Take requests until the program leaves or breaks the protocol."""
        try:
            while not self._is_closing:
                with trio.CancelScope(deadline=self._due_s) as self._scope:
                    await self._listen()
                    return
                self._look_at_clock()
        finally:
            self._is_closing = True
            self._give_back(is_whole=self._request is None)
            self._line.close()
            self._account(is_closed=True)

    async def _listen(self) -> None:
        line, receive = self._line.fileno(), self._line.recv
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            while True:
                await trio.lowlevel.wait_readable(line)
                packet = receive(protocol.PACKET_MAX_BYTES, _AT_ONCE)
                if not packet or self._is_closing:
                    return
                request = protocol.decode_request(packet)
                if self._request is not None:
                    return  # a program waits for its answer; it breaks the protocol
                now_s = self._lanes.driver.clock()
                if self._is_valid(request.ticket, now_s):
                    self._begin(request, now_s)
                else:
                    self._pass(request)

    def _begin(self, request: protocol.LaneRequest, now_s: float) -> None:
        """Send a request to the peer."""
        assert self._exchange is not None
        budget_s = self._lanes.default_deadline_s if request.budget_s is None else request.budget_s
        run = LaneRun(key=request.key, model=self._model, budget_s=budget_s, body=request.body)
        try:
            payload = self._segment.piece(request.offset, request.payload_bytes)
            has_left = self._exchange.send_nowait(run, (payload,) if request.payload_bytes else ())
        except SegmentRefusedError:
            self._pass(request, is_unfit=True)
            return
        except (TransportError, trio.WouldBlock) as error:
            log.debug("lane_run_not_sent", peer=short(self._peer), error=error)
            self._fail()
            self._pass(request)
            return
        self._request, self._came_s = request, now_s
        self._left -= 1
        self._is_leaving = not has_left
        if self._is_leaving:
            self._lanes.start_soon(self._flush, self._exchange)

    async def _flush(self, exchange: Exchange) -> None:
        """Send the rest of a payload."""
        with contextlib.suppress(TransportError):  # the lane hears of it
            await exchange.flush()
            if exchange is self._exchange:
                self._is_leaving = False

    def _is_valid(self, ticket: int, now_s: float) -> bool:
        """Tell whether a ticket is good for a run now."""
        if ticket != self._ticket or not ticket:
            return self._begin_ticket(ticket, now_s)
        return now_s < self._until_s  # else the clock is about to be looked at

    def _begin_ticket(self, ticket: int, now_s: float) -> bool:
        """Begin to use a ticket, if it was given and there is a connection at hand."""
        self._end()
        if not ticket or ticket != self._given:
            return False
        self._given = 0
        exchange = self._lanes.data.take(self._peer)
        if exchange is None:
            return False
        self._exchange = exchange
        if not exchange.listen(self):
            self._give_back(is_whole=False)
            return False
        self._ticket, self._left, self._until_s = ticket, RUNS, now_s + LASTS_S
        self._expect(self._until_s)
        return True

    def _expect(self, due_s: float) -> None:
        self._due_s = self._scope.deadline = due_s

    def _look_at_clock(self) -> None:
        """End a ticket whose time is over, and a run that is overdue."""
        now_s = self._lanes.driver.clock()
        if now_s < self._due_s:
            return  # another ticket was begun at the same instant
        if self._request is None:
            self._end()
        elif now_s < self._until_s + SILENCE_MAX_S:
            self._left = 0
            self._expect(self._until_s + SILENCE_MAX_S)
        else:
            log.info("lane_run_overdue", peer=short(self._peer), after_s=round(now_s - self._came_s, 3))
            self._fail()

    # ------------------------------------------------------------ what the peer says

    def heard(self, message: DataMessage, payload: memoryview) -> None:
        """Take the answer to the run under way."""
        request = self._request
        if (
            request is None
            or self._is_leaving  # the program would write over what is still to leave, for somebody else perhaps
            or not isinstance(message, LaneDone | LanePassed)
            or message.key != request.key
        ):
            self.broke(RemoteProtocolError(f"peer sent {type(message).__name__} by a lane that did not wait for it"))
            return
        self._request = None
        if isinstance(message, LaneDone):
            self._answer(request, message, payload)
        else:
            self._is_cut = True
            self._pass(request, is_unfit=message.is_unfit)
        if self._is_cut or not self._left:
            self._end()

    def broke(self, error: TransportError) -> None:
        """Take note that the connection is of no more use."""
        self._fail()
        if isinstance(error, RemoteProtocolError | FrameTooLargeError):
            self._lanes.on_misbehaviour(self._peer, str(error))

    def _fail(self) -> None:
        """Pass the run under way, and end the ticket with its connection."""
        request, self._request = self._request, None
        self._is_cut = True
        self._give_back(is_whole=False)
        self._end()
        if request is not None:
            self._pass(request)

    def _answer(self, request: protocol.LaneRequest, message: LaneDone, payload: memoryview) -> None:
        size_bytes = len(message.body) + len(payload)
        if size_bytes > protocol.ANSWER_MAX_BYTES:
            self._pass(request, is_unfit=True)
            return
        took_s = self._lanes.driver.clock() - self._came_s
        service_s = min(message.service_s, took_s)  # a peer may say what it likes
        transfer_s = took_s - service_s
        done = protocol.LaneDone(message.key, message.body, bytes(payload), service_s, transfer_s)
        self._tell(protocol.encode(done))
        self._passed = 0
        self._runs.append((request, self._came_s, service_s, transfer_s, size_bytes))

    def _pass(self, request: protocol.LaneRequest, *, is_unfit: bool = False) -> None:
        """Have the program ask the daemon for a job, which is placed as any other then."""
        self._tell(protocol.encode(protocol.LanePass(request.key, is_unfit=is_unfit)))
        self._passed += 1
        if self._passed == protocol.PASSED_MAX:
            self.close()

    def _tell(self, packet: bytes) -> None:
        try:
            self._line.send(packet, _AT_ONCE)
        except OSError:  # it has gone, or reads no answers
            self.close()

    # ------------------------------------------------------------ a ticket's end

    def _end(self) -> None:
        """Let go of the ticket in use, and tell what was run on it."""
        if self._ticket:
            self._give_back(is_whole=True)
            self._account()

    def _give_back(self, *, is_whole: bool) -> None:
        """Let go of the connection, which is closed where the peer may still be answering."""
        self._expect(math.inf)
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            if is_whole:
                exchange.finish()
            self._lanes.data.give_back(exchange)

    def _account(self, *, is_closed: bool = False) -> None:
        now_s = self._lanes.driver.clock()
        runs = tuple(
            [
                RunAccount(
                    key=request.key,
                    age_s=now_s - came_s,
                    service_s=service_s,
                    transfer_s=transfer_s,
                    input_bytes=request.payload_bytes,
                    output_bytes=output_bytes,
                    budget_s=request.budget_s,
                )
                for request, came_s, service_s, transfer_s, output_bytes in self._runs
            ]
        )
        self._runs.clear()
        ticket, self._ticket = self._ticket, 0
        if runs:
            self._lanes.on_answer(self._peer)
        was_cut, self._is_cut = self._is_cut, False
        self._on_word(LaneEnded(lane=0, ticket=ticket, runs=runs, was_cut=was_cut, is_closed=is_closed))


class FarLanes:
    """All lanes to peers of one daemon.

    Parameters
    ----------
    data : DataPlane
        Carries the runs.
    driver : Driver
        Has the clock.
    nursery : trio.Nursery
        The nursery of accepted jobs: lanes live in it.
    default_deadline_s : float
        Budget of a request that names none.
    on_misbehaviour : callable
        Told the PeerID of a peer that broke the protocol, and what it did.
    on_answer : callable
        Told the PeerID of a peer that has answered: it lives.
    """

    def __init__(
        self,
        *,
        data: DataPlane,
        driver: Driver,
        nursery: trio.Nursery,
        default_deadline_s: float,
        on_misbehaviour: Callable[[str, str], None],
        on_answer: Callable[[str], None],
    ) -> None:
        self.data = data
        self.driver = driver
        self.default_deadline_s = default_deadline_s
        self.on_misbehaviour = on_misbehaviour
        self.on_answer = on_answer
        self.start_soon = nursery.start_soon
        self._open = 0

    def open(self, peer: str, model: str, segment: Segment, descriptor: int, on_word: OnWord) -> FarLane | None:
        """Open a lane to a peer; the descriptor is taken over. None where there is no room, or it is no lane's."""
        if self._open >= LANES_MAX or not is_line(descriptor):
            os.close(descriptor)
            return None
        lane = FarLane(self, peer, model, segment, socket.socket(fileno=descriptor), on_word)
        self._open += 1
        self.start_soon(self._serve, lane)
        return lane

    async def _serve(self, lane: FarLane) -> None:
        try:
            await lane.serve()
        finally:
            self._open -= 1
