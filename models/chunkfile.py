"""Files of the model store: what a chunk and a shard look like on disk, and how they are read with suspicion.

Owns the checks of single files and the store's errors. models.store decides which files there are.
"""

import contextlib
import errno
import hashlib
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from models.manifest import CHUNK_SIZE_BYTES, ModelError, Shard, parse_cid

_SIDECAR_MAX_BYTES: Final = 2 << 20
"""A shard of 16 GiB lists 16384 chunks of 62 B."""
_UNREADABLE: Final = (errno.ENOENT, errno.EIO)
"""A file that is gone or has a bad block is treated like one with wrong bytes: fetch it again."""


class DigestMismatchError(ModelError):
    """Bytes that are not what their name says. Whoever sent them is to blame; nothing of them was kept."""


class StoreFullError(ModelError):
    """The quota, or the disk, has no room and nothing that may go. Unpin a model or raise the quota."""


class StoreError(ModelError):
    """The store's folder cannot be read or written. The machine's fault."""


@contextlib.contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn the system's errors into the store's."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFullError(f"the disk at {where} is full; free some space or lower the store's quota") from error
        raise StoreError(f"model store at {where} cannot be used: {error}") from error


def is_cid(name: str) -> bool:
    """Say whether a file name is a chunk's."""
    try:
        parse_cid(name)
    except ValueError:
        return False
    return True


def is_chunk(cid: str, data: bytes | memoryview) -> bool:
    """Say whether bytes are the chunk of that name."""
    return hashlib.sha256(data).digest() == parse_cid(cid)


def check_chunk(cid: str, data: bytes | memoryview) -> None:
    """Raise DigestMismatchError unless bytes are the chunk of that name."""
    if not is_cid(cid):
        raise DigestMismatchError(f"{cid[:80]!r} is no name of a chunk")
    if not 0 < len(data) <= CHUNK_SIZE_BYTES:
        raise DigestMismatchError(f"chunk {cid} has {len(data)} bytes, allowed are 1..{CHUNK_SIZE_BYTES}")
    if not is_chunk(cid, data):
        raise DigestMismatchError(f"{len(data)} bytes are not chunk {cid}; ask another peer")


def sidecar(path: Path) -> Path:
    """Return the file that lists a whole shard's chunks."""
    return path.with_name(f"{path.name}.json")


def read_sidecar(path: Path) -> Shard | None:
    """Return what a shard file is made of; None where that is not known or it cannot be the file."""
    try:
        with sidecar(path).open("rb") as file:
            shard = msgspec.json.decode(file.read(_SIDECAR_MAX_BYTES), type=Shard)
    except (OSError, msgspec.MsgspecError):
        return None
    return shard if shard.sha256 == path.name and is_ours(path, shard.size_bytes) else None


def is_ours(path: Path, size_bytes: int) -> bool:
    """Say whether a path is a regular file of that size that has no other name (a second name could change it)."""
    try:
        status = path.lstat()
    except OSError:
        return False
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size == size_bytes


def read_piece(path: Path, offset: int, size_bytes: int) -> bytes:
    """Return a piece of a file; nothing where the file is gone or the disk cannot read it."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size_bytes)
    except OSError as error:
        if error.errno in _UNREADABLE:
            return b""
        raise


def hash_file(path: Path) -> str:
    """Return the hex SHA-256 of a file; empty where the file is gone or the disk cannot read it."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        if error.errno in _UNREADABLE:
            return ""
        raise
