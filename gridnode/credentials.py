"""Who this node is and whom it believes, read from the state directory.

Owns loading of key, certificate chain, CA, revocations and grid time, and replacing the chain at a renewal. Making
grids and joining them is gridnode.gridsetup's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from gridnode.errors import NotJoinedError, StateDirectoryError
from gridnode.logs import EventLog
from gridnode.statedir import StateDirectory
from transport.certificates import ADMIT, GridTrust, PeerCertificate
from transport.files import StateFileError, read_bounded, read_private, write_atomically
from transport.gridtime import GridTime
from transport.identity import NodeKey
from transport.issuing import Issuer, chain_ders
from transport.revocation import Revocations
from transport.wire import TransportError

log = EventLog("credentials")

CHAIN_MAX_BYTES: Final = 16 * 1024
RENEWAL_SHARE: Final = 2 / 3
"""Share of a certificate's life after which it is renewed."""


class GridFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What grid.json holds."""

    name: str
    grid_id: str
    bootstrap: tuple[str, ...] = ()
    """PEERID@HOST:PORT of control planes known from joining."""
    doors: tuple[str, ...] = ()
    """HOST:PORT of the join doors of the token: where a node that was away too long asks for a new certificate."""


class Credentials:
    """The node's identity and the grid's, in memory.

    Parameters
    ----------
    state : StateDirectory
        Opened, so that nobody else writes it.
    clock : callable
        The system clock, in seconds since 1970.

    Raises
    ------
    NotJoinedError
        There is no grid in the directory.
    StateDirectoryError
        A file is damaged, readable by others, or contradicts another.
    """

    def __init__(self, state: StateDirectory, *, clock: Callable[[], float]) -> None:
        self._state = state
        try:
            self.key = NodeKey.load(state.node_key)
            self.chain_pem = _read(state.certificate)
            self.ca_pem = _read(state.authority)
            self.grid = read_grid_file(state.grid)
            self.grid_time = _load_grid_time(state, clock)
            self.revocations = Revocations.load(state.revocations)
            self.trust = GridTrust(
                self.ca_pem, self.grid.grid_id, revocations=self.revocations, grid_time=self.grid_time
            )
            self.certificate = self._judge(self.chain_pem)
            self.issuer = _load_issuer(state)
        except (StateFileError, TransportError) as error:
            raise StateDirectoryError(str(error)) from error

    @property
    def node(self) -> str:
        """PeerID of this node."""
        return self.key.node

    @property
    def grid_id(self) -> str:
        """Id of the grid, 64 hex digits."""
        return self.grid.grid_id

    @property
    def chain(self) -> tuple[bytes, bytes]:
        """Leaf and intermediate as DER."""
        return chain_ders(self.chain_pem)

    @property
    def is_admit(self) -> bool:
        """Whether this node may admit others."""
        return ADMIT in self.certificate.roles and self.issuer is not None

    def renewal_due_s(self) -> float:
        """Return the grid time at which the certificate should be renewed."""
        begin_s, end_s = self.certificate.not_before_s, self.certificate.not_after_s
        return begin_s + RENEWAL_SHARE * (end_s - begin_s)

    def reload_issuer(self) -> bool:
        """Take up an intermediate that the owner has signed anew; say whether there is one. Blocks on a file read.

        A file that cannot be used is logged and the one before stays in use.
        """
        if self.issuer is None:
            return False
        try:
            found = _load_issuer(self._state)
        except (StateFileError, TransportError, StateDirectoryError) as error:
            log.error("intermediate_unreadable", error=error)
            return False
        if found is None or found.not_after_s <= self.issuer.not_after_s:
            return False
        self.issuer = found
        return True

    def replace_chain(self, chain_pem: bytes) -> None:
        """Take a renewed certificate into use and keep it. Blocks on fsync.

        Raises
        ------
        StateDirectoryError
            It is not for this node, or not good; the old one stays.
        """
        try:
            certificate = self._judge(chain_pem)
            write_atomically(self._state.certificate, chain_pem)
        except (TransportError, StateFileError) as error:
            raise StateDirectoryError(f"renewed certificate is refused: {error}") from error
        self.chain_pem, self.certificate = chain_pem, certificate

    def _judge(self, chain_pem: bytes) -> PeerCertificate:
        """Read our own certificate. An expired one is no reason to stop: the door renews it for 90 days."""
        certificate = self.trust.judge_renewal(chain_ders(chain_pem))
        if certificate.node != self.key.node:
            raise StateDirectoryError(
                f"{self._state.certificate} is for node {certificate.node}, {self._state.node_key} is the key of "
                f"{self.key.node}; restore the file that belongs to the other"
            )
        return certificate


def read_grid_file(path: Path) -> GridFile:
    """Read grid.json.

    Raises
    ------
    NotJoinedError
        There is none.
    StateDirectoryError
        It is damaged.
    """
    data = read_bounded(path, max_bytes=CHAIN_MAX_BYTES)
    if data is None:
        raise NotJoinedError(f"{path} is missing: call 'gridnode grid create NAME' or 'gridnode join TOKEN'")
    try:
        return msgspec.json.decode(data, type=GridFile)
    except msgspec.MsgspecError as error:
        raise StateDirectoryError(f"{path} is damaged: {error}; restore it or join again") from error


def _read(path: Path) -> bytes:
    data = read_bounded(path, max_bytes=CHAIN_MAX_BYTES)
    if data is None:
        raise NotJoinedError(f"{path} is missing: call 'gridnode grid create NAME' or 'gridnode join TOKEN'")
    return data


def _load_grid_time(state: StateDirectory, clock: Callable[[], float]) -> GridTime:
    """Read grid time; a damaged file is no reason to stay down, since every signed document refills it."""
    try:
        return GridTime.load(clock, state.grid_time)
    except StateFileError as error:
        log.warning("grid_time_damaged", error=error)
        return GridTime(clock, path=state.grid_time)


def _load_issuer(state: StateDirectory) -> Issuer | None:
    if not state.intermediate_key.exists():
        return None
    return Issuer.from_pem(read_private(state.intermediate_key, max_bytes=CHAIN_MAX_BYTES), _read(state.intermediate))
