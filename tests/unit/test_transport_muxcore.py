"""The muxer's protocol, byte by byte."""

import pytest

from transport.muxcore import (
    ACCEPT_MAX,
    BODY_MAX_BYTES,
    CREDIT,
    CREDIT_MAX_BYTES,
    DATA,
    FIN,
    GOAWAY,
    GRANTED_BYTES,
    NORMAL,
    OPEN,
    OUTGOING_MAX_BYTES,
    PING,
    PONG,
    RESET,
    STREAMS_MAX,
    UNREAD_MAX_BYTES,
    WINDOW_BYTES,
    MuxCore,
    encode_frame,
)
from transport.wire import LocalProtocolError, RemoteProtocolError


def pair():
    return MuxCore(is_initiator=True), MuxCore(is_initiator=False)


def carry(source, target):
    """Bring what one side has to send to the other; returns the streams that changed there."""
    return target.receive(source.take_outgoing())


def opened(dialler, other):
    """Open a stream and take it on the other side."""
    here = dialler.open()
    carry(dialler, other)
    return here, other.accepted.popleft()


def test_a_frame_is_a_header_of_eight_bytes_and_a_body():
    assert encode_frame(DATA, 5, b"abc").hex() == "0100000300000005616263"


def test_the_dialling_side_opens_odd_streams_and_the_other_one_even_ones():
    a, b = pair()
    assert [a.open().number, a.open().number, b.open().number, b.open().number] == [1, 3, 2, 4]


def test_bytes_arrive_in_order_however_they_are_cut():
    a, b = pair()
    here, there = opened(a, b)
    a.write(here, b"one ")
    a.write(here, b"two")
    for byte in a.take_outgoing():
        b.receive(bytes([byte]))
    assert b.read(there) == b"one two"


def test_a_long_write_becomes_frames_that_fill_a_tls_record():
    a, b = pair()
    here, there = opened(a, b)
    data = bytes(range(256)) * 256
    assert a.write(here, data) == len(data)
    assert a.outgoing_bytes == len(data) + 8 * -(-len(data) // BODY_MAX_BYTES)
    carry(a, b)
    assert b.read(there, 10) + b.read(there) == data


def test_a_writer_has_credit_for_one_window_and_gets_half_of_it_back_at_once():
    a, b = pair()
    here, there = opened(a, b)
    assert a.write(here, bytes(WINDOW_BYTES + 1)) == WINDOW_BYTES
    assert a.write(here, b"x") == 0
    carry(a, b)
    b.read(there, GRANTED_BYTES - 1)
    assert not b.outgoing_bytes
    b.read(there, 1)
    carry(b, a)
    assert a.write(here, bytes(WINDOW_BYTES)) == GRANTED_BYTES
    carry(a, b)
    assert len(there.buffer) == WINDOW_BYTES


def test_after_fin_what_was_sent_can_be_read_and_the_other_direction_still_works():
    a, b = pair()
    here, there = opened(a, b)
    a.write(here, b"question")
    a.finish(here)
    assert carry(a, b) == [there, there]
    assert (b.read(there), there.is_ended) == (b"question", True)
    b.write(there, b"answer")
    b.finish(there)
    carry(b, a)
    assert a.read(here) == b"answer"
    assert not a.streams
    assert not b.streams


def test_a_finished_stream_is_kept_until_it_is_read():
    a, b = pair()
    here, there = opened(a, b)
    a.write(here, b"last words")
    a.finish(here)
    b.finish(there)
    carry(a, b)
    assert b.streams
    assert b.read(there, 4) == b"last"
    assert b.streams
    assert b.read(there) == b" words"
    assert not b.streams
    assert b.unread_bytes == 0


def test_a_reset_throws_away_what_may_be_half_a_message():
    a, b = pair()
    here, there = opened(a, b)
    a.write(here, b"half a mess")
    a.reset(here)
    carry(a, b)
    assert (there.is_reset, there.is_ended, bytes(there.buffer)) == (True, False, b"")
    assert not a.streams
    assert not b.streams
    assert b.unread_bytes == 0


def test_a_reset_after_fin_leaves_what_came_whole():
    a, b = pair()
    here, there = opened(a, b)
    a.write(here, b"whole")
    a.finish(here)
    a.reset(here)
    carry(a, b)
    assert b.read(there) == b"whole"
    assert not b.streams


def test_frames_that_crossed_the_end_of_their_stream_are_no_fault():
    a, b = pair()
    here, there = opened(a, b)
    b.reset(there)
    a.write(here, b"on its way")
    a.finish(here)
    assert carry(a, b) == []
    carry(b, a)
    assert here.is_reset
    assert not a.streams


def test_what_comes_for_a_stream_that_was_left_is_thrown_away():
    a, b = pair()
    here, there = opened(a, b)
    a.write(here, b"before")
    carry(a, b)
    b.leave(there)
    a.write(here, b"after")
    carry(a, b)
    assert (bytes(there.buffer), b.unread_bytes) == (b"", 0)
    a.finish(here)
    carry(a, b)
    assert not b.streams


def test_a_ping_is_answered_with_its_body():
    a, b = pair()
    a.ping(b"12345678")
    carry(a, b)
    assert b.take_outgoing() == encode_frame(PONG, 0, b"12345678")


def test_goodbye_is_told_and_no_stream_is_opened_after_it():
    a, b = pair()
    a.go_away(NORMAL)
    carry(a, b)
    assert b.goodbye == NORMAL
    with pytest.raises(LocalProtocolError, match="goodbye"):
        b.open()


def test_there_are_only_so_many_streams_of_ours():
    a, _ = pair()
    for _ in range(STREAMS_MAX):
        a.open()
    with pytest.raises(LocalProtocolError, match="no further stream"):
        a.open()


def test_a_flood_of_opens_is_answered_with_resets():
    b = MuxCore(is_initiator=False)
    for number in range(1, 2 * STREAMS_MAX + 21, 2):
        b.receive(encode_frame(OPEN, number))
        if number % 4 == 1 and b.accepted:
            b.accepted.popleft()
    assert len(b.streams) == STREAMS_MAX
    assert b.take_outgoing() == b"".join(encode_frame(RESET, 2 * STREAMS_MAX + 1 + 2 * i) for i in range(10))


def test_only_so_many_streams_wait_to_be_taken():
    b = MuxCore(is_initiator=False)
    for number in range(1, 2 * ACCEPT_MAX + 3, 2):
        b.receive(encode_frame(OPEN, number))
    assert len(b.accepted) == len(b.streams) == ACCEPT_MAX
    assert b.take_outgoing() == encode_frame(RESET, 2 * ACCEPT_MAX + 1)


def test_a_stream_that_was_reset_before_anybody_took_it_waits_no_longer():
    b = MuxCore(is_initiator=False)
    b.receive(encode_frame(OPEN, 1) + encode_frame(DATA, 1, b"x") + encode_frame(RESET, 1))
    assert not b.accepted
    assert b.unread_bytes == 0


def test_above_the_bound_on_all_unread_bytes_the_fullest_stream_is_reset():
    b = MuxCore(is_initiator=False)
    full = UNREAD_MAX_BYTES // WINDOW_BYTES
    for i in range(full + 1):
        b.receive(encode_frame(OPEN, 2 * i + 1))
    b.receive(encode_frame(DATA, 1, b"x"))
    for i in range(full):
        for start in range(0, WINDOW_BYTES, BODY_MAX_BYTES):
            part = bytes(min(BODY_MAX_BYTES, WINDOW_BYTES - start))
            b.receive(encode_frame(DATA, 2 * i + 3, part))
    assert b.streams[1].buffer == b"x", "the one that holds little is spared"
    assert len(b.streams) == full
    assert b.unread_bytes == (full - 1) * WINDOW_BYTES + 1
    assert b.take_outgoing()[:1] == bytes([RESET])


def test_a_peer_that_asks_and_does_not_read_is_cut_off():
    b = MuxCore(is_initiator=False)
    flood = encode_frame(PING, 0, bytes(8)) * 100_000
    with pytest.raises(RemoteProtocolError, match="does not read"):
        b.receive(flood)
    assert b.outgoing_bytes < OUTGOING_MAX_BYTES * 2


START = encode_frame(OPEN, 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encode_frame(8, 1), "kind 8"),
        (encode_frame(255, 0, b"x"), "kind 255"),
        (b"\x01\xff\xff\xff\x00\x00\x00\x01", "16777215 bytes"),
        (START + encode_frame(DATA, 1), "0 bytes"),
        (START + encode_frame(DATA, 1, bytes(BODY_MAX_BYTES + 1)), f"{BODY_MAX_BYTES + 1} bytes"),
        (encode_frame(OPEN, 1, b"x"), "1 bytes"),
        (encode_frame(OPEN, 2), "may not open stream 2"),
        (encode_frame(OPEN, 0), "may not open stream 0"),
        (START + START, "may not open stream 1"),
        (encode_frame(OPEN, 5) + encode_frame(OPEN, 3), "may not open stream 3"),
        (encode_frame(DATA, 1, b"x"), "never opened"),
        (encode_frame(DATA, 0, b"x"), "never opened"),
        (encode_frame(FIN, 2), "never opened"),
        (encode_frame(RESET, 9), "never opened"),
        (START + encode_frame(FIN, 1) + encode_frame(DATA, 1, b"x"), "0 may be sent"),
        (START + encode_frame(FIN, 1) + encode_frame(FIN, 1), "finished twice"),
        (START + encode_frame(CREDIT, 1, bytes(4)), "credit of 0"),
        (START + encode_frame(CREDIT, 1, CREDIT_MAX_BYTES.to_bytes(4, "big")), "credit of"),
        (START + encode_frame(CREDIT, 1, b"abc"), "3 bytes"),
        (encode_frame(PING, 1, bytes(8)), "belongs to the connection"),
        (encode_frame(PING, 0, bytes(7)), "7 bytes"),
        (encode_frame(GOAWAY, 0), "0 bytes"),
    ],
)
def test_what_breaks_the_protocol_is_refused(data, words):
    with pytest.raises(RemoteProtocolError, match=words):
        MuxCore(is_initiator=False).receive(data)


def test_more_than_the_window_is_refused():
    b = MuxCore(is_initiator=False)
    b.receive(START)
    for _ in range(WINDOW_BYTES // BODY_MAX_BYTES):
        b.receive(encode_frame(DATA, 1, bytes(BODY_MAX_BYTES)))
    with pytest.raises(RemoteProtocolError, match="may be sent"):
        b.receive(encode_frame(DATA, 1, bytes(BODY_MAX_BYTES)))


def test_an_overlong_length_is_refused_before_its_body_comes():
    with pytest.raises(RemoteProtocolError, match="kind 1"):
        MuxCore(is_initiator=False).receive(b"\x01\x00\x40\x00\x00\x00\x00\x01")


def test_nothing_is_written_to_a_stream_that_has_ended():
    a, b = pair()
    here, _ = opened(a, b)
    a.finish(here)
    with pytest.raises(LocalProtocolError, match="has ended"):
        a.write(here, b"x")
