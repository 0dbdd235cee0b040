"""Joins a session with its connections: carries frames between them, connects and closes as the session says.

Owns the channels of one client. Knows neither threads nor event loops: each call does what can be done at once and
returns. Grid calls from the thread that waits, AsyncGrid from its tasks.
"""

from collections.abc import Callable, Collection

from gridnode.channel import Channel
from gridnode.errors import DaemonUnreachableError, GridError, ProtocolError
from gridnode.jobs import Job, encode_job
from gridnode.link import Link
from gridnode.session import OUTCOMES, Session


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
        self, session: Session, *, on_open: Callable[[Channel], None], before_close: Callable[[Channel], None]
    ) -> None:
        self.session = session
        self._on_open = on_open
        self._before_close = before_close
        self._channels: dict[Link, Channel] = {}
        self._links: dict[Channel, Link] = {}
        self.unsent: dict[Channel, None] = {}
        """Connections with bytes that wait for their socket to take them."""
        self._shares = True
        """Whether payloads may be left in shared memory; not once a daemon that had some ended the connection."""

    @property
    def channels(self) -> Collection[Channel]:
        """All open connections."""
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

    def read(self, channel: Channel, now_s: float) -> None:
        """Take the frames that have come on a connection."""
        link = self._links.get(channel)
        if link is not None:
            try:
                self._take_all(link, channel, now_s)
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
            received(link, message, payload, now_s=now_s)

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
                self._send_job(channel, what, now_s)
            else:
                channel.send(what)
            self.unsent[channel] = None
        for channel in tuple(self.unsent):
            self.write(channel, now_s)

    def _send_job(self, channel: Channel, job: Job, now_s: float) -> None:
        """Queue a job's frame; its payload is left in shared memory, or sent along where there is no room for it."""
        request = job.request
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
        self._close_channel(link)
        self.session.lost(link, trouble, now_s=now_s)

    def _close_channel(self, link: Link) -> None:
        channel = self._channels.pop(link, None)
        if channel is not None:
            del self._links[channel]
            self.unsent.pop(channel, None)
            self._before_close(channel)
            channel.close()
