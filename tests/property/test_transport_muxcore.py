"""Two cores of the muxer against one another, and one against garbage."""

from hypothesis import given
from hypothesis import strategies as st

from transport.muxcore import (
    ACCEPT_MAX,
    OUTGOING_MAX_BYTES,
    REPLIES_MAX_BYTES,
    STREAMS_MAX,
    UNREAD_MAX_BYTES,
    WINDOW_BYTES,
    MuxCore,
    encode_frame,
)
from transport.wire import LocalProtocolError, RemoteProtocolError

SIDES = st.sampled_from([0, 1])
STEPS = st.one_of(
    st.tuples(st.just("open"), SIDES),
    st.tuples(st.just("write"), SIDES, st.integers(0, 7), st.integers(1, 100_000)),
    st.tuples(st.just("read"), SIDES, st.integers(0, 7), st.integers(1, 100_000)),
    st.tuples(st.sampled_from(["finish", "reset", "leave"]), SIDES, st.integers(0, 7)),
    st.tuples(st.just("carry"), SIDES, st.integers(1, 200_000)),
)


class Wire:
    """Two cores, and bytes on their way between them."""

    def __init__(self):
        self.cores = MuxCore(is_initiator=True), MuxCore(is_initiator=False)
        self.on_the_way = [bytearray(), bytearray()]
        self.streams = [[], []]
        self.written = {}
        self.read = {}

    def stream(self, side, index):
        found = self.streams[side]
        return found[index % len(found)] if found else None

    def carry(self, side, count):
        self.on_the_way[side] += self.cores[side].take_outgoing()
        data = bytes(self.on_the_way[side][:count])
        del self.on_the_way[side][:count]
        other = self.cores[1 - side]
        other.receive(data)
        while other.accepted:
            self.streams[1 - side].append(other.accepted.popleft())

    def do(self, step):
        kind, side, *rest = step
        core = self.cores[side]
        if kind == "open":
            try:
                self.streams[side].append(core.open())
            except LocalProtocolError:
                assert len(core.streams) >= STREAMS_MAX
        elif kind == "carry":
            self.carry(side, rest[0])
        elif (stream := self.stream(side, rest[0])) is not None:
            getattr(self, kind)(side, core, stream, *rest[1:])

    def write(self, side, core, stream, count):
        if not (stream.is_reset or stream.is_finished):
            sent = self.written.setdefault((side, stream.number), bytearray())
            data = bytes((len(sent) + i) % 251 for i in range(count))
            sent += data[: core.write(stream, data)]

    def read_(self, side, core, stream, count):
        self.read.setdefault((side, stream.number), bytearray()).extend(core.read(stream, count))

    def finish(self, side, core, stream):
        core.finish(stream)

    def reset(self, side, core, stream):
        core.reset(stream)

    def leave(self, side, core, stream):
        core.leave(stream)

    def check(self):
        for core in self.cores:
            assert core.unread_bytes == sum(len(stream.buffer) for stream in core.streams.values())
            assert core.unread_bytes <= UNREAD_MAX_BYTES
            assert len(core.streams) <= 2 * STREAMS_MAX
            assert len(core.accepted) <= ACCEPT_MAX
            assert all(len(s.buffer) + s.window + s.owed <= WINDOW_BYTES for s in core.streams.values())
        for (side, number), got in self.read.items():
            assert self.written.get((1 - side, number), bytearray())[: len(got)] == got


@given(st.lists(STEPS, max_size=60))
def test_two_cores_understand_one_another_whatever_they_do(steps):
    wire = Wire()
    for step in steps:
        if step[0] == "read":
            _, side, index, count = step
            if (stream := wire.stream(side, index)) is not None:
                wire.read_(side, wire.cores[side], stream, count)
        else:
            wire.do(step)
        wire.check()


@given(st.lists(st.integers(1, 60_000), min_size=1, max_size=10), st.integers(2_000, 50_000))
def test_everything_written_is_read_when_reader_and_wire_go_on(sizes, chunk):
    a, b = MuxCore(is_initiator=True), MuxCore(is_initiator=False)
    here = a.open()
    rest, got = b"".join(bytes([i % 251]) * size for i, size in enumerate(sizes)), b""
    whole, there = rest, None
    while len(got) < len(whole):
        rest = rest[a.write(here, rest) :]
        b.receive(a.take_outgoing())
        there = there or b.accepted.popleft()
        got += b.read(there, chunk)
        a.receive(b.take_outgoing())
    assert got == whole


FRAMES = st.builds(
    encode_frame,
    st.integers(0, 9),
    st.sampled_from([0, 1, 2, 3, 5, 7, 2**32 - 1]),
    st.one_of(st.just(b""), st.binary(min_size=4, max_size=4), st.just(bytes(8)), st.binary(max_size=40)),
)


@given(st.lists(st.one_of(FRAMES, st.binary(max_size=60)), max_size=40))
def test_garbage_is_refused_with_one_kind_of_error_and_holds_no_memory(parts):
    core = MuxCore(is_initiator=False)
    try:
        for part in parts:
            core.receive(part)
    except RemoteProtocolError:
        pass
    assert len(core.streams) <= STREAMS_MAX
    assert core.unread_bytes <= UNREAD_MAX_BYTES
    assert core.outgoing_bytes <= OUTGOING_MAX_BYTES + REPLIES_MAX_BYTES + 100
