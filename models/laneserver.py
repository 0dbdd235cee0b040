"""A lane's end in the worker: runs a program's requests as long as the daemon's ticket lasts.

Owns the socket to the program and what is owed to the daemon about it. A ticket lets the program have so many runs,
within so many seconds from the first, without the daemon being asked about each; when it is over the daemon is told
what was run. Two threads meet here: the lane's own serves, the worker's control thread gives tickets, takes them back
and closes.
"""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable
from typing import Final

import msgspec

from models import laneprotocol as protocol
from models.workerprotocol import LaneBegun, LaneEnded, LaneRun

TICKET_WAIT_MAX_S: Final = 0.005
"""Longest wait for a ticket that the program has heard of before this worker: both were told within microseconds."""

LOOK_S: Final = 0.1
"""How often a lane with a ticket looks whether it is over, or was taken back, while no request comes."""

_TIMEVAL: Final = struct.Struct("ll")

Answer = Callable[[protocol.LaneRequest, memoryview], tuple[bytes, int] | None]
"""Runs a request, leaves raw outputs in a memory, and returns the body and their length; None where it failed."""


class LaneServer:
    """One lane.

    Parameters
    ----------
    number : int
        Names the lane between daemon and worker.
    line : socket
        Connected to the program; owned by this object.
    answer : callable
        Runs a request.
    tell : callable
        Sends a record to the daemon.
    """

    def __init__(
        self, number: int, line: socket.socket, *, answer: Answer, tell: Callable[[LaneBegun | LaneEnded], None]
    ) -> None:
        self._number = number
        self._line = line
        self._answer = answer
        self._tell = tell
        self._output = memoryview(bytearray(protocol.OUTPUT_MAX_BYTES))
        self._changed = threading.Condition()
        self._given = (0, 0, 0.0)
        """The newest ticket, the runs and the seconds that it is good for."""
        self._revoked = 0
        """The newest ticket that was taken back."""
        self._ticket = 0
        """The one in use; 0 for none."""
        self._newest = 0
        """The newest that was ever used."""
        self._left = 0
        self._until_s = 0.0
        self._passed = 0
        """Requests in a row that were not run."""
        self._runs: list[tuple[protocol.LaneRequest, float, float, int]] = []
        """On the ticket in use: request, time of its coming, time taken, length of the answer."""

    # ------------------------------------------------------------ the control thread's

    def give(self, ticket: int, *, runs: int, lasts_s: float) -> None:
        """Take a new ticket from the daemon."""
        with self._changed:
            self._given = (ticket, runs, lasts_s)
            self._changed.notify_all()

    def revoke(self, ticket: int) -> None:
        """Run nothing more on a ticket; a run in hand goes on."""
        self._revoked = ticket

    def close(self) -> None:
        """End the lane: its thread finds the socket at its end."""
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)

    # ------------------------------------------------------------ the lane's own thread's

    def serve(self) -> None:
        """Answer requests until the program leaves, breaks the protocol or does not read its answers."""
        receive, send = self._line.recv, self._line.send
        with self._line, contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            while True:
                try:
                    packet = receive(protocol.PACKET_MAX_BYTES)
                except BlockingIOError:
                    if not self._ticket or not os.get_blocking(self._line.fileno()):
                        break  # only a program that has kept our end, and set it so, makes us not wait
                    if self._ticket <= self._revoked or time.perf_counter() >= self._until_s:
                        self._end()
                    continue
                if not packet:
                    break
                answer = self._serve_one(protocol.decode_request(packet))
                send(protocol.encode(answer), socket.MSG_DONTWAIT)
                self._passed = 0 if isinstance(answer, protocol.LaneDone) else self._passed + 1
                if self._passed == protocol.PASSED_MAX:
                    break
                if self._ticket and not self._left:
                    self._end()
        self._end(is_closed=True)

    def _serve_one(self, request: protocol.LaneRequest) -> protocol.LaneDone | protocol.LanePass:
        came_s = time.perf_counter()
        if not self._is_valid(request.ticket, came_s):
            return protocol.LanePass(request.key, is_unfit=False)
        self._left -= 1
        answer = self._answer(request, self._output)
        if answer is None:
            return protocol.LanePass(request.key, is_unfit=True)
        body, size_bytes = answer
        if len(body) + size_bytes > protocol.ANSWER_MAX_BYTES:
            return protocol.LanePass(request.key, is_unfit=True)
        took_s = time.perf_counter() - came_s
        self._runs.append((request, came_s, took_s, len(body) + size_bytes))
        return protocol.LaneDone(request.key, body, bytes(self._output[:size_bytes]), took_s)

    def _is_valid(self, ticket: int, now_s: float) -> bool:
        """Tell whether a ticket is good for a run now; what is over is told to the daemon."""
        if ticket != self._ticket:
            return self._begin(ticket, now_s)
        if self._left and now_s < self._until_s and ticket > self._revoked:
            return True
        self._end()
        return False

    def _begin(self, ticket: int, now_s: float) -> bool:
        """Begin to use a ticket, if the daemon has given it and it was not used before."""
        if ticket <= self._newest or ticket <= self._revoked:
            return False
        with self._changed:
            self._changed.wait_for(lambda: self._given[0] >= ticket, TICKET_WAIT_MAX_S)
            given, runs, lasts_s = self._given
        if given != ticket:
            return False
        self._end()
        self._ticket = self._newest = ticket
        self._left, self._until_s = runs, now_s + lasts_s
        self._set_patience(min(lasts_s, LOOK_S))
        self._tell(LaneBegun(lane=self._number, ticket=ticket))
        return True

    def _end(self, *, is_closed: bool = False) -> None:
        """Let go of the ticket in use, and tell the daemon what was run on it."""
        if not self._ticket and not is_closed:
            return
        now_s = time.perf_counter()
        runs = tuple(
            [
                LaneRun(
                    key=request.key,
                    age_s=now_s - came_s,
                    service_s=took_s,
                    input_bytes=request.payload_bytes,
                    output_bytes=output_bytes,
                    budget_s=request.budget_s,
                )
                for request, came_s, took_s, output_bytes in self._runs
            ]
        )
        ticket, left = self._ticket, self._left
        self._ticket = self._left = 0
        was_cut = left > 0 and ticket <= self._revoked and now_s < self._until_s
        self._runs.clear()
        if not is_closed:
            self._set_patience(0.0)
        self._tell(LaneEnded(lane=self._number, ticket=ticket, runs=runs, was_cut=was_cut, is_closed=is_closed))

    def _set_patience(self, patience_s: float) -> None:
        """Bound how long the socket is waited for, by the kernel itself: a time limit of Python's costs a call more."""
        seconds, rest_s = divmod(patience_s, 1.0)
        with contextlib.suppress(OSError):  # it has ended, as the next receive finds
            self._line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _TIMEVAL.pack(int(seconds), int(rest_s * 1e6)))
