"""Real daemons on loopback: made once per module where a test leaves them as they were."""

import contextlib
import functools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import psutil
import pytest
import trio
from onnx import TensorProto, helper

from gridnode.client import Grid
from gridnode.credentials import Credentials, GridFile
from gridnode.gridsetup import create_grid, write_grid_file
from gridnode.joining import join_grid
from gridnode.statedir import StateDirectory
from models.golden import encode_golden
from models.manifest import (
    CHUNK_SIZE_BYTES,
    ClassificationPostprocessing,
    Golden,
    ImagePreprocessing,
    Manifest,
    TensorSpec,
    canonical_bytes,
    describe_shard,
)
from models.owner import OwnerRepository
from models.trust import TrustClient
from transport.certificates import SERVE, SUBMIT
from transport.identity import NodeKey

MODEL = "tiny"
SIDE = 128
"""Pixels of the model's square input."""
DAY_S = 86_400.0


def wait_until(condition, limit_s=20.0):
    """Return the first true value of a condition that is looked at again and again; fails after ``limit_s`` seconds.

    An error of the condition counts as not yet: a daemon that starts refuses connections.
    """
    until_s = time.monotonic() + limit_s
    pause = threading.Event()
    last = None
    while time.monotonic() < until_s:
        try:
            value = condition()
        except Exception as error:
            last = error
        else:
            if value:
                return value
        pause.wait(0.03)
    pytest.fail(f"not within {limit_s} s: {last or 'condition is false'}")


def model_input(seed=1):
    return np.random.default_rng(seed).random((1, 3, SIDE, SIDE), dtype="f")


def write_model(folder):
    """Write a small classifier with real work in it, and its golden run; returns paths and the expected output."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, SIDE, SIDE])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])
    weights = np.random.default_rng(0).normal(size=(64, 3, 7, 7)).astype("f")
    initial = helper.make_tensor("w", TensorProto.FLOAT, [64, 3, 7, 7], weights.tobytes(), raw=True)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[3, 3, 3, 3]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [initial])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, folder / "tiny.onnx")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "tiny.onnx"))
    expected = session.run(None, {"x": model_input()})[0]
    (folder / "golden").write_bytes(encode_golden({"x": model_input()}, {"y": expected}))
    return folder / "tiny.onnx", folder / "golden", expected


def describe(path, name):
    data = path.read_bytes()
    pieces = [data[start : start + CHUNK_SIZE_BYTES] for start in range(0, len(data), CHUNK_SIZE_BYTES)]
    return describe_shard(name, pieces)


class Daemon:
    """One daemon process and its state directory."""

    def __init__(self, folder, name):
        self.name = name
        self.state = StateDirectory(folder / name)
        self.socket = folder / f"{name}.sock"
        self.log = folder / f"{name}.log"
        self.process = None
        self._socket = str(self.socket)

    def start(self, *, share=1.0, environment=None, settings=(), under=()):
        """Start the process, with the words of ``under`` before its command; returns at once."""
        sets = ["runtime.threads=1", "scheduler.queue.slots=1", f"runtime.cpu_share={share}", *settings]
        command = [
            *under,
            *(sys.executable, "-P", "-X", "dev", "-m", "gridnode", "run", "--preset", "loopback"),
            *("--state-dir", str(self.state.path), "--name", self.name, "--socket", str(self.socket)),
            *(word for setting in sets for word in ("--set", setting)),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=dict(os.environ) | (environment or {}), stdin=subprocess.DEVNULL
            )
        return self

    @contextlib.contextmanager
    def client(self):
        with Grid(str(self.socket)) as grid:
            yield grid

    def ask(self, what="status", argument=""):
        with self.client() as grid:
            return grid.ask(what, argument)

    def wait_ready(self, limit_s=30.0):
        """Wait until the daemon serves the model."""
        wait_until(lambda: any(model["state"] == "ready" for model in self.ask("models")["items"]), limit_s)
        return self

    def wait_peers(self, count, limit_s=20.0):
        """Wait until the daemon may place work on so many peers."""

        def count_usable():
            usable = [peer for peer in self.ask("peers")["items"] if peer["status"] == "alive" and peer["reachable"]]
            return len([peer for peer in usable if peer["backlog_s"] is not None]) >= count

        wait_until(count_usable, limit_s)
        return self

    def infer(self, **options):
        with self.client() as grid:
            return grid.infer(MODEL, {"x": model_input()}, **{"deadline_s": 10.0, "raw_outputs": True} | options)

    def workers(self):
        """Return the processes that run models for this daemon."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def signal(self, number):
        self.process.send_signal(number)

    def kill(self):
        self.process.kill()
        self.process.wait(10)

    def stop(self, limit_s=25.0):
        """End the daemon as the service manager does; returns its exit status."""
        self.process.terminate()
        return self.process.wait(limit_s)

    def log_text(self):
        return self.log.read_text(errors="replace")

    def is_alive(self):
        return self.process is not None and self.process.poll() is None


class RealGrid:
    """Daemons of one grid in one folder; the first has the model and may admit others.

    It was made ``days_ago``: certificates and signatures of that day are in force.
    """

    def __init__(self, folder, *, days_ago=0.0):
        self.folder = folder
        self.daemons = {}
        self.owner = folder / "owner"
        first = self._add("n1")
        create_grid(first.state, self.owner, "test", now_s=time.time() - days_ago * DAY_S)
        graph, golden, self.expected = write_model(folder)
        shards = describe(graph, "tiny.onnx"), describe(golden, "golden")
        self.manifest = Manifest(
            name=MODEL,
            inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 3, SIDE, SIDE)),),
            outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 64)),),
            preprocessing=ImagePreprocessing(input="x", width=SIDE, height=SIDE),
            postprocessing=ClassificationPostprocessing(
                output="y", class_names=tuple(f"class {i}" for i in range(64)), top_k=3
            ),
            peak_memory_bytes=64 << 20,
            graph="tiny.onnx",
            golden=Golden(shard="golden"),
            shards=shards,
        )
        owner = OwnerRepository(self.owner, self.owner / "repository")
        owner.publish_model(canonical_bytes(self.manifest), time.time())
        first.state.incoming.mkdir()
        for shard, path in zip(shards, (graph, golden), strict=True):
            (first.state.incoming / shard.sha256).write_bytes(path.read_bytes())
        first.state.inbox.write_bytes(owner.publication())

    def _add(self, name):
        daemon = self.daemons[name] = Daemon(self.folder, name)
        return daemon

    def __getitem__(self, name):
        return self.daemons[name]

    def invite(self, argument=""):
        return self["n1"].ask("invite", argument)["token"]

    def join(self, name):
        """Let a node join through n1, which runs; it is not started."""
        daemon = self._add(name)
        trio.run(functools.partial(join_grid, daemon.state, self.invite(), name=name, clock=time.time))
        return daemon

    def enrol(self, name, *, issued_s, doors=()):
        """Make a node whose certificate was issued at a time of our choice, as a join would have; not started."""
        daemon, first = self._add(name), Credentials(self["n1"].state, clock=time.time)
        daemon.state.create()
        key = NodeKey.create(daemon.state.node_key).private.public_key()
        daemon.state.certificate.write_bytes(first.issuer.issue(key, (SERVE, SUBMIT), now_s=issued_s))
        daemon.state.authority.write_bytes(first.ca_pem)
        TrustClient(daemon.state.trust, first.grid_id).bootstrap((self.owner / "root.json").read_bytes())
        status = self["n1"].ask()
        bootstrap = (f"{status['node']}@{status['control_address']}",)
        write_grid_file(daemon.state, GridFile(name="test", grid_id=first.grid_id, bootstrap=bootstrap, doors=doors))
        return daemon

    def close(self):
        for daemon in self.daemons.values():
            if daemon.is_alive():
                daemon.signal(signal.SIGCONT)
                daemon.process.terminate()
        for daemon in self.daemons.values():
            if daemon.process is not None:
                try:
                    daemon.process.wait(25)
                except subprocess.TimeoutExpired:
                    daemon.kill()


def check_log(daemon):
    """Check that a daemon's log tells of no bug: no traceback, no warning of Python's development mode."""
    text = daemon.log_text()
    for word in ("Traceback", "ResourceWarning", "RuntimeWarning", "never awaited"):
        assert word not in text, text[-4000:]


@pytest.fixture(name="wait_until", scope="session")
def _wait_until():
    return wait_until


@pytest.fixture(name="model_input", scope="session")
def _model_input():
    return model_input()


@pytest.fixture(name="check_log", scope="session")
def _check_log():
    return check_log


@pytest.fixture
def make_grid():
    """Make grids that are closed at the test's end: ``make_grid(folder, days_ago=...)``; nothing is started."""
    grids = []

    def make(folder, **options):
        grids.append(RealGrid(Path(folder), **options))
        return grids[-1]

    yield make
    for grid in grids:
        grid.close()


@pytest.fixture(scope="module")
def real_grid(request, tmp_path_factory):
    """Make a grid of one daemon that runs; tests of a module share it.

    The module's FIRST_SHARE is its cpu_share, MADE_DAYS_AGO its age, SETTINGS what else it is told.
    """
    folder = tmp_path_factory.mktemp("grid", numbered=True)
    grid = RealGrid(Path(folder), days_ago=getattr(request.module, "MADE_DAYS_AGO", 0.0))
    try:
        settings = getattr(request.module, "SETTINGS", ())
        grid["n1"].start(share=getattr(request.module, "FIRST_SHARE", 1.0), settings=settings)
        grid["n1"].wait_ready()
        yield grid
    finally:
        grid.close()
    for daemon in grid.daemons.values():
        if daemon.process is not None:
            check_log(daemon)
