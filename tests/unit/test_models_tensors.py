import numpy as np
import pytest

from models import ndarrays, tensors
from models.manifest import DTYPES
from models.tensors import BadInputError, TensorHeader, size_bytes


def test_tensors_start_at_multiples_of_64_and_nothing_follows_the_last():
    headers, payload = ndarrays.pack({"a": np.arange(3, dtype=np.uint8), "b": np.arange(2, dtype=np.int64)})
    assert tensors.layout(headers) == ((0, 64), 80)
    assert bytes(payload) == bytes([0, 1, 2]) + bytes(61) + (0).to_bytes(8, "little") + (1).to_bytes(8, "little")


def test_views_share_memory_with_the_payload():
    headers, payload = ndarrays.pack({"a": np.zeros(3, np.float32)})
    ndarrays.views(headers, payload)["a"][0] = 1.0
    assert bytes(payload[:4]) == np.float32(1.0).tobytes()


def test_views_of_read_only_memory_are_read_only():
    headers, payload = ndarrays.pack({"a": np.zeros(3, np.float32)})
    assert not ndarrays.views(headers, bytes(payload))["a"].flags.writeable


def test_a_boolean_byte_other_than_0_and_1_becomes_1():
    seen = ndarrays.views([TensorHeader(name="mask", dtype="bool", shape=(4,))], b"\x00\x01\x02\xff")["mask"]
    assert seen.tobytes() == b"\x00\x01\x01\x01"


def test_fortran_order_and_big_endian_arrays_are_written_in_the_one_layout():
    array = np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))
    _, payload = ndarrays.pack({"a": array})
    assert bytes(payload) == np.arange(6, dtype="<i4").tobytes()


@pytest.mark.parametrize("array", [np.zeros(2), np.zeros(2, "complex64"), np.array(["a"]), np.array([object()])])
def test_an_array_of_an_unsupported_type_is_refused_by_name(array):
    with pytest.raises(BadInputError, match=r"tensor 'a' is .* supported are float32"):
        ndarrays.pack({"a": array})


def test_a_target_that_is_too_small_is_refused():
    with pytest.raises(BadInputError, match="take 12 bytes, there is room for 8"):
        ndarrays.write({"a": np.zeros(3, np.float32)}, memoryview(bytearray(8)))


def test_an_empty_tensor_of_an_impossible_shape_is_refused():
    with pytest.raises(BadInputError, match="impossible shape"):
        ndarrays.views([TensorHeader(name="x", dtype="int64", shape=(0, 2**32, 2**32, 2**32))], b"")


def test_sizes_are_those_of_numpy():
    for name in DTYPES:
        header = TensorHeader(name="x", dtype=name, shape=(5, 3))
        assert size_bytes(header) == np.zeros((5, 3), name).nbytes
