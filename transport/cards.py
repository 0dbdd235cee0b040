"""Node cards: how a node tells the grid who it is and where it can be reached.

Owns the card's form, its verification, and the bounded book of cards held. A card carries the node's certificate
chain, so whoever holds the CA can judge it without a connection; it is signed by the node's key, so relays
cannot change addresses. Knows nothing of gossip: callers move the bytes.
"""

import hashlib
from collections.abc import Iterator
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from transport.base import DataAddress
from transport.certificates import CertificateRefusedError, GridTrust, PeerCertificate
from transport.identity import NodeKey, is_signed_by, raw_public_of
from transport.wire import CARD_MAX_BYTES, Count, LocalProtocolError, NodeText, RemoteProtocolError

CARDS_MAX: Final = 1024
"""Cards held; at 2 KiB each 2 MiB. DESIGN aims at a few hundred nodes. The longest unrefreshed goes first."""
ADDRESSES_MAX: Final = 8
"""Per plane: a box has a few interfaces, each with an IPv4 and an IPv6 address."""
DIGEST_BYTES: Final = 8
"""Enough to tell versions of one grid's cards apart; the signature is what protects them."""
_SIGNED_PREFIX: Final = b"gridnode card 1\0"
"""Keeps a signature from being read as one over another kind of document."""


class Address(msgspec.Struct, frozen=True, array_like=True):
    """A host (name or IP address) and a TCP port."""

    host: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:%-]{1,253}$")]
    port: Annotated[int, Meta(ge=1, le=65535)]


_Addresses = Annotated[tuple[Address, ...], Meta(max_length=ADDRESSES_MAX)]


class _Body(msgspec.Struct, frozen=True, array_like=True):
    """What is signed. Positional: new fields go to the end."""

    node: NodeText
    epoch: Count
    sequence: Count
    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{0,63}$")]
    control: _Addresses
    data: _Addresses
    wire_versions: Annotated[tuple[int, ...], Meta(min_length=1, max_length=16)]
    chain: Annotated[tuple[bytes, bytes], Meta()]


class _Signed(msgspec.Struct, frozen=True, array_like=True):
    body: Annotated[bytes, Meta(max_length=CARD_MAX_BYTES)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]


_SIGNED_DECODER: Final = msgspec.msgpack.Decoder(_Signed)
_BODY_DECODER: Final = msgspec.msgpack.Decoder(_Body)


class NodeCard(msgspec.Struct, frozen=True, kw_only=True):
    """A verified card."""

    node: str
    epoch: int
    """Boot epoch of the node; with `sequence` it orders its cards."""
    sequence: int
    name: str
    """Host label for people; not unique, not verified."""
    control: tuple[Address, ...]
    """Where libp2p listens, best first."""
    data: tuple[Address, ...]
    """Where the data plane listens, best first."""
    wire_versions: tuple[int, ...]
    certificate: PeerCertificate
    encoded: bytes
    """The card as it travels."""

    @property
    def digest(self) -> bytes:
        """First DIGEST_BYTES of the SHA-256 of the encoded card."""
        return card_digest(self.encoded)

    @property
    def data_addresses(self) -> tuple[DataAddress, ...]:
        """Addresses as DataPlane.set_address wants them."""
        return tuple(DataAddress(host=address.host, port=address.port) for address in self.data)


def card_digest(encoded: bytes) -> bytes:
    """Return the short digest by which a card is asked for."""
    return hashlib.sha256(encoded).digest()[:DIGEST_BYTES]


def make_card(
    key: NodeKey,
    chain: tuple[bytes, bytes],
    *,
    epoch: int,
    sequence: int,
    name: str,
    control: tuple[Address, ...],
    data: tuple[Address, ...],
    wire_versions: tuple[int, ...],
) -> bytes:
    """Make and sign a card.

    Parameters
    ----------
    key : NodeKey
        This node's key.
    chain : tuple of bytes
        Its leaf and the intermediate as DER (transport.issuing.chain_ders).
    epoch, sequence : int
        Larger than in any card this node sent before, compared in this order.
    name : str
        Host label of up to 63 letters, digits, dots, dashes.
    control, data : tuple of Address
        Where to reach the two planes, best first.
    wire_versions : tuple of int
        Spoken on the data plane.

    Raises
    ------
    LocalProtocolError
        A field is out of bounds, or the card exceeds CARD_MAX_BYTES: name fewer addresses.
    """
    body = msgspec.msgpack.encode(_Body(key.node, epoch, sequence, name, control, data, wire_versions, chain))
    encoded = msgspec.msgpack.encode(_Signed(body, key.sign(_SIGNED_PREFIX + body)))
    try:
        _decode(encoded)
    except RemoteProtocolError as error:
        raise LocalProtocolError(f"this node's card cannot be sent: {error}") from error
    return encoded


def _decode(encoded: bytes) -> tuple[_Body, _Signed]:
    if len(encoded) > CARD_MAX_BYTES:
        raise RemoteProtocolError(f"a card of {len(encoded)} bytes, at most {CARD_MAX_BYTES} are read")
    try:
        signed = _SIGNED_DECODER.decode(encoded)
        return _BODY_DECODER.decode(signed.body), signed
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"a card is malformed: {error}") from error


def read_card(encoded: bytes, trust: GridTrust) -> NodeCard:
    """Verify a card: chain, time, revocation, and the node's signature; about 0.3 ms of CPU.

    Raises
    ------
    RemoteProtocolError
        It is malformed or its signature is wrong.
    CertificateRefusedError
        Its certificate is not good here and now.
    """
    return _verify(encoded, *_decode(encoded), trust)


def _verify(encoded: bytes, body: _Body, signed: _Signed, trust: GridTrust) -> NodeCard:
    certificate = trust.judge(body.chain, node=body.node)
    if not is_signed_by(raw_public_of(body.node), signed.signature, _SIGNED_PREFIX + signed.body):
        raise RemoteProtocolError(f"a card of {body.node} with a wrong signature")
    return NodeCard(
        node=body.node,
        epoch=body.epoch,
        sequence=body.sequence,
        name=body.name,
        control=body.control,
        data=body.data,
        wire_versions=body.wire_versions,
        certificate=certificate,
        encoded=bytes(encoded),
    )


class CardBook:
    """The newest verified card of each node.

    Parameters
    ----------
    trust : GridTrust
        Judges what comes in, and again what is held.
    cards_max : int
        Bound; when it is reached the card that was renewed longest ago goes.
    """

    def __init__(self, trust: GridTrust, *, cards_max: int = CARDS_MAX) -> None:
        self._trust = trust
        self._cards_max = cards_max
        self._cards: dict[str, NodeCard] = {}  # oldest first
        self._by_digest: dict[bytes, str] = {}

    def __len__(self) -> int:
        return len(self._cards)

    def __iter__(self) -> Iterator[NodeCard]:
        """Iterate over the cards, sorted by node."""
        return iter([self._cards[node] for node in sorted(self._cards)])

    def add(self, encoded: bytes) -> NodeCard | None:
        """Verify and keep a card.

        Returns
        -------
        NodeCard or None
            The card when it is news; None when one as new is held already (no signature is checked then).

        Raises
        ------
        RemoteProtocolError, CertificateRefusedError
            As `read_card`.
        """
        body, signed = _decode(encoded)
        held = self._cards.get(body.node)
        if held is not None and (body.epoch, body.sequence) <= (held.epoch, held.sequence):
            return None
        card = _verify(encoded, body, signed, self._trust)
        self.remove(card.node)
        if len(self._cards) >= self._cards_max:
            self.remove(next(iter(self._cards)))
        self._cards[card.node] = card
        self._by_digest[card.digest] = card.node
        return card

    def get(self, node: str) -> NodeCard | None:
        """Return the card of a node, good or not."""
        return self._cards.get(node)

    def find(self, digest: bytes) -> NodeCard | None:
        """Return the card with this digest."""
        node = self._by_digest.get(digest)
        return self._cards[node] if node is not None else None

    def is_good(self, node: str) -> bool:
        """Say whether a card of the node is held, and neither expired nor revoked."""
        card = self._cards.get(node)
        if card is None:
            return False
        try:
            self._trust.recheck(card.certificate)
        except CertificateRefusedError:
            return False
        return True

    def remove(self, node: str) -> None:
        """Forget a node's card, if there is one."""
        card = self._cards.pop(node, None)
        if card is not None:
            del self._by_digest[card.digest]

    def remove_refused(self) -> tuple[str, ...]:
        """Forget the cards that are expired or revoked by now, and return their nodes, sorted."""
        refused = tuple(node for node in sorted(self._cards) if not self.is_good(node))
        for node in refused:
            self.remove(node)
        return refused
