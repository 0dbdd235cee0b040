"""Runs a node's failure detector: probes go out, answers come back, the core hears who is suspect, back or gone.

The twin of gridnode.watch. The rules are those of the daemon, by the very same object (transport.liveness): this module
carries them out over simulated connections and gossip. It also keeps trying a data port that did not answer a job, as
gridnode.introductions does, and tells the core whether it is reachable.
"""

import random
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from scheduler.events import AdvertReceived, PeerLost, PeerReachable, PeerRefuted, PeerSuspected
from scheduler.types import PeerState
from simulator import messages
from simulator.connection import Connection
from transport.liveness import Liveness
from transport.liveness_events import (
    Action,
    Changed,
    Event,
    LivenessConfig,
    LivenessStatistics,
    NoticeReceived,
    PeerDoubted,
    PeersChanged,
    PeerSeen,
    ProbeAnswered,
    ProbeBroken,
    PublishHealth,
    SendPing,
    Status,
    TimerFired,
)
from transport.wire import HealthNotice

if TYPE_CHECKING:
    from collections.abc import Callable

    from simulator.node import SimNode

REFRESH_S: Final = 1.0
"""How often the list of peers to probe is brought up to date; gridnode.watch's."""
INDIRECT_PROBE_S: Final = 0.5
"""Time that a helper gives the node it probes; gridnode.services'."""
RETRY_S: Final[tuple[float, ...]] = (1.0, 60.0)
"""First and longest pause before a data port is tried again; gridnode.introductions'."""
PING_BYTES: Final = 40
"""A frame with a Ping; a subject adds its name."""


class Asker(Protocol):
    """Hears the answer to a probe."""

    def hear_pong(self, reached: bool, state: PeerState) -> None:
        """Take the answer."""


class Probe:
    """A question whether a node lives, or reaches another: one exchange with a limit.

    Parameters
    ----------
    node : SimNode
        Who asks.
    peer : str
        Who is asked.
    timeout_s : float
        After this silence the exchange is given up, in seconds.
    on_end : callable
        Told once: the answer (whether the subject is reached, and the peer's state), False where nobody listens there,
        or None for silence.
    subject : str, optional
        Whom the peer is to probe.
    """

    __slots__ = ("_connection", "_limit", "_node", "_on_end", "_opening", "_peer", "_subject")

    def __init__(
        self,
        node: "SimNode",
        peer: str,
        *,
        timeout_s: float,
        on_end: "Callable[[tuple[bool, PeerState] | bool | None], object]",
        subject: str | None = None,
    ) -> None:
        self._node = node
        self._peer = peer
        self._subject = subject
        self._on_end: Callable[[tuple[bool, PeerState] | bool | None], object] | None = on_end
        self._connection: Connection | None = None
        self._limit = node.engine.at(node.engine.now_s + timeout_s, self._give_up)
        self._opening = node.lease(peer, self)

    def on_connected(self, connection: Connection) -> None:
        """Ask."""
        self._opening = None
        self._connection = connection
        connection.errand = self
        size = PING_BYTES + len(self._subject or "")
        connection.ask(size, self._node.peers[self._peer].inbound.on_health_probe, connection, self, self._subject)

    def hear_pong(self, reached: bool, state: PeerState) -> None:
        """Take the answer."""
        if self._connection is not None and self._on_end is not None:
            self._node.endpoint.put_back(self._connection)
            self._end((reached, state))

    def on_unreachable(self) -> None:
        """Take note that nobody listens there."""
        self._opening = None
        self._end(False)

    def on_broken(self) -> None:
        """Take note that the connection died: no word of it, as in the daemon."""
        self._end(None)

    def _give_up(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
        elif self._connection is not None:
            self._connection.errand = None
            self._connection.close_asker()
        self._end(None)

    def _end(self, answer: "tuple[bool, PeerState] | bool | None") -> None:
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            self._node.engine.cancel(self._limit)
            on_end(answer)


class Watch:
    """Drives one failure detector.

    Parameters
    ----------
    node : SimNode
        Whose it is.
    config : LivenessConfig
        Of the detector.
    rng : random.Random
        Draws the order of probes and the helpers.
    """

    def __init__(self, node: "SimNode", config: LivenessConfig, *, rng: random.Random) -> None:
        self._node = node
        self._liveness = Liveness(node.name, node.epoch, rng, config)
        self._inbox: deque[Event] = deque()
        self._is_feeding = False
        self._due_s = float("inf")
        self._unreachable: dict[str, float] = {}
        node.endpoint.on_peer_closed = self.doubt

    def statistics(self) -> LivenessStatistics:
        """Return the detector's counters."""
        return self._liveness.statistics()

    def status(self, peer: str) -> Status | None:
        """Return a node's standing."""
        return self._liveness.status(peer)

    def start(self) -> None:
        """Begin to watch."""
        self._refresh()

    # What it hears.

    def seen(self, peer: str, epoch: int) -> None:
        """Take note of a record made by a node."""
        self._post(PeerSeen(node=peer, epoch=epoch, direct=False))

    def doubt(self, peer: str) -> None:
        """Have a node probed now: it closed a connection."""
        self._post(PeerDoubted(peer))

    def heard(self, origin: str, notice: HealthNotice) -> None:
        """Take another node's word."""
        self._post(NoticeReceived(origin=origin, notice=notice))

    def unreachable(self, peer: str) -> None:
        """Take note that a node's data port did not answer a job: it is tried again in a while."""
        if peer not in self._unreachable:
            self._unreachable[peer] = RETRY_S[0]
            self._node.post(PeerReachable(peer=peer, reachable=False))
            self._try_later(peer)

    def answer(self, connection: Connection, asker: Asker, subject: str | None) -> None:
        """Answer a probe; one about a third node after having probed it."""
        node = self._node

        def tell(reached: bool) -> None:
            state = node.own_state()
            size = PING_BYTES + messages.state_bytes(state) if connection.is_limited else 0
            connection.answer(size, asker.hear_pong, reached, state)

        if subject is None or subject == connection.asker.name:
            tell(True)
        else:
            Probe(node, subject, timeout_s=INDIRECT_PROBE_S, on_end=lambda answer: tell(isinstance(answer, tuple)))

    # The detector.

    def _post(self, event: Event) -> None:
        if not self._node.is_alive:
            return
        self._inbox.append(event)
        if not self._is_feeding:
            self._take_all()

    def _take_all(self) -> None:
        self._is_feeding = True
        while self._inbox:
            event = self._inbox.popleft()
            for action in self._liveness.handle(event, now_s=self._node.engine.now_s):
                self._carry_out(action)
        self._is_feeding = False
        due_s = self._liveness.next_deadline_s()
        if due_s < self._due_s:
            self._arm(due_s)

    def _arm(self, due_s: float) -> None:
        engine = self._node.engine
        self._due_s = max(due_s, engine.now_s)
        if due_s != float("inf"):
            engine.at(self._due_s, self._ring, self._due_s)

    def _ring(self, due_s: float) -> None:
        if due_s != self._due_s or not self._node.is_alive:
            return  # another was set since
        self._due_s = float("inf")
        if self._liveness.next_deadline_s() <= self._node.engine.now_s:
            self._post(TimerFired())
        if self._due_s == float("inf"):
            self._arm(self._liveness.next_deadline_s())

    def _refresh(self) -> None:
        node = self._node
        if not node.is_alive:
            return
        nodes = {*node.gossip.neighbours, *node.endpoint.open_peers()}
        self._post(PeersChanged(tuple(sorted(nodes))))
        node.engine.at(node.engine.now_s + REFRESH_S, self._refresh)

    def _carry_out(self, action: Action) -> None:
        match action:
            case SendPing():
                self._ping(action)
            case PublishHealth():
                self._node.gossip.publish(action.notice)
            case Changed():
                self._changed(action)

    def _changed(self, action: Changed) -> None:
        peer = action.node
        match action.status:
            case Status.SUSPECT:
                self._node.post(PeerSuspected(peer=peer))
            case Status.ALIVE:
                self._node.post(PeerRefuted(peer=peer))
                if peer in self._unreachable:
                    self._try(peer)
            case Status.DEAD | Status.LEFT:
                self._unreachable.pop(peer, None)
                self._node.post(PeerLost(peer=peer))
                self._node.endpoint.close_peer(peer)

    def _ping(self, action: SendPing) -> None:
        through = action.via or action.target

        def end(answer: tuple[bool, PeerState] | bool | None) -> None:
            if isinstance(answer, tuple):
                reached, state = answer
                self._node.post(AdvertReceived(state=state))
                self._post(ProbeAnswered(probe=action.probe, target=action.target, via=action.via, reached=reached))
            elif answer is False:
                self._post(ProbeBroken(probe=action.probe, target=action.target, via=action.via))

        subject = action.target if action.via else None
        Probe(self._node, through, timeout_s=action.timeout_s, on_end=end, subject=subject)

    # Data ports that do not answer.

    def _try_later(self, peer: str) -> None:
        engine, pause_s = self._node.engine, self._unreachable[peer]
        self._unreachable[peer] = min(2.0 * pause_s, RETRY_S[1])
        engine.at(engine.now_s + pause_s, self._try, peer)

    def _try(self, peer: str) -> None:
        if peer not in self._unreachable or not self._node.is_alive:
            return

        def end(answer: tuple[bool, PeerState] | bool | None) -> None:
            if peer not in self._unreachable:
                return
            if isinstance(answer, tuple):
                del self._unreachable[peer]
                self._node.post(PeerReachable(peer=peer, reachable=True))
            else:
                self._try_later(peer)

        Probe(self._node, peer, timeout_s=RETRY_S[0], on_end=end)
