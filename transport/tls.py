"""TLS 1.3 with grid certificates: contexts, and the verdict after the handshake.

Owns how the ssl module is set up for both planes and the join door. Knows nothing of sockets: callers drive an
ssl.SSLObject over MemoryBIO.

The handshake proves that the peer holds its key and that the chain ends at the owner's CA. Time is not checked
there (NO_CHECK_TIME), because the machine's clock may be wrong; `judge_peer` checks it by grid time, with
everything else, before the first byte of application data is used. A TLS 1.3 client finishes before the server
has judged the client's certificate; so the server says so with one byte, CONFIRMATION, for which every client
waits. Tickets are off: a resumed session would escape revocation.
"""

import os
import ssl
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol, cast

from transport.certificates import CertificateRefusedError, GridTrust, PeerCertificate, RefusalReason
from transport.identity import NodeKey
from transport.wire import LocalProtocolError

CONFIRMATION: Final = b"\x06"
"""ASCII ACK: the server's word that it accepted the client's certificate."""
HANDSHAKE_TIMEOUT_S: Final = 3.0
"""From the accepted or made connection to the confirmation. A round trip and two signatures take under 1 s on the
slowest boards and links; longer waits only serve those who hold connections open (slow-loris)."""

_NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL's x509_vfy.h; the ssl module has no name for it."""


@contextmanager
def _key_file(data: bytes) -> Iterator[str]:
    """Lend key material as a path, because ssl.SSLContext loads keys from paths only.

    On Linux the file lives in memory only. Elsewhere (development machines) it is a file of mode 0600 in a
    directory of mode 0700, removed at once.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("gridnode-key", os.MFD_CLOEXEC)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{descriptor}"
        return
    with tempfile.TemporaryDirectory() as directory:
        path = os.path.join(directory, "key.pem")
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        yield path


def _load_identity(context: ssl.SSLContext, key: NodeKey, chain_pem: bytes) -> None:
    try:
        with _key_file(key.pem + chain_pem) as path:
            context.load_cert_chain(path)
    except (ssl.SSLError, OSError) as error:
        message = f"key and certificate of this node do not fit or cannot be loaded: {error}; join the grid again"
        raise LocalProtocolError(message) from error


def _context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the name that counts is the PeerID, see judge_peer
    context.options |= ssl.OP_NO_TICKET
    return context


def _require_grid(context: ssl.SSLContext, ca_pem: bytes, mode: ssl.VerifyMode) -> None:
    context.verify_mode = mode
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VerifyFlags(_NO_CHECK_TIME)
    context.load_verify_locations(cadata=ca_pem.decode("ascii"))


def client_context(key: NodeKey, chain_pem: bytes, ca_pem: bytes) -> ssl.SSLContext:
    """Make the context for dialling a peer. Takes about 1 ms.

    Parameters
    ----------
    key : NodeKey
        This node's key.
    chain_pem : bytes
        Its leaf and the intermediate.
    ca_pem : bytes
        The owner's CA: the peer's chain must end there.

    Raises
    ------
    LocalProtocolError
        Key and certificate do not belong together.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    _load_identity(context, key, chain_pem)
    _require_grid(context, ca_pem, ssl.CERT_REQUIRED)
    return context


def server_context(
    key: NodeKey, chain_pem: bytes, ca_pem: bytes, *, client_certificate: ssl.VerifyMode = ssl.CERT_REQUIRED
) -> ssl.SSLContext:
    """Make the context for a listener; only the join door lets clients come without a certificate (CERT_OPTIONAL).

    Raises
    ------
    LocalProtocolError
        Key and certificate do not belong together.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER)
    context.num_tickets = 0
    _load_identity(context, key, chain_pem)
    _require_grid(context, ca_pem, client_certificate)
    return context


def first_contact_context() -> ssl.SSLContext:
    """Make the context that verifies nobody: for fetching the CA certificate, which the join token's hash verifies."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_mode = ssl.CERT_NONE
    return context


def joining_context(ca_pem: bytes) -> ssl.SSLContext:
    """Make the context of a node that has no certificate yet but knows the CA."""
    context = _context(ssl.PROTOCOL_TLS_CLIENT)
    _require_grid(context, ca_pem, ssl.CERT_REQUIRED)
    return context


class _PrivateCertificate(Protocol):
    def public_bytes(self) -> str:
        """PEM."""


class _PrivateObject(Protocol):
    def get_verified_chain(self) -> list[_PrivateCertificate] | None:
        """Leaf first."""


def peer_chain(ssl_object: ssl.SSLObject) -> tuple[bytes, ...]:
    """Return the chain that the handshake verified, leaf first, as DER; empty when the peer showed none."""
    if hasattr(ssl_object, "get_verified_chain"):  # public since Python 3.13
        return tuple(ssl_object.get_verified_chain())
    # Python 3.11 and 3.12 have the very same function one level deeper.
    inner = cast(_PrivateObject, ssl_object._sslobj)  # type: ignore[attr-defined]
    return tuple(ssl.PEM_cert_to_DER_cert(part.public_bytes()) for part in inner.get_verified_chain() or [])


def judge_peer(
    ssl_object: ssl.SSLObject, trust: GridTrust, *, node: str | None = None, role: str | None = None
) -> PeerCertificate:
    """Judge the peer of a finished handshake, before any byte from or to it.

    Parameters
    ----------
    ssl_object : ssl.SSLObject
        After do_handshake.
    trust : GridTrust
        Of this grid.
    node : str, optional
        The dialled PeerID.
    role : str, optional
        Role that the peer must carry.

    Raises
    ------
    CertificateRefusedError
        The peer may not take part, or is not the dialled one.
    """
    chain = peer_chain(ssl_object)
    if not chain:
        raise CertificateRefusedError(RefusalReason.UNTRUSTED, "the peer showed no certificate")
    return trust.judge(chain, node=node, role=role)
