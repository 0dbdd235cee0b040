"""Messages behind a varint of their length."""

import pytest

from transport.delimited import DelimitedReader, delimit
from transport.wire import FrameTooLargeError, RemoteProtocolError


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 16_383, 16_384, 65_536])
def test_a_message_comes_back_whole_however_it_is_cut(size):
    message = bytes(i % 251 for i in range(size))
    data = delimit(message) * 3
    for step in (1, 2, 3, 7, 1000, len(data)):
        if size > 1000 > step:
            continue
        reader = DelimitedReader(65_536)
        got = [part for at in range(0, len(data), step) for part in reader.feed(data[at : at + step])]
        assert got == [message] * 3


def test_a_length_above_the_bound_is_refused_before_the_message_comes():
    reader = DelimitedReader(1000)
    assert list(reader.feed(b"\x02ab\xe9")) == [b"ab"]
    with pytest.raises(FrameTooLargeError, match="1001 bytes, at most 1000"):
        list(reader.feed(b"\x07"))


def test_a_length_without_end_is_refused():
    with pytest.raises(RemoteProtocolError, match="more than 5 bytes"):
        list(DelimitedReader(1000).feed(b"\xff" * 5))
