"""The release desk: the online keys that say which owner-signed state is the newest.

Owns signing of timestamp and snapshot, and the check of what owners hand in. A node with role ``admit`` runs one. Its
key can say "this is the newest" for a fortnight; it cannot make or change a target, and an owner who drops it in a new
root takes back whatever it signed. Knows nothing of peers (they come in as a Fetch). Time is an argument. All calls
block: run them in a thread; threads may share a desk.

Several desks may serve one grid. The version of what they sign is the time of signing in POSIX seconds, or one more
than the last where that is larger: so the newest signature wins without a word between desks, and a desk that lost
its disk, or whose neighbour's key was stolen to run versions up and then dropped, goes on above all that nodes hold.
A desk calls pull for its peers before it refreshes: it takes over newer owner-signed state whatever timestamps say.
"""

import threading
from pathlib import Path
from typing import Final

import msgspec
from securesystemslib.signer import CryptoSigner  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.metadata import (  # type: ignore[attr-defined]  # exported without __all__
    MetaFile,
    Root,
    Snapshot,
    Targets,
    Timestamp,
)

from models.metadata import (
    ROOT_MAX_BYTES,
    SIGNED_AT,
    SNAPSHOT_MAX_BYTES,
    TARGETS_MAX_BYTES,
    TIMESTAMP_MAX_BYTES,
    ExpiredStateError,
    Fetch,
    Publication,
    SignatureError,
    SignedState,
    TrustError,
    View,
    check_file,
    decode_publication,
    follow_roots,
    pull_newer,
    read_role,
    same_content,
    sign,
    signed_at_s,
    utc,
    verify,
)
from models.statefile import StateDirectory

DESK_LIFETIME_S: Final = 14 * 86_400.0
"""How long a signature of the desk holds: how long a thief of its key can hide news from a node."""
_RENEWAL_SHARE: Final = 2 / 3
"""Share of the lifetime after which the desk signs anew; the rest is for nodes that are away."""


class NotAuthorisedError(TrustError):
    """The desk's key is not in the newest root. The owner adds it with rotate_keys."""


class ReleaseDesk:
    """One desk with its copy of the state.

    Parameters
    ----------
    repo_dir : Path
        Folder of the copy, of this desk alone.
    key : CryptoSigner
        The desk's private key (models.keys).
    grid_id : str
        Hex SHA-256 of root version 1.
    lifetime_s : float
        How long its signatures hold, in seconds.

    Raises
    ------
    WrongGridError
        The folder is another grid's.
    """

    def __init__(self, repo_dir: Path, key: CryptoSigner, grid_id: str, *, lifetime_s: float = DESK_LIFETIME_S) -> None:
        self._directory = StateDirectory(repo_dir)
        self._key = key
        self._grid_id = grid_id
        self._lifetime_s = lifetime_s
        self._changing = threading.RLock()
        """Held for every change of the copy, never while a source is asked: an owner must not wait for a slow peer."""
        self._view = self._directory.load(grid_id)

    @property
    def view(self) -> View | None:
        """The desk's copy, checked; None before the first publication."""
        return self._view

    def accept(self, publication: bytes, now_s: float) -> bool:
        """Take what an owner sends, if it is the owner's and newer, and sign it as the newest.

        Parameters
        ----------
        publication : bytes
            As OwnerRepository.publication gives it.
        now_s : float
            POSIX seconds of grid time.

        Returns
        -------
        bool
            Whether anything is new. Sending the same twice is fine.

        Raises
        ------
        WrongGridError, SignatureError, ExpiredStateError
            The sender's fault; nothing changed here. The message says which version is held.
        NotAuthorisedError
            It was taken over, but this desk may not sign it.
        """
        sent = decode_publication(publication)
        with self._changing:
            return self._accept(sent, now_s)

    def _accept(self, sent: Publication, now_s: float) -> bool:
        held = SignedState(roots=sent.roots[:1]) if self._view is None else self._view.state
        targets = self._check_publication(sent, held, now_s)
        for path in targets.targets:
            self._directory.put_target(sent.files[path])
        # What is held already stays as it is spelled: its hashes are signed.
        roots = (*held.roots, *sent.roots[len(held.roots) :])
        kept = held.targets if same_content(sent.targets, held.targets, Targets, TARGETS_MAX_BYTES) else sent.targets
        changed = self._take(msgspec.structs.replace(held, roots=roots, targets=kept))
        self.refresh(now_s)
        return changed

    def pull(self, fetch: Fetch) -> bool:
        """Take over what a source (a peer) has newer; say whether there was anything.

        What another thread took meanwhile is newer than what is compared here: then nothing is taken over, and the
        next call compares anew.

        Raises
        ------
        SignatureError
            The source's fault; nothing was taken from it. Before the first publication there is nothing to compare
            with, so a source must also hold root 1.
        """
        begun = view = self._view
        if view is None:
            first = fetch("metadata/1.root.json")
            if first is None:
                return False
            view = verify(SignedState(roots=(first,)), self._grid_id)
        state = pull_newer(view, fetch)
        newer = verify(state, self._grid_id)
        missing = self._directory.mirror(newer.files, fetch)
        if missing:
            raise SignatureError(f"the source holds no {missing[0]!r} ({len(missing)} targets missing); try another")
        found = _newer_signatures(newer, fetch)
        with self._changing:
            return self._view is begun and self._take(found)

    def refresh(self, now_s: float) -> bool:
        """Sign snapshot and timestamp where targets changed or 2/3 of their life is over; say whether it signed.

        Raises
        ------
        NotAuthorisedError
            This desk's key is not in the newest root; nothing was signed.
        """
        with self._changing:
            return self._refresh(now_s)

    def _refresh(self, now_s: float) -> bool:
        view = self._view
        if view is None or view.targets is None or not self.is_due(now_s):
            return False
        if self._key.public_key.keyid not in view.root.roles["timestamp"].keyids:
            raise NotAuthorisedError(
                f"desk key {self._key.public_key.keyid[:16]} is not in root {view.root.version}; "
                "let the owner add it to the grid's desks"
            )
        self._take(self._signed(view, now_s))
        return True

    def is_due(self, now_s: float) -> bool:
        """Say whether refresh would sign."""
        view = self._view
        if view is None or view.targets is None:
            return False
        return not view.is_complete or now_s >= self.next_refresh_s()

    def next_refresh_s(self) -> float:
        """Return when to sign anew, in POSIX seconds: at 2/3 of the life of what is signed; 0 where nothing is."""
        view = self._view
        if view is None or view.timestamp is None or view.snapshot is None:
            return 0.0
        return min(_renewal_s(view.timestamp), _renewal_s(view.snapshot))

    def file(self, path: str) -> bytes | None:
        """Return a file of the copy by its repository path: the desk is a source like any peer."""
        return self._directory.serve(self._view, path)

    def _check_publication(self, sent: Publication, held: SignedState, now_s: float) -> Targets:
        """Return a publication's targets if all of it is the owner's, newer than what is held, and complete."""
        root = follow_roots(sent.roots, self._grid_id)
        if len(sent.roots) < len(held.roots):
            raise SignatureError(f"root {len(held.roots)} is held, root {len(sent.roots)} was sent; pull, then publish")
        if not all(same_content(*pair, Root, ROOT_MAX_BYTES) for pair in zip(held.roots, sent.roots, strict=False)):
            raise SignatureError("the publication's roots differ from those held; pull the newest state, then publish")
        targets = read_role(sent.targets, Targets, root, TARGETS_MAX_BYTES)
        for what, role in (("root", root), ("targets", targets)):
            if role.is_expired(utc(now_s)):
                raise ExpiredStateError(f"{what} version {role.version} expired at {role.expires}; sign anew")
        present = self._view.targets if self._view else None
        is_same = same_content(sent.targets, held.targets, Targets, TARGETS_MAX_BYTES)
        if present is not None and targets.version <= present.version and not is_same:
            raise SignatureError(
                f"targets version {present.version} is held, version {targets.version} was sent with other content; "
                "pull the newest state, then publish again"
            )
        for path, target in targets.targets.items():
            if not check_file(target, sent.files.get(path, b"")):
                raise SignatureError(f"the publication's file {path!r} is missing or not the one that targets name")
        return targets

    def _signed(self, view: View, now_s: float) -> SignedState:
        """Sign a snapshot and a timestamp of a state's targets, in the next versions."""
        assert view.targets is not None
        assert view.state.targets is not None
        expires, fields = utc(now_s + self._lifetime_s), {SIGNED_AT: int(now_s)}
        held = view.timestamp
        meta = MetaFile.from_data(view.targets.version, view.state.targets, ["sha256"])
        snapshot = Snapshot(
            version=max(int(now_s), 1 if held is None else held.snapshot_meta.version + 1),
            expires=expires,
            meta={"targets.json": meta},
            unrecognized_fields=dict(fields),
        )
        data = sign(snapshot, [self._key])
        timestamp = Timestamp(
            version=max(int(now_s), 1 if held is None else held.version + 1),
            expires=expires,
            snapshot_meta=MetaFile.from_data(snapshot.version, data, ["sha256"]),
            unrecognized_fields=dict(fields),
        )
        return msgspec.structs.replace(view.state, snapshot=data, timestamp=sign(timestamp, [self._key]))

    def _take(self, state: SignedState) -> bool:
        """Commit a checked state; say whether it differs from the one held."""
        if self._view is not None and self._view.state == state:
            return False
        view = verify(state, self._grid_id)
        self._directory.commit(state)
        self._view = view
        self._directory.keep_targets(view.files.values())
        return True


def _renewal_s(role: Timestamp | Snapshot) -> float:
    """Return when 2/3 of a signature's life is over; without a known start, when it ends less a day."""
    expires_s, signed_s = role.expires.timestamp(), signed_at_s(role)
    return signed_s + _RENEWAL_SHARE * (expires_s - signed_s) if 0 < signed_s < expires_s else expires_s - 86_400.0


def _newer_signatures(view: View, fetch: Fetch) -> SignedState:
    """Take a source's timestamp and snapshot where they are newer and speak of no targets newer than ours.

    They may speak of older targets: then the state is incomplete, and the desk signs the next version after them.
    """
    timestamp, snapshot = fetch("metadata/timestamp.json"), fetch("metadata/snapshot.json")
    if timestamp is None or snapshot is None:
        return view.state
    try:
        new = read_role(timestamp, Timestamp, view.root, TIMESTAMP_MAX_BYTES)
        meta = read_role(snapshot, Snapshot, view.root, SNAPSHOT_MAX_BYTES).meta.get("targets.json")
    except SignatureError:
        # A peer that has not seen the newest root yet holds signatures of a desk that is gone: no fault of its.
        return view.state
    held, targets = view.timestamp, view.targets
    if held is not None and (new.version <= held.version or new.snapshot_meta.version < held.snapshot_meta.version):
        return view.state
    if meta is None or targets is None or meta.version > targets.version:
        return view.state
    return msgspec.structs.replace(view.state, timestamp=timestamp, snapshot=snapshot)
