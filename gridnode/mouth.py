"""Speaks to the grid on the core's behalf: gossips state records and pulls capability tables."""

from typing import Final

import trio

from gridnode.driver import Driver
from gridnode.logs import EventLog, short
from gridnode.translate import state_from_wire, state_to_wire, table_from_wire
from scheduler.actions import Advertise, Probe, PullTable
from scheduler.events import ProbeAnswered, SendFailed, TableReceived
from transport.base import STATE_TOPIC, ControlPlane, DataPlane, ask
from transport.wire import Ping, Pong, Table, TableRequest, TransportError, encode

log = EventLog("mouth")

TABLE_TIMEOUT_S: Final = 5.0
PROBE_TIMEOUT_S: Final = 1.0
"""An answer that takes longer tells nothing of a queue any more; the core has long decided without it."""


class GridMouth:
    """Carries out Advertise, PullTable and Probe; see hands.Mouth."""

    def __init__(self, *, control: ControlPlane, data: DataPlane, driver: Driver, nursery: trio.Nursery) -> None:
        self._control = control
        self._data = data
        self._driver = driver
        self._nursery = nursery

    def advertise(self, action: Advertise) -> None:
        """Gossip the state record."""
        self._nursery.start_soon(self._control.publish, STATE_TOPIC, encode(state_to_wire(action.state)))

    def pull_table(self, action: PullTable) -> None:
        """Fetch a peer's capability table."""
        self._nursery.start_soon(self._pull, action.peer)

    def probe(self, action: Probe) -> None:
        """Ask a peer how it stands."""
        self._nursery.start_soon(self._probe, action)

    async def _probe(self, action: Probe) -> None:
        """Ask for a state; whatever comes of it, the core hears."""
        event: ProbeAnswered | SendFailed = SendFailed(command=action.command, connected=False)
        try:
            with trio.move_on_after(PROBE_TIMEOUT_S):
                answer, _ = await ask(self._data, action.peer, Ping(nonce=action.command))
                if isinstance(answer, Pong) and answer.state.node == action.peer:
                    event = ProbeAnswered(command=action.command, state=state_from_wire(answer.state))
        except TransportError as error:
            log.debug("probe_failed", peer=short(action.peer), error=error)
        self._driver.post(event)

    async def _pull(self, peer: str) -> None:
        """Ask for a table; the core asks again while it lacks one."""
        try:
            with trio.move_on_after(TABLE_TIMEOUT_S):
                answer, _ = await ask(self._data, peer, TableRequest())
                if isinstance(answer, Table) and answer.node == peer:
                    self._driver.post(TableReceived(table=table_from_wire(answer)))
        except TransportError as error:
            log.debug("table_not_pulled", peer=short(peer), error=error)
