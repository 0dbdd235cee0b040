"""Links and connections take the time that their figures say, worked out by hand."""

import pytest

from simulator.engine import Engine
from simulator.network import SEGMENT_BYTES, Link, Wire
from simulator.pool import IDLE_MAX, Plane
from transport.framing import PREFIX_BYTES
from transport.wire import TableRequest, encode

FRAME_BYTES = PREFIX_BYTES + len(encode(TableRequest()))


class Caller:
    """Asks for a connection, and reads it."""

    def __init__(self, engine):
        self._engine = engine
        self.end = None
        self.seen = []

    def note(self, what):
        self.seen.append((what, self._engine.now_s))

    def connected(self, end):
        self.end = end
        end.reader = self
        self.note("connected")

    def refused(self):
        self.note("refused")

    def take(self, end, message):
        self.note("taken")

    def lose(self, end):
        self.note("lost")


class Pair:
    """Two nodes a and b."""

    def __init__(self, link):
        self.engine = Engine(7)
        self.wire = Wire(self.engine, link)
        self.server = Caller(self.engine)
        self.planes = {}
        self.a = Plane("a", self.wire, self.planes, lambda end: None)
        self.b = Plane("b", self.wire, self.planes, self.server.connected)

    def connect(self):
        caller = Caller(self.engine)
        self.a.lease("b", caller)
        self.engine.run()
        return caller


def test_a_message_takes_its_length_over_the_bandwidth_and_the_delay():
    pair = Pair(Link(delay_s=0.5, bytes_per_s=1000.0))
    seen = []
    pair.wire.send("a", "b", 100, lambda: seen.append(pair.engine.now_s))
    pair.wire.send("a", "b", 200, lambda: seen.append(pair.engine.now_s))
    pair.wire.send("b", "a", 100, lambda: seen.append(pair.engine.now_s))
    pair.engine.run()
    assert seen == pytest.approx([0.6, 0.6, 0.8])  # the other direction does not wait


def test_jitter_never_lets_messages_overtake_one_another():
    pair = Pair(Link(delay_s=0.1, jitter_s=1.0))
    seen = []
    for number in range(50):
        pair.wire.send("a", "b", 1, lambda number=number: seen.append(number))
    pair.engine.run()
    assert seen == list(range(50))


def test_a_connection_takes_three_round_trips():
    pair = Pair(Link(delay_s=0.1, bytes_per_s=6400.0))
    assert SEGMENT_BYTES == 64
    [(what, at_s)] = pair.connect().seen
    assert what == "connected"
    assert at_s == pytest.approx(6 * (0.1 + 0.01))


def test_a_pooled_connection_is_there_at_once_and_the_pool_is_bounded():
    pair = Pair(Link(delay_s=0.1))
    ends = [pair.connect().end for _ in range(IDLE_MAX + 1)]
    for end in ends:
        pair.a.release(end)
    pair.engine.run()
    assert [what for what, _ in pair.server.seen].count("lost") == 1
    before_s = pair.engine.now_s
    assert pair.connect().seen == [("connected", before_s)]


def test_a_sender_waits_while_the_window_is_full():
    pair = Pair(Link(delay_s=0.5))
    end, sent = pair.connect().end, []
    began_s = pair.engine.now_s
    for _ in range(2):
        end.send(TableRequest(), 3 << 20, lambda: sent.append(pair.engine.now_s - began_s))
    pair.engine.run()
    assert sent == pytest.approx([0.0, 0.5])  # 3 MiB are on their way; 3 more fit when they have been read


def test_frames_have_their_true_size():
    pair = Pair(Link(delay_s=0.0))
    end = pair.connect().end
    before = pair.wire.bytes_sent
    end.send(TableRequest(), 1000)
    pair.engine.run()
    assert pair.wire.bytes_sent - before == FRAME_BYTES + 1000


def test_a_dead_node_refuses_breaks_and_says_nothing_more():
    pair = Pair(Link(delay_s=0.1))
    caller = pair.connect()
    pair.b.break_all()
    pair.wire.remove("b")
    pair.engine.run()
    assert caller.seen[-1] == ("lost", pytest.approx(0.7))
    assert pair.connect().seen == [("refused", pytest.approx(0.9))]


def test_a_peer_that_dies_during_the_set_up_costs_the_timeout():
    pair = Pair(Link(delay_s=0.1))
    caller = Caller(pair.engine)
    pair.a.lease("b", caller)
    pair.engine.at(0.05, lambda: pair.wire.remove("b"))
    pair.engine.run()
    assert caller.seen == [("refused", pytest.approx(5.0))]


def test_gossip_is_lost_at_its_rate():
    pair = Pair(Link(gossip_loss=0.25))
    seen = []
    for _ in range(4000):
        pair.wire.gossip("a", "b", lambda: seen.append(1))
    pair.engine.run()
    assert len(seen) == pytest.approx(3000, abs=3 * (4000 * 0.25 * 0.75) ** 0.5)
