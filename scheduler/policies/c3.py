"""c3: rank nodes by what they answered lately, with the cube of their queue; send to each at a rate that it keeps up.

After C3 (NSDI 2015), which ranks the replicas of a store:

    score = R - 1/mu + q^3/mu,    q = 1 + w x own jobs there + queue told

with R the response time seen, 1/mu the service time and q the queue, each an average of the answers. The cube
keeps clients from rushing to a quick node whose queue is long; w counts own jobs there as if all others sent as many.
The rate to a node grows like CUBIC while it answers as fast as it is sent to, and shrinks when it does not. A node
never heard of scores 0 and is tried. This node takes part with its own queue, without a way.
"""

import math

from scheduler.peer import Peer
from scheduler.policy import Board, Choice
from scheduler.types import Job, ModelDigest, NodeId

_ALPHA = 0.1
"""Weight of a new answer in the averages."""
_WINDOW_S = 0.05
"""Time over which rates are compared, in seconds."""
_DECREASE = 0.2
"""Share by which a rate shrinks."""
_SCALE = 100.0
"""Growth of a rate: jobs/s per cubed second since it shrank last."""
_RATE_FLOOR_HZ = 1.0
_RATE_FIRST_HZ = 50.0
_BURST = 4.0
"""Jobs that may be sent at once to a node within its rate."""


class _Replica:
    """What is known of one node."""

    __slots__ = ("_answered", "_knee_hz", "_sent", "_shrunk_s", "_since_s", "at_s", "queue", "rate_hz", "response_s",
                 "service_s", "tokens")  # fmt: skip

    def __init__(self, now_s: float) -> None:
        self.response_s = self.service_s = self.queue = 0.0
        self.rate_hz = self._knee_hz = _RATE_FIRST_HZ
        self.tokens = _BURST
        self.at_s = self._since_s = self._shrunk_s = now_s
        self._sent = self._answered = 0

    def accrue(self, now_s: float) -> None:
        """Let tokens come."""
        self.tokens = min(_BURST, self.tokens + self.rate_hz * (now_s - self.at_s))
        self.at_s = now_s

    def send(self) -> None:
        """Spend a token."""
        self.tokens -= 1.0
        self._sent += 1

    def answer(self, *, response_s: float, service_s: float, waiting_s: float, now_s: float) -> None:
        """Take in an answer."""
        weight = _ALPHA if self.service_s else 1.0
        queue = waiting_s / service_s if service_s > 0.0 else 0.0
        self.response_s += weight * (response_s - self.response_s)
        self.service_s += weight * (service_s - self.service_s)
        self.queue += weight * (queue - self.queue)
        self._answered += 1
        self._adapt(now_s)

    def _adapt(self, now_s: float) -> None:
        """Compare what was sent and answered in the window: shrink the rate, or let it grow like CUBIC."""
        if now_s - self._since_s < _WINDOW_S:
            return
        self.accrue(now_s)
        if self._sent > self._answered and now_s - self._shrunk_s > 2.0 * self.response_s:
            self._knee_hz = self.rate_hz
            self.rate_hz = max(_RATE_FLOOR_HZ, self.rate_hz * (1.0 - _DECREASE))
            self._shrunk_s = now_s
        elif self._sent <= self._answered:
            flat_s = math.cbrt(self._knee_hz * _DECREASE / _SCALE)
            self.rate_hz = max(self.rate_hz, _SCALE * (now_s - self._shrunk_s - flat_s) ** 3 + self._knee_hz)
        self._since_s = now_s
        self._sent = self._answered = 0


class CubicRank:
    """Rank all by score, take the best one whose rate allows it."""

    name = "c3"
    promises_gain = False
    is_learning = True

    def __init__(self) -> None:
        self._replicas: dict[NodeId, _Replica] = {}

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose as the module says; without a rate left, by score alone."""
        here_s, own_s = board.here_s(job, model), board.service_s(model)
        peers = board.eligible(model) if board.may_move else []
        board.rng.shuffle(peers)
        weight = len(peers) + 1
        ranked = sorted([(self._score(peer, weight), place) for place, peer in enumerate(peers)])
        now_s = board.now_s
        best: Peer | None = None
        best_score = math.inf
        for score, place in ranked:
            replica = self._replicas.setdefault(peers[place].node_id, _Replica(now_s))
            replica.accrue(now_s)
            if replica.tokens >= 1.0:
                best, best_score = peers[place], score
                break
        if here_s is not None and own_s is not None:
            own = here_s - own_s + (1.0 + board.jobs_here()) ** 3 * own_s
            if best is None or own <= best_score:
                return Choice(None, here_s, [(None, here_s)], board.wait_s)
        if best is None:
            if not ranked:
                return None
            best = peers[ranked[0][1]]
        self._replicas[best.node_id].send()
        finish_s, wait_s = board.predict_s(best, job, model)
        return Choice(best, finish_s, [(best, finish_s)], wait_s)

    def observe(self, peer: Peer, *, actual_s: float, waiting_s: float, service_s: float, now_s: float) -> None:
        """Take in an answer."""
        replica = self._replicas.setdefault(peer.node_id, _Replica(now_s))
        replica.answer(response_s=actual_s, service_s=service_s, waiting_s=waiting_s, now_s=now_s)

    def hear(self, peer: Peer, *, now_s: float) -> None:
        """Do nothing: C3 goes by answers."""

    def _score(self, peer: Peer, weight: int) -> float:
        replica = self._replicas.get(peer.node_id)
        if replica is None or not replica.service_s:
            return 0.0
        queue = 1.0 + weight * len(peer.shipments) + replica.queue
        return replica.response_s - replica.service_s + queue**3 * replica.service_s
