"""Answers what peers ask beside jobs: probes, tables, cards, revocations, signed state, chunks, certificates.

Each is one question and one answer on a connection. Nothing here changes what the core decides.
"""

from collections.abc import Callable
from typing import Final, Protocol

import trio

from gridnode.logs import EventLog, short
from gridnode.translate import state_to_wire
from scheduler.types import PeerState
from transport.base import DataPlane, Exchange, ask
from transport.wire import (
    CardRequest,
    Cards,
    ChunkRequest,
    DataMessage,
    Document,
    Holdings,
    HoldingsRequest,
    Ping,
    Pong,
    PublishRequest,
    Refused,
    RevocationRequest,
    Signed,
    SignRequest,
    Table,
    TableRequest,
    TransportError,
    TrustRequest,
)

log = EventLog("services")

INDIRECT_PROBE_S: Final = 0.5
"""Time for a probe on another node's behalf; the asker waits a little longer."""
CHUNKS_AT_ONCE_MAX: Final = 4
"""Chunks read and sent at once: 1 MiB each, on a board that may have 512 MiB in all."""


class CardKeeper(Protocol):
    """Holds node cards."""

    def cards(self, request: CardRequest) -> tuple[bytes, ...]:
        """Return the cards asked for, at most CARDS_PER_MESSAGE_MAX."""
        ...

    def take_card(self, encoded: bytes) -> None:
        """Take in a card that came with a question; a bad one is ignored."""
        ...

    def revocation_document(self, newer_than: int) -> bytes | None:
        """Return the revocation list if it is newer than a version."""
        ...


class ModelKeeper(Protocol):
    """Holds the signed state and the models' chunks. The calls block on the disk."""

    def signed_file(self, path: str) -> bytes | None:
        """Return a file of the signed state."""
        ...

    def chunk(self, cid: str) -> bytes | None:
        """Return a chunk, verified."""
        ...

    def holdings(self, sha256: str) -> bytes:
        """Return the bitmap of a shard's chunks."""
        ...

    def publish(self, publication: bytes) -> bool:
        """Take what an owner signed into the signed state; False where this node is no desk or refuses it."""
        ...


class Renewer(Protocol):
    """Signs certificates for peers."""

    def renew(self, csr: bytes, *, peer: str) -> bytes:
        """Return a new chain for a peer's own key; raises TransportError where that is not allowed."""
        ...


class Services:
    """One answer per question.

    Parameters
    ----------
    own_state : callable
        Returns this node's state now.
    own_table : callable
        Returns this node's capability table as a message.
    on_ping : callable
        Told each node that pings this one.
    """

    def __init__(
        self,
        *,
        data: DataPlane,
        cards: CardKeeper,
        models: ModelKeeper,
        renewer: Renewer,
        own_state: Callable[[], PeerState],
        own_table: Callable[[], Table],
        on_ping: Callable[[str], None],
    ) -> None:
        self._data = data
        self._cards = cards
        self._models = models
        self._renewer = renewer
        self._own_state = own_state
        self._own_table = own_table
        self._on_ping = on_ping
        self._chunk_limit = trio.CapacityLimiter(CHUNKS_AT_ONCE_MAX)
        self._file_limit = trio.CapacityLimiter(CHUNKS_AT_ONCE_MAX)

    async def handle(self, exchange: Exchange, message: DataMessage, payload: memoryview) -> None:
        """Answer one question; raises TransportError when the connection breaks."""
        match message:
            case Ping():
                await self._pong(exchange, message)
            case TableRequest():
                await exchange.send(self._own_table())
            case CardRequest():
                if message.own is not None:
                    self._cards.take_card(message.own)
                await exchange.send(Cards(cards=self._cards.cards(message)))
            case RevocationRequest():
                await _send_document(exchange, self._cards.revocation_document(message.version))
            case TrustRequest():
                data = await trio.to_thread.run_sync(self._models.signed_file, message.path, limiter=self._file_limit)
                await _send_document(exchange, data)
            case ChunkRequest():
                async with self._chunk_limit:
                    chunk = await trio.to_thread.run_sync(self._models.chunk, message.cid)
                    await _send_document(exchange, chunk)
            case HoldingsRequest():
                bitmap = await trio.to_thread.run_sync(self._models.holdings, message.sha256, limiter=self._file_limit)
                await exchange.send(Holdings(bitmap=bitmap))
            case SignRequest():
                await exchange.send(self._sign(message, exchange.peer))
            case PublishRequest():
                publication = bytes(payload)
                done = await trio.to_thread.run_sync(self._models.publish, publication, limiter=self._file_limit)
                await exchange.send(Document(found=done))
            case _:
                log.warning("question_refused", peer=short(exchange.peer), kind=type(message).__name__)
                await exchange.send(Refused(reason=f"{type(message).__name__} is no question"))
                return
        exchange.finish()

    async def _pong(self, exchange: Exchange, message: Ping) -> None:
        self._on_ping(exchange.peer)
        reached = True
        if message.subject is not None and message.subject != exchange.peer:
            reached = await probe(self._data, message.subject, nonce=message.nonce, timeout_s=INDIRECT_PROBE_S)
        state = state_to_wire(self._own_state())
        await exchange.send(Pong(nonce=message.nonce, reached=reached, state=state))

    def _sign(self, message: SignRequest, peer: str) -> Signed:
        try:
            return Signed(chain=self._renewer.renew(message.csr, peer=peer))
        except TransportError as error:
            return Signed(chain=None, reason=str(error)[:256])


async def _send_document(exchange: Exchange, data: bytes | None) -> None:
    await exchange.send(Document(found=data is not None), () if data is None else (data,))


async def probe(data: DataPlane, node: str, *, nonce: int, timeout_s: float) -> bool:
    """Ping a node over the data plane; False when it does not answer in time or cannot be reached."""
    try:
        with trio.move_on_after(timeout_s):
            answer, _ = await ask(data, node, Ping(nonce=nonce))
            return isinstance(answer, Pong) and answer.reached
    except TransportError:
        return False
    return False
