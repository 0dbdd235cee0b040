import os

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from transport.files import StateFileError
from transport.identity import NodeKey, is_signed_by, peer_id, raw_public_of
from transport.wire import RemoteProtocolError


def test_peer_id_is_the_one_libp2p_makes():
    for seed in (bytes(32), bytes(range(32)), b"\xff" * 32):
        pair = create_new_key_pair(seed)
        assert peer_id(pair.public_key.to_bytes()) == ID.from_pubkey(pair.public_key).to_base58()


def test_peer_id_gives_the_key_back():
    key = NodeKey.generate()
    assert raw_public_of(key.node) == key.raw_public


@pytest.mark.parametrize(
    "text", ["", "12D3KooW", "0" * 52, "1" * 52, "z" * 52, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "é" * 52]
)
def test_text_that_is_no_peer_id_is_the_peers_fault(text):
    with pytest.raises(RemoteProtocolError, match="not the PeerID"):
        raw_public_of(text)


def test_peer_id_wants_a_raw_key():
    with pytest.raises(ValueError, match="32 bytes"):
        peer_id(b"short")


def test_created_key_is_private_and_loads_again(tmp_path):
    path = tmp_path / "node.key"
    key = NodeKey.create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert NodeKey.load(path).node == key.node
    assert NodeKey.load(path).raw_private == key.raw_private
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.key"]


def test_a_key_is_never_overwritten(tmp_path):
    path = tmp_path / "node.key"
    key = NodeKey.create(path)
    with pytest.raises(StateFileError, match="exists already"):
        NodeKey.create(path)
    assert NodeKey.load(path).node == key.node
    assert [entry.name for entry in tmp_path.iterdir()] == ["node.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622])
def test_a_key_that_others_may_touch_is_refused(tmp_path, mode):
    path = tmp_path / "node.key"
    NodeKey.create(path)
    path.chmod(mode)
    with pytest.raises(StateFileError, match="chmod 0600"):
        NodeKey.load(path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"x" * 5000, b"\x00" * 40])
def test_a_damaged_key_file_is_named(tmp_path, content):
    path = tmp_path / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StateFileError, match=r"node\.key"):
        NodeKey.load(path)


def test_a_key_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "node.key"
    path.write_bytes(
        X25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    path.chmod(0o600)
    with pytest.raises(StateFileError, match="Ed25519"):
        NodeKey.load(path)


def test_a_missing_key_and_a_missing_directory_are_named(tmp_path):
    with pytest.raises(StateFileError, match="cannot read"):
        NodeKey.load(tmp_path / "none")
    with pytest.raises(StateFileError, match="cannot create"):
        NodeKey.create(tmp_path / "no" / "directory")


def test_signatures_hold_for_their_key_and_data_only():
    key, other = NodeKey.generate(), NodeKey.generate()
    signature = key.sign(b"text")
    assert is_signed_by(key.raw_public, signature, b"text")
    assert not is_signed_by(key.raw_public, signature, b"texts")
    assert not is_signed_by(other.raw_public, signature, b"text")
    assert not is_signed_by(key.raw_public, b"", b"text")
    assert not is_signed_by(b"short", signature, b"text")


def test_repr_hides_the_private_half():
    key = NodeKey.generate()
    assert repr(key) == f"NodeKey({key.node})"
    assert os.fsencode(key.raw_private.hex()) not in os.fsencode(repr(vars(key)))
