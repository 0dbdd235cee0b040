"""A node's copy of the grid's signed state: pulled from peers, checked, kept, and served to others.

Owns when a newer state is believed (python-tuf's Updater decides), what stays in force when nothing newer can be had,
and the alarm when time runs out. Knows nothing of peers (each comes in as a Fetch) nor of what is done with models.
Time is an argument. Calls that read or write files say so: run them in a thread; the others are quick.

Rules. A refresh happens in a scratch folder, from one source at a time, and its result replaces the state only as a
whole; so a source that withholds a file, or sends half of a state, changes nothing. (Others kept the timestamp of a
refresh that failed later, and were led on by it: CVE-2025-2888 of tough.) Two exceptions, on purpose: a new root is
kept even if the rest fails, since a dropped key must stay dropped; and an expired state is still verified and served,
since what a device runs must not stop because its owner is on holiday. Only installing stops, and status says so.
"""

import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec

from models.deployment import DEPLOYMENT_PATH, Deployment, decode_deployment
from models.manifest import Manifest, parse_manifest
from models.metadata import (
    GRID_NAME,
    FaultKind,
    Fetch,
    SignatureError,
    SignedState,
    TrustError,
    UpdateFailedError,
    View,
    WrongGridError,
    digest_of,
    grid_id_of,
    model_path,
    verify,
)
from models.statefile import StateDirectory


class TargetMissingError(TrustError):
    """A file of the signed state that is not there, or not in the state at all. Try again after a refresh."""


class SourceFault(msgspec.Struct, frozen=True, kw_only=True):
    """Why a source was of no use."""

    source: int
    """Its place in the sequence given to refresh."""
    kind: FaultKind
    """withheld: it did not answer or does not hold a file. expired: what it has is out of date, which may be no fault
    of its. invalid: it sent what the grid's keys did not sign, or something older than held: count it against it."""
    reason: str


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What a refresh brought."""

    advanced: bool
    """Whether there is a newer state than before."""
    changed: tuple[str, ...] = ()
    """Paths of targets that are new or have other content, sorted."""
    removed: tuple[str, ...] = ()
    """Paths of targets that are no more, sorted."""
    missing: tuple[str, ...] = ()
    """Paths of targets whose files no source gave; the next refresh asks again."""
    faults: tuple[SourceFault, ...] = ()


class TrustStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where the copy stands."""

    grid_name: str
    root_version: int
    """0 before the first root."""
    targets_version: int
    timestamp_version: int
    expires_s: float
    """POSIX seconds at which the first role runs out; 0 while a role is missing."""
    expired: bool
    """Whether nothing new may be installed: raise an alarm. What is activated keeps serving."""
    damaged: tuple[str, ...]
    """Files found damaged since the start. They are fetched again; a growing list means a failing disk."""


class TrustClient:
    """The grid's signed state on one node. Reads the disk when made.

    Parameters
    ----------
    state_dir : Path
        Folder of this copy alone; made where it is missing.
    grid_id : str
        Hex SHA-256 of root version 1, as in the join token.

    Raises
    ------
    WrongGridError
        The folder is another grid's.
    StateWriteError
        The folder cannot be used.
    """

    def __init__(self, state_dir: Path, grid_id: str) -> None:
        self.grid_id = grid_id
        self._directory = StateDirectory(state_dir)
        self._refreshing = threading.Lock()
        # Replaced as a whole by refresh, so that other threads see one state or the next.
        self._view = self._directory.load(grid_id)

    # ------------------------------------------------------------ reading

    def versions(self) -> tuple[int, int]:
        """Return (root version, timestamp version), 0 for what is not held. Tuples compare as states' ages do."""
        view = self._view
        if view is None:
            return 0, 0
        return view.root.version, 0 if view.timestamp is None else view.timestamp.version

    def status(self, now_s: float) -> TrustStatus:
        """Return where the copy stands at a grid time in POSIX seconds."""
        view = self._view
        root_version, timestamp_version = self.versions()
        expires_s = 0.0 if view is None else view.expires_s
        return TrustStatus(
            grid_name="" if view is None else str(view.root.unrecognized_fields.get(GRID_NAME, "")),
            root_version=root_version,
            targets_version=0 if view is None or view.targets is None else view.targets.version,
            timestamp_version=timestamp_version,
            expires_s=expires_s,
            expired=view is None or not view.is_complete or now_s >= expires_s,
            damaged=tuple(self._directory.damaged),
        )

    @property
    def signed_time_s(self) -> float:
        """Newest time that a signer put under what is held, in POSIX seconds: a floor for grid time. 0 for none."""
        return 0.0 if self._view is None else self._view.signed_time_s

    def models(self) -> dict[str, str]:
        """Return the digest of each published model by its name, sorted."""
        return {} if self._view is None else self._view.models

    def manifest(self, name: str) -> Manifest:
        """Return a model's manifest. Reads a file.

        Raises
        ------
        TargetMissingError
            There is no such model, or its manifest has not been fetched.
        ManifestError
            The owner signed something else than a manifest.
        """
        return parse_manifest(self.target(model_path(name)))

    def deployment(self) -> Deployment:
        """Return what the owner wants to run; an empty one before the first. Reads a file.

        Raises
        ------
        TargetMissingError
            The state names one that has not been fetched.
        ManifestError
            The owner signed something else.
        """
        if self._view is None or DEPLOYMENT_PATH not in self._view.files:
            return Deployment()
        return decode_deployment(self.target(DEPLOYMENT_PATH))

    def target(self, path: str, sources: Sequence[Fetch] = ()) -> bytes:
        """Return a target file, from disk or else from the first source that has the right bytes. Blocks.

        Raises
        ------
        TargetMissingError
            The state names no such target, or no source has it.
        """
        target = None if self._view is None else self._view.files.get(path)
        if target is None:
            raise TargetMissingError(f"the signed state of grid {self.grid_id[:16]} names no target {path!r}")
        for fetch in (_nothing, *sources):
            if not self._directory.mirror({path: target}, fetch):
                data = self._directory.read_target(target)
                if data is not None:
                    return data
        raise TargetMissingError(f"no peer has target {path!r} ({target.length} bytes); refresh again later")

    def file(self, path: str) -> bytes | None:
        """Return what another node asks for, ``metadata/...`` or ``targets/...``; None where it is not held.

        Reads a file of at most 1 MiB for targets; metadata come from memory.
        """
        return self._directory.serve(self._view, path)

    # ------------------------------------------------------------ refreshing

    def bootstrap(self, root: bytes) -> None:
        """Start from root version 1; without effect where a root is held. Writes files.

        Raises
        ------
        WrongGridError
            The root's hash is not the grid's id.
        SignatureError
            It is no root.
        StateWriteError
            The disk's fault.
        """
        if self._view is None:
            view = verify(SignedState(roots=(root,)), self.grid_id)
            self._directory.commit(view.state)
            self._view = view

    def refresh(self, sources: Sequence[Fetch], now_s: float) -> Changes:
        """Look for a newer state, one source after the other, until one has it. Blocks; one at a time.

        Parameters
        ----------
        sources : sequence of Fetch
            Peers in the order they are to be asked. Ask several: a single one can hide news until its timestamp
            expires.
        now_s : float
            POSIX seconds of grid time.

        Returns
        -------
        Changes
            Faults of sources are in it; none of them raises.

        Raises
        ------
        StateWriteError
            The disk's fault; the state before is still in force.
        """
        with self._refreshing:
            before = self._view
            faults: list[SourceFault] = []
            for number, fetch in enumerate(sources):
                fault = self._refresh_from(number, fetch, now_s)
                if fault is not None:
                    faults.append(fault)
                elif self._view is not before:
                    break
            return self._finish(before, sources, tuple(faults))

    def _refresh_from(self, number: int, fetch: Fetch, now_s: float) -> SourceFault | None:
        """Take one source's state if it is valid and newer; return what was wrong with it."""
        try:
            if self._view is None:
                self._bootstrap_from(fetch)
            assert self._view is not None
            if _has_the_same(self._view, fetch, now_s):
                return None
            # Its fetcher for the web, which we replace, draws in 60 modules; most nodes never hear news in their life.
            from models.tufclient import update

            self._take(update(self._view.state, fetch, now_s, self._directory.path))
        except UpdateFailedError as error:
            self._take(error.state)
            return SourceFault(source=number, kind=error.kind, reason=str(error))
        except (SignatureError, WrongGridError) as error:
            return SourceFault(source=number, kind="invalid", reason=str(error))
        except TargetMissingError as error:
            return SourceFault(source=number, kind="withheld", reason=str(error))
        return None

    def _bootstrap_from(self, fetch: Fetch) -> None:
        """Get root version 1 from a source."""
        root = fetch("metadata/1.root.json")
        if root is None:
            raise TargetMissingError("the source holds no root")
        if grid_id_of(root) != self.grid_id:
            raise WrongGridError(f"the source is of grid {grid_id_of(root)[:16]}, this node of {self.grid_id[:16]}")
        self.bootstrap(root)

    def _take(self, state: SignedState) -> None:
        """Make a state the one in force, if it is another."""
        if self._view is not None and state != self._view.state:
            view = verify(state, self.grid_id)
            self._directory.commit(state)
            self._view = view

    def _finish(self, before: View | None, sources: Sequence[Fetch], faults: tuple[SourceFault, ...]) -> Changes:
        """Mirror the target files and say what changed."""
        old, new = {} if before is None else before.files, {} if self._view is None else self._view.files
        missing: tuple[str, ...] = tuple(new)
        for fetch in (_nothing, *sources):
            missing = self._directory.mirror({path: new[path] for path in missing}, fetch) if missing else ()
        if not missing:
            self._directory.keep_targets(new.values())
        return Changes(
            advanced=self._view is not before,
            changed=tuple(
                sorted(path for path in new if path not in old or digest_of(old[path]) != digest_of(new[path]))
            ),
            removed=tuple(sorted(path for path in old if path not in new)),
            missing=missing,
            faults=faults,
        )


def _has_the_same(view: View, fetch: Fetch, now_s: float) -> bool:
    """Say whether a source holds, to the last byte, the state that was verified here and is still good.

    Asks what tuf would ask first: the next root, and the timestamp, which pins all that is below. Whatever differs, or
    is over, is for tuf to judge.
    """
    if not view.is_complete or now_s >= view.expires_s:
        return False
    return (
        fetch(f"metadata/{view.root.version + 1}.root.json") is None
        and fetch("metadata/timestamp.json") == view.state.timestamp
    )


def _nothing(path: str) -> bytes | None:
    """Stand for no source: what is not on disk is missing."""
    return None
