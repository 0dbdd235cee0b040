"""jsed(d) and jsed_all: join the shortest expected delay, over this node and d draws or all peers. Baselines.

The finish of a job is predicted from what a node's last record says of its queue and its speed (the generalised JSQ of
arXiv:1509.05533). With d draws by speed and own jobs on their way counted (`inflight=yes`) it is most of capd; over all
peers on old records everybody sends to the same node until the next one.
"""

from scheduler.peer import Peer
from scheduler.policy import Board, Choice, Indifferent
from scheduler.types import Job, ModelDigest


def soonest(job: Job, model: ModelDigest, board: Board, peers: list[Peer]) -> Choice | None:
    """Choose the least predicted finish among peers, in their order, and this node."""
    here_s = board.here_s(job, model)
    looked: list[tuple[Peer | None, float]] = [] if here_s is None else [(None, here_s)]
    best = None if here_s is None else Choice(None, here_s, looked, board.wait_s)
    for peer in peers:
        finish_s, wait_s = board.predict_s(peer, job, model)
        looked.append((peer, finish_s))
        if best is None or finish_s < best.finish_s:
            best = Choice(peer, finish_s, looked, wait_s)
    return best


class ExpectedDelayDraw(Indifferent):
    """Compare this node and d drawn peers.

    Parameters
    ----------
    weighted : bool, default True
        Whether they are drawn by speed rather than evenly.
    """

    name = "jsed"

    def __init__(self, *, weighted: bool = True) -> None:
        self._weighted = weighted

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose the least predicted finish."""
        if not board.may_move:
            return soonest(job, model, board, [])
        draw = board.draw if self._weighted else board.draw_evenly
        return soonest(job, model, board, draw(model, board.config.placement.sample))


class LeastExpectedDelay(Indifferent):
    """Compare this node and all peers."""

    name = "jsed_all"

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose the least predicted finish; ties at random."""
        peers = board.eligible(model) if board.may_move else []
        board.rng.shuffle(peers)
        return soonest(job, model, board, peers)
