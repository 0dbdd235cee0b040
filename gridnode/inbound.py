"""Conversations peers begin with this node about jobs: jobs sent, offers and steals.

Everything else a peer may ask (probes, tables, cards, chunks, signed documents) is answered by gridnode.services.
"""

import trio

from gridnode.config import HANDOVER_TIMEOUT_S
from gridnode.conversation import Conversation
from gridnode.driver import Driver
from gridnode.jobtable import JobTable
from gridnode.laneruns import LaneRuns
from gridnode.leases import Grant
from gridnode.outbound import Outbound
from gridnode.translate import job_from_wire, state_from_wire, state_to_wire
from scheduler.actions import Accept, GrantLease, NackOffer
from scheduler.events import OfferReceived, StealRequested
from scheduler.types import PeerState
from transport.base import Exchange
from transport.wire import (
    DataMessage,
    JobCancel,
    JobHeader,
    JobOffer,
    JobPayload,
    JobRefused,
    JobSend,
    LaneRun,
    OfferAccepted,
    PeerUnreachableError,
    RemoteProtocolError,
    StateRecord,
    StealRequest,
)

Ruling = Accept | NackOffer | Grant


class Question:
    """A peer's offer or steal that waits for the core's ruling."""

    __slots__ = ("_asked", "peer", "ruling")

    def __init__(self, peer: str) -> None:
        self._asked = trio.Event()
        self.peer = peer
        self.ruling: Ruling | None = None

    def rule(self, ruling: Ruling) -> None:
        """Give the core's answer."""
        self.ruling = ruling
        self._asked.set()

    async def wait(self) -> Ruling:
        """Wait for the core's answer; it comes with the event that asked, once the core is driven."""
        await self._asked.wait()
        assert self.ruling is not None
        return self.ruling


class Inbound:
    """Serves the exchanges of peers that are about jobs.

    Parameters
    ----------
    node : str
        PeerID of this node.
    jobs : JobTable
        The jobs at this node.
    driver : Driver
        Takes the events.
    outbound : Outbound
        Follows granted leases.
    lane_runs : LaneRuns
        Serves what comes by lanes.
    nursery : trio.Nursery
        The nursery of accepted jobs: what is still to be sent lives in it.
    """

    def __init__(
        self,
        *,
        node: str,
        jobs: JobTable,
        driver: Driver,
        outbound: Outbound,
        lane_runs: LaneRuns,
        nursery: trio.Nursery,
    ) -> None:
        self._nursery = nursery
        self._conversations: set[Conversation] = set()
        self._silent = trio.Event()
        self._is_awaited = False
        """Whether somebody waits for silence; looked at first, since jobs end all the time."""
        self._node = node
        self._jobs = jobs
        self._driver = driver
        self.outbound = outbound
        """Follows the leases this node grants."""
        self._lane_runs = lane_runs
        lane_runs.on_over = self._look_round
        self._questions: dict[int, Question] = {}
        self._asked = 0

    @property
    def questions(self) -> int:
        """Offers and steals that wait for the core's ruling."""
        return len(self._questions)

    def rule(self, action: Accept | NackOffer | GrantLease) -> None:
        """Carry out the core's ruling on an offer or a steal."""
        if isinstance(action, GrantLease):
            question = self._questions.pop(action.request)
            question.rule(Grant(question.peer, action, jobs=self._jobs, driver=self._driver, outbound=self.outbound))
        elif (asked := self._questions.pop(action.offer, None)) is not None:
            asked.rule(action)

    async def handle(self, exchange: Exchange, message: DataMessage, payload: memoryview) -> bool:
        """Serve one exchange; False when its first message is not about jobs.

        Raises
        ------
        TransportError
            The connection broke or the peer broke the protocol.
        """
        match message:
            case LaneRun():
                await self._lane_runs.serve(exchange, message, payload)
            case JobSend():
                await self._converse(exchange, message.job, payload, estimate_s=message.estimate_s)
            case JobOffer():
                await self._consider(exchange, message)
            case StealRequest():
                await self._share(exchange, message)
            case JobCancel():
                pass  # crossed with our outcome
            case _:
                return False
        exchange.finish()
        return True

    async def _consider(self, exchange: Exchange, message: JobOffer) -> None:
        """Ask the core about an offer, and take the payload if it agrees."""
        number, question = self._ask(exchange.peer)
        self._driver.post(
            OfferReceived(
                offer=number,
                peer=exchange.peer,
                job=job_from_wire(message.job, now_s=self._driver.clock()),
                state=_state_of(exchange, message.state),
                sender_estimate_s=message.estimate_s,
            )
        )
        ruling = await question.wait()
        if isinstance(ruling, NackOffer):
            await exchange.send(
                JobRefused(
                    key=message.job.key,
                    attempt=message.job.attempt,
                    reason=ruling.why.value,
                    estimate_s=None if ruling.estimate_s is None else min(max(ruling.estimate_s, 0.0), 1e6),
                    state=state_to_wire(ruling.state),
                )
            )
            return
        assert isinstance(ruling, Accept)
        await exchange.send(OfferAccepted(key=message.job.key, state=state_to_wire(ruling.state)))
        payload = await _receive_payload(exchange, message.job.key, expires_s=ruling.expires_s)
        await self._converse(exchange, message.job, payload, offer=number, estimate_s=message.estimate_s)

    async def _share(self, exchange: Exchange, message: StealRequest) -> None:
        """Ask the core what a thief may have, hand it over and follow it."""
        number, question = self._ask(exchange.peer)
        self._driver.post(
            StealRequested(
                request=number,
                peer=exchange.peer,
                state=_state_of(exchange, message.state),
                models=message.models,
                room=message.room,
            )
        )
        ruling = await question.wait()
        assert isinstance(ruling, Grant)
        await ruling.hand_over(exchange)

    def _ask(self, peer: str) -> tuple[int, Question]:
        self._asked += 1
        question = self._questions[self._asked] = Question(peer)
        return self._asked, question

    async def _converse(
        self,
        exchange: Exchange,
        header: JobHeader,
        payload: memoryview,
        *,
        offer: int | None = None,
        estimate_s: float | None,
    ) -> None:
        """Serve one job to its outcome, and on until the peer says something else."""
        conversation = Conversation(
            exchange,
            jobs=self._jobs,
            driver=self._driver,
            node=self._node,
            nursery=self._nursery,
            on_over=self._look_round,
            takes_lanes=self._lane_runs.takes,
        )
        self._conversations.add(conversation)
        try:
            conversation.admit(header, payload, offer=offer, estimate_s=estimate_s)
            await conversation.run()
        finally:
            self._conversations.discard(conversation)
            self._look_round()

    @property
    def is_silent(self) -> bool:
        """Whether every peer's job has had its outcome, and all outcomes have left."""
        return self._lane_runs.is_silent and all(conversation.is_over for conversation in self._conversations)

    async def wait_silent(self) -> None:
        """Wait until is_silent."""
        while not self.is_silent:
            self._is_awaited = True
            await self._silent.wait()

    def _look_round(self) -> None:
        if self._is_awaited and self.is_silent:
            self._is_awaited = False
            self._silent.set()
            self._silent = trio.Event()


async def _receive_payload(exchange: Exchange, key: bytes, *, expires_s: float) -> memoryview:
    """Receive the payload of an accepted offer; its frame must have begun before the room expires."""
    with trio.move_on_at(expires_s + HANDOVER_TIMEOUT_S):
        message, payload = await exchange.receive()
        if not isinstance(message, JobPayload) or message.key != key:
            raise RemoteProtocolError(f"peer sent {type(message).__name__} where an accepted payload was due")
        return payload
    raise PeerUnreachableError("payload of an accepted offer did not come in time")


def _state_of(exchange: Exchange, record: StateRecord) -> PeerState | None:
    """Return the state that came with a question, if it is the asker's own."""
    return state_from_wire(record) if record.node == exchange.peer else None
