"""The state directory: who may use it, where things lie, and the boot counter.

One daemon at a time holds the lock; a second one is refused with a clear message. The boot counter is raised and
fsynced before anything is sent, because boards have no reliable clock to order their lives by.
"""

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from gridnode.errors import NotJoinedError, StateDirectoryError
from transport.files import write_atomically

PRIVATE_MODE: Final = 0o700


class StateDirectory:
    """Paths of one node's state; open() takes the lock.

    Parameters
    ----------
    path : Path
        The directory. create() makes it, readable by its owner alone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def node_key(self) -> Path:
        """The node's Ed25519 key."""
        return self.path / "node.key"

    @property
    def certificate(self) -> Path:
        """The node's certificate chain, PEM."""
        return self.path / "node.crt"

    @property
    def authority(self) -> Path:
        """The grid's CA certificate, PEM."""
        return self.path / "ca.crt"

    @property
    def admit(self) -> Path:
        """Directory of an admit node's intermediate CA and release-desk keys."""
        return self.path / "admit"

    @property
    def desk_key(self) -> Path:
        """Key of the release desk."""
        return self.admit / "desk.pem"

    @property
    def desk(self) -> Path:
        """The release desk's copy of the signed state."""
        return self.admit / "repository"

    @property
    def intermediate_key(self) -> Path:
        """Key of the intermediate CA."""
        return self.admit / "intermediate.key"

    @property
    def intermediate(self) -> Path:
        """Certificate of the intermediate CA."""
        return self.admit / "intermediate.crt"

    @property
    def inbox(self) -> Path:
        """Where the owner's tool leaves a publication for the daemon, written last and atomically."""
        return self.path / "publication.bin"

    @property
    def incoming(self) -> Path:
        """Folder where the owner's tool leaves the shards of a publication, each a file named by its SHA-256.

        The daemon moves them into its store when it takes the publication from the inbox. The tool must not write the
        store itself: one process owns it.
        """
        return self.path / "incoming"

    @property
    def invites(self) -> Path:
        """Digests of outstanding invites."""
        return self.path / "invites.json"

    @property
    def trust(self) -> Path:
        """Mirror of the grid's signed state."""
        return self.path / "trust"

    @property
    def store(self) -> Path:
        """Model files and chunks."""
        return self.path / "models"

    @property
    def graphs(self) -> Path:
        """Which graphs passed the check on this machine."""
        return self.path / "graphs.json"

    @property
    def profiles(self) -> Path:
        """Measured service times."""
        return self.path / "profiles.json"

    @property
    def cards(self) -> Path:
        """Node cards of other nodes."""
        return self.path / "cards.bin"

    @property
    def addresses(self) -> Path:
        """Address book of the control plane."""
        return self.path / "addresses.json"

    @property
    def revocations(self) -> Path:
        """The newest revocation list."""
        return self.path / "revocations.bin"

    @property
    def grid_time(self) -> Path:
        """Newest signed time seen."""
        return self.path / "gridtime"

    @property
    def grid(self) -> Path:
        """Name and id of the grid."""
        return self.path / "grid.json"

    def create(self) -> None:
        """Make the directory, for its owner alone."""
        try:
            self.path.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise StateDirectoryError(
                f"state directory {self.path} cannot be made: {error.strerror}; choose another with --state-dir"
            ) from error

    def open(self) -> None:
        """Take the lock.

        Raises
        ------
        NotJoinedError
            There is no node in this directory.
        StateDirectoryError
            Another daemon uses it, or it cannot be read.
        """
        if not self.certificate.exists() or not self.node_key.exists():
            raise NotJoinedError(
                f"{self.path} holds no node: call 'gridnode grid create NAME' for a new grid or 'gridnode join TOKEN'"
            )
        try:
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateDirectoryError(f"state directory {self.path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(descriptor, 32).decode("ascii", "replace").strip()
            os.close(descriptor)
            raise StateDirectoryError(
                f"state directory {self.path} is in use by another daemon (process {holder or 'unknown'}); "
                "stop that one or give this one its own --state-dir"
            ) from error
        # The process id is for people alone; on a full disk the lock holds all the same.
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        self._lock = descriptor

    def close(self) -> None:
        """Let go of the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def next_epoch(self, *, at_least: int = 0) -> int:
        """Raise the boot counter above ``at_least``, make it durable, and return it.

        A damaged counter cannot be trusted and cannot be guessed; it restarts from ``at_least``, and a reply that
        shows a higher epoch of ours makes the daemon call this again.
        """
        path = self.path / "epoch"
        try:
            last = int(path.read_text(encoding="ascii"))
        except (OSError, ValueError):
            last = 0
        epoch = max(last, at_least) + 1
        write_atomically(path, f"{epoch}\n".encode())
        return epoch
