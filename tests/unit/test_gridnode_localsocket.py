"""Frames over a socket pair: whole in, whole out, bounded, in order."""

import socket

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from gridnode.control import CancelJob, Query, encode_frame
from gridnode.errors import ProtocolError
from gridnode.localsocket import READ_BYTES, FrameReader, FrameWriter, OutboxFullError


def run_pair(scenario):
    async def main():
        ours, theirs = socket.socketpair()
        with ours, theirs:
            ours.setblocking(False)
            theirs.setblocking(False)
            with trio.fail_after(10.0):
                await scenario(ours, theirs)

    trio.run(main)


def writer(plain, *, frames_max=100, bytes_max=1 << 20):
    return FrameWriter(plain, frames_max=frames_max, bytes_max=bytes_max)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3 * READ_BYTES), min_size=1, max_size=4), st.integers(1, 5000))
def test_frames_arrive_whole_however_they_are_cut(sizes, cut):
    async def scenario(ours, theirs):
        payloads = [bytes([i + 1]) * size for i, size in enumerate(sizes)]
        frame = CancelJob(key=bytes(24))
        data = b"".join(encode_frame(frame, len(payload)) + payload for payload in payloads)

        async def send():
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=theirs.detach())))
            async with stream:
                for start in range(0, len(data), max(cut, len(data) // 50)):
                    await stream.send_all(data[start : start + max(cut, len(data) // 50)])

        reader = FrameReader(ours)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            for payload in payloads:
                header, received = await reader.receive()
                assert header == encode_frame(frame)[8:]
                assert received == payload
            assert await reader.receive() is None

    run_pair(scenario)


@pytest.mark.parametrize(
    "data", [b"\x00", b"\x00\x00\x00\x05\x00\x00\x00\x00ab", encode_frame(Query(number=1, what="status"), 9)]
)
def test_an_end_inside_a_frame_is_told_from_a_clean_one(data):
    async def scenario(ours, theirs):
        theirs.send(data)
        theirs.close()
        with pytest.raises(EOFError):
            await FrameReader(ours).receive()

    run_pair(scenario)


def test_a_frame_above_its_bound_is_refused_before_anything_is_allocated():
    async def scenario(ours, theirs):
        theirs.send((65537).to_bytes(4, "big") + bytes(4))
        with pytest.raises(ProtocolError, match="65537"):
            await FrameReader(ours).receive()

    run_pair(scenario)


def test_what_the_socket_takes_leaves_in_the_call():
    async def scenario(ours, theirs):
        out = writer(ours)
        out.write(b"head", b"", memoryview(b"payload"))
        assert theirs.recv(100) == b"headpayload"
        await out.wait_flushed()

    run_pair(scenario)


def test_the_rest_is_sent_in_order_when_the_other_side_reads():
    async def scenario(ours, theirs):
        out = writer(ours, bytes_max=64 << 20)
        parts = [bytes([i]) * 100_000 for i in range(20)]
        for part in parts:
            out.write(part)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(out.serve)
            received = bytearray()
            while len(received) < 2_000_000:
                await trio.lowlevel.wait_readable(theirs)
                received += theirs.recv(1 << 20)
            await out.wait_flushed()
            nursery.cancel_scope.cancel()
        assert received == b"".join(parts)

    run_pair(scenario)


@pytest.mark.parametrize(("frames_max", "bytes_max"), [(3, 1 << 30), (1000, 1 << 20)])
def test_a_side_that_does_not_read_fills_a_bounded_outbox(frames_max, bytes_max):
    async def scenario(ours, theirs):
        out = writer(ours, frames_max=frames_max, bytes_max=bytes_max)
        with pytest.raises(OutboxFullError):
            _write_often(out, 10)

    run_pair(scenario)


def test_a_side_that_is_gone_shows_as_an_error_of_the_system():
    async def scenario(ours, theirs):
        theirs.close()
        with pytest.raises(OSError, match="pipe"):
            writer(ours).write(b"x")

    run_pair(scenario)


def test_who_waits_for_the_rest_is_let_go_when_the_connection_ends():
    async def scenario(ours, theirs):
        out = writer(ours, bytes_max=64 << 20)
        out.write(bytes(10_000_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(out.wait_flushed)
            await trio.testing.wait_all_tasks_blocked()
            out.release()

    run_pair(scenario)


def test_a_large_payload_does_not_keep_the_loop_to_itself():
    """A program that fills the socket as fast as it is read must leave turns to others."""

    async def scenario(ours, theirs):
        size = 32 << 20
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async def feed():
            data = memoryview(encode_frame(CancelJob(key=bytes(24)), size) + bytes(size))
            await trio.to_thread.run_sync(_send_blocking, theirs, data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(feed)
            nursery.start_soon(count)
            await FrameReader(ours).receive()
            nursery.cancel_scope.cancel()
        assert turns > 20

    run_pair(scenario)


def _write_often(out, times):
    for _ in range(times):
        out.write(bytes(300_000))


def _send_blocking(plain, data):
    plain.setblocking(True)
    plain.sendall(data)
