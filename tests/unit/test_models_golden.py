import msgspec
import numpy as np
import pytest

from models import ndarrays
from models.golden import GoldenFormatError, decode_golden, encode_golden, golden_inputs, outputs_shard


def test_golden_data_comes_back():
    inputs, outputs = {"x": np.arange(5, dtype=np.int64)}, {"y": np.eye(3, dtype=np.float16)}
    shard = encode_golden(inputs, outputs)
    head_bytes = int.from_bytes(shard[:4], "little")
    assert [entry["name"] for entry in msgspec.msgpack.decode(shard[4 : 4 + head_bytes])] == ["in.x", "out.y"]
    got_inputs, got_outputs = decode_golden(shard)
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
    shard = encode_golden({"x": np.arange(5, dtype=np.int64)}, {"y": np.zeros(1, np.float32)})
    for read in (decode_golden, golden_inputs):
        with pytest.raises(GoldenFormatError):
            read(change(shard))


def test_golden_inputs_are_a_request_as_they_are():
    inputs = {"b": np.arange(100, dtype=np.uint8), "a": np.arange(6, dtype=np.float16).reshape(2, 3)}
    headers, payload = golden_inputs(encode_golden(inputs, {"y": np.eye(3, dtype=np.float32)}))
    assert (headers, payload) == ndarrays.pack(inputs)


def test_outputs_can_be_laid_out_as_a_shard_of_their_own():
    outputs = {"y": np.eye(3, dtype=np.float32), "z": np.arange(2, dtype=np.int64)}
    inputs, found = decode_golden(outputs_shard(*ndarrays.pack(outputs)))
    assert inputs == {}
    assert {name: array.tolist() for name, array in found.items()} == {n: a.tolist() for n, a in outputs.items()}
