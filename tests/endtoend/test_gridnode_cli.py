"""The commands against real daemons: a grid of two, made, filled and asked as an operator would."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto
from onnx import helper as h
from PIL import Image

from gridnode.client import Grid
from gridnode.errors import DaemonUnreachableError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 90.0
"""No test waits so long; it only keeps a hang from lasting for ever."""
ENVIRONMENT = {key: value for key, value in os.environ.items() if not key.startswith("GRIDNODE_")} | {
    "PYTHONPATH": str(ROOT),
    "NO_COLOR": "1",
    "COLUMNS": "100",
}


def gridnode(*arguments, code=0, stdin=None):
    """Run a command to its end and return it; the exit code must be the expected one."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gridnode", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        env=ENVIRONMENT,
        input=stdin,
        check=False,
    )
    assert done.returncode == code, (arguments, done.returncode, done.stdout[-1000:], done.stderr[-2000:])
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout
    return done


def printed(*arguments, **options):
    """Run a command with --json and return its document."""
    return json.loads(gridnode(*arguments, "--json", **options).stdout)


def wait_until(is_so, what):
    """Look again and again: a daemon tells nobody when it is ready."""
    until_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < until_s:
        try:
            if is_so():
                return
        except DaemonUnreachableError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"waited {PATIENCE_S} s for {what}")


class Node:
    """A daemon started by `gridnode run`."""

    def __init__(self, folder, name):
        self.name = name
        self.state_dir = folder / name
        self.socket = folder / f"{name}.sock"
        self.log = folder / f"{name}.log"
        self.log.touch()
        self.flags = ()
        self.process = None

    def start(self):
        command = [sys.executable, "-P", "-m", "gridnode", "run", "--preset", "loopback", *self.flags]
        command += ["--state-dir", str(self.state_dir), "--socket", str(self.socket)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT)
        with Grid(self.socket) as grid:
            wait_until(lambda: grid.status()["health"] in ("ok", "isolated"), f"{self.name}: {self.log.read_text()}")

    def stop(self):
        """Stop the daemon and return its exit code."""
        if self.process is None:
            return None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE_S)
        finally:
            self.process.kill()

    def ready_models(self):
        with Grid(self.socket) as grid:
            return {model["name"] for model in grid.models()["items"] if model["state"] == "ready"}


def write_detector(path):
    """Write a model that reports one box wherever the picture is bright."""
    nodes = [
        h.make_node("GlobalAveragePool", ["images"], ["mean"]),
        h.make_node("ReduceMean", ["mean"], ["light"], keepdims=0, axes=[1, 2, 3]),
        h.make_node("Reshape", ["light", "one"], ["score"]),
        h.make_node("Concat", ["box", "score"], ["output0"], axis=1),
    ]
    constants = [
        h.make_tensor("one", TensorProto.INT64, [3], [1, 1, 1]),
        h.make_tensor("box", TensorProto.FLOAT, [1, 4, 1], [16.0, 16.0, 16.0, 16.0]),
    ]
    graph = h.make_graph(
        nodes,
        "bright",
        [h.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 32, 32])],
        [h.make_tensor_value_info("output0", TensorProto.FLOAT, [1, 5, 1])],
        constants,
    )
    onnx.save(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8), path)
    picture = '[preprocessing]\ninput = "images"\nwidth = 32\nheight = 32\n'
    described = 'kind = "detection"\noutput = "output0"\nclass_names = ["light"]\n'
    path.with_name("model.toml").write_text(f'name = "bright"\n{picture}[postprocessing]\n{described}')


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A grid of two nodes with one model, whose making is the test of grid create, publish, invite and join."""
    folder = tmp_path_factory.mktemp("g")
    alpha, beta = Node(folder, "alpha"), Node(folder, "beta")
    write_detector(folder / "bright.onnx")
    try:
        made = printed("grid", "create", "yard", "--state-dir", alpha.state_dir, "--owner-dir", folder / "owner")
        owner = ("--state-dir", alpha.state_dir, "--owner-dir", folder / "owner", "--socket", alpha.socket)
        alpha.flags = ("--name", "alpha")
        published = printed("model", "publish", folder / "bright.onnx", *owner)
        assert published["taken"] is False
        alpha.start()
        token = gridnode("invite", "--socket", alpha.socket, "--expires", "10m").stdout.strip()
        joined = printed("join", "-", "--state-dir", beta.state_dir, "--name", "beta", stdin=token + "\n")
        assert joined["grid_id"] == made["grid_id"]
        assert joined["known_nodes"] == ["alpha"]
        again = gridnode("join", token, "--state-dir", folder / "gamma", "--name", "gamma", code=1)
        assert again.stderr.startswith("error: not joined: ")
        beta.start()
        for node in (alpha, beta):
            wait_until(lambda node=node: node.ready_models() == {"bright"}, f"model on {node.name}")
        yield folder, alpha, beta, owner
    finally:
        codes = [node.stop() for node in (alpha, beta)]
        logs = alpha.log.read_text() + beta.log.read_text()
    assert codes == [0, 0], logs
    assert "Traceback" not in logs


@pytest.fixture(scope="module")
def pictures(grid):
    folder = grid[0] / "pictures"
    folder.mkdir()
    Image.new("RGB", (64, 64), (250, 250, 250)).save(folder / "day.png")
    Image.new("RGB", (64, 64), (2, 2, 2)).save(folder / "night.jpg")
    return folder


def test_status_tells_of_both_nodes(grid):
    _, alpha, beta, _ = grid
    status = printed("status", "--socket", alpha.socket)
    assert (status["name"], status["grid_name"]) == ("alpha", "yard")
    assert status["roles"] == ["admit", "revoke", "serve", "submit"]
    assert printed("status", "--socket", beta.socket)["roles"] == ["serve", "submit"]
    assert "alpha" in gridnode("status", "--socket", alpha.socket).stdout


def test_peers_see_each_other(grid):
    _, alpha, beta, _ = grid
    [peer] = printed("peers", "--socket", alpha.socket)
    assert (peer["name"], peer["status"], peer["reachable"]) == ("beta", "alive", True)
    assert "alpha" in gridnode("peers", "--socket", beta.socket).stdout
    whole = printed("grid", "status", "--socket", alpha.socket)
    assert (whole["grid_name"], whole["members"]) == ("yard", 2)
    assert "2 of 2 nodes alive" in gridnode("grid", "status", "--socket", alpha.socket).stdout


def test_the_model_is_on_both_nodes_and_sound(grid):
    _, _, beta, _ = grid
    [listed] = printed("model", "list", "--socket", beta.socket)
    assert (listed["name"], listed["state"]) == ("bright", "ready")
    assert listed["mean_ms"] > 0
    verdicts = printed("model", "verify", "--all", "--state-dir", beta.state_dir)
    assert [(verdict["name"], verdict["problem"]) for verdict in verdicts] == [("", ""), ("bright", "")]
    assert verdicts[1]["on_disk"] == "2 of 2 shards"
    shown = printed("model", "show", "bright", "--state-dir", beta.state_dir, "--socket", beta.socket)
    assert shown["digest"] == shown["here"]["digest"] == listed["digest"]
    assert shown["manifest"]["golden"]
    for command in (["list"], ["show", "bright", "--state-dir", beta.state_dir]):
        assert "bright" in gridnode("model", *command, "--socket", beta.socket).stdout


def test_pictures_are_answered_drawn_and_explained(grid, pictures):
    folder, _, beta, _ = grid
    answer = printed("submit", "bright", pictures, "--annotate", folder / "drawn", "--socket", beta.socket)
    assert answer["failed"] == 0
    day, night = answer["results"]
    assert [found["class_name"] for found in day["detections"]] == ["light"]
    assert night["detections"] == []
    assert day["node"] in ("alpha", "beta")
    with Image.open(day["annotated"]) as drawn:
        assert drawn.size == (64, 64)
    decisions = printed("explain", day["key"], "--socket", beta.socket)
    assert decisions[0]["key"] == day["key"]
    assert day["node"] in [decision["chosen"] for decision in decisions]
    text = gridnode("submit", "bright", pictures, "--socket", beta.socket).stdout
    assert "1 light" in text
    assert "2 pictures in" in text


def test_wrong_requests_are_named_and_cost_nobody_else(grid, pictures, tmp_path):
    _, _, beta, _ = grid
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff\xe0 this is no picture")
    answer = printed("submit", "bright", broken, pictures / "day.png", "--socket", beta.socket, code=1)
    assert [line.get("error") for line in answer["results"]] == ["InvalidInputError", None]
    unknown = printed("submit", "dark", pictures / "day.png", "--socket", beta.socket, code=1)
    assert unknown["results"][0]["error"] == "UnknownModelError"
    assert "bright" in unknown["results"][0]["message"]


def test_a_second_daemon_on_the_same_state_is_refused(grid):
    folder, alpha, _, _ = grid
    arguments = ("--preset", "loopback", "--state-dir", alpha.state_dir, "--socket", folder / "x.sock")
    refused = gridnode("run", *arguments, code=1)
    assert refused.stderr.startswith("error: ")
    assert "in use by another daemon" in refused.stderr


def test_doctor_finds_a_running_node_in_order(grid):
    _, _, beta, _ = grid
    findings = printed("doctor", "--state-dir", beta.state_dir)
    assert {finding["check"]: finding["verdict"] for finding in findings}["bootstrap"] == "good"
    assert not [finding for finding in findings if finding["verdict"] == "bad"]


def test_only_an_admit_node_invites(grid):
    _, _, beta, _ = grid
    assert "no role 'admit'" in gridnode("invite", "--socket", beta.socket, code=1).stderr


def test_models_come_and_go_while_daemons_run(grid):
    folder, _, beta, owner = grid
    arguments = (folder / "bright.onnx", "--name", "second", *owner)
    assert printed("model", "publish", *arguments)["taken"] is True
    wait_until(lambda: beta.ready_models() == {"bright", "second"}, "the second model on beta")
    assert printed("model", "publish", *arguments)["published"][0]["unchanged"] is True
    assert printed("model", "remove", "second", *owner) == {"removed": "second", "taken": True}
    wait_until(lambda: beta.ready_models() == {"bright"}, "the end of the second model on beta")


def test_a_revoked_node_is_out(grid):
    """Last of this module, as beta does not come back."""
    _, alpha, beta, _ = grid
    refused = gridnode("grid", "revoke", "alpha", "--socket", alpha.socket, code=2)
    assert "cannot put itself out" in refused.stderr
    unknown = gridnode("grid", "revoke", "delta", "--socket", alpha.socket, code=2)
    assert "known are: beta" in unknown.stderr
    gridnode("grid", "revoke", "beta", "--socket", alpha.socket)
    with Grid(alpha.socket) as client:
        wait_until(lambda: all(peer["status"] != "alive" for peer in client.peers()["items"]), "beta to be put out")
        wait_until(lambda: client.status()["peers_alive"] == 0, "the scheduler to know")
    assert beta.process.poll() is None
