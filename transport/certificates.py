"""Whether a certificate of a peer is good, now, in this grid.

Owns the meaning of grid certificates and the verdict on them. Two levels below the owner: the owner's CA signs
an *intermediate* for each admit node (path length 0, at most 90 days, with the roles it may grant), and that
signs *leaf* certificates for node keys (30 days). Making them is transport.issuing; carrying them through TLS
is transport.tls. Must not know sockets or what a role allows.

What a grid certificate says stands in one URI of its subject alternative names:

    CA            gridnode://<grid id>/
    intermediate  gridnode://<grid id>/<PeerID of its holder>?grants=<roles>
    leaf          gridnode://<grid id>/<PeerID of its key>?roles=<roles>

TLS libraries check the signatures, but by the machine's clock and without these rules; so every chain is judged
here as a whole, wherever it came from. Validity is judged by grid time. A certificate's notBefore was set by an
admit node, hence is itself a signed time that moves the floor of grid time; it must lie inside the owner-signed
validity of the intermediate, which bounds how far a wrong clock at an admit node can move everybody's.
"""

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Final, Protocol

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.utils import CryptographyDeprecationWarning

from transport.gridtime import ALLOWANCE_S, GridTime
from transport.identity import peer_id
from transport.wire import TransportError

SERVE: Final = "serve"
SUBMIT: Final = "submit"
ADMIT: Final = "admit"
REVOKE: Final = "revoke"
ROLES: Final = (ADMIT, REVOKE, SERVE, SUBMIT)
"""All there are, sorted: run jobs of others, hand in jobs, sign joins and renewals, sign revocation lists."""

DAY_S: Final = 86400.0
LEAF_LIFE_S: Final = 30 * DAY_S
INTERMEDIATE_LIFE_S: Final = 90 * DAY_S
RENEWAL_GRACE_S: Final = 90 * DAY_S
"""A certificate expired no longer than this may still ask the join door for a new one: boxes lie in drawers."""
CERTIFICATE_MAX_BYTES: Final = 2048
"""One certificate as DER; ours take about 600 bytes."""
CA_MAX_COUNT: Final = 4
"""Owner CAs trusted at once: one, or old and new while the owner changes it."""
_INTERMEDIATES_KEPT: Final = 64
"""Intermediates whose signature is not checked again; a grid has one per admit node."""

_NAME = re.compile(
    r"gridnode://(?P<grid>[0-9a-f]{64})/(?P<node>[1-9A-HJ-NP-Za-km-z]{0,64})(\?(?P<kind>roles|grants)=(?P<roles>[a-z,]{0,64}))?"
)
PARSE_ERRORS: Final = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,
)
"""What cryptography raises for a certificate or request that is not well formed; the last one where warnings are
errors, for oddities that its next release refuses."""


class RefusalReason(StrEnum):
    """Why a certificate was refused."""

    MALFORMED = "malformed"
    UNTRUSTED = "untrusted"
    WRONG_GRID = "wrong_grid"
    WRONG_KEY = "wrong_key"
    WRONG_NODE = "wrong_node"
    ROLE = "role"
    EXPIRED = "expired"
    REVOKED = "revoked"


class CertificateRefusedError(TransportError):
    """A peer's certificate does not admit it to this grid, now; the peer's fault or its owner's wish.

    Parameters
    ----------
    reason : RefusalReason
        For counting and for the caller's decision (an expired node may go to the join door).
    message : str
        What was seen, and what to do.
    """

    def __init__(self, reason: RefusalReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class PeerCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """What a verified chain says of a node."""

    node: str
    """PeerID of the leaf's key."""
    grid_id: str
    roles: tuple[str, ...]
    """Sorted."""
    not_before_s: float
    """Seconds since 1970, as all times here."""
    not_after_s: float
    serial: str
    """Serial number of the leaf, in hex."""
    issuer_serial: str
    """Serial number of the intermediate, in hex."""


class GridName(msgspec.Struct, frozen=True, kw_only=True):
    """The URI of a grid certificate, in parts."""

    grid_id: str
    node: str
    roles: tuple[str, ...]

    def uri(self, kind: str) -> str:
        """Return the URI; kind is roles (leaf), grants (intermediate) or empty (CA)."""
        query = f"?{kind}={','.join(self.roles)}" if kind else ""
        return f"gridnode://{self.grid_id}/{self.node}{query}"


class RevokedNames(Protocol):
    """What a verdict needs of the revocation list."""

    def is_node_revoked(self, node: str) -> bool:
        """Say whether the node may not take part, whatever its certificate."""
        ...

    def is_serial_revoked(self, serial: str) -> bool:
        """Say whether the certificate with this serial number (hex) was withdrawn."""
        ...


class NothingRevoked:
    """The list of a grid that never revoked anything."""

    def is_node_revoked(self, node: str) -> bool:
        """No node is."""
        return False

    def is_serial_revoked(self, serial: str) -> bool:
        """No certificate is."""
        return False


def serial_text(certificate: x509.Certificate) -> str:
    """Return a serial number as revocation lists write it."""
    return f"{certificate.serial_number:x}"


def grid_name(certificate: x509.Certificate, kind: str) -> GridName:
    """Read the URI of a certificate of our own kind; raises ValueError and the others of PARSE_ERRORS."""
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    uris = extension.get_values_for_type(x509.UniformResourceIdentifier)
    match = _NAME.fullmatch(uris[0]) if len(uris) == 1 else None
    if match is None or (match["kind"] or "") != kind:
        raise ValueError(f"the certificate has no single gridnode:// name with {kind or 'nothing behind it'}")
    roles = tuple(match["roles"].split(",")) if match["roles"] else ()
    return GridName(grid_id=match["grid"], node=match["node"], roles=roles)


def _life(certificate: x509.Certificate) -> tuple[float, float]:
    return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()


def _is_ca(certificate: x509.Certificate, path_length: int | None) -> bool:
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    return constraints.ca and constraints.path_length == path_length


def load_authorities(ca_pem: bytes) -> tuple[x509.Certificate, ...]:
    """Read the owner's CA certificates from PEM.

    Raises
    ------
    CertificateRefusedError
        It is not 1 to CA_MAX_COUNT certificates.
    """
    try:
        authorities = tuple(x509.load_pem_x509_certificates(ca_pem))
    except PARSE_ERRORS as error:
        raise CertificateRefusedError(RefusalReason.MALFORMED, f"the grid's CA file is malformed: {error}") from error
    if not 1 <= len(authorities) <= CA_MAX_COUNT:
        message = f"the grid's CA file holds {len(authorities)} certificates, at most {CA_MAX_COUNT} are taken"
        raise CertificateRefusedError(RefusalReason.MALFORMED, message)
    return authorities


class _Chain(msgspec.Struct, frozen=True, kw_only=True):
    """A chain whose signatures hold; whether it is good now is another question."""

    certificate: PeerCertificate
    grants: tuple[str, ...]
    issuer_grid: str
    issuer_not_before_s: float
    issuer_not_after_s: float


class GridTrust:
    """Judges chains against the owner's CA.

    Parameters
    ----------
    ca_pem : bytes
        The owner's CA certificate, or two while it changes.
    grid_id : str
        64 hex digits: SHA-256 of the grid's first TUF root.
    revocations : RevokedNames
        Looked at in every verdict, so it may grow meanwhile.
    grid_time : GridTime
        Its floor is moved by what is verified here.
    """

    def __init__(self, ca_pem: bytes, grid_id: str, *, revocations: RevokedNames, grid_time: GridTime) -> None:
        self.ca_pem = ca_pem
        self.grid_id = grid_id
        self.grid_time = grid_time
        self._authorities = load_authorities(ca_pem)
        self._revocations = revocations
        self._intermediates: dict[bytes, x509.Certificate] = {}

    @property
    def authorities(self) -> tuple[x509.Certificate, ...]:
        """The owner's CA certificates."""
        return self._authorities

    def judge(self, chain: Sequence[bytes], *, node: str | None = None, role: str | None = None) -> PeerCertificate:
        """Verify a chain and say what it certifies; about 0.3 ms of CPU.

        Parameters
        ----------
        chain : sequence of bytes
            Leaf and intermediate as DER; what follows (the CA itself) is ignored.
        node : str, optional
            PeerID that it must certify: the dialled one.
        role : str, optional
            Role that it must carry.

        Raises
        ------
        CertificateRefusedError
            The chain is not good for this grid, now, for that node and role.
        """
        return self._judge(chain, grace_s=0.0, node=node, role=role)

    def judge_renewal(self, chain: Sequence[bytes]) -> PeerCertificate:
        """Like judge, but a chain expired by up to RENEWAL_GRACE_S passes: for the join door, nowhere else."""
        return self._judge(chain, grace_s=RENEWAL_GRACE_S, node=None, role=None)

    def judge_at(self, chain: Sequence[bytes], at_s: float, *, role: str) -> PeerCertificate:
        """Like judge, but for the time of a signature made earlier: documents outlive their signer's certificate."""
        verified = self._verify(chain)
        self._check_standing(verified, node=None, role=role)
        certificate = verified.certificate
        if not certificate.not_before_s - ALLOWANCE_S <= at_s <= certificate.not_after_s + ALLOWANCE_S:
            message = f"the certificate of {certificate.node} was not valid when it signed"
            raise CertificateRefusedError(RefusalReason.EXPIRED, message)
        return certificate

    def recheck(self, certificate: PeerCertificate) -> None:
        """Judge once more what was verified earlier: it may have expired or been revoked since.

        Raises
        ------
        CertificateRefusedError
            It has.
        """
        self._check_revoked(certificate)
        self._check_expiry(certificate.node, certificate.not_after_s, grace_s=0.0)

    def _judge(self, chain: Sequence[bytes], *, grace_s: float, node: str | None, role: str | None) -> PeerCertificate:
        verified = self._verify(chain)
        certificate = verified.certificate
        self._check_standing(verified, node=node, role=role)
        self.grid_time.observe(certificate.not_before_s)
        # The leaf ends no later than its intermediate, so its own end is the one that counts.
        self._check_expiry(certificate.node, certificate.not_after_s, grace_s=grace_s)
        return certificate

    def _verify(self, chain: Sequence[bytes]) -> _Chain:
        """Check signatures and form: everything that never changes."""
        if len(chain) < 2 or any(len(part) > CERTIFICATE_MAX_BYTES for part in chain[:2]):
            message = f"a chain is a leaf and an intermediate of at most {CERTIFICATE_MAX_BYTES} bytes each"
            raise CertificateRefusedError(RefusalReason.MALFORMED, message)
        try:
            return self._read_chain(chain[0], self._intermediate(chain[1]))
        except PARSE_ERRORS as error:
            raise CertificateRefusedError(RefusalReason.MALFORMED, f"malformed certificate: {error}") from error
        except InvalidSignature as error:
            message = "the certificate is not signed by this grid's CA; was the node joined to another grid?"
            raise CertificateRefusedError(RefusalReason.UNTRUSTED, message) from error

    def _intermediate(self, der: bytes) -> x509.Certificate:
        known = self._intermediates.get(der)
        if known is not None:
            return known
        certificate = x509.load_der_x509_certificate(der)
        if not any(_is_issued_by(certificate, authority) for authority in self._authorities):
            raise InvalidSignature
        if not _is_ca(certificate, path_length=0):
            raise ValueError("the intermediate is not a CA of path length 0")
        if len(self._intermediates) >= _INTERMEDIATES_KEPT:
            del self._intermediates[next(iter(self._intermediates))]
        self._intermediates[der] = certificate
        return certificate

    def _read_chain(self, leaf_der: bytes, issuer: x509.Certificate) -> _Chain:
        leaf = x509.load_der_x509_certificate(leaf_der)
        if not _is_issued_by(leaf, issuer):
            raise InvalidSignature
        if _is_ca(leaf, path_length=None):
            raise ValueError("the leaf is itself a CA")
        key = leaf.public_key()
        if not isinstance(key, Ed25519PublicKey):
            raise ValueError(f"the leaf's key is a {type(key).__name__}, not Ed25519")
        name, issuer_name = grid_name(leaf, "roles"), grid_name(issuer, "grants")
        if name.node != peer_id(key.public_bytes_raw()):
            raise CertificateRefusedError(RefusalReason.WRONG_KEY, f"the name {name.node} does not follow from the key")
        begin, end = _life(leaf)
        issuer_begin, issuer_end = _life(issuer)
        certificate = PeerCertificate(
            node=name.node,
            grid_id=name.grid_id,
            roles=tuple(sorted(name.roles)),
            not_before_s=begin,
            not_after_s=end,
            serial=serial_text(leaf),
            issuer_serial=serial_text(issuer),
        )
        return _Chain(
            certificate=certificate,
            grants=issuer_name.roles,
            issuer_grid=issuer_name.grid_id,
            issuer_not_before_s=issuer_begin,
            issuer_not_after_s=issuer_end,
        )

    def _check_standing(self, chain: _Chain, *, node: str | None, role: str | None) -> None:
        """Check everything but expiry."""
        certificate = chain.certificate
        if not certificate.grid_id == chain.issuer_grid == self.grid_id:
            message = f"{certificate.node} belongs to grid {certificate.grid_id[:12]}, this is {self.grid_id[:12]}"
            raise CertificateRefusedError(RefusalReason.WRONG_GRID, message)
        if not set(certificate.roles) <= set(chain.grants):
            message = f"{certificate.node} carries roles {certificate.roles}, its issuer may grant {chain.grants}"
            raise CertificateRefusedError(RefusalReason.ROLE, message)
        if (
            not chain.issuer_not_before_s
            <= certificate.not_before_s
            < certificate.not_after_s
            <= chain.issuer_not_after_s
        ):
            message = f"the certificate of {certificate.node} is not valid within its issuer's time"
            raise CertificateRefusedError(RefusalReason.UNTRUSTED, message)
        self._check_revoked(certificate)
        if node is not None and certificate.node != node:
            message = f"dialled {node}, but {certificate.node} answered; its address is out of date"
            raise CertificateRefusedError(RefusalReason.WRONG_NODE, message)
        if role is not None and role not in certificate.roles:
            message = f"{certificate.node} has roles {certificate.roles}, {role!r} is needed"
            raise CertificateRefusedError(RefusalReason.ROLE, message)

    def _check_revoked(self, certificate: PeerCertificate) -> None:
        revoked = self._revocations
        if revoked.is_node_revoked(certificate.node):
            raise CertificateRefusedError(RefusalReason.REVOKED, f"{certificate.node} was revoked by the owner")
        if revoked.is_serial_revoked(certificate.serial) or revoked.is_serial_revoked(certificate.issuer_serial):
            message = f"the certificate of {certificate.node} or its issuer's was revoked; join again"
            raise CertificateRefusedError(RefusalReason.REVOKED, message)

    def _check_expiry(self, node: str, not_after_s: float, *, grace_s: float) -> None:
        late_s = self.grid_time.now_s() - not_after_s
        if late_s > max(ALLOWANCE_S, grace_s):
            message = f"the certificate of {node} expired {late_s / DAY_S:.1f} days ago; renew it at the join door"
            raise CertificateRefusedError(RefusalReason.EXPIRED, message)


def _is_issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):  # ValueError: other issuer name; TypeError: odd key
        return False
    return True
