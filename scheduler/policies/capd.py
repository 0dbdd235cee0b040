"""capd, the default: capacity-weighted draws of a few peers, least predicted finish among them, move only for a gain.

Of d = 3 peers, drawn in proportion to their speed for the model, the one with the least predicted finish is taken if
it beats staying by the hysteresis. The prediction counts own jobs on their way, and states come with every answer.

Why draws: the best of all peers on news that is older than a service time sends everybody to the same node
(Mitzenmacher 2000, "How Useful Is Old Information?"; two or three random choices are robust). Why by speed: uniform
draws over unequal servers are unstable far below capacity (arXiv:2004.00538).
"""

from scheduler.policy import Board, Choice
from scheduler.types import Job, ModelDigest
from scheduler.view import Peer


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
            return None if here_s is None else Choice(None, here_s, looked)
        placement = board.config.placement
        limit_s = float("inf") if here_s is None else (1.0 - placement.hysteresis) * here_s
        if here_s is not None and not board.can_beat(model, limit_s):
            return Choice(None, here_s, looked)
        best: Peer | None = None
        best_s = float("inf")
        for peer in board.draw(model, placement.sample):
            finish_s = board.finish_s(peer, job, model)
            looked.append((peer, finish_s))
            # Ties go to the one drawn first, which is as random as the draw.
            if finish_s < best_s:
                best, best_s = peer, finish_s
        if best is not None and best_s < limit_s:
            return Choice(best, best_s, looked)
        return None if here_s is None else Choice(None, here_s, looked)

    def observe(self, peer: Peer, *, actual_s: float, waiting_s: float, service_s: float, now_s: float) -> None:
        """Do nothing: the estimators learn for all policies."""

    def hear(self, peer: Peer, *, now_s: float) -> None:
        """Do nothing."""
