"""jsq(d): join the shortest of d queues drawn evenly from all nodes, this one included. Blind to speed; a baseline.

With equal nodes and fresh records the number of jobs at a node has the tail lambda^((d^k-1)/(d-1)), the supermarket
model. On unequal nodes even draws are unstable far below capacity (arXiv:2004.00538).
"""

from scheduler.peer import Peer
from scheduler.policy import Board, Choice, Indifferent
from scheduler.types import Job, ModelDigest


def shortest(job: Job, model: ModelDigest, board: Board, peers: list[Peer], *, may_stay: bool) -> Choice | None:
    """Choose the place with the fewest jobs among peers, in their order, and this node.

    Parameters
    ----------
    job, model : Job, str
        What is to be placed.
    board : Board
        Knows the numbers.
    peers : list of Peer
        Eligible ones.
    may_stay : bool
        Whether this node is compared too; without peers it is in any case.
    """
    here_s = board.here_s(job, model)
    if here_s is not None and (may_stay or not peers):
        best, least = None, float(board.jobs_here())
    elif peers:
        best, least = peers[0], float("inf")
    else:
        return None
    for peer in peers:
        jobs = float(board.jobs_at(peer, model))
        if jobs < least:
            best, least = peer, jobs
    if best is None:
        assert here_s is not None, "staying was compared though it cannot be"
        return Choice(None, here_s, [(None, here_s)], board.wait_s)
    finish_s, wait_s = board.predict_s(best, job, model)
    return Choice(best, finish_s, [(best, finish_s)], wait_s)


class ShortestQueueDraw(Indifferent):
    """Compare d nodes by the number of their jobs."""

    name = "jsq"

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose as the module says."""
        if not board.may_move:
            return shortest(job, model, board, [], may_stay=True)
        sample = board.config.placement.sample
        peers = board.eligible(model)
        # This node is one of them all: it is in the draw as often as any other.
        is_here_drawn = board.rng.random() * (len(peers) + 1) < sample
        drawn = sample - 1 if is_here_drawn else sample
        peers = peers if len(peers) <= drawn else board.rng.sample(peers, drawn)
        board.rng.shuffle(peers)
        return shortest(job, model, board, peers, may_stay=is_here_drawn)
