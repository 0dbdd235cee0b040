"""prequal: keep a pool of recent probes; take the quickest of the cold ones, or the least loaded when all are hot.

After Prequal (NSDI 2024): a probe tells how many jobs a node has in flight and how long one takes there now. Nodes
above a quantile of the jobs in flight seen lately are hot. Probes are sent ahead of the jobs that use them, never
waited for, and each is used a few times only. Here every record that comes fills the pool too, since it says the same;
what a job takes is predicted from it, where Prequal measures it at the servers.

The rule is made for servers of about one speed behind many clients: jobs in flight say little when one node is twenty
times as fast as another.
"""

from collections import deque

from scheduler.peer import Peer
from scheduler.policy import Board, Choice
from scheduler.types import Job, ModelDigest, NodeId

_USES = 3
"""Jobs that one probe may place: it counts what it placed itself, but not what others did."""
_AGE_S = 1.0
"""Longest time a probe is used, in seconds."""
_SEEN = 128
"""Numbers of jobs in flight that the quantile is taken of."""


class _Probe:
    __slots__ = ("heard_s", "peer", "uses")

    def __init__(self, peer: Peer, heard_s: float) -> None:
        self.peer = peer
        self.heard_s = heard_s
        self.uses = 0


class HotCold:
    """Compare the pool and this node.

    Parameters
    ----------
    quantile : float, default 0.75
        Share of the numbers of jobs in flight up to which a node is cold, 0 to 1. 0 balances jobs, 1 latency.
    pool : int, default 16
        Probes kept.
    probes : float, default 2.0
        Probes sent per job, >= 0; a fraction is a chance.
    """

    name = "prequal"
    promises_gain = False
    is_learning = True

    def __init__(self, *, quantile: float = 0.75, pool: int = 16, probes: float = 2.0) -> None:
        self._quantile = quantile
        self._size = pool
        self._rate = probes
        self._pool: dict[NodeId, _Probe] = {}
        self._seen: deque[int] = deque(maxlen=_SEEN)

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose as the module says, and send probes for those to come."""
        here_s = board.here_s(job, model)
        stay = None if here_s is None else Choice(None, here_s, [(None, here_s)], board.wait_s)
        if not board.may_move:
            return stay
        self._send_probes(model, board)
        found = self._look(job, model, board)
        if stay is not None:
            found.append((board.jobs_here(), stay))
        if not found:
            drawn = board.draw(model, 1)
            if not drawn:
                return None
            finish_s, wait_s = board.predict_s(drawn[0], job, model)
            return Choice(drawn[0], finish_s, [(drawn[0], finish_s)], wait_s)
        limit = self._limit()
        cold = [choice for jobs, choice in found if jobs <= limit]
        if cold:
            best = min(cold, key=lambda choice: choice.finish_s)
        else:
            best = min(found, key=lambda each: (each[0], each[1].finish_s))[1]
        best.looked = [(choice.peer, choice.finish_s) for _, choice in found]
        if best.peer is not None and best.peer.node_id in self._pool:
            self._use(best.peer.node_id)
        return best

    def observe(self, peer: Peer, *, actual_s: float, waiting_s: float, service_s: float, now_s: float) -> None:
        """Do nothing: its record was heard with the answer."""

    def hear(self, peer: Peer, *, now_s: float) -> None:
        """Put a record into the pool, in place of an older one of its node, or of the oldest."""
        self._pool.pop(peer.node_id, None)
        self._pool[peer.node_id] = _Probe(peer, now_s)
        if len(self._pool) > self._size:
            del self._pool[next(iter(self._pool))]

    def _look(self, job: Job, model: ModelDigest, board: Board) -> list[tuple[int, Choice]]:
        """Return the places in the pool that the job may go to, with their jobs in flight."""
        places = {peer.node_id for peer in board.eligible(model)}
        found: list[tuple[int, Choice]] = []
        for node_id, probe in list(self._pool.items()):
            if board.now_s - probe.heard_s > _AGE_S:
                del self._pool[node_id]
            elif node_id in places:
                # What this very probe placed is there now too.
                jobs = board.jobs_at(probe.peer, model) + probe.uses
                self._seen.append(jobs)
                finish_s, wait_s = board.predict_s(probe.peer, job, model)
                found.append((jobs, Choice(probe.peer, finish_s, [], wait_s)))
        return found

    def _limit(self) -> int:
        """Return the number of jobs in flight above which a node is hot."""
        if not self._seen:
            return 0
        seen = sorted(self._seen)
        return seen[min(len(seen) - 1, int(self._quantile * len(seen)))]

    def _send_probes(self, model: ModelDigest, board: Board) -> None:
        count = int(self._rate) + (board.rng.random() < self._rate % 1.0)
        for peer in board.draw_evenly(model, count) if count else []:
            board.probe(peer)

    def _use(self, node_id: NodeId) -> None:
        probe = self._pool[node_id]
        probe.uses += 1
        if probe.uses >= _USES:
            del self._pool[node_id]
