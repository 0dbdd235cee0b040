"""Whatever comes by HTTP is read or refused by name, and what is read is what was sent."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from gridnode.http.heads import ChunkedBody, Head, HttpError, parse_head
from gridnode.http.oip import DATATYPES, ResponseParameters
from gridnode.http.requests import Wanted, read_request
from gridnode.http.responses import encode_response
from models.bodies import ResultBody
from models.manifest import DTYPES, Manifest, TensorSpec, describe_shard
from models.tensors import BadInputError, TensorHeader, layout

MODEL = Manifest(
    name="m",
    inputs=(TensorSpec(name="x", dtype="float32", shape=(-1,)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(-1,)),),
    peak_memory_bytes=1,
    graph="g",
    shards=(describe_shard("g", [b"g"]),),
)
SHAPES = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
ARRAYS = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(
        np.dtype(dtype),
        SHAPES,
        elements={"allow_nan": False, "allow_infinity": False} if "float" in dtype else None,
    )
)


def expected_payload(arrays):
    """Lay arrays out by the rule of docs/wire.md, independently of the code under test."""
    payload = b""
    for array in arrays:
        payload += bytes(-len(payload) % 64) + array.astype(array.dtype.newbyteorder("<")).tobytes()
    return payload


@given(st.lists(st.tuples(ARRAYS, st.booleans(), st.booleans()), min_size=1, max_size=4))
def test_tensors_arrive_as_they_were_sent(sent):
    inputs, binary = [], b""
    for number, (array, is_binary, is_flat) in enumerate(sent):
        one = {"name": f"x{number}", "shape": list(array.shape), "datatype": DATATYPES[array.dtype.name]}
        if is_binary:
            one["parameters"] = {"binary_data_size": array.nbytes}
            binary += array.tobytes()
        else:
            one["data"] = array.ravel().tolist() if is_flat or array.ndim == 0 else array.tolist()
        inputs.append(one)
    inference = read_request(json.dumps({"inputs": inputs}).encode(), memoryview(binary), MODEL)
    arrays = [array for array, _, _ in sent]
    assert b"".join(inference.parts) == expected_payload(arrays)
    assert inference.payload_bytes == layout(inference.body.tensors)[1] == len(expected_payload(arrays))
    assert [header.shape for header in inference.body.tensors] == [array.shape for array in arrays]
    assert [header.dtype for header in inference.body.tensors] == [array.dtype.name for array in arrays]


@given(st.lists(st.tuples(ARRAYS, st.booleans()), min_size=1, max_size=4))
def test_results_arrive_as_they_were_made(made):
    headers = tuple(
        TensorHeader(name=f"y{number}", dtype=array.dtype.name, shape=array.shape)
        for number, (array, _) in enumerate(made)
    )
    text, parts = encode_response(
        ResultBody(tensors=headers),
        expected_payload([array for array, _ in made]),
        Wanted(outputs=tuple((header.name, is_binary) for header, (_, is_binary) in zip(headers, made, strict=True))),
        model_name="m",
        model_version="d",
        parameters=ResponseParameters(node="n", node_id="i"),
    )
    binary = b"".join(parts)
    for output, (array, is_binary) in zip(json.loads(text)["outputs"], made, strict=True):
        if is_binary:
            size = output["parameters"]["binary_data_size"]
            seen = np.frombuffer(binary[:size], array.dtype)
            binary = binary[size:]
        else:
            seen = np.array(output["data"], array.dtype)
        assert np.array_equal(seen.reshape(output["shape"]), array)
        assert output["datatype"] == DATATYPES[array.dtype.name]
    assert binary == b""


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "name",
                    "shape",
                    "datatype",
                    "data",
                    "parameters",
                    "binary_data_size",
                    "inputs",
                    "outputs",
                    "timeout",
                    "id",
                ]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
INPUT = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["x", "image", ""]),
        "shape": st.lists(st.integers(-1, 2**33), max_size=9),
        "datatype": st.sampled_from([*DATATYPES.values(), "BYTES", "FP64"]),
    },
    optional={
        "data": JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 20)}),
    },
)


@given(
    st.fixed_dictionaries(
        {"inputs": st.lists(INPUT, max_size=3) | JSON}, optional={"outputs": JSON, "parameters": JSON}
    ),
    st.binary(max_size=24),
)
def test_nonsense_is_refused_by_name(request, binary):
    try:
        inference = read_request(json.dumps(request).encode(), memoryview(binary), MODEL)
    except BadInputError:
        return
    assert sum(map(len, inference.parts)) == inference.payload_bytes
    if inference.body.kind == "tensors":
        assert inference.payload_bytes == layout(inference.body.tensors)[1]


@given(st.binary(max_size=200))
def test_any_bytes_are_no_request_or_one(text):
    with pytest.raises(BadInputError):
        read_request(text, memoryview(b""), MODEL)


WORDS = st.sampled_from(
    [b"GET", b" ", b"/v2", b"HTTP/1.1", b"\r\n", b"\n", b"Host:", b"x", b"Content-Length:", b"5", b"5, 6", b"-1",
     b":", b"Transfer-Encoding:", b"chunked", b"Inference-Header-Content-Length:", b"\t", b"\0", b"\xff",
     b"Connection: close"]
)  # fmt: skip


@given(st.lists(WORDS, max_size=20).map(b"".join) | st.binary(max_size=80))
def test_any_head_is_read_or_refused(data):
    try:
        head = parse_head(data + b"\r\n\r\n")
    except HttpError:
        return
    assert isinstance(head, Head)
    assert not (head.is_chunked and head.body_bytes)
    assert head.body_bytes >= 0


@given(
    st.lists(st.binary(min_size=1, max_size=30), max_size=5),
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.binary(max_size=20),
)
def test_chunked_bodies_are_put_together(chunks, cuts, after):
    stream = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    body = ChunkedBody(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", most_bytes=1000)
    left = stream + after
    sizes = iter(cuts * math.ceil(len(left) / len(cuts)))
    while body.rest is None:
        size = next(sizes)
        body.feed(left[:size])
        left = left[size:]
        while not body.advance():
            pass
    assert bytes(body.data) == b"".join(chunks)
    assert body.rest + left == after
