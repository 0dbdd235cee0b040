"""local_only: every job runs where it arrives. What a fleet does without a grid; the first baseline."""

from scheduler.peer import Peer
from scheduler.policy import Board, Choice
from scheduler.types import Job, ModelDigest


class LocalOnly:
    """Never move."""

    name = "local_only"
    promises_gain = True
    is_learning = False

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose this node."""
        here_s = board.here_s(job, model)
        return None if here_s is None else Choice(None, here_s, [(None, here_s)], board.wait_s)

    def observe(self, peer: Peer, *, actual_s: float, waiting_s: float, service_s: float, now_s: float) -> None:
        """Do nothing."""

    def hear(self, peer: Peer, *, now_s: float) -> None:
        """Do nothing."""
