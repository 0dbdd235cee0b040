"""Letting a graph file in: open it safely and have it checked by a confined process.

Owns the descriptor rules and the daemon's side of models.graphcheck. The descriptor that was checked is the one the
worker gets, so nothing can be put in its place in between.
"""

import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Final

import msgspec
import trio

from models import child
from models.executor import ModelRefusedError
from models.manifest import Manifest, canonical_bytes

CHECK_MAX_S: Final = 120.0
"""Longest wait for a verdict; a check takes half a second on a desktop and a few on a small board."""
VERDICT_MAX_BYTES: Final = 64 * 1024
"""Most output of a check that is read; a verdict is a line of under 2 kB."""


_one_at_a_time: Final = trio.CapacityLimiter(1)
"""A check may take half a gigabyte. And the first of several models is ready to serve sooner than if all were checked
at once, which counts on a node that joins while there is work. One that takes long holds the others up, at most for
CHECK_MAX_S."""


class _Verdict(msgspec.Struct, frozen=True):
    """As models.graphcheck prints it."""

    accepted: bool
    reason: str = ""


def open_graph(path: Path) -> int:
    """Open a graph file for reading; the descriptor is the caller's. Blocks for microseconds.

    Raises
    ------
    ModelRefusedError
        It is a link, has other names (a hard link could be changed from elsewhere), or is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise ModelRefusedError(f"graph {path} cannot be opened: {error.strerror}") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1 or found.st_size == 0:
        os.close(descriptor)
        raise ModelRefusedError(
            f"graph {path} has {found.st_nlink} names and {found.st_size} bytes; it must be a regular file with one "
            "name and some content; copy it"
        )
    return descriptor


async def check_graph(graph: int, manifest: Manifest, *, empty_folder: str) -> None:
    """Have a graph checked.

    Parameters
    ----------
    graph : int
        Descriptor from open_graph.
    manifest : Manifest
        What the graph should be.
    empty_folder : str
        Working folder of the check.

    Raises
    ------
    ModelRefusedError
        It breaks a rule, or the check did not survive it. The publisher's fault.
    """
    async with _one_at_a_time:
        await _check(graph, manifest, empty_folder)


async def _check(graph: int, manifest: Manifest, empty_folder: str) -> None:
    """Run one check, and raise what it found."""
    manifest_file = os.memfd_create("gridnode-manifest", os.MFD_CLOEXEC)
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    try:
        with os.fdopen(os.dup(manifest_file), "wb") as file:
            file.write(canonical_bytes(manifest))
        process = child.spawn(
            "models.graphcheck",
            [f"/proc/self/fd/{graph}", f"/proc/self/fd/{manifest_file}"],
            descriptors=(graph, manifest_file),
            folder=empty_folder,
            output=write_end,
        )
    except OSError:
        os.close(read_end)
        raise
    finally:
        os.close(manifest_file)
        os.close(write_end)
    output = await _output(process, trio.lowlevel.FdStream(read_end))
    verdict = _read(output, process.returncode)
    if not verdict.accepted:
        raise ModelRefusedError(f"model {manifest.name!r} is refused: {verdict.reason}")


async def _output(process: "subprocess.Popen[bytes]", stream: trio.lowlevel.FdStream) -> bytes:
    """Read what a process prints until it ends, and wait for it; kill it when it takes too long or too many bytes."""
    output = b""
    try:
        with trio.move_on_after(CHECK_MAX_S):
            async for data in stream:
                output += data
                if len(output) > VERDICT_MAX_BYTES:
                    break
            else:
                # Its output has ended, so it is about to: let it tell its status by itself.
                await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CHECK_MAX_S):
            process.kill()
            await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True)
            await stream.aclose()
    return output


def _read(output: bytes, status: int) -> _Verdict:
    """Find the verdict in what a check printed; its last line."""
    if status < 0:
        name = signal.Signals(-status).name
        return _Verdict(accepted=False, reason=f"the check of the graph ended by {name}; the file is malformed")
    try:
        return msgspec.json.decode(output.strip().rpartition(b"\n")[2], type=_Verdict)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        words = output[-500:].decode("utf-8", "replace").strip()
        return _Verdict(accepted=False, reason=f"the check of the graph failed with status {status}: {words}")
