import msgspec
import numpy as np
import pytest

from gridnode import control
from gridnode.channel import FrameAssembler
from gridnode.errors import ProtocolError
from models import bodies, manifest, tensors

KEY = bytes(24)


def test_bounds_are_those_of_the_models_package():
    assert control.BODY_MAX_BYTES == bodies.BODY_MAX_BYTES
    assert control.PAYLOAD_MAX_BYTES == tensors.PAYLOAD_MAX_BYTES
    assert control.ALIGNMENT_BYTES == tensors.ALIGNMENT_BYTES
    assert tuple(control.DTYPE_BYTES) == manifest.DTYPES
    assert all(np.dtype(name).itemsize == size for name, size in control.DTYPE_BYTES.items())


@pytest.mark.parametrize(
    "theirs",
    [tensors.TensorHeader, bodies.RequestBody, bodies.DetectionRecord, bodies.ClassRecord, bodies.ResultBody],
)
def test_records_have_the_fields_and_defaults_of_the_models_package(theirs):
    def shape(record):
        return [(field.name, field.default) for field in msgspec.structs.fields(record)]

    assert shape(getattr(control, theirs.__name__)) == shape(theirs)


@pytest.mark.parametrize(("header", "payload"), [(0, 0), (control.HEADER_MAX_BYTES + 1, 0), (1, 2**31)])
def test_prefix_past_its_bounds_is_refused(header, payload):
    with pytest.raises(ProtocolError, match="claims"):
        control.decode_prefix(header.to_bytes(4, "big") + payload.to_bytes(4, "big"))


def test_too_large_messages_are_not_encoded():
    with pytest.raises(ProtocolError, match="at most"):
        control.encode_frame(control.JobError(key=KEY, reason="lost", message="x" * 70_000))
    with pytest.raises(ProtocolError, match="shrink"):
        control.encode_frame(control.JobError(key=KEY, reason="lost", message=""), 2**31)
    answer = control.Answer(number=1, document=b"x" * 70_000)
    assert len(control.encode_frame(answer)) > 70_000


@pytest.mark.parametrize("decode", [control.decode_client, control.decode_server, control.decode_result])
@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91" * 100_000, msgspec.msgpack.encode({"t": "nothing"})[:-1]])
def test_malformed_messages_become_one_error(decode, data):
    with pytest.raises(ProtocolError, match="malformed"):
        decode(data)


def test_unknown_fields_are_ignored():
    data = msgspec.msgpack.encode({"t": "goodbye", "reason": "draining", "new_field": [1, 2]})
    assert control.decode_server(data) == control.Goodbye(reason="draining")


def test_assembler_takes_an_answer_larger_than_its_buffer():
    answer = control.Answer(number=7, document=bytes(1_000_000))
    small = control.JobError(key=KEY, reason="lost", message="gone")
    data = control.encode_frame(small) + control.encode_frame(answer) + control.encode_frame(small)
    assembler, frames = FrameAssembler(), []
    while data:
        target = assembler.target()
        count = min(len(target), len(data), 10_000)
        target[:count] = data[:count]
        data = data[count:]
        frames += assembler.filled(count)
    assert [message for message, _ in frames] == [small, answer, small]
    assert not assembler.is_inside_frame
