"""Small state files: written whole or not at all, private by default.

Owns how the transport package writes to its state directory. Knows nothing of what the files mean. All
functions block (an fsync takes 1-50 ms on an SD card): call them in a thread, or before the event loop runs.
"""

import hashlib
import os
import secrets
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from transport.wire import TransportError

T = TypeVar("T")

_DIGEST_BYTES: Final = 32


class StateFileError(TransportError):
    """A file of the state directory cannot be read or written, is damaged or too open."""


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_beside(path: Path, data: bytes, mode: int) -> Path:
    """Write and fsync a temporary file in the same directory, so that a rename stays on one file system."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace a file so that a crash or power cut leaves the old or the new content, never a mixture.

    Raises
    ------
    StateFileError
        The machine's fault: no room, no permission, no such directory.
    """
    try:
        temporary = _write_beside(path, data, mode)
        temporary.replace(path)
        _fsync_directory(path.parent)
    except OSError as error:
        raise StateFileError(f"cannot write {path}: {error}; check owner and free space of its directory") from error


def create_exclusively(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Create a file that must not exist yet, whole or not at all.

    Raises
    ------
    StateFileError
        It exists already (the caller's fault), or the machine cannot write it.
    """
    try:
        temporary = _write_beside(path, data, mode)
        try:
            os.link(temporary, path)  # unlike rename, a link never replaces what is there
        finally:
            temporary.unlink()
        _fsync_directory(path.parent)
    except FileExistsError as error:
        raise StateFileError(f"{path} exists already; move it away first if it is really to be replaced") from error
    except OSError as error:
        raise StateFileError(f"cannot create {path}: {error}; check owner and free space of its directory") from error


def read_private(path: Path, *, max_bytes: int) -> bytes:
    """Read a file that holds a secret, and refuse it when others may read or write it.

    Raises
    ------
    StateFileError
        It is missing, unreadable, too large, or open to group or world.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise StateFileError(f"cannot read {path}: {error}") from error
    if mode & 0o077:
        raise StateFileError(f"{path} has mode {mode:04o}, others could read the key; run: chmod 0600 {path}")
    if len(data) > max_bytes:
        raise StateFileError(f"{path} has more than {max_bytes} bytes; it is not a file of this program")
    return data


def read_bounded(path: Path, *, max_bytes: int) -> bytes | None:
    """Read a state file; None when there is none.

    Raises
    ------
    StateFileError
        It is unreadable or too large.
    """
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateFileError(f"cannot read {path}: {error}") from error
    if len(data) > max_bytes:
        raise StateFileError(f"{path} has more than {max_bytes} bytes; it is not a file of this program")
    return data


def write_checked(path: Path, record: object) -> None:
    """Write a record as MessagePack behind its SHA-256, atomically; raises StateFileError."""
    content = msgspec.msgpack.encode(record)
    write_atomically(path, hashlib.sha256(content).digest() + content)


def read_checked(path: Path, decoder: msgspec.msgpack.Decoder[T], *, max_bytes: int, remedy: str) -> T | None:
    """Read a record that write_checked wrote; None when there is no file.

    Parameters
    ----------
    remedy : str
        What the operator can do about a damaged file; ends the message.

    Raises
    ------
    StateFileError
        It is unreadable, too large or damaged.
    """
    data = read_bounded(path, max_bytes=max_bytes)
    if data is None:
        return None
    digest, content = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    try:
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("checksum does not fit")
        return decoder.decode(content)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise StateFileError(f"{path} is damaged ({error}); {remedy}") from error
