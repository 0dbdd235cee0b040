"""Making certificates: the owner's CA, intermediates for admit nodes, leaves for nodes.

Owns what goes into a certificate; transport.certificates owns what it means. Pure: keys come as arguments, time
too. The owner's CA key is used by the command line only and may stay offline between uses.
"""

from datetime import UTC, datetime
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from transport.certificates import (
    DAY_S,
    INTERMEDIATE_LIFE_S,
    LEAF_LIFE_S,
    PARSE_ERRORS,
    ROLES,
    GridName,
    PeerCertificate,
    grid_name,
    load_authorities,
)
from transport.identity import NodeKey, peer_id
from transport.wire import LocalProtocolError, RemoteProtocolError

CA_LIFE_S: Final = 3650 * DAY_S
"""Ten years: as long as boxes stay in the field. The owner may replace it earlier (two CAs are trusted meanwhile)."""
CSR_MAX_BYTES: Final = 4096
_SHORTEST_LIFE_S: Final = 3600.0
"""An intermediate with less left issues nothing: the leaf would need renewal before it was of use."""


def _when(time_s: float) -> datetime:
    return datetime.fromtimestamp(int(time_s), UTC)


def _subject(common_name: str, grid_id: str) -> x509.Name:
    return x509.Name(
        [x509.NameAttribute(NameOID.ORGANIZATION_NAME, grid_id), x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _builder(
    *, subject: x509.Name, issuer: x509.Name, key: Ed25519PublicKey, uri: str, begin_s: float, end_s: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_when(begin_s))
        .not_valid_after(_when(end_s))
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
    )


def _pem(*certificates: x509.Certificate) -> bytes:
    return b"".join(certificate.public_bytes(serialization.Encoding.PEM) for certificate in certificates)


def chain_ders(chain_pem: bytes) -> tuple[bytes, bytes]:
    """Return leaf and intermediate of a chain file as DER, as GridTrust.judge and node cards want them.

    Raises
    ------
    LocalProtocolError
        The file is not a leaf and an intermediate.
    """
    try:
        certificates = x509.load_pem_x509_certificates(chain_pem)
    except PARSE_ERRORS as error:
        raise LocalProtocolError(f"the node's certificate file is malformed: {error}; join again") from error
    if len(certificates) != 2:
        raise LocalProtocolError(
            f"the node's certificate file holds {len(certificates)} certificates, not 2; join again"
        )
    leaf, intermediate = (certificate.public_bytes(serialization.Encoding.DER) for certificate in certificates)
    return leaf, intermediate


def make_ca(key: Ed25519PrivateKey, grid_id: str, *, now_s: float, life_s: float = CA_LIFE_S) -> bytes:
    """Make the owner's self-signed CA certificate.

    Parameters
    ----------
    key : Ed25519PrivateKey
        The owner's CA key.
    grid_id : str
        64 hex digits.
    now_s : float
        Seconds since 1970.
    life_s : float
        How long it is valid.

    Returns
    -------
    bytes
        PEM.
    """
    subject = _subject("gridnode owner CA", grid_id)
    name = GridName(grid_id=grid_id, node="", roles=())
    public = key.public_key()
    identifier = x509.SubjectKeyIdentifier.from_public_key(public)
    builder = _builder(
        subject=subject, issuer=subject, key=public, uri=name.uri(""), begin_s=now_s, end_s=now_s + life_s
    )
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=1), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(key, None)
    )
    return _pem(certificate)


def make_intermediate(
    ca_key: Ed25519PrivateKey,
    ca_pem: bytes,
    intermediate_key: Ed25519PublicKey,
    *,
    holder: str,
    now_s: float,
    grants: tuple[str, ...] = ROLES,
    life_s: float = INTERMEDIATE_LIFE_S,
) -> bytes:
    """Make the certificate of an admit node's intermediate CA.

    Parameters
    ----------
    ca_key, ca_pem
        The owner's CA.
    intermediate_key : Ed25519PublicKey
        A key of its own, not the node's: TLS keys and signing keys are kept apart.
    holder : str
        PeerID of the admit node.
    now_s : float
        Seconds since 1970.
    grants : tuple of str
        Roles it may give.
    life_s : float
        How long it is valid, at most INTERMEDIATE_LIFE_S.

    Returns
    -------
    bytes
        PEM.
    """
    if life_s > INTERMEDIATE_LIFE_S:
        raise ValueError(f"an intermediate lives at most {INTERMEDIATE_LIFE_S / DAY_S:.0f} days")
    ca = load_authorities(ca_pem)[0]
    grid_id = grid_name(ca, "").grid_id
    name = GridName(grid_id=grid_id, node=holder, roles=_sorted_roles(grants))
    builder = _builder(
        subject=_subject("gridnode admit CA", grid_id),
        issuer=ca.subject,
        key=intermediate_key,
        uri=name.uri("grants"),
        begin_s=now_s,
        end_s=min(now_s + life_s, ca.not_valid_after_utc.timestamp()),
    )
    certificate = (
        builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(intermediate_key), critical=False)
        .add_extension(_issuer_identifier(ca), critical=False)
        .sign(ca_key, None)
    )
    return _pem(certificate)


def _issuer_identifier(issuer: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _sorted_roles(roles: tuple[str, ...]) -> tuple[str, ...]:
    unknown = set(roles) - set(ROLES)
    if unknown or not roles:
        raise ValueError(f"roles {roles} must be some of {ROLES}")
    return tuple(sorted(set(roles)))


def make_csr(key: NodeKey) -> bytes:
    """Make a certificate request for a node's key, as DER. It asks for no roles: those come from the invite."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, key.node)])
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key.private, None)
    return request.public_bytes(serialization.Encoding.DER)


def read_csr(csr: bytes) -> Ed25519PublicKey:
    """Return the key of a certificate request whose owner proved to hold it.

    Raises
    ------
    RemoteProtocolError
        The request is malformed, not signed by its own key, or for another kind of key.
    """
    if len(csr) > CSR_MAX_BYTES:
        raise RemoteProtocolError(f"a certificate request of {len(csr)} bytes, at most {CSR_MAX_BYTES} are read")
    try:
        request = x509.load_der_x509_csr(csr)
        key, is_signed = request.public_key(), request.is_signature_valid
    except PARSE_ERRORS as error:
        raise RemoteProtocolError(f"malformed certificate request: {error}") from error
    if not is_signed or not isinstance(key, Ed25519PublicKey):
        raise RemoteProtocolError("a certificate request must be for an Ed25519 key and signed by it")
    return key


class Issuer:
    """An admit node's power to sign: its intermediate CA.

    Parameters
    ----------
    key : Ed25519PrivateKey
        Key of the intermediate.
    certificate_pem : bytes
        Its certificate.
    """

    def __init__(self, key: Ed25519PrivateKey, certificate_pem: bytes) -> None:
        self._key = key
        self._certificate = load_authorities(certificate_pem)[0]
        self._name = grid_name(self._certificate, "grants")

    @classmethod
    def from_pem(cls, key_pem: bytes, certificate_pem: bytes) -> Self:
        """Read key (PKCS 8) and certificate from PEM.

        Raises
        ------
        LocalProtocolError
            The key is not an Ed25519 key in PEM.
        """
        try:
            key = serialization.load_pem_private_key(key_pem, password=None)
        except (ValueError, TypeError) as error:
            raise LocalProtocolError(f"the intermediate's key file is malformed: {error}") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise LocalProtocolError(f"the intermediate's key is a {type(key).__name__}, not Ed25519")
        return cls(key, certificate_pem)

    @property
    def grants(self) -> tuple[str, ...]:
        """Roles it may give."""
        return self._name.roles

    @property
    def not_after_s(self) -> float:
        """When it ends, in seconds since 1970; the owner must sign a new one before."""
        return self._certificate.not_valid_after_utc.timestamp()

    def issue(self, key: Ed25519PublicKey, roles: tuple[str, ...], *, now_s: float) -> bytes:
        """Make a leaf certificate for a node's key; also how one is renewed.

        Parameters
        ----------
        key : Ed25519PublicKey
            The node's key, from read_csr.
        roles : tuple of str
            Among `grants`.
        now_s : float
            Grid time, in seconds since 1970.

        Returns
        -------
        bytes
            PEM of leaf and intermediate. The leaf ends after LEAF_LIFE_S or with its intermediate.

        Raises
        ------
        LocalProtocolError
            The intermediate has (nearly) expired, or may not grant a role.
        """
        begin_s = max(now_s, self._certificate.not_valid_before_utc.timestamp())
        end_s = min(begin_s + LEAF_LIFE_S, self.not_after_s)
        if end_s - begin_s < _SHORTEST_LIFE_S:
            raise LocalProtocolError("this node's admit certificate has expired; the owner must sign a new one")
        if not set(roles) <= set(self.grants):
            raise LocalProtocolError(f"roles {roles} asked for, this node may grant {self.grants}")
        node = peer_id(key.public_bytes_raw())
        name = GridName(grid_id=self._name.grid_id, node=node, roles=_sorted_roles(roles))
        builder = _builder(
            subject=_subject(node, name.grid_id),
            issuer=self._certificate.subject,
            key=key,
            uri=name.uri("roles"),
            begin_s=begin_s,
            end_s=end_s,
        )
        usages = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        leaf = (
            builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(signs_certificates=False), critical=True)
            .add_extension(usages, critical=False)
            .add_extension(_issuer_identifier(self._certificate), critical=False)
            .sign(self._key, None)
        )
        return _pem(leaf, self._certificate)

    def renew(self, csr: bytes, certificate: PeerCertificate, *, now_s: float) -> bytes:
        """Make a new leaf for a node that proved by TLS to hold the old one; it keeps its roles.

        Parameters
        ----------
        csr : bytes
            The node's request, as DER.
        certificate : PeerCertificate
            What the node showed, already judged.
        now_s : float
            Grid time, in seconds since 1970.

        Raises
        ------
        RemoteProtocolError
            The request is malformed or for another node's key.
        LocalProtocolError
            As `issue`.
        """
        key = read_csr(csr)
        node = peer_id(key.public_bytes_raw())
        if node != certificate.node:
            raise RemoteProtocolError(f"{certificate.node} asked for a certificate of another key, {node}")
        return self.issue(key, certificate.roles, now_s=now_s)
