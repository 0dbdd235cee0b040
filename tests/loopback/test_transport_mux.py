"""The muxer with tasks and time: over TLS on 127.0.0.1, and over a pipe in memory on a virtual clock."""

import random
from contextlib import asynccontextmanager

import pytest
import trio
from libp2p.abc import ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from trio.testing import MockClock, wait_all_tasks_blocked

from transport.libp2p_mux import CREDIT_TIMEOUT_S, PING_AFTER_S, PING_TIMEOUT_S, GridMux
from transport.libp2p_security import GridSecurity
from transport.libp2p_tcp import WRITE_TIMEOUT_S, GridStream
from transport.muxcore import ACCEPT_MAX, DATA, GOAWAY, OPEN, RESET, VIOLATION, WINDOW_BYTES, encode_frame
from transport.sandbox import SandboxGrid

pytestmark = pytest.mark.slow  # importing libp2p alone takes seconds

GRID = SandboxGrid()
PEER = ID(bytes.fromhex("002408011220") + bytes(32))
LIMIT_S = 10.0


class Pipe(ISecureConn):
    """One end of a connection in memory; it can fall silent."""

    def __init__(self, stream, *, is_initiator):
        self.stream = stream
        self.is_initiator = is_initiator
        self.is_silent = False
        self.is_deaf = False
        self.closed = trio.Event()

    async def read(self, n=None):
        data = await self._read()
        while self.is_silent:
            data = await self._read()
        if not data:
            raise ConnectionClosedError("closed")
        return bytes(data)

    async def _read(self):
        if self.is_deaf:
            await trio.sleep_forever()
        try:
            return await self.stream.receive_some(65536)
        except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
            raise ConnectionClosedError("closed") from error

    async def write(self, data):
        try:
            await self.stream.send_all(data)
        except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
            raise ConnectionClosedError("closed") from error

    async def close(self):
        self.closed.set()
        await self.stream.aclose()

    def get_local_peer(self):
        return PEER

    def get_local_private_key(self):
        raise NotImplementedError

    def get_remote_peer(self):
        return PEER

    def get_remote_public_key(self):
        raise NotImplementedError

    def get_remote_address(self):
        return ("127.0.0.1", 1)

    def get_transport_addresses(self):
        return []

    def get_connection_type(self):
        return ConnectionType.DIRECT


def pipes():
    left, right = trio.testing.memory_stream_pair()
    return Pipe(left, is_initiator=True), Pipe(right, is_initiator=False)


async def tls_pair():
    """Connect two nodes of a grid by TCP and TLS."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    dialled = await trio.open_tcp_stream(*listener.socket.getsockname())
    accepted = await listener.accept()
    await listener.aclose()
    a, b = GRID.make_node(), GRID.make_node()
    found = {}

    def security(member):
        return GridSecurity(member.key, member.chain_pem, GRID.trust(), lambda conn: None)

    async def inbound():
        found["b"] = await security(b).secure_inbound(RawConnection(GridStream(accepted, lambda s: None), False))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(inbound)
        raw = RawConnection(GridStream(dialled, lambda s: None), True)
        found["a"] = await security(a).secure_outbound(raw, ID.from_base58(b.node))
    return found["a"], found["b"]


@asynccontextmanager
async def running(left, right):
    a, b = GridMux(left, PEER), GridMux(right, PEER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(a.start)
        nursery.start_soon(b.start)
        await a.event_started.wait()
        await b.event_started.wait()
        try:
            yield a, b
        finally:
            nursery.cancel_scope.cancel()


def play(scene, *, tls=False, clock=None):
    """Run a scene with two muxers that are connected."""

    async def main():
        with trio.fail_after(LIMIT_S if clock is None else 1e6):
            async with running(*(await tls_pair() if tls else pipes())) as (a, b):
                await scene(a, b)

    trio.run(main, clock=clock)


BOTH = pytest.mark.parametrize("tls", [False, True], ids=["pipe", "tls"])


async def read_exactly(stream, count):
    data = b""
    while len(data) < count:
        data += await stream.read(count - len(data))
    return data


@BOTH
def test_streams_carry_bytes_both_ways_and_end_half_by_half(tls):
    question, answer = random.Random(1).randbytes(3 * WINDOW_BYTES), random.Random(2).randbytes(2 * WINDOW_BYTES)

    async def serve(b):
        stream = await b.accept_stream()
        assert await read_exactly(stream, len(question)) == question
        with pytest.raises(MuxedStreamEOF):
            await stream.read(10)
        await stream.write(answer)
        await stream.close()

    async def scene(a, b):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, b)
            stream = await a.open_stream()
            await stream.write(question)
            await stream.close_write()
            with pytest.raises(MuxedStreamClosed):
                await stream.write(b"more")
            assert await read_exactly(stream, len(answer)) == answer
            with pytest.raises(MuxedStreamEOF):
                await stream.read(10)
        assert not a.core.streams
        assert not a._streams
        await wait_until(lambda: not b.core.streams and not b._streams)

    play(scene, tls=tls)


async def wait_until(condition):
    while not condition():  # noqa: ASYNC110 - brought about by bytes from another process's kernel
        await trio.sleep(0.005)


@BOTH
def test_streams_do_not_wait_for_one_another(tls):
    async def scene(a, b):
        stuck = await a.open_stream()
        nobody_reads = await b.accept_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stuck.write, bytes(WINDOW_BYTES + 1))
            for i in range(20):
                stream = await a.open_stream()
                await stream.write(bytes([i]) * 1000)
                other = await b.accept_stream()
                assert await read_exactly(other, 1000) == bytes([i]) * 1000
                await other.reset()
                await stream.reset()
            assert await read_exactly(nobody_reads, WINDOW_BYTES + 1)

    play(scene, tls=tls)


@BOTH
def test_a_reset_is_seen_as_a_reset_by_reader_and_writer(tls):
    async def scene(a, b):
        stream = await a.open_stream()
        await stream.write(b"half a message")
        other = await b.accept_stream()
        assert await other.read(4) == b"half"
        await stream.reset()
        with pytest.raises(MuxedStreamReset):
            await read_exactly(other, 100)
        with pytest.raises(MuxedStreamReset):
            await other.write(b"x")
        with pytest.raises(MuxedStreamReset):
            await stream.write(b"x")
        assert not b._streams

    play(scene, tls=tls)


@BOTH
def test_closing_ends_streams_and_both_sides(tls):
    async def scene(a, b):
        stream = await a.open_stream()
        other = await b.accept_stream()
        await stream.write(b"last words")
        await wait_until(lambda: b.core.unread_bytes)
        await a.close()
        with pytest.raises(MuxedConnUnavailable):
            await b.accept_stream()
        assert await other.read(100) == b"last words"
        with pytest.raises(MuxedStreamReset):
            await other.read(100)
        with pytest.raises(MuxedStreamReset):
            await stream.read(100)
        with pytest.raises(MuxedStreamError):
            await a.open_stream()
        assert a.is_closed
        assert b.is_closed

    play(scene, tls=tls)


@BOTH
def test_a_cancelled_write_tears_no_frame_and_half_a_message_is_a_reset(tls):
    async def scene(a, b):
        for i in range(60):
            stream = await a.open_stream()
            other = await b.accept_stream()
            with trio.move_on_after(0.0005 * (i % 4)):
                await stream.write(bytes(2 * WINDOW_BYTES))
            if i % 4:  # cancelled when there was no more credit
                with pytest.raises(MuxedStreamReset):
                    await read_exactly(other, 2 * WINDOW_BYTES)
            await stream.reset()
            await other.reset()
        stream = await a.open_stream()
        await stream.write(b"alive")
        assert await (await b.accept_stream()).read(5) == b"alive"

    play(scene, tls=tls)


def test_a_peer_that_does_not_read_holds_no_writer_for_ever():
    async def scene(a, b):
        stream = await a.open_stream()
        other = await b.accept_stream()
        began_s = trio.current_time()
        with pytest.raises(MuxedStreamReset, match="nothing was read"):
            await stream.write(bytes(WINDOW_BYTES + 1))
        assert trio.current_time() - began_s == pytest.approx(CREDIT_TIMEOUT_S)
        await wait_all_tasks_blocked()
        with pytest.raises(MuxedStreamReset):
            await other.read()

    play(scene, clock=MockClock(autojump_threshold=0))


def test_a_connection_that_takes_no_bytes_holds_no_writer_for_ever():
    """The kernel's buffers are full: the socket gives up after WRITE_TIMEOUT_S, and with it everything on it."""

    async def flood(mux):
        while True:
            stream = await mux.open_stream()
            await stream.write(bytes(WINDOW_BYTES))
            mux.core.streams.clear()  # as if the peer had finished with it

    async def main():
        deaf, conn = await tls_pair()
        mux = GridMux(conn, PEER)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mux.start)
            await mux.event_started.wait()
            began_s = trio.current_time()
            with pytest.raises(MuxedStreamReset):
                await flood(mux)
            assert trio.current_time() - began_s < WRITE_TIMEOUT_S + 1
        assert mux.is_closed
        await deaf.close()

    trio.run(main, clock=MockClock(autojump_threshold=0.05))


def test_a_silent_peer_is_noticed():
    async def scene(a, b):
        a.secured_conn.is_silent = True  # from now on nothing of the other side arrives, as with a cable pulled
        began_s = trio.current_time()
        with pytest.raises(MuxedConnUnavailable):
            await a.accept_stream()
        assert trio.current_time() - began_s == pytest.approx(PING_AFTER_S + PING_TIMEOUT_S, rel=0.6)

    play(scene, clock=MockClock(autojump_threshold=0))


def test_an_idle_connection_lives_on_and_a_busy_one_is_not_asked():
    async def scene(a, b):
        stream = await a.open_stream()
        other = await b.accept_stream()
        await trio.sleep(20 * PING_AFTER_S)
        assert not a.is_closed
        assert not b.is_closed
        before = a.core.frames_received
        for _ in range(40):
            await other.write(b"news")
            await stream.read(4)
            await stream.write(b"news")
            await other.read(4)
            await trio.sleep(PING_AFTER_S / 4)
        assert a.core.frames_received == before + 40

    play(scene, clock=MockClock(autojump_threshold=0))


@pytest.mark.parametrize(
    "garbage",
    [
        random.Random(3).randbytes(5000),
        b"\x01\xff\xff\xff\x00\x00\x00\x01",
        encode_frame(DATA, 7, b"for a stream that is not there"),
        encode_frame(OPEN, 2),
    ],
)
@BOTH
def test_garbage_ends_the_connection_with_a_word(tls, garbage):
    async def main():
        with trio.fail_after(LIMIT_S):
            attacker, right = await tls_pair() if tls else pipes()
            mux = GridMux(right, PEER)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mux.start)
                await mux.event_started.wait()
                await attacker.write(garbage)
                assert await attacker.read(100) == encode_frame(GOAWAY, 0, bytes([VIOLATION]))
                with pytest.raises(MuxedConnUnavailable):
                    await mux.accept_stream()
                await attacker.close()

    trio.run(main)


def test_a_bug_below_ends_the_connection_and_comes_up_alone():
    async def main():
        left, right = pipes()
        mux = GridMux(right, PEER)

        async def broken(n=None):
            await trio.lowlevel.checkpoint()
            raise ZeroDivisionError

        right.read = broken
        with pytest.raises(ZeroDivisionError):
            await mux.start()
        assert mux.is_closed
        await left.close()

    trio.run(main)


def test_a_flood_of_opens_is_bounded_and_ends_nothing():
    async def main():
        with trio.fail_after(LIMIT_S):
            attacker, right = await tls_pair()
            mux = GridMux(right, PEER)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(mux.start)
                await mux.event_started.wait()
                await attacker.write(b"".join(encode_frame(OPEN, number) for number in range(1, 2001, 2)))
                refused = b""
                while len(refused) < 8 * (1000 - ACCEPT_MAX):
                    refused += await attacker.read(65536)
                assert set(refused[::8]) == {RESET}
                assert len(mux.core.streams) == len(mux.core.accepted) == ACCEPT_MAX
                assert not mux.is_closed
                await mux.close()
            await attacker.close()

    trio.run(main)


def test_many_short_streams_leave_nothing_behind():
    async def scene(a, b):
        async def answer():
            while True:
                stream = await b.accept_stream()
                await stream.write(await stream.read(10))
                await stream.close()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            for i in range(500):
                stream = await a.open_stream()
                await stream.write(str(i).encode())
                assert await stream.read(10) == str(i).encode()
                await stream.close()
            await wait_until(lambda: not a._streams and not b._streams)
            assert not a.core.streams
            assert not b.core.streams
            nursery.cancel_scope.cancel()

    play(scene, tls=True)


@BOTH
def test_a_consumer_gets_what_comes_in_order_until_the_end(tls):
    got = []

    async def scene(a, b):
        stream = await a.open_stream()
        await stream.write(b"0,")
        other = await b.accept_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(write_and_end, stream)
            with pytest.raises(MuxedStreamEOF):
                await other.consume(got.append)
        assert b"".join(got) == b"".join(b"%d," % i for i in range(20_000))
        assert b.core.unread_bytes == 0

    play(scene, tls=tls)


def test_who_consumes_is_not_woken_for_what_he_is_given():
    woken = []

    class Steps(trio.abc.Instrument):
        def before_task_step(self, task):
            woken.append(task.name)

    async def scene(a, b):
        stream = await a.open_stream()
        other = await b.accept_stream()
        got = []

        async def consumer():
            with pytest.raises(MuxedStreamEOF):
                await other.consume(got.append)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consumer)
            await wait_all_tasks_blocked()
            steps = Steps()
            trio.lowlevel.add_instrument(steps)
            for i in range(10):
                await stream.write(bytes([i]))
                await wait_all_tasks_blocked()
            trio.lowlevel.remove_instrument(steps)
            assert got == [bytes([i]) for i in range(10)]
            assert not [name for name in woken if name.endswith("consumer")]
            await stream.close_write()  # the end he is woken for

    play(scene)


def test_who_consumes_is_told_of_an_end_that_comes_with_the_last_bytes():
    async def scene(a, b):
        stream = await a.open_stream()
        other = await b.accept_stream()
        got = []

        async def consumer():
            with pytest.raises(MuxedStreamEOF):
                await other.consume(got.append)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consumer)
            await other.close_write()
            await wait_all_tasks_blocked()
            a.core.write(stream._stream, b"last")
            a.core.finish(stream._stream)
            a.flush()
        assert got == [b"last"]

    play(scene)


async def write_and_end(stream):
    for i in range(1, 20_000):
        await stream.write(b"%d," % i)
    await stream.close_write()


@BOTH
def test_a_consumer_that_raises_ends_its_own_task_and_nothing_else(tls):
    def fail(data):
        raise ZeroDivisionError(data)

    async def scene(a, b):
        stream = await a.open_stream()
        other = await b.accept_stream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.write, b"x")
            with pytest.raises(ZeroDivisionError):
                await other.consume(fail)
        await other.reset()
        with pytest.raises(MuxedStreamReset):
            await stream.read()
        stream = await a.open_stream()
        await stream.write(b"alive")
        assert await (await b.accept_stream()).read(5) == b"alive"

    play(scene, tls=tls)


def test_a_consumer_sees_a_reset_and_the_end_of_the_connection():
    async def scene(a, b):
        for end in (lambda stream: stream.reset(), lambda stream: a.close()):
            stream = await a.open_stream()
            other = await b.accept_stream()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(end, stream)
                with pytest.raises(MuxedStreamReset):
                    await other.consume(lambda data: None)

    play(scene)
