"""Runs the failure detector: probes go out, answers come back, the core hears who is suspect, back or gone.

The rules are transport.liveness's; this module carries them out over the data plane and gossips its words.
"""

from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio

from gridnode.driver import Driver
from gridnode.logs import EventLog, short
from gridnode.translate import state_from_wire
from scheduler.events import AdvertReceived, PeerLost, PeerRefuted, PeerSuspected
from transport.base import HEALTH_TOPIC, ControlPlane, DataPlane, ask
from transport.beats import next_beat_s
from transport.liveness import Liveness
from transport.liveness_events import (
    Action,
    Changed,
    Event,
    LeaveRequested,
    LivenessStatistics,
    NoticeReceived,
    PeerDoubted,
    PeersChanged,
    PeerSeen,
    PeerSpoke,
    ProbeAnswered,
    ProbeBroken,
    PublishHealth,
    SendPing,
    Status,
    TimerFired,
)
from transport.wire import HealthNotice, PeerUnreachableError, Ping, Pong, TransportError, encode

log = EventLog("watch")

REFRESH_S = 1.0
"""How often the list of peers to probe is brought up to date."""
SETTLED_S = 30.0
"""A node alive for so long without a break was in one grid with us: no partition lies behind it."""


Start = Callable[..., None]
"""Starts an async function with its arguments."""


class Undertaker(Protocol):
    """Told of the dead and the risen, besides the core."""

    def peer_lost(self, node: str) -> None:
        """Close what is open to a node that is dead or has left."""
        ...

    def peer_returned(self, node: str) -> None:
        """Know that a node is back."""
        ...


class Watch:
    """Drives one failure detector."""

    def __init__(
        self,
        liveness: Liveness,
        *,
        control: ControlPlane,
        data: DataPlane,
        driver: Driver,
        undertaker: Undertaker,
        clock: Callable[[], float] = trio.current_time,
    ) -> None:
        self._liveness = liveness
        self._control = control
        self._data = data
        self._driver = driver
        self._undertaker = undertaker
        self._clock = clock
        self._inbox: deque[Event] = deque()
        self._wake = trio.Event()
        self._armed_s = 0.0
        """What serve waits for."""
        self._start: Start | None = None
        """Starts a task of serve; None while it does not run."""
        self._is_handling = False
        self._nodes: set[str] = set()

    def statistics(self) -> LivenessStatistics:
        """Return the detector's counters."""
        return self._liveness.statistics()

    def status(self, node: str) -> Status | None:
        """Return a node's standing."""
        return self._liveness.status(node)

    def is_settled(self, node: str) -> bool:
        """Say whether a node has been with us for a while, so that it knows by gossip what this node knows."""
        return self._clock() - self._liveness.alive_since_s(node) >= SETTLED_S

    def seen(self, node: str, epoch: int, *, direct: bool) -> None:
        """Take note of a message made by a node; one that tells nothing new costs nothing."""
        live = self._liveness
        if direct or live.status(node) is not Status.ALIVE or live.epoch(node) < epoch:
            self._post(PeerSeen(node=node, epoch=epoch, direct=direct))

    def answered(self, node: str) -> None:
        """Take note that a node has answered about a job: one that is suspect is not, however late its pings are."""
        if self._liveness.status(node) is Status.SUSPECT:
            self._post(PeerSeen(node=node, epoch=self._liveness.epoch(node), direct=True))

    def spoke(self, node: str) -> None:
        """Take note that a node has pinged this one."""
        self._post(PeerSpoke(node))

    def doubt(self, node: str) -> None:
        """Have a node probed now: something about it looks wrong."""
        self._post(PeerDoubted(node))

    def heard(self, origin: str, notice: HealthNotice) -> None:
        """Take another node's word."""
        self._post(NoticeReceived(origin=origin, notice=notice))

    async def leave(self) -> None:
        """Tell the grid that this node goes."""
        for action in self._liveness.handle(LeaveRequested(), now_s=self._clock()):
            if isinstance(action, PublishHealth):
                await self._control.publish(HEALTH_TOPIC, encode(action.notice))

    def _post(self, event: Event) -> None:
        """Give the detector an event, in this very call where it runs: waking its task would cost more."""
        self._inbox.append(event)
        if self._start is not None and not self._is_handling:
            self._handle_all(self._start)
            if self._liveness.next_deadline_s() < self._armed_s:
                self._wake.set()

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled."""
        refresh_s = self._clock()
        async with trio.open_nursery() as nursery:
            self._start = nursery.start_soon
            task_status.started()
            try:
                while True:
                    if refresh_s <= self._clock():
                        refresh_s = next_beat_s(self._clock(), REFRESH_S)
                        self._look()
                    self._handle_all(nursery.start_soon)
                    self._wake = trio.Event()
                    self._armed_s = min(self._liveness.next_deadline_s(), refresh_s)
                    with trio.move_on_at(self._armed_s):
                        await self._wake.wait()
                    if self._liveness.next_deadline_s() <= self._clock():
                        self._inbox.append(TimerFired())
            finally:
                self._start = None

    def _look(self) -> None:
        """Bring the list of peers to probe up to date."""
        nodes = {neighbour.node for neighbour in self._control.neighbours()} | {*self._data.open_peers()}
        if nodes != self._nodes:
            self._nodes = nodes
            self._inbox.append(PeersChanged(tuple(sorted(nodes))))

    def _handle_all(self, start: Start) -> None:
        self._is_handling = True
        try:
            while self._inbox:
                for action in self._liveness.handle(self._inbox.popleft(), now_s=self._clock()):
                    self._carry_out(action, start)
        finally:
            self._is_handling = False

    def _carry_out(self, action: Action, start: Start) -> None:
        match action:
            case SendPing():
                start(self._ping, action)
            case PublishHealth():
                start(self._control.publish, HEALTH_TOPIC, encode(action.notice))
            case Changed():
                self._changed(action)

    def _changed(self, action: Changed) -> None:
        log.info("peer_changed", peer=short(action.node), status=action.status.value, reason=action.reason)
        match action.status:
            case Status.SUSPECT:
                self._driver.post(PeerSuspected(peer=action.node))
            case Status.ALIVE:
                self._driver.post(PeerRefuted(peer=action.node))
                self._undertaker.peer_returned(action.node)
            case Status.DEAD | Status.LEFT:
                self._driver.post(PeerLost(peer=action.node))
                self._undertaker.peer_lost(action.node)

    async def _ping(self, action: SendPing) -> None:
        """Send one probe and post what became of it; silence needs no event."""
        through = action.via or action.target
        subject = action.target if action.via else None
        try:
            with trio.move_on_after(action.timeout_s):
                answer, _ = await ask(self._data, through, Ping(nonce=action.probe, subject=subject))
                if isinstance(answer, Pong) and answer.nonce == action.probe:
                    if answer.state.node == through:
                        self._driver.post(AdvertReceived(state=state_from_wire(answer.state)))
                    self._post(
                        ProbeAnswered(probe=action.probe, target=action.target, via=action.via, reached=answer.reached)
                    )
        except PeerUnreachableError:
            self._post(ProbeBroken(probe=action.probe, target=action.target, via=action.via))
        except TransportError as error:
            log.warning("probe_refused", peer=short(through), error=error)
