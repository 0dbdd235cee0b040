"""Starting Python processes of our own that run strangers' data.

Owns the command line, the environment and the log pipe of such a process. Knows nothing of what it does.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from models.manifest import ModelError

_ROOT: Final = str(Path(__file__).resolve().parent.parent)
"""Folder that the models package is in: a checkout or site-packages."""

_KEPT_VARIABLES: Final = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE")
"""What a child needs of our environment. The rest stays here: environments hold secrets."""

_SETTINGS: Final = {
    "OPENBLAS_NUM_THREADS": "1",  # numpy's thread pool would bar the namespaces, and is of no use here
    "ORT_DISABLE_TELEMETRY": "1",  # read at import, unlike onnxruntime's function of that name
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",  # each further arena reserves 64 MiB of addresses
}


class ChildError(ModelError):
    """A process of ours did not do its work: the machine is out of memory or processes, or what it got was bad."""


def spawn(
    module: str, arguments: Sequence[str], *, descriptors: Sequence[int], folder: str, output: int
) -> subprocess.Popen[bytes]:
    """Start ``python -P -m module``; blocks for a few milliseconds, until the child has been replaced by Python.

    Must be called in the event loop's own thread: the child asks to be killed when the *thread* that started it
    ends, and helper threads end early.

    Parameters
    ----------
    module : str
        Of this package.
    arguments : sequence of str
        For ``sys.argv[1:]``.
    descriptors : sequence of int
        Inherited under their own numbers.
    folder : str
        Working folder; an empty one.
    output : int
        Descriptor that standard output and error go to.

    Raises
    ------
    OSError
        The machine is out of processes, memory or descriptors.
    """
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=descriptors,
        cwd=folder,
        env=_environment(),
        start_new_session=True,
    )


def ask(module: str, arguments: Sequence[str], given: bytes, *, limit_s: float) -> bytes:
    """Run ``python -P -m module`` to its end; blocks, so call it in a thread.

    Parameters
    ----------
    module, arguments
        As for spawn().
    given : bytes
        For its standard input.
    limit_s : float
        Longest run, in seconds; then it is killed.

    Returns
    -------
    bytes
        What it wrote to standard output.

    Raises
    ------
    ChildError
        It failed, took too long, or could not be started.
    """
    command = [sys.executable, "-P", "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, input=given, capture_output=True, env=_environment(), timeout=limit_s, cwd="/", check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ChildError(f"{module} did not come to its end: {error}") from error
    if done.returncode:
        words = done.stderr[-500:].decode("utf-8", "replace").strip()
        raise ChildError(f"{module} ended with status {done.returncode}: {words}")
    return done.stdout


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {"PYTHONPATH": os.pathsep.join(_module_folders())} | _SETTINGS


def _module_folders() -> list[str]:
    """Return where the child looks for modules first."""
    folders = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # Installed, we are found anyway, and in front of the standard library other packages there could hide parts of it.
    return folders if Path(_ROOT).name in ("site-packages", "dist-packages") else [_ROOT, *folders]
