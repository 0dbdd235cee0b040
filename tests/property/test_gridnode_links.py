"""A client with many jobs and lanes, a daemon and a worker that do what they like: each job has exactly one outcome."""

import contextlib
import mmap
import os
import shutil
import socket
import tempfile
from collections import Counter, deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gridnode.control import (
    VERSION,
    Answer,
    CancelJob,
    ClientHello,
    JobDone,
    JobError,
    OpenLane,
    Query,
    ServerHello,
    Share,
    Submit,
    Ticket,
    decode_client,
    decode_prefix,
    encode_frame,
)
from gridnode.entries import Entries
from gridnode.jobs import Options, Request
from gridnode.lane import QUEUED_BUDGET_MIN_S, Lane
from gridnode.lanebook import ROW_BEFORE_LANE
from gridnode.links import Links
from gridnode.segment import SHARED_MIN_BYTES
from gridnode.session import GRACE_S, Session
from models import laneprotocol as worker

MODELS = ("street", "street", "street", "other")
PAYLOAD_BYTES = SHARED_MIN_BYTES
SERVICE_S = 0.001


def done(key):
    return JobDone(
        key=key,
        model="m",
        model_digest="d",
        node="n",
        node_name="n",
        hops=0,
        waiting_s=0.0,
        service_s=SERVICE_S,
        transfer_s=0.0,
        total_s=SERVICE_S,
        body=b"",
    )


class Line:
    """A lane, as its worker and the daemon see it."""

    def __init__(self, words, plain, connection):
        self.number = words.lane
        self.model = words.model
        self.connection = connection
        self.socket = plain
        plain.setblocking(False)
        self.inbox = deque()
        """Requests that have come and not been answered."""
        self.tickets = {}
        self.used = Counter()
        """Runs by ticket."""
        self.begun_s = {}

    def come(self, now_s):
        """Take what has come, and look whether it may; returns whether the program has its end still."""
        with contextlib.suppress(ConnectionResetError):
            try:
                self._take(now_s)
            except BlockingIOError:
                return True
        self.socket.close()
        return False

    def _take(self, now_s):
        while packet := self.socket.recv(worker.PACKET_MAX_BYTES):
            request = worker.decode_request(packet)
            assert request.ticket == max(self.tickets), "only the newest ticket is used"
            ticket = self.tickets[request.ticket]
            self.used[request.ticket] += 1
            assert self.used[request.ticket] <= ticket.runs
            begun_s = self.begun_s.setdefault(request.ticket, now_s)
            assert request.budget_s is None or request.budget_s >= ticket.least_budget_s
            if self.inbox:
                assert len(self.inbox) < ticket.depth
                assert now_s < begun_s + ticket.lasts_s
                assert request.budget_s is None or request.budget_s >= QUEUED_BUDGET_MIN_S
            self.inbox.append(request)

    def say(self, answer):
        """Answer the first request; the program may have gone."""
        self.inbox.popleft()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.send(worker.encode(answer))


class Connection:
    """A connection at the daemon's end."""

    def __init__(self, plain):
        self.socket = plain
        plain.setblocking(False)
        self.data = bytearray()
        self.descriptors = []
        self.memory = None
        self.held = {}
        """What was submitted and not answered, by key."""
        self.lines = []

    def messages(self):
        """Return what the client has said since."""
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            while True:
                data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 8)
                self.descriptors += descriptors
                if not data:
                    break
                self.data += data
        found = []
        while self.data:
            header_bytes, payload_bytes = decode_prefix(self.data, 0)
            body = 8 + header_bytes
            assert len(self.data) >= body + payload_bytes, "nothing is left over"
            found.append((decode_client(bytes(self.data[8:body])), bytes(self.data[body : body + payload_bytes])))
            del self.data[: body + payload_bytes]
        return found

    def say(self, *messages):
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.socket.sendall(b"".join(map(encode_frame, messages)))

    def close(self):
        for each in (self.socket, *(line.socket for line in self.lines), *filter(None, [self.memory])):
            each.close()
        self.lines = []


class LinksMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.descriptors = len(os.listdir("/proc/self/fd"))
        self.folder = tempfile.mkdtemp()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{self.folder}/s")
        self.listener.listen()
        self.listener.setblocking(False)
        self.session = Session(b"c" * 16, Entries([f"{self.folder}/s"]))
        self.watched = []
        self.links = Links(self.session, on_open=self.watched.append, before_close=self.watched.remove)
        self.now_s = 0.0
        self.connection = None
        self.jobs, self.ended = [], Counter()
        self.takes_lanes = True
        self.reads_backwards = False
        self.serial = 0

    @initialize()
    def greet_once(self):
        self.session.ask("status", within_s=1.0, now_s=0.0)
        self.step()

    # ------------------------------------------------------------ the shell, and the daemon's hand

    def step(self):
        """Let the client act, and the daemon hear it, until there is nothing more to say."""
        for _ in range(20):
            sources = list(self.links.sources)
            for source in sources[:: -1 if self.reads_backwards else 1] * 2:  # an answer, and then the end
                self.links.read(source, self.now_s)
            self.links.advance(self.now_s)
            self.accept()
            spoke = self.hear()
            self.collect()
            if not spoke:
                return
        raise AssertionError("they never come to rest")

    def accept(self):
        with contextlib.suppress(BlockingIOError):
            plain, _ = self.listener.accept()
            if self.connection is not None:
                self.connection.close()
            self.connection = Connection(plain)
            self.connection.say(ServerHello(version=VERSION, node="i", name="n", grid="g", entries=()))

    def hear(self):
        """Take what the client says; returns whether it said anything."""
        connection = self.connection
        if connection is None:
            return False
        self.serve_lines()
        messages = connection.messages()
        for message, payload in messages:
            match message:
                case ClientHello() | CancelJob():
                    pass
                case Query(number=number):
                    connection.say(Answer(number=number, document=b"{}"))
                case Share():
                    descriptor = connection.descriptors.pop(0)
                    connection.memory = mmap.mmap(descriptor, message.segment_bytes, prot=mmap.PROT_READ)
                    os.close(descriptor)
                case OpenLane():
                    plain = socket.socket(fileno=connection.descriptors.pop(0))
                    if self.takes_lanes:
                        connection.lines.append(Line(message, plain, connection))
                    else:
                        plain.close()
                case Submit(key=key):
                    assert key not in connection.held, "a key was sent twice"
                    assert all(request.key != key for line in connection.lines for request in line.inbox)
                    assert message.budget_s is None or message.budget_s > 0
                    connection.held[key] = message
                    data = payload if message.place is None else self.placed(message.place, message.place_bytes)
                    assert data == self.payload(key)
                case _:
                    raise AssertionError(message)
        self.serve_lines()
        return bool(messages)

    def serve_lines(self):
        """Take what comes by lanes, and leave those that the program has left."""
        self.connection.lines = [line for line in self.connection.lines if line.come(self.now_s)]
        for line in self.connection.lines:
            for request in line.inbox:
                assert self.placed(request.offset, request.payload_bytes) == self.payload(request.key)

    def placed(self, start, size):
        return self.connection.memory[start : start + size]

    @staticmethod
    def payload(key):
        return key * (PAYLOAD_BYTES // len(key)) + bytes(PAYLOAD_BYTES % len(key))

    def collect(self):
        for job in self.session.take_ended():
            self.ended[id(job)] += 1

    @property
    def lines(self):
        """Lanes that are open, with something to answer."""
        return [] if self.connection is None else [line for line in self.connection.lines if line.inbox]

    # ------------------------------------------------------------ what the program does

    @rule(
        count=st.sampled_from([1, 1, 4, 20]),
        model=st.sampled_from(MODELS),
        budget_s=st.sampled_from([None, None, None, 0.5, 5.0]),
        priority=st.sampled_from([1, 1, 1, 2]),
    )
    def submit(self, count, model, budget_s, priority):
        for _ in range(count):
            self.serial += 1
            payload = self.payload(b"c" * 16 + self.serial.to_bytes(8, "big"))
            request = Request(
                model=model,
                body=b"body",
                parts=(payload[:100], payload[100:]),
                payload_bytes=len(payload),
                options=Options(priority=priority),
            )
            self.jobs.append(self.session.open(request, budget_s=budget_s, now_s=self.now_s))
            self.links.advance(self.now_s)
        self.step()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data):
        job = data.draw(st.sampled_from(self.jobs[-30:]))
        self.session.cancel(job, now_s=self.now_s)
        self.step()

    @rule(seconds=st.sampled_from([0.001, 0.02, 0.3, 1.0, 6.0]))
    def wait(self, seconds):
        self.now_s += seconds
        self.step()

    @rule()
    def turn_round(self):
        self.reads_backwards = not self.reads_backwards

    # ------------------------------------------------------------ what the daemon does

    def new_ticket(self, line, *, runs, depth, lanes, lasts_s):
        number = max(line.tickets, default=0) + 1
        line.tickets[number] = Ticket(
            lane=line.number,
            ticket=number,
            runs=runs,
            lasts_s=lasts_s,
            depth=depth,
            lanes=lanes,
            least_budget_s=0.25 * (lanes - 1),
        )
        return line.tickets[number]

    @precondition(lambda self: self.connection and self.connection.held)
    @rule(
        data=st.data(),
        count=st.sampled_from([1, 2, 30]),
        runs=st.sampled_from([1, 9, 100]),
        depth=st.sampled_from([1, 2, 16]),
        lanes=st.integers(1, 3),
        lasts_s=st.sampled_from([0.1, 10.0]),
        is_ticket=st.sampled_from([True, True, False]),
    )
    def answer(self, data, count, runs, depth, lanes, lasts_s, is_ticket):
        connection = self.connection
        for key in data.draw(st.permutations(list(connection.held)))[:count]:
            said = connection.held.pop(key)
            lines = [line for line in connection.lines if line.model == said.model]
            words = [done(key)]
            if is_ticket and lines:
                line = data.draw(st.sampled_from(lines))
                words.insert(0, self.new_ticket(line, runs=runs, depth=depth, lanes=lanes, lasts_s=lasts_s))
            connection.say(*words)
        self.step()

    @precondition(lambda self: self.connection and self.connection.held)
    @rule(data=st.data(), reason=st.sampled_from(["cancelled", "deadline", "bad_input"]))
    def refuse(self, data, reason):
        key = data.draw(st.sampled_from(list(self.connection.held)))
        del self.connection.held[key]
        self.connection.say(JobError(key=key, reason=reason, message=""))
        self.step()

    @rule()
    def take_lanes_or_not(self):
        self.takes_lanes = not self.takes_lanes

    @precondition(lambda self: self.connection)
    @rule()
    def die(self):
        self.connection.close()
        self.connection = None
        self.step()

    # ------------------------------------------------------------ what the worker does

    @precondition(lambda self: self.lines)
    @rule(data=st.data(), count=st.sampled_from([1, 2, 20]))
    def run(self, data, count):
        line = data.draw(st.sampled_from(self.lines))
        for request in list(line.inbox)[:count]:
            line.say(worker.LaneDone(request.key, b"", b"raw", SERVICE_S))
        self.step()

    @precondition(lambda self: self.lines)
    @rule(data=st.data(), count=st.sampled_from([1, 20]), is_unfit=st.sampled_from([False, False, True]))
    def let_pass(self, data, count, is_unfit):
        line = data.draw(st.sampled_from(self.lines))
        for request in list(line.inbox)[:count]:
            line.say(worker.LanePass(request.key, is_unfit))
        self.step()

    @precondition(lambda self: self.connection and self.connection.lines)
    @rule(data=st.data(), ran=st.integers(0, 3), is_nonsense=st.booleans())
    def end_lane(self, data, ran, is_nonsense):
        line = data.draw(st.sampled_from(self.connection.lines))
        for request in list(line.inbox)[:ran]:
            line.say(worker.LaneDone(request.key, b"", b"", SERVICE_S))
        if is_nonsense:
            with contextlib.suppress(BrokenPipeError):
                line.socket.send(b"\xc1")
        line.socket.close()
        self.connection.lines.remove(line)
        self.step()

    @precondition(lambda self: self.connection and self.connection.lines)
    @rule(and_daemon=st.sampled_from([False, False, True]))
    def lose_worker(self, and_daemon):
        for line in self.connection.lines:
            line.socket.close()
        self.connection.lines.clear()
        if and_daemon:
            self.connection.close()
            self.connection = None
        self.submit(1, "street", None, 1)

    @rule(count=st.sampled_from([1, 8]), lanes=st.integers(1, 3))
    def have_lanes(self, count, lanes):
        """Have a row answered, so that there are lanes with tickets, and then some more under way."""
        self.takes_lanes = True
        for _ in range(ROW_BEFORE_LANE + 1):
            self.submit(1, "street", None, 1)
            if self.connection is not None:
                for key in list(self.connection.held)[:50]:
                    del self.connection.held[key]
                    self.connection.say(done(key))
                self.step()
        for _ in range(lanes):
            self.submit(2, "street", None, 1)
            if self.connection is not None:
                for line in self.connection.lines:
                    self.connection.say(self.new_ticket(line, runs=100, depth=16, lanes=lanes, lasts_s=10.0))
                self.step()
        self.submit(count, "street", None, 1)

    # ------------------------------------------------------------ what must hold

    @property
    def lanes(self):
        return [source for source in self.links.sources if isinstance(source, Lane)]

    @invariant()
    def each_job_ends_once(self):
        assert all(count == 1 for count in self.ended.values())
        assert all(job.ended == (self.ended[id(job)] == 1) for job in self.jobs)
        assert all((job.done is not None) + (job.error is not None) == job.ended for job in self.jobs)

    @invariant()
    def open_jobs_are_somewhere(self):
        waiting = set(map(id, self.session._work.unplaced))
        held = self.connection.held if self.connection else {}
        by_lane = Counter(job.key for lane in self.lanes for job, _, _ in lane.under_way)
        for job in self.jobs:
            if not job.ended:
                assert (id(job) in waiting) + (job.key in held) + by_lane[job.key] == 1, "once, at one place"
                assert (id(job) in waiting) == (job.link is None)
        assert not self.links.unsent

    @invariant()
    def both_ends_of_a_lane_agree(self):
        lines = {line.number: line for line in self.connection.lines} if self.connection else {}
        assert {lane.number for lane in self.lanes} == set(lines)
        for lane in self.lanes:
            assert [job.key for job, _, _ in lane.under_way] == [each.key for each in lines[lane.number].inbox]
        assert set(self.watched) == set(self.links.sources)

    @invariant()
    def blocks_are_those_in_use(self):
        for channel in self.links._links:
            if not isinstance(channel, Lane) and channel._segment is not None:
                held = {key for key, said in self.connection.held.items() if said.place is not None}
                under_way = {job.key: place for lane in channel.lanes for job, place, _ in lane.under_way}
                blocks = channel._segment._blocks
                assert set(blocks) == held | set(under_way)
                assert set(channel._segment._arena._taken) == set(blocks.values())
                assert all(blocks[key] == place for key, place in under_way.items())

    @invariant()
    def what_is_asked_is_at_the_daemon(self):
        for channel in self.links._links:
            if not isinstance(channel, Lane):
                book = channel.lanes
                assert set(book._asked) <= set(self.connection.held)
                for group in book._groups.values():
                    assert group.asked == list(book._asked.values()).count(group)
                    assert group.lanes

    @invariant()
    def nothing_is_overdue(self):
        for job in self.jobs:
            assert job.ended or job.deadline_s is None or job.deadline_s + GRACE_S >= self.now_s

    def teardown(self):
        """With a daemon and a worker that answer, all ends, and with the client nothing is left."""
        try:
            for _ in range(100):
                self.now_s += 0.5
                self.step()
                if self.connection is not None:
                    for line in self.lines:
                        for request in list(line.inbox):
                            line.say(worker.LaneDone(request.key, b"", b"", SERVICE_S))
                    for key in list(self.connection.held)[:50]:  # its socket holds no more
                        del self.connection.held[key]
                        self.connection.say(done(key))
                self.step()
                if all(job.ended for job in self.jobs):
                    break
            assert all(job.ended for job in self.jobs)
            self.each_job_ends_once()
        finally:
            self.links.close(self.now_s)
            self.listener.close()
            if self.connection is not None:
                self.connection.close()
            shutil.rmtree(self.folder)
        assert not self.watched
        assert len(self.links.sources) == 0
        assert len(os.listdir("/proc/self/fd")) == self.descriptors


TestLinks = LinksMachine.TestCase
TestLinks.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
