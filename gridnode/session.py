"""The promise of the client: each key ends exactly once, whatever becomes of daemons and connections. Pure.

Owns links (connections to daemons) and the rules by which the work of gridnode.openwork is placed on them, placed
again and given up. Knows no socket, thread, event loop or clock: Grid and AsyncGrid feed it and carry its frames.

A *link* is GREETING until the daemon's hello, then READY; LEAVING once its daemon drains: it gets no new job, and is
let go when its last job ended. At most one link is GREETING or READY.

A *job* is unplaced or placed on one link. It is placed on the READY link, and unplaced again when its link is lost
or its daemon answers ``draining``. It ends with its first outcome; later ones are dropped and counted. An unplaced
job ends at once where no entry is worth waiting for (Entries.is_hopeless), else at its deadline, or after
``patience_s`` without one; a placed job ends GRACE_S after its deadline. Queries are placed like jobs.
"""

import math
from typing import Final

from gridnode.control import (
    VERSION,
    Answer,
    Buffer,
    CancelJob,
    ClientHello,
    Goodbye,
    JobDone,
    JobError,
    Query,
    QueryKind,
    ServerHello,
    SessionMessage,
    encode_frame,
)
from gridnode.entries import Entries
from gridnode.errors import (
    DaemonUnreachableError,
    GridError,
    JobCancelledError,
    JobDeadlineError,
    JobFailedError,
    ProtocolError,
)
from gridnode.jobs import Job, Question, Request, error_of, overdue_error
from gridnode.link import Link, LinkState
from gridnode.openwork import PING_NUMBER, OpenWork

PATIENCE_S: Final = 30.0
"""Time a job without a deadline waits for a daemon that takes it: a daemon's restart takes seconds."""
GRACE_S: Final = 0.25
"""Time past its deadline that a placed job waits: the daemon's refusal starts at the deadline and takes a while."""
LOSSES_MAX: Final = 5
"""Links a job may lose before it ends as lost: a job that takes its daemon down must not do so for ever."""
_REPEATABLE: Final = frozenset({"status", "peers", "models", "explain"})


Frame = tuple[Link, bytes | Job]
"""What is to be sent on a link: a frame, or a job, which whoever carries it encodes (gridnode.jobs.encode_job)."""
OUTCOMES: Final = (JobDone, JobError)
"""Messages with which a daemon is done with a key."""


class Session:
    """All open jobs and links of one client.

    Parameters
    ----------
    client : bytes
        16 random bytes, the head of all keys.
    entries : Entries
        Sockets to try.
    patience_s : float, default PATIENCE_S
        Time a job without a deadline waits for a daemon that takes it, in seconds.
    """

    def __init__(self, client: bytes, entries: Entries, *, patience_s: float = PATIENCE_S) -> None:
        self.entries = entries
        self.late_answers = 0
        self.resubmissions = 0
        self._patience_s = patience_s
        self._was_greeted = False
        self._work = OpenWork(client)
        self._links: list[Link] = []
        self._in_use: Link | None = None
        """The one link that is GREETING or READY."""
        self._outgoing: list[Frame] = []
        self.due_s = math.inf
        """When tick, or choose_entry, is next worth a call. It may be too soon, since it costs a look at all open work
        to tell exactly; it is never too late."""

    # ------------------------------------------------------------ what the program asks

    def open(self, request: Request, *, budget_s: float | None, now_s: float) -> Job:
        """Open a job under a fresh key.

        Parameters
        ----------
        request : Request
            What to send.
        budget_s : float or None
            Time until the answer is worth nothing, in seconds; None leaves it to the daemon.
        now_s : float
            Local monotonic time in seconds.

        Raises
        ------
        JobDeadlineError
            The budget is spent already.
        JobRejectedError
            Too many jobs or bytes are open; the program submits faster than it waits for results.
        """
        if budget_s is not None and not budget_s > 0:
            raise JobDeadlineError(f"deadline is {budget_s} s from now, it must be > 0", reason="deadline")
        if not self._was_greeted:
            self._forgive_before_the_first()
        deadline_s = None if budget_s is None else now_s + budget_s
        job = self._work.open_job(request, deadline_s=deadline_s, now_s=now_s)
        if self._in_use is None:
            self._seek(now_s)
        elif (due_s := self._due_s(job)) < self.due_s:
            self.due_s = due_s
        return job

    def cancel(self, job: Job, *, now_s: float, why: str = "the job was cancelled by its submitter") -> bool:
        """End a job as cancelled and tell the daemon; returns False for a job that ended before."""
        if job.ended:
            return False
        if job.link is not None:
            self._outgoing.append((job.link, encode_frame(CancelJob(key=job.key))))
        self._work.end_job(job, now_s=now_s, error=JobCancelledError(why))
        return True

    def ask(self, what: QueryKind, argument: str = "", *, within_s: float, now_s: float) -> Question:
        """Open a query; raises JobRejectedError when too many are open."""
        if not self._was_greeted:
            self._forgive_before_the_first()
        question = self._work.open_question(what, argument, until_s=now_s + within_s)
        self._seek(now_s)
        return question

    def forget(self, question: Question) -> None:
        """Drop a query nobody waits for any more."""
        if not question.ended:
            self._work.end_question(question, error=JobCancelledError("the query was cancelled"))

    # ------------------------------------------------------------ links

    @property
    def links(self) -> tuple[Link, ...]:
        """All links."""
        return tuple(self._links)

    @property
    def client(self) -> bytes:
        """The client's id, the head of all its keys."""
        return self._work.client

    @property
    def is_open(self) -> bool:
        """Whether any job or query waits for an outcome."""
        return bool(self._work)

    @property
    def is_reaching(self) -> bool:
        """Whether a link is in use or greeting, so that unplaced work will move soon."""
        return self._in_use is not None

    def choose_entry(self, now_s: float) -> str | None:
        """Return the socket to connect to now; None while none is needed or all pause."""
        if self._in_use is not None or not self._work.unplaced:
            return None
        return self.entries.choose(now_s, busy=self._paths())

    def connected(self, path: str, *, now_s: float) -> Link:
        """Take a fresh connection; its hello is queued for sending."""
        assert self._in_use is None, "one link is in use at a time"
        link = self._in_use = Link(path, now_s)
        self._links.append(link)
        self._outgoing.append((link, encode_frame(ClientHello(client=self.client))))
        self._seek(now_s)
        return link

    def refused(self, path: str, trouble: str, *, now_s: float) -> None:
        """Note that a socket could not be connected to."""
        self.entries.note_failure(path, trouble, now_s=now_s)
        self._seek(now_s)

    def lost(self, link: Link, trouble: GridError, *, now_s: float) -> None:
        """Note that a connection is gone: its open jobs are to be sent again under the same keys."""
        if link not in self._links:
            return
        self._links.remove(link)
        if link is self._in_use:
            self._in_use = None
        self._outgoing = [frame for frame in self._outgoing if frame[0] is not link]
        if link.state is not LinkState.LEAVING:
            self.entries.note_failure(link.path, _trouble(trouble), now_s=now_s)
        for job in self._work.jobs_on(link):
            self._replace_lost(job, trouble, now_s=now_s)
        for question in self._work.questions_on(link):
            self._replace_question(question)
        self._seek(now_s)

    def finished_links(self) -> list[Link]:
        """Return the links whose connection is to be closed, then reported by lost: faulty, or left and empty."""
        left = LinkState.LEAVING
        return [link for link in self._links if link.fault is not None or (link.state is left and not link.owed)]

    def to_send(self, now_s: float) -> list[Frame]:
        """Return the frames to be sent now, in order; jobs are placed by this call."""
        link = self._in_use
        if link is not None and link.state is LinkState.READY and link.fault is None:
            unplaced = self._work.unplaced
            while unplaced:
                self._place(unplaced.popleft(), link, now_s=now_s)
        frames, self._outgoing = self._outgoing, []
        return frames

    # ------------------------------------------------------------ what the daemon says

    def received(self, link: Link, message: SessionMessage, payload: Buffer, *, now_s: float) -> None:
        """Take one frame of the daemon.

        Raises
        ------
        ProtocolError
            The daemon broke the protocol; the caller drops the connection and reports it by ``lost``.
        """
        if link.note_word(now_s):
            self.due_s = min(self.due_s, link.due_s())  # its next silence may call for action before this one would
        if link.state is LinkState.GREETING and not isinstance(message, ServerHello | Goodbye):
            raise ProtocolError(f"daemon at {link.path} sent {type(message).__name__} before its hello")
        if isinstance(message, OUTCOMES):
            self._take_outcome(link, message, payload, now_s=now_s)
        elif isinstance(message, Answer):
            self._take_answer(message)
        elif isinstance(message, ServerHello):
            self._greet(link, message, now_s=now_s)
        else:
            self._take_goodbye(link, message, now_s=now_s)

    # ------------------------------------------------------------ time

    def tick(self, now_s: float) -> None:
        """End what is overdue, and ask silent daemons for a sign of life."""
        for job in [job for job in self._work.jobs.values() if self._due_s(job) <= now_s]:
            self._work.end_job(job, now_s=now_s, error=self._overdue(job))
        for question in [question for question in self._work.questions.values() if question.until_s <= now_s]:
            self._work.end_question(question, error=self._unanswered(question))
        for link in self._links:
            if link.watch(now_s):
                self._outgoing.append((link, encode_frame(Query(number=PING_NUMBER, what="status"))))
        self.due_s = self.next_deadline_s()

    def next_deadline_s(self) -> float:
        """Return exactly when tick, or choose_entry, is next worth a call; infinite when nothing is due by itself."""
        due = [self._due_s(job) for job in self._work.jobs.values()]
        due += [question.until_s for question in self._work.questions.values()]
        due += [link.due_s() for link in self._links]
        if self._work.unplaced and self._in_use is None:
            due.append(self.entries.next_try_s(busy=self._paths()))
        return min(due, default=math.inf)

    def take_ended(self) -> list[Job | Question]:
        """Return what ended since the last call."""
        return self._work.take_ended()

    def close(self, now_s: float) -> None:
        """End all that is open; the caller closes the connections."""
        what = "the grid object was closed while the {} was open"
        for job in list(self._work.jobs.values()):
            self._work.end_job(job, now_s=now_s, error=JobCancelledError(what.format("job")))
        for question in list(self._work.questions.values()):
            self._work.end_question(question, error=JobCancelledError(what.format("query")))
        self._outgoing.clear()
        self._links.clear()
        self._in_use = None
        self.due_s = math.inf

    # ------------------------------------------------------------ placing

    def _place(self, work: Job | Question, link: Link, *, now_s: float) -> None:
        """Queue a job or query for sending on a link."""
        if isinstance(work, Job):
            if work.deadline_s is not None and work.deadline_s <= now_s:
                self._work.end_job(work, now_s=now_s, error=self._overdue(work))
                return
            if work.submissions:
                self.resubmissions += 1
            else:
                work.troubled_s = None
            work.submissions += 1
            self._outgoing.append((link, work))
        else:
            self._outgoing.append((link, encode_frame(work.query)))
        self._work.place(work, link)
        if link.owed == 1:
            link.note_word(now_s)  # an idle daemon owes none; its silence counts from now
            if (due_s := link.due_s()) < self.due_s:
                self.due_s = due_s

    def _replace_lost(self, job: Job, trouble: GridError, *, now_s: float) -> None:
        """Unplace a job whose link is gone, or end it when that happened too often."""
        job.losses += 1
        job.troubled_s = now_s
        if job.losses >= LOSSES_MAX:
            why = f"the job's daemon was lost {job.losses} times while it had the job, last: {trouble}"
            self._work.end_job(job, now_s=now_s, error=JobFailedError(why, reason="lost"))
        else:
            self._work.unplace(job)

    def _replace_question(self, question: Question) -> None:
        """Ask again what may be asked twice; end the rest."""
        if question.query.what in _REPEATABLE:
            self._work.unplace(question)
        else:
            text = f"the daemon went away during {question.query.what!r}, which may or may not be done; look at status"
            self._work.end_question(question, error=DaemonUnreachableError(text))

    def _forgive_before_the_first(self) -> None:
        """Try every entry anew for the first work of a client that has not met a daemon yet."""
        if not self._work:
            self.entries.forgive()

    def _seek(self, now_s: float) -> None:
        """Look anew at when a daemon is to be sought; end all that waits for one where none is worth waiting for."""
        waits = self._in_use is None and self._work.unplaced
        if waits and self.entries.is_hopeless(now_s, busy=self._paths()):
            for work in tuple(self._work.unplaced):
                if isinstance(work, Job):
                    self._work.end_job(work, now_s=now_s, error=self.entries.error())
                else:
                    self._work.end_question(work, error=self.entries.error())
        self.due_s = self.next_deadline_s()

    def _paths(self) -> list[str]:
        """Return the sockets that are connected to."""
        return [link.path for link in self._links]

    # ------------------------------------------------------------ frames

    def _greet(self, link: Link, hello: ServerHello, *, now_s: float) -> None:
        """Take the daemon's hello."""
        if link.state is not LinkState.GREETING:
            raise ProtocolError(f"daemon at {link.path} greeted twice")
        if hello.version != VERSION:
            raise ProtocolError(
                f"daemon at {link.path} speaks version {hello.version} of the local protocol, this client {VERSION}; "
                "install the same gridnode in both places"
            )
        self._was_greeted = True
        link.state = LinkState.READY
        self.entries.learn(hello.entries)
        if hello.draining:
            self._leave(link, now_s)
        else:
            self.entries.note_success(link.path)

    def _take_goodbye(self, link: Link, message: Goodbye, *, now_s: float) -> None:
        """Stop using a link; what is open there may still be answered."""
        self.entries.learn(message.entries)
        if message.reason != "draining":
            raise ProtocolError(f"daemon at {link.path} ended the connection: {message.reason}")
        self._leave(link, now_s)

    def _leave(self, link: Link, now_s: float) -> None:
        """Place nothing more on a link of a draining daemon."""
        link.state = LinkState.LEAVING
        if link is self._in_use:
            self._in_use = None
        self.entries.note_draining(link.path, now_s=now_s)
        self._seek(now_s)

    def _take_answer(self, message: Answer) -> None:
        """Take the answer to a query; an answer nobody waits for is a sign of life or late."""
        question = self._work.questions.get(message.number)
        if question is None:
            return
        question.document = message.document
        self._work.end_question(question, error=GridError(message.error) if message.error else None)

    def _take_outcome(self, link: Link, message: JobDone | JobError, payload: Buffer, *, now_s: float) -> None:
        """Take what became of a job; the first outcome of a key wins."""
        job = self._work.jobs.get(message.key)
        if job is None:
            self._count_late(link, message)
        elif isinstance(message, JobDone):
            job.done, job.payload = message, payload
            self._work.end_job(job, now_s=now_s, error=None)
        elif job.link is not link:
            self.late_answers += 1  # of a placement that was given up; the job lives on elsewhere
        elif message.reason == "draining":
            self._move_on(job, link, message, now_s=now_s)
        else:
            self._work.end_job(job, now_s=now_s, error=error_of(message))

    def _count_late(self, link: Link, message: JobDone | JobError) -> None:
        """Count an outcome of an ended job; the echo of our own cancel is none."""
        if not self._work.was_minted(message.key):
            raise ProtocolError(f"daemon at {link.path} answered key {message.key.hex()}, which is not ours")
        if isinstance(message, JobDone) or message.reason != "cancelled":
            self.late_answers += 1

    def _move_on(self, job: Job, link: Link, message: JobError, *, now_s: float) -> None:
        """Unplace a job that a draining daemon gave back, to be sent to another entry."""
        self.entries.learn(message.entries)
        job.troubled_s = now_s if job.troubled_s is None else job.troubled_s
        self._work.unplace(job)
        if link.state is LinkState.READY:
            self._leave(link, now_s)
        else:
            self._seek(now_s)

    # ------------------------------------------------------------ ends

    def _due_s(self, job: Job) -> float:
        """Return when a job ends by itself; infinite while a daemon has it and it has no deadline."""
        if job.deadline_s is not None:
            return job.deadline_s + (GRACE_S if job.link is not None else 0.0)
        if job.link is not None or job.troubled_s is None:
            return math.inf
        return job.troubled_s + self._patience_s

    def _overdue(self, job: Job) -> GridError:
        """Tell why a job was not answered in time."""
        if job.link is None and (self.entries.any_draining or self._in_use is None):
            return self.entries.error()
        return overdue_error(job)

    def _unanswered(self, question: Question) -> GridError:
        """Tell why a query was not answered in time."""
        if question.link is None:
            return self.entries.error()
        return DaemonUnreachableError(
            f"daemon at {question.link.path} did not answer {question.query.what!r} in time; see its log"
        )


def _trouble(error: GridError) -> GridError | str:
    """Keep a broken protocol apart from an absent daemon."""
    return error if isinstance(error, ProtocolError) else str(error)
