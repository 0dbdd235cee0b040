import io
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from gridnode.control import ClassRecord, DetectionRecord, JobDone, ResultBody, TensorHeader
from gridnode.errors import InvalidInputError, ProtocolError
from gridnode.inputs import encode_input
from gridnode.results import Box, make_result
from models import ndarrays
from models.bodies import decode_request

ROOT = Path(__file__).resolve().parents[2]
RGB = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def answer(body):
    return JobDone(
        key=bytes(24),
        model="street-small",
        model_digest="ab" * 32,
        node="id",
        node_name="roof",
        hops=2,
        waiting_s=0.1,
        service_s=0.2,
        transfer_s=0.3,
        total_s=0.6,
        body=msgspec.msgpack.encode(body),
    )


def payload_of(encoded):
    data = b"".join(bytes(part) for part in encoded.parts)
    assert len(data) == encoded.payload_bytes
    return data


def encoded_picture(form):
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, form)
    return file.getvalue()


# ---------------------------------------------------------------- results


def test_result_holds_what_the_node_said():
    body = ResultBody(
        detections=(DetectionRecord(class_index=2, class_name="cyclist", score=0.5, box=(1, 2, 3, 4)),),
        classes=(ClassRecord(class_index=1, class_name="rain", score=0.25),),
        image_width=640,
        image_height=360,
        truncated=True,
        emulated=True,
    )
    result = make_result(answer(body), b"", client_s=0.7)
    assert result.detections[0].box == Box(1, 2, 3, 4)
    assert result.detections[0].class_name == "cyclist"
    assert (result.classes[0].class_name, result.classes[0].score) == ("rain", 0.25)
    assert (result.model, result.node, result.node_id, result.hops) == ("street-small", "roof", "id", 2)
    assert (result.timings.queue_s, result.timings.service_s, result.timings.transfer_s) == (0.1, 0.2, 0.3)
    assert (result.timings.total_s, result.timings.client_s) == (0.6, 0.7)
    assert result.image_size == (640, 360)
    assert result.truncated
    assert result.emulated


def test_tensors_are_views_laid_out_as_the_models_package_does():
    outputs = {
        "scores": np.array([[0.5, 1.5]], np.float32),
        "kept": np.array([True, False, True]),
        "none": np.empty((0, 4), np.int64),
        "count": np.array(7, np.int32),
    }
    headers, payload = ndarrays.pack(outputs)
    body = ResultBody(tensors=tuple(TensorHeader(name=h.name, dtype=h.dtype, shape=h.shape) for h in headers))
    result = make_result(answer(body), payload, client_s=0)
    assert list(result.tensors) == list(outputs)
    for name, array in outputs.items():
        assert result.tensors[name].dtype == array.dtype
        assert np.array_equal(result.tensors[name], array)
    assert np.shares_memory(result.tensors["scores"], np.frombuffer(payload, np.uint8))


@pytest.mark.parametrize(
    "header",
    [
        TensorHeader(name="x", dtype="float32", shape=(3,)),
        TensorHeader(name="x", dtype="object", shape=(2,)),
        TensorHeader(name="x", dtype="uint8", shape=(-1, -8)),
    ],
)
def test_outputs_that_do_not_fit_are_the_nodes_fault(header):
    with pytest.raises(ProtocolError, match=r"tensor|outputs"):
        make_result(answer(ResultBody(tensors=(header,))), bytes(8), client_s=0)


def test_an_answer_like_the_last_has_tensors_of_its_own():
    body = ResultBody(tensors=(TensorHeader(name="x", dtype="uint8", shape=(2,)),))
    first, second = (make_result(answer(body), bytearray(data), client_s=0) for data in (b"ab", b"cd"))
    assert [bytes(result.tensors["x"]) for result in (first, second)] == [b"ab", b"cd"]
    with pytest.raises(ProtocolError, match="2 bytes"):
        make_result(answer(body), b"abc", client_s=0)


# ---------------------------------------------------------------- inputs


def test_a_contiguous_frame_is_not_copied():
    encoded = encode_input(RGB)
    body = decode_request(encoded.body)
    assert (body.kind, body.width, body.height) == ("array", 6, 4)
    assert np.shares_memory(np.frombuffer(encoded.parts[0], np.uint8), RGB)
    assert payload_of(encoded) == RGB.tobytes()


def test_frames_of_other_layouts_become_rgb():
    assert payload_of(encode_input(RGB[:, ::-1])) == RGB[:, ::-1].tobytes()
    grey = RGB[..., 0]
    expected = np.stack([grey] * 3, axis=2).tobytes()
    assert payload_of(encode_input(grey)) == expected
    assert payload_of(encode_input(grey[:, :, None])) == expected


def test_pil_images_become_rgb():
    assert payload_of(encode_input(Image.fromarray(RGB))) == RGB.tobytes()
    grey = Image.fromarray(RGB).convert("L")
    assert payload_of(encode_input(grey)) == grey.convert("RGB").tobytes()


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_picture_files_travel_as_they_are(tmp_path, form):
    data = encoded_picture(form)
    (tmp_path / "x").write_bytes(data)
    for source in (data, bytearray(data), memoryview(data), tmp_path / "x", str(tmp_path / "x")):
        encoded = encode_input(source, raw_outputs=True)
        assert decode_request(encoded.body).kind == "image"
        assert decode_request(encoded.body).raw_outputs
        assert payload_of(encoded) == data


def test_files_of_other_formats_go_through_pillow(tmp_path):
    path = tmp_path / "x.bmp"
    path.write_bytes(encoded_picture("BMP"))
    assert payload_of(encode_input(path)) == RGB.tobytes()


def test_tensors_are_laid_out_as_the_models_package_reads_them():
    inputs = {
        "a": np.arange(5, dtype=np.float32),
        "b": np.arange(6, dtype=np.int64).reshape(2, 3)[:, ::-1],
        "c": np.arange(4, dtype=">i4"),
        "d": np.array(True),
        "e": np.empty((0, 3), np.float16),
        "f": np.ma.masked_array(np.arange(3, dtype=np.float16), mask=[0, 1, 0]),
    }
    encoded = encode_input(inputs)
    read = ndarrays.views(decode_request(encoded.body).tensors, payload_of(encoded))
    assert list(read) == list(inputs)
    for name, array in inputs.items():
        assert np.array_equal(read[name], array)
    assert np.shares_memory(np.frombuffer(encoded.parts[0], np.float32), inputs["a"])


def test_what_is_remembered_of_a_form_mixes_neither_wishes_nor_types_up():
    values = np.arange(6, dtype=np.int32)
    for array in (values, values.astype(">i4"), values.reshape(2, 3), values):
        for raw_outputs, threshold in ((False, None), (True, 0.5), (False, 0.25)):
            encoded = encode_input({"x": array}, raw_outputs=raw_outputs, score_threshold=threshold)
            body = decode_request(encoded.body)
            assert (body.raw_outputs, body.score_threshold) == (raw_outputs, threshold)
            assert body.tensors[0].shape == array.shape
            assert payload_of(encoded) == array.astype("<i4").tobytes()


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (RGB.astype(np.float32), "pass a dict"),
        (np.zeros((2, 3, 4), np.uint8), r"frame\[\.\.\., :3\]"),
        (np.zeros((0, 3, 3), np.uint8), "3x0"),
        (np.zeros((1, 70_000, 3), np.uint8), "65535"),
        (b"GIF89a...", "neither JPEG nor PNG"),
        (b"", "0 bytes"),
        (memoryview(b"\xff\xd8\xff" * 9)[::2], "gaps"),
        ("/nowhere/frame.jpg", "cannot be read"),
        ("\0", "cannot be read"),
        ({}, "0 tensors"),
        ({"x": np.zeros(3, np.float64)}, "float64"),
        ({"x": np.zeros(3, "U4")}, "cast"),
        ({"": np.zeros(3, np.uint8)}, "name"),
        ({3: np.zeros(3, np.uint8)}, "name"),
        ({"x": np.zeros((1,) * 9, np.uint8)}, "dimensions"),
        ({"x": np.broadcast_to(np.uint8(0), (65 * 1024 * 1024,))}, "at most"),
    ],
)
def test_wrong_inputs_are_named_with_their_remedy(source, words):
    with pytest.raises(InvalidInputError, match=words):
        encode_input(source)


def test_inputs_of_no_supported_type_are_type_errors():
    for source in (7, None, [[0, 0]], object()):
        with pytest.raises(TypeError, match="give a uint8 numpy array"):
            encode_input(source)
    with pytest.raises(TypeError, match="asarray"):
        encode_input({"x": [1, 2, 3]})


def test_a_broken_file_of_another_format_is_named(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no picture")
    with pytest.raises(InvalidInputError, match=r"notes\.txt is not a picture"):
        encode_input(path)
    file = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(file, "JPEG")
    with pytest.raises(InvalidInputError, match="cannot be decoded"):
        encode_input(Image.open(io.BytesIO(file.getvalue()[:2000])))


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.jpg"
    with path.open("wb") as file:
        file.truncate(65 * 1024 * 1024)
    with pytest.raises(InvalidInputError, match="at most"):
        encode_input(path)


@pytest.mark.parametrize("threshold", [-0.1, 1.1, float("nan")])
def test_threshold_out_of_range_is_refused(threshold):
    with pytest.raises(InvalidInputError, match="0 to 1"):
        encode_input(RGB, score_threshold=threshold)


def test_missing_packages_are_named(tmp_path):
    (tmp_path / "x.bmp").write_bytes(encoded_picture("BMP"))
    program = (
        "import sys; sys.modules['numpy'] = sys.modules['PIL'] = None\n"
        "import msgspec\n"
        "from gridnode.control import *\n"
        "from gridnode.inputs import encode_input\n"
        "from gridnode.results import make_result\n"
        "body = ResultBody(tensors=(TensorHeader(name='x', dtype='uint8', shape=(1,)),))\n"
        "done = JobDone(key=bytes(24), model='', model_digest='', node='', node_name='', hops=0, waiting_s=0,\n"
        "               service_s=0, transfer_s=0, total_s=0, body=msgspec.msgpack.encode(body))\n"
        "result = make_result(done, b'x', client_s=0)\n"
        "for call in (lambda: result.tensors, lambda: result.annotate('x.bmp'), lambda: encode_input('x.bmp')):\n"
        "    try: call()\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert told[0].startswith("ModuleNotFoundError")
    assert "pip install numpy" in told[0]
    assert told[1].startswith("ModuleNotFoundError")
    assert "pip install pillow" in told[1]
    assert told[2].startswith("InvalidInputError")
    assert "pip install pillow" in told[2]
