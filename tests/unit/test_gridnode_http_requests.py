"""What an inference request by HTTP becomes: body, payload and wishes, or a refusal that says what to do."""

import base64
import json

import msgspec
import numpy as np
import pytest

from gridnode.http.oip import DTYPES, describe_model
from gridnode.http.requests import read_picture, read_raw, read_request
from models.manifest import DTYPES as OUR_DTYPES
from models.manifest import (
    ClassificationPostprocessing,
    DetectionPostprocessing,
    ImagePreprocessing,
    Manifest,
    TensorSpec,
    describe_shard,
)
from models.tensors import BadInputError

PLAIN = Manifest(
    name="plain",
    inputs=(TensorSpec(name="x", dtype="float32", shape=(1, -1)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(1, 4)), TensorSpec(name="z", dtype="int64", shape=(1,))),
    peak_memory_bytes=1,
    graph="g",
    shards=(describe_shard("g", [b"g"]),),
)
STREET = msgspec.structs.replace(
    PLAIN,
    name="street",
    inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 3, 8, 8)),),
    preprocessing=ImagePreprocessing(input="x", width=8, height=8),
    postprocessing=DetectionPostprocessing(output="y", class_names=("car",)),
)
KINDS = msgspec.structs.replace(
    STREET, name="kinds", postprocessing=ClassificationPostprocessing(output="y", class_names=("a", "b"))
)
X = np.arange(4, dtype="<f4").reshape(1, 4)


def tensor(array=X, *, name="x", datatype="FP32", binary=True, **changes):
    given = {"name": name, "shape": list(array.shape), "datatype": datatype}
    given |= {"parameters": {"binary_data_size": array.nbytes}} if binary else {"data": array.tolist()}
    return given | changes


def read(*inputs, binary=b"", manifest=PLAIN, **others):
    return read_request(json.dumps({"inputs": inputs, **others}).encode(), memoryview(binary), manifest)


def test_every_datatype_of_manifests_has_its_name_in_the_protocol():
    assert set(DTYPES.values()) == set(OUR_DTYPES)


def test_binary_data_is_not_copied():
    data = bytearray(X.tobytes())
    inference = read(tensor(), binary=data)
    [part] = inference.parts
    data[0:4] = np.float32(7).tobytes()
    assert np.frombuffer(part, "<f4")[0] == 7
    assert (inference.body.kind, inference.payload_bytes) == ("tensors", 16)
    [header] = inference.body.tensors
    assert (header.name, header.dtype, header.shape) == ("x", "float32", (1, 4))


def test_numbers_may_be_flat_or_nested():
    flat = read(tensor(binary=False, data=[0, 1, 2, 3]))
    nested = read(tensor(binary=False))
    assert flat.parts == nested.parts == (X.tobytes(),)


def test_inputs_are_laid_out_as_workers_want_them():
    second = np.arange(3, dtype="<i8")
    inference = read(tensor(), tensor(second, name="w", datatype="INT64"), binary=X.tobytes() + second.tobytes())
    payload = b"".join(inference.parts)
    assert len(payload) == inference.payload_bytes == 64 + 24
    assert payload[:16] == X.tobytes()
    assert payload[64:] == second.tobytes()


def test_binary_and_json_inputs_may_be_mixed():
    inference = read(tensor(binary=False), tensor(X + 1, name="w"), binary=(X + 1).tobytes())
    assert b"".join(inference.parts)[64:] == (X + 1).tobytes()


# ---------------------------------------------------------------- outputs


def test_tensors_give_the_models_own_outputs():
    inference = read(tensor(), binary=X.tobytes())
    assert inference.wanted.outputs == (("y", False), ("z", False))
    assert inference.body.raw_outputs
    assert not inference.rungs


def test_tritonclient_without_outputs_wants_all_in_binary():
    inference = read(tensor(), binary=X.tobytes(), parameters={"binary_data_output": True})
    assert inference.wanted.outputs == (("y", True), ("z", True))


def test_outputs_say_one_by_one_how_they_are_wanted():
    outputs = [{"name": "z", "parameters": {"binary_data": False}}, {"name": "y"}]
    inference = read(tensor(), binary=X.tobytes(), outputs=outputs, parameters={"binary_data_output": True})
    assert inference.wanted.outputs == (("z", False), ("y", True))


@pytest.mark.parametrize(
    ("manifest", "names"),
    [
        (STREET, ["detection_boxes", "detection_scores", "detection_classes", "detection_names"]),
        (KINDS, ["class_scores", "class_ids", "class_names"]),
    ],
)
def test_pictures_give_what_was_seen_on_them(manifest, names):
    inference = read_picture(memoryview(b"jpeg"), manifest)
    assert [name for name, _ in inference.wanted.outputs] == names
    assert not inference.body.raw_outputs
    assert inference.rungs


def test_raw_outputs_of_a_picture_come_when_they_are_named():
    inference = read(
        {"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(b"jpeg").decode()]},
        manifest=STREET,
        outputs=[{"name": "y"}, {"name": "detection_boxes"}],
    )
    assert inference.body.raw_outputs
    assert inference.parts == (b"jpeg",)
    assert not inference.rungs


def test_metadata_tell_both_ways_to_ask():
    told = describe_model(STREET, "d" * 64)
    assert [(one.name, one.datatype, one.shape) for one in told.inputs] == [("x", "FP32", (1, 3, 8, 8))]
    assert [(one.name, one.datatype) for one in told.picture.inputs] == [("image", "BYTES")]
    assert "detection_boxes" in [one.name for one in told.picture.outputs]
    assert describe_model(PLAIN, "d" * 64).picture is None


# ---------------------------------------------------------------- pictures and raw bodies


def test_a_picture_in_binary_data_stands_behind_its_length():
    data = len(b"jpeg").to_bytes(4, "little") + b"jpeg"
    given = {"name": "image", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": len(data)}}
    inference = read(given, binary=data, manifest=STREET)
    assert [bytes(part) for part in inference.parts] == [b"jpeg"]
    assert (inference.body.kind, inference.payload_bytes) == ("image", 4)


def test_a_raw_body_is_the_one_input():
    [header] = read_raw(memoryview(bytes(16)), PLAIN).body.tensors
    assert header.shape == (1, 4)
    assert read_raw(memoryview(bytes(16)), PLAIN).wanted.outputs == (("y", True), ("z", True))


@pytest.mark.parametrize(
    ("manifest", "size", "words"),
    [
        (PLAIN, 15, "multiples of 4"),
        (msgspec.structs.replace(PLAIN, inputs=PLAIN.inputs * 2), 16, "has 2 inputs"),
        (
            msgspec.structs.replace(PLAIN, inputs=(TensorSpec(name="x", dtype="int8", shape=(-1, -1)),)),
            16,
            "more than one",
        ),
    ],
)
def test_raw_bodies_that_leave_the_shape_open_are_refused(manifest, size, words):
    with pytest.raises(BadInputError, match=words):
        read_raw(memoryview(bytes(size)), manifest)


# ---------------------------------------------------------------- parameters


@pytest.mark.parametrize(
    ("given", "ours"),
    [({}, 1), ({"priority": 0}, 1), ({"priority": 1}, 0), ({"priority": 2}, 1), ({"priority": 99}, 3)],
)
def test_priorities_count_from_one_there_and_from_zero_here(given, ours):
    assert read(tensor(binary=False), parameters=given).submit(bytes(24), "m").priority == ours


@pytest.mark.parametrize(("given", "budget_s"), [({}, None), ({"timeout": 0}, None), ({"timeout": 1_500_000}, 1.5)])
def test_timeouts_are_microseconds(given, budget_s):
    assert read(tensor(binary=False), parameters=given).submit(bytes(24), "m").budget_s == budget_s


def test_parameters_of_our_own():
    given = {"stream": "door", "frame": 7, "newest_wins": True, "score_threshold": 0.5, "rungs": True, "sequence_id": 5}
    inference = read(tensor(binary=False), parameters=given, id="a")
    message = inference.submit(bytes(24), "m")
    assert (message.stream, message.frame, message.newest_wins, message.rungs) == ("door", 7, True, True)
    assert inference.body.score_threshold == 0.5
    assert inference.wanted.id == "a"


# ---------------------------------------------------------------- nonsense

BOTH = tensor(binary=False) | {"parameters": {"binary_data_size": 16}}
NEITHER = {"name": "x", "shape": [1, 4], "datatype": "FP32"}
IMAGE = {"name": "image", "shape": [1], "datatype": "BYTES"}


@pytest.mark.parametrize(
    ("inputs", "binary", "words"),
    [
        ([], b"", "length >= 1"),
        ([tensor(datatype="FP64")], bytes(16), "'FP64', supported are"),
        ([tensor(shape=[1, 5])], bytes(16), "takes 20"),
        ([tensor()], bytes(12), "12 are left"),
        ([tensor()], bytes(20), "its inputs name 16"),
        ([tensor(binary=False)], bytes(20), "its inputs name 0"),
        ([BOTH], bytes(16), "either data or binary_data_size"),
        ([NEITHER], b"", "either data or binary_data_size"),
        ([tensor(parameters={"shared_memory_region": "r", "binary_data_size": 16})], b"", "shared memory"),
        ([tensor(shape=[2**32] * 8, binary=False, data=[1])], b"", "1 numbers, its shape needs"),
        ([tensor(shape=[-1, 4])], bytes(16), "shape"),
        ([tensor(shape=[1] * 9)], bytes(16), "length <= 8"),
        ([tensor(parameters={"binary_data_size": -1})], b"", ">= 0"),
        ([tensor(parameters={"binary_data_size": "16"})], b"", "int"),
        ([tensor(name="n" * 129)], bytes(16), "<= 128"),
        ([tensor(binary=False, data="AAAA")], b"", "no array of numbers"),
        ([tensor(binary=False, data=[1, 2, 3])], b"", "3 numbers, its shape needs 4"),
        ([tensor(binary=False, data=[[1, 2], 3, 4])], b"", "mixes"),
        ([tensor(binary=False, data=[1, 2, 3, "4"])], b"", "str"),
        ([tensor(binary=False, data=[1, 2, 3, None])], b"", "NoneType"),
        ([tensor(binary=False, data=[1, 2, 3, True])], b"", "bool"),
        ([tensor(binary=False, data=[1, 2, 3, 1e39])], b"", "does not fit FP32"),
        ([tensor(binary=False, data=[1, 2, 3, 70000], datatype="FP16")], b"", "does not fit FP16"),
        ([tensor(binary=False, data=[1, 2, 3, 256], datatype="UINT8")], b"", "does not fit UINT8"),
        ([tensor(binary=False, data=[1, 2, 3, 1.5], datatype="INT32")], b"", "does not fit INT32"),
        ([tensor(binary=False, data=[1, 2, 3, 2**63], datatype="INT64")], b"", "does not fit INT64"),
        ([tensor(binary=False, data=[1, 0, 1, 0], datatype="BOOL")], b"", "true and false"),
        ([tensor(binary=False, shape=[1], data=json.loads("[" * 9 + "1" + "]" * 9))], b"", "8 deep"),
        ([IMAGE | {"data": ["a", "b"]}], b"", "base64"),
        ([IMAGE | {"data": ["***"]}], b"", "base64"),
        ([IMAGE | {"name": "picture", "data": ["AAAA"]}], b"", "one input 'image'"),
        ([IMAGE | {"data": ["AAAA"]}, tensor(binary=False)], b"", "one input 'image'"),
        ([IMAGE | {"shape": [2], "data": ["AAAA", "AAAA"]}], b"", "one input 'image'"),
        ([IMAGE | {"parameters": {"binary_data_size": 3}}], b"\1\0\0", "beyond the data"),
        ([IMAGE | {"parameters": {"binary_data_size": 5}}], b"\2\0\0\0a", "beyond the data"),
        ([IMAGE | {"parameters": {"binary_data_size": 8}}], bytes(8), "one element"),
    ],
)  # fmt: skip
def test_inputs_that_make_no_sense(inputs, binary, words):
    with pytest.raises(BadInputError, match=words):
        read(*inputs, binary=binary)


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"outputs": [{"name": "w"}]}, "no output 'w'; it gives y, z"),
        ({"outputs": [{"name": "detection_boxes"}]}, "no output"),
        ({"outputs": [{"name": "y"}, {"name": "y"}]}, "wanted twice"),
        ({"outputs": [{"name": "y", "parameters": {"classification": 3}}]}, "classification"),
        ({"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]}, "shared memory"),
        ({"parameters": {"timeout": 1.5}}, "timeout"),
        ({"parameters": {"timeout": -1}}, "timeout"),
        ({"parameters": {"timeout": 10**13}}, "timeout"),
        ({"parameters": {"priority": -1}}, "priority"),
        ({"parameters": {"score_threshold": 2}}, "score_threshold"),
        ({"parameters": []}, "parameters"),
        ({"id": "i" * 257}, "<= 256"),
        ({"id": 7}, "id"),
    ],
)
def test_wishes_that_make_no_sense(others, words):
    with pytest.raises(BadInputError, match=words):
        read(tensor(binary=False), **others)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"\xff", b"null", b"[" * 100_000, b'{"inputs":' * 100_000])
def test_texts_that_are_no_request(text):
    with pytest.raises(BadInputError, match="no inference request"):
        read_request(text, memoryview(b""), PLAIN)
