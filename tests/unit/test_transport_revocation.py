import msgpack
import pytest

from transport.certificates import DAY_S, REVOKE, SERVE, CertificateRefusedError, RefusalReason
from transport.files import StateFileError
from transport.revocation import DOCUMENT_MAX_BYTES, ENTRIES_MAX, Revocations, verify
from transport.sandbox import GRID_ID, NOW_S, SandboxGrid
from transport.wire import LocalProtocolError, RemoteProtocolError


def signed_by(grid, node, known=None, **entries):
    known = known or Revocations()
    return known.sign_next(GRID_ID, node.key.private, now_s=NOW_S, chain=node.chain, **entries)


def test_a_list_of_a_revoker_takes_effect():
    grid = SandboxGrid()
    revoker, bad = grid.make_node(REVOKE), grid.make_node()
    revocations = Revocations()
    trust = grid.trust(revocations=revocations)
    trust.judge(bad.chain)
    document = signed_by(grid, revoker, nodes=[bad.node], serials=["abc"])
    assert revocations.accept(document, trust)
    assert not revocations.accept(document, trust)
    assert revocations.version == 1
    assert revocations.document == document
    assert revocations.is_complete
    assert (revocations.nodes, revocations.serials) == ((bad.node,), ("abc",))
    with pytest.raises(CertificateRefusedError, match="revoked"):
        trust.judge(bad.chain)


def test_the_owners_key_may_sign_too():
    grid = SandboxGrid()
    document = Revocations().sign_next(GRID_ID, grid.ca_key, now_s=NOW_S, serials=["1"])
    assert verify(document, grid.trust()).serials == ("1",)


def test_a_node_without_the_role_cannot_revoke():
    grid = SandboxGrid()
    with pytest.raises(CertificateRefusedError) as caught:
        verify(signed_by(grid, grid.make_node(SERVE), nodes=["x"]), grid.trust())
    assert caught.value.reason is RefusalReason.ROLE


def test_a_revoked_revoker_cannot_revoke():
    grid = SandboxGrid()
    revoker, chief = grid.make_node(REVOKE), grid.make_node(REVOKE)
    revocations = Revocations()
    trust = grid.trust(revocations=revocations)
    revocations.accept(signed_by(grid, chief, nodes=[revoker.node]), trust)
    with pytest.raises(CertificateRefusedError, match="revoked"):
        revocations.accept(signed_by(grid, revoker, revocations, nodes=[chief.node]), trust)
    assert revocations.nodes == (revoker.node,)


def test_a_list_outlives_its_signers_certificate():
    grid = SandboxGrid()
    document = signed_by(grid, grid.make_node(REVOKE), nodes=["x"])
    assert verify(document, grid.trust(now_s=NOW_S + 60 * DAY_S)).nodes == ("x",)


def test_a_list_signed_outside_the_certificates_time_is_refused():
    grid = SandboxGrid()
    revoker = grid.make_node(REVOKE)
    late = Revocations().sign_next(
        GRID_ID, revoker.key.private, now_s=NOW_S + 31 * DAY_S, chain=revoker.chain, nodes=["x"]
    )
    with pytest.raises(CertificateRefusedError, match="was not valid when it signed"):
        verify(late, grid.trust())


def test_lists_of_other_grids_owners_and_keys_are_refused():
    grid, other = SandboxGrid(), SandboxGrid()
    revoker = grid.make_node(REVOKE)
    foreign_owner = Revocations().sign_next(GRID_ID, other.ca_key, now_s=NOW_S, nodes=["x"])
    wrong_grid = Revocations().sign_next("00" * 32, grid.ca_key, now_s=NOW_S, nodes=["x"])
    wrong_key = Revocations().sign_next(
        GRID_ID, grid.make_node().key.private, now_s=NOW_S, chain=revoker.chain, nodes=["x"]
    )
    for document in (foreign_owner, wrong_grid, wrong_key):
        with pytest.raises(RemoteProtocolError):
            verify(document, grid.trust())
    with pytest.raises(CertificateRefusedError):
        verify(signed_by(other, other.make_node(REVOKE), nodes=["x"]), grid.trust())


def test_lists_signed_apart_come_together_in_either_order():
    grid = SandboxGrid()
    revoker = grid.make_node(REVOKE)
    one = signed_by(grid, revoker, nodes=["a"])
    two = signed_by(grid, grid.make_node(REVOKE), nodes=["b"])
    first, second = Revocations(), Revocations()
    for revocations, order in ((first, (one, two)), (second, (two, one))):
        for document in order:
            revocations.accept(document, grid.trust())
    assert first.nodes == second.nodes == ("a", "b")
    assert first.document == second.document
    assert not first.is_complete
    assert not second.is_complete
    union = first.sign_next(GRID_ID, revoker.key.private, now_s=NOW_S, chain=revoker.chain)
    assert second.accept(union, grid.trust())
    assert second.is_complete
    assert second.version == 2


def test_an_older_list_takes_nothing_back():
    grid = SandboxGrid()
    revoker = grid.make_node(REVOKE)
    revocations = Revocations()
    old = signed_by(grid, revoker, nodes=["a"])
    revocations.accept(old, grid.trust())
    revocations.accept(signed_by(grid, revoker, revocations, nodes=["b"]), grid.trust())
    assert not revocations.accept(old, grid.trust())
    assert (revocations.version, revocations.nodes) == (2, ("a", "b"))


def test_the_list_survives_a_restart(tmp_path):
    grid = SandboxGrid()
    path = tmp_path / "revocations"
    revocations = Revocations(path)
    revocations.save()
    assert not path.exists()
    revocations.accept(signed_by(grid, grid.make_node(REVOKE), nodes=["a"], serials=["f0"]), grid.trust())
    revocations.save()
    again = Revocations.load(path)
    assert (again.version, again.document, again.nodes, again.serials) == (1, revocations.document, ("a",), ("f0",))
    assert again.is_complete
    assert Revocations.load(tmp_path / "none").version == 0


def test_a_damaged_file_is_named(tmp_path):
    grid = SandboxGrid()
    path = tmp_path / "revocations"
    revocations = Revocations(path)
    revocations.accept(signed_by(grid, grid.make_node(REVOKE), nodes=["a"]), grid.trust())
    revocations.save()
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:40] + b"?" + whole[41:]):
        path.write_bytes(damaged)
        with pytest.raises(StateFileError, match="damaged"):
            Revocations.load(path)


def test_garbage_and_bombs_are_the_senders_fault():
    trust = SandboxGrid().trust()
    nested = b"\x91" * 100_000
    for document in (b"", b"garbage", nested, msgpack.packb([nested, b"s" * 64, []]), b"x" * (DOCUMENT_MAX_BYTES + 1)):
        with pytest.raises(RemoteProtocolError):
            verify(document, trust)


def test_every_cut_or_flipped_document_is_refused():
    grid = SandboxGrid()
    document = signed_by(grid, grid.make_node(REVOKE), nodes=["a"])
    trust = grid.trust()
    for position in range(0, len(document), 11):
        flipped = bytearray(document)
        flipped[position] ^= 0x11
        for bad in (document[:position], bytes(flipped)):
            with pytest.raises((RemoteProtocolError, CertificateRefusedError)):
                verify(bad, trust)


def test_the_number_of_entries_is_bounded():
    grid = SandboxGrid()
    with pytest.raises(LocalProtocolError, match="cannot sign"):
        signed_by(grid, grid.make_node(REVOKE), nodes=[f"n{number}" for number in range(ENTRIES_MAX + 1)])
    revocations = Revocations()
    revoker = grid.make_node(REVOKE)
    revocations.accept(signed_by(grid, revoker, nodes=[f"n{number}" for number in range(ENTRIES_MAX)]), grid.trust())
    with pytest.raises(RemoteProtocolError, match="replace the CA"):
        revocations.accept(signed_by(grid, revoker, nodes=["one more"]), grid.trust())
    with pytest.raises(LocalProtocolError, match="cannot sign"):
        signed_by(grid, revoker, serials=["not hex"])
