"""Keeps the control connections: carries out what transport.discovery plans, and keeps its address book."""

from collections import deque
from collections.abc import Callable
from pathlib import Path

import trio

from gridnode.logs import EventLog, short
from transport.addressbook import Address, BookEntry, load_book, save_book
from transport.base import ControlPlane
from transport.beats import next_beat_s
from transport.discovery import Discovery
from transport.discovery_events import (
    AddressesLearned,
    DialFailed,
    DialPeer,
    DialSucceeded,
    DiscoveryStatistics,
    DropPeer,
    Event,
    NeighboursChanged,
    PeerForgotten,
    PeerRevived,
    TimerFired,
)
from transport.files import StateFileError
from transport.wire import PeerUnreachableError

log = EventLog("mesh")

REFRESH_S = 1.0
"""How often the connections are looked at; a lost one is replaced within about this time and a backoff."""
SAVE_FIRST_S = 1.0
"""When a new node writes its address book first: one that dies young must find back. Each pause is twice as long ..."""
SAVE_S = 60.0
"""... up to this, since flash memory wears."""
DIAL_TIMEOUT_S = 8.0


class Mesh:
    """Drives one discovery planner.

    Parameters
    ----------
    discovery : Discovery
        The planner.
    grid_time_s : callable
        Grid time in seconds since 1970, for the address book.
    on_neighbour : callable
        Told each node that became a neighbour.
    """

    def __init__(
        self,
        discovery: Discovery,
        *,
        control: ControlPlane,
        book_path: Path | None,
        grid_time_s: Callable[[], float],
        on_neighbour: Callable[[str], None],
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._discovery = discovery
        self._control = control
        self._book_path = book_path
        self._grid_time_s = grid_time_s
        self._on_neighbour = on_neighbour
        self._clock = clock
        self._inbox: deque[Event] = deque()
        self._wake = trio.Event()
        self._neighbours: tuple[str, ...] = ()
        self._saved: tuple[BookEntry, ...] = ()

    def statistics(self) -> DiscoveryStatistics:
        """Return how well connected this node is."""
        return self._discovery.statistics()

    def learned(self, node: str, addresses: tuple[Address, ...]) -> None:
        """Take note of where a node's control plane listens."""
        self._post(AddressesLearned(node=node, addresses=addresses))

    def revived(self, node: str) -> None:
        """Dial a node that came back without waiting for its backoff."""
        self._post(PeerRevived(node))

    def forget(self, node: str) -> None:
        """Never dial a node again."""
        self._post(PeerForgotten(node))

    def _post(self, event: Event) -> None:
        self._inbox.append(event)
        self._wake.set()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled."""
        pause_s = SAVE_FIRST_S
        save_s = self._clock() + pause_s
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                self._wake = trio.Event()
                self._look()
                while self._inbox:
                    self._handle(self._inbox.popleft(), nursery)
                if save_s <= self._clock():
                    pause_s = min(SAVE_S, 2.0 * pause_s)
                    save_s = self._clock() + pause_s
                    await self.save()
                due_s = min(self._discovery.next_deadline_s(), next_beat_s(self._clock(), REFRESH_S))
                with trio.move_on_at(due_s):
                    await self._wake.wait()
                if self._discovery.next_deadline_s() <= self._clock():
                    self._handle(TimerFired(), nursery)

    async def save(self) -> None:
        """Write the address book if anything changed; a full disk is logged, the grid goes on."""
        entries = self._discovery.book()
        if self._book_path is None or entries == self._saved:
            return
        try:
            await trio.to_thread.run_sync(save_book, self._book_path, entries)
        except StateFileError as error:
            log.warning("address_book_not_saved", error=error)
        else:
            self._saved = entries

    def _look(self) -> None:
        """Compare the connections there are with those known before."""
        nodes = tuple(neighbour.node for neighbour in self._control.neighbours())
        if nodes == self._neighbours:
            return
        fresh = [node for node in nodes if node not in self._neighbours]
        for node in self._neighbours:
            if node not in nodes:
                log.info("neighbour_lost", peer=short(node), neighbours=len(nodes))
        self._neighbours = nodes
        self._inbox.append(NeighboursChanged(nodes=nodes, grid_time_s=self._grid_time_s()))
        for node in fresh:
            log.info("neighbour_gained", peer=short(node), neighbours=len(nodes))
            self._on_neighbour(node)

    def _handle(self, event: Event, nursery: trio.Nursery) -> None:
        for action in self._discovery.handle(event, now_s=self._clock()):
            match action:
                case DialPeer():
                    nursery.start_soon(self._dial, action)
                case DropPeer():
                    log.info("neighbour_dropped", peer=short(action.node), reason=action.reason)
                    nursery.start_soon(self._control.disconnect, action.node)

    async def _dial(self, action: DialPeer) -> None:
        node = action.dial.node
        try:
            with trio.fail_after(DIAL_TIMEOUT_S):
                await self._control.connect(action.dial)
        except (PeerUnreachableError, trio.TooSlowError) as error:
            log.debug("dial_failed", peer=short(node), host=action.dial.host, port=action.dial.port, error=error)
            self._post(DialFailed(node=node))
        else:
            self._post(DialSucceeded(node=node, grid_time_s=self._grid_time_s()))


def read_book(path: Path) -> tuple[BookEntry, ...]:
    """Read the address book; a damaged one is logged and counts as empty."""
    entries, problem = load_book(path)
    if problem:
        log.warning("address_book_damaged", problem=problem)
    return entries
