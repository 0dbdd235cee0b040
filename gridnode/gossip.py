"""What is believed of gossip, and who is told: one judge per topic, and what follows from a message that passed.

A message is forwarded only after its judge said yes, so a lie ends at the first honest node. State records, words about
others and news of signed state count only where the origin's card is held, valid and unrevoked; the card of an unknown
origin is asked for at whoever forwarded the message. Knows nothing of how cards and revocations are kept: that is a
Members' business (gridnode.membership).
"""

from collections.abc import Callable
from typing import Protocol

from gridnode.driver import Driver
from gridnode.introductions import Introductions
from gridnode.logs import EventLog, short
from gridnode.translate import state_from_wire
from gridnode.watch import Watch
from scheduler.events import AdvertReceived
from transport.base import (
    CARD_TOPIC,
    HEALTH_TOPIC,
    REVOCATION_TOPIC,
    STATE_TOPIC,
    TRUST_TOPIC,
    ControlPlane,
    GossipMessage,
)
from transport.wire import (
    CardNotice,
    HealthNotice,
    RemoteProtocolError,
    RevocationNotice,
    StateRecord,
    TransportError,
    TrustNotice,
    decode_gossip,
    decode_state,
)

log = EventLog("membership")


class Members(Protocol):
    """Keeps the cards and revocations that messages are judged by."""

    @property
    def node(self) -> str:
        """PeerID of this node."""
        ...

    @property
    def revocation_version(self) -> int:
        """Version of the revocation list held."""
        ...

    def is_good(self, node: str) -> bool:
        """Say whether a node's card is held, valid and unrevoked."""
        ...

    def take_in(self, encoded: bytes) -> bool:
        """Take in a card; True when it was news."""
        ...

    def take_revocations(self, document: bytes) -> bool:
        """Take in a revocation list; says whether it was news, raises TransportError."""
        ...


class Gossip:
    """Judges the messages of one node's control plane, and acts on those that passed.

    Parameters
    ----------
    members : Members
        Whom to believe.
    introductions : Introductions
        Asked to meet forwarders of what is not known yet.
    on_trust_news : callable
        Told what signed state a peer says it holds, and its PeerID.
    """

    def __init__(
        self,
        members: Members,
        *,
        control: ControlPlane,
        driver: Driver,
        introductions: Introductions,
        on_trust_news: Callable[[TrustNotice, str], None],
    ) -> None:
        self._members = members
        self._driver = driver
        self._introductions = introductions
        self._on_trust_news = on_trust_news
        self._watch: Watch | None = None
        self._judged: tuple[bytes, StateRecord] | None = None
        """The last record that passed, with the bytes it was read from: acting on it needs no second reading."""
        self._judges = {
            STATE_TOPIC: self._is_state_good,
            HEALTH_TOPIC: self._is_health_good,
            CARD_TOPIC: self._is_card_good,
            REVOCATION_TOPIC: self._is_revocation_good,
            TRUST_TOPIC: self._is_trust_good,
        }
        for topic in self._judges:
            control.set_validator(topic, self.is_good)

    def begin(self, watch: Watch) -> None:
        """Know who is told of signs of life; before the first message is taken."""
        self._watch = watch

    def is_good(self, message: GossipMessage) -> bool:
        """Judge a message: only what is good is acted on and forwarded. Cards and revocations are taken in by this."""
        return self._judges[message.topic](message)

    def take(self, message: GossipMessage) -> None:
        """Act on a message that passed its judge."""
        if message.topic == STATE_TOPIC:
            judged, self._judged = self._judged, None
            is_read = judged is not None and judged[0] is message.data
            state = state_from_wire(judged[1] if judged and is_read else decode_state(message.data))
            self._driver.post(AdvertReceived(state=state))
            if self._watch is not None:
                self._watch.seen(message.origin, state.epoch, direct=False)
            return
        match decode_gossip(message.data):
            case HealthNotice() as notice:
                if self._watch is not None:
                    self._watch.heard(message.origin, notice)
            case TrustNotice() as notice:
                self._on_trust_news(notice, message.origin)
            case RevocationNotice() as notice:
                if notice.version > self._members.revocation_version:
                    self._introductions.introduce(message.forwarder)
            case _:
                pass

    # ------------------------------------------------------------ judges

    def _is_state_good(self, message: GossipMessage) -> bool:
        try:
            record = decode_state(message.data)
        except RemoteProtocolError:
            return False
        if record.node != message.origin or message.origin == self._members.node:
            return False
        self._judged = (message.data, record)
        return self._is_known(message)

    def _is_health_good(self, message: GossipMessage) -> bool:
        return isinstance(self._decode(message), HealthNotice) and self._is_known(message)

    def _is_card_good(self, message: GossipMessage) -> bool:
        notice = self._decode(message)
        return isinstance(notice, CardNotice) and self._members.take_in(notice.card)

    def _is_revocation_good(self, message: GossipMessage) -> bool:
        notice = self._decode(message)
        if not isinstance(notice, RevocationNotice):
            return False
        if notice.document is None:
            return notice.version > self._members.revocation_version
        try:
            return self._members.take_revocations(notice.document)
        except TransportError as error:
            log.warning("revocations_refused", peer=short(message.origin), error=error)
            return False

    def _is_trust_good(self, message: GossipMessage) -> bool:
        return isinstance(self._decode(message), TrustNotice) and self._is_known(message)

    def _decode(self, message: GossipMessage) -> object:
        try:
            return decode_gossip(message.data)
        except RemoteProtocolError as error:
            log.debug("gossip_refused", peer=short(message.forwarder), error=error)
            return None

    def _is_known(self, message: GossipMessage) -> bool:
        """Say whether the origin's card is held and good; if not, ask the forwarder for it."""
        if self._members.is_good(message.origin):
            return True
        if message.forwarder != self._members.node:
            self._introductions.introduce(message.forwarder, wanted=message.origin)
        return False
