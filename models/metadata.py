"""The signed state of a grid as bytes in memory, and the rules by which one state may follow another. Pure.

Owns the records that go to disk and over the wire (SignedState, Publication), their bounds, and the checks shared by
the owner's tool, the release desk and every node: chain of roots, thresholds of signatures, versions that only grow.
It is the place where errors of python-tuf become ours. Knows nothing of files and peers; time is an argument.

The state is a TUF repository (specification 1.0, https://theupdateframework.github.io/specification/) without
consistent snapshots: metadata has one name each and only roots keep their history. Consistent snapshots protect
readers of a repository that changes under their hands; our readers pull a handful of small files from a peer that
switches states at once, and a reader that hits the switch tries again. In return every path is a plain name.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta
from securesystemslib.signer import Signer  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import (  # type: ignore[attr-defined]  # tuf exports these names without __all__
    Metadata,
    Root,
    Signed,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from models.manifest import ModelError

Fetch = Callable[[str], bytes | None]
"""Asks one source (a peer, the desk) for a file by its repository path, ``metadata/...`` or ``targets/...``; None
where the source has none or does not answer. May block; bounds what it returns; raises nothing but cancellation."""

ROOT_MAX_BYTES: Final = 64 * 1024
"""Largest root: 2.8 kB with six keys, so this is generous."""
TIMESTAMP_MAX_BYTES: Final = 8 * 1024
SNAPSHOT_MAX_BYTES: Final = 8 * 1024
TARGETS_MAX_BYTES: Final = 512 * 1024
"""Largest list of targets: about 2500 of 200 B."""
TARGET_MAX_BYTES: Final = 1 << 20
"""Largest target. A manifest is the longest kind and has the same bound."""
MIRROR_MAX_BYTES: Final = 48 << 20
"""Most bytes of targets that a node mirrors, and of a publication: it travels as one payload of at most 64 MiB."""
ROOTS_MAX: Final = 256
"""Roots of a grid's life: yearly renewal and a rotation a month for 20 years."""

SIGNED_AT: Final = "x-gridnode-signed-at"
"""Field of all our metadata: POSIX seconds at which it was signed, by the signer's clock."""
GRID_NAME: Final = "x-gridnode-name"
"""Field of the root: what people call the grid."""

PATH_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*"
_PATH: Final = re.compile(PATH_PATTERN)
_PATH_MAX: Final = 200

S = TypeVar("S", Root, Timestamp, Snapshot, Targets)


class TrustError(ModelError):
    """Root of the errors of the grid's signed state."""


class SignatureError(TrustError):
    """Metadata that is malformed, too long, signed by too few keys, or older than what is held. Its sender's fault."""


class WrongGridError(TrustError):
    """A root that is not, or does not descend from, the one whose hash is the grid's id."""


class ExpiredStateError(TrustError):
    """Metadata whose time is over. The owner or the release desk must sign anew."""


class SignedState(msgspec.Struct, frozen=True, kw_only=True):
    """All metadata of a grid at one moment, as the bytes that were signed."""

    roots: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=ROOTS_MAX)]
    """Versions 1, 2, ... without gap; the first one's hash is the grid's id."""
    targets: bytes | None = None
    snapshot: bytes | None = None
    timestamp: bytes | None = None


FaultKind = Literal["withheld", "expired", "invalid"]


class UpdateFailedError(Exception):
    """A source's state was not taken; ``state`` is the old one with what new roots it brought."""

    def __init__(self, reason: str, *, kind: FaultKind, state: SignedState) -> None:
        super().__init__(reason)
        self.kind = kind
        self.state = state


class Publication(msgspec.Struct, frozen=True, kw_only=True):
    """What the owner hands to a release desk: roots, targets, and the files that targets name."""

    roots: Annotated[tuple[bytes, ...], Meta(min_length=1, max_length=ROOTS_MAX)]
    targets: bytes
    files: dict[str, bytes]
    """By target path, without ``targets/``."""


class View:
    """A checked state: metadata that is missing or not signed under the newest root is None.

    Parameters
    ----------
    state : SignedState
        The bytes.
    root : Root
        The newest root.
    targets, snapshot, timestamp : Metadata payloads or None
        As far as they hold. Targets stand on the owner's signatures alone, so a root that drops a desk's key does not
        take the models away; the other two say whether targets are the newest there are.
    """

    def __init__(
        self,
        state: SignedState,
        root: Root,
        targets: Targets | None,
        snapshot: Snapshot | None,
        timestamp: Timestamp | None,
    ) -> None:
        self.state = state
        self.root = root
        self.targets = targets
        self.snapshot = snapshot
        self.timestamp = timestamp

    @property
    def files(self) -> dict[str, TargetFile]:
        """Targets by path."""
        return {} if self.targets is None else dict(self.targets.targets)

    @property
    def models(self) -> dict[str, str]:
        """Digest of each published model by its name, sorted: a target's hash is its manifest's digest."""
        found: dict[str, str] = {}
        for path, target in sorted(self.files.items()):
            name = path.removeprefix("models/").removesuffix(".json")
            if path == model_path(name) and "/" not in name:
                found[name] = digest_of(target)
        return found

    @property
    def is_complete(self) -> bool:
        """Whether every role holds and each names exactly the next: the state that a refresh ends with."""
        if self.snapshot is None or self.targets is None:
            return False
        return _names_targets(self.snapshot, self.state, self.targets)

    @property
    def expires_s(self) -> float:
        """POSIX seconds at which the first role expires; 0 while a role is missing."""
        roles = (self.root, self.targets, self.snapshot, self.timestamp)
        return min(0.0 if role is None else role.expires.timestamp() for role in roles)

    @property
    def signed_time_s(self) -> float:
        """Newest time at which a signer signed any of this, in POSIX seconds; 0 where none says."""
        roles = (self.root, self.targets, self.snapshot, self.timestamp)
        return max(signed_at_s(role) for role in roles if role is not None)


def grid_id_of(root: bytes) -> str:
    """Return the grid's id: hex SHA-256 of the bytes of root version 1."""
    return hashlib.sha256(root).hexdigest()


def utc(now_s: float) -> datetime:
    """Return POSIX seconds as the datetime that tuf wants."""
    return datetime.fromtimestamp(now_s, tz=UTC)


def signed_at_s(signed: Signed) -> float:
    """Return when metadata was signed, in POSIX seconds; 0 where it does not say."""
    value = signed.unrecognized_fields.get(SIGNED_AT)
    # A signer beyond the year 3000 is a broken clock; believing it would end every certificate of the grid.
    return float(value) if isinstance(value, int) and 0 <= value < 32_503_680_000 else 0.0


def model_path(name: str) -> str:
    """Return the target path of a model's manifest."""
    return f"models/{name}.json"


def check_path(path: str) -> None:
    """Raise ValueError unless a target path is a plain relative name that every node serves."""
    if len(path) > _PATH_MAX or not _PATH.fullmatch(path):
        raise ValueError(f"target path {path[:80]!r} does not match {PATH_PATTERN} within {_PATH_MAX} characters")


def verify(state: SignedState, grid_id: str) -> View:
    """Check a state as a whole, without regard to expiry.

    Raises
    ------
    WrongGridError
        The first root is another grid's.
    SignatureError
        A root does not follow from the one before. Other roles that do not hold are None in the view instead.
    """
    root = follow_roots(state.roots, grid_id)
    timestamp = _try_role(state.timestamp, Timestamp, root, TIMESTAMP_MAX_BYTES)
    snapshot = _try_role(state.snapshot, Snapshot, root, SNAPSHOT_MAX_BYTES)
    if timestamp is None or state.snapshot is None or not _names_snapshot(timestamp, state.snapshot):
        snapshot = None
    return View(state, root, _try_role(state.targets, Targets, root, TARGETS_MAX_BYTES), snapshot, timestamp)


def follow_roots(roots: tuple[bytes, ...], grid_id: str) -> Root:
    """Check a chain of roots from version 1 on and return the last.

    Raises
    ------
    WrongGridError
        The first one's hash is not the grid's id.
    SignatureError
        One of them is not signed by the thresholds of the one before and its own, or versions do not count up by one.
    """
    if grid_id_of(roots[0]) != grid_id:
        raise WrongGridError(f"root is of grid {grid_id_of(roots[0])[:16]}, expected {grid_id[:16]}; check the token")
    root = decode(roots[0], Root, ROOT_MAX_BYTES)
    _check_signed(root.signed, root, roots[0])
    for data in roots[1:]:
        root = next_root(root.signed, data)
    return root.signed


def next_root(root: Root, data: bytes) -> Metadata[Root]:
    """Check that root metadata follows another; raises SignatureError."""
    new = decode(data, Root, ROOT_MAX_BYTES)
    if new.signed.version != root.version + 1:
        raise SignatureError(f"root has version {new.signed.version}, expected {root.version + 1}")
    _check_signed(root, new, data)
    _check_signed(new.signed, new, data)
    return new


def read_role(data: bytes, kind: type[S], root: Root, bound: int) -> S:
    """Decode top-level metadata and check its signatures by a root's threshold; raises SignatureError."""
    metadata = decode(data, kind, bound)
    _check_signed(root, metadata, data)
    return metadata.signed


def decode(data: bytes, kind: type[S], bound: int) -> Metadata[S]:
    """Decode metadata of one kind without a look at its signatures; raises SignatureError."""
    if len(data) > bound:
        raise SignatureError(f"{kind.type} metadata has {len(data)} bytes, at most {bound} are accepted")
    try:
        metadata = Metadata[S].from_bytes(data)
    except RepositoryError as error:
        raise SignatureError(f"{kind.type} metadata is malformed: {error}") from error
    if not isinstance(metadata.signed, kind):
        raise SignatureError(f"expected {kind.type} metadata, got {metadata.signed.type}")
    return metadata


def same_content(first: bytes | None, second: bytes | None, kind: type[S], bound: int) -> bool:
    """Say whether two pieces of metadata say the same, however they are spelled; raises SignatureError.

    Signatures cover what is said. Spaces, order, or one more signature may be added by anyone on the way.
    """
    if first is None or second is None or first == second:
        return first == second
    return bool(decode(first, kind, bound).signed == decode(second, kind, bound).signed)


def check_file(target: TargetFile, data: bytes) -> bool:
    """Say whether bytes are the target: right length, right hash."""
    try:
        target.verify_length_and_hashes(data)
    except RepositoryError:
        return False
    return True


def digest_of(target: TargetFile) -> str:
    """Return the hex SHA-256 of a target; empty where the metadata gives none (none of our tools writes such)."""
    return str(target.hashes.get("sha256", ""))


def sign(signed: S, signers: Sequence[Signer]) -> bytes:
    """Sign metadata with each of the keys and return its bytes."""
    metadata = Metadata(signed)
    for signer in signers:
        metadata.sign(signer, append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))


def pull_newer(view: View, fetch: Fetch) -> SignedState:
    """Take over what a source has newer from the owner: roots and targets.

    Parameters
    ----------
    view : View
        What is held.
    fetch : Fetch
        The source.

    Returns
    -------
    SignedState
        The same bytes where the source has nothing newer. Timestamp and snapshot are left as they are.

    Raises
    ------
    SignatureError
        The source's fault: what it sent is not the owner's.
    """
    state, root = view.state, view.root
    for version in range(len(state.roots) + 1, ROOTS_MAX + 1):
        data = fetch(f"metadata/{version}.root.json")
        if data is None:
            break
        root = next_root(root, data).signed
        state = msgspec.structs.replace(state, roots=(*state.roots, data))
    data = fetch("metadata/targets.json")
    held = _try_role(state.targets, Targets, root, TARGETS_MAX_BYTES)
    if data is not None and read_role(data, Targets, root, TARGETS_MAX_BYTES).version > (held.version if held else 0):
        state = msgspec.structs.replace(state, targets=data)
    return state


def metadata_file(state: SignedState, name: str) -> bytes | None:
    """Return a metadata file by its name in the repository (``2.root.json``, ``timestamp.json``), None for no such."""
    version, _, rest = name.partition(".")
    if rest == "root.json" and version.isdecimal() and len(version) <= 3 and 1 <= int(version) <= len(state.roots):
        return state.roots[int(version) - 1]
    return {
        "root.json": state.roots[-1],
        "timestamp.json": state.timestamp,
        "snapshot.json": state.snapshot,
        "targets.json": state.targets,
    }.get(name)


_PUBLICATION: Final = msgspec.msgpack.Decoder(Publication)


def decode_publication(data: bytes) -> Publication:
    """Decode what an owner sent to a desk, unchecked; raises SignatureError."""
    if len(data) > MIRROR_MAX_BYTES:
        raise SignatureError(f"publication has {len(data)} bytes, at most {MIRROR_MAX_BYTES} are accepted")
    try:
        return _PUBLICATION.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise SignatureError(f"publication is malformed: {error}") from error


def _check_signed(root: Root, metadata: Metadata[S], data: bytes) -> None:
    """Check metadata's signatures by the root's threshold for its role."""
    try:
        root.verify_delegate(metadata.signed.type, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, ValueError) as error:
        what = f"{metadata.signed.type} version {metadata.signed.version} ({len(data)} bytes)"
        raise SignatureError(f"{what} is refused: {error}; it must be signed by the grid's keys") from error


def _try_role(data: bytes | None, kind: type[S], root: Root, bound: int) -> S | None:
    """Return a role that holds under the root, None for any other."""
    if data is None:
        return None
    try:
        return read_role(data, kind, root, bound)
    except SignatureError:
        return None


def _names_snapshot(timestamp: Timestamp, data: bytes) -> bool:
    """Say whether the timestamp speaks of exactly this snapshot."""
    try:
        timestamp.snapshot_meta.verify_length_and_hashes(data)
    except RepositoryError:
        return False
    return True


def _names_targets(snapshot: Snapshot, state: SignedState, targets: Targets) -> bool:
    """Say whether the snapshot speaks of exactly these targets."""
    meta = snapshot.meta.get("targets.json")
    if meta is None or state.targets is None or meta.version != targets.version:
        return False
    try:
        meta.verify_length_and_hashes(state.targets)
    except RepositoryError:
        return False
    return True
