import pytest

from models.bodies import RequestBody
from models.manifest import ImagePreprocessing, Manifest, TensorSpec, describe_shard
from models.requestcheck import check_request
from models.tensors import BadInputError, TensorHeader


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
        check_request(TAKES_TENSORS, RequestBody(kind="tensors", tensors=tuple(headers)), payload_bytes)


def test_a_request_that_fits_passes():
    body = RequestBody(kind="tensors", tensors=(X_HEADER, MASK_HEADER))
    check_request(TAKES_TENSORS, body, 68)


def test_sizes_whose_product_overflows_64_bits_are_refused_before_anything_is_allocated():
    header = TensorHeader(name="x", dtype="float32", shape=(1, 2**32))
    manifest = make_manifest(TensorSpec(name="x", dtype="float32", shape=(1, -1)))
    with pytest.raises(BadInputError, match="add up to 17179869184"):
        check_request(manifest, RequestBody(kind="tensors", tensors=(header,)), 0)


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
        check_request(manifest, body, payload_bytes)


def test_a_model_that_needs_more_than_a_picture_is_named():
    manifest = make_manifest(*TAKES_PICTURES.inputs, X, preprocessing=TAKES_PICTURES.preprocessing)
    with pytest.raises(BadInputError, match="needs more than a picture: x"):
        check_request(manifest, RequestBody(kind="image"), 10)
