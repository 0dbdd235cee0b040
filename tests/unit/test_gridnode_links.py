"""Lanes of a client: a session and its connections, without threads, against a daemon and a worker of the test's."""

import contextlib
import mmap
import os
import resource
import socket

import pytest

from gridnode.control import (
    SEGMENT_MAX_BYTES,
    VERSION,
    CancelJob,
    ClientHello,
    Goodbye,
    JobDone,
    JobError,
    OpenLane,
    ServerHello,
    Share,
    Submit,
    Ticket,
    decode_client,
    decode_prefix,
    encode_frame,
)
from gridnode.entries import Entries
from gridnode.errors import DrainingError, JobDeadlineError
from gridnode.jobs import Options, Request
from gridnode.lane import Lane
from gridnode.lanebook import LULL_JOBS, PAUSE_AFTER_LANE, ROW_BEFORE_LANE
from gridnode.links import Links
from gridnode.segment import SHARED_MIN_BYTES
from gridnode.session import Session
from models import laneprotocol as worker

CLIENT = b"c" * 16
FRAME = bytes(range(256)) * 32


def done(key, *, node="n1", model="street", body=b"daemon's"):
    return JobDone(
        key=key,
        model=model,
        model_digest="d" * 64,
        node=node,
        node_name="gate",
        hops=0,
        waiting_s=0.0,
        service_s=0.001,
        transfer_s=0.0,
        total_s=0.001,
        body=body,
    )


def a_ticket(lane=0, number=1, *, runs=32, lasts_s=1000.0, depth=1, lanes=1, least_budget_s=0.0):
    return Ticket(
        lane=lane, ticket=number, runs=runs, lasts_s=lasts_s, depth=depth, lanes=lanes, least_budget_s=least_budget_s
    )


class Connection:
    """A connection at the daemon's end; what was sent is there at once."""

    def __init__(self, plain):
        self.socket = plain
        plain.setblocking(False)
        self.data = bytearray()
        self.descriptors = []
        self.memory = None
        self.lines = []
        """The workers' ends of lanes."""

    def messages(self, *, whole=True):
        """Return what the client has sent since, descriptors taken over, hellos left out; ``whole``: it sent all."""
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self.socket, 1 << 20, 4)
            except BlockingIOError:
                break
            self.descriptors += descriptors
            if not data:
                break
            self.data += data
        found = []
        while self.data:
            header_bytes, payload_bytes = decode_prefix(self.data, 0)
            body = 8 + header_bytes
            if not whole and len(self.data) < body + payload_bytes:
                break
            found.append(decode_client(bytes(self.data[8:body])))
            del self.data[: body + payload_bytes]
            self._adopt(found[-1])
        return [message for message in found if not isinstance(message, ClientHello | Share)]

    def _adopt(self, message):
        if isinstance(message, Share):
            descriptor = self.descriptors.pop(0)
            self.memory = mmap.mmap(descriptor, message.segment_bytes, prot=mmap.PROT_READ)
            os.close(descriptor)
        elif isinstance(message, OpenLane):
            self.lines.append(socket.socket(fileno=self.descriptors.pop(0)))
            self.lines[-1].setblocking(False)

    def say(self, *messages):
        self.socket.sendall(b"".join(map(encode_frame, messages)))

    def close(self):
        self.socket.close()
        for line in self.lines:
            line.close()
        if self.memory is not None:
            self.memory.close()


class House:
    """A client and a daemon, joined by a real socket."""

    def __init__(self, folder):
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(folder / "s"))
        self.listener.listen()
        self.listener.setblocking(False)
        self.session = Session(CLIENT, Entries([str(folder / "s")]))
        self.opened, self.closed = [], []
        self.links = Links(self.session, on_open=self.opened.append, before_close=self.closed.append)
        self.now_s = 100.0
        self.daemons = []

    @property
    def daemon(self):
        """The newest connection."""
        return self.daemons[-1]

    @property
    def line(self):
        """The worker's end of the newest lane."""
        return self.daemon.lines[-1]

    @property
    def lane(self):
        [lane] = [source for source in self.links.sources if isinstance(source, Lane)]
        return lane

    @property
    def has_lane(self):
        return any(isinstance(source, Lane) for source in self.links.sources)

    def pump(self):
        """Let the client take what has come, and send."""
        for source in tuple(self.links.sources):
            self.links.read(source, self.now_s)
        self.links.advance(self.now_s)

    def greet(self):
        """Take a connection."""
        self.links.advance(self.now_s)
        plain, _ = self.listener.accept()
        self.daemons.append(Connection(plain))
        self.daemon.say(ServerHello(version=VERSION, node="n1", name="gate", grid="g", entries=()))
        self.pump()

    def submit(self, *, payload=FRAME, model="street", budget_s=None, **options):
        """Send a job; returns it."""
        request = Request(
            model=model, body=b"body", parts=(payload,), payload_bytes=len(payload), options=Options(**options)
        )
        job = self.session.open(request, budget_s=budget_s, now_s=self.now_s)
        self.links.advance(self.now_s)
        if not self.daemons:
            self.greet()
        return job

    def answer(self, job, *others, **how):
        """Have the daemon answer a job that it has."""
        self.daemon.say(*others, done(job.key, **how))
        self.pump()
        assert job.done is not None

    def ask(self, count=1, *, node="n1", **how):
        """Have so many jobs, one after another, answered by the daemon; returns what else it was told."""
        told = []
        for _ in range(count):
            job = self.submit(**how)
            *rest, submitted = self.daemon.messages()
            assert isinstance(submitted, Submit)
            assert submitted.key == job.key
            told += rest
            self.answer(job, node=node)
        return told + self.daemon.messages()

    def earn(self, *, model="street", **how):
        """Have a lane opened, and its ticket given."""
        [opened] = self.ask(ROW_BEFORE_LANE)
        assert isinstance(opened, OpenLane)
        job = self.submit()
        assert len(self.daemon.messages()) == 1
        self.answer(job, a_ticket(opened.lane, **how), model=model)

    def widen(self, *, runs=100, depth=16, lasts_s=1000.0):
        """Have two lanes, whose answers have a known length and whose tickets are new."""
        self.earn(lanes=2)
        others = [self.submit(), self.submit()]
        assert self.asked().key == others[0].key
        assert len(self.daemon.messages()) == 1
        self.daemon.say(a_ticket(0, 2, lanes=2))
        self.pump()
        [opened] = self.daemon.messages()
        assert opened == OpenLane(lane=1, model="street", rungs=True, priority=1, tenant="")
        self.answer(others[1])
        self.reply(worker.LaneDone(others[0].key, b"", b"", 0.0), line=0)
        for lane in (0, 1):
            self.daemon.say(a_ticket(lane, 3, runs=runs, depth=depth, lanes=2, lasts_s=lasts_s))
        self.pump()
        others = [self.submit(), self.submit()]
        for line, other in enumerate(others):
            assert self.asked(line).key == other.key
            self.reply(worker.LaneDone(other.key, b"", b"", 0.0), line=line)
        assert self.daemon.messages() == []

    def flood(self, count, **how):
        """Submit jobs, which must all go by lanes."""
        jobs = [self.submit(**how) for _ in range(count)]
        assert self.daemon.messages() == []
        return jobs

    def asked(self, line=-1):
        """Return the next request that has come by a lane."""
        return worker.decode_request(self.daemon.lines[line].recv(worker.PACKET_MAX_BYTES))

    def come(self, line):
        """Return all requests that have come by a lane, whether or not it has ended since."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while packet := self.daemon.lines[line].recv(worker.PACKET_MAX_BYTES):
                found.append(worker.decode_request(packet))
        return found

    def reply(self, *answers, line=-1):
        for answer in answers:
            self.daemon.lines[line].send(worker.encode(answer))
        self.pump()

    def close(self):
        self.links.close(self.now_s)
        self.listener.close()
        for daemon in self.daemons:
            daemon.close()


@pytest.fixture
def house(tmp_path):
    made = House(tmp_path)
    yield made
    made.close()


# ---------------------------------------------------------------- when a lane is opened


def test_a_lane_is_offered_after_a_row_of_answers(house):
    assert house.ask(ROW_BEFORE_LANE - 1, priority=2, tenant="shop", rungs=False) == []
    assert not house.has_lane
    told = house.ask(priority=2, tenant="shop", rungs=False)
    assert told == [OpenLane(lane=0, model="street", rungs=False, priority=2, tenant="shop")]
    assert (house.line.family, house.line.type) == (socket.AF_UNIX, socket.SOCK_SEQPACKET)
    assert house.opened[1:] == [house.lane], "somebody waits for its socket"
    assert house.ask(2 * ROW_BEFORE_LANE, priority=2, tenant="shop", rungs=False) == [], "one is enough"


@pytest.mark.parametrize(
    "how",
    [{"stream": "door"}, {"payload": bytes(SHARED_MIN_BYTES - 1)}],
    ids=["streams", "nothing shared"],
)
def test_no_lane_is_offered_for(house, how):
    assert house.ask(3 * ROW_BEFORE_LANE, **how) == []
    assert not house.has_lane


def test_a_lane_is_offered_while_other_requests_are_under_way(house):
    others = [house.submit() for _ in range(4)]
    assert len(house.daemon.messages()) == 4
    assert house.ask(ROW_BEFORE_LANE - 1) == []
    [opened] = house.ask()
    assert isinstance(opened, OpenLane)
    for other in others:
        house.answer(other)


def test_a_program_without_a_descriptor_left_works_on_without_a_lane(house):
    assert house.ask(ROW_BEFORE_LANE - 1) == []
    job = house.submit()
    house.daemon.messages()
    house.daemon.say(done(job.key))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        house.pump()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert job.done is not None
    assert not house.has_lane
    assert house.ask(ROW_BEFORE_LANE) == [], "nor does it try all the time"


def test_no_lane_is_offered_while_a_frame_is_half_sent(house):
    house.earn(lanes=2)
    first = house.submit()
    other = house.submit(model="other", payload=bytes(SEGMENT_MAX_BYTES + 1))  # finds no room in shared memory
    assert house.links.unsent
    house.daemon.say(a_ticket(0, 2, lanes=2))
    house.pump()
    assert [lane.number for lane in house.opened[1:]] == [0]
    found = []
    while len(found) < 1:
        found += house.daemon.messages(whole=False)
        house.links.advance(house.now_s)
    assert [each.key for each in found] == [other.key], "nothing came in between"
    house.daemon.say(a_ticket(0, 3, lanes=2))
    house.pump()
    assert [each.lane for each in house.daemon.messages()] == [1]
    house.reply(worker.LaneDone(first.key, b"", b"", 0.0), line=0)
    house.answer(other)


def test_a_lane_that_cannot_be_offered_leaves_no_socket(house):
    before = len(os.listdir("/proc/self/fd"))
    house.earn(lanes=2)
    house.submit()
    house.submit()
    house.daemon.messages()
    house.daemon.say(a_ticket(0, 2, lanes=2))
    house.daemon.close()
    house.pump()
    assert [lane.number for lane in house.opened[1:]] == [0], "the daemon has gone"
    house.links.close(house.now_s)
    assert len(os.listdir("/proc/self/fd")) == before


# ---------------------------------------------------------------- how it is used


def test_with_a_ticket_requests_go_to_the_worker_and_not_to_the_daemon(house):
    house.earn(runs=2)
    for _ in range(2):
        job = house.submit(budget_s=2.5)
        asked = house.asked()
        assert (asked.key, asked.ticket, asked.body, asked.budget_s) == (job.key, 1, b"body", 2.5)
        assert asked.offset == 0, "the block of the one before is free"
        assert house.daemon.memory[asked.offset : asked.offset + asked.payload_bytes] == FRAME
        house.reply(worker.LaneDone(job.key, b"result", b"raw", 0.125))
        assert bytes(job.payload) == b"raw"
        assert (job.done.body, job.done.model, job.done.node_name, job.done.total_s) == (
            b"result",
            "street",
            "gate",
            0.125,
        )
        assert house.daemon.messages() == []
    assert house.ask() == [], "the ticket is used up"


def test_a_small_payload_lies_in_the_shared_memory_too(house):
    house.earn()
    job = house.submit(payload=b"tiny")
    asked = house.asked()
    assert house.daemon.memory[asked.offset : asked.offset + asked.payload_bytes] == b"tiny"
    house.reply(worker.LaneDone(job.key, b"", b"", 0.0))
    assert job.done is not None


@pytest.mark.parametrize("how", [{"model": "other"}, {"raw_outputs": True}, {"stream": "door"}, {"payload": b""}])
def test_other_requests_go_to_the_daemon_as_ever(house, how):
    house.earn()
    assert house.ask(**how) == []
    job = house.submit()
    assert house.asked().key == job.key


def test_what_comes_while_the_lane_is_busy_goes_to_the_daemon(house):
    house.earn()
    first, second = house.submit(), house.submit()
    assert house.asked().key == first.key
    [submitted] = house.daemon.messages()
    assert (submitted.key, submitted.place) == (second.key, len(FRAME))
    house.answer(second)
    house.reply(worker.LaneDone(first.key, b"", b"", 0.0))
    assert first.done is not None


def test_what_has_little_time_goes_to_the_daemon(house):
    house.earn(least_budget_s=0.5)
    assert house.ask(budget_s=0.25) == []
    house.submit(budget_s=0.5)
    assert house.asked().budget_s == 0.5


def test_answers_by_a_lane_are_said_to_be_of_the_model_that_earned_its_ticket(house):
    house.earn(model="street-small")
    job = house.submit()
    house.reply(worker.LaneDone(job.key, b"", b"", 0.0))
    assert job.done.model == "street-small"


def test_a_ticket_for_no_lane_is_worth_nothing(house):
    job = house.submit()
    house.daemon.messages()
    house.answer(job, a_ticket(5))
    assert house.ask() == []


# ---------------------------------------------------------------- what does not come through


def is_submitted_in_place(house, job, place=0):
    """Take the one thing that the daemon was told: the job, whose payload lies where it lay."""
    [submitted] = house.daemon.messages()
    assert isinstance(submitted, Submit)
    assert (submitted.key, submitted.place, submitted.place_bytes) == (job.key, place, len(FRAME))
    return house.daemon.memory[place : place + len(FRAME)] == FRAME


def test_what_the_worker_passes_on_is_the_daemons(house):
    house.earn()
    job = house.submit()
    house.reply(worker.LanePass(job.key, is_unfit=False))
    assert is_submitted_in_place(house, job)
    house.answer(job, a_ticket(0, 2))
    following = house.submit()
    asked = house.asked(), house.asked()
    assert [(each.key, each.ticket, each.offset) for each in asked] == [(job.key, 1, 0), (following.key, 2, 0)]


def test_without_a_new_ticket_nothing_goes_by_a_lane_that_has_passed(house):
    house.earn()
    job = house.submit()
    house.reply(worker.LanePass(job.key, is_unfit=False))
    assert is_submitted_in_place(house, job)
    house.answer(job)
    assert house.ask(2 * ROW_BEFORE_LANE) == [], "and the lane stays"


def lane_ends(house, lane):
    assert not house.has_lane
    assert house.closed == [lane], "whoever waits for its socket was told"
    assert lane.socket.fileno() == -1


@pytest.mark.parametrize("has_said", [b"", b"nonsense"])
def test_the_request_in_a_lane_that_ends_is_the_daemons_and_a_row_earns_another_lane(house, has_said):
    house.earn()
    job, lane = house.submit(), house.lane
    if has_said:
        house.line.send(has_said)
    else:
        house.line.close()
    house.pump()
    lane_ends(house, lane)
    assert is_submitted_in_place(house, job)
    house.answer(job)
    assert house.ask(ROW_BEFORE_LANE - 2) == []
    assert house.ask() == [OpenLane(lane=1, model="street", rungs=True, priority=1, tenant="")]


def test_a_lane_found_ended_when_it_is_used_costs_the_request_nothing(house):
    house.earn()
    lane = house.lane
    house.line.close()
    job = house.submit()
    lane_ends(house, lane)
    assert is_submitted_in_place(house, job)
    house.answer(job)


def test_a_lane_that_the_daemon_does_not_open_is_not_offered_again_soon(house):
    house.ask(ROW_BEFORE_LANE)
    lane = house.lane
    house.line.close()
    house.pump()
    lane_ends(house, lane)
    assert house.ask(PAUSE_AFTER_LANE + ROW_BEFORE_LANE - 1) == []
    assert len(house.ask()) == 1


def test_a_request_that_does_not_fit_closes_its_lane_for_long(house):
    house.earn()
    job, lane = house.submit(), house.lane
    house.asked()
    house.reply(worker.LanePass(job.key, is_unfit=True))
    lane_ends(house, lane)
    assert house.line.recv(1) == b""
    assert is_submitted_in_place(house, job)
    house.daemon.say(JobError(key=job.key, reason="bad_input", message="odd"))
    house.pump()
    assert str(job.error) == "odd", "the daemon knows the words"
    assert house.ask(2 * ROW_BEFORE_LANE) == []


# ---------------------------------------------------------------- what is cancelled or late


def test_a_late_answer_to_a_cancelled_job_frees_its_block(house):
    house.earn()
    job = house.submit()
    house.session.cancel(job, now_s=house.now_s)
    house.pump()
    assert house.daemon.messages() == [CancelJob(key=job.key)]
    other = house.submit()
    [submitted] = house.daemon.messages()
    assert submitted.place == len(FRAME), "the worker may still read the first block"
    house.reply(worker.LaneDone(job.key, b"", b"", 0.0))
    assert (house.session.late_answers, job.done) == (1, None)
    house.answer(other)
    house.submit()
    assert house.asked().key == job.key
    assert house.asked().offset == 0


@pytest.mark.parametrize("is_unfit", [False, True])
def test_a_cancelled_job_that_is_passed_on_goes_nowhere(house, is_unfit):
    house.earn()
    job = house.submit()
    house.session.cancel(job, now_s=house.now_s)
    house.pump()
    house.daemon.messages()
    house.reply(worker.LanePass(job.key, is_unfit=is_unfit))
    assert house.daemon.messages() == []
    house.submit()
    [submitted] = house.daemon.messages()
    assert submitted.place == 0, "its block is free"


def test_a_job_that_a_worker_keeps_ends_at_its_deadline(house):
    house.earn()
    job = house.submit(budget_s=1.0)
    house.now_s += 1.0 + 5.0
    house.pump()
    assert isinstance(job.error, JobDeadlineError)
    house.line.close()
    house.pump()
    assert house.daemon.messages() == [], "nobody waits for it"
    house.submit()
    [submitted] = house.daemon.messages()
    assert submitted.place == 0


# ---------------------------------------------------------------- several lanes, with several requests under way


def done_by(*jobs):
    return [worker.LaneDone(job.key, b"result", b"", 0.0) for job in jobs]


def passes(*jobs):
    return [worker.LanePass(job.key, is_unfit=False) for job in jobs]


def test_another_lane_is_opened_with_a_ticket_while_more_is_under_way(house):
    house.earn(lanes=2)
    job = house.submit()
    house.daemon.say(a_ticket(0, 2, lanes=2))
    house.pump()
    assert house.daemon.messages() == [], "one at a time has no use for two"
    other = house.submit()
    assert len(house.daemon.messages()) == 1
    house.daemon.say(a_ticket(0, 3, lanes=1))
    house.pump()
    assert house.daemon.messages() == [], "there may be no other"
    house.daemon.say(a_ticket(0, 4, lanes=2))
    house.pump()
    assert house.daemon.messages() == [OpenLane(lane=1, model="street", rungs=True, priority=1, tenant="")]
    assert [lane.number for lane in house.opened[1:]] == [0, 1]
    house.daemon.say(a_ticket(0, 5, lanes=2))
    house.pump()
    assert house.daemon.messages() == [], "two are there"
    house.answer(other)
    house.reply(*done_by(job), line=0)


def test_requests_go_by_all_lanes_one_behind_another_and_each_gets_its_answer(house):
    house.widen()
    jobs = house.flood(6)
    for line in (0, 1):
        assert [asked.key for asked in house.come(line)] == [job.key for job in jobs[line::2]]
    house.reply(*done_by(*jobs[1::2]), line=1)
    assert [job.ended for job in jobs] == [False, True] * 3, "one waking takes all that has come"
    house.reply(*done_by(*jobs[0::2]), line=0)
    assert all(job.done.body == b"result" for job in jobs)
    assert house.session.late_answers == 0


def test_each_payload_lies_by_itself_until_its_answer_comes(house):
    house.widen()
    jobs = house.flood(4)
    asked = house.come(0) + house.come(1)
    assert sorted(each.offset for each in asked) == [number * len(FRAME) for number in range(4)]
    house.reply(*done_by(jobs[0]), line=0)
    [following] = house.flood(1)
    [asked] = house.come(0)
    assert (asked.key, asked.offset) == (following.key, 0)


def test_an_answer_behind_others_is_not_taken_for_silence(house):
    house.widen()
    jobs = house.flood(6, budget_s=5.0)
    for line in (0, 1):
        for answer in done_by(*jobs[line::2]):
            house.daemon.lines[line].send(worker.encode(answer))
    house.now_s += 100.0
    house.links.advance(house.now_s)
    assert all(job.done is not None for job in jobs)


def test_a_ticket_taken_back_sends_all_that_waits_to_the_daemon_in_order(house):
    house.widen()
    jobs = house.flood(6)
    house.reply(*done_by(jobs[0]), *passes(jobs[2], jobs[4]), line=0)
    submitted = house.daemon.messages()
    assert [(each.key, each.place) for each in submitted] == [
        (jobs[2].key, 2 * len(FRAME)),
        (jobs[4].key, 4 * len(FRAME)),
    ]
    house.reply(*passes(*jobs[1::2]), line=1)
    submitted = house.daemon.messages()
    assert [(each.key, each.place) for each in submitted] == [
        (jobs[number].key, number * len(FRAME)) for number in (1, 3, 5)
    ]
    assert house.links.sources
    for job in jobs[1:]:
        house.answer(job)
    assert house.ask(3) == [], "the lanes stay"


def test_the_daemon_is_asked_for_a_ticket_again_once_it_has_answered(house):
    house.widen()
    house.daemon.say(a_ticket(1, 4, runs=1, lanes=2))
    house.pump()
    house.flood(2)  # the second lane has no run left
    for number in range(3):
        for _ in range(LULL_JOBS + 1):
            asked = house.submit()
            if submitted := house.daemon.messages():
                break
        assert [each.key for each in submitted] == [asked.key], number
        house.answer(asked)
        for job in house.come(0):
            house.reply(worker.LaneDone(job.key, b"", b"", 0.0), line=0)


def test_the_end_of_a_lane_sends_all_under_way_to_the_daemon_and_spares_the_others(house):
    house.widen()
    jobs = house.flood(6)
    house.daemon.lines[1].close()
    house.pump()
    assert [each.key for each in house.daemon.messages()] == [job.key for job in jobs[1::2]]
    for job in jobs[1::2]:
        house.answer(job)
    house.reply(*done_by(*jobs[0::2]), line=0)
    [one] = house.flood(1)
    assert [asked.key for asked in house.come(0)][-1] == one.key
    house.daemon.say(a_ticket(0, 4, lanes=2))
    house.pump()
    assert house.daemon.messages() == [], "one at a time"
    house.submit()
    house.daemon.messages()
    house.daemon.say(a_ticket(0, 5, lanes=2))
    house.pump()
    assert len(house.daemon.messages()) == 1, "there may be another again"


def test_a_lane_that_ends_while_a_request_is_sent_loses_none(house):
    house.widen()
    jobs = house.flood(4)
    house.daemon.lines[0].close()
    one = house.submit()
    assert [each.key for each in house.daemon.messages()] == [jobs[0].key, jobs[2].key, one.key]


def test_an_unfit_request_and_all_behind_it_are_the_daemons(house):
    house.widen()
    jobs = house.flood(6)
    house.reply(worker.LanePass(jobs[0].key, is_unfit=True), line=0)
    assert [each.key for each in house.daemon.messages()] == [jobs[number].key for number in (0, 2, 4)]
    assert len(house.closed) == 1
    assert [asked.key for asked in house.come(0)] == [jobs[number].key for number in (0, 2, 4)]
    for number in (0, 2, 4):
        house.answer(jobs[number], a_ticket(1, 4 + number, lanes=2, depth=16))
    assert house.daemon.messages() == [], "no other lane is opened soon"
    house.reply(*done_by(*jobs[1::2]), line=1)


def test_what_the_socket_of_a_lane_does_not_take_goes_to_the_daemon(house):
    house.widen(runs=100_000, depth=100_000)
    jobs = []
    while not (submitted := house.daemon.messages()):
        jobs.append(house.submit(payload=b"tiny"))
        assert len(jobs) < 10_000
    assert [(each.key, each.place_bytes) for each in submitted] == [(jobs[-1].key, 4)], "its payload lies in place"
    house.answer(jobs[-1])


def test_where_there_is_no_room_for_a_payload_its_request_is_the_daemons(house):
    house.widen()
    large = bytes(SEGMENT_MAX_BYTES // 2)
    first, second = house.flood(2, payload=large)
    third = house.submit(payload=large)
    for _ in range(100):
        house.links.advance(house.now_s)
        if house.daemon.messages():
            break
    else:
        raise AssertionError("it has not come")
    house.answer(third)
    house.reply(*done_by(first), line=0)
    house.reply(*done_by(second), line=1)
    assert first.ended
    assert second.ended


def test_a_cancelled_job_behind_others_frees_its_block_when_it_is_answered_or_passed(house):
    house.widen()
    jobs = house.flood(6)
    for job in jobs[2:]:
        house.session.cancel(job, now_s=house.now_s)
    house.pump()
    assert [each.key for each in house.daemon.messages()] == [job.key for job in jobs[2:]]
    house.reply(*done_by(jobs[0], jobs[2]), *passes(jobs[4]), line=0)
    house.reply(*done_by(jobs[1]), *passes(jobs[3], jobs[5]), line=1)
    assert house.daemon.messages() == []
    assert house.session.late_answers == 1
    house.submit()
    [submitted] = house.daemon.messages()
    assert submitted.place == 0, "all blocks are free"


def test_a_refused_lane_is_not_offered_with_the_next_ticket(house):
    house.earn(lanes=2)
    house.submit()
    house.submit()
    house.daemon.messages()
    house.daemon.say(a_ticket(0, 2, lanes=2))
    house.pump()
    assert len(house.daemon.messages()) == 1
    house.daemon.lines[1].close()
    house.pump()
    house.daemon.say(a_ticket(0, 3, lanes=2))
    house.pump()
    assert house.daemon.messages() == []


def test_a_program_without_a_descriptor_left_works_on_with_one_lane(house):
    house.earn(lanes=2)
    house.submit()
    other = house.submit()
    house.daemon.messages()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    spare = os.dup(0)
    os.close(spare)
    house.daemon.say(a_ticket(0, 2, lanes=2))
    resource.setrlimit(resource.RLIMIT_NOFILE, (spare, hard))
    try:
        house.pump()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    house.daemon.say(a_ticket(0, 3, lanes=2))
    house.pump()
    assert house.daemon.messages() == []
    house.answer(other)


def test_answers_by_a_further_lane_are_said_to_be_of_the_model_that_earned_its_ticket(house):
    house.earn(lanes=2)
    others = [house.submit() for _ in range(4)]
    house.daemon.messages()
    house.answer(others[1], a_ticket(0, 2, lanes=2), model="street-large")
    assert len(house.daemon.messages()) == 1
    house.answer(others[2], a_ticket(1, 1, lanes=2), model="street-small")
    job = house.submit()
    assert house.asked(1).key == job.key
    house.reply(*done_by(others[0]), line=0)
    house.reply(*done_by(job), line=1)
    assert [others[0].done.model, job.done.model] == ["street-large", "street-small"]


def test_with_its_connection_all_lanes_are_closed_and_all_under_way_sent_again(house):
    house.widen()
    jobs, lines = house.flood(6), house.daemon.lines
    house.daemon.socket.close()
    house.pump()
    assert len(house.closed) == 3
    for line in lines:
        while line.recv(worker.PACKET_MAX_BYTES):
            pass
    house.now_s += 10.0
    house.greet()
    assert sorted(each.key for each in house.daemon.messages()) == [job.key for job in jobs]
    for job in jobs:
        house.answer(job)
    assert house.session.resubmissions == 6


def test_a_daemon_that_ends_with_its_worker_in_a_flood_costs_each_job_one_resubmission(house):
    house.widen()
    jobs = house.flood(6)
    for line in house.daemon.lines:
        line.close()
    house.daemon.socket.close()
    jobs.append(house.submit())
    house.pump()
    assert not house.links.unsent
    assert not house.has_lane
    house.now_s += 10.0
    house.greet()
    assert sorted(each.key for each in house.daemon.messages()) == [job.key for job in jobs]
    for job in jobs:
        house.answer(job)
        assert job.submissions == 2


def test_a_draining_daemon_gives_back_what_it_passes(house):
    house.widen()
    jobs = house.flood(4)
    house.daemon.say(Goodbye(reason="draining"))
    house.pump()
    house.reply(*done_by(jobs[0]), *passes(jobs[2]), line=0)
    house.reply(*done_by(jobs[1]), *passes(jobs[3]), line=1)
    assert [each.key for each in house.daemon.messages()] == [jobs[2].key, jobs[3].key]
    for job in jobs[2:]:
        house.daemon.say(JobError(key=job.key, reason="draining", message=""))
    house.pump()
    assert len(house.links.sources) == 0, "the connection is let go with its lanes"
    assert all(isinstance(job.error, DrainingError) for job in jobs[2:]), "there is no other entry"


# ---------------------------------------------------------------- the end of a connection


def test_with_its_connection_a_lane_is_closed_and_its_request_sent_again(house):
    house.earn()
    job, lane, line = house.submit(), house.lane, house.line
    house.asked()
    house.daemon.socket.close()
    house.pump()
    assert not house.has_lane
    assert lane in house.closed
    assert line.recv(1) == b""
    house.now_s += 10.0
    house.greet()
    [submitted] = house.daemon.messages()
    assert submitted.key == job.key
    house.answer(job)
    assert house.ask(ROW_BEFORE_LANE - 2) == []
    assert len(house.ask()) == 1, "a new connection has a row of its own"


def test_an_answer_that_has_come_by_a_lane_counts_though_the_daemon_has_gone(house):
    house.earn()
    job, line = house.submit(), house.line
    house.asked()
    line.send(worker.encode(worker.LaneDone(job.key, b"result", b"raw", 0.125)))
    line.close()
    house.daemon.socket.close()
    [channel] = [source for source in house.links.sources if not isinstance(source, Lane)]
    house.links.read(channel, house.now_s)
    assert job.done is not None
    assert (job.done.body, bytes(job.payload)) == (b"result", b"raw")
    assert not house.has_lane


def test_a_daemon_that_ends_with_its_worker_costs_a_job_a_resubmission(house):
    house.earn()
    lane = house.lane
    house.line.close()
    house.daemon.socket.close()
    job = house.submit()
    assert not house.links.unsent, "nobody waits for a connection that is gone"
    assert lane in house.closed
    assert not house.has_lane
    house.now_s += 10.0
    house.greet()
    [submitted] = house.daemon.messages()
    assert submitted.key == job.key
    house.answer(job)


def test_closing_the_client_closes_its_lanes(house):
    house.earn()
    house.submit()
    lane, line = house.lane, house.line
    house.asked()
    house.links.close(house.now_s)
    assert lane in house.closed
    assert line.recv(1) == b""
    assert len(house.links.sources) == 0
