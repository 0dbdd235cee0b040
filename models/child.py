"""Starting Python processes of our own that run strangers' data.

Owns the command line, the environment and the log pipe of such a process. Knows nothing of what it does.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

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
    environment = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(_module_folders())
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        pass_fds=descriptors,
        cwd=folder,
        env=environment | _SETTINGS,
        start_new_session=True,
    )


def _module_folders() -> list[str]:
    """Return where the child looks for modules first."""
    folders = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    # Installed, we are found anyway, and in front of the standard library other packages there could hide parts of it.
    return folders if Path(_ROOT).name in ("site-packages", "dist-packages") else [_ROOT, *folders]
