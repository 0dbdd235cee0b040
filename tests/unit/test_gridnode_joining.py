"""Joining when it does not work: nothing half-made is taken for a node, and trying again is safe."""

import secrets
import socket

import pytest
import trio

from gridnode.gridsetup import create_grid
from gridnode.joining import JoinError, given_name, join_grid
from gridnode.statedir import StateDirectory
from transport.cards import Address
from transport.identity import NodeKey
from transport.tokens import JoinToken

NOW_S = 1.8e9


def make_token(port, *, expires_at_s=NOW_S + 600):
    return JoinToken(
        grid_id=secrets.token_bytes(32),
        addresses=(Address("127.0.0.1", port),),
        ca_sha256=secrets.token_bytes(32),
        issuer=NodeKey.generate().node,
        secret=secrets.token_bytes(32),
        expires_at_s=int(expires_at_s),
    ).text


def join(state, token):
    return trio.run(lambda: join_grid(state, token, name="new", clock=lambda: NOW_S))


@pytest.fixture
def shut_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    return port


def test_a_shut_door_is_named_and_the_key_is_kept_for_the_next_try(tmp_path, shut_port):
    state = StateDirectory(tmp_path / "new")
    keys = []
    for _ in range(2):
        with pytest.raises(JoinError, match="same token can be tried again"):
            join(state, make_token(shut_port))
        keys.append(NodeKey.load(state.node_key).node)
    assert keys[0] == keys[1]
    assert given_name(state) == "new"
    assert not state.grid.exists()
    assert state.path.stat().st_mode & 0o777 == 0o700


def test_an_expired_token_asks_for_a_new_one(tmp_path, shut_port):
    with pytest.raises(JoinError, match="expired"):
        join(StateDirectory(tmp_path / "new"), make_token(shut_port, expires_at_s=NOW_S - 1))


def test_a_token_with_a_letter_missing_is_not_sent_anywhere(tmp_path, shut_port):
    token = make_token(shut_port)
    with pytest.raises(JoinError, match="copy it again"):
        join(StateDirectory(tmp_path / "new"), token[:40] + token[41:])
    assert not (tmp_path / "new").exists()


def test_a_member_does_not_join_twice(tmp_path, shut_port):
    state = StateDirectory(tmp_path / "member")
    create_grid(state, tmp_path / "owner", "yard", now_s=NOW_S)
    before = state.node_key.read_bytes()
    with pytest.raises(JoinError, match="--state-dir"):
        join(state, make_token(shut_port))
    assert state.node_key.read_bytes() == before
