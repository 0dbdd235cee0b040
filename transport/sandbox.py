"""A whole grid's keys and certificates in memory, for tests, examples and benches.

Owns nothing that a real grid uses: real ones keep their keys in files, see gridnode's grid commands. The
certificates are real ones, made by the same functions.
"""

from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from transport.certificates import (
    INTERMEDIATE_LIFE_S,
    ROLES,
    SERVE,
    SUBMIT,
    GridTrust,
    NothingRevoked,
    RevokedNames,
)
from transport.gridtime import GridTime
from transport.identity import NodeKey
from transport.issuing import Issuer, chain_ders, make_ca, make_csr, make_intermediate, read_csr

GRID_ID: Final = "5a" * 32
"""Grid id of a sandbox unless another is given."""
NOW_S: Final = 1_800_000_000.0
"""A moment in January 2027, in seconds since 1970: sandbox grids do not read the clock."""


class SandboxNode(msgspec.Struct, frozen=True):
    """A node's key and certificate."""

    key: NodeKey
    chain_pem: bytes

    @property
    def node(self) -> str:
        """PeerID."""
        return self.key.node

    @property
    def chain(self) -> tuple[bytes, bytes]:
        """Leaf and intermediate as DER."""
        return chain_ders(self.chain_pem)


class SandboxGrid:
    """An owner's CA, one admit node, and as many nodes as wanted.

    Parameters
    ----------
    grid_id : str
        64 hex digits.
    now_s : float
        When the CA and its intermediate begin, in seconds since 1970.
    grants : tuple of str
        Roles that the intermediate may give.

    Examples
    --------
    >>> grid = SandboxGrid()
    >>> node = grid.make_node()
    >>> grid.trust().judge(node.chain).roles
    ('serve', 'submit')
    """

    def __init__(self, *, grid_id: str = GRID_ID, now_s: float = NOW_S, grants: tuple[str, ...] = ROLES) -> None:
        self.grid_id = grid_id
        self.now_s = now_s
        self.ca_key = Ed25519PrivateKey.generate()
        self.ca_pem = make_ca(self.ca_key, grid_id, now_s=now_s)
        admit_key = NodeKey.generate()
        self.issuer = self.make_issuer(admit_key.node, grants=grants)
        self.admit = SandboxNode(admit_key, self.issue(admit_key, grants, at_s=now_s))

    def make_issuer(
        self, holder: str, *, grants: tuple[str, ...] = ROLES, life_s: float = INTERMEDIATE_LIFE_S
    ) -> Issuer:
        """Make an intermediate CA of its own for a node."""
        key = Ed25519PrivateKey.generate()
        certificate = make_intermediate(
            self.ca_key, self.ca_pem, key.public_key(), holder=holder, now_s=self.now_s, grants=grants, life_s=life_s
        )
        return Issuer(key, certificate)

    def issue(self, key: NodeKey, roles: tuple[str, ...], *, at_s: float) -> bytes:
        """Make a chain for a key, as PEM."""
        return self.issuer.issue(read_csr(make_csr(key)), roles, now_s=at_s)

    def make_node(self, *roles: str, at_s: float | None = None) -> SandboxNode:
        """Make a node with a new key; roles default to serve and submit."""
        key = NodeKey.generate()
        return SandboxNode(key, self.issue(key, roles or (SERVE, SUBMIT), at_s=self.now_s if at_s is None else at_s))

    def grid_time(self, now_s: float | None = None) -> GridTime:
        """Make a grid time whose system clock stands still."""
        fixed_s = self.now_s if now_s is None else now_s
        return GridTime(lambda: fixed_s)

    def trust(self, *, revocations: RevokedNames | None = None, now_s: float | None = None) -> GridTrust:
        """Make a judge of this grid's certificates."""
        return GridTrust(
            self.ca_pem, self.grid_id, revocations=revocations or NothingRevoked(), grid_time=self.grid_time(now_s)
        )
