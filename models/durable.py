"""Files that survive a power cut: written beside their place, flushed, then renamed into it.

Owns the one recipe for state on disk (write, fsync, rename, fsync of the folder) and the tidying of what a killed
process left half-way. Knows nothing of what the bytes mean. All calls block: run them in a thread.
"""

import contextlib
import os
import secrets
from pathlib import Path

PARTIAL_SUFFIX = ".partial"
"""End of the name of every file that is not finished. Nobody reads such a file; remove_partial deletes it."""


def write_durably(path: Path, data: bytes | memoryview, *, mode: int = 0o600, sync_folder: bool = True) -> None:
    """Put bytes in a file so that after a crash there is the old content or the new one, never a mixture.

    Parameters
    ----------
    path : Path
        The file; its folder must exist.
    data : bytes-like
        The whole new content.
    mode : int, default 0o600
        Permissions of the file.
    sync_folder : bool, default True
        Whether the new name is on disk too when this returns. Without it a crash may bring back the old content.

    Raises
    ------
    OSError
        The machine's fault: no space, no permission, a broken disk. Nothing is left behind.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            partial.unlink()
        raise
    if sync_folder:
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Flush a folder's names, so that renames and removals in it survive a power cut; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partial(folder: Path) -> int:
    """Delete unfinished files in a folder (not below it) and return how many there were; raises OSError."""
    count = 0
    for path in sorted(folder.glob(f".*{PARTIAL_SUFFIX}")):
        path.unlink(missing_ok=True)
        count += 1
    return count
