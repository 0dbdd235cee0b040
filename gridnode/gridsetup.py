"""Makes grids: the owner's keys and CA, the first signed state, and the first node with its powers to admit others.

The owner's folder holds what can be taken offline: the keys of root and targets (models.owner) and the CA key. The
node's state directory holds what an admit node needs online: an intermediate CA and the key of the release desk.
All calls block.
"""

from pathlib import Path

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gridnode.credentials import GridFile
from gridnode.errors import StateDirectoryError
from gridnode.statedir import StateDirectory
from models.desk import ReleaseDesk
from models.keys import create_key
from models.manifest import ModelError
from models.owner import OwnerRepository
from models.trust import TrustClient
from transport.certificates import ROLES
from transport.files import StateFileError, create_exclusively, read_private, write_atomically
from transport.identity import NodeKey
from transport.issuing import Issuer, make_ca, make_intermediate
from transport.wire import TransportError

CA_KEY_NAME = "ca.pem"
CA_TARGET = "ca.pem"
REPOSITORY_NAME = "repository"
_KEY_MAX_BYTES = 4096


def create_grid(state: StateDirectory, owner_dir: Path, name: str, *, now_s: float) -> str:
    """Make a grid with this node as its first member, with all roles.

    Parameters
    ----------
    state : StateDirectory
        Of the node; must hold no node yet.
    owner_dir : Path
        For the owner's keys; made with mode 0700.
    name : str
        What people call the grid.
    now_s : float
        Seconds since 1970.

    Returns
    -------
    str
        The grid's id.

    Raises
    ------
    StateDirectoryError
        There is a node or an owner already, or a file cannot be written.
    """
    if state.node_key.exists() or state.grid.exists():
        raise StateDirectoryError(f"{state.path} holds a node already; choose another --state-dir or remove it")
    try:
        state.create()
        state.admit.mkdir(mode=0o700, exist_ok=True)
        desk_key = create_key(state.desk_key)
        owner = OwnerRepository.create(
            owner_dir, owner_dir / REPOSITORY_NAME, name, now_s, desk_keys=[desk_key.public_key]
        )
        ca_pem = _create_authority(owner_dir, owner, now_s)
        key = NodeKey.create(state.node_key)
        issuer = _create_issuer(state, owner_dir, ca_pem, holder=key.node, now_s=now_s)
        chain_pem = issuer.issue(key.private.public_key(), ROLES, now_s=now_s)
        desk = ReleaseDesk(state.desk, desk_key, owner.grid_id)
        desk.accept(owner.publication(), now_s)
        trust = TrustClient(state.trust, owner.grid_id)
        trust.bootstrap(owner.root_bytes)
        trust.refresh([desk.file], now_s)
        write_atomically(state.authority, ca_pem)
        write_atomically(state.certificate, chain_pem)
        write_grid_file(state, GridFile(name=name, grid_id=owner.grid_id))
    except (ModelError, StateFileError, TransportError, ValueError, OSError) as error:
        if not state.node_key.exists():
            state.desk_key.unlink(missing_ok=True)  # the first file made: with it a second try would be refused
        raise StateDirectoryError(f"grid {name!r} could not be made: {error}") from error
    return owner.grid_id


def write_grid_file(state: StateDirectory, grid: GridFile) -> None:
    """Write grid.json; the last step of creating and joining, so that a half-made node is not taken for one."""
    write_atomically(state.grid, msgspec.json.format(msgspec.json.encode(grid)))


def renew_intermediate(state: StateDirectory, owner_dir: Path, *, now_s: float) -> float:
    """Sign an admit node's intermediate CA for another INTERMEDIATE_LIFE_S; a daemon on it takes it up within a minute.

    Its key stays, so that one file changes and a power cut cannot part key and certificate.

    Returns
    -------
    float
        When the new one ends, in seconds since 1970.

    Raises
    ------
    StateDirectoryError
        The node is no admit node, a key is missing, or a file cannot be written.
    """
    if not state.intermediate_key.exists():
        raise StateDirectoryError(f"the node in {state.path} has no role 'admit'; renew on the node that made the grid")
    try:
        key = _load_key(state.intermediate_key, "the node's admit key")
        holder = NodeKey.load(state.node_key).node
        ca_pem = (owner_dir / "ca.crt").read_bytes()
        certificate = make_intermediate(load_ca_key(owner_dir), ca_pem, key.public_key(), holder=holder, now_s=now_s)
        write_atomically(state.intermediate, certificate)
    except (StateFileError, TransportError, ValueError, OSError) as error:
        raise StateDirectoryError(f"the admit certificate was not renewed: {error}") from error
    return Issuer(key, certificate).not_after_s


def load_ca_key(owner_dir: Path) -> Ed25519PrivateKey:
    """Read the owner's CA key; raises StateDirectoryError."""
    return _load_key(owner_dir / CA_KEY_NAME, "the owner's CA key")


def _load_key(path: Path, what: str) -> Ed25519PrivateKey:
    try:
        key = serialization.load_pem_private_key(read_private(path, max_bytes=_KEY_MAX_BYTES), password=None)
    except (StateFileError, ValueError, TypeError) as error:
        raise StateDirectoryError(f"{what} cannot be read: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise StateDirectoryError(f"{path} is no Ed25519 key")
    return key


def _create_authority(owner_dir: Path, owner: OwnerRepository, now_s: float) -> bytes:
    """Make the CA and put its certificate into the signed state."""
    ca_key = Ed25519PrivateKey.generate()
    create_exclusively(owner_dir / CA_KEY_NAME, _private_pem(ca_key))
    ca_pem = make_ca(ca_key, owner.grid_id, now_s=now_s)
    write_atomically(owner_dir / "ca.crt", ca_pem, mode=0o644)
    owner.set_target(CA_TARGET, ca_pem, now_s)
    return ca_pem


def _create_issuer(state: StateDirectory, owner_dir: Path, ca_pem: bytes, *, holder: str, now_s: float) -> Issuer:
    """Make an admit node's intermediate CA, with a key of its own."""
    key = Ed25519PrivateKey.generate()
    certificate = make_intermediate(load_ca_key(owner_dir), ca_pem, key.public_key(), holder=holder, now_s=now_s)
    write_atomically(state.intermediate_key, _private_pem(key))
    write_atomically(state.intermediate, certificate)
    return Issuer(key, certificate)


def _private_pem(key: Ed25519PrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
