"""The owner's hand on the grid's signed state: a working copy of it, changed and signed.

Owns making a grid, publishing and removing targets, and putting new roots in force. Who may sign, and where the keys
are, is models.ownerkeys'. Knows nothing of peers (they come in as a Fetch), of the desk's short-lived signatures, and
of what is inside a target. Time is an argument. All calls block.

The owner's folder holds ``root.json`` (version 1: its hash is the grid's id) beside the keys.

Before it signs, the tool takes over the newest state that peers hold (pull): two owners, or one with an old copy,
otherwise sign the same version twice, and a desk refuses the second.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from securesystemslib.signer import CryptoSigner, Key  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.metadata import TargetFile, Targets  # type: ignore[attr-defined]  # exported without __all__

from models.deployment import DEPLOYMENT_PATH, Deployment, decode_deployment, encode_deployment
from models.durable import write_durably
from models.manifest import model_digest, parse_manifest
from models.metadata import (
    GRID_NAME,
    MIRROR_MAX_BYTES,
    SIGNED_AT,
    TARGET_MAX_BYTES,
    TARGETS_MAX_BYTES,
    Fetch,
    Publication,
    SignatureError,
    SignedState,
    View,
    check_path,
    grid_id_of,
    model_path,
    pull_newer,
    sign,
    utc,
    verify,
)
from models.ownerkeys import ROOT_LIFETIME_S, OwnerKeyError, first_root, keys_at_hand, next_root
from models.statefile import StateDirectory

TARGETS_LIFETIME_S: Final = ROOT_LIFETIME_S


class OwnerRepository:
    """The grid's state as its owner sees and signs it.

    Parameters
    ----------
    owner_folders : Path or sequence of Path
        Where the owner's keys are; the first one also holds root.json.
    repo_dir : Path
        Working copy of the state; may be empty (pull then fills it) and may be lost.

    Raises
    ------
    OwnerKeyError
        The owner's folder has no root.json.
    WrongGridError
        The working copy is of another grid.
    """

    def __init__(self, owner_folders: Path | Sequence[Path], repo_dir: Path) -> None:
        self._folders = (owner_folders,) if isinstance(owner_folders, Path) else tuple(owner_folders)
        path = self._folders[0] / "root.json"
        try:
            first = path.read_bytes()
        except OSError as error:
            raise OwnerKeyError(f"{path} cannot be read: {error.strerror}; give the owner's folder first") from error
        self.grid_id = grid_id_of(first)
        self.root_bytes = first
        """Root version 1, which nodes start from."""
        self._directory = StateDirectory(repo_dir)
        held = self._directory.load(self.grid_id)
        self._view = verify(SignedState(roots=(first,)), self.grid_id) if held is None else held

    @classmethod
    def create(
        cls,
        owner_dir: Path,
        repo_dir: Path,
        grid_name: str,
        now_s: float,
        *,
        desk_keys: Sequence[Key],
        keys: int = 1,
        threshold: int = 1,
    ) -> "OwnerRepository":
        """Make the keys and the first state of a new grid.

        Parameters
        ----------
        owner_dir : Path
            For the keys and root.json; made with mode 0700.
        repo_dir : Path
            For the working copy.
        grid_name : str
            What people call the grid; matches models.manifest.NAME_PATTERN.
        now_s : float
            POSIX seconds.
        desk_keys : sequence of Key
            Public keys of the release desks, at least one (models.keys).
        keys, threshold : int, default 1
            Owner keys made, and how many of them must sign.

        Raises
        ------
        ValueError
            The caller's fault: numbers or the name make no sense.
        KeyFileError
            The owner's folder holds keys already.
        """
        first = first_root(owner_dir, grid_name, now_s, desk_keys=desk_keys, keys=keys, threshold=threshold)
        write_durably(owner_dir / "root.json", first, mode=0o644)
        repository = cls(owner_dir, repo_dir)
        repository._change({}, now_s)
        return repository

    @property
    def grid_name(self) -> str:
        """What people call the grid."""
        return str(self._view.root.unrecognized_fields.get(GRID_NAME, ""))

    @property
    def view(self) -> View:
        """The working copy, checked."""
        return self._view

    # ------------------------------------------------------------ reading

    def pull(self, fetch: Fetch) -> bool:
        """Take over newer roots, targets and target files of a source; say whether there were any.

        Raises
        ------
        SignatureError
            The source's fault. Nothing was taken from it.
        """
        state = pull_newer(self._view, fetch)
        view = verify(state, self.grid_id)
        missing = self._directory.mirror(view.files, fetch)
        if missing:
            raise SignatureError(f"the source holds no {missing[0]!r} ({len(missing)} targets missing); try another")
        if state == self._view.state:
            return False
        self._commit(state)
        return True

    def models(self) -> dict[str, str]:
        """Return the digest of each published model by its name."""
        return self._view.models

    def deployment(self) -> Deployment:
        """Return what the grid should run; an empty one before the first."""
        data = self._read(DEPLOYMENT_PATH)
        return Deployment() if data is None else decode_deployment(data)

    def publication(self) -> bytes:
        """Return all that a release desk needs, to be sent to one (its accept)."""
        targets = self._view.state.targets
        if targets is None:
            raise OwnerKeyError("there are no signed targets yet; pull from a peer, or sign with enough keys")
        files = {path: self._read(path) or b"" for path in self._view.files}
        return msgspec.msgpack.encode(Publication(roots=self._view.state.roots, targets=targets, files=files))

    # ------------------------------------------------------------ writing

    def publish_model(self, manifest: bytes, now_s: float, *, wanted: bool = True) -> str:
        """Publish a model by its manifest's canonical bytes and return its digest.

        Parameters
        ----------
        manifest : bytes
            As models.manifest.canonical_bytes gives it.
        now_s : float
            POSIX seconds.
        wanted : bool, default True
            Whether the grid should run it: its name enters the deployment.

        Raises
        ------
        ManifestError
            The bytes are no manifest.
        OwnerKeyError
            Too few keys are at hand.
        """
        parsed = parse_manifest(manifest)
        files: dict[str, bytes | None] = {model_path(parsed.name): manifest}
        if wanted:
            files |= self._deploy({*self.deployment().models, parsed.name})
        self._change(files, now_s)
        return model_digest(parsed)

    def remove_model(self, name: str, now_s: float) -> None:
        """Withdraw a model from the state and the deployment.

        Raises
        ------
        KeyError
            There is no model of that name.
        OwnerKeyError
            Too few keys are at hand.
        """
        if name not in self.models():
            raise KeyError(name)
        self._change({model_path(name): None} | self._deploy({*self.deployment().models} - {name}), now_s)

    def deploy(self, names: Sequence[str], now_s: float) -> None:
        """Say which of the published models the grid should run; raises KeyError for one that is not published."""
        for name in names:
            if name not in self.models():
                raise KeyError(name)
        self._change(self._deploy(set(names)), now_s)

    def set_target(self, path: str, data: bytes, now_s: float) -> None:
        """Put a file into the state (``ca.pem``, ``revocations.bin``).

        Raises
        ------
        ValueError
            The caller's fault: the path is no plain relative name, or the file is too large.
        OwnerKeyError
            Too few keys are at hand.
        """
        self._change({path: data}, now_s)

    def renew(self, now_s: float) -> None:
        """Sign root and targets anew without a change, for another lifetime."""
        self.rotate_keys(now_s)

    def rotate_keys(
        self,
        now_s: float,
        *,
        owner_keys: Sequence[CryptoSigner] | None = None,
        threshold: int | None = None,
        desk_keys: Sequence[Key] | None = None,
    ) -> None:
        """Sign a new root, and targets under it.

        Parameters
        ----------
        now_s : float
            POSIX seconds.
        owner_keys : sequence of CryptoSigner, optional
            All owner keys from now on (models.keys.create_key); None keeps the present ones. The present threshold of
            old keys must be at hand once more: the new root is signed by both.
        threshold : int, optional
            How many owner keys must sign; None keeps the number.
        desk_keys : sequence of Key, optional
            Public keys of all release desks from now on; None keeps the present ones. Dropping a desk's key takes
            back whatever it signed, also versions that it ran up.

        Raises
        ------
        OwnerKeyError
            Too few of the present keys are at hand.
        ValueError
            The caller's fault: a threshold that the keys cannot meet.
        """
        data, signers = next_root(
            self._view.root, self._folders, now_s, owner_keys=owner_keys, threshold=threshold, desk_keys=desk_keys
        )
        state = msgspec.structs.replace(self._view.state, roots=(*self._view.state.roots, data))
        # Targets keep their content; they must hold under the new keys too.
        self._commit(msgspec.structs.replace(state, targets=self._targets({}, now_s, signers)))

    # ------------------------------------------------------------ inside

    def _read(self, path: str) -> bytes | None:
        target = self._view.files.get(path)
        return None if target is None else self._directory.read_target(target)

    def _deploy(self, names: set[str]) -> dict[str, bytes | None]:
        """Return the change of the deployment to these names; nothing where they are wanted already."""
        present = self.deployment()
        if present.models == tuple(sorted(names)):
            return {}
        new = Deployment(version=present.version + 1, models=tuple(sorted(names)))
        return {DEPLOYMENT_PATH: encode_deployment(new)}

    def _change(self, files: Mapping[str, bytes | None], now_s: float) -> None:
        """Sign targets with these files put in (None: taken out), and commit."""
        for path, data in files.items():
            check_path(path)
            if data is not None and not 0 < len(data) <= TARGET_MAX_BYTES:
                raise ValueError(f"target {path!r} has {len(data)} bytes, allowed are 1..{TARGET_MAX_BYTES}")
        signers = keys_at_hand(self._folders, self._view.root)
        targets = self._targets(files, now_s, signers)
        for data in files.values():
            if data is not None:
                self._directory.put_target(data)
        self._commit(msgspec.structs.replace(self._view.state, targets=targets))

    def _targets(self, files: Mapping[str, bytes | None], now_s: float, signers: Sequence[CryptoSigner]) -> bytes:
        """Sign the next version of the targets."""
        present = self._view.targets
        listed = self._view.files
        for path, data in files.items():
            if data is None:
                listed.pop(path, None)
            else:
                listed[path] = TargetFile.from_data(path, data, ["sha256"])
        if sum(target.length for target in listed.values()) > MIRROR_MAX_BYTES:
            raise ValueError(f"targets take more than {MIRROR_MAX_BYTES} bytes, which nodes mirror; remove some")
        targets = Targets(
            version=1 if present is None else present.version + 1,
            expires=utc(now_s + TARGETS_LIFETIME_S),
            targets=listed,
            unrecognized_fields={SIGNED_AT: int(now_s)},
        )
        signed = sign(targets, signers)
        if len(signed) > TARGETS_MAX_BYTES:
            raise ValueError(f"list of targets takes {len(signed)} bytes, at most {TARGETS_MAX_BYTES} are accepted")
        return signed

    def _commit(self, state: SignedState) -> None:
        """Check what was made as a node would, then keep it."""
        view = verify(state, self.grid_id)
        assert view.targets is not None or state.targets is None
        self._directory.commit(state)
        self._view = view
        self._directory.keep_targets(view.files.values())
