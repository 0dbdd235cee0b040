"""jiq: join an idle queue: here when idle, else at a peer that was heard to be idle, else anywhere. A baseline.

In the literature (Lu et al. 2011) an idle server registers with one dispatcher. Here all hear of it by its record, so
a token that several hold may be spent several times; a token is dropped when it is used and when its node says that it
is busy.
"""

from scheduler.peer import Peer
from scheduler.policy import Board, Choice
from scheduler.types import Job, ModelDigest, NodeId


class IdleTokens:
    """Spend idle tokens, oldest first.

    Parameters
    ----------
    weighted : bool, default False
        Whether a job without a token goes to a draw by speed rather than an even one. Even draws are unstable on
        unequal nodes.
    """

    name = "jiq"
    promises_gain = False
    is_learning = True

    def __init__(self, *, weighted: bool = False) -> None:
        self._weighted = weighted
        self._tokens: dict[NodeId, None] = {}

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose as the module says."""
        here_s = board.here_s(job, model)
        if here_s is not None and (not board.may_move or not board.jobs_here()):
            return Choice(None, here_s, [(None, here_s)], board.wait_s)
        if not board.may_move:
            return None
        peers = {peer.node_id: peer for peer in board.eligible(model)}
        token = next((each for each in self._tokens if each in peers), None)
        if token is not None:
            del self._tokens[token]
            return _at(peers[token], job, model, board)
        if self._weighted:
            drawn = board.draw(model, 1)
        else:
            # This node is one of them all.
            stays = here_s is not None and board.rng.random() * (len(peers) + 1) < 1.0
            drawn = [] if stays else board.draw_evenly(model, 1)
        if drawn:
            return _at(drawn[0], job, model, board)
        return None if here_s is None else Choice(None, here_s, [(None, here_s)], board.wait_s)

    def observe(self, peer: Peer, *, actual_s: float, waiting_s: float, service_s: float, now_s: float) -> None:
        """Do nothing."""

    def hear(self, peer: Peer, *, now_s: float) -> None:
        """Take or drop the peer's token."""
        state = peer.state
        if state is not None and state.backlog_s <= 0.0 and not state.draining:
            self._tokens.setdefault(peer.node_id)
        else:
            self._tokens.pop(peer.node_id, None)


def _at(peer: Peer, job: Job, model: ModelDigest, board: Board) -> Choice:
    finish_s, wait_s = board.predict_s(peer, job, model)
    return Choice(peer, finish_s, [(peer, finish_s)], wait_s)
