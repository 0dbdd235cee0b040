import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from models import ndarrays, tensors
from models.bodies import decode_request, decode_result
from models.golden import GoldenFormatError, decode_golden, encode_golden
from models.manifest import DTYPES
from models.tensors import BadInputError, TensorHeader

names = st.text("abcxyz.é", min_size=1, max_size=6)
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(np.dtype(dtype), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
)


@given(st.dictionaries(names, arrays, max_size=6))
def test_arrays_come_back_from_a_payload_bit_by_bit(given_arrays):
    headers, payload = ndarrays.pack(given_arrays)
    seen = ndarrays.views(headers, payload)
    assert list(seen) == list(given_arrays)
    for name, array in given_arrays.items():
        assert seen[name].dtype == array.dtype
        assert seen[name].shape == array.shape
        assert seen[name].tobytes() == array.tobytes()


@given(st.dictionaries(names, arrays, max_size=4), st.dictionaries(names, arrays, max_size=4))
def test_golden_data_comes_back_bit_by_bit(inputs, outputs):
    seen_inputs, seen_outputs = decode_golden(encode_golden(inputs, outputs))
    assert {n: a.tobytes() for n, a in seen_inputs.items()} == {n: a.tobytes() for n, a in inputs.items()}
    assert {n: a.tobytes() for n, a in seen_outputs.items()} == {n: a.tobytes() for n, a in outputs.items()}


headers = st.builds(
    TensorHeader,
    name=st.sampled_from(["x", "y", "z"]),
    dtype=st.sampled_from([*DTYPES, "float64", "object"]),
    shape=st.lists(st.integers(0, 2**32), max_size=8).map(tuple),
)


@given(st.lists(headers, max_size=4), st.binary(max_size=200))
def test_headers_that_lie_are_refused_and_never_read_beyond_the_payload(claimed, payload):
    try:
        seen = ndarrays.views(claimed, payload)
    except BadInputError:
        return
    assert sum(array.nbytes for array in seen.values()) <= len(payload)


@given(st.binary(max_size=300))
def test_any_bytes_are_a_body_or_a_named_error(data):
    for decode, error in (
        (decode_request, tensors.BadInputError),
        (decode_result, tensors.InferenceError),
        (decode_golden, GoldenFormatError),
    ):
        try:
            decode(data)
        except error:
            continue


@given(st.data())
def test_a_golden_shard_with_changed_bytes_is_read_or_refused_by_name(data):
    shard = bytearray(encode_golden({"x": np.arange(4, dtype=np.int32)}, {"y": np.zeros(3, np.uint8)}))
    for _ in range(data.draw(st.integers(1, 4))):
        shard[data.draw(st.integers(0, len(shard) - 1))] = data.draw(st.integers(0, 255))
    try:
        inputs, outputs = decode_golden(shard)
    except GoldenFormatError:
        return
    assert sum(array.nbytes for array in (inputs | outputs).values()) <= len(shard)


def test_the_strategies_reach_both_outcomes():
    with pytest.raises(BadInputError):
        ndarrays.views([TensorHeader(name="x", dtype="uint8", shape=(2,))], b"\0")
    assert ndarrays.views([TensorHeader(name="x", dtype="uint8", shape=(1,))], b"\0")["x"].tolist() == [0]
