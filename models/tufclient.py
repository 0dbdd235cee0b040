"""One refresh from one source by python-tuf, in a scratch folder.

Owns all dealings with tuf's client: its layout of files, its fetcher, its clock, its errors. Bytes of a state go in,
bytes of a newer one come out or a reason why not; nothing else is touched. models.trust keeps what comes out.
"""

import os
import tempfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Final

import msgspec
from tuf.api.exceptions import (
    DownloadError,
    DownloadHTTPError,
    DownloadLengthMismatchError,
    ExpiredMetadataError,
    RepositoryError,
)
from tuf.ngclient import (  # type: ignore[attr-defined]  # exported without __all__ that mypy could read
    FetcherInterface,
    Updater,
    UpdaterConfig,
)

from models.metadata import (
    ROOT_MAX_BYTES,
    ROOTS_MAX,
    SNAPSHOT_MAX_BYTES,
    TARGETS_MAX_BYTES,
    TIMESTAMP_MAX_BYTES,
    FaultKind,
    Fetch,
    SignedState,
    UpdateFailedError,
    utc,
)
from models.statefile import SCRATCH_PREFIX, StateWriteError

_CONFIG: Final = UpdaterConfig(
    max_root_rotations=ROOTS_MAX,
    max_delegations=1,  # we make no delegations and follow none
    root_max_length=ROOT_MAX_BYTES,
    timestamp_max_length=TIMESTAMP_MAX_BYTES,
    snapshot_max_length=SNAPSHOT_MAX_BYTES,
    targets_max_length=TARGETS_MAX_BYTES,
)
_ROLES: Final = ("targets", "snapshot", "timestamp")


class _SourceFetcher(FetcherInterface):
    """Lets tuf read from a source; tuf bounds the lengths."""

    def __init__(self, fetch: Fetch) -> None:
        self._source = fetch

    def _fetch(self, url: str) -> Iterator[bytes]:
        data = self._source(url)
        if data is None:
            # tuf takes 404 for a root as "this was the last one", and for any other file as a failure.
            raise DownloadHTTPError(f"the source holds no {url}", 404)
        return iter((data,))


class _GridUpdater(Updater):
    """tuf's client, judging expiry by grid time.

    Boards have no clock, so time must come from us. tuf reads the system's clock once, in the constructor, before
    anything is judged by it; the attribute has no public name (tuf 7.0.1). A test refreshes at times far from the
    system's, so an upgrade that moves the attribute is noticed.
    """

    def __init__(self, metadata_dir: Path, fetch: Fetch, now: datetime, *, root: bytes) -> None:
        super().__init__(str(metadata_dir), "metadata/", fetcher=_SourceFetcher(fetch), config=_CONFIG, bootstrap=root)
        assert isinstance(self._trusted_set.reference_time, datetime)
        self._trusted_set.reference_time = now


def update(state: SignedState, fetch: Fetch, now_s: float, folder: Path) -> SignedState:
    """Return a source's state after tuf has found it valid and not older.

    Raises
    ------
    UpdateFailedError
        It was not; carries the state with the new roots, which are valid in themselves.
    StateWriteError
        The disk's fault.
    """
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=SCRATCH_PREFIX) as name:
            scratch = Path(name)
            _unpack(state, scratch)
            try:
                _GridUpdater(scratch, fetch, utc(now_s), root=state.roots[0]).refresh()
            except (RepositoryError, DownloadError) as error:
                roots = _read_roots(scratch)
                raise UpdateFailedError(
                    f"{type(error).__name__}: {error}",
                    kind=_kind(error),
                    state=msgspec.structs.replace(state, roots=roots),
                ) from error
            return _pack(scratch)
    except OSError as error:
        raise StateWriteError(f"refresh failed on the disk at {folder}: {error}") from error


def _kind(error: Exception) -> FaultKind:
    """Say whose fault a failed refresh is."""
    if isinstance(error, ExpiredMetadataError):
        return "expired"
    too_long = isinstance(error, DownloadLengthMismatchError)
    return "withheld" if isinstance(error, DownloadError) and not too_long else "invalid"


def _unpack(state: SignedState, scratch: Path) -> None:
    """Write a state in the layout of tuf's client."""
    history = scratch / "root_history"
    history.mkdir()
    for version, data in enumerate(state.roots, start=1):
        (history / f"{version}.root.json").write_bytes(data)
    for role, held in zip(_ROLES, (state.targets, state.snapshot, state.timestamp), strict=True):
        if held is not None:
            (scratch / f"{role}.json").write_bytes(held)


def _read_roots(scratch: Path) -> tuple[bytes, ...]:
    """Read the roots, of which tuf has checked each that it wrote."""
    history = scratch / "root_history"
    return tuple((history / f"{version + 1}.root.json").read_bytes() for version in range(len(os.listdir(history))))


def _pack(scratch: Path) -> SignedState:
    """Read a state back after a refresh that succeeded."""
    targets, snapshot, timestamp = ((scratch / f"{role}.json").read_bytes() for role in _ROLES)
    return SignedState(roots=_read_roots(scratch), targets=targets, snapshot=snapshot, timestamp=timestamp)
