"""Joins a session with its connections: carries frames between them, connects and closes as the session says.

Owns the channels of one client. Knows neither threads nor event loops: each call does what can be done at once and
returns. Grid calls from the thread that waits, AsyncGrid from its tasks.
"""

import contextlib
from collections.abc import Callable, Collection

from gridnode.channel import Channel
from gridnode.control import JobDone, Ticket
from gridnode.errors import DaemonUnreachableError, GridError, ProtocolError
from gridnode.jobs import Job, Options, encode_job
from gridnode.lane import Lane
from gridnode.link import Link
from gridnode.session import OUTCOMES, Session

Source = Channel | Lane
"""Whatever answers come by."""


class Links:
    """The connections of one client.

    Parameters
    ----------
    session : Session
        Decides; its jobs are carried.
    on_open, before_close : callable
        Told of each channel once it is connected, and before its socket is closed, for whoever waits for sockets.
    """

    def __init__(
        self, session: Session, *, on_open: Callable[[Source], None], before_close: Callable[[Source], None]
    ) -> None:
        self.session = session
        self._on_open = on_open
        self._before_close = before_close
        self._channels: dict[Link, Channel] = {}
        self._links: dict[Source, Link] = {}
        self.unsent: dict[Channel, None] = {}
        """Connections with bytes that wait for their socket to take them."""
        self._shares = True
        """Whether payloads may be left in shared memory; not once a daemon that had some ended the connection."""

    @property
    def sources(self) -> Collection[Source]:
        """All open connections and lanes."""
        return self._links

    def advance(self, now_s: float) -> None:
        """Do all that is due: end what is overdue, connect, send, close."""
        if self.session.due_s <= now_s:
            for channel in tuple(self._links):
                self.read(channel, now_s)  # what has come already must not be taken for silence
            self.session.tick(now_s)
        self._connect(now_s)
        self._send(now_s)
        self._close_finished(now_s)

    def read(self, source: Source, now_s: float) -> None:
        """Take what has come on a connection or by a lane."""
        link = self._links.get(source)
        if link is not None:
            try:
                if isinstance(source, Lane):
                    self._take_answers(link, source, now_s)
                else:
                    self._take_all(link, source, now_s)
            except BaseException as error:
                self._give_up(link, error, now_s)

    def write(self, channel: Channel, now_s: float) -> None:
        """Send what a connection takes now."""
        link = self._links.get(channel)
        if link is not None:
            try:
                channel.flush()
                if not channel.outgoing_bytes:
                    self.unsent.pop(channel, None)
            except DaemonUnreachableError as error:
                self.read(channel, now_s)  # its last words: answers, and perhaps why it went
                self._drop(link, error, now_s)
            except BaseException as error:
                self._give_up(link, error, now_s)

    def close(self, now_s: float) -> None:
        """End all work and close all connections."""
        self.session.close(now_s)
        for link in tuple(self._channels):
            self._close_channel(link)

    def _take_all(self, link: Link, channel: Channel, now_s: float) -> None:
        """Hand over the frames that have come."""
        received = self.session.received
        for message, payload in channel.receive():
            if isinstance(message, OUTCOMES):
                channel.release(message.key)
                channel.lanes.answered(message.key)
                received(link, message, payload, now_s=now_s)
                if isinstance(message, JobDone):
                    self._note_answer(link, channel, message)
                continue
            if isinstance(message, Ticket):
                self._take_ticket(link, channel, message)
                continue
            received(link, message, payload, now_s=now_s)

    def _note_answer(self, link: Link, channel: Channel, message: JobDone) -> None:
        """Open a lane for more requests like the last one, where a row of them has been answered."""
        if channel.earner is not None:
            channel.earner.usual, channel.earner = message, None
        kind = channel.lanes.row.note_answer(message)
        if kind is not None and not channel.lanes.has(kind[0]):
            self._open_lane(link, channel, *kind, message)

    def _take_ticket(self, link: Link, channel: Channel, ticket: Ticket) -> None:
        """Let a lane use a ticket, and open another where more requests than one are under way."""
        lane = channel.earner = channel.lanes.take_ticket(ticket)
        if lane is not None and link.owed > 1 and channel.lanes.may_grow(lane.model):
            self._open_lane(link, channel, lane.model, lane.options, lane.usual)

    def _open_lane(self, link: Link, channel: Channel, model: str, options: Options, usual: JobDone) -> None:
        try:
            lane = channel.open_lane(model, options, usual)
        except OSError:  # the program has no descriptor left
            channel.lanes.pause()
            return
        if lane is not None:
            self._links[lane] = link
            self._on_open(lane)

    def _take_answers(self, link: Link, lane: Lane, now_s: float) -> None:
        """Hand over the answers that have come by a lane, or have the daemon asked in the worker's place."""
        channel = self._channels[link]
        while lane in self._links:
            try:
                answer = lane.receive()
            except (OSError, ProtocolError):
                self._end_lane(link, lane, now_s)
                return
            if answer is None:
                return
            job, place, done, payload = answer
            if done is not None:
                channel.release(job.key)
                self.session.received(link, done, payload, now_s=now_s)
            else:
                self._ask_daemon(channel, job, place, now_s)
                if lane.is_unfit and lane in self._links:
                    self._end_lane(link, lane, now_s)
            if not lane.under_way:
                return

    def _end_lane(self, link: Link, lane: Lane, now_s: float) -> None:
        """Close a lane; the daemon is asked for what was under way."""
        channel = self._channels[link]
        channel.lanes.remove(lane)
        del self._links[lane]
        self._before_close(lane)
        lane.close()
        for job, place, _ in lane.under_way:
            self._ask_daemon(channel, job, place, now_s)

    def _ask_daemon(self, channel: Channel, job: Job, place: int, now_s: float) -> None:
        """Send a job to the daemon that did not come through by a lane; its payload lies where it lay."""
        if job.ended:
            channel.release(job.key)  # it was cancelled, or came too late
            return
        if channel not in self._links:
            return  # it has gone meanwhile, and its jobs are to be sent anew
        channel.send(encode_job(job, now_s=now_s, place=place))
        self.unsent[channel] = None
        self.write(channel, now_s)

    def _connect(self, now_s: float) -> None:
        """Connect to entries until one takes the connection or all pause."""
        while (path := self.session.choose_entry(now_s)) is not None:
            try:
                channel = Channel(path, shares=self._shares)
            except OSError as error:
                reason = error.strerror or str(error)
                self.session.refused(path, f"cannot be connected to: {reason}", now_s=now_s)
            else:
                link = self.session.connected(path, now_s=now_s)
                self._channels[link] = channel
                self._links[channel] = link
                self._on_open(channel)

    def _send(self, now_s: float) -> None:
        """Queue the session's frames and send what the sockets take."""
        for link, what in self.session.to_send(now_s):
            channel = self._channels.get(link)
            if channel is None:
                continue
            if isinstance(what, Job):
                self._send_job(link, channel, what, now_s)
            else:
                channel.send(what)
            if channel.outgoing_bytes:
                self.unsent[channel] = None
        for channel in tuple(self.unsent):
            self.write(channel, now_s)

    def _send_job(self, link: Link, channel: Channel, job: Job, now_s: float) -> None:
        """Queue a job's frame; its payload is left in shared memory, or sent along where there is no room for it."""
        request = job.request
        lane = channel.lanes.choose(job, now_s)
        place = None
        if lane is not None:
            place = channel.put(job.key, request.parts, request.payload_bytes, least_bytes=1)
            if place is not None:
                try:
                    if lane.send(job, place, now_s):
                        return
                except OSError:
                    self._end_lane(link, lane, now_s)
                    if channel not in self._links:
                        return  # a lane and its daemon often end together; the job is to be sent anew
        channel.lanes.row.note_request(job)
        if place is None:
            place = channel.put(job.key, request.parts, request.payload_bytes)
        channel.send(encode_job(job, now_s=now_s, place=place), request.parts if place is None else ())

    def _close_finished(self, now_s: float) -> None:
        """Close the connections the session is through with."""
        for link in self.session.finished_links():
            self._drop(link, link.fault or DaemonUnreachableError("is shutting down"), now_s)

    def _give_up(self, link: Link, error: BaseException, now_s: float) -> None:
        """Drop a connection that failed, or whose use was interrupted: a frame may be half done."""
        if isinstance(error, GridError):
            self._drop(link, error, now_s)
        else:
            self._drop(link, DaemonUnreachableError("connection given up: the program was interrupted"), now_s)
            raise error

    def _drop(self, link: Link, trouble: GridError, now_s: float) -> None:
        """Close a connection and let the session send its jobs elsewhere."""
        channel = self._channels.get(link)
        if channel is not None and channel.has_shared and isinstance(trouble, ProtocolError):
            self._shares = False  # it may be the memory that the daemon could not take
        if channel is not None:
            self._take_last_answers(link, channel, now_s)
        self._close_channel(link)
        self.session.lost(link, trouble, now_s=now_s)

    def _take_last_answers(self, link: Link, channel: Channel, now_s: float) -> None:
        """Hand over what has come by lanes: a daemon that ends waits for it, and its own end may be seen first."""
        for lane in channel.lanes:
            with contextlib.suppress(OSError, GridError):
                while lane.under_way and (answer := lane.receive()) is not None:
                    _, _, done, payload = answer
                    if done is not None:
                        self.session.received(link, done, payload, now_s=now_s)

    def _close_channel(self, link: Link) -> None:
        channel = self._channels.pop(link, None)
        if channel is not None:
            for lane in channel.lanes:
                del self._links[lane]
                self._before_close(lane)
                lane.close()
            del self._links[channel]
            self.unsent.pop(channel, None)
            self._before_close(channel)
            channel.close()
