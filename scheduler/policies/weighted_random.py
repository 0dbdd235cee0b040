"""weighted_random: a draw over this node and all eligible peers by their speed for the model. Stable, but blind."""

from scheduler.policy import Board, Choice, Indifferent
from scheduler.types import Job, ModelDigest


class WeightedRandom(Indifferent):
    """Pick a node in proportion to its speed."""

    name = "weighted_random"

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose with chances by speed."""
        here_s, own_s = board.here_s(job, model), board.service_s(model)
        weights: list[float] = []
        peers = board.eligible(model) if board.may_move else []
        for peer in peers:
            state, service = peer.state, peer.service(model)
            assert state is not None, "a peer without a record is not eligible"
            assert service is not None, "a peer without the model is not eligible"
            weights.append(state.slots / max(service.value_s * state.slow_down, 1e-9))
        own = 0.0 if here_s is None or own_s is None else board.config.queue.slots / max(own_s, 1e-9)
        if own + sum(weights) <= 0.0:
            return None
        index = board.rng.choices(range(len(weights) + 1), [*weights, own])[0]
        if index < len(peers):
            peer = peers[index]
            finish_s, wait_s = board.predict_s(peer, job, model)
            return Choice(peer, finish_s, [(peer, finish_s)], wait_s)
        assert here_s is not None, "the draw fell on a node that is not among the choices"
        return Choice(None, here_s, [(None, here_s)], board.wait_s)
