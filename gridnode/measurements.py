"""Measured service times on disk, so that a restart of the daemon costs a golden run and not a measurement.

Owns the file. A measurement counts for the same model on the same set-up only.
"""

from pathlib import Path
from typing import Final

import msgspec

from gridnode.logs import EventLog
from models.profile import Profile
from transport.files import StateFileError, read_bounded, write_atomically

log = EventLog("models")

FILE_MAX_BYTES: Final = 1 << 20
"""Largest file: a measurement takes about 300 B."""


class KeptProfile(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement on disk."""

    digest: str
    setup: str
    """What else the service time depends on: processor share, threads, runtime version."""
    profile: Profile


class Measurements:
    """The measurements of one node.

    Parameters
    ----------
    path : Path
        The file. A damaged one is logged and costs measuring anew.
    setup : str
        What measurements depend on beside the model.
    """

    def __init__(self, path: Path, setup: str) -> None:
        self._path = path
        self._setup = setup
        self._kept = _load(path)

    def get(self, digest: str) -> Profile | None:
        """Return what was measured of a model on this set-up."""
        return self._kept.get((digest, self._setup))

    def has_any(self, digest: str) -> bool:
        """Say whether a model ever ran here, on this set-up or another."""
        return any(kept == digest for kept, _ in self._kept)

    def keep(self, digest: str, measured: Profile) -> None:
        """Keep a measurement. Blocks on fsync; a full disk is logged, the model is measured again after a restart."""
        self._kept[digest, self._setup] = measured
        kept = [
            KeptProfile(digest=digest, setup=setup, profile=profile)
            for (digest, setup), profile in sorted(self._kept.items(), key=lambda item: item[0])
        ]
        try:
            write_atomically(self._path, msgspec.json.format(msgspec.json.encode(kept)))
        except StateFileError as error:
            log.warning("profiles_not_saved", error=error)


def _load(path: Path) -> dict[tuple[str, str], Profile]:
    try:
        data = read_bounded(path, max_bytes=FILE_MAX_BYTES)
        kept = [] if data is None else msgspec.json.decode(data, type=list[KeptProfile])
    except (StateFileError, msgspec.MsgspecError) as error:
        log.warning("profiles_damaged", error=error)
        return {}
    return {(entry.digest, entry.setup): entry.profile for entry in kept}
