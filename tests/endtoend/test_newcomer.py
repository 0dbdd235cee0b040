"""What a newcomer does first, on real parts: the README's program, and a YOLO export of one's own."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from gridnode.client import Grid
from gridnode.errors import GridError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CLASSES = 80
BOXES = 8400


def gridnode(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gridnode", *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def wait_until(condition, limit_s):
    end_s = time.monotonic() + limit_s
    while True:
        try:
            if condition():
                return
        except GridError:
            pass
        assert time.monotonic() < end_s, "condition did not come true in time"
        time.sleep(0.1)  # real processes: there is nothing in here to wait on


def write_yolo(path: Path) -> None:
    """Write a model with a YOLO export's output shape: two boxes of one bus, one person, in 640 x 640 letterbox."""
    output = np.zeros((1, 4 + CLASSES, BOXES), np.float32)
    output[0, :4, 10] = [320, 320, 100, 60]  # cx, cy, w, h
    output[0, 4 + 5, 10] = 0.9
    output[0, :4, 11] = [322, 321, 100, 60]  # the same bus, less sure: suppressed
    output[0, 4 + 5, 11] = 0.6
    output[0, :4, 500] = [64, 180, 20, 40]
    output[0, 4, 500] = 0.7
    constant = helper.make_tensor("boxes", TensorProto.FLOAT, output.shape, output.tobytes(), raw=True)
    zero = helper.make_tensor("zero", TensorProto.FLOAT, [1], np.zeros(1, np.float32).tobytes(), raw=True)
    nodes = [
        helper.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["boxes", "nothing"], ["output0"]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 640, 640])
    result = helper.make_tensor_value_info("output0", TensorProto.FLOAT, list(output.shape))
    graph = helper.make_graph(nodes, "yolo", [images], [result], [constant, zero])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    names = {index: f"class{index}" for index in range(CLASSES)} | {0: "person", 5: "bus"}
    for key, value in {"names": str(names), "imgsz": "[640, 640]", "stride": "32", "task": "detect"}.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, path)


@pytest.fixture(scope="module")
def socket(tmp_path_factory):
    """A real daemon with the street models and a YOLO export published."""
    folder = tmp_path_factory.mktemp("newcomer")
    state, path = str(folder / "node"), str(folder / "node.sock")
    gridnode("grid", "create", "home", "--state-dir", state)
    gridnode("model", "publish", "--zoo", "street", "--state-dir", state, "--socket", path)
    write_yolo(folder / "mine.onnx")
    gridnode("model", "publish", str(folder / "mine.onnx"), "--state-dir", state, "--socket", path)
    words = ("run", "--preset", "loopback", "--state-dir", state, "--socket", path)
    with (folder / "log").open("wb") as log:
        daemon = subprocess.Popen([sys.executable, "-P", "-m", "gridnode", *words], stderr=log)
    try:
        with Grid(path) as grid:
            wait_until(lambda: sum(model["state"] == "ready" for model in grid.models()["items"]) == 3, limit_s=60)
        yield path
    finally:
        daemon.terminate()
        assert daemon.wait(30) == 0


def test_the_program_in_the_readme_runs(socket, tmp_path):
    """As it stands on the page, in a folder that has a models.py of its own."""
    from models.zoo.street.scenes import render_video

    program = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    frame = next(iter(render_video(seed=3, frames=1, fps=10, size=(640, 360))))[0]
    (tmp_path / "frame.jpg").write_bytes(frame)
    (tmp_path / "program.py").write_text(program)
    (tmp_path / "models.py").write_text("raise SystemExit('the program of a user was not to import this')\n")
    done = subprocess.run(
        [sys.executable, "program.py"],
        cwd=tmp_path,
        env={**os.environ, "GRIDNODE_SOCKET": socket},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"answered by \S+ in \d+ ms with street", done.stdout)


def test_boxes_of_a_yolo_export_come_back_in_pixels_of_the_frame(socket, tmp_path):
    Image.new("RGB", (1280, 720), (90, 120, 60)).save(tmp_path / "wide.jpg")
    with Grid(socket) as grid:
        result = grid.infer("mine", tmp_path / "wide.jpg", deadline_s=10)
    # 1280 x 720 into 640 x 640: scale 0.5, 140 rows of border above and below.
    found = {item.class_name: (item.score, item.box) for item in result.detections}
    assert set(found) == {"bus", "person"}
    assert found["bus"][0] == pytest.approx(0.9, abs=1e-4)
    assert tuple(found["bus"][1]) == pytest.approx((540, 300, 740, 420), abs=1.0)
    assert tuple(found["person"][1]) == pytest.approx((108, 40, 148, 120), abs=1.0)


def test_the_command_line_draws_boxes(socket, tmp_path):
    Image.new("RGB", (640, 360), (90, 120, 60)).save(tmp_path / "a.jpg")
    out = tmp_path / "out"
    text = gridnode("submit", "mine", str(tmp_path / "a.jpg"), "--annotate", str(out), "--json", "--socket", socket)
    assert json.loads(text)
    drawn = np.asarray(Image.open(next(out.iterdir())).convert("RGB"))
    assert (np.ptp(drawn.reshape(-1, 3), axis=0) > 60).any(), "nothing was drawn on a plain picture"
