"""What lies below the planes of the network in memory: links, their faults, and the one heap of deliveries.

Knows nodes by name and messages by size; what a message means is a call to be made at its destination. See
transport.memory for what is modelled and what is not.
"""

import functools
import heapq
import itertools
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import msgspec
import trio

from transport.wire import PeerUnreachableError

HOST: Final = "memory"
"""Host of all addresses in memory."""
CONNECT_TIMEOUT_S: Final = 5.0
"""How long a connection attempt waits for a silent peer."""
SEGMENT_BYTES: Final = 64
"""Size on the wire of what opens, accepts or closes a connection."""
_FIRST_PORT: Final = 40_000

Call = Callable[[], None]
Turn = Callable[[], Awaitable[None]]
"""Waits until everything at rest may be disturbed by the next delivery."""


class Link(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One direction between two nodes."""

    delay_s: float = 0.0005
    """One way."""
    jitter_s: float = 0.0
    """Most that is added to the delay, uniformly. Messages of one direction never overtake one another."""
    gossip_loss: float = 0.0
    """Share of gossip messages that vanish, 0 to 1: what an overloaded node drops. Streams lose nothing."""
    bytes_per_s: float | None = None
    """Bandwidth; None for unlimited."""


class _Answer:
    """What comes back of one request of a handshake."""

    def __init__(self) -> None:
        self.accepted = False
        self.arrived = trio.Event()


class Wire:
    """Carries calls between nodes.

    Parameters
    ----------
    rng : random.Random
        Source of jitter and loss.
    link : Link
        Every direction that set_link does not change.
    turn : callable, optional
        Awaited before each delivery, so that what the one before it set off comes first.
    """

    def __init__(self, rng: random.Random, link: Link, turn: Turn | None = None) -> None:
        self._seed = rng.getrandbits(64)
        self._rngs: dict[tuple[str, str], random.Random] = {}
        self._default = link
        self._turn = turn
        self._links: dict[tuple[str, str], Link] = {}
        self._heap: list[tuple[float, int, str, str, Call]] = []
        self._order = itertools.count()
        self._last_due_s: dict[tuple[str, str], float] = {}
        self._idle_from_s: dict[tuple[str, str], float] = {}
        self._held: list[tuple[str, str, Call]] = []
        self._groups: dict[str, int] = {}
        self._paused: set[str] = set()
        self._gone: set[str] = set()
        self._wake = trio.Event()
        self._ports = itertools.count(_FIRST_PORT)
        self._listeners: dict[int, object] = {}

    # ------------------------------------------------------------ faults

    def set_link(self, source: str, target: str, link: Link) -> None:
        """Change one direction."""
        self._links[source, target] = link

    def partition(self, groups: Iterable[Iterable[str]]) -> None:
        """Let nothing pass between nodes of different groups; a node in no group reaches everyone."""
        self._groups = {node: i for i, group in enumerate(groups) for node in group}
        self._release()

    def pause(self, node: str) -> None:
        """Hold everything to and from a node."""
        self._paused.add(node)

    def resume(self, node: str) -> None:
        """Let a paused node go on; what was held arrives now."""
        self._paused.discard(node)
        self._release()

    def remove(self, node: str) -> None:
        """Drop everything that a node sends from now on; what it sent before still arrives."""
        self._gone.add(node)
        self._paused.discard(node)
        self._held = [held for held in self._held if held[1] != node]

    def restore(self, node: str) -> None:
        """Take a removed node up again."""
        self._gone.discard(node)

    def _is_blocked(self, source: str, target: str) -> bool:
        apart = self._groups.get(source, -1) != self._groups.get(target, -1)
        apart = apart and source in self._groups and target in self._groups
        return apart or source in self._paused or target in self._paused

    def _release(self) -> None:
        held, self._held = self._held, []
        for source, target, call in held:
            self._put(source, target, 0, call)

    # ------------------------------------------------------------ delivery

    def send(self, source: str, target: str, size_bytes: int, call: Call, *, gossip: bool = False) -> None:
        """Make a call at the target once a message of this size has reached it."""
        if source in self._gone:
            return
        if (
            gossip
            and (loss := self._link(source, target).gossip_loss) > 0.0
            and self._rng(source, target).random() < loss
        ):
            return
        self._put(source, target, size_bytes, call)

    def _link(self, source: str, target: str) -> Link:
        return self._links.get((source, target), self._default)

    def _put(self, source: str, target: str, size_bytes: int, call: Call) -> None:
        """Put a message on its way."""
        link = self._link(source, target)
        sent_s = trio.current_time()
        if link.bytes_per_s is not None:
            sent_s = max(sent_s, self._idle_from_s.get((source, target), 0.0)) + size_bytes / link.bytes_per_s
            self._idle_from_s[source, target] = sent_s
        due_s = sent_s + link.delay_s
        if link.jitter_s:
            due_s += self._rng(source, target).random() * link.jitter_s
        due_s = max(due_s, self._last_due_s.get((source, target), 0.0))
        self._last_due_s[source, target] = due_s
        heapq.heappush(self._heap, (due_s, next(self._order), source, target, call))
        if self._heap[0][4] is call:
            self._wake.set()

    def _rng(self, source: str, target: str) -> random.Random:
        """Return the draws of one direction: those of others must not shift them."""
        rng = self._rngs.get((source, target))
        if rng is None:
            rng = self._rngs[source, target] = random.Random(f"{self._seed}/link/{source}/{target}")
        return rng

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Deliver until cancelled."""
        task_status.started()
        while True:
            self._wake = trio.Event()
            with trio.move_on_at(self._heap[0][0] if self._heap else trio.current_time() + 3600.0):
                await self._wake.wait()
            while self._heap and self._heap[0][0] <= trio.current_time():
                if self._turn is not None:
                    await self._turn()
                _, _, source, target, call = heapq.heappop(self._heap)
                if self._is_blocked(source, target):
                    self._held.append((source, target, call))
                else:
                    call()

    # ------------------------------------------------------------ connections

    def bind(self, listener: object) -> int:
        """Give a listener a port of its own."""
        port = next(self._ports)
        self._listeners[port] = listener
        return port

    def name_connection(self) -> int:
        """Mint the name of a connection."""
        return next(self._order)

    def unbind(self, port: int) -> None:
        """Close a port."""
        self._listeners.pop(port, None)

    def listener(self, port: int) -> object | None:
        """Return who listens on a port."""
        return self._listeners.get(port)

    async def connect(self, source: str, target: str, meet: Callable[[], bool], *, round_trips: int) -> None:
        """Go through a handshake.

        Parameters
        ----------
        meet : callable
            Called at the target when the last request reaches it; says whether the connection is taken.
        round_trips : int
            Requests and answers it takes, >= 1.

        Raises
        ------
        PeerUnreachableError
            The target refused, is gone, or did not answer within CONNECT_TIMEOUT_S.
        """
        answers = 0
        refused = False
        with trio.move_on_after(CONNECT_TIMEOUT_S):
            for i in range(round_trips):
                if target in self._gone:
                    # Its machine still answers: connection refused.
                    await trio.sleep(2 * self._default.delay_s)
                    refused = True
                    break
                answer = _Answer()
                meeting = meet if i == round_trips - 1 else None
                self.send(
                    source, target, SEGMENT_BYTES, functools.partial(self._answer, source, target, answer, meeting)
                )
                await answer.arrived.wait()
                answers += 1
                refused = not answer.accepted
        if refused or answers < round_trips:
            raise PeerUnreachableError(f"{target} {'refused the connection' if refused else 'does not answer'}")

    def _answer(self, source: str, target: str, answer: _Answer, meet: Callable[[], bool] | None) -> None:
        """Answer a request at the target."""
        answer.accepted = meet is None or meet()
        self.send(target, source, SEGMENT_BYTES, answer.arrived.set)
