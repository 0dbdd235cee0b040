"""Signing keys of the grid state as files: Ed25519 in PKCS#8 PEM, readable by their owner only.

Owns making, reading and naming such keys for models.ownerkeys and models.desk. Knows nothing of node identities and
certificates; those keys live in transport.identity.
"""

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import (  # type: ignore[attr-defined]  # it exports these names without __all__
    CryptoSigner,
    Key,
    SSlibKey,
)

from models.durable import write_durably
from models.manifest import ModelError


class KeyFileError(ModelError):
    """A signing key that cannot be read or may not be overwritten. The local user's fault, or the disk's."""


def create_key(path: Path) -> CryptoSigner:
    """Make an Ed25519 key and write it to a file of mode 0600.

    Raises
    ------
    KeyFileError
        The file exists: a key in use is never overwritten.
    OSError
        The machine's fault.
    """
    if path.exists():
        raise KeyFileError(f"{path} exists; move the old key away before making a new one")
    signer = CryptoSigner.generate_ed25519()
    write_durably(path, signer.private_bytes)
    return signer


def load_key(path: Path) -> CryptoSigner:
    """Read a key made by create_key.

    Raises
    ------
    KeyFileError
        The file is missing, readable by others than its owner, or holds no Ed25519 key.
    """
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"signing key {path} cannot be read: {error.strerror}") from error
    if mode & 0o077:
        raise KeyFileError(f"signing key {path} has mode {mode & 0o777:04o}, at most 0600 is safe; run chmod 600 on it")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyFileError(f"{path} is no private key in PEM: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyFileError(f"{path} holds a {type(key).__name__}, Ed25519 is needed")
    return CryptoSigner(key)


def public_text(key: Key) -> str:
    """Return the public half as 64 hex digits, to be copied to the owner's machine."""
    text: str = key.keyval["public"]
    return text


def key_from_text(text: str) -> Key:
    """Return the public key that public_text wrote; raises KeyFileError for anything else."""
    try:
        raw = bytes.fromhex(text)
    except ValueError as error:
        raise KeyFileError(f"public key {text[:80]!r} is not in hex digits") from error
    if len(raw) != 32:
        raise KeyFileError(f"public key has {len(raw)} bytes, an Ed25519 key has 32")
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(raw))
