"""The grid's signed state on disk: one file per state, and the target files by their digest.

Owns a folder:

    state-000000000007.bin    SHA-256 of the rest, then the MessagePack of a SignedState
    targets/<sha256>          a target file

A state is one file, so that a crash leaves the old state or the new one and never new targets under an old snapshot.
The one before is kept in case the newest rots; a damaged file is named, never believed, never a crash. Nobody else
may write to the folder. Knows nothing of keys, peers and time. All calls block: run them in a thread.
"""

import contextlib
import hashlib
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

import msgspec
from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]  # exported without __all__

from models.durable import remove_partial, write_durably
from models.metadata import (
    MIRROR_MAX_BYTES,
    ROOT_MAX_BYTES,
    ROOTS_MAX,
    TARGET_MAX_BYTES,
    TARGETS_MAX_BYTES,
    Fetch,
    SignedState,
    TrustError,
    View,
    check_file,
    check_path,
    digest_of,
    metadata_file,
    verify,
)

SCRATCH_PREFIX: Final = ".refresh-"
"""Start of the names of folders that may be removed at any start."""
_STATES_KEPT: Final = 2
_DIGEST_BYTES: Final = 32
_STATE_MAX_BYTES: Final = ROOTS_MAX * ROOT_MAX_BYTES + 2 * TARGETS_MAX_BYTES
_DECODER: Final = msgspec.msgpack.Decoder(SignedState)
_ENCODER: Final = msgspec.msgpack.Encoder()


class StateWriteError(TrustError):
    """The state could not be put on disk. The machine's fault: no space, no permission, a broken disk."""


class StateDirectory:
    """States and target files of one grid in one folder.

    Parameters
    ----------
    path : Path
        The folder; made with mode 0700 where it is missing. Unfinished files of a killed process are removed.

    Raises
    ------
    StateWriteError
        The folder cannot be made.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damaged: list[str] = []
        """Names of files found damaged since the start, newest last; at most 64."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._targets.mkdir(mode=0o700, exist_ok=True)
            remove_partial(path)
            remove_partial(self._targets)
            for scratch in path.glob(f"{SCRATCH_PREFIX}*"):
                shutil.rmtree(scratch)
        except OSError as error:
            raise StateWriteError(f"state folder {path} cannot be used: {error.strerror}") from error

    @property
    def _targets(self) -> Path:
        return self.path / "targets"

    # ------------------------------------------------------------ states

    def load(self, grid_id: str) -> View | None:
        """Return the newest state that is undamaged and of this grid, None where there is none.

        Raises
        ------
        WrongGridError
            The newest undamaged state is of another grid: the folder is the wrong one.
        """
        for path in reversed(self._states()):
            state = self._read_state(path)
            if state is not None:
                return verify(state, grid_id)
        return None

    def commit(self, state: SignedState) -> None:
        """Make a state the newest, durably; the caller has checked it. Raises StateWriteError."""
        states = self._states()
        number = int(states[-1].stem.removeprefix("state-")) + 1 if states else 1
        body = _ENCODER.encode(state)
        try:
            write_durably(self.path / f"state-{number:012d}.bin", hashlib.sha256(body).digest() + body)
            for path in states[: len(states) + 1 - _STATES_KEPT]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise StateWriteError(f"signed state cannot be written to {self.path}: {error.strerror}") from error

    def _states(self) -> list[Path]:
        """Return the state files, oldest first."""
        return sorted(path for path in self.path.glob("state-*.bin") if path.stem.removeprefix("state-").isdecimal())

    def _read_state(self, path: Path) -> SignedState | None:
        """Return a state as it was written, None (and its name in damaged) for anything else."""
        try:
            if path.stat().st_size > _STATE_MAX_BYTES:
                raise ValueError(f"more than {_STATE_MAX_BYTES} bytes")
            data = path.read_bytes()
            if hashlib.sha256(data[_DIGEST_BYTES:]).digest() != data[:_DIGEST_BYTES]:
                raise ValueError("checksum differs")
            return _DECODER.decode(data[_DIGEST_BYTES:])
        except (OSError, ValueError, msgspec.MsgspecError):
            self._report(path)
            return None

    # ------------------------------------------------------------ target files

    def put_target(self, data: bytes) -> str:
        """Store a target file and return its hex SHA-256; raises StateWriteError."""
        digest = hashlib.sha256(data).hexdigest()
        try:
            write_durably(self._targets / digest, data)
        except OSError as error:
            raise StateWriteError(f"target cannot be written to {self._targets}: {error.strerror}") from error
        return digest

    def read_target(self, target: TargetFile) -> bytes | None:
        """Return a target file, None where it is missing or damaged (a damaged one is removed, to be fetched anew)."""
        digest = digest_of(target)
        if target.length > TARGET_MAX_BYTES or len(digest) != 64 or not digest.isalnum():
            return None
        path = self._targets / digest
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if check_file(target, data):
            return data
        self._report(path)
        _remove(path)
        return None

    def mirror(self, files: Mapping[str, TargetFile], fetch: Fetch) -> tuple[str, ...]:
        """Fetch the target files that are missing here and return the paths of those that still are.

        Raises
        ------
        StateWriteError
            The disk's fault. The source's faults only leave files missing.
        """
        missing: list[str] = []
        room = MIRROR_MAX_BYTES
        for path, target in sorted(files.items()):
            room -= target.length
            if room < 0 or (self.read_target(target) is None and not self._fetch_target(path, target, fetch)):
                missing.append(path)
        return tuple(missing)

    def _fetch_target(self, path: str, target: TargetFile, fetch: Fetch) -> bool:
        """Fetch one target file; say whether it is here now."""
        try:
            check_path(path)
        except ValueError:
            return False
        if target.length > TARGET_MAX_BYTES:
            return False
        data = fetch(f"targets/{path}")
        if data is None or not check_file(target, data):
            return False
        self.put_target(data)
        return True

    def keep_targets(self, files: Iterable[TargetFile]) -> None:
        """Remove target files that none of these is."""
        kept = {digest_of(target) for target in files}
        for path in self._targets.iterdir():
            if path.name not in kept:
                _remove(path)

    def serve(self, view: View | None, path: str) -> bytes | None:
        """Return a file by its repository path, ``metadata/...`` or ``targets/...``; None for what is not held.

        Never touches a file that the state does not name, whatever the path says.
        """
        if view is None:
            return None
        kind, _, rest = path.partition("/")
        if kind == "metadata":
            return metadata_file(view.state, rest)
        target = view.files.get(rest) if kind == "targets" else None
        return None if target is None else self.read_target(target)

    def _report(self, path: Path) -> None:
        """Remember the name of a damaged file."""
        self.damaged = [*self.damaged[-63:], path.name]


def _remove(path: Path) -> None:
    """Remove a file that nobody reads any more; on a disk that became read-only it stays, and does no harm."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
