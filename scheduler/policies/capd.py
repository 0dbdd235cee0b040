"""capd, the default: capacity-weighted draws of a few peers, least cost among them, move only for a gain.

Of d = 3 peers, drawn in proportion to their speed for the model, the one with the least cost is taken if its predicted
finish is sooner than here and its cost beats staying by the hysteresis.

    cost = finish + weight x wait,    in seconds

The finish is what the job itself is after. The wait in it is counted once more, by a weight, since who joins a queue
makes all wait longer who come until it is empty, and the more so the longer it is: choosing by the finish alone fills
the fast nodes until they are no better than the slow ones, for everybody. The prediction counts own jobs on their
way, states come with every answer, and old ones revert to their mean (scheduler.view).

Why draws: the best of all peers on news that is older than a service time sends everybody to the same node
(Mitzenmacher 2000, "How Useful Is Old Information?"; two or three random choices are robust). Why by speed: uniform
draws over unequal servers are unstable far below capacity (arXiv:2004.00538).
"""

from scheduler.peer import Peer
from scheduler.policy import Board, Choice
from scheduler.types import Job, ModelDigest


class CapacityDraw:
    """The default policy. Stealing, its receiver-initiated half, is the core's (scheduler.stealing)."""

    name = "capd"
    promises_gain = True
    is_learning = False

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose as the module says."""
        here_s = board.here_s(job, model)
        looked: list[tuple[Peer | None, float]] = []
        if here_s is not None:
            looked.append((None, here_s))
        if not board.may_move:
            return None if here_s is None else Choice(None, here_s, looked, board.wait_s)
        placement = board.config.placement
        weight = placement.wait_weight
        limit_s = float("inf") if here_s is None else (1.0 - placement.hysteresis) * (here_s + weight * board.wait_s)
        if here_s is not None and not board.can_beat(model, limit_s):
            return Choice(None, here_s, looked, board.wait_s)
        best: Peer | None = None
        best_s = best_wait_s = 0.0
        for peer in board.draw(model, placement.sample):
            finish_s, wait_s = board.predict_s(peer, job, model)
            looked.append((peer, finish_s))
            cost_s = finish_s + weight * wait_s
            # Ties go to the one drawn first, which is as random as the draw.
            if cost_s < limit_s and (here_s is None or finish_s < here_s):
                best, best_s, best_wait_s, limit_s = peer, finish_s, wait_s, cost_s
        if best is not None:
            return Choice(best, best_s, looked, best_wait_s)
        return None if here_s is None else Choice(None, here_s, looked, board.wait_s)

    def observe(self, peer: Peer, *, actual_s: float, waiting_s: float, service_s: float, now_s: float) -> None:
        """Do nothing: the estimators learn for all policies."""

    def hear(self, peer: Peer, *, now_s: float) -> None:
        """Do nothing."""
