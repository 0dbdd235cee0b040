import struct

import pytest

from transport.framing import Frame, FrameReceiver, encode_prefix, total_bytes
from transport.wire import (
    HEADER_MAX_BYTES,
    PAYLOAD_MAX_BYTES,
    FrameTooLargeError,
    LocalProtocolError,
    RemoteProtocolError,
)


def frame_bytes(header: bytes, payload: bytes = b"") -> bytes:
    return encode_prefix(header, len(payload)) + header + payload


def contents(frame: Frame) -> tuple[bytes, bytes]:
    return bytes(frame.header), bytes(frame.payload)


def test_the_prefix_is_two_big_endian_lengths():
    assert encode_prefix(b"abc", 258) == b"\0\0\0\x03\0\0\x01\x02"


def test_frames_come_out_as_they_went_in():
    receiver = FrameReceiver()
    frames = receiver.feed(frame_bytes(b"one", b"payload") + frame_bytes(b"two") + b"\0\0")
    assert [contents(frame) for frame in frames] == [(b"one", b"payload"), (b"two", b"")]
    assert not receiver.is_between_frames


def test_a_payload_is_received_into_the_buffer_that_is_handed_out():
    receiver = FrameReceiver()
    receiver.feed(frame_bytes(b"h", b"12345678")[:9])
    view = receiver.wanted()
    assert len(view) == 8
    view[:3] = b"123"
    assert receiver.filled(3) is None
    rest = receiver.wanted()
    rest[:] = b"45678"
    frame = receiver.filled(5)
    assert frame is not None
    assert bytes(frame.payload) == b"12345678"
    assert frame.payload.obj is view.obj


def test_each_payload_has_a_buffer_of_its_own():
    one, two = FrameReceiver().feed(frame_bytes(b"h", b"aaaa") + frame_bytes(b"h", b"bbbb"))
    assert one.payload.obj is not two.payload.obj
    one.payload[0] = 0
    assert bytes(two.payload) == b"bbbb"


def test_the_payload_is_announced_before_it_is_allocated():
    receiver = FrameReceiver()
    assert receiver.payload_bytes_due == 0
    receiver.feed(struct.pack(">II", 4, 1000))
    assert receiver.payload_bytes_due == 1000
    assert len(receiver.wanted()) == 4
    receiver.feed(b"head")
    assert receiver.payload_bytes_due == 0
    assert len(receiver.wanted()) == 1000


@pytest.mark.parametrize(
    ("header_bytes", "payload_bytes"),
    [(HEADER_MAX_BYTES + 1, 0), (1, PAYLOAD_MAX_BYTES + 1), (2**32 - 1, 2**32 - 1), (0x16030100, 0)],
)
def test_too_large_a_frame_is_refused_by_its_prefix_alone(header_bytes, payload_bytes):
    with pytest.raises(FrameTooLargeError, match="at most"):
        FrameReceiver().feed(struct.pack(">II", header_bytes, payload_bytes))


def test_bounds_themselves_are_allowed():
    receiver = FrameReceiver(header_max_bytes=4, payload_max_bytes=2)
    assert [contents(frame) for frame in receiver.feed(frame_bytes(b"head", b"pp"))] == [(b"head", b"pp")]


def test_a_frame_without_header_is_nonsense():
    with pytest.raises(RemoteProtocolError, match="without a header"):
        FrameReceiver().feed(bytes(8))


def test_sending_too_much_is_named_before_anything_is_sent():
    with pytest.raises(FrameTooLargeError):
        encode_prefix(b"x" * (HEADER_MAX_BYTES + 1), 0)
    with pytest.raises(FrameTooLargeError):
        encode_prefix(b"x", PAYLOAD_MAX_BYTES + 1)
    with pytest.raises(LocalProtocolError):
        encode_prefix(b"", 1)


def test_parts_are_counted_in_bytes_not_items():
    assert total_bytes([b"ab", memoryview(bytearray(8)).cast("I"), bytearray(3)]) == 13
    assert total_bytes([]) == 0


def test_a_frame_that_is_whole_is_taken_where_it_lies():
    receiver = FrameReceiver(allocate=lambda header, size: pytest.fail("there is no need for another place"))
    data = b"??" + frame_bytes(b"one", b"payload") + frame_bytes(b"two") + b"\0\0"
    frame, position = receiver.begin(data, 2)
    assert contents(frame) == (b"one", b"payload")
    assert frame.payload.obj is data
    frame, position = receiver.begin(data, position)
    assert contents(frame) == (b"two", b"")
    assert receiver.is_between_frames
    assert receiver.begin(data, position) == (None, len(data))
    assert not receiver.is_between_frames
    assert [contents(frame) for frame in receiver.feed(b"\0\1\0\0\0\0h")] == [(b"h", b"")]


def test_of_a_longer_frame_the_header_is_taken_and_the_payload_announced():
    told = []
    receiver = FrameReceiver(allocate=lambda header, size: told.append(size))
    assert receiver.begin(frame_bytes(b"one", b"payload")[:13]) == (None, 11)
    assert receiver.payload_bytes_due == 7
    assert not receiver.is_between_frames
    assert not receiver.wanted()
    assert told == [], "its place is chosen when the reader has room for it"
    assert receiver.filled(0) is None
    assert told == [7]
    assert [contents(frame) for frame in receiver.feed(b"payload")] == [(b"one", b"payload")]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (bytes(100), RemoteProtocolError),
        (struct.pack(">II", HEADER_MAX_BYTES + 1, 0) + bytes(100), FrameTooLargeError),
        (struct.pack(">II", 3, PAYLOAD_MAX_BYTES + 1) + bytes(100), FrameTooLargeError),
    ],
)
def test_nonsense_at_a_beginning_is_refused_at_once(data, error):
    with pytest.raises(error):
        FrameReceiver().begin(data)
