"""Joins a session with its connections: carries frames between them, connects and closes as the session says.

Owns the channels of one client. Knows neither threads nor event loops: each call does what can be done at once and
returns. Grid calls from the thread that waits, AsyncGrid from its tasks.
"""

from collections.abc import Callable

from gridnode.channel import Channel
from gridnode.errors import DaemonUnreachableError, GridError
from gridnode.link import Link
from gridnode.session import Session


class Links:
    """The connections of one client.

    Parameters
    ----------
    session : Session
        Decides; its jobs are carried.
    before_close : callable, optional
        Told of each channel before its socket is closed, so that an event loop can let go of it.
    """

    def __init__(self, session: Session, *, before_close: Callable[[Channel], None] | None = None) -> None:
        self.session = session
        self._before_close = before_close
        self._channels: dict[Link, Channel] = {}
        self.due_s = float("inf")
        """When advance() is next worth a call by the clock, as of its last one."""

    @property
    def channels(self) -> tuple[Channel, ...]:
        """All open connections."""
        return tuple(self._channels.values())

    @property
    def has_outgoing(self) -> bool:
        """Whether bytes wait for a socket to take them."""
        return any(channel.has_outgoing for channel in self._channels.values())

    def advance(self, now_s: float) -> None:
        """Do all that is due: end what is overdue, connect, send, close."""
        if self.due_s <= now_s:
            for channel in self.channels:
                self.read(channel, now_s)  # what has come already must not be taken for silence
            self.session.tick(now_s)
        self._connect(now_s)
        self._send(now_s)
        self._close_finished(now_s)
        self.due_s = self.session.next_deadline_s()

    def read(self, channel: Channel, now_s: float) -> None:
        """Take the frames that have come on a connection."""
        self._use(channel, self._take_all, now_s)

    def write(self, channel: Channel, now_s: float) -> None:
        """Send what a connection takes now."""
        self._use(channel, self._flush, now_s)

    def close(self, now_s: float) -> None:
        """End all work and close all connections."""
        self.session.close(now_s)
        for channel in self._channels.values():
            self._close_channel(channel)
        self._channels.clear()

    def _take_all(self, link: Link, channel: Channel, now_s: float) -> None:
        """Hand over the frames that have come."""
        for message, payload in channel.receive():
            self.session.received(link, message, payload, now_s=now_s)

    def _flush(self, link: Link, channel: Channel, now_s: float) -> None:
        """Send; where that fails, take the daemon's last words: answers, and perhaps why it went."""
        try:
            channel.flush()
        except DaemonUnreachableError:
            self._take_all(link, channel, now_s)
            raise

    def _link_of(self, channel: Channel) -> Link | None:
        return next((link for link, other in self._channels.items() if other is channel), None)

    def _connect(self, now_s: float) -> None:
        """Connect to entries until one takes the connection or all pause."""
        while (path := self.session.choose_entry(now_s)) is not None:
            try:
                channel = Channel(path)
            except OSError as error:
                reason = error.strerror or str(error)
                self.session.refused(path, f"cannot be connected to: {reason}", now_s=now_s)
            else:
                self._channels[self.session.connected(path, now_s=now_s)] = channel

    def _send(self, now_s: float) -> None:
        """Queue the session's frames and send what the sockets take."""
        for link, head, parts in self.session.to_send(now_s):
            if (channel := self._channels.get(link)) is not None:
                channel.send(head, parts)
        for channel in self.channels:
            if channel.has_outgoing:
                self.write(channel, now_s)

    def _close_finished(self, now_s: float) -> None:
        """Close the connections the session is through with."""
        for link in self.session.finished_links():
            self._drop(link, link.fault or DaemonUnreachableError("is shutting down"), now_s)

    def _use(self, channel: Channel, step: Callable[[Link, Channel, float], None], now_s: float) -> None:
        """Do a step on a connection; drop it on a failure, on anything else too, since a frame may be half done."""
        link = self._link_of(channel)
        if link is None:
            return
        try:
            step(link, channel, now_s)
        except GridError as error:
            self._drop(link, error, now_s)
        except BaseException:
            self._drop(link, DaemonUnreachableError("connection given up: the program was interrupted"), now_s)
            raise

    def _drop(self, link: Link, trouble: GridError, now_s: float) -> None:
        """Close a connection and let the session send its jobs elsewhere."""
        channel = self._channels.pop(link, None)
        if channel is not None:
            self._close_channel(channel)
        self.session.lost(link, trouble, now_s=now_s)

    def _close_channel(self, channel: Channel) -> None:
        if self._before_close is not None:
            self._before_close(channel)
        channel.close()
