"""Who is in the grid: node cards, revocations, and what follows for the core and the two planes.

Owns the card book, the revocation list in force and this node's own card. Cards travel three ways: by gossip when they
change (gridnode.gossip judges it), with the first question to a peer, and page by page when a connection begins
(gridnode.introductions).
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

from gridnode.cardfile import load_cards, save_cards
from gridnode.credentials import Credentials
from gridnode.driver import Driver
from gridnode.gossip import Gossip
from gridnode.introductions import Introductions
from gridnode.logs import EventLog, short
from gridnode.mesh import Mesh
from gridnode.watch import Watch
from scheduler.events import PeerReachable
from transport.addressbook import Address as BookAddress
from transport.base import (
    CARD_TOPIC,
    REVOCATION_TOPIC,
    ControlPlane,
    DataPlane,
)
from transport.cards import Address, CardBook, NodeCard, card_digest, make_card
from transport.certificates import ADMIT, SERVE, CertificateRefusedError
from transport.files import StateFileError
from transport.liveness_events import Status
from transport.wire import (
    CARDS_PER_MESSAGE_MAX,
    VERSION,
    CardNotice,
    CardRequest,
    RemoteProtocolError,
    RevocationNotice,
    TrustNotice,
    encode,
)

log = EventLog("membership")

INTRODUCE_ALL_MAX: Final = 16
"""Up to so many known nodes each new one is met at once, so that a small grid is whole within a second; in a larger
one that would be a full mesh, and control neighbours and jobs do the meeting."""
REVOCATION_GOSSIP_MAX_BYTES: Final = 3500
PUBLISH_CARD_AFTER_S: Final = (0.2, 1.5, 5.0)
"""When our card is gossiped after a new neighbour: the gossip mesh takes a heartbeat or two to include it."""
CARD_YOUNG_S: Final = 60.0
"""Age up to which our card is gossiped for each new neighbour. Later the grid has it, and a neighbour whose card we
hold is given ours by the introduction and passes it on if it is news. Neighbours are exchanged all the time: cards for
each of them were most of what gossip cost a node that idles among twenty."""
CARD_AGAIN_S: Final = 300.0
"""How often it is gossiped even so, where there are new neighbours: their data ports may be closed to us."""


class EpochBehindError(Exception):
    """Others know a later life of this node: its state directory was set back. The daemon must start anew."""

    def __init__(self, epoch: int) -> None:
        super().__init__(f"peers hold a card of this node with epoch {epoch}")
        self.epoch = epoch


class Membership:
    """The members of the grid as this node knows them.

    Parameters
    ----------
    credentials : Credentials
        Own identity and whom to believe.
    name : str
        Host label for people.
    epoch : int
        Boot counter of this life.
    on_trust_news : callable
        Told what signed state a peer says it holds, and its PeerID.
    on_meeting : callable
        Told each peer that was met; signed state may be had from it.
    on_revoked : callable
        Called when the revocation list grew: connections must be judged again.
    on_fatal : callable
        Told an exception that must end the daemon.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        name: str,
        epoch: int,
        control: ControlPlane,
        data: DataPlane,
        driver: Driver,
        cards_path: Path | None,
        on_trust_news: Callable[[TrustNotice, str], None],
        on_meeting: Callable[[str], None],
        on_revoked: Callable[[], None],
        on_fatal: Callable[[BaseException], None],
    ) -> None:
        self._credentials = credentials
        self._name = name
        self._epoch = epoch
        self._control = control
        self._data = data
        self._driver = driver
        self._cards_path = cards_path
        self._on_revoked = on_revoked
        self._on_fatal = on_fatal
        self._book = CardBook(credentials.trust)
        self._own_card = b""
        self._own_cards: list[bytes] = []
        """All of this life, one per renewal. Another one with this epoch means that the boot counter was lost."""
        self._card_sequence = 0
        self._card_since_s = -math.inf
        """When our card was made."""
        self._card_told_s = -math.inf
        """When it was last gossiped for a new neighbour."""
        self._nursery: trio.Nursery | None = None
        self._introductions = Introductions(self, data=data, on_meeting=on_meeting, on_reachable=self._tell_reachable)
        self.gossip = Gossip(
            self, control=control, driver=driver, introductions=self._introductions, on_trust_news=on_trust_news
        )
        """Judges and takes what the control plane hears."""
        self._mesh: Mesh | None = None
        self._watch: Watch | None = None

    # ------------------------------------------------------------ what others ask

    @property
    def node(self) -> str:
        """PeerID of this node."""
        return self._credentials.node

    def name_of(self, node: str) -> str:
        """Return a node's name, or the tail of its PeerID."""
        if node == self.node:
            return self._name
        card = self._book.get(node)
        return card.name if card is not None and card.name else short(node)

    def card(self, node: str) -> NodeCard | None:
        """Return a node's card."""
        return self._book.get(node)

    def members(self) -> tuple[NodeCard, ...]:
        """Return the cards of all known nodes, sorted by node."""
        return tuple(self._book)

    def has_role(self, node: str, role: str) -> bool:
        """Say whether a node's certificate carries a role."""
        card = self._book.get(node)
        return card is not None and role in card.certificate.roles

    def reachable_peers(self) -> tuple[str, ...]:
        """Return the nodes whose data port is believed to answer, sorted: not the dead, whose cards are kept."""
        return tuple(card.node for card in self._book if self.is_reachable(card.node) and not self._is_gone(card.node))

    def admit_peers(self) -> tuple[str, ...]:
        """Return those of them with role admit, sorted."""
        return tuple(node for node in self.reachable_peers() if self.has_role(node, ADMIT))

    def _is_gone(self, node: str) -> bool:
        return self._watch is not None and self._watch.status(node) in (Status.DEAD, Status.LEFT)

    def cards_for_newcomers(self) -> tuple[bytes, ...]:
        """Return cards for a node that joins, this node's own first."""
        return (self._own_card, *(card.encoded for card in self._book))

    def is_reachable(self, node: str) -> bool:
        """Say whether the node's data port answered when it was last tried."""
        return self._introductions.is_reachable(node)

    def cards(self, request: CardRequest) -> tuple[bytes, ...]:
        """Return cards for a peer: those it names, or a page of all."""
        if request.nodes:
            named = [self._encoded(node) for node in request.nodes]
            return tuple(encoded for encoded in named if encoded)[:CARDS_PER_MESSAGE_MAX]
        known = sorted([*(card.node for card in self._book), self.node])
        page = [node for node in known if node > request.after][:CARDS_PER_MESSAGE_MAX]
        return tuple(encoded for node in page if (encoded := self._encoded(node)))

    def take_card(self, encoded: bytes) -> None:
        """Take in a card; a bad one is ignored, news are passed on."""
        if self.take_in(encoded) and self._nursery is not None:
            self._nursery.start_soon(self._control.publish, CARD_TOPIC, encode(CardNotice(card=encoded)))

    def revocation_document(self, newer_than: int) -> bytes | None:
        """Return the revocation list if it is newer than a version."""
        revocations = self._credentials.revocations
        return revocations.document if revocations.version > newer_than else None

    def take_revocations(self, document: bytes) -> bool:
        """Take in a revocation list and cut off whom it names; say whether it was news.

        Raises
        ------
        TransportError
            It is not good.
        """
        if not self._credentials.revocations.accept(document, self._credentials.trust):
            return False
        log.warning("revocations_changed", version=self._credentials.revocations.version)
        for node in self._book.remove_refused():
            self._expel(node)
        self._on_revoked()
        if self._nursery is not None:
            self._nursery.start_soon(trio.to_thread.run_sync, self._save_revocations)
            self._nursery.start_soon(self.publish_revocations)
        return True

    async def publish_revocations(self) -> None:
        """Gossip the revocation list."""
        revocations = self._credentials.revocations
        document = revocations.document
        if document is not None:
            small = document if len(document) <= REVOCATION_GOSSIP_MAX_BYTES else None
            await self._control.publish(
                REVOCATION_TOPIC, encode(RevocationNotice(version=revocations.version, document=small))
            )

    # ------------------------------------------------------------ life

    def begin(self, *, mesh: Mesh, watch: Watch) -> None:
        """Know the two services that are told of news; before serve."""
        self._mesh = mesh
        self._watch = watch
        self.gossip.begin(watch)

    def announce(self, *, control: tuple[Address, ...], data: tuple[Address, ...]) -> None:
        """Make this node's card once its ports are bound, and again after a renewal."""
        self._card_sequence += 1
        self._own_card = make_card(
            self._credentials.key,
            self._credentials.chain,
            epoch=self._epoch,
            sequence=self._card_sequence,
            name=self._name,
            control=control,
            data=data,
            wire_versions=(VERSION,),
        )
        self._own_cards.append(self._own_card)
        self._card_since_s = trio.current_time()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Handle gossip until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._introductions.begin(nursery)
            for encoded in load_cards(self._cards_path) if self._cards_path is not None else ():
                self.take_in(encoded)
            task_status.started()
            self._control.consume(self.gossip.take)
            try:
                await trio.sleep_forever()
            finally:
                self._control.consume(None)

    async def publish_card(self) -> None:
        """Gossip this node's card."""
        await self._control.publish(CARD_TOPIC, encode(CardNotice(card=self._own_card)))

    def greet(self, node: str) -> None:
        """Introduce ourselves to a new neighbour, and our card to the grid where it may lack it."""
        if self._nursery is None:
            return
        now_s = trio.current_time()
        is_known = self.knows(node)
        if is_known:
            self._introductions.introduce(node)
        if not is_known or now_s < self._card_since_s + CARD_YOUNG_S or now_s >= self._card_told_s + CARD_AGAIN_S:
            self._card_told_s = now_s
            self._nursery.start_soon(self._publish_card_soon)

    def save_cards(self) -> None:
        """Write the cards to disk. Blocks on fsync."""
        if self._cards_path is not None:
            save_cards(self._cards_path, self._book)

    def peer_lost(self, node: str) -> None:
        """Close what is open to a node that is dead or has left."""
        self._introductions.forget(node)
        if self._nursery is not None:
            self._nursery.start_soon(self._control.disconnect, node)
            self._nursery.start_soon(self._data.close_peer, node)

    def peer_returned(self, node: str) -> None:
        """Find a node again that was thought dead."""
        if self._mesh is not None:
            self._mesh.revived(node)
        self._introductions.introduce(node)

    def unreachable(self, node: str) -> None:
        """Take note that a node's data port did not answer a job; it is tried again in a while."""
        self._introductions.doubt(node)

    def connected(self, node: str) -> None:
        """Compare revocation lists with a peer that has a new data connection."""
        self._introductions.compare_revocations(node)

    def drop_expired(self) -> None:
        """Forget cards whose certificates have expired by now."""
        for node in self._book.remove_refused():
            self._expel(node)

    # ------------------------------------------------------------ cards

    @property
    def own_card(self) -> bytes:
        """Card of this node; empty before its ports are bound."""
        return self._own_card

    @property
    def revocation_version(self) -> int:
        """Version of the revocation list held."""
        return self._credentials.revocations.version

    def knows(self, node: str) -> bool:
        """Say whether a node's card is held."""
        return self._book.get(node) is not None

    def is_good(self, node: str) -> bool:
        """Say whether a node's card is held, valid and unrevoked."""
        return self._book.is_good(node)

    def take_in(self, encoded: bytes) -> bool:
        """Take in a card; True when it was news."""
        try:
            card = self._book.add(encoded)
        except (CertificateRefusedError, RemoteProtocolError) as error:
            log.debug("card_refused", error=error)
            return False
        if card is None:
            return False
        if card.node == self.node:
            self._book.remove(card.node)
            if card.epoch > self._epoch or (card.epoch == self._epoch and encoded not in self._own_cards):
                self._on_fatal(EpochBehindError(card.epoch))
            return False
        log.info("card_learned", peer=short(card.node), name=card.name, epoch=card.epoch)
        self._data.set_address(card.node, card.data_addresses)
        self._introductions.forget(card.node)
        if self._mesh is not None:
            self._mesh.learned(card.node, tuple(BookAddress(a.host, a.port) for a in card.control[:4]))
        if self._watch is not None:
            self._watch.seen(card.node, card.epoch, direct=False)
        self._driver.post(PeerReachable(peer=card.node, reachable=SERVE in card.certificate.roles))
        if len(self._book) <= INTRODUCE_ALL_MAX:
            self._introductions.introduce(card.node)
        return True

    def learn(self, encoded: bytes) -> str | None:
        """Take in a card from a page; returns its node, or None where it is no good."""
        self.take_in(encoded)
        card = self._book.find(card_digest(encoded))
        return card.node if card is not None else None

    def _tell_reachable(self, node: str, reachable: bool) -> None:
        if not reachable or self.has_role(node, SERVE):
            self._driver.post(PeerReachable(peer=node, reachable=reachable))

    def _encoded(self, node: str) -> bytes:
        if node == self.node:
            return self._own_card
        card = self._book.get(node)
        return card.encoded if card is not None else b""

    def _expel(self, node: str) -> None:
        """Cut off a node that is revoked."""
        log.warning("peer_expelled", peer=short(node))
        self._data.set_address(node, ())
        if self._mesh is not None:
            self._mesh.forget(node)
        self.peer_lost(node)
        self._driver.post(PeerReachable(peer=node, reachable=False))

    async def _publish_card_soon(self) -> None:
        start_s = trio.current_time()
        for after_s in PUBLISH_CARD_AFTER_S:
            await trio.sleep_until(start_s + after_s)
            await self.publish_card()

    def _save_revocations(self) -> None:
        try:
            self._credentials.revocations.save()
        except StateFileError as error:
            log.error("revocations_not_saved", error=error)
