"""Speaks to the grid on the core's behalf: gossips state records and pulls capability tables."""

from typing import Final

import trio

from gridnode.driver import Driver
from gridnode.logs import EventLog, short
from gridnode.translate import state_to_wire, table_from_wire
from scheduler.actions import Advertise, PullTable
from scheduler.events import TableReceived
from transport.base import STATE_TOPIC, ControlPlane, DataPlane, ask
from transport.wire import Table, TableRequest, TransportError, encode

log = EventLog("mouth")

TABLE_TIMEOUT_S: Final = 5.0


class GridMouth:
    """Carries out Advertise and PullTable; see hands.Mouth."""

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

    async def _pull(self, peer: str) -> None:
        """Ask for a table; the core asks again while it lacks one."""
        try:
            with trio.move_on_after(TABLE_TIMEOUT_S):
                answer, _ = await ask(self._data, peer, TableRequest())
                if isinstance(answer, Table) and answer.node == peer:
                    self._driver.post(TableReceived(table=table_from_wire(answer)))
        except TransportError as error:
            log.debug("table_not_pulled", peer=short(peer), error=error)
