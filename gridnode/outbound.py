"""Conversations this node begins with peers about jobs: sending, offering and stealing them.

One data connection per command, and a task where something has to be waited for besides the answer. Each ends by
posting the event that answers its command, whatever happened. Cancel before the payload is fully sent closes the
connection; after that it is a JobCancel frame, and the connection returns to the pool when the executor has answered.
"""

from collections.abc import Callable, Iterable
from typing import Final

import trio

from gridnode.driver import Driver
from gridnode.errands import Cancellable, Errand, Pursuit, Way
from gridnode.executoranswers import ExecutorAnswers
from gridnode.jobtable import Answer, JobEntry, JobTable
from gridnode.logs import EventLog, short
from gridnode.stolen import serve_stolen
from gridnode.translate import job_to_wire, state_from_wire, state_to_wire
from scheduler.actions import Offer, Send, Steal
from scheduler.events import (
    OfferAnswered,
    SendFailed,
    StealAnswered,
)
from scheduler.types import PeerState
from transport.base import DataPlane, Exchange
from transport.wire import (
    DataMessage,
    FrameTooLargeError,
    JobAccepted,
    JobFailed,
    JobOffer,
    JobPayload,
    JobProgress,
    JobRefused,
    JobResult,
    JobSend,
    OfferAccepted,
    PeerUnreachableError,
    RemoteProtocolError,
    StealAnswer,
    StealRequest,
    TransportError,
)

log = EventLog("outbound")

_ABOUT_JOBS: Final = (JobAccepted, JobProgress, JobRefused, JobResult, JobFailed)
"""What an executor says; each names the job."""


class Outbound:
    """Carries out Offer, Send and Steal, and follows granted leases.

    Parameters
    ----------
    node : str
        PeerID of this node.
    data : DataPlane
        The data plane.
    jobs : JobTable
        The jobs at this node.
    driver : Driver
        Takes the events.
    nursery : trio.Nursery
        The nursery of accepted jobs: errands live in it.
    own_state : callable
        Returns this node's state now; it goes with every job.
    on_unreachable : callable
        Told the PeerID of a peer that no connection could be made to.
    on_misbehaviour : callable
        Told the PeerID of a peer that broke the protocol, and what it did.
    on_answer : callable, optional
        Told the PeerID of each peer that says something about a job: it lives.
    is_awaited : callable, optional
        Says whether the core still waits for the answer to a command: it will then pass on the first result.
    before_answer : callable, optional
        See ExecutorAnswers.
    """

    def __init__(
        self,
        *,
        node: str,
        data: DataPlane,
        jobs: JobTable,
        driver: Driver,
        nursery: trio.Nursery,
        own_state: Callable[[], PeerState],
        on_unreachable: Callable[[str], None],
        on_misbehaviour: Callable[[str, str], None],
        on_answer: Callable[[str], None] = lambda _peer: None,
        is_awaited: Callable[[int], bool] = lambda _command: False,
        before_answer: Callable[[JobEntry, Answer, bool], None] = lambda _entry, _answer, _takes_lanes: None,
    ) -> None:
        self._node = node
        self._data = data
        self._jobs = jobs
        self._driver = driver
        self._nursery = nursery
        self._own_state = own_state
        self._on_unreachable = on_unreachable
        self._on_misbehaviour = on_misbehaviour
        self._errands: dict[int, Cancellable] = {}
        self._commands: dict[tuple[str, bytes], int] = {}
        """(peer, key) of jobs open at peers, to understand which of our jobs a peer's state covers."""
        self._leased: dict[int, tuple[str, bytes]] = {}
        """The same of leases, by command."""
        self.answers = ExecutorAnswers(
            driver=driver,
            covered=self.covered,
            on_answer=on_answer,
            is_awaited=is_awaited,
            before_answer=before_answer,
        )
        """What executors say of jobs."""

    @property
    def errands(self) -> int:
        """Commands under way at peers, leases included."""
        return len(self._errands)

    def start(self, action: Send | Offer, entry: JobEntry) -> None:
        """Begin to send or offer a job."""
        self._commands[action.peer, entry.job.key] = action.command
        if isinstance(action, Send) and self._begin(action, entry):
            return
        errand = self._errands[action.command] = Errand(entry.job.key)
        self._nursery.start_soon(self._run_send, action, entry, errand)

    def start_steal(self, action: Steal) -> None:
        """Begin to ask a peer for work."""
        errand = self._errands[action.command] = Errand(b"")
        self._nursery.start_soon(self._run_steal, action, errand)

    def cancel(self, command: int) -> bool:
        """Stop a command; False when it is not one of ours (any more)."""
        errand = self._errands.get(command)
        if errand is None:
            return False
        errand.cancel(self._nursery)
        return True

    def covered(self, peer: str, keys: Iterable[bytes]) -> tuple[int, ...]:
        """Return our commands behind keys that a peer says its state counts."""
        found = (self._commands.get((peer, key)) for key in keys)
        return tuple(command for command in found if command is not None)

    def adopt(self, command: int, lease: Cancellable, *, peer: str, key: bytes) -> None:
        """Let a granted lease be cancelled like any errand."""
        self._errands[command] = lease
        self._commands[peer, key] = command
        self._leased[command] = peer, key

    def release(self, command: int) -> None:
        """Forget a lease."""
        self._errands.pop(command, None)
        place = self._leased.pop(command, None)
        if place is not None and self._commands.get(place) == command:
            del self._commands[place]

    # ------------------------------------------------------------ sending

    def _begin(self, action: Send, entry: JobEntry) -> bool:
        """Send a job in this very call, if a connection is at hand and takes it."""
        exchange = self._data.take(action.peer)
        if exchange is None:
            return False
        way = Way(began_s=self._driver.clock(), setup_s=0.0, input_bytes=entry.job.input_bytes)
        try:
            is_sent = exchange.send_nowait(self._make_send(action, entry, now_s=way.began_s), entry.payload)
        except trio.WouldBlock:
            exchange.finish()
        except TransportError:
            pass  # what is wrong shows again where it is waited for
        else:
            pursuit = Pursuit(self, action, entry, exchange, way)
            if is_sent and exchange.listen(pursuit):
                self._errands[action.command] = pursuit
            else:
                errand = self._errands[action.command] = Errand(entry.job.key)
                errand.exchange, errand.sent = exchange, is_sent
                self._nursery.start_soon(self._run_begun, action, entry, errand, exchange, way)
            return True
        self._data.give_back(exchange)
        return False

    def _make_send(self, action: Send | Offer, entry: JobEntry, *, now_s: float) -> JobSend:
        assert action.job is not None
        header = job_to_wire(action.job, entry.body, now_s=now_s)
        return JobSend(job=header, estimate_s=_seconds(action.estimate_s), state=state_to_wire(self._own_state()))

    async def _run_begun(self, action: Send, entry: JobEntry, errand: Errand, exchange: Exchange, way: Way) -> None:
        """Follow a job that was sent in the call that asked for it."""
        ended = False
        try:
            with errand.scope:
                if not errand.sent:
                    await exchange.flush()
                    errand.sent = True
                await self.follow(exchange, action.command, entry, way)
                ended = True
                exchange.finish()
        except PeerUnreachableError as error:
            log.debug("send_failed", peer=short(action.peer), connected=True, error=error)
        except (RemoteProtocolError, FrameTooLargeError) as error:
            self._on_misbehaviour(action.peer, str(error))
        finally:
            self._data.give_back(exchange)
            self._close(action, entry, ended=ended, connected=True)

    async def _run_send(self, action: Send | Offer, entry: JobEntry, errand: Errand) -> None:
        """Get a connection, and send or offer a job over it."""
        connected = False
        ended = False
        try:
            with errand.scope:
                asked_s = trio.current_time()
                async with self._data.exchange(action.peer) as exchange:
                    connected = True
                    errand.exchange = exchange
                    began_s = trio.current_time()
                    way = Way(began_s=began_s, setup_s=began_s - asked_s, input_bytes=entry.job.input_bytes)
                    if isinstance(action, Offer):
                        ended = not await self._offer(exchange, action, entry)
                    else:
                        await exchange.send(self._make_send(action, entry, now_s=began_s), entry.payload)
                    if not ended:
                        errand.sent = True
                        await self.follow(exchange, action.command, entry, way)
                        ended = True
                    exchange.finish()
        except PeerUnreachableError as error:
            log.debug("send_failed", peer=short(action.peer), connected=connected, error=error)
            if not connected:
                self._on_unreachable(action.peer)
        except (RemoteProtocolError, FrameTooLargeError) as error:
            self._on_misbehaviour(action.peer, str(error))
        finally:
            self._close(action, entry, ended=ended, connected=connected)

    def _close(self, action: Send | Offer, entry: JobEntry, *, ended: bool, connected: bool) -> None:
        """Forget a command, and tell the core where it has had no answer."""
        self._errands.pop(action.command, None)
        if self._commands.get((action.peer, entry.job.key)) == action.command:
            del self._commands[action.peer, entry.job.key]
        if not ended:
            self._driver.post(SendFailed(command=action.command, connected=connected))

    async def _offer(self, exchange: Exchange, action: Offer, entry: JobEntry) -> bool:
        """Offer a job; on acceptance send its payload. Returns False when the peer refused."""
        began_s = trio.current_time()
        assert action.job is not None
        header = job_to_wire(action.job, entry.body, now_s=began_s)
        await exchange.send(
            JobOffer(job=header, estimate_s=_seconds(action.estimate_s), state=state_to_wire(self._own_state()))
        )
        message, _ = await exchange.receive()
        if isinstance(message, OfferAccepted):
            rtt_s = trio.current_time() - began_s
            self._driver.post(OfferAnswered(command=action.command, state=state_from_wire(message.state), rtt_s=rtt_s))
            await exchange.send(JobPayload(key=entry.job.key), entry.payload)
            return True
        if isinstance(message, JobRefused):
            self.answers.post_refused(action.command, message)
            return False
        raise RemoteProtocolError(f"peer answered an offer with {type(message).__name__}")

    # ------------------------------------------------------------ following an executor

    def hear(self, pursuit: Pursuit, message: DataMessage, payload: memoryview) -> None:
        """Post what an executor says of a job that left in the call that decided it."""
        action, exchange = pursuit.action, pursuit.exchange
        try:
            ended = self.answers.take(action.peer, action.command, pursuit.entry, message, payload, way=pursuit.way)
        except RemoteProtocolError as error:
            self.lose(pursuit, error)
            return
        if ended:
            exchange.finish()
            self._let_go(pursuit, ended=True)

    def lose(self, pursuit: Pursuit, error: TransportError | None) -> None:
        """Give up a job whose connection is of no more use."""
        action = pursuit.action
        if self._errands.get(action.command) is not pursuit:
            return  # it is over
        if isinstance(error, RemoteProtocolError | FrameTooLargeError):
            self._on_misbehaviour(action.peer, str(error))
        else:
            log.debug("send_failed", peer=short(action.peer), connected=True, error=error)
        self._let_go(pursuit, ended=False)

    def _let_go(self, pursuit: Pursuit, *, ended: bool) -> None:
        pursuit.ended()
        self._data.give_back(pursuit.exchange)
        self._close(pursuit.action, pursuit.entry, ended=ended, connected=True)

    async def follow(self, exchange: Exchange, command: int, entry: JobEntry, way: Way) -> None:
        """Post what an executor says of a job until its outcome."""
        while True:
            message, payload = await exchange.receive()
            if self.answers.take(exchange.peer, command, entry, message, payload, way=way):
                return

    # ------------------------------------------------------------ stealing

    async def _run_steal(self, action: Steal, errand: Errand) -> None:
        answered = False
        connected = False
        try:
            with errand.scope:
                async with self._data.exchange(action.victim) as exchange:
                    connected = True
                    request = StealRequest(models=action.models, room=action.room, state=state_to_wire(action.state))
                    await exchange.send(request)
                    message, _ = await exchange.receive()
                    if not isinstance(message, StealAnswer):
                        raise RemoteProtocolError(f"peer answered a steal with {type(message).__name__}")
                    answered = True
                    state = state_from_wire(message.state)
                    self._driver.post(StealAnswered(command=action.command, granted=message.granted, state=state))
                    if message.granted:
                        await serve_stolen(
                            exchange,
                            message.granted,
                            jobs=self._jobs,
                            driver=self._driver,
                            node=self._node,
                            nursery=self._nursery,
                        )
                    exchange.finish()
        except PeerUnreachableError as error:
            log.debug("steal_failed", peer=short(action.victim), error=error)
            if not connected:
                self._on_unreachable(action.victim)
        except (RemoteProtocolError, FrameTooLargeError) as error:
            self._on_misbehaviour(action.victim, str(error))
        finally:
            self._errands.pop(action.command, None)
            if not answered:
                self._driver.post(SendFailed(command=action.command, connected=connected))


def _seconds(value: float) -> float:
    """Fit an estimate into the wire's range."""
    return min(max(value, 0.0), 1e6)
