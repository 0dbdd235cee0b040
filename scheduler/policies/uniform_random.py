"""random: a uniform draw over this node and all eligible peers. Unstable on unequal nodes; a baseline.

With 16 nodes of 3.8 jobs/s and 4 of 88.5 jobs/s it is stable only below 0.183 of the total capacity: the slow ones
get the same share as the fast ones.
"""

from scheduler.peer import Peer
from scheduler.policy import Board, Choice
from scheduler.types import Job, ModelDigest


class UniformRandom:
    """Pick any node."""

    name = "random"
    promises_gain = False
    is_learning = False

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose with equal chances."""
        here_s = board.here_s(job, model)
        # A job moves once: a second draw at the receiver would change nothing but the cost.
        peers = board.eligible(model) if board.may_move and not job.hops else []
        count = len(peers) + (here_s is not None)
        if not count:
            return None
        index = board.rng.randrange(count)
        if index < len(peers):
            peer = peers[index]
            finish_s, wait_s = board.predict_s(peer, job, model)
            return Choice(peer, finish_s, [(peer, finish_s)], wait_s)
        assert here_s is not None, "the draw fell on a node that is not among the choices"
        return Choice(None, here_s, [(None, here_s)], board.wait_s)

    def observe(self, peer: Peer, *, actual_s: float, waiting_s: float, service_s: float, now_s: float) -> None:
        """Do nothing."""

    def hear(self, peer: Peer, *, now_s: float) -> None:
        """Do nothing."""
