import msgspec
import numpy as np
import pytest

from models import ndarrays, tensors
from models.bodies import RequestBody, decode_result, encode_request
from models.manifest import (
    ClassificationPostprocessing,
    ImagePreprocessing,
    Manifest,
    TensorSpec,
    describe_shard,
)
from models.plans import BODY_KEPT_MAX_BYTES, PLANS_MAX, Plans
from models.tensors import BadInputError, InferenceError


def manifest(**others):
    return Manifest(
        name="toy",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, 3, -1, -1)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(-1,)),),
        peak_memory_bytes=1 << 20,
        graph="graph.onnx",
        shards=(describe_shard("graph.onnx", [b"x"]),),
        **others,
    )


def pictured(**others):
    return manifest(preprocessing=ImagePreprocessing(input="x", width=8, height=8), **others)


def body_of(shape=(1, 3, 4, 4), **others):
    header = tensors.TensorHeader(name="x", dtype="float32", shape=shape)
    return encode_request(RequestBody(kind="tensors", tensors=(header,), **others))


def test_a_body_is_judged_once_and_a_payload_of_another_length_is_refused_all_the_same():
    plans = Plans(manifest())
    plan = plans.find(body_of(), 192)
    assert plans.find(body_of(), 192) is plan
    assert (plan.is_raw, plan.geometry.frame_width) == (True, 4)
    with pytest.raises(BadInputError, match="payload has 188 bytes, its tensor headers add up to 192"):
        plans.find(body_of(), 188)
    with pytest.raises(BadInputError, match="payload has 188 bytes"):
        Plans(manifest()).find(body_of(), 188)
    assert plans.find(body_of((1, 3, 4, 8)), 384) is not plan


def test_pictures_of_any_length_share_a_plan_but_for_an_empty_one():
    plans = Plans(pictured())
    body = encode_request(RequestBody(kind="image"))
    plan = plans.find(body, 1000)
    assert plans.find(body, 2000) is plan
    assert not plan.has_tensors
    with pytest.raises(BadInputError, match="empty payload"):
        plans.find(body, 0)


def test_what_is_wrong_is_told_every_time():
    plans = Plans(manifest())
    for _ in range(2):
        with pytest.raises(BadInputError, match="body is malformed"):
            plans.find(b"\xc1", 0)
        with pytest.raises(BadInputError, match="takes no pictures"):
            plans.find(encode_request(RequestBody(kind="image")), 10)


def test_plans_in_use_are_kept_and_the_others_forgotten():
    plans = Plans(manifest())
    used = plans.find(body_of(), 192)
    kept = [plans.find(body_of(width=number + 1), 192) for number in range(PLANS_MAX)]
    assert plans.find(body_of(), 192) is used
    for number in range(PLANS_MAX, 3 * PLANS_MAX):
        plans.find(body_of(width=number + 1), 192)
        assert plans.find(body_of(), 192) is used
    assert plans.find(body_of(width=1), 192) is not kept[0]
    assert plans.find(body_of(width=3 * PLANS_MAX), 192) is plans.find(body_of(width=3 * PLANS_MAX), 192)


def test_a_long_body_is_not_kept():
    plans = Plans(manifest())
    long = body_of()
    # A map of one more, unknown field, which is ignored.
    long = bytes([long[0] + 1]) + long[1:] + b"\xa1z" + b"\xc5" + BODY_KEPT_MAX_BYTES.to_bytes(2, "big")
    long += bytes(BODY_KEPT_MAX_BYTES)
    assert plans.find(long, 192) is not plans.find(long, 192)


def test_raw_outputs_are_laid_out_anew_only_where_they_differ():
    plan = Plans(manifest()).find(body_of(), 192)
    first = {"y": np.float32([1, 2]), "z": np.array([[True]])}
    layout = plan.lay_out(first)
    assert plan.lay_out({"y": np.float32([3, 4]), "z": np.array([[False]])}) is layout
    for other in (np.float32([1]), np.float16([1, 2]), np.float32([[1, 2]])):
        assert plan.lay_out({"y": other, "z": first["z"]}) is not layout
    target = bytearray(100)
    layout.write(first, memoryview(target))
    result = decode_result(layout.body)
    assert (result.image_width, result.image_height, layout.size_bytes) == (4, 4, 65)
    seen = ndarrays.views(result.tensors, target[: layout.size_bytes])
    assert (seen["y"].tolist(), seen["z"].tolist()) == ([1, 2], [[True]])


def test_outputs_that_cannot_be_sent_are_the_models_fault():
    plan = Plans(manifest()).find(body_of(), 192)
    good = {"y": np.float32([1])}
    layout = plan.lay_out(good)
    for bad, message in (([1.0], "'y' is no tensor"), (np.array(["a"]), "supported are")):
        with pytest.raises(InferenceError, match=message) as caught:
            plan.lay_out({"y": bad})
        assert not isinstance(caught.value, BadInputError)
    with pytest.raises(InferenceError, match="take 4 bytes, there is room for 3"):
        layout.write(good, memoryview(bytearray(3)))


def test_outputs_in_strange_orders_are_written_in_the_one_layout():
    plan = Plans(manifest()).find(body_of(), 192)
    value = np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3))
    layout = plan.lay_out({"y": value})
    target = bytearray(24)
    layout.write({"y": value}, memoryview(target))
    assert bytes(target) == np.arange(6, dtype="<f4").tobytes()


def test_the_frame_of_given_tensors_is_what_the_request_says_or_the_models_own():
    plans = Plans(pictured(postprocessing=ClassificationPostprocessing(output="y", class_names=("a", "b"))))
    plan = plans.find(body_of((1, 3, 8, 8)), 768)
    assert (plan.is_raw, plan.geometry.frame_width, plan.geometry.frame_height) == (False, 8, 8)
    plan = plans.find(body_of((1, 3, 8, 8), width=64, height=32, raw_outputs=True), 768)
    assert (plan.is_raw, plan.geometry.frame_width, plan.geometry.frame_height) == (True, 64, 32)


def test_of_memory_that_may_change_only_numbers_to_compute_with_are_read_in_place():
    kinds = {
        "frame": ("float32", 2000, True),
        "half": ("float16", 3000, True),
        "bytes": ("uint8", 5000, True),
        "signed": ("int8", 5000, True),
        "few": ("float32", 1024, False),
        "indices": ("int64", 2000, False),
        "numbers": ("int32", 2000, False),
        "mask": ("bool", 5000, False),
    }
    specs = tuple(TensorSpec(name=name, dtype=dtype, shape=(-1,)) for name, (dtype, _, _) in kinds.items())
    shapes = {name: np.zeros(size, dtype) for name, (dtype, size, _) in kinds.items()}
    headers, payload = ndarrays.pack(shapes)
    inputs = msgspec.structs.replace(manifest(), inputs=specs)
    plan = Plans(inputs).find(encode_request(RequestBody(kind="tensors", tensors=headers)), len(payload))
    shared = plan.feeds(memoryview(payload).toreadonly(), is_shared=True)
    payload[:] = b"\x01" * len(payload)
    assert {name: bool(value.any()) for name, value in shared.items()} == {n: seen for n, (_, _, seen) in kinds.items()}
    own = plan.feeds(memoryview(payload).toreadonly(), is_shared=False)
    assert np.shares_memory(own["indices"], np.frombuffer(payload, np.uint8))
