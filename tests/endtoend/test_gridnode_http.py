"""Real programs that know nothing of gridnode, before a real daemon and a real model.

``RECORDED`` is what tritonclient 2.73 sent, byte by byte, but for host, lengths and tensors. The client itself is no
part of the environment for development: it brings 60 MB of others. Where there is a Python that has it, name it in
TRITON_PYTHON, and the last test runs it.
"""

import base64
import gzip
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image

pytestmark = pytest.mark.slow

SETTINGS = ("http.enabled=true",)

RECORDED = {
    "binary": (
        b"POST /v2/models/tiny/infer HTTP/1.1\r\nUser-Agent: python/gevent-http-client-2.6.1\r\n"
        b"Inference-Header-Content-Length: %(json)d\r\nHost: localhost:8000\r\nContent-Length: %(body)d\r\n\r\n",
        b'{"id":"42","inputs":[{"name":"x","shape":[1,3,128,128],"datatype":"FP32","parameters":'
        b'{"binary_data_size":196608}}],"parameters":{"binary_data_output":true}}',
    ),
    "chosen outputs": (
        b"POST /v2/models/tiny/versions/1/infer HTTP/1.1\r\nUser-Agent: python/gevent-http-client-2.6.1\r\n"
        b"Inference-Header-Content-Length: %(json)d\r\nHost: localhost:8000\r\nContent-Length: %(body)d\r\n\r\n",
        b'{"inputs":[{"name":"x","shape":[1,3,128,128],"datatype":"FP32","parameters":{"binary_data_size":196608}}],'
        b'"outputs":[{"name":"y","parameters":{"binary_data":false}},{"name":"class_names","parameters":'
        b'{"binary_data":true}}],"parameters":{"priority":2,"timeout":5000000}}',
    ),
}
IMAGE = {"name": "image", "shape": [1], "datatype": "BYTES"}


@pytest.fixture
def address(real_grid):
    host, port = real_grid["n1"].ask()["http_address"].split(":")
    return host, int(port)


@pytest.fixture
def ask(address):
    """Ask over one connection: ``ask(method, path, body, **headers)`` gives status, JSON and binary data."""
    connection = http.client.HTTPConnection(*address, timeout=20)

    def send(method, path, body=None, **headers):
        connection.request(method, path, body, {name.replace("_", "-"): str(value) for name, value in headers.items()})
        response = connection.getresponse()
        data = response.read()
        size = int(response.headers.get("Inference-Header-Content-Length", len(data)))
        return response.status, json.loads(data[:size] or b"null"), data[size:]

    yield send
    connection.close()


@pytest.fixture
def picture():
    pixels = np.random.default_rng(5).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG")
    return file.getvalue()


def replay(address, name, binary):
    """Send what was recorded, with this tensor, and return the answer's JSON and binary data."""
    head, text = RECORDED[name]
    with socket.create_connection(address, timeout=20) as connection:
        connection.sendall(head % {b"json": len(text), b"body": len(text) + len(binary)} + text + binary)
        response = http.client.HTTPResponse(connection)
        response.begin()
        data = response.read()
        size = int(response.headers["Inference-Header-Content-Length"])
        response.close()
    return json.loads(data[:size]), data[size:]


def as_json(array, **others):
    given = {"name": "x", "shape": array.shape, "datatype": "FP32", "data": array.ravel().tolist()}
    return json.dumps({"inputs": [given], **others})


def test_what_tritonclient_sends_is_understood(real_grid, address, model_input):
    told, binary = replay(address, "binary", model_input.tobytes())
    assert (told["id"], told["model_name"], told["parameters"]["node"]) == ("42", "tiny", "n1")
    assert told["outputs"] == [
        {"name": "y", "datatype": "FP32", "shape": [1, 64], "parameters": {"binary_data_size": 256}}
    ]
    assert np.array_equal(np.frombuffer(binary, "<f4").reshape(1, 64), real_grid.expected)
    told, binary = replay(address, "chosen outputs", model_input.tobytes())
    y, names = told["outputs"]
    assert np.array_equal(np.array(y["data"], "f").reshape(1, 64), real_grid.expected)
    best = f"class {real_grid.expected.argmax()}".encode()
    assert (names["datatype"], names["shape"]) == ("BYTES", [3])
    assert binary[4 : 4 + binary[0]] == best


def test_the_worker_reads_a_body_where_it_was_received(real_grid, address, model_input):
    replay(address, "binary", model_input.tobytes())
    [worker] = real_grid["n1"].workers()
    maps = [one.path for one in worker.memory_maps(grouped=True)]
    assert any("gridnode-payloads" in path for path in maps), maps


def test_tensors_as_json_give_the_same_numbers(real_grid, ask, model_input):
    status, told, _ = ask("POST", "/v2/models/tiny/infer", as_json(model_input))
    assert status == 200
    assert np.array_equal(np.array(told["outputs"][0]["data"], "f").reshape(1, 64), real_grid.expected)
    assert told["parameters"]["service_s"] > 0


def test_the_plain_tensor_alone_will_do(real_grid, ask, model_input):
    headers = {"Inference_Header_Content_Length": 0}
    status, _, binary = ask("POST", "/v2/models/tiny/infer", model_input.tobytes(), **headers)
    assert status == 200
    assert np.array_equal(np.frombuffer(binary, "<f4").reshape(1, 64), real_grid.expected)


@pytest.mark.parametrize(("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies_are_understood(real_grid, ask, model_input, encoding, compress):
    packed = compress(as_json(model_input).encode())
    status, told, _ = ask("POST", "/v2/models/tiny/infer", packed, Content_Encoding=encoding)
    assert status == 200
    assert np.array_equal(np.array(told["outputs"][0]["data"], "f").reshape(1, 64), real_grid.expected)


def test_a_picture_is_answered_as_to_a_program_of_our_own(real_grid, ask, picture):
    with real_grid["n1"].client() as grid:
        ours = grid.infer("tiny", picture, deadline_s=10.0)
    given = IMAGE | {"data": [base64.b64encode(picture).decode()]}
    behind = len(picture).to_bytes(4, "little") + picture  # not where a payload begins: the worker gets a copy
    text = json.dumps({"inputs": [IMAGE | {"parameters": {"binary_data_size": len(behind)}}]}).encode()
    ways = [
        ask("POST", "/v2/models/tiny/infer", text + behind, Inference_Header_Content_Length=len(text)),
        ask("POST", "/v2/models/tiny/infer", picture, Content_Type="image/jpeg"),
        ask("POST", "/v2/models/tiny/infer", json.dumps({"inputs": [given]})),
    ]
    for status, told, _ in ways:
        assert status == 200
        outputs = {one["name"]: one["data"] for one in told["outputs"]}
        assert outputs["class_names"] == [found.class_name for found in ours.classes]
        assert outputs["class_scores"] == pytest.approx([found.score for found in ours.classes])
        assert outputs["class_ids"] == [found.class_index for found in ours.classes]
        size = told["parameters"]["image_width"], told["parameters"]["image_height"]
        assert size == ours.image_size == (120, 90)


def test_pictures_that_are_none_are_the_programs_fault(ask):
    status, told, _ = ask("POST", "/v2/models/tiny/infer", b"\xff\xd8\xff" + bytes(100), Content_Type="image/jpeg")
    assert status == 400
    assert "picture" in told["error"]


def test_metadata_and_readiness(ask):
    assert ask("GET", "/v2/health/ready")[0] == 200
    assert ask("GET", "/v2/models/tiny/ready")[0] == 200
    told = ask("GET", "/v2/models/tiny")[1]
    assert told["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [1, 3, 128, 128]}]
    assert [one["name"] for one in told["picture"]["outputs"]] == ["class_scores", "class_ids", "class_names"]


CLIENT = """
import sys
import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

client = triton.InferenceServerClient(sys.argv[1], concurrency=4)
assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("tiny")
assert not client.is_model_ready("none")
assert client.get_server_metadata()["name"] == "gridnode"
assert client.get_model_metadata("tiny")["outputs"][0]["name"] == "y"
assert client.get_model_repository_index()[0]["state"] == "READY"
x, y = np.load(sys.argv[2])["x"], np.load(sys.argv[2])["y"]

def given(binary=True):
    one = triton.InferInput("x", list(x.shape), "FP32")
    one.set_data_from_numpy(x, binary_data=binary)
    return [one]

for binary in (True, False):
    assert np.array_equal(client.infer("tiny", given(binary), request_id="7").as_numpy("y"), y)
    for asked in (True, False):
        outputs = [triton.InferRequestedOutput("y", binary_data=asked)]
        assert np.array_equal(client.infer("tiny", given(binary), outputs=outputs, timeout=9000000).as_numpy("y"), y)
for way in ("gzip", "deflate"):
    assert np.array_equal(client.infer("tiny", given(), request_compression_algorithm=way).as_numpy("y"), y)
waiting = [client.async_infer("tiny", given()) for _ in range(8)]
assert all(np.array_equal(one.get_result().as_numpy("y"), y) for one in waiting)
image = triton.InferInput("image", [1], "BYTES")
image.set_data_from_numpy(np.array([open(sys.argv[3], "rb").read()], dtype=object))
assert client.infer("tiny", [image]).as_numpy("class_names").shape == (3,)
WRONG = (("none", {}, "404"), ("tiny", {"timeout": 1}, "504"), ("tiny", {"model_version": "9"}, "404"))
for model, wish, status in WRONG:
    try:
        client.infer(model, given(), **wish)
    except InferenceServerException as error:
        assert error.status() == status, error
    else:
        raise AssertionError(f"{model} {wish} was answered")
client.close()
print("understood")
"""


def test_tritonclient_itself(real_grid, address, model_input, picture, tmp_path):
    python = os.environ.get("TRITON_PYTHON", sys.executable)
    probe = subprocess.run([python, "-c", "import tritonclient.http"], capture_output=True, check=False)
    if probe.returncode:
        pytest.skip("no tritonclient here: name a Python that has it in TRITON_PYTHON")
    np.savez(tmp_path / "tensors.npz", x=model_input, y=real_grid.expected)
    (tmp_path / "picture.jpg").write_bytes(picture)
    (tmp_path / "client.py").write_text(CLIENT)
    where = f"{address[0]}:{address[1]}"
    done = subprocess.run(
        [python, tmp_path / "client.py", where, tmp_path / "tensors.npz", tmp_path / "picture.jpg"],
        capture_output=True, text=True, check=False, timeout=60, cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert done.stdout == "understood\n", done.stderr[-3000:]
