from hashlib import sha256
from string import ascii_letters, digits
from threading import Barrier, Thread

import pytest

from transport.cards import Address
from transport.certificates import ADMIT, SERVE, SUBMIT
from transport.files import StateFileError
from transport.identity import NodeKey
from transport.sandbox import GRID_ID, NOW_S
from transport.tokens import (
    Invites,
    TokenError,
    TokenExpiredError,
    TokenMalformedError,
    TokenSpentError,
    TokenUnknownError,
    parse_token,
)

ISSUER = NodeKey.generate().node
DOORS = (Address("192.0.2.7", 4003), Address("box.example", 4003))


def invite(invites: Invites, *, now_s=NOW_S, life_s=3600.0, roles=(SERVE, SUBMIT)):
    return invites.create(
        grid_id=GRID_ID, ca_pem=b"ca", issuer=ISSUER, addresses=DOORS, roles=roles, now_s=now_s, life_s=life_s
    )


def test_a_token_pins_the_grid_the_door_and_the_issuer(tmp_path):
    token = invite(Invites(tmp_path / "invites"))
    again = parse_token(token.text)
    assert again == token
    assert again.grid_id.hex() == GRID_ID
    assert again.addresses == DOORS
    assert again.ca_sha256 == sha256(b"ca").digest()
    assert (again.issuer, again.expires_at_s) == (ISSUER, NOW_S + 3600)
    assert token.text.startswith("gn1.")
    assert len(token.text) < 400


def test_a_token_broken_over_lines_is_read(tmp_path):
    text = invite(Invites(tmp_path / "invites")).text
    assert parse_token(f"  {text[:80]}\n   {text[80:]}\r\n").text == text


def test_every_wrong_character_is_noticed(tmp_path):
    text = invite(Invites(tmp_path / "invites")).text
    for position in range(len(text)):
        wrong = "A" if text[position] != "A" else "B"
        with pytest.raises(TokenMalformedError):
            parse_token(text[:position] + wrong + text[position + 1 :])


@pytest.mark.parametrize("host", ["a.example", "ab.example", "abc.example"])
def test_a_wrong_last_character_is_noticed_though_it_may_stand_for_the_same_bytes(tmp_path, host):
    doors = [Address(host, 4003)]
    invites = Invites(tmp_path / "invites")
    text = invites.create(
        grid_id=GRID_ID, ca_pem=b"ca", issuer=ISSUER, addresses=doors, roles=(SERVE,), now_s=NOW_S, life_s=60.0
    ).text
    for wrong in set(ascii_letters + digits + "-_") - {text[-1]}:
        with pytest.raises(TokenMalformedError):
            parse_token(text[:-1] + wrong)


def test_a_cut_token_is_noticed(tmp_path):
    text = invite(Invites(tmp_path / "invites")).text
    for length in range(len(text)):
        with pytest.raises(TokenMalformedError):
            parse_token(text[:length])


@pytest.mark.parametrize("text", ["", "gn1.", "gn2.AAAA", "hello", "gn1." + "A" * 3000, "gn1.é", "gn1.!!!!"])
def test_what_is_no_token_is_named(text):
    with pytest.raises(TokenMalformedError):
        parse_token(text)


def test_repr_and_file_hide_the_secret(tmp_path):
    path = tmp_path / "invites"
    token = invite(Invites(path))
    assert str(token.secret) not in repr(token)
    assert token.secret not in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_invite_is_spent_once(tmp_path):
    invites = Invites(tmp_path / "invites")
    token = invite(invites, roles=(SUBMIT, SERVE, ADMIT))
    assert invites.has_outstanding(NOW_S)
    assert invites.redeem(token.secret, "a", now_s=NOW_S) == (ADMIT, SERVE, SUBMIT)
    assert not invites.has_outstanding(NOW_S)
    with pytest.raises(TokenSpentError):
        invites.redeem(token.secret, "b", now_s=NOW_S)
    assert invites.redeem(token.secret, "a", now_s=NOW_S) == (ADMIT, SERVE, SUBMIT)


def test_spending_is_on_disk_before_it_is_answered(tmp_path):
    path = tmp_path / "invites"
    invites = Invites(path)
    token = invite(invites)
    invites.redeem(token.secret, "a", now_s=NOW_S)
    with pytest.raises(TokenSpentError):
        Invites.load(path).redeem(token.secret, "b", now_s=NOW_S)


def test_what_cannot_be_written_is_not_spent_and_not_granted(tmp_path):
    directory = tmp_path / "state"
    directory.mkdir()
    invites = Invites(directory / "invites")
    token = invite(invites)
    (directory / "invites").unlink()
    directory.rmdir()
    with pytest.raises(StateFileError):
        invites.redeem(token.secret, "a", now_s=NOW_S)
    directory.mkdir()
    invites.redeem(token.secret, "b", now_s=NOW_S)


def test_an_expired_invite_is_refused(tmp_path):
    invites = Invites(tmp_path / "invites")
    token = invite(invites, life_s=60.0)
    invites.redeem(invite(invites).secret, "x", now_s=NOW_S)
    assert not invites.has_outstanding(NOW_S + 61)
    with pytest.raises(TokenExpiredError):
        invites.redeem(token.secret, "a", now_s=NOW_S + 61)


def test_an_unknown_secret_is_refused(tmp_path):
    with pytest.raises(TokenUnknownError):
        Invites(tmp_path / "invites").redeem(bytes(32), "a", now_s=NOW_S)


def test_two_nodes_racing_for_one_invite_do_not_both_win(tmp_path):
    invites = Invites(tmp_path / "invites")
    for _ in range(20):
        token, start, won = invite(invites), Barrier(4), []

        def race(node, token=token, start=start, won=won):
            start.wait()
            try:
                invites.redeem(token.secret, node, now_s=NOW_S)
            except TokenSpentError:
                return
            won.append(node)

        threads = [Thread(target=race, args=(f"n{number}",)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1


def test_invites_are_bounded_and_expired_ones_make_room(tmp_path):
    invites = Invites(tmp_path / "invites", invites_max=3)
    for _ in range(3):
        invite(invites, life_s=60.0)
    with pytest.raises(TokenError, match="3 invites are kept"):
        invite(invites)
    invite(invites, now_s=NOW_S + 61)
    assert len(invites.all()) == 1


@pytest.mark.parametrize("named", [{"life_s": 0.0}, {"life_s": 1e9}, {"roles": ()}, {"roles": ("king",)}])
def test_a_senseless_invite_is_the_callers_fault(tmp_path, named):
    with pytest.raises(ValueError, match=r"invite|roles"):
        invite(Invites(tmp_path / "invites"), **named)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "invites"
    invite(Invites(path))
    whole = path.read_bytes()
    for damaged in (b"", whole[:-1], whole[:50] + b"?" + whole[51:]):
        path.write_bytes(damaged)
        with pytest.raises(StateFileError, match="damaged"):
            Invites.load(path)
    assert Invites.load(tmp_path / "none").all() == ()
