import msgspec
import numpy as np
import pytest

from models import tensors
from models.manifest import ImagePreprocessing, Manifest, TensorSpec, describe_shard
from models.tensors import BadInputError, DetectionRecord, GoldenFormatError, RequestBody, ResultBody, TensorHeader


def make_manifest(*inputs, preprocessing=None):
    return Manifest(
        name="toy",
        inputs=inputs,
        outputs=(TensorSpec(name="y", dtype="float32", shape=(1,)),),
        preprocessing=preprocessing,
        peak_memory_bytes=1,
        graph="graph.onnx",
        shards=(describe_shard("graph.onnx", [b"x"]),),
    )


X = TensorSpec(name="x", dtype="float32", shape=(1, -1))
MASK = TensorSpec(name="mask", dtype="bool", shape=(4,))
TAKES_TENSORS = make_manifest(X, MASK)
TAKES_PICTURES = make_manifest(
    TensorSpec(name="images", dtype="float32", shape=(1, 3, 8, 8)),
    preprocessing=ImagePreprocessing(input="images", width=8, height=8),
)
X_HEADER = TensorHeader(name="x", dtype="float32", shape=(1, 5))
MASK_HEADER = TensorHeader(name="mask", dtype="bool", shape=(4,))


def test_tensors_start_at_multiples_of_64_and_nothing_follows_the_last():
    headers, payload = tensors.pack({"a": np.arange(3, dtype=np.uint8), "b": np.arange(2, dtype=np.int64)})
    assert tensors.layout(headers) == ((0, 64), 80)
    assert bytes(payload) == bytes([0, 1, 2]) + bytes(61) + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")


def test_views_share_memory_with_the_payload():
    headers, payload = tensors.pack({"a": np.zeros(3, np.float32)})
    tensors.views(headers, payload)["a"][0] = 1.0
    assert bytes(payload[:4]) == np.float32(1.0).tobytes()


def test_views_of_read_only_memory_are_read_only():
    headers, payload = tensors.pack({"a": np.zeros(3, np.float32)})
    assert not tensors.views(headers, bytes(payload))["a"].flags.writeable


def test_a_boolean_byte_other_than_0_and_1_becomes_1():
    seen = tensors.views([MASK_HEADER], b"\x00\x01\x02\xff")["mask"]
    assert seen.tobytes() == b"\x00\x01\x01\x01"


def test_fortran_order_and_big_endian_arrays_are_written_in_the_one_layout():
    array = np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))
    _, payload = tensors.pack({"a": array})
    assert bytes(payload) == np.arange(6, dtype="<i4").tobytes()


@pytest.mark.parametrize("array", [np.zeros(2), np.zeros(2, "complex64"), np.array(["a"]), np.array([object()])])
def test_an_array_of_an_unsupported_type_is_refused_by_name(array):
    with pytest.raises(BadInputError, match=r"tensor 'a' is .* supported are float32"):
        tensors.pack({"a": array})


def test_a_target_that_is_too_small_is_refused():
    with pytest.raises(BadInputError, match="take 12 bytes, there is room for 8"):
        tensors.write({"a": np.zeros(3, np.float32)}, memoryview(bytearray(8)))


@pytest.mark.parametrize(
    ("headers", "payload_bytes", "message"),
    [
        ([X_HEADER, MASK_HEADER], 67, "payload has 67 bytes, its tensor headers add up to 68"),
        ([X_HEADER], 20, "got no input mask bool"),
        ([X_HEADER, X_HEADER, MASK_HEADER], 132, "input 'x' is given twice"),
        ([TensorHeader(name="z", dtype="float32", shape=(1, 5))], 20, r"no input 'z'; it takes x float32\[1, -1\]"),
        ([TensorHeader(name="x", dtype="float16", shape=(1, 5))], 10, "input 'x' is float16, the model takes float32"),
        ([TensorHeader(name="x", dtype="float32", shape=(2, 5))], 40, r"shape \(2, 5\), the model takes \(1, -1\)"),
        ([TensorHeader(name="x", dtype="float32", shape=(5,))], 20, r"shape \(5,\), the model takes \(1, -1\)"),
        ([TensorHeader(name="x", dtype="float32", shape=(1, 0))], 0, r"shape \(1, 0\), the model takes \(1, -1\)"),
    ],
)
def test_a_request_that_does_not_fit_the_model_is_refused_with_what_was_seen(headers, payload_bytes, message):
    with pytest.raises(BadInputError, match=message):
        tensors.check_request(TAKES_TENSORS, RequestBody(kind="tensors", tensors=tuple(headers)), payload_bytes)


def test_a_request_that_fits_passes():
    body = RequestBody(kind="tensors", tensors=(X_HEADER, MASK_HEADER))
    tensors.check_request(TAKES_TENSORS, body, 68)


def test_sizes_whose_product_overflows_64_bits_are_refused_before_anything_is_allocated():
    header = TensorHeader(name="x", dtype="float32", shape=(1, 2**32))
    manifest = make_manifest(TensorSpec(name="x", dtype="float32", shape=(1, -1)))
    with pytest.raises(BadInputError, match="add up to 17179869184"):
        tensors.check_request(manifest, RequestBody(kind="tensors", tensors=(header,)), 0)


def test_an_empty_tensor_of_an_impossible_shape_is_refused():
    with pytest.raises(BadInputError, match="impossible shape"):
        tensors.views([TensorHeader(name="x", dtype="int64", shape=(0, 2**32, 2**32, 2**32))], b"")


@pytest.mark.parametrize(
    ("manifest", "body", "payload_bytes", "message"),
    [
        (TAKES_TENSORS, RequestBody(kind="image"), 10, "takes no pictures, .* send its inputs as tensors"),
        (TAKES_PICTURES, RequestBody(kind="image"), 0, "empty payload"),
        (TAKES_PICTURES, RequestBody(kind="image"), 2**26 + 1, "at most 67108864"),
        (TAKES_PICTURES, RequestBody(kind="array", width=2, height=2), 11, "2x2 needs 12 bytes of RGB, .* has 11"),
        (TAKES_PICTURES, RequestBody(kind="array"), 0, "0x0 needs 0 bytes"),
        (TAKES_PICTURES, RequestBody(kind="image", tensors=(X_HEADER,)), 10, "'image' names tensors"),
    ],
)
def test_a_picture_that_makes_no_sense_is_refused(manifest, body, payload_bytes, message):
    with pytest.raises(BadInputError, match=message):
        tensors.check_request(manifest, body, payload_bytes)


def test_a_model_that_needs_more_than_a_picture_is_named():
    manifest = make_manifest(*TAKES_PICTURES.inputs, X, preprocessing=TAKES_PICTURES.preprocessing)
    with pytest.raises(BadInputError, match="needs more than a picture: x"):
        tensors.check_request(manifest, RequestBody(kind="image"), 10)


def test_bodies_are_maps_so_that_other_languages_can_write_them():
    data = tensors.encode_request(RequestBody(kind="tensors", tensors=(X_HEADER,), raw_outputs=True))
    assert msgspec.msgpack.decode(data) == {
        "kind": "tensors",
        "tensors": [{"name": "x", "dtype": "float32", "shape": [1, 5]}],
        "raw_outputs": True,
    }


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"\x93\x01\x02\x03",
        b"\x91" * 40_000,
        msgspec.msgpack.encode({"kind": "video"}),
        msgspec.msgpack.encode({"kind": "tensors", "tensors": [{"name": "x", "dtype": "float32", "shape": [-1]}]}),
        msgspec.msgpack.encode({"kind": "tensors", "tensors": [{"name": "x", "dtype": "f", "shape": []}] * 65}),
        msgspec.msgpack.encode({"kind": "image", "score_threshold": 2.0}),
        b"x" * (tensors.BODY_MAX_BYTES + 1),
    ],
)
def test_a_malformed_body_is_the_senders_fault(data):
    with pytest.raises(BadInputError, match="request body"):
        tensors.decode_request(data)


def test_unknown_fields_of_a_newer_sender_are_ignored():
    data = msgspec.msgpack.encode({"kind": "image", "colour_space": "p3"})
    assert tensors.decode_request(data) == RequestBody(kind="image")


def test_detections_beyond_the_bound_are_cut_from_the_end_and_that_is_said():
    record = DetectionRecord(class_index=0, class_name="vehicle", score=0.5, box=(0.0, 0.0, 1.0, 1.0))
    many = ResultBody(detections=(record,) * (tensors.DETECTIONS_MAX + 1))
    result = tensors.decode_result(tensors.encode_result(many))
    assert result.truncated
    assert len(result.detections) == tensors.DETECTIONS_MAX


def test_long_class_names_shorten_the_list_until_the_body_fits():
    record = DetectionRecord(class_index=0, class_name="x" * 128, score=0.5, box=(0.0, 0.0, 1.0, 1.0))
    data = tensors.encode_result(ResultBody(detections=(record,) * 500))
    assert len(data) <= tensors.BODY_MAX_BYTES
    assert tensors.decode_result(data).truncated


def test_golden_data_comes_back():
    inputs, outputs = {"x": np.arange(5, dtype=np.int64)}, {"y": np.eye(3, dtype=np.float16)}
    shard = tensors.encode_golden(inputs, outputs)
    head_bytes = int.from_bytes(shard[:4], "little")
    assert [entry["name"] for entry in msgspec.msgpack.decode(shard[4 : 4 + head_bytes])] == ["in.x", "out.y"]
    got_inputs, got_outputs = tensors.decode_golden(shard)
    assert got_inputs["x"].tolist() == [0, 1, 2, 3, 4]
    assert got_outputs["y"].tolist() == np.eye(3).tolist()


@pytest.mark.parametrize(
    "change",
    [
        lambda shard: shard[:-1],
        lambda shard: shard + b"\0",
        lambda shard: b"",
        lambda shard: b"\xff\xff\xff\xff" + shard[4:],
        lambda shard: shard[:4] + b"\xc1" + shard[5:],
        lambda shard: shard.replace(b"in.x", b"is.x"),
        lambda shard: shard.replace(b"int64", b"int65"),
    ],
)
def test_a_damaged_golden_shard_is_the_publishers_fault(change):
    shard = tensors.encode_golden({"x": np.arange(5, dtype=np.int64)}, {"y": np.zeros(1, np.float32)})
    with pytest.raises(GoldenFormatError):
        tensors.decode_golden(change(shard))
