import msgspec
import pytest

from models.bodies import (
    BODY_MAX_BYTES,
    DETECTIONS_MAX,
    DetectionRecord,
    RequestBody,
    ResultBody,
    decode_request,
    decode_result,
    encode_request,
    encode_result,
)
from models.tensors import BadInputError, TensorHeader


def test_bodies_are_maps_so_that_other_languages_can_write_them():
    data = encode_request(
        RequestBody(kind="tensors", tensors=(TensorHeader(name="x", dtype="float32", shape=(1, 5)),), raw_outputs=True)
    )
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
        b"x" * (BODY_MAX_BYTES + 1),
    ],
)
def test_a_malformed_body_is_the_senders_fault(data):
    with pytest.raises(BadInputError, match="request body"):
        decode_request(data)


def test_unknown_fields_of_a_newer_sender_are_ignored():
    data = msgspec.msgpack.encode({"kind": "image", "colour_space": "p3"})
    assert decode_request(data) == RequestBody(kind="image")


def test_detections_beyond_the_bound_are_cut_from_the_end_and_that_is_said():
    record = DetectionRecord(class_index=0, class_name="vehicle", score=0.5, box=(0.0, 0.0, 1.0, 1.0))
    many = ResultBody(detections=(record,) * (DETECTIONS_MAX + 1))
    result = decode_result(encode_result(many))
    assert result.truncated
    assert len(result.detections) == DETECTIONS_MAX


def test_long_class_names_shorten_the_list_until_the_body_fits():
    record = DetectionRecord(class_index=0, class_name="x" * 128, score=0.5, box=(0.0, 0.0, 1.0, 1.0))
    data = encode_result(ResultBody(detections=(record,) * 500))
    assert len(data) <= BODY_MAX_BYTES
    assert decode_result(data).truncated
