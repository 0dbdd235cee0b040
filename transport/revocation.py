"""Who was thrown out of the grid, and on whose word.

Owns the signed revocation list: its form, the check of its signature, and how lists that two revokers made at
the same time come together. Knows nothing of gossip or connections; callers spread the document and close what
it refuses.

A *document* is signed by the owner's CA key or by a node with role `revoke`, and carries a version that only
grows. What was once revoked stays so: a node keeps the union of all entries it ever verified, while it passes on
the newest document (ties of version: the larger digest, so that all nodes agree). When two revokers sign the same
version apart, the newest document lacks the other's entries; `is_complete` is then False, and any revoker signs
the union again.

Entries are PeerIDs (the node may never come back under its key) and serial numbers of leaves or intermediates.
Revoking a PeerID of an admit node does not touch what its intermediate signed for others; revoking the
intermediate's serial number does.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from msgspec import Meta

from transport.certificates import REVOKE, GridTrust
from transport.files import read_checked, write_checked
from transport.identity import is_signed_by, raw_public_of
from transport.wire import Count, LocalProtocolError, NodeText, RemoteProtocolError

ENTRIES_MAX: Final = 2048
"""Of each kind. A grid has a few hundred nodes; when it has lost this many, its CA should be replaced."""
DOCUMENT_MAX_BYTES: Final = 256 * 1024
"""2048 PeerIDs and as many serial numbers take 200 kB."""
_FILE_MAX_BYTES: Final = 2 * DOCUMENT_MAX_BYTES + 1024
_SIGNED_PREFIX: Final = b"gridnode revocations 1\0"
"""Keeps a signature from being read as one over another kind of document."""

_SerialText = Annotated[str, Meta(pattern="^[0-9a-f]{1,40}$")]
_Nodes = Annotated[tuple[NodeText, ...], Meta(max_length=ENTRIES_MAX)]
_Serials = Annotated[tuple[_SerialText, ...], Meta(max_length=ENTRIES_MAX)]


class RevocationBody(msgspec.Struct, frozen=True, array_like=True):
    """What is signed. Positional: new fields go to the end."""

    grid_id: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    version: Count
    signed_at_s: Annotated[float, Meta(ge=0, le=1e11)]
    nodes: _Nodes
    serials: _Serials


class _Document(msgspec.Struct, frozen=True, array_like=True):
    body: Annotated[bytes, Meta(max_length=DOCUMENT_MAX_BYTES)]
    signature: Annotated[bytes, Meta(min_length=64, max_length=64)]
    chain: Annotated[tuple[bytes, ...], Meta(max_length=2)]
    """Signer's leaf and intermediate as DER; empty when the owner's CA key signed."""


class _Kept(msgspec.Struct, frozen=True, array_like=True):
    version: Count
    document: bytes
    nodes: _Nodes
    serials: _Serials


_DOCUMENT_DECODER: Final = msgspec.msgpack.Decoder(_Document)
_BODY_DECODER: Final = msgspec.msgpack.Decoder(RevocationBody)
_KEPT_DECODER: Final = msgspec.msgpack.Decoder(_Kept)


def _read(document: bytes) -> tuple[_Document, RevocationBody]:
    if len(document) > DOCUMENT_MAX_BYTES:
        message = f"a revocation list of {len(document)} bytes, at most {DOCUMENT_MAX_BYTES} are read"
        raise RemoteProtocolError(message)
    try:
        outer = _DOCUMENT_DECODER.decode(document)
        return outer, _BODY_DECODER.decode(outer.body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"a revocation list is malformed: {error}") from error


def _is_signed_by_owner(outer: _Document, trust: GridTrust) -> bool:
    for authority in trust.authorities:
        key = authority.public_key()
        if isinstance(key, Ed25519PublicKey):
            try:
                key.verify(outer.signature, _SIGNED_PREFIX + outer.body)
            except InvalidSignature:
                continue
            return True
    return False


def verify(document: bytes, trust: GridTrust) -> RevocationBody:
    """Check form, grid and signature of a document.

    Raises
    ------
    RemoteProtocolError
        It is malformed, of another grid, or not signed as it says.
    CertificateRefusedError
        Its signer was no revoker of this grid when it signed, or is revoked.
    """
    outer, body = _read(document)
    if body.grid_id != trust.grid_id:
        raise RemoteProtocolError(f"a revocation list of grid {body.grid_id[:12]}, this is {trust.grid_id[:12]}")
    if outer.chain:
        signer = trust.judge_at(outer.chain, body.signed_at_s, role=REVOKE)
        is_genuine = is_signed_by(raw_public_of(signer.node), outer.signature, _SIGNED_PREFIX + outer.body)
    else:
        is_genuine = _is_signed_by_owner(outer, trust)
    if not is_genuine:
        raise RemoteProtocolError("a revocation list with a wrong signature")
    return body


class Revocations:
    """All that is revoked, as far as this node knows.

    Parameters
    ----------
    path : Path, optional
        File that keeps it over restarts; see `load` and `save`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._version = 0
        self._document: bytes | None = None
        self._nodes: set[str] = set()
        self._serials: set[str] = set()
        self._newest_covers_all = True

    @classmethod
    def load(cls, path: Path) -> "Revocations":
        """Read the file written by `save`; empty when there is none. Blocks for a file read.

        Raises
        ------
        StateFileError
            The file is damaged.
        """
        revocations = cls(path)
        remedy = "delete it, peers send the list again at the next connection"
        kept = read_checked(path, _KEPT_DECODER, max_bytes=_FILE_MAX_BYTES, remedy=remedy)
        if kept is None:
            return revocations
        revocations._version, revocations._document = kept.version, kept.document
        revocations._nodes, revocations._serials = set(kept.nodes), set(kept.serials)
        revocations._newest_covers_all = revocations._is_covered_by(_read(kept.document)[1])
        return revocations

    @property
    def version(self) -> int:
        """Version of the newest document, 0 when there is none."""
        return self._version

    @property
    def document(self) -> bytes | None:
        """The newest document, for passing on."""
        return self._document

    @property
    def is_complete(self) -> bool:
        """Whether the newest document names all that is known; if not, a revoker should sign the union again."""
        return self._newest_covers_all

    @property
    def nodes(self) -> tuple[str, ...]:
        """Revoked PeerIDs, sorted."""
        return tuple(sorted(self._nodes))

    @property
    def serials(self) -> tuple[str, ...]:
        """Revoked serial numbers in hex, sorted."""
        return tuple(sorted(self._serials))

    def is_node_revoked(self, node: str) -> bool:
        """Say whether the node may not take part, whatever its certificate."""
        return node in self._nodes

    def is_serial_revoked(self, serial: str) -> bool:
        """Say whether the certificate with this serial number (hex) was withdrawn."""
        return serial in self._serials

    def accept(self, document: bytes, trust: GridTrust) -> bool:
        """Verify a document and take in what is new; about 0.3 ms of CPU.

        Returns
        -------
        bool
            Whether anything changed, so that connections should be judged again and the news passed on.

        Raises
        ------
        RemoteProtocolError, CertificateRefusedError
            As `verify`; or there would be more than ENTRIES_MAX entries.
        """
        if document == self._document:
            return False
        body = verify(document, trust)
        nodes, serials = self._nodes.union(body.nodes), self._serials.union(body.serials)
        if len(nodes) > ENTRIES_MAX or len(serials) > ENTRIES_MAX:
            raise RemoteProtocolError(f"more than {ENTRIES_MAX} revocations; the owner should replace the CA")
        trust.grid_time.observe(body.signed_at_s)
        is_newer = self._rank(body.version, document) > self._rank(self._version, self._document or b"")
        changed = is_newer or len(nodes) > len(self._nodes) or len(serials) > len(self._serials)
        self._nodes, self._serials = nodes, serials
        if is_newer:
            self._version, self._document = body.version, document
        if changed and self._document is not None:
            self._newest_covers_all = self._is_covered_by(_read(self._document)[1])
        return changed

    @staticmethod
    def _rank(version: int, document: bytes) -> tuple[int, bytes]:
        return version, hashlib.sha256(document).digest() if document else b""

    def _is_covered_by(self, body: RevocationBody) -> bool:
        return self._nodes.issubset(body.nodes) and self._serials.issubset(body.serials)

    def sign_next(
        self,
        grid_id: str,
        key: Ed25519PrivateKey,
        *,
        now_s: float,
        chain: tuple[bytes, ...] = (),
        nodes: Iterable[str] = (),
        serials: Iterable[str] = (),
    ) -> bytes:
        """Sign the next version with more entries; does not take it in: give it to `accept` as any other.

        Parameters
        ----------
        grid_id : str
            64 hex digits.
        key : Ed25519PrivateKey
            The revoker's node key, or the owner's CA key.
        now_s : float
            Grid time, in seconds since 1970.
        chain : tuple of bytes
            The revoker's leaf and intermediate as DER; empty for the owner's CA key.
        nodes, serials : iterable of str
            What to add: PeerIDs, serial numbers in hex.

        Raises
        ------
        LocalProtocolError
            An entry is malformed, or there would be too many.
        """
        body = RevocationBody(
            grid_id,
            self._version + 1,
            now_s,
            tuple(sorted({*self._nodes, *nodes})),
            tuple(sorted({*self._serials, *serials})),
        )
        encoded = msgspec.msgpack.encode(body)
        document = msgspec.msgpack.encode(_Document(encoded, key.sign(_SIGNED_PREFIX + encoded), chain))
        try:
            _read(document)
        except RemoteProtocolError as error:
            raise LocalProtocolError(f"cannot sign: {error}") from error
        return document

    def save(self) -> None:
        """Write the file. Blocks on fsync.

        Raises
        ------
        StateFileError
            It cannot be written.
        """
        if self._path is None or self._document is None:
            return
        write_checked(self._path, _Kept(self._version, self._document, self.nodes, self.serials))
