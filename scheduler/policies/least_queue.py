"""least_queue: the node with the fewest jobs by its last record. What a load balancer does that knows no speeds.

A board with one job is as good to it as a server with one, though the server is done before the board has begun: most
of the work ends up at the slowest nodes. And all send to the same one until its next record.
"""

from scheduler.policies.jsq import shortest
from scheduler.policy import Board, Choice, Indifferent
from scheduler.types import Job, ModelDigest


class LeastQueue(Indifferent):
    """Compare all by the number of their jobs."""

    name = "least_queue"

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose the fewest; ties at random."""
        peers = board.eligible(model) if board.may_move else []
        board.rng.shuffle(peers)
        return shortest(job, model, board, peers, may_stay=True)
