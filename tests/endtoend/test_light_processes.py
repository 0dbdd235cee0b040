"""What a running node has not imported. A real daemon tells of each import; workers show by the libraries they map."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent.parent

DAEMON_DOES_WITHOUT = (
    "PIL", "aioquic", "asyncio", "email.message", "email.parser", "fastecdsa", "gridnode.cli.grid",
    "gridnode.cli.model", "gridnode.cli.simulate", "grpc", "http.client",
    "importlib.metadata", "matplotlib", "miniupnpc", "multiprocessing", "numpy", "onnx", "onnxruntime", "pydantic",
    "requests", "rich", "simulator", "tuf.ngclient", "unittest", "urllib3", "zeroconf",
)  # fmt: skip
"""Libraries that a node which runs models and answers programs has no use for in its own process."""
DAEMON_MODULES_MAX = 930
"""862 now. Each module is about 45 kB and half a millisecond, ten times that on a small board."""

WORKER_DOES_WITHOUT = (
    "PIL", "asyncio", "cryptography", "email", "gridnode", "hashlib", "http", "libp2p", "multiprocessing",
    "numpy.ma", "numpy.random", "onnx", "scheduler", "ssl", "transport", "trio", "unittest",
)  # fmt: skip
WORKER_MODULES_MAX = 260
"""232 now, 86 of them numpy's."""

GRAPHCHECK_DOES_WITHOUT = ("PIL", "cryptography", "gridnode", "libp2p", "numpy", "onnxruntime", "ssl", "trio")
"""Before it imports onnx, which is confined by then."""


def found_of(unwanted, imported):
    return sorted(
        name for name in imported for library in unwanted if name == library or name.startswith(f"{library}.")
    )


def imports_of(code):
    script = f"import sys\n{code}\nprint(*sys.modules)"
    command = [sys.executable, "-P", "-c", script]
    done = subprocess.run(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def named(libraries, pattern):
    return sorted(name for name in libraries if re.match(pattern, name))


def libraries(pid):
    return set(re.findall(r"/([^/ \n]+\.so[^/ \n]*)", Path(f"/proc/{pid}/maps").read_text()))


def imports_told_by(daemon):
    """Return what a daemon imported in all of its lives, from its log."""
    return set(re.findall(r"import time:.*\| +([\w.]+)$", daemon.log_text(), re.MULTILINE))


def test_a_daemon_that_runs_models_imports_neither_their_libraries_nor_what_libp2p_could_do(make_grid, tmp_path):
    node = make_grid(tmp_path)["n1"]
    # The model is new to this node: checked, compared with its golden data, measured on a picture.
    node.start(environment={"PYTHONPROFILEIMPORTTIME": "1"}).wait_ready()
    assert found_of(("PIL", "numpy", "onnx", "onnxruntime"), imports_told_by(node)) == []
    assert node.stop() == 0
    node.log.write_text("")
    # Now it comes back, to a grid without news.
    node.start(environment={"PYTHONPROFILEIMPORTTIME": "1"}).wait_ready()
    assert node.infer().classes
    mapped = libraries(node.process.pid)
    [worker] = [process for process in node.workers() if "models.worker" in process.cmdline()]
    mapped_by_worker = libraries(worker.pid)
    assert node.stop() == 0
    assert f"spare_taken pid={worker.pid}" in node.log_text()
    imported = imports_told_by(node)
    assert {"gridnode.daemon", "transport.libp2p_host", "trio"} <= imported
    assert found_of(DAEMON_DOES_WITHOUT, imported) == []
    assert len(imported) < DAEMON_MODULES_MAX
    assert named(mapped, r"_imaging|onnx|_multiarray|libopenblas") == []
    assert named(mapped_by_worker, r"_rust|_ssl|_hashlib|_sodium|_message") == []
    assert named(mapped_by_worker, r"onnxruntime") != []
    assert named(mapped_by_worker, r"_imaging") != []  # this model takes pictures


def test_a_worker_imports_the_runtime_and_little_else():
    imported = imports_of("import models.worker, models.session")
    assert found_of(WORKER_DOES_WITHOUT, imported) == []
    assert len(imported) < WORKER_MODULES_MAX


def test_the_check_of_a_graph_is_light_until_it_is_confined():
    assert found_of(GRAPHCHECK_DOES_WITHOUT, imports_of("import models.graphcheck")) == []
