"""round_robin: this node and all eligible peers in turn. Blind to speed and load, like uniform draws; a baseline."""

from scheduler.policy import Board, Choice, Indifferent
from scheduler.types import Job, ModelDigest, NodeId


class RoundRobin(Indifferent):
    """Take turns, in the order of the nodes' ids; each node has its own turn."""

    name = "round_robin"

    def __init__(self) -> None:
        self._last: NodeId = ""

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose the next one after the last."""
        here_s = board.here_s(job, model)
        places = {peer.node_id: peer for peer in board.eligible(model)} if board.may_move else {}
        ids = sorted(places) if here_s is None else sorted([*places, board.node_id])
        if not ids:
            return None
        chosen = next((each for each in ids if each > self._last), ids[0])
        self._last = chosen
        peer = places.get(chosen)
        if peer is not None:
            finish_s, wait_s = board.predict_s(peer, job, model)
            return Choice(peer, finish_s, [(peer, finish_s)], wait_s)
        assert here_s is not None, "the turn came to a node that is not among the choices"
        return Choice(None, here_s, [(None, here_s)], board.wait_s)
