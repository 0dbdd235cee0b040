"""What a client waits for: jobs by key and queries by number, each of which ends exactly once. Pure.

Owns keys, bounds on what is open, and who still waits for a daemon. Knows no rule by which work is placed or given
up: those are gridnode.session's.
"""

from collections import deque
from typing import Final

from gridnode.control import CLIENT_ID_BYTES, Query, QueryKind, make_key
from gridnode.errors import GridError, JobRejectedError
from gridnode.jobs import Job, Question, Request
from gridnode.link import Link

OPEN_JOBS_MAX: Final = 1024
"""Jobs a client keeps open at once; a program that has more submits faster than it listens."""
OPEN_BYTES_MAX: Final = 256 * 1024 * 1024
"""Payload bytes of all open jobs: they are kept so that they can be sent again."""
QUESTIONS_MAX: Final = 64
"""Queries open at once."""
PING_NUMBER: Final = 0
"""Number of a query that only wants a sign of life."""


class OpenWork:
    """All open jobs and queries of one client.

    Parameters
    ----------
    client : bytes
        16 random bytes, the head of all keys.

    Raises
    ------
    ValueError
        The client id has another length.
    """

    def __init__(self, client: bytes) -> None:
        if len(client) != CLIENT_ID_BYTES:
            raise ValueError(f"client id has {len(client)} bytes, it needs {CLIENT_ID_BYTES}")
        self.client = client
        self.jobs: dict[bytes, Job] = {}
        self.questions: dict[int, Question] = {}
        self.unplaced: deque[Job | Question] = deque()
        """What waits for a daemon, the oldest first."""
        self.open_bytes = 0
        self._minted = 0
        self._numbers = PING_NUMBER
        self._ended: list[Job | Question] = []

    def __len__(self) -> int:
        """Return how many jobs and queries are open."""
        return len(self.jobs) + len(self.questions)

    def open_job(self, request: Request, *, deadline_s: float | None, now_s: float) -> Job:
        """Open a job under a fresh key; raises JobRejectedError past the bounds of this client."""
        self._check_room(request)
        self._minted += 1
        job = Job(make_key(self.client, self._minted), request, opened_s=now_s, deadline_s=deadline_s)
        self.jobs[job.key] = job
        self.open_bytes += request.payload_bytes
        self.unplaced.append(job)
        return job

    def open_question(self, what: QueryKind, argument: str, *, until_s: float) -> Question:
        """Open a query; raises JobRejectedError when QUESTIONS_MAX are open."""
        if len(self.questions) >= QUESTIONS_MAX:
            raise JobRejectedError(f"{QUESTIONS_MAX} queries are open, the most allowed; wait for answers")
        self._numbers += 1
        question = Question(Query(number=self._numbers, what=what, argument=argument), until_s=until_s)
        self.questions[self._numbers] = question
        self.unplaced.append(question)
        return question

    def place(self, work: Job | Question, link: Link) -> None:
        """Note that a daemon is given work."""
        work.link = link
        link.owed += 1

    def unplace(self, work: Job | Question) -> None:
        """Have placed work wait for a daemon again."""
        self._take_off(work)
        self.unplaced.append(work)

    def end_job(self, job: Job, *, now_s: float, error: GridError | None) -> None:
        """Give a job its one outcome."""
        assert not job.ended, "a key ends once"
        del self.jobs[job.key]
        self.open_bytes -= job.request.payload_bytes
        job.ended_s = now_s
        self._end(job, error)

    def end_question(self, question: Question, *, error: GridError | None) -> None:
        """End a query."""
        del self.questions[question.query.number]
        self._end(question, error)

    def take_ended(self) -> list[Job | Question]:
        """Return what ended since the last call."""
        ended, self._ended = self._ended, []
        return ended

    def jobs_on(self, link: Link) -> list[Job]:
        """Return the jobs that are placed on a link."""
        return [job for job in self.jobs.values() if job.link is link]

    def questions_on(self, link: Link) -> list[Question]:
        """Return the queries that were sent on a link."""
        return [question for question in self.questions.values() if question.link is link]

    def was_minted(self, key: bytes) -> bool:
        """Whether a key is one of ours, open or ended."""
        return key[:CLIENT_ID_BYTES] == self.client and 0 < int.from_bytes(key[CLIENT_ID_BYTES:], "big") <= self._minted

    def _check_room(self, request: Request) -> None:
        """Refuse a job past the bounds of this client."""
        if len(self.jobs) >= OPEN_JOBS_MAX:
            raise JobRejectedError(
                f"{OPEN_JOBS_MAX} jobs are open, the most a client may have; wait for results before submitting more",
                reason="client_full",
            )
        if self.jobs and self.open_bytes + request.payload_bytes > OPEN_BYTES_MAX:
            raise JobRejectedError(
                f"open jobs hold {self.open_bytes} bytes and this one {request.payload_bytes}, at most "
                f"{OPEN_BYTES_MAX} are kept; wait for results before submitting more",
                reason="client_full",
            )

    def _end(self, work: Job | Question, error: GridError | None) -> None:
        """Let go of ended work, so that no link is sought for it."""
        work.error = error
        work.ended = True
        if work.link is not None:
            self._take_off(work)
        elif work in self.unplaced:
            self.unplaced.remove(work)
        self._ended.append(work)

    def _take_off(self, work: Job | Question) -> None:
        """Note that a daemon owes no word on work any more."""
        assert work.link is not None, "only what is placed can be taken off"
        work.link.owed -= 1
        work.link = None
