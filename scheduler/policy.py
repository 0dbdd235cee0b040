"""What a placement policy is, what it may look at, and how it is found by name.

A policy answers one question: where should this job run with this model, here or at which peer? Everything else is
the core's: admission, deadlines, rungs, hop limit, visited nodes, retries, offers, the queue. So the same rules hold
for every policy, and comparisons in the simulator compare the choice and nothing else.

A policy is one module in `scheduler.policies` with one class that has a `name`. The `Board` offers what the published
rules need:

* random and round robin, also weighted, and least advertised queue: `draw`, `eligible`, states of the peers;
* join the shortest of d queues, shortest expected delay over d or over all: `draw` or `eligible`, `finish_s`;
* rules that rank by past answers (C3, Prequal): `observe` tells of every answer;
* idle tokens (JIQ): `hear` tells of every record that is news;
* a rule with perfect information: its constructor takes what only a simulator can know, and the instance is passed
  to the core instead of a name.
"""

import random
from collections.abc import Callable
from importlib import import_module
from typing import Protocol

from scheduler.config import CoreConfig
from scheduler.peer import Peer
from scheduler.types import Job, ModelDigest, NodeId, SchedulerError


class Choice:
    """A policy's answer for one job and one model.

    Parameters
    ----------
    peer : Peer or None
        Where to; None for here.
    finish_s : float
        Predicted seconds until done there.
    looked : list of (Peer or None, float)
        All that was compared, with the prediction of each; None stands for this node.
    wait_s : float, default 0.0
        Part of `finish_s` that is a wait in a queue: the part that may turn out wrong.
    """

    __slots__ = ("finish_s", "looked", "peer", "wait_s")

    def __init__(
        self, peer: Peer | None, finish_s: float, looked: list[tuple[Peer | None, float]], wait_s: float = 0.0
    ) -> None:
        self.peer = peer
        self.finish_s = finish_s
        self.looked = looked
        self.wait_s = wait_s


class Board(Protocol):
    """What a policy may look at while it decides on one job."""

    config: CoreConfig
    """All parameters."""
    rng: random.Random
    """The node's source of draws."""
    now_s: float
    """Present time in seconds."""
    node_id: NodeId
    """Id of this node."""
    may_move: bool
    """Whether the job may leave this node at all."""
    wait_s: float
    """Predicted wait of the job for a slot here, in seconds: part of what `here_s` says."""

    def here_s(self, job: Job, model: ModelDigest) -> float | None:
        """Predict the seconds until done here; None when this node may not or cannot run it."""

    def backlog_s(self) -> float:
        """Return this node's own backlog per slot, in seconds."""

    def service_s(self, model: ModelDigest) -> float | None:
        """Return this node's own service time in seconds; None when it has not got the model."""

    def draw(self, model: ModelDigest, count: int) -> list[Peer]:
        """Draw distinct eligible peers of the active set in proportion to their speed for the model."""

    def draw_evenly(self, model: ModelDigest, count: int) -> list[Peer]:
        """Draw distinct eligible peers of the active set, all alike. O(active set)."""

    def eligible(self, model: ModelDigest) -> list[Peer]:
        """Return all eligible peers of the active set, in a stated order. O(active set)."""

    def is_eligible(self, peer: Peer) -> bool:
        """Return whether the job at hand may go to a peer now."""

    def jobs_here(self) -> int:
        """Return how many jobs wait or are served here."""

    def jobs_at(self, peer: Peer, model: ModelDigest) -> int:
        """Return how many jobs of a model an eligible peer's record amounts to, with own ones on their way."""

    def finish_s(self, peer: Peer, job: Job, model: ModelDigest) -> float:
        """Predict the seconds until an eligible peer's answer would be back here."""

    def predict_s(self, peer: Peer, job: Job, model: ModelDigest) -> tuple[float, float]:
        """Predict what `finish_s` does and, in it, the wait in the peer's queue, both in seconds."""

    def probe(self, peer: Peer) -> bool:
        """Ask a peer for its state, to be heard later; False when too many questions are open."""

    @property
    def asked(self) -> "list[Peer] | None":
        """Peers that were asked for this job and may take it, fresh where they answered; None when none were."""

    def can_beat(self, model: ModelDigest, finish_s: float) -> bool:
        """Return whether any peer, were it idle, could be done before that; errs on the side of yes."""


class Policy(Protocol):
    """A rule for where a job runs."""

    name: str
    promises_gain: bool
    """Whether it never moves a job without a predicted gain over staying: then the core holds it to that."""
    is_learning: bool
    """Whether it wants `observe` and `hear` called."""

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose a node for a job and a model; None when no node that may have it can run it."""

    def observe(self, peer: Peer, *, actual_s: float, waiting_s: float, service_s: float, now_s: float) -> None:
        """Learn of a peer's answer: its whole time as seen here, and its parts as the peer tells them, in seconds."""

    def hear(self, peer: Peer, *, now_s: float) -> None:
        """Learn of a newer record of a peer."""


Ask = Callable[[Job, ModelDigest, Board], list[Peer]]
"""Names the peers to be asked how they stand before a job is placed; none for no questions."""


def asker(policy: Policy) -> Ask | None:
    """Return the method `ask` of a policy whose jobs wait until some peers have answered; None for all others."""
    ask: Ask | None = getattr(policy, "ask", None)
    return ask


class Indifferent:
    """What rules have in common that look at the board alone: they learn nothing and promise nothing."""

    promises_gain = False
    is_learning = False

    def observe(self, peer: Peer, *, actual_s: float, waiting_s: float, service_s: float, now_s: float) -> None:
        """Do nothing."""

    def hear(self, peer: Peer, *, now_s: float) -> None:
        """Do nothing."""


_MODULES = {
    "c3": "scheduler.policies.c3:CubicRank",
    "capd": "scheduler.policies.capd:CapacityDraw",
    "jiq": "scheduler.policies.jiq:IdleTokens",
    "jsed": "scheduler.policies.jsed:ExpectedDelayDraw",
    "jsed_all": "scheduler.policies.jsed:LeastExpectedDelay",
    "jsq": "scheduler.policies.jsq:ShortestQueueDraw",
    "least_queue": "scheduler.policies.least_queue:LeastQueue",
    "local_only": "scheduler.policies.local_only:LocalOnly",
    "max_spare": "scheduler.policies.max_spare:MaxSpare",
    "prequal": "scheduler.policies.prequal:HotCold",
    "probe": "scheduler.policies.probe:AskedDraw",
    "random": "scheduler.policies.uniform_random:UniformRandom",
    "round_robin": "scheduler.policies.round_robin:RoundRobin",
    "steal_only": "scheduler.policies.steal_only:StealOnly",
    "weighted_random": "scheduler.policies.weighted_random:WeightedRandom",
}
"""Where each shipped policy lives. Loaded on demand, so that a node does not pay for experiments."""

_registered: dict[str, Callable[..., Policy]] = {}


def register(name: str, make: Callable[..., Policy]) -> None:
    """Make a policy known under a name: for experiments that live outside this package.

    Raises
    ------
    ValueError
        When the name is taken.
    """
    if name in _MODULES or name in _registered:
        raise ValueError(f"a policy named {name!r} exists already; choose another name")
    _registered[name] = make


def names() -> list[str]:
    """Return the names of all known policies, sorted."""
    return sorted([*_MODULES, *_registered])


def make_policy(name: str, **parameters: float) -> Policy:
    """Make the policy of a name without arguments; `parameters` go to its constructor.

    Raises
    ------
    SchedulerError
        When there is none.
    """
    if name in _registered:
        return _registered[name](**parameters)
    where = _MODULES.get(name)
    if where is None:
        raise SchedulerError(f"no policy is named {name!r}; there are {', '.join(names())}")
    module, _, attribute = where.partition(":")
    policy: Policy = getattr(import_module(module), attribute)(**parameters)
    return policy
