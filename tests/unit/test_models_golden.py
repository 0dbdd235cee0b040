import msgspec
import numpy as np
import pytest

from models.golden import GoldenFormatError, decode_golden, encode_golden


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
    with pytest.raises(GoldenFormatError):
        decode_golden(change(shard))
