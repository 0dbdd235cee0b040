import msgpack
import pytest

from transport.base import DataAddress
from transport.cards import Address, CardBook, card_digest, make_card, read_card
from transport.certificates import DAY_S, REVOKE, CertificateRefusedError
from transport.revocation import Revocations
from transport.sandbox import GRID_ID, NOW_S, SandboxGrid
from transport.wire import CARD_MAX_BYTES, LocalProtocolError, RemoteProtocolError

CONTROL = (Address("192.0.2.1", 4001), Address("2001:db8::1", 4001))
DATA = (Address("box.example", 4002),)


def card_of(node, *, sequence=1, epoch=1, **changes):
    fields = {"name": "box-1", "control": CONTROL, "data": DATA, "wire_versions": (1,)} | changes
    return make_card(node.key, node.chain, epoch=epoch, sequence=sequence, **fields)


def test_a_card_says_who_and_where_and_is_small():
    grid = SandboxGrid()
    node = grid.make_node()
    encoded = card_of(node)
    card = read_card(encoded, grid.trust())
    assert (card.node, card.epoch, card.sequence, card.name) == (node.node, 1, 1, "box-1")
    assert (card.control, card.data, card.wire_versions) == (CONTROL, DATA, (1,))
    assert card.certificate == grid.trust().judge(node.chain)
    assert card.data_addresses == (DataAddress(host="box.example", port=4002),)
    assert card.digest == card_digest(encoded)
    assert len(encoded) < 1700


def test_a_card_with_too_much_in_it_is_our_fault():
    node = SandboxGrid().make_node()
    long = tuple(Address("h" * 200, port) for port in range(1, 9))
    for changes in ({"control": long}, {"name": "no spaces"}, {"control": CONTROL * 5}, {"wire_versions": ()}):
        with pytest.raises(LocalProtocolError, match="card"):
            card_of(node, **changes)


def test_a_card_signed_by_another_key_is_refused():
    grid = SandboxGrid()
    node, thief = grid.make_node(), grid.make_node()
    stolen = make_card(thief.key, node.chain, epoch=1, sequence=1, name="", control=(), data=DATA, wire_versions=(1,))
    with pytest.raises(CertificateRefusedError):
        read_card(stolen, grid.trust())
    body, signature = msgpack.unpackb(card_of(node))
    resigned = msgpack.packb([body, thief.key.sign(b"gridnode card 1\0" + body)])
    unprefixed = msgpack.packb([body, node.key.sign(body)])
    for forged in (resigned, unprefixed, msgpack.packb([body.replace(b"box-1", b"box-2"), signature])):
        with pytest.raises(RemoteProtocolError, match="wrong signature"):
            read_card(forged, grid.trust())


def test_cards_of_other_grids_expired_or_revoked_nodes_are_refused():
    grid = SandboxGrid()
    node = grid.make_node()
    revocations = Revocations()
    trust = grid.trust(revocations=revocations)
    with pytest.raises(CertificateRefusedError):
        read_card(card_of(SandboxGrid().make_node()), trust)
    with pytest.raises(CertificateRefusedError):
        read_card(card_of(node), grid.trust(now_s=NOW_S + 31 * DAY_S))
    revocations.accept(revocations.sign_next(GRID_ID, grid.ca_key, now_s=NOW_S, nodes=[node.node]), trust)
    with pytest.raises(CertificateRefusedError):
        read_card(card_of(node), trust)


def test_garbage_and_bombs_are_the_senders_fault():
    grid = SandboxGrid()
    encoded = card_of(grid.make_node())
    nested = b"\x91" * 100_000
    for bad in (b"", b"garbage", nested, nested[:CARD_MAX_BYTES], b"x" * (CARD_MAX_BYTES + 1), encoded[:-1]):
        with pytest.raises(RemoteProtocolError):
            read_card(bad, grid.trust())
    for position in range(0, len(encoded), 13):
        flipped = bytearray(encoded)
        flipped[position] ^= 0x21
        with pytest.raises((RemoteProtocolError, CertificateRefusedError)):
            read_card(bytes(flipped), grid.trust())


def test_the_book_keeps_the_newest_card():
    grid = SandboxGrid()
    node = grid.make_node()
    book = CardBook(grid.trust())
    old, new = card_of(node, sequence=1), card_of(node, sequence=2, name="renamed")
    assert book.add(new).name == "renamed"
    assert book.add(old) is None
    assert book.add(new) is None
    assert book.add(card_of(node, epoch=2, sequence=0)).epoch == 2
    assert len(book) == 1
    assert book.find(card_digest(new)) is None
    assert book.find(book.get(node.node).digest) == book.get(node.node)


def test_an_unverified_card_never_pushes_out_a_good_one():
    grid = SandboxGrid()
    node, thief = grid.make_node(), grid.make_node()
    book = CardBook(grid.trust())
    book.add(card_of(node))
    body = msgpack.unpackb(card_of(node, sequence=99))[0]
    with pytest.raises(RemoteProtocolError):
        book.add(msgpack.packb([body, thief.key.sign(body)]))
    assert book.get(node.node).sequence == 1


def test_the_book_is_bounded_and_iterates_in_order():
    grid = SandboxGrid()
    nodes = [grid.make_node() for _ in range(4)]
    book = CardBook(grid.trust(), cards_max=3)
    for node in nodes:
        book.add(card_of(node))
    assert book.get(nodes[0].node) is None
    assert [card.node for card in book] == sorted(node.node for node in nodes[1:])


def test_the_book_forgets_the_revoked_and_the_expired():
    grid = SandboxGrid()
    good, bad = grid.make_node(), grid.make_node()
    revocations = Revocations()
    trust = grid.trust(revocations=revocations)
    book = CardBook(trust)
    for node in (good, bad):
        book.add(card_of(node))
    revoker = grid.make_node(REVOKE)
    document = revocations.sign_next(GRID_ID, revoker.key.private, now_s=NOW_S, chain=revoker.chain, nodes=[bad.node])
    revocations.accept(document, trust)
    assert book.is_good(good.node)
    assert not book.is_good(bad.node)
    assert not book.is_good("nobody")
    assert book.remove_refused() == (bad.node,)
    trust.grid_time.observe(NOW_S + 31 * DAY_S)
    assert book.remove_refused() == (good.node,)
    assert len(book) == 0
