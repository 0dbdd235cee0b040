"""steal_only: every job stays where it arrives until an idle node asks for it. Receiver-initiated balancing, alone.

The choice is local_only's; the name switches stealing on (scheduler.variants). Nodes that are slower than the thieves
keep jobs waiting until a thief is idle, so it is weak at low load and strong at high load.
"""

from scheduler.policy import Board, Choice, Indifferent
from scheduler.types import Job, ModelDigest


class StealOnly(Indifferent):
    """Never push; a node that lacks the model sends its jobs to a drawn peer that has it."""

    name = "steal_only"

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose this node where it can be."""
        here_s = board.here_s(job, model)
        if here_s is not None:
            return Choice(None, here_s, [(None, here_s)], board.wait_s)
        drawn = board.draw(model, 1) if board.may_move else []
        if not drawn:
            return None
        finish_s, wait_s = board.predict_s(drawn[0], job, model)
        return Choice(drawn[0], finish_s, [(drawn[0], finish_s)], wait_s)
