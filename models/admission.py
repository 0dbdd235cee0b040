"""Letting a graph file in: open it safely and have it checked by a confined process.

Owns the descriptor rules, the daemon's side of models.graphcheck, and the memory of graphs that passed: a check starts
a Python with onnx, half of the time from a daemon's start to its first answer. What a check says depends on the graph's
bytes, the manifest and the rules alone, so the same three pass again. The descriptor that was checked, or read to know
it again, is the one the worker gets, so nothing can be put in its place in between.
"""

import contextlib
import hashlib
import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Final

import msgspec
import trio

from models import child
from models.durable import write_durably
from models.executor import ModelRefusedError
from models.manifest import Manifest, canonical_bytes
from models.versions import installed_version

CHECK_MAX_S: Final = 120.0
"""Longest wait for a verdict; a check takes half a second on a desktop and a few on a small board."""
READ_BYTES: Final = 1 << 20
"""Of a graph, read at once to know it again."""
VERDICT_MAX_BYTES: Final = 64 * 1024
"""Most output of a check that is read; a verdict is a line of under 2 kB."""


PASSED_MAX: Final = 256
"""Graphs that are known to have passed, the newest kept: more than a node loads."""
_RULE_FILES: Final = ("graphcheck.py", "manifest.py")
"""Where the rules are written: other rules, other verdicts."""

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


class PassedGraphs:
    """The graphs that passed on this machine, in a file that only the daemon's user may write.

    Parameters
    ----------
    path : Path
        The file. A damaged one counts as empty.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rules = b""
        self._known: list[str] = []

    def load(self) -> None:
        """Read the file. Blocks."""
        rules = hashlib.sha256(installed_version("onnx").encode())
        for name in _RULE_FILES:
            rules.update(Path(__file__).with_name(name).read_bytes())
        self._rules = rules.digest()
        try:
            self._known = msgspec.json.decode(self._path.read_bytes(), type=list[str])[-PASSED_MAX:]
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            self._known = []

    def name(self, graph: int, manifest: Manifest) -> str:
        """Return what a verdict depends on, as one digest. Reads the whole file; blocks."""
        whole = hashlib.sha256(self._rules)
        whole.update(hashlib.sha256(canonical_bytes(manifest)).digest())
        offset = 0
        while piece := os.pread(graph, READ_BYTES, offset):
            whole.update(piece)
            offset += len(piece)
        return whole.hexdigest()

    def __contains__(self, name: str) -> bool:
        """Say whether a graph of that name passed."""
        return name in self._known

    def add(self, name: str) -> None:
        """Take note of a graph that passed. Blocks on fsync; where the disk is full it is checked again next time."""
        self._known = [*self._known, name][-PASSED_MAX:]
        with contextlib.suppress(OSError):
            write_durably(self._path, msgspec.json.encode(self._known))


async def check_graph(graph: int, manifest: Manifest, *, empty_folder: str, passed: PassedGraphs | None = None) -> None:
    """Have a graph checked, unless it is known to have passed.

    Parameters
    ----------
    graph : int
        Descriptor from open_graph.
    manifest : Manifest
        What the graph should be.
    empty_folder : str
        Working folder of the check.
    passed : PassedGraphs, optional
        Those that need no check, loaded; a graph that passes joins them.

    Raises
    ------
    ModelRefusedError
        It breaks a rule, or the check did not survive it. The publisher's fault.
    """
    name = await trio.to_thread.run_sync(passed.name, graph, manifest) if passed is not None else ""
    if passed is not None and name in passed:
        return
    async with _one_at_a_time:
        await _check(graph, manifest, empty_folder)
    if passed is not None:
        await trio.to_thread.run_sync(passed.add, name)


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
