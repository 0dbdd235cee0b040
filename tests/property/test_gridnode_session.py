"""A session against daemons that die, drain, repeat themselves and fall silent: each key has exactly one outcome."""

import math
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from gridnode.control import (
    VERSION,
    CancelJob,
    ClientHello,
    Goodbye,
    JobDone,
    JobError,
    Query,
    ServerHello,
    Submit,
    decode_client,
)
from gridnode.entries import Entries
from gridnode.errors import DaemonUnreachableError, JobRejectedError
from gridnode.jobs import Job, Request, encode_job
from gridnode.link import LinkState
from gridnode.session import GRACE_S, PATIENCE_S, Session

PATHS = ("a", "b", "c")
LOST = DaemonUnreachableError("closed the connection")
REASONS = ("deadline", "queue_full", "model_failed", "poison", "bad_input")


def done(key):
    return JobDone(
        key=key,
        model="m",
        model_digest="d",
        node="n",
        node_name="n",
        hops=0,
        waiting_s=0,
        service_s=0,
        transfer_s=0,
        total_s=0,
        body=b"",
    )


class SessionMachine(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        self.now_s = 0.0
        self.session = Session(b"c" * 16, Entries(PATHS[:2]))
        self.jobs = []
        self.ended = Counter()
        self.outcomes = {}
        self.held = {}
        self.alive = set(PATHS)
        self.draining = set()

    @initialize()
    def greet_once(self):
        """Have been greeted, so that later losses are waited out."""
        self.session.ask("status", within_s=1.0, now_s=0.0)
        self.step()

    # ------------------------------------------------------------ the shell

    def step(self):
        """Do what Links.advance does, with the daemons answering hellos at once."""
        session = self.session
        for _ in range(10):
            if session.due_s <= self.now_s:
                session.tick(self.now_s)
            while (path := session.choose_entry(self.now_s)) is not None:
                if path in self.alive:
                    self.held[session.connected(path, now_s=self.now_s)] = []
                else:
                    session.refused(path, "refused", now_s=self.now_s)
            frames = session.to_send(self.now_s)
            for link, what in frames:
                frame = encode_job(what, now_s=self.now_s) if isinstance(what, Job) else what
                self.deliver(link, decode_client(frame[8:]))
            finished = session.finished_links()
            for link in finished:
                self.drop(link)
            self.collect()
            if not frames and not finished:
                return
        raise AssertionError("the session never comes to rest")

    def deliver(self, link, message):
        assert link in self.held, "a frame went to a link that is gone"
        match message:
            case ClientHello():
                hello = ServerHello(version=VERSION, node="i", name="n", grid="g", entries=("c",))
                self.session.received(link, hello, b"", now_s=self.now_s)
            case Submit(key=key, budget_s=budget_s):
                assert key not in self.held[link], "a key was sent twice on one link"
                assert budget_s is None or budget_s > 0
                self.held[link].append(key)
                if link.path in self.draining:
                    self.held[link].remove(key)
                    self.session.received(link, JobError(key=key, reason="draining", message=""), b"", now_s=self.now_s)
            case CancelJob() | Query():
                pass

    def drop(self, link):
        self.held.pop(link, None)
        self.session.lost(link, link.fault or LOST, now_s=self.now_s)

    def collect(self):
        for work in self.session.take_ended():
            if isinstance(work, Job):
                self.ended[work.key] += 1
                self.outcomes[work.key] = (work.done, work.error)

    def held_keys(self):
        return [(link, key) for link, keys in self.held.items() for key in keys]

    # ------------------------------------------------------------ what may happen

    @rule(budget_s=st.none() | st.floats(0.01, 20.0))
    def submit(self, budget_s):
        try:
            self.jobs.append(self.session.open(Request(model="m", body=b""), budget_s=budget_s, now_s=self.now_s))
        except JobRejectedError:
            raise AssertionError("the bound is far away") from None
        self.step()

    @precondition(lambda self: self.held_keys())
    @rule(data=st.data(), twice=st.booleans(), reason=st.none() | st.sampled_from(REASONS))
    def answer(self, data, twice, reason):
        link, key = data.draw(st.sampled_from(self.held_keys()))
        self.held[link].remove(key)
        message = done(key) if reason is None else JobError(key=key, reason=reason, message="")
        for _ in range(1 + twice):
            self.session.received(link, message, b"", now_s=self.now_s)
        self.step()

    @precondition(lambda self: self.held_keys())
    @rule(data=st.data())
    def give_back(self, data):
        link, key = data.draw(st.sampled_from(self.held_keys()))
        self.held[link].remove(key)
        self.draining.add(link.path)
        self.session.received(link, JobError(key=key, reason="draining", message=""), b"", now_s=self.now_s)
        self.step()

    @precondition(lambda self: self.jobs and self.held)
    @rule(data=st.data())
    def answer_anything_ever_submitted(self, data):
        link = data.draw(st.sampled_from(list(self.held)))
        job = data.draw(st.sampled_from(self.jobs))
        if job.key in self.held[link]:
            self.held[link].remove(job.key)
        self.session.received(link, done(job.key), b"", now_s=self.now_s)
        self.step()

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data):
        job = data.draw(st.sampled_from(self.jobs))
        was_open = not job.ended
        assert self.session.cancel(job, now_s=self.now_s) == was_open
        self.step()

    @rule(path=st.sampled_from(PATHS))
    def die(self, path):
        self.alive.discard(path)
        for link in [link for link in self.held if link.path == path]:
            self.drop(link)
        self.step()

    @rule(path=st.sampled_from(PATHS))
    def restart(self, path):
        self.alive.add(path)
        self.draining.discard(path)
        self.step()

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def say_goodbye(self, data):
        link = data.draw(st.sampled_from(list(self.held)))
        self.draining.add(link.path)
        self.session.received(link, Goodbye(reason="draining"), b"", now_s=self.now_s)
        self.step()

    @rule(seconds=st.floats(0.001, 8.0))
    def wait(self, seconds):
        self.now_s += seconds
        self.step()

    # ------------------------------------------------------------ what must hold

    @invariant()
    def no_key_ends_twice(self):
        assert all(count == 1 for count in self.ended.values())
        assert len({job.key for job in self.jobs}) == len(self.jobs)
        assert all(job.ended == (self.ended[job.key] == 1) for job in self.jobs)
        assert all((found is None) != (error is None) for found, error in self.outcomes.values())

    @invariant()
    def open_jobs_are_somewhere(self):
        waiting = set(map(id, self.session._work.unplaced))
        for job in self.jobs:
            placed = job.link is not None
            assert not (job.ended and placed)
            if not job.ended:
                assert placed != (id(job) in waiting)
                assert not placed or job.link in self.session.links
        assert all(work.ended is False for work in self.session._work.unplaced)

    @invariant()
    def each_link_counts_what_it_owes(self):
        work = [*self.session._work.jobs.values(), *self.session._work.questions.values()]
        for link in self.session.links:
            assert link.owed == sum(each.link is link for each in work)

    @invariant()
    def at_most_one_link_is_in_use(self):
        assert sum(link.state is not LinkState.LEAVING for link in self.session.links) <= 1
        assert set(self.session.links) == set(self.held)

    @invariant()
    def nothing_is_overdue(self):
        due_s = self.session.next_deadline_s()
        assert self.session.due_s <= due_s
        for job in self.jobs:
            if not job.ended and job.deadline_s is not None:
                assert due_s < math.inf
                assert job.deadline_s + GRACE_S >= self.now_s

    def teardown(self):
        """With a daemon that answers, or with time, everything ends."""
        self.alive, self.draining = set(PATHS), set()
        for _ in range(int(2 * PATIENCE_S)):
            self.now_s += 1.0
            self.step()
            for link, key in self.held_keys():
                if link in self.held and key in self.held[link]:
                    self.held[link].remove(key)
                    self.session.received(link, done(key), b"", now_s=self.now_s)
            self.step()
        assert all(job.ended for job in self.jobs)
        assert self.session.next_deadline_s() == math.inf
        assert self.session._work.open_bytes == 0
        self.no_key_ends_twice()


TestSession = SessionMachine.TestCase
TestSession.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
