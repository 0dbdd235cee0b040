"""probe(d): ask d peers drawn by speed how they stand, wait, then join the shortest expected delay. A baseline.

What fresh knowledge is worth, and what it costs: a round trip before each job, and d questions (batch sampling as in
Sparrow, per job). A job that would not even gain at an idle peer asks nobody.
"""

from scheduler.peer import Peer
from scheduler.policies.jsed import soonest
from scheduler.policy import Board, Choice, Indifferent
from scheduler.types import Job, ModelDigest


class AskedDraw(Indifferent):
    """Compare this node and d peers that were just asked."""

    name = "probe"

    def ask(self, job: Job, model: ModelDigest, board: Board) -> list[Peer]:
        """Draw whom to ask."""
        here_s = board.here_s(job, model)
        if here_s is not None and not board.can_beat(model, here_s):
            return []
        return board.draw(model, board.config.placement.sample)

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose the least predicted finish among those asked; a job that asked nobody draws."""
        if not board.may_move:
            return soonest(job, model, board, [])
        asked = board.asked
        peers = board.draw(model, board.config.placement.sample) if asked is None else asked
        return soonest(job, model, board, [peer for peer in peers if model in peer.capabilities])
