"""The demo's daemons: real processes, each in a group of its own, gone at the end whatever happens.

A daemon asks the kernel to be told of our death (``gridnode run --with-parent``), and its workers die with it; so
nothing is left even when the demo itself is killed. In order, they get SIGTERM, then SIGKILL to the whole group.
"""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import trio

from gridnode.errors import GridError

STOP_S: Final = 5.0
"""Time for a daemon to drain and leave before its group is killed."""
LOG_TAIL_CHARACTERS: Final = 600


class DaemonError(GridError):
    """A daemon of the demo ended by itself."""


def child_environment() -> dict[str, str]:
    """Return our environment for a child of ours: our packages findable, no settings meant for another node."""
    root = str(Path(__file__).resolve().parent.parent.parent)
    inherited = os.environ.get("PYTHONPATH", "")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GRIDNODE_")}
    return kept | {"PYTHONPATH": os.pathsep.join([root, inherited]) if inherited else root}


class Daemon:
    """One daemon, which may be killed and started again.

    Parameters
    ----------
    name : str
        Of the node.
    state_dir, socket, log : Path
        Of the node; the log is appended to over all its lives.
    settings : sequence of str
        For ``--set``.
    """

    def __init__(self, name: str, *, state_dir: Path, socket: Path, log: Path, settings: Sequence[str]) -> None:
        self.name = name
        self.state_dir = state_dir
        self.socket = socket
        self._log = log
        self._settings = tuple(settings)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Its process, while it runs."""
        return self._process.pid if self._process is not None and self.is_running else None

    def start(self) -> None:
        """Start the daemon; takes milliseconds. Call in the main thread: the kernel ties the child to our thread."""
        assert not self.is_running, "a daemon runs once at a time"
        command = [sys.executable, "-P", "-m", "gridnode", "run", "--with-parent", "--preset", "loopback"]
        command += ["--state-dir", str(self.state_dir), "--socket", str(self.socket), "--name", self.name]
        for setting in self._settings:
            command += ["--set", setting]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=child_environment(),
                cwd=self.state_dir,
                process_group=0,
            )

    def kill(self) -> None:
        """Kill the daemon as kill -9 does, without a word to it or to its workers."""
        if self.is_running:
            assert self._process is not None
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()

    async def stop(self) -> None:
        """Let the daemon drain, then make sure that its whole group is gone."""
        process = self._process
        if process is None:
            return
        process.terminate()
        try:
            with trio.move_on_after(STOP_S):
                while process.poll() is None:  # noqa: ASYNC110 - another process tells nothing
                    await trio.sleep(0.02)
        finally:
            self.sweep()

    def sweep(self) -> None:
        """Kill what is left of the process group."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def check(self) -> None:
        """Raise DaemonError with the end of its log where the daemon has ended by itself."""
        if self._process is not None and self._process.poll() not in (None, -signal.SIGKILL):
            text = self._log.read_text(errors="replace")[-LOG_TAIL_CHARACTERS:]
            raise DaemonError(f"daemon {self.name} ended with code {self._process.returncode}: {text}")
