"""Who a node is: one Ed25519 key, and the libp2p PeerID that follows from it.

Owns the key file and the two encodings of a public key that peers see. Pure but for that file. Must not import
libp2p: the data plane, certificates and the simulator of faults need PeerIDs without it (a test compares both).

A PeerID is base58btc(identity multihash of the protobuf PublicKey); for Ed25519 it holds the key itself, so it
can be turned back into the key. Source: libp2p specs, peer-ids/peer-ids.md.
"""

from pathlib import Path
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from transport.files import StateFileError, create_exclusively, read_private
from transport.wire import RemoteProtocolError

RAW_KEY_BYTES: Final = 32
KEY_FILE_MAX_BYTES: Final = 4096
"""A PKCS 8 PEM file of an Ed25519 key takes 119 bytes; more is another file."""

_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_PEER_ID_PREFIX: Final = bytes([0x00, 0x24, 0x08, 0x01, 0x12, 0x20])
"""Identity multihash of 36 bytes; protobuf field 1 (type) = Ed25519, field 2 (data) = 32 bytes."""
_PEER_ID_CHARACTERS: Final = 52


def _base58_encode(data: bytes) -> str:
    number = int.from_bytes(data, "big")
    digits = ""
    while number:
        number, digit = divmod(number, 58)
        digits = _BASE58[digit] + digits
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + digits


def _base58_decode(text: str) -> bytes:
    number = 0
    for character in text:
        number = number * 58 + _BASE58.index(character)
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")


def peer_id(raw_public: bytes) -> str:
    """Return the PeerID of a raw Ed25519 public key, as base58 text.

    Raises
    ------
    ValueError
        The key has not 32 bytes: a wrong call.
    """
    if len(raw_public) != RAW_KEY_BYTES:
        raise ValueError(f"an Ed25519 public key has {RAW_KEY_BYTES} bytes, not {len(raw_public)}")
    return _base58_encode(_PEER_ID_PREFIX + raw_public)


def raw_public_of(node: str) -> bytes:
    """Return the raw Ed25519 public key that a PeerID holds.

    Raises
    ------
    RemoteProtocolError
        The text is not the PeerID of an Ed25519 key.
    """
    try:
        data = _base58_decode(node) if len(node) == _PEER_ID_CHARACTERS else b""
    except ValueError:
        data = b""
    if not data.startswith(_PEER_ID_PREFIX) or len(data) != len(_PEER_ID_PREFIX) + RAW_KEY_BYTES:
        raise RemoteProtocolError(f"{node[:80]!r} is not the PeerID of an Ed25519 key")
    return data[len(_PEER_ID_PREFIX) :]


def is_signed_by(raw_public: bytes, signature: bytes, data: bytes) -> bool:
    """Say whether an Ed25519 signature over data was made by the owner of a raw public key."""
    try:
        Ed25519PublicKey.from_public_bytes(raw_public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


class NodeKey:
    """The one Ed25519 key of a node: identity on both planes and in its certificate.

    Parameters
    ----------
    private : Ed25519PrivateKey
        The key. Its bytes leave this object only by `raw_private` and `pem`.
    """

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.raw_public = private.public_key().public_bytes_raw()
        self.node = peer_id(self.raw_public)

    def __repr__(self) -> str:
        return f"NodeKey({self.node})"  # never the private half

    @classmethod
    def generate(cls) -> Self:
        """Make a key that lives in memory only."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def create(cls, path: Path) -> Self:
        """Make a key and its file (PKCS 8 PEM, mode 0600). Blocks on fsync.

        Raises
        ------
        StateFileError
            The file exists already, or cannot be written.
        """
        key = cls.generate()
        create_exclusively(path, key.pem, mode=0o600)
        return key

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a key file. Blocks for a file read.

        Raises
        ------
        StateFileError
            It is missing, damaged, of another kind of key, or readable by group or world.
        """
        data = read_private(path, max_bytes=KEY_FILE_MAX_BYTES)
        try:
            private = serialization.load_pem_private_key(data, password=None)
        except (ValueError, TypeError) as error:
            raise StateFileError(f"{path} is not a private key in PEM: {error}; restore it from a backup") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise StateFileError(f"{path} holds a {type(private).__name__}; a node needs an Ed25519 key")
        return cls(private)

    @property
    def private(self) -> Ed25519PrivateKey:
        """The key as the cryptography package knows it, for signing certificates."""
        return self._private

    @property
    def raw_private(self) -> bytes:
        """The 32 bytes of the private key, for libp2p."""
        return self._private.private_bytes_raw()

    @property
    def pem(self) -> bytes:
        """The private key as unencrypted PKCS 8 PEM."""
        return self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    def sign(self, data: bytes) -> bytes:
        """Sign data (64 bytes); what is signed must begin with a text of its own kind, so kinds cannot be mixed up."""
        return self._private.sign(data)
