"""Private grids for the comparison: made, filled and run by the command line, as a user would.

A grid lives in a folder of the run. Its nodes keep their state between starts, so that a cold start is that of a node
which has its model already. Node n1 has the owner's keys and runs the models; the others run none, unless told.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from benches.peers import processes
from benches.peers.ways import PeerError
from gridnode.client import Grid
from gridnode.errors import GridError

COMMAND_S = 120.0
"""Longest time of one command."""
STOP_S = 30.0


class Node:
    """One node: its folder, and its daemon while it runs."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self.state = folder / name
        self.socket = folder / f"{name}.sock"
        self.mark = f"gridnode-{folder.name}-{name}-{os.getpid()}"
        self._ports = free_ports(3)
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, models: Sequence[str], *, http: bool) -> None:
        """Start the daemon with default settings but for addresses: loopback, and ports that stay; returns at once."""
        words = [sys.executable, "-P", "-m", "gridnode", "run", "--preset", "loopback", "--name", self.name]
        words += ["--state-dir", str(self.state), "--socket", str(self.socket), "--log-level", "warning"]
        words += ["--set", f"runtime.models={json.dumps(list(models))}"]
        if http:  # off by default
            words += ["--set", "http.enabled=true", "--set", "http.port=0"]
        for plane, port in zip(("control", "data", "door"), self._ports, strict=True):
            words += ["--set", f"network.{plane}.port={port}"]  # others find a node again where it was before
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=processes.child_environment(self.mark),
                cwd=self.state.parent,
                start_new_session=True,  # as every peer's server
            )

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raise PeerError where the daemon has ended by itself."""
        if self._process is not None and self._process.poll() is not None:
            tail = self._log.read_text(errors="replace")[-2000:]
            raise PeerError(f"daemon {self.name} ended with code {self._process.returncode}: {tail}")

    def ask_to_stop(self) -> None:
        if self.is_running:
            assert self._process is not None
            self._process.terminate()

    def stop(self) -> None:
        """End the daemon and wait until it is gone."""
        self.ask_to_stop()
        if self._process is not None:
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def pids(self) -> list[int]:
        return processes.family(self.mark)


class PrivateGrid:
    """A grid with some models published.

    Parameters
    ----------
    folder : Path
        Of the grid; made here.
    sources : Path
        Folder with the models' files.
    models : sequence of str
        What is published.
    """

    def __init__(self, folder: Path, sources: Path, models: Sequence[str]) -> None:
        folder.mkdir()
        self._folder = folder
        self.models = tuple(models)
        self.http = False
        """Whether daemons started from now on have their HTTP port open."""
        self.nodes = {"n1": Node(folder, "n1")}
        self._own = ("--state-dir", str(self.nodes["n1"].state), "--owner-dir", str(folder / "owner"))
        gridnode("grid", "create", "bench", *self._own)
        for name in models:
            gridnode("model", "publish", *_source(sources, name), *self._own, "--socket", str(self.nodes["n1"].socket))

    def join(self, *names: str) -> None:
        """Let nodes join through n1, which must run."""
        self.wait_answering("n1")
        for name in names:
            if name not in self.nodes:
                node = Node(self._folder, name)
                answer = gridnode("invite", "--json", "--socket", str(self.nodes["n1"].socket))
                gridnode("join", json.loads(answer)["token"], "--name", name, "--state-dir", str(node.state))
                self.nodes[name] = node

    def start(self, **models: Sequence[str]) -> None:
        """Start nodes by name, each with the models it is to run, where they do not run yet."""
        for name, wanted in models.items():
            if not self.nodes[name].is_running:
                self.nodes[name].start(wanted, http=self.http)

    def wait_answering(self, name: str) -> None:
        """Wait until a daemon that was started answers its programs."""
        node, until_s = self.nodes[name], time.monotonic() + COMMAND_S
        while time.monotonic() < until_s:
            node.check()
            with contextlib.suppress(GridError, OSError), Grid(str(node.socket), patience_s=0.1) as client:
                client.status()
                return
            time.sleep(0.05)
        raise PeerError(f"daemon {name} did not answer within {COMMAND_S:.0f} s")

    def stop(self) -> None:
        for node in self.nodes.values():
            node.ask_to_stop()
        for node in self.nodes.values():
            node.stop()


def make(folder: Path, sources: Path, models: Sequence[str]) -> PrivateGrid:
    """Make a grid of two nodes that have run before: n1 has taken, checked and measured the models, n2 runs none."""
    grid = PrivateGrid(folder, sources, models)
    try:
        grid.start(n1=models)
        grid.join("n2")
        grid.start(n2=())
        grid.wait_answering("n2")
        _wait_models(grid.nodes["n1"], dict.fromkeys(models, "ready"))
        _wait_models(grid.nodes["n2"], dict.fromkeys(models, "unwanted"))
    finally:
        grid.stop()
    return grid


def _wait_models(node: Node, wanted: Mapping[str, str]) -> None:
    """Wait until models stand so on a node."""
    until_s = time.monotonic() + COMMAND_S
    with Grid(str(node.socket)) as client:
        while True:
            node.check()
            states = {item["name"]: item["state"] for item in client.models()["items"]}
            if all(states.get(name) == state for name, state in wanted.items()):
                return
            if time.monotonic() > until_s:
                raise PeerError(f"{node.name}: models are {states} after {COMMAND_S:.0f} s, wanted are {wanted}")
            time.sleep(0.1)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody listens on; another program might take one before we do, and the run would fail."""
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [listener.getsockname()[1] for listener in listeners]


def _source(sources: Path, name: str) -> tuple[str, ...]:
    """Return the words that say what to publish: a model of the zoo by its name, others by their file."""
    return ("--zoo", name) if name == "street" else (str(sources / f"{name}.onnx"), "--name", name)


def gridnode(*words: str) -> str:
    """Run a command of gridnode and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gridnode", *words],
        capture_output=True,
        text=True,
        timeout=COMMAND_S,
        env=processes.child_environment("command"),
        check=False,
    )
    if done.returncode:
        raise PeerError(f"gridnode {' '.join(words[:2])} failed with {done.returncode}: {done.stderr.strip()[-1000:]}")
    return done.stdout
