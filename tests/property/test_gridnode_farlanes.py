"""Whatever a program, a peer, a desk and the clock do, a lane to a peer does what a few lines of a model say."""

import contextlib
import fcntl
import os
import random
import socket
from unittest import mock

import msgspec
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from gridnode import farlanes
from gridnode.driver import Driver
from gridnode.farlanes import SILENCE_MAX_S, FarLanes
from gridnode.lanes import LASTS_S
from models import laneprotocol as protocol
from models.segments import Segment
from scheduler.config import CoreConfig
from scheduler.core import Core
from transport.wire import LaneDone, LanePassed, PeerUnreachableError, RemoteProtocolError, TableRequest

RUNS = 3
PASSED_MAX = 5
SEGMENT_BYTES = 4096

rude = st.sampled_from([False] * 15 + [True])
ask = st.tuples(st.just("ask"), st.sampled_from([0] * 10 + [1, -1, -99]), st.sampled_from([True] * 7 + [False]), rude)
answer = st.tuples(st.just("answer"), st.sampled_from(["done"] * 6 + ["pass", "unfit", "large"]), rude)
between = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.04, LASTS_S, SILENCE_MAX_S, LASTS_S + SILENCE_MAX_S])),
    st.tuples(st.just("revoke"), st.sampled_from([0, 0, 1])),
    st.tuples(st.just("give")),
    st.tuples(st.just("wrong"), st.sampled_from(["another", "type", "close", "garbage"])),
    st.tuples(st.just("flush")),
    st.tuples(st.just("way"), st.sampled_from(["at once", "at once", "in part", "none", "no reader", "broken"])),
)
rounds = st.one_of(
    st.tuples(ask, answer),
    st.tuples(ask, st.just(("flush",)), answer),
    st.tuples(ask, between, answer),
    st.tuples(st.just(("give",)), ask, answer, ask, answer),
    st.tuples(between),
)
steps = st.lists(rounds, min_size=4, max_size=25).map(
    lambda parts: [("give",), *[step for part in parts for step in part]]
)
ends = st.sampled_from(["leaves", "closes", "garbage", "cancel"])


def key(number):
    return number.to_bytes(24, "big")


def make_segment():
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, SEGMENT_BYTES)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return Segment(descriptor, SEGMENT_BYTES)


class Connection:
    """A connection to the peer; looks after what must hold of each."""

    peer = "peer"

    def __init__(self, way):
        self.way = way
        self.sent = []
        self.is_asked = False
        self.listener = None
        self.is_finished = False
        self.is_back = False
        self.may_leave = trio.Event()

    def send_nowait(self, message, payload=()):
        assert not self.is_asked, "one request at a time"
        assert not self.is_back
        if self.way == "broken":
            raise PeerUnreachableError("broken")
        self.sent.append(message.key)
        self.is_asked = True
        return self.way != "in part"

    async def flush(self):
        await self.may_leave.wait()
        if self.is_back:
            raise PeerUnreachableError("closed on this side")

    def listen(self, listener):
        self.listener = None if self.way == "no reader" else listener
        return self.listener is not None

    def finish(self):
        assert not self.is_asked, "an answer may still come"
        self.is_finished = True


class Model:
    """What a lane does, in a few lines."""

    def __init__(self):
        self.given = self.ticket = self.left = self.passed = 0
        self.until_s = 0.0
        self.way = "at once"
        self.line_way = ""
        self.request = None
        self.is_leaving = self.is_over = self.was_cut = False
        self.runs, self.answers, self.words, self.connections = [], [], [], []

    def end(self, *, was_cut=False, is_whole=True):
        if self.ticket:
            self.words.append((self.ticket, tuple(self.runs), was_cut))
            self.connections.append("kept" if is_whole else "closed")
            self.ticket, self.runs = 0, []

    def pass_(self, number, *, is_unfit=False):
        self.answers.append((number, is_unfit))
        self.passed += 1
        self.is_over = self.is_over or self.passed == PASSED_MAX

    def fail(self):
        number, self.request = self.request, None
        self.end(was_cut=True, is_whole=False)
        if number is not None:
            self.pass_(number)

    def ask(self, number, ticket, *, is_fit, now_s):
        if self.request is not None:
            self.is_over = True
        elif not self.begin(ticket, now_s):
            self.pass_(number)
        elif not is_fit:
            self.pass_(number, is_unfit=True)
        elif self.line_way == "broken":
            self.fail()
            self.pass_(number)
        else:
            self.request, self.is_leaving = number, self.line_way == "in part"
            self.left -= 1

    def begin(self, ticket, now_s):
        if ticket and ticket == self.ticket:
            return True
        self.end()
        if not ticket or ticket != self.given:
            return False
        self.given = 0
        if self.way == "no reader":
            self.connections.append("closed")
        if self.way in ("none", "no reader"):
            return False
        self.ticket, self.left, self.until_s, self.line_way = ticket, RUNS, now_s + LASTS_S, self.way
        self.was_cut = False
        return True

    def answer(self, kind):
        if self.request is None or self.is_leaving:
            self.fail()
            return
        number, self.request = self.request, None
        if kind == "done":
            self.answers.append(number)
            self.runs.append(number)
            self.passed = 0
        else:
            self.pass_(number, is_unfit=kind != "pass")
        self.was_cut = self.was_cut or kind in ("pass", "unfit")
        if self.was_cut or not self.left:
            self.end(was_cut=self.was_cut)

    def revoke(self, ticket):
        if self.given <= ticket:
            self.given = 0
        if self.ticket and self.ticket <= ticket:
            self.was_cut = self.left > 0
            if self.request is None:
                self.end(was_cut=True)

    def look(self, now_s):
        """Take note of the time."""
        if self.ticket and now_s >= self.until_s:
            if self.request is None:
                self.end()
                return
            self.left = 0
            if now_s >= self.until_s + SILENCE_MAX_S:
                self.fail()


class Bench:
    """A lane beside its model."""

    def __init__(self, nursery):
        core = Core(CoreConfig(), node_id="n", epoch=1, rng=random.Random(1), now_s=0.0)
        self.model = Model()
        self.words, self.connections, self.answers = [], [], []
        self.lanes = FarLanes(
            data=self,
            driver=Driver(core, clock=trio.current_time),
            nursery=nursery,
            default_deadline_s=10.0,
            on_misbehaviour=lambda peer, what: None,
            on_answer=lambda peer: None,
        )
        self.segment = make_segment()
        self.near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near.setblocking(False)
        self.lane = self.lanes.open("peer", "a" * 64, self.segment, far.detach(), self.words.append)
        self.newest = self.count = 0

    def take(self, peer):
        if self.model.way == "none":
            return None
        self.connections.append(Connection(self.model.way))
        return self.connections[-1]

    def give_back(self, connection):
        assert not connection.is_back, "once"
        connection.is_back, connection.listener = True, None
        connection.may_leave.set()

    @property
    def line(self):
        """The connection in use, if there is one."""
        return self.connections[-1] if self.connections and not self.connections[-1].is_back else None

    # Steps; each is told the model, too.

    def give(self):
        self.newest += 1
        assert self.lane.give(self.newest, runs=RUNS, lasts_s=LASTS_S)
        self.model.given = self.newest

    def ask(self, ticket, is_fit, is_rude):
        if self.model.request is not None and not is_rude:
            return
        self.count += 1
        ticket = max(0, self.newest + ticket)
        request = protocol.LaneRequest(key(self.count), ticket, b"", 0, 64 if is_fit else SEGMENT_BYTES + 1, None)
        self.near.send(protocol.encode(request))
        self.model.ask(self.count, ticket, is_fit=is_fit, now_s=trio.current_time())

    def answer(self, kind, is_rude):
        line, model = self.line, self.model
        if line is None or ((model.request is None or model.is_leaving) and not is_rude):
            return
        asked = line.sent[-1] if line.sent else key(0)
        line.is_asked = False
        self.model.answer(kind)
        if kind in ("pass", "unfit"):
            line.listener.heard(LanePassed(key=asked, is_unfit=kind == "unfit"), memoryview(b""))
        else:
            payload = bytes(protocol.ANSWER_MAX_BYTES + 1 if kind == "large" else 10)
            line.listener.heard(LaneDone(key=asked, service_s=0.0, body=b""), memoryview(payload))

    def wrong(self, kind):
        line = self.line
        if line is None:
            return
        self.model.fail()
        if kind == "another":
            line.listener.heard(LaneDone(key=b"x" * 24, service_s=0.0, body=b""), memoryview(b""))
        elif kind == "type":
            line.listener.heard(TableRequest(), memoryview(b""))
        else:
            line.listener.broke((PeerUnreachableError if kind == "close" else RemoteProtocolError)("broken"))

    async def wait(self, seconds):
        until_s = trio.current_time() + seconds
        while trio.current_time() < until_s:
            await trio.sleep_until(min(until_s, trio.current_time() + 0.01))
            await trio.testing.wait_all_tasks_blocked()
            self.model.look(trio.current_time())

    def way(self, way):
        self.model.way = way

    def flush(self):
        if self.line is not None:
            self.line.may_leave.set()
            if self.model.line_way == "in part":
                self.model.is_leaving = False

    def revoke(self, back):
        self.model.revoke(self.newest - back)
        self.lane.revoke(self.newest - back)

    # What is seen.

    def hear(self):
        while True:
            try:
                packet = self.near.recv(protocol.PACKET_MAX_BYTES)
            except (BlockingIOError, ConnectionResetError):
                return
            if not packet:
                return
            word = msgspec.msgpack.Decoder(protocol.LaneDone | protocol.LanePass).decode(packet)
            number = int.from_bytes(word.key, "big")
            self.answers.append(number if isinstance(word, protocol.LaneDone) else (number, word.is_unfit))

    def check(self):
        """Compare what everybody was told with what the model says."""
        self.hear()
        model = self.model
        assert self.answers == model.answers
        told = [
            (word.ticket, tuple(int.from_bytes(run.key, "big") for run in word.runs), word.was_cut)
            for word in self.words
        ]
        assert told == model.words
        states = [("kept" if each.is_finished else "closed") for each in self.connections if each.is_back]
        assert states == model.connections

    def check_end(self):
        assert [word.is_closed for word in self.words].count(True) == 1
        assert self.words[-1].is_closed
        assert all(connection.is_back for connection in self.connections)
        accounted = [run.key for word in self.words for run in word.runs]
        assert accounted == [key(number) for number in self.answers if isinstance(number, int)]
        assert self.lanes._open == 0
        assert self.lane._line.fileno() == -1


async def play(done, end):
    async with trio.open_nursery() as nursery:
        bench = Bench(nursery)
        await trio.testing.wait_all_tasks_blocked()
        for name, *arguments in done:
            step = getattr(bench, name)
            if name == "wait":
                await step(*arguments)
            else:
                step(*arguments)
            await trio.testing.wait_all_tasks_blocked()
            if bench.model.is_over:
                break
            bench.check()
        if end == "cancel":
            nursery.cancel_scope.cancel()
        elif end == "closes":
            bench.lane.close()
        elif end == "garbage":
            with contextlib.suppress(BrokenPipeError):
                bench.near.send(b"\xc1")
        else:
            bench.near.close()
    with bench.near:
        if end == "leaves":
            bench.answers = bench.model.answers  # nobody is there to hear the last ones
        else:
            bench.hear()
        bench.check_end()
    bench.segment.close()


@given(steps, ends)
@settings(max_examples=300, deadline=None)
def test_a_lane_to_a_peer_does_what_its_model_says(done, end):
    with mock.patch.object(farlanes, "RUNS", RUNS), mock.patch.object(protocol, "PASSED_MAX", PASSED_MAX):
        trio.run(play, done, end, clock=trio.testing.MockClock(autojump_threshold=0))
