"""Carries frames for threads that wait: of all of them one leads, and no thread of ours stands between.

Owns the lock, the lead and the socket by which a leader is woken. A call is one send, one poll and one recv_into in the
calling thread. The leader alone polls the sockets and carries frames, for the others too; when its own wait is over
another takes the lead. The others sleep until their own wait is over, or the lead is theirs: an answer wakes one
thread, however many wait. Nothing moves while no thread is inside a call; the daemon works on.
"""

import select
import socket
import threading
from collections.abc import Callable
from time import monotonic  # noqa: TID251 - a driver reads the clock

from gridnode.control import QueryKind
from gridnode.errors import GridError
from gridnode.jobs import Job, Question, Request
from gridnode.links import Links, Source
from gridnode.session import Session


class Carrier:
    """The threads of one client.

    Parameters
    ----------
    session : Session
        Nobody else may use it, but for reading its counters.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._links = Links(session, on_open=self._watch, before_close=self._unwatch)
        self.lock = threading.Lock()
        """The lock on all this."""
        self.is_closed = False
        self.is_led = False
        """Whether a thread polls the sockets."""
        self._leads_until: Callable[[], bool] | None = None
        """What the leader waits for."""
        self._followers: list[_Follower] = []
        self._let_go = threading.Condition(self.lock)
        self._wakes_at_s = float("inf")
        self._has_news = False
        """Whether a socket was ready since the session last acted."""
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._poll = select.poll()
        self._poll.register(self._wake_in, select.POLLIN)
        self._polled: dict[int, Source] = {}
        """The connections that a leader polls, by descriptor."""
        self._polled_changed = False
        """Whether connections came or went since the leader began to poll."""
        self._polls_writers = False

    def submit(self, request: Request, deadline_s: float | None) -> Job:
        """Open a job and have it sent, as far as a daemon is there to take it."""
        with self.lock:
            if self.is_closed:
                raise _closed()
            now_s = monotonic()
            job = self._session.open(request, budget_s=deadline_s, now_s=now_s)
            self._push(now_s)
        if job.link is None or self._links.unsent:
            self.wait(lambda: job.ended or self._is_on_its_way(job))
        return job

    def cancel(self, job: Job) -> bool:
        """End a job and tell the daemon; returns False when it had ended before."""
        with self.lock:
            now_s = monotonic()
            was_open = self._session.cancel(job, now_s=now_s)
            if was_open:
                self._push(now_s)
        return was_open

    def ask(self, what: QueryKind, argument: str, *, within_s: float) -> Question:
        """Ask the daemon and wait for its answer, or an error."""
        with self.lock:
            if self.is_closed:
                raise _closed()
            now_s = monotonic()
            question = self._session.ask(what, argument, within_s=within_s, now_s=now_s)
            self._push(now_s)
        self.wait(lambda: question.ended)
        return question

    def wait(self, is_done: Callable[[], bool], *, timeout_s: float | None = None) -> bool:
        """Carry frames, or wait for the thread that does, until ``is_done``; returns whether it is.

        Raises
        ------
        GridError
            The client was closed meanwhile.
        """
        until_s = float("inf") if timeout_s is None else monotonic() + timeout_s
        has_looked = leads = False
        with self.lock:
            try:
                while not is_done():
                    if self.is_closed:
                        raise _closed()
                    now_s = monotonic()
                    if now_s >= until_s and has_looked:
                        return False
                    has_looked = True
                    if leads or not self.is_led:
                        leads = self.is_led = True
                        self._lead(is_done, until_s, now_s)
                    else:
                        self._follow(is_done, until_s - now_s)
            finally:
                if leads:
                    self.is_led, self._leads_until = False, None
                if not self.is_led and (self._followers or self.is_closed):
                    self._pass_on()
        return True

    def notify(self) -> None:
        """Wake the threads whose wait is over; the lock is held."""
        self._wake_followers()
        if self.is_led and self._leads_until is not None and (self.is_closed or self._leads_until()):
            self._wake_leader()

    def close(self) -> None:
        """End all work and close the connections; calling it again does nothing."""
        with self.lock:
            if self.is_closed:
                return
            self.is_closed = True
            self._links.close(monotonic())
            self.notify()
            while self.is_led:
                self._let_go.wait()  # the leader polls the wake socket; it is closed after it let go
        self._wake_in.close()
        self._wake_out.close()

    def _is_on_its_way(self, job: Job) -> bool:
        """Whether a submit may return: the job was sent, or no daemon is there to be waited for."""
        return not self._links.unsent and (job.link is not None or not self._session.is_reaching)

    # ------------------------------------------------------------ leader and followers

    def _push(self, now_s: float) -> None:
        """Do at once what can be done, and wake a leader that would oversleep the rest; the lock is held."""
        self._advance(now_s)
        if self.is_led or self._followers:
            self.notify()
        if self.is_led and (self._session.due_s < self._wakes_at_s or self._polled_changed or self._links.unsent):
            self._wake_leader()

    def _advance(self, now_s: float) -> None:
        """Let the session act."""
        self._links.advance(now_s)
        self._has_news = False
        self._session.take_ended()  # threads look at their own jobs, and none is to be kept in memory

    def _follow(self, is_done: Callable[[], bool], timeout_s: float) -> None:
        """Wait until the wait is over, or it is this thread's turn to lead."""
        follower = _Follower(is_done)
        self._followers.append(follower)
        self.lock.release()
        try:
            follower.turn.acquire(timeout=-1 if timeout_s == float("inf") else max(timeout_s, 0.0))
        finally:
            self.lock.acquire()
            self._followers.remove(follower)

    def _lead(self, is_done: Callable[[], bool], until_s: float, now_s: float) -> None:
        """Carry frames once: send and connect, wait for the sockets, receive."""
        if self._has_news or self._session.due_s <= now_s:
            self._advance(now_s)
            self._wake_followers()
            if is_done() or self.is_closed:
                return
        self._leads_until = is_done
        self._wakes_at_s = min(self._session.due_s, until_s)
        for number, events in self._wait_ready(self._wakes_at_s - now_s):
            channel = self._polled.get(number)
            if channel is not None and events != select.POLLOUT:
                self._links.read(channel, monotonic())
            elif number == self._wake_in.fileno():
                self._wake_in.recv(4096)
        self._session.take_ended()
        if self._followers:
            self._wake_followers()

    def _wake_followers(self) -> None:
        """Wake those whose wait is over, and no others: many may wait."""
        for follower in self._followers:
            if self.is_closed or follower.is_done():
                follower.wake()

    def _pass_on(self) -> None:
        """Wake the next leader; nobody leads."""
        for follower in self._followers:
            if follower.wake():
                break
        if self.is_closed:
            self._let_go.notify_all()

    def _wait_ready(self, timeout_s: float) -> list[tuple[int, int]]:
        """Wait without the lock until a socket is ready or the time is over; returns descriptors and events."""
        if self._polls_writers or self._links.unsent:
            self._watch_writers()
        self._polled_changed = False
        self.lock.release()
        try:
            ready = self._poll.poll(None if timeout_s == float("inf") else max(0.0, timeout_s) * 1000)
        finally:
            self.lock.acquire()
        self._has_news = bool(ready)
        return ready

    def _watch(self, source: Source) -> None:
        """Poll a new connection, or lane, from now on."""
        number = source.socket.fileno()
        self._polled[number] = source
        self._poll.register(number, select.POLLIN)
        self._polled_changed = True

    def _unwatch(self, source: Source) -> None:
        """Poll a connection, or lane, no more that is about to be closed."""
        number = source.socket.fileno()
        del self._polled[number]
        self._poll.unregister(number)
        self._polled_changed = True

    def _watch_writers(self) -> None:
        """Poll for room to write exactly where bytes wait for it."""
        self._polls_writers = bool(self._links.unsent)
        for number, channel in self._polled.items():
            self._poll.modify(number, select.POLLIN | select.POLLOUT if channel.outgoing_bytes else select.POLLIN)

    def _wake_leader(self) -> None:
        """End the leader's poll; the lock is held."""
        if self.is_led:
            try:
                self._wake_out.send(b"\0")
            except BlockingIOError:
                return  # it is woken already, many times over


class _Follower:
    """A thread that waits while another leads."""

    __slots__ = ("_is_woken", "is_done", "turn")

    def __init__(self, is_done: Callable[[], bool]) -> None:
        self.is_done = is_done
        self.turn = threading.Lock()
        self.turn.acquire()
        self._is_woken = False

    def wake(self) -> bool:
        """Let the thread go on; returns False when it was woken before."""
        if self._is_woken:
            return False
        self._is_woken = True
        self.turn.release()
        return True


def _closed() -> GridError:
    return GridError("this Grid is closed; make a new one")
