import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from transport.certificates import (
    ADMIT,
    DAY_S,
    REVOKE,
    ROLES,
    SERVE,
    SUBMIT,
    CertificateRefusedError,
    GridTrust,
    NothingRevoked,
    RefusalReason,
    grid_name,
    load_authorities,
)
from transport.gridtime import GridTime
from transport.identity import NodeKey
from transport.issuing import Issuer, chain_ders, make_ca, make_csr, make_intermediate, read_csr
from transport.sandbox import GRID_ID, NOW_S, SandboxGrid
from transport.tls import client_context, joining_context, judge_peer, peer_chain, server_context
from transport.wire import LocalProtocolError, RemoteProtocolError


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = (client.wrap_bio(down, up), server.wrap_bio(up, down, server_side=True))
    for _ in range(3):
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return sides


def refusal(call, *arguments, **named):
    with pytest.raises(CertificateRefusedError) as caught:
        call(*arguments, **named)
    return caught.value.reason


def test_a_leaf_says_who_where_and_what():
    grid = SandboxGrid()
    node = grid.make_node(SUBMIT, SERVE)
    certificate = grid.trust().judge(node.chain, node=node.node, role=SERVE)
    assert certificate.node == node.node
    assert certificate.grid_id == GRID_ID
    assert certificate.roles == (SERVE, SUBMIT)
    assert certificate.not_before_s == NOW_S
    assert certificate.not_after_s == NOW_S + 30 * DAY_S


def test_a_leaf_never_outlives_its_intermediate():
    grid = SandboxGrid()
    late = grid.make_node(at_s=NOW_S + 80 * DAY_S)
    assert grid.trust().judge(late.chain).not_after_s == NOW_S + 90 * DAY_S
    with pytest.raises(LocalProtocolError, match="expired; the owner must sign"):
        grid.make_node(at_s=NOW_S + 90 * DAY_S - 60)


def test_an_intermediate_lives_at_most_ninety_days():
    grid = SandboxGrid()
    with pytest.raises(ValueError, match="90 days"):
        grid.make_issuer(grid.admit.node, life_s=91 * DAY_S)


def test_a_chain_of_another_owner_is_refused():
    other = SandboxGrid().make_node()
    assert refusal(SandboxGrid().trust().judge, other.chain) is RefusalReason.UNTRUSTED


def test_a_chain_of_another_grid_of_the_same_owner_is_refused():
    grid = SandboxGrid()
    node = grid.make_node()
    trust = GridTrust(grid.ca_pem, "00" * 32, revocations=NothingRevoked(), grid_time=grid.grid_time())
    assert refusal(trust.judge, node.chain) is RefusalReason.WRONG_GRID


def test_a_leaf_behind_a_foreign_intermediate_is_refused():
    grid, other = SandboxGrid(), SandboxGrid()
    mixed = (other.make_node().chain[0], grid.make_node().chain[1])
    assert refusal(grid.trust().judge, mixed) is RefusalReason.UNTRUSTED


def test_the_ca_may_not_be_left_out_nor_stand_in_for_the_intermediate():
    grid = SandboxGrid()
    leaf, _ = grid.make_node().chain
    ca_der = ssl.PEM_cert_to_DER_cert(grid.ca_pem.decode())
    assert refusal(grid.trust().judge, (leaf,)) is RefusalReason.MALFORMED
    assert refusal(grid.trust().judge, (leaf, ca_der)) is RefusalReason.MALFORMED


def test_a_node_cannot_issue_certificates():
    grid = SandboxGrid()
    thief = grid.make_node()
    forged_key = NodeKey.generate()
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.load_der_x509_certificate(thief.chain[0]).subject)
        .public_key(forged_key.private.public_key())
        .serial_number(1)
        .not_valid_before(x509.load_der_x509_certificate(thief.chain[0]).not_valid_before_utc)
        .not_valid_after(x509.load_der_x509_certificate(thief.chain[0]).not_valid_after_utc)
    )
    forged = builder.sign(thief.key.private, None).public_bytes(serialization.Encoding.DER)
    assert refusal(grid.trust().judge, (forged, thief.chain[0])) is RefusalReason.UNTRUSTED


def test_the_name_must_follow_from_the_key():
    grid = SandboxGrid()
    victim, thief_key = grid.make_node(), NodeKey.generate()
    issuer_key = Ed25519PrivateKey.generate()
    intermediate_pem = make_intermediate(
        grid.ca_key, grid.ca_pem, issuer_key.public_key(), holder=grid.admit.node, now_s=NOW_S
    )
    intermediate = x509.load_pem_x509_certificate(intermediate_pem)
    uri = f"gridnode://{GRID_ID}/{victim.node}?roles=serve"
    forged = (
        x509.CertificateBuilder()
        .subject_name(intermediate.subject)
        .issuer_name(intermediate.subject)
        .public_key(thief_key.private.public_key())
        .serial_number(7)
        .not_valid_before(intermediate.not_valid_before_utc)
        .not_valid_after(intermediate.not_valid_after_utc)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(issuer_key, None)
    )
    chain = tuple(part.public_bytes(serialization.Encoding.DER) for part in (forged, intermediate))
    assert refusal(grid.trust().judge, chain) is RefusalReason.WRONG_KEY


def test_an_issuer_cannot_give_more_than_it_was_granted():
    grid = SandboxGrid(grants=(SERVE, SUBMIT))
    with pytest.raises(LocalProtocolError, match="may grant"):
        grid.make_node(REVOKE)


def test_a_leaf_with_roles_its_issuer_may_not_grant_is_refused():
    grid = SandboxGrid()
    weak = grid.make_issuer(grid.admit.node, grants=(SERVE,))
    weak._name = type(weak._name)(grid_id=GRID_ID, node=grid.admit.node, roles=ROLES)  # a thief's own program
    chain_pem = weak.issue(read_csr(make_csr(NodeKey.generate())), (SERVE, REVOKE), now_s=NOW_S)
    assert refusal(grid.trust().judge, chain_ders(chain_pem)) is RefusalReason.ROLE


def test_a_leaf_reaching_beyond_its_issuers_time_is_refused():
    grid = SandboxGrid()
    issuer = grid.make_issuer(grid.admit.node, life_s=10 * DAY_S)
    honest = Issuer.not_after_s
    try:
        Issuer.not_after_s = property(lambda _self: NOW_S + 365 * DAY_S)  # a thief's own program
        chain_pem = issuer.issue(read_csr(make_csr(NodeKey.generate())), (SERVE,), now_s=NOW_S)
    finally:
        Issuer.not_after_s = honest
    assert refusal(grid.trust().judge, chain_ders(chain_pem)) is RefusalReason.UNTRUSTED


def test_role_and_node_are_checked_when_asked_for():
    grid = SandboxGrid()
    node = grid.make_node(SERVE)
    assert refusal(grid.trust().judge, node.chain, role=ADMIT) is RefusalReason.ROLE
    assert refusal(grid.trust().judge, node.chain, node=grid.admit.node) is RefusalReason.WRONG_NODE


def test_expiry_is_judged_by_grid_time_with_ten_minutes_allowance():
    grid = SandboxGrid()
    node = grid.make_node()
    end_s = NOW_S + 30 * DAY_S
    grid.trust(now_s=end_s + 599).judge(node.chain)
    assert refusal(grid.trust(now_s=end_s + 601).judge, node.chain) is RefusalReason.EXPIRED


def test_a_board_without_a_clock_learns_the_time_from_certificates():
    grid = SandboxGrid()
    old, new = grid.make_node(), grid.make_node(at_s=NOW_S + 40 * DAY_S)
    trust = GridTrust(grid.ca_pem, GRID_ID, revocations=NothingRevoked(), grid_time=GridTime(lambda: 0.0))
    certificate = trust.judge(old.chain)
    assert trust.grid_time.now_s() == NOW_S
    trust.judge(new.chain)
    assert refusal(trust.judge, old.chain) is RefusalReason.EXPIRED
    assert refusal(trust.recheck, certificate) is RefusalReason.EXPIRED


def test_a_refused_chain_does_not_move_grid_time():
    grid, other = SandboxGrid(), SandboxGrid(now_s=NOW_S + 1000 * DAY_S)
    trust = GridTrust(grid.ca_pem, GRID_ID, revocations=NothingRevoked(), grid_time=GridTime(lambda: 0.0))
    refusal(trust.judge, other.make_node().chain)
    assert trust.grid_time.floor_s == 0.0


def test_the_door_takes_certificates_expired_for_at_most_ninety_days():
    grid = SandboxGrid()
    node = grid.make_node()
    end_s = NOW_S + 30 * DAY_S
    assert grid.trust(now_s=end_s + 89 * DAY_S).judge_renewal(node.chain).node == node.node
    assert refusal(grid.trust(now_s=end_s + 91 * DAY_S).judge_renewal, node.chain) is RefusalReason.EXPIRED


class RevokedForTest:
    def __init__(self, *names: str) -> None:
        self.names = names

    def is_node_revoked(self, node: str) -> bool:
        return node in self.names

    def is_serial_revoked(self, serial: str) -> bool:
        return serial in self.names


def test_revoked_nodes_leaves_and_intermediates_are_refused():
    grid = SandboxGrid()
    node = grid.make_node()
    certificate = grid.trust().judge(node.chain)
    for name in (certificate.node, certificate.serial, certificate.issuer_serial):
        trust = grid.trust(revocations=RevokedForTest(name))
        assert refusal(trust.judge, node.chain) is RefusalReason.REVOKED
        assert refusal(trust.judge_renewal, node.chain) is RefusalReason.REVOKED
        assert refusal(trust.recheck, certificate) is RefusalReason.REVOKED


def test_two_owner_cas_are_trusted_while_the_owner_changes_them():
    old, new = SandboxGrid(), SandboxGrid()
    trust = GridTrust(old.ca_pem + new.ca_pem, GRID_ID, revocations=NothingRevoked(), grid_time=old.grid_time())
    trust.judge(old.make_node().chain)
    trust.judge(new.make_node().chain)


@pytest.mark.parametrize("pem", [b"", b"garbage", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_damaged_ca_file_is_named(pem):
    assert refusal(load_authorities, pem) is RefusalReason.MALFORMED


def test_too_many_cas_are_refused():
    assert refusal(load_authorities, SandboxGrid().ca_pem * 5) is RefusalReason.MALFORMED


def test_every_cut_or_flipped_certificate_is_refused_and_never_crashes():
    grid = SandboxGrid()
    leaf, intermediate = grid.make_node().chain
    trust = grid.trust()
    for position in range(0, len(leaf), 7):
        flipped = bytearray(leaf)
        flipped[position] ^= 0x41
        for bad in (leaf[:position], bytes(flipped)):
            refusal(trust.judge, (bad, intermediate))
            refusal(trust.judge, (leaf, bad))
    refusal(trust.judge, (leaf + b"x" * 3000, intermediate))


def test_a_request_must_be_signed_by_its_own_ed25519_key():
    request = bytearray(make_csr(NodeKey.generate()))
    request[-1] ^= 1
    with pytest.raises(RemoteProtocolError):
        read_csr(bytes(request))
    other = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    with pytest.raises(RemoteProtocolError, match="Ed25519"):
        read_csr(
            other.sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256()).public_bytes(
                serialization.Encoding.DER
            )
        )
    for garbage in (b"", b"garbage", b"x" * 5000):
        with pytest.raises(RemoteProtocolError):
            read_csr(garbage)


def test_renewal_keeps_the_roles_and_is_for_the_same_key_only():
    grid = SandboxGrid()
    node = grid.make_node(SERVE)
    certificate = grid.trust().judge(node.chain)
    renewed = grid.issuer.renew(make_csr(node.key), certificate, now_s=NOW_S + 20 * DAY_S)
    again = grid.trust().judge(chain_ders(renewed))
    assert (again.node, again.roles, again.not_after_s) == (node.node, (SERVE,), NOW_S + 50 * DAY_S)
    with pytest.raises(RemoteProtocolError, match="another key"):
        grid.issuer.renew(make_csr(NodeKey.generate()), certificate, now_s=NOW_S)


def test_an_issuer_is_read_from_its_files():
    key = NodeKey.generate()
    grid = SandboxGrid()
    pem = make_intermediate(grid.ca_key, grid.ca_pem, key.private.public_key(), holder=grid.admit.node, now_s=NOW_S)
    issuer = Issuer.from_pem(key.pem, pem)
    assert issuer.grants == ROLES
    assert issuer.not_after_s == NOW_S + 90 * DAY_S
    with pytest.raises(LocalProtocolError, match="malformed"):
        Issuer.from_pem(b"garbage", pem)


def test_the_ca_names_its_grid():
    ca = load_authorities(make_ca(Ed25519PrivateKey.generate(), GRID_ID, now_s=NOW_S))[0]
    assert grid_name(ca, "").grid_id == GRID_ID


@pytest.mark.parametrize("pem", [b"", b"garbage"])
def test_a_damaged_chain_file_is_named(pem):
    with pytest.raises(LocalProtocolError, match="join again"):
        chain_ders(pem)


# ---------------------------------------------------------------- through TLS


def test_both_sides_of_a_handshake_judge_each_other():
    grid = SandboxGrid()
    one, other = grid.make_node(), grid.make_node(ADMIT)
    client, server = shake_hands(
        client_context(one.key, one.chain_pem, grid.ca_pem), server_context(other.key, other.chain_pem, grid.ca_pem)
    )
    assert client.version() == "TLSv1.3"
    assert judge_peer(client, grid.trust(), node=other.node, role=ADMIT).node == other.node
    assert judge_peer(server, grid.trust()).node == one.node
    assert refusal(judge_peer, client, grid.trust(), node=one.node) is RefusalReason.WRONG_NODE


def test_tls_leaves_time_to_us():
    past = SandboxGrid(now_s=1_000_000_000.0)  # certificates that expired in 2001
    one, other = past.make_node(), past.make_node()
    client, server = shake_hands(
        client_context(one.key, one.chain_pem, past.ca_pem), server_context(other.key, other.chain_pem, past.ca_pem)
    )
    assert judge_peer(server, past.trust()).node == one.node
    assert refusal(judge_peer, client, past.trust(now_s=NOW_S)) is RefusalReason.EXPIRED


def test_tls_gives_no_tickets():
    grid = SandboxGrid()
    one, other = grid.make_node(), grid.make_node()
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context(one.key, one.chain_pem, grid.ca_pem).wrap_bio(down, up)
    server = server_context(other.key, other.chain_pem, grid.ca_pem).wrap_bio(up, down, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert down.pending == 0
    server.do_handshake()
    assert down.pending == 0, "the server sent something after the handshake"


def test_a_peer_of_another_grid_fails_in_the_handshake():
    grid, other = SandboxGrid(), SandboxGrid()
    one, two = grid.make_node(), other.make_node()
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(
            client_context(one.key, one.chain_pem, grid.ca_pem), server_context(two.key, two.chain_pem, other.ca_pem)
        )


def test_a_client_without_certificate_fails_in_the_handshake():
    grid = SandboxGrid()
    other = grid.make_node()
    with pytest.raises(ssl.SSLError, match=r"(?i)peer did not return a certificate"):
        shake_hands(joining_context(grid.ca_pem), server_context(other.key, other.chain_pem, grid.ca_pem))


def test_at_the_door_a_client_may_come_without_certificate():
    grid = SandboxGrid()
    context = server_context(grid.admit.key, grid.admit.chain_pem, grid.ca_pem, client_certificate=ssl.CERT_OPTIONAL)
    client, server = shake_hands(joining_context(grid.ca_pem), context)
    assert peer_chain(server) == ()
    assert refusal(judge_peer, server, grid.trust()) is RefusalReason.UNTRUSTED
    assert len(peer_chain(client)) == 3


def test_a_key_that_does_not_fit_its_certificate_is_named():
    grid = SandboxGrid()
    with pytest.raises(LocalProtocolError, match="join the grid again"):
        client_context(NodeKey.generate(), grid.make_node().chain_pem, grid.ca_pem)
