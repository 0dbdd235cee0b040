"""The owner's keys and the roots that name them: who may sign the grid's state, and how that changes.

Owns finding the key files, making the first root with its keys, and each next root. The keys are needed only while
something is signed and may lie on a stick in a drawer the rest of the time: ``owner-*.pem`` in the owner's folders.
With a threshold above one they belong on different media; give all folders where enough of them are. Knows nothing of
targets and of where roots are kept (models.owner). Time is an argument. All calls block.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from securesystemslib.signer import CryptoSigner, Key  # type: ignore[attr-defined]  # exported without __all__
from tuf.api.metadata import Role, Root  # type: ignore[attr-defined]  # exported without __all__

from models.keys import create_key, load_key
from models.manifest import check_name
from models.metadata import GRID_NAME, ROOT_MAX_BYTES, ROOTS_MAX, SIGNED_AT, TrustError, sign, utc

DAY_S: Final = 86_400.0
ROOT_LIFETIME_S: Final = 365 * DAY_S
"""A grid must outlive a year without its owner; a root is renewed by any change of keys, or by renew."""
KEYS_MAX: Final = 16
"""Owner keys of a grid: as many people as may share it, and each adds to every root."""
_DESK_ROLES: Final = ("timestamp", "snapshot")
_OWNER_ROLES: Final = ("root", "targets")


class OwnerKeyError(TrustError):
    """Too few of the owner's keys are at hand. The local user's fault."""


def keys_at_hand(folders: Sequence[Path], root: Root, *, extra: Sequence[CryptoSigner] = ()) -> list[CryptoSigner]:
    """Return the keys that count for the owner's roles in a root, at least as many as its threshold.

    Raises
    ------
    OwnerKeyError
        Too few of them are in the folders or among the extra ones.
    """
    found = {signer.public_key.keyid: signer for signer in extra}
    for folder in folders:
        for path in sorted(folder.glob("owner-*.pem")):
            signer = load_key(path)
            found[signer.public_key.keyid] = signer
    role = root.roles["root"]
    usable = [found[keyid] for keyid in role.keyids if keyid in found]
    if len(usable) < role.threshold:
        raise OwnerKeyError(
            f"{len(usable)} of the owner's keys are at hand, {role.threshold} of {len(role.keyids)} must sign; "
            f"looked for owner-*.pem in {', '.join(str(folder) for folder in folders)}"
        )
    return usable


def first_root(
    owner_dir: Path, grid_name: str, now_s: float, *, desk_keys: Sequence[Key], keys: int, threshold: int
) -> bytes:
    """Make the owner's keys in a folder and sign the first root of a new grid with them.

    See models.owner.OwnerRepository.create for the parameters and errors.
    """
    check_name(grid_name, what="grid name")
    if not 1 <= threshold <= keys <= KEYS_MAX or not desk_keys:
        raise ValueError(f"threshold {threshold} of {keys} keys with {len(desk_keys)} desks makes no sense")
    owner_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    signers = [create_key(owner_dir / f"owner-{number}.pem") for number in range(1, keys + 1)]
    root = Root(
        version=1,
        expires=utc(now_s + ROOT_LIFETIME_S),
        consistent_snapshot=False,
        unrecognized_fields={GRID_NAME: grid_name, SIGNED_AT: int(now_s)},
    )
    _set_role_keys(root, owners=[signer.public_key for signer in signers], threshold=threshold, desks=desk_keys)
    return sign(root, signers)


def next_root(
    old: Root,
    folders: Sequence[Path],
    now_s: float,
    *,
    owner_keys: Sequence[CryptoSigner] | None,
    threshold: int | None,
    desk_keys: Sequence[Key] | None,
) -> tuple[bytes, list[CryptoSigner]]:
    """Sign the root after this one; return it with the keys that sign targets from now on.

    See models.owner.OwnerRepository.rotate_keys for the parameters and errors.
    """
    present = keys_at_hand(folders, old)
    owners = _keys_of(old, "root") if owner_keys is None else [signer.public_key for signer in owner_keys]
    desks = _keys_of(old, "timestamp") if desk_keys is None else list(desk_keys)
    wanted = old.roles["root"].threshold if threshold is None else threshold
    if not 1 <= wanted <= len(owners) <= KEYS_MAX or not desks or old.version >= ROOTS_MAX:
        raise ValueError(
            f"threshold {wanted} of {len(owners)} owner keys with {len(desks)} desks in root {old.version + 1} "
            f"makes no sense (at most {KEYS_MAX} keys, {ROOTS_MAX} roots)"
        )
    root = Root.from_dict(old.to_dict())
    _set_role_keys(root, owners=owners, threshold=wanted, desks=desks)
    root.version = old.version + 1
    root.expires = utc(now_s + ROOT_LIFETIME_S)
    root.unrecognized_fields[SIGNED_AT] = int(now_s)
    fresh = keys_at_hand(folders, root, extra=owner_keys or ())
    data = sign(root, list({s.public_key.keyid: s for s in (*present, *fresh)}.values()))
    if len(data) > ROOT_MAX_BYTES:
        raise ValueError(f"root takes {len(data)} bytes, at most {ROOT_MAX_BYTES} are accepted; drop keys")
    return data, fresh


def _keys_of(root: Root, role: str) -> list[Key]:
    """Return the keys of a role."""
    return [root.keys[keyid] for keyid in root.roles[role].keyids]


def _set_role_keys(root: Root, *, owners: Sequence[Key], threshold: int, desks: Sequence[Key]) -> None:
    """Write the keys of all four roles into a root."""
    owner_ids, desk_ids = [key.keyid for key in owners], [key.keyid for key in desks]
    if set(owner_ids) & set(desk_ids):
        raise ValueError("one key is both an owner's and a desk's; a desk is online, so give it a key of its own")
    root.keys = {key.keyid: key for key in (*owners, *desks)}
    root.roles = {role: Role(list(owner_ids), threshold) for role in _OWNER_ROLES}
    root.roles |= {role: Role(list(desk_ids), 1) for role in _DESK_ROLES}
