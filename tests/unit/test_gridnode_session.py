import math

import msgspec
import pytest

from gridnode import openwork
from gridnode import session as rules
from gridnode.control import (
    VERSION,
    Answer,
    CancelJob,
    ClientHello,
    Goodbye,
    JobDone,
    JobError,
    Query,
    ServerHello,
    Submit,
    decode_client,
    decode_prefix,
)
from gridnode.entries import BACKOFF_FIRST_S, BACKOFF_MAX_S, ENTRIES_MAX, REST_S, Entries
from gridnode.errors import (
    DaemonUnreachableError,
    DrainingError,
    GridError,
    JobCancelledError,
    JobDeadlineError,
    JobFailedError,
    JobRejectedError,
    ProtocolError,
)
from gridnode.jobs import Job, Request, encode_job
from gridnode.link import HELLO_S, PING_S, SILENCE_S, LinkState
from gridnode.session import Session

CLIENT = b"c" * 16
HELLO = ServerHello(version=VERSION, node="id", name="n", grid="g")
REQUEST = Request(model="street", body=b"body", parts=(b"pay", b"load"), payload_bytes=7)
LOST = DaemonUnreachableError("closed the connection")


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


def sent(session, now_s):
    """Take the frames to be sent, decoded."""
    messages = []
    for link, what in session.to_send(now_s):
        frame = encode_job(what, now_s=now_s) if isinstance(what, Job) else what
        assert decode_prefix(frame)[1] == (what.request.payload_bytes if isinstance(what, Job) else 0)
        messages.append((link.path, decode_client(frame[8:])))
    return messages


def connect(session, now_s, hello=HELLO):
    path = session.choose_entry(now_s)
    link = session.connected(path, now_s=now_s)
    assert [type(message) for _, message in sent(session, now_s)] == [ClientHello]
    session.received(link, hello, b"", now_s=now_s)
    return link


def opened(*paths, budget_s=None, **options):
    session = Session(CLIENT, Entries(paths or ("a",)), **options)
    return session, session.open(REQUEST, budget_s=budget_s, now_s=0.0)


# ---------------------------------------------------------------- one job


def test_a_job_waits_for_the_hello_and_is_sent_once():
    session, job = opened(budget_s=2.0)
    link = session.connected(session.choose_entry(0.0), now_s=0.0)
    assert [message for _, message in sent(session, 0.0)] == [ClientHello(client=CLIENT)]
    session.received(link, HELLO, b"", now_s=0.5)
    ((path, message),) = sent(session, 0.5)
    assert path == "a"
    assert message == Submit(key=CLIENT + (1).to_bytes(8, "big"), model="street", budget_s=1.5, body=b"body")
    assert sent(session, 0.6) == []
    session.received(link, done(job.key), b"answer", now_s=1.0)
    assert session.take_ended() == [job]
    assert (job.ended, job.error, job.payload, job.ended_s) == (True, None, b"answer", 1.0)
    assert session.next_deadline_s() == math.inf


def test_keys_are_never_minted_twice():
    session = Session(CLIENT, Entries(["a"]))
    keys = [session.open(REQUEST, budget_s=None, now_s=0.0).key for _ in range(50)]
    assert len(set(keys)) == 50
    assert all(key.startswith(CLIENT) and len(key) == 24 for key in keys)


def test_first_outcome_wins_and_later_ones_are_counted():
    session, job = opened()
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.received(link, done(job.key), b"first", now_s=1.0)
    session.received(link, done(job.key), b"second", now_s=2.0)
    session.received(link, JobError(key=job.key, reason="lost", message=""), b"", now_s=3.0)
    assert job.payload == b"first"
    assert session.late_answers == 2
    assert session.take_ended() == [job]


def test_cancel_ends_at_once_and_its_echo_is_not_late():
    session, job = opened()
    link = connect(session, 0.0)
    sent(session, 0.0)
    assert session.cancel(job, now_s=1.0)
    assert not session.cancel(job, now_s=1.0)
    assert isinstance(job.error, JobCancelledError)
    assert sent(session, 1.0) == [("a", CancelJob(key=job.key))]
    session.received(link, JobError(key=job.key, reason="cancelled", message=""), b"", now_s=1.1)
    assert session.late_answers == 0


def test_a_job_cancelled_before_it_was_sent_is_never_sent():
    session, job = opened()
    session.cancel(job, now_s=0.0)
    assert session.choose_entry(0.0) is None
    second = session.open(REQUEST, budget_s=None, now_s=0.0)
    connect(session, 0.0)
    assert [message.key for _, message in sent(session, 0.0)] == [second.key]


@pytest.mark.parametrize("key", [b"x" * 24, CLIENT + (2).to_bytes(8, "big"), CLIENT + bytes(8)])
def test_an_answer_to_a_key_never_minted_breaks_the_protocol(key):
    session, _ = opened()
    link = connect(session, 0.0)
    with pytest.raises(ProtocolError, match="not ours"):
        session.received(link, done(key), b"", now_s=0.0)


def test_bounds_on_open_jobs_and_bytes(monkeypatch):
    monkeypatch.setattr(openwork, "OPEN_JOBS_MAX", 2)
    session, first = opened()
    session.open(REQUEST, budget_s=None, now_s=0.0)
    with pytest.raises(JobRejectedError, match="2 jobs are open") as caught:
        session.open(REQUEST, budget_s=None, now_s=0.0)
    assert caught.value.reason == "client_full"
    session.cancel(first, now_s=0.0)
    session.open(REQUEST, budget_s=None, now_s=0.0)
    monkeypatch.setattr(openwork, "OPEN_JOBS_MAX", 9)
    monkeypatch.setattr(openwork, "OPEN_BYTES_MAX", 20)
    with pytest.raises(JobRejectedError, match="14 bytes"):
        session.open(REQUEST, budget_s=None, now_s=0.0)


# ---------------------------------------------------------------- time


@pytest.mark.parametrize("budget_s", [0, -1.0, float("nan")])
def test_a_spent_budget_is_refused_at_once(budget_s):
    with pytest.raises(JobDeadlineError):
        opened(budget_s=budget_s)


def test_a_placed_job_has_grace_after_its_deadline():
    session, job = opened(budget_s=1.0)
    connect(session, 0.0)
    sent(session, 0.0)
    assert session.next_deadline_s() == 1.0 + rules.GRACE_S
    session.tick(1.2)
    assert not job.ended
    session.tick(1.25)
    assert isinstance(job.error, JobDeadlineError)


def test_an_unplaced_job_ends_at_its_deadline_with_what_the_entries_did():
    session, job = opened(budget_s=1.0)
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.lost(link, LOST, now_s=0.1)
    session.tick(1.0)
    assert isinstance(job.error, DaemonUnreachableError)
    assert "a closed the connection" in str(job.error)


def test_a_job_without_deadline_has_patience_from_its_loss_on():
    session, job = opened(patience_s=30.0)
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.received(link, Answer(number=0), b"", now_s=1000.0)
    session.lost(link, LOST, now_s=1000.0)
    session.tick(1029.9)
    assert not job.ended
    session.tick(1030.0)
    assert isinstance(job.error, DaemonUnreachableError)


def test_resubmission_carries_the_budget_that_is_left():
    session, job = opened("a", "b", budget_s=10.0)
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.lost(link, LOST, now_s=4.0)
    second = connect(session, 4.0)
    ((path, message),) = sent(session, 4.5)
    assert (path, second.path, message.key, message.budget_s) == ("b", "b", job.key, 5.5)
    assert session.resubmissions == 1


def test_a_job_past_its_deadline_is_not_sent_again():
    session, job = opened("a", "b", budget_s=1.0)
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.lost(link, LOST, now_s=0.9)
    connect(session, 0.9)
    assert sent(session, 1.0) == []
    assert isinstance(job.error, JobDeadlineError)


# ---------------------------------------------------------------- links


def test_no_link_is_sought_without_work():
    session = Session(CLIENT, Entries(["a"]))
    assert session.choose_entry(0.0) is None
    assert session.next_deadline_s() == math.inf


def test_work_ends_at_once_when_no_entry_ever_worked():
    session, job = opened("a", "b")
    session.refused("a", "cannot be connected to: no such file", now_s=0.0)
    assert not job.ended
    session.refused("b", "cannot be connected to: refused", now_s=0.0)
    assert isinstance(job.error, DaemonUnreachableError)
    assert "a cannot be connected to: no such file; b cannot" in str(job.error)
    session.open(REQUEST, budget_s=None, now_s=0.0)
    assert session.choose_entry(0.0) is not None


def test_a_daemon_that_does_not_greet_is_given_up():
    session, job = opened("a", "b")
    link = session.connected(session.choose_entry(0.0), now_s=0.0)
    assert session.next_deadline_s() == HELLO_S
    session.tick(HELLO_S)
    assert session.finished_links() == [link]
    session.lost(link, link.fault, now_s=2.0)
    assert session.choose_entry(2.0) == "b"
    assert not job.ended


def test_a_job_that_loses_too_many_links_ends_as_lost():
    session, job = opened()
    for number in range(rules.LOSSES_MAX):
        assert not job.ended
        link = connect(session, number * 10.0)
        sent(session, number * 10.0)
        session.lost(link, LOST, now_s=number * 10.0)
    assert isinstance(job.error, JobFailedError)
    assert job.error.reason == "lost"


def test_frames_of_a_lost_link_are_not_sent():
    session, _ = opened()
    link = session.connected(session.choose_entry(0.0), now_s=0.0)
    session.lost(link, LOST, now_s=0.0)
    assert session.to_send(0.0) == []
    session.lost(link, LOST, now_s=0.0)


def test_silence_is_asked_about_and_then_ends_the_link():
    session, job = opened()
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.tick(PING_S)
    assert sent(session, 2.0) == [("a", Query(number=0, what="status"))]
    session.received(link, Answer(number=0, document=b"{}"), b"", now_s=2.5)
    session.tick(4.4)
    assert sent(session, 4.4) == []
    session.tick(4.5)
    session.tick(4.5 + SILENCE_S)
    assert session.finished_links() == [link]
    assert "sign of life" in str(link.fault)
    assert not job.ended


def test_an_idle_link_owes_no_sign_of_life():
    session, job = opened()
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.received(link, done(job.key), b"", now_s=0.1)
    session.tick(100.0)
    assert session.to_send(100.0) == []
    session.open(REQUEST, budget_s=None, now_s=100.0)
    assert len(sent(session, 100.0)) == 1
    assert session.next_deadline_s() == 100.0 + PING_S


@pytest.mark.parametrize(
    "message",
    [
        Answer(number=1),
        JobError(key=CLIENT + (1).to_bytes(8, "big"), reason="lost", message=""),
        ServerHello(version=9, node="", name="", grid=""),
        Goodbye(reason="you speak another version"),
    ],
)
def test_a_wrong_first_message_breaks_the_protocol(message):
    session, _ = opened()
    link = session.connected(session.choose_entry(0.0), now_s=0.0)
    with pytest.raises(ProtocolError):
        session.received(link, message, b"", now_s=0.0)


def test_a_second_hello_breaks_the_protocol():
    session, _ = opened()
    link = connect(session, 0.0)
    with pytest.raises(ProtocolError, match="twice"):
        session.received(link, HELLO, b"", now_s=0.0)


# ---------------------------------------------------------------- draining


def test_a_job_given_back_goes_to_an_entry_just_told():
    session, job = opened()
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.received(link, JobError(key=job.key, reason="draining", message="", entries=("b",)), b"", now_s=1.0)
    assert not job.ended
    assert session.finished_links() == [link]
    session.lost(link, LOST, now_s=1.0)
    connect(session, 1.0)
    assert [(path, message.key) for path, message in sent(session, 1.0)] == [("b", job.key)]


def test_goodbye_keeps_the_link_while_jobs_are_open_on_it():
    session, job = opened("a", "b")
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.received(link, Goodbye(reason="draining"), b"", now_s=1.0)
    assert session.finished_links() == []
    second = session.open(REQUEST, budget_s=None, now_s=1.0)
    connect(session, 1.0)
    assert [(path, message.key) for path, message in sent(session, 1.0)] == [("b", second.key)]
    session.received(link, done(job.key), b"", now_s=2.0)
    assert job.error is None
    assert session.finished_links() == [link]
    assert session.resubmissions == 0


def test_a_hello_that_says_draining_gets_no_job():
    session, _ = opened("a", "b")
    link = connect(session, 0.0, msgspec.structs.replace(HELLO, draining=True, entries=("c",)))
    assert link.state is LinkState.LEAVING
    assert sent(session, 0.0) == []
    assert session.choose_entry(0.0) == "b"


def test_draining_everywhere_reaches_the_user_at_once():
    session, job = opened("a", "b", budget_s=100.0)
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.received(link, JobError(key=job.key, reason="draining", message=""), b"", now_s=1.0)
    assert not job.ended, "b was not tried yet"
    session.lost(link, LOST, now_s=1.0)
    connect(session, 1.0, msgspec.structs.replace(HELLO, draining=True))
    assert isinstance(job.error, DrainingError)
    assert "a is shutting down" in str(job.error)
    assert job.error.entries == ()


def test_what_is_asked_of_a_daemon_that_has_shut_down_ends_at_once_until_it_is_back():
    session, first = opened("a", budget_s=100.0)
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.received(link, Goodbye(reason="draining"), b"", now_s=1.0)
    session.received(link, done(first.key), b"", now_s=1.0)
    session.lost(link, LOST, now_s=1.0)
    during = session.open(REQUEST, budget_s=100.0, now_s=1.0 + REST_S / 2)
    assert isinstance(during.error, DrainingError)
    asked = session.ask("status", within_s=10.0, now_s=1.0 + REST_S / 2)
    assert isinstance(asked.error, DrainingError)
    after = session.open(REQUEST, budget_s=100.0, now_s=1.0 + REST_S)
    assert session.choose_entry(1.0 + REST_S) == "a", "it may be back"
    session.refused("a", "cannot be connected to: No such file or directory", now_s=1.0 + REST_S)
    assert isinstance(after.error, DrainingError)
    assert "a has shut down and cannot be connected to" in str(after.error)
    back = session.open(REQUEST, budget_s=100.0, now_s=10.0)
    connect(session, 10.0)
    assert [message.key for _, message in sent(session, 10.0)] == [back.key]


def test_an_entry_that_worked_and_was_lost_is_waited_for_while_another_drains():
    session, job = opened("a", "b", budget_s=100.0)
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.lost(link, LOST, now_s=0.0)
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.received(link, JobError(key=job.key, reason="draining", message=""), b"", now_s=0.01)
    session.lost(link, LOST, now_s=0.01)
    assert not job.ended
    connect(session, BACKOFF_FIRST_S)
    assert [(path, message.key) for path, message in sent(session, BACKOFF_FIRST_S)] == [("a", job.key)]


def test_a_draining_error_names_the_entries_that_do_not_drain():
    session, job = opened("a", budget_s=100.0)
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.received(link, JobError(key=job.key, reason="draining", message="", entries=("b",)), b"", now_s=1.0)
    session.lost(link, LOST, now_s=1.0)
    assert session.choose_entry(1.0) == "b"
    session.refused("b", "cannot be connected to", now_s=1.0)
    assert isinstance(job.error, DrainingError)
    assert job.error.entries == ("b",)


def test_an_answer_of_a_placement_given_up_does_not_end_the_job():
    session, job = opened("a", "b")
    link = connect(session, 0.0)
    sent(session, 0.0)
    session.received(link, JobError(key=job.key, reason="draining", message=""), b"", now_s=1.0)
    session.received(link, JobError(key=job.key, reason="lost", message=""), b"", now_s=1.0)
    assert not job.ended
    assert session.late_answers == 1
    session.received(link, done(job.key), b"", now_s=1.0)
    assert job.ended
    assert job.error is None


# ---------------------------------------------------------------- queries


def test_a_query_is_answered_or_ends_with_the_daemons_words():
    session = Session(CLIENT, Entries(["a"]))
    first = session.ask("status", within_s=10.0, now_s=0.0)
    second = session.ask("explain", "00", within_s=10.0, now_s=0.0)
    link = connect(session, 0.0)
    numbers = [message.number for _, message in sent(session, 0.0)]
    session.received(link, Answer(number=numbers[1], error="no such key"), b"", now_s=0.0)
    session.received(link, Answer(number=numbers[0], document=b"{}"), b"", now_s=0.0)
    session.received(link, Answer(number=numbers[0], document=b"[]"), b"", now_s=0.0)
    assert (first.document, first.error) == (b"{}", None)
    assert isinstance(second.error, GridError)
    assert "no such key" in str(second.error)


def test_only_queries_without_effect_are_asked_again():
    session = Session(CLIENT, Entries(["a"]))
    status = session.ask("status", within_s=10.0, now_s=0.0)
    invite = session.ask("invite", within_s=10.0, now_s=0.0)
    link = connect(session, 0.0)
    assert len(sent(session, 0.0)) == 2
    session.lost(link, LOST, now_s=0.0)
    assert "may or may not" in str(invite.error)
    connect(session, 1.0)
    assert [message.what for _, message in sent(session, 1.0)] == ["status"]
    session.tick(10.0)
    assert isinstance(status.error, DaemonUnreachableError)


def test_close_ends_everything():
    session, job = opened()
    question = session.ask("status", within_s=10.0, now_s=0.0)
    connect(session, 0.0)
    session.close(1.0)
    assert isinstance(job.error, JobCancelledError)
    assert isinstance(question.error, JobCancelledError)
    assert (session.links, session.to_send(1.0), session.is_open) == ((), [], False)


# ---------------------------------------------------------------- entries


def test_entries_rotate_and_back_off_up_to_a_cap():
    entries = Entries(["a", "b"])
    entries.note_failure("a", "failed", now_s=0.0)
    assert entries.choose(0.0) == "b"
    entries.note_failure("b", "failed", now_s=0.0)
    assert entries.choose(0.0) is None
    assert entries.next_try_s() == BACKOFF_FIRST_S
    assert entries.choose(BACKOFF_FIRST_S) == "a"
    for _ in range(40):
        entries.note_failure("a", "failed", now_s=0.0)
    assert entries.choose(BACKOFF_MAX_S, busy=["b"]) == "a"
    entries.note_success("a")
    entries.note_failure("a", "failed", now_s=10.0)
    assert entries.choose(10.0 + BACKOFF_FIRST_S, busy=["b"]) == "a"


def test_told_entries_replace_those_told_before_and_are_bounded():
    entries = Entries(["a"])
    entries.learn(["b", "a", "", "x\0y", "b"])
    assert entries.paths == ("a", "b")
    entries.learn([f"t{number}" for number in range(100)])
    assert len(entries.paths) == ENTRIES_MAX
    assert "a" in entries.paths
    assert "b" not in entries.paths
    entries.learn([])
    assert len(entries.paths) == ENTRIES_MAX


def test_an_entry_list_has_one_to_sixteen_sockets():
    for sockets in ([], [str(number) for number in range(17)]):
        with pytest.raises(ValueError, match="1 to 16"):
            Entries(sockets)


def test_nonsense_everywhere_is_a_protocol_error():
    entries = Entries(["a"])
    entries.note_failure("a", ProtocolError("speaks version 9"), now_s=0.0)
    assert isinstance(entries.error(), ProtocolError)
