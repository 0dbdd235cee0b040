"""max_spare: keep a job while there is spare capacity here, else hand it to the neighbour with the most. A baseline.

    spare = 1 s x speed x slots - queue,   in jobs

Each node compares its own spare capacity with the request (one job); without it the job goes to the neighbour with the
highest advertised spare, within the hop limit. Stable, but it herds: all nodes see the same highest spare until the
next record.
"""

from scheduler.peer import Peer
from scheduler.policy import Board, Choice
from scheduler.types import Job, ModelDigest

_HORIZON_S = 1.0
"""Time whose capacity counts as spare."""


def spare_jobs(*, service_s: float, backlog_s: float, slots: int) -> float:
    """Return how many jobs a node can still take within the horizon.

    Parameters
    ----------
    service_s : float
        Service time of one job, in seconds, > 0.
    backlog_s : float
        Backlog per slot, in seconds, >= 0.
    slots : int
        Jobs served at once, >= 1.

    Returns
    -------
    float
        Jobs; negative when the backlog exceeds the horizon.

    Examples
    --------
    >>> spare_jobs(service_s=0.25, backlog_s=0.5, slots=2)
    4.0
    """
    return slots * (_HORIZON_S - backlog_s) / max(service_s, 1e-9)


class MaxSpare:
    """Forward to the highest advertised spare capacity."""

    name = "max_spare"
    promises_gain = False
    is_learning = False

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose as the module says."""
        here_s = board.here_s(job, model)
        service_s = board.service_s(model)
        own = float("-inf")
        if here_s is not None and service_s is not None:
            own = spare_jobs(service_s=service_s, backlog_s=board.backlog_s(), slots=board.config.queue.slots)
            if own >= 1.0 or not board.may_move:
                return Choice(None, here_s, [(None, here_s)], board.wait_s)
        best: Peer | None = None
        best_spare = own
        for peer in board.eligible(model) if board.may_move else []:
            state, entry = peer.state, peer.capabilities.get(model)
            if state is None or entry is None:
                continue
            # As it advertises itself: what this node has learned of it would be news that the rule has not got.
            service_s = entry[1].mean_s * state.slow_down
            spare = spare_jobs(service_s=service_s, backlog_s=state.backlog_s, slots=state.slots)
            if spare > best_spare:
                best, best_spare = peer, spare
        if best is None:
            return None if here_s is None else Choice(None, here_s, [(None, here_s)], board.wait_s)
        finish_s, wait_s = board.predict_s(best, job, model)
        return Choice(best, finish_s, [(best, finish_s)], wait_s)

    def observe(self, peer: Peer, *, actual_s: float, waiting_s: float, service_s: float, now_s: float) -> None:
        """Do nothing."""

    def hear(self, peer: Peer, *, now_s: float) -> None:
        """Do nothing."""
