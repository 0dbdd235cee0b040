from hypothesis import given
from hypothesis import strategies as st

from transport.framing import FrameReceiver, encode_prefix
from transport.wire import FrameTooLargeError, RemoteProtocolError

HEADERS = st.binary(min_size=1, max_size=300)
PAYLOADS = st.binary(max_size=2000)


@given(st.lists(st.tuples(HEADERS, PAYLOADS), max_size=8), st.lists(st.integers(1, 700), max_size=60))
def test_frames_do_not_depend_on_how_the_stream_was_cut(frames, cuts):
    stream = b"".join(encode_prefix(header, len(payload)) + header + payload for header, payload in frames)
    receiver, got = FrameReceiver(), []
    position = 0
    for cut in [*cuts, len(stream) or 1]:
        got += receiver.feed(stream[position : position + cut])
        position += cut
    assert [(bytes(frame.header), bytes(frame.payload)) for frame in got] == frames
    assert receiver.is_between_frames


@given(st.lists(st.binary(min_size=1, max_size=64), max_size=20))
def test_any_garbage_gives_frames_or_one_named_error(pieces):
    receiver = FrameReceiver(header_max_bytes=64, payload_max_bytes=256)
    try:
        for piece in pieces:
            for frame in receiver.feed(piece):
                assert 1 <= len(frame.header) <= 64
                assert len(frame.payload) <= 256
            assert 1 <= len(receiver.wanted()) <= 256
    except (RemoteProtocolError, FrameTooLargeError):
        return


@given(HEADERS, PAYLOADS, st.data())
def test_a_truncated_stream_never_gives_a_frame(header, payload, data):
    stream = encode_prefix(header, len(payload)) + header + payload
    cut = data.draw(st.integers(0, len(stream) - 1))
    receiver = FrameReceiver()
    assert receiver.feed(stream[:cut]) == []
    assert receiver.is_between_frames is (cut == 0)


@given(st.lists(st.tuples(HEADERS, PAYLOADS), max_size=8), st.lists(st.integers(1, 700), max_size=60))
def test_frames_are_the_same_from_their_beginnings(frames, cuts):
    stream = b"".join(encode_prefix(header, len(payload)) + header + payload for header, payload in frames)
    receiver, got = FrameReceiver(), []
    position = 0
    for cut in [*cuts, len(stream) or 1]:
        data, start = stream[position : position + cut], 0
        while start < len(data):
            if not receiver.is_between_frames:
                if receiver.payload_bytes_due and not receiver.wanted():
                    assert receiver.filled(0) is None
                view = receiver.wanted()
                count = min(len(view), len(data) - start)
                view[:count] = data[start : start + count]
                start += count
                frame = receiver.filled(count)
            else:
                frame, start = receiver.begin(data, start)
            got += [frame] if frame is not None else []
        position += cut
    assert [(bytes(frame.header), bytes(frame.payload)) for frame in got] == frames
    assert receiver.is_between_frames
