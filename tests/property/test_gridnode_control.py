import contextlib

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from gridnode import control
from gridnode.channel import FrameAssembler
from gridnode.errors import ProtocolError
from models import tensors
from models.bodies import ResultBody, decode_request, encode_request, encode_result

names = st.text(max_size=20)
keys = st.binary(min_size=24, max_size=24)
floats = st.floats(allow_nan=False, width=32)
headers = st.builds(
    control.TensorHeader,
    name=names,
    dtype=st.sampled_from(sorted(control.DTYPE_BYTES)),
    shape=st.lists(st.integers(0, 50), max_size=4).map(tuple),
)
header_lists = st.lists(headers, max_size=4).map(tuple)
requests = st.builds(
    control.RequestBody,
    kind=st.sampled_from(["tensors", "image", "array"]),
    tensors=header_lists,
    width=st.integers(0, 65535),
    height=st.integers(0, 65535),
    raw_outputs=st.booleans(),
    score_threshold=st.none() | st.floats(0, 1),
)
detections = st.builds(
    control.DetectionRecord,
    class_index=st.integers(0, 90),
    class_name=names,
    score=floats,
    box=st.tuples(floats, floats, floats, floats),
)
classes = st.builds(control.ClassRecord, class_index=st.integers(0, 90), class_name=names, score=floats)
results = st.builds(
    control.ResultBody,
    detections=st.lists(detections, max_size=3).map(tuple),
    classes=st.lists(classes, max_size=3).map(tuple),
    tensors=header_lists,
    image_width=st.integers(0, 10_000),
    image_height=st.integers(0, 10_000),
    truncated=st.booleans(),
    emulated=st.booleans(),
)
server_messages = st.one_of(
    st.builds(control.ServerHello, version=st.integers(1, 9), node=names, name=names, grid=names),
    st.builds(control.JobError, key=keys, reason=names, message=names, entries=st.lists(names, max_size=3).map(tuple)),
    st.builds(control.Answer, number=st.integers(0, 99), document=st.binary(max_size=50)),
    st.builds(control.Goodbye, reason=names),
    st.builds(
        control.JobDone,
        key=keys,
        model=names,
        model_digest=names,
        node=names,
        node_name=names,
        hops=st.integers(0, 2),
        waiting_s=floats,
        service_s=floats,
        transfer_s=floats,
        total_s=floats,
        body=st.binary(max_size=50),
    ),
)
client_messages = st.one_of(
    st.builds(control.ClientHello, client=st.binary(min_size=16, max_size=16)),
    st.builds(control.CancelJob, key=keys),
    st.builds(control.Query, number=st.integers(0, 99), what=st.sampled_from(["status", "explain"]), argument=names),
    st.builds(
        control.Submit,
        key=keys,
        model=names,
        rungs=st.booleans(),
        budget_s=st.none() | st.floats(0, 1e6),
        priority=st.integers(0, 3),
        stream=names,
        frame=st.integers(0, 2**40),
        newest_wins=st.booleans(),
        tenant=names,
        body=st.binary(max_size=50),
    ),
)


def as_builtins(record):
    return msgspec.to_builtins(record)


@given(requests)
def test_request_bodies_read_alike_in_both_packages(body):
    assert as_builtins(decode_request(control.encode_body(body))) == as_builtins(body)
    assert control.encode_body(body) == encode_request(decode_request(control.encode_body(body)))


@given(results)
def test_result_bodies_read_alike_in_both_packages(body):
    theirs = msgspec.convert(as_builtins(body), ResultBody)
    assert as_builtins(control.decode_result(encode_result(theirs))) == as_builtins(body)


@given(header_lists)
def test_layouts_are_alike_in_both_packages(found):
    theirs = [tensors.TensorHeader(name=h.name, dtype=h.dtype, shape=h.shape) for h in found]
    assert control.layout(found) == tensors.layout(theirs)


@given(client_messages)
def test_client_messages_survive_the_wire(message):
    frame = control.encode_frame(message, 5)
    assert control.decode_prefix(frame[:8]) == (len(frame) - 8, 5)
    assert control.decode_client(frame[8:]) == message


@given(st.lists(st.tuples(server_messages, st.binary(max_size=300)), max_size=6), st.data())
def test_frames_come_out_whole_however_the_bytes_are_cut(sent, data):
    stream = b"".join(control.encode_frame(message, len(payload)) + payload for message, payload in sent)
    assembler, got = FrameAssembler(), []
    while stream:
        target = assembler.target()
        count = min(data.draw(st.integers(1, 400)), len(target), len(stream))
        target[:count] = stream[:count]
        stream = stream[count:]
        got += [(message, bytes(payload)) for message, payload in assembler.filled(count)]
    assert got == sent
    assert not assembler.is_inside_frame


@given(st.binary(min_size=1, max_size=500))
def test_garbage_gives_frames_or_a_protocol_error(stream):
    assembler = FrameAssembler()
    assembler.target()[: len(stream)] = stream
    with contextlib.suppress(ProtocolError):
        list(assembler.filled(len(stream)))
