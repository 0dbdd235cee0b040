"""Policies that know what only a simulator can know. Named in scenarios like all others; no daemon can have them.

    oracle                     least true finish over all nodes: the greedy rule with perfect information
    perfect_jsq(d=2)           fewest jobs among d nodes drawn alike, true numbers
    bulletin(d=2, period=2)    the same on numbers that are shown to all every so many seconds; d=all for all nodes

`make` turns a name into the one instance that all cores of a world share; `tune` makes the configuration that such a
policy needs: every node in the active set, no windows, no stealing, so that nothing but the rule decides.

The oracle knows each node's true backlog at this instant, jobs on their way to it included, and the mean service
times; it does not know the draws to come. It is no lower bound: each job is sent where *it* ends first, which at high
load costs the others more than it gains (the rule SED of arXiv:1509.05533, selfish by nature). What no policy can beat
is in `bounds`.
"""

import re
from collections.abc import Mapping
from typing import Final, Protocol

import msgspec

from scheduler.config import CoreConfig
from scheduler.peer import Peer
from scheduler.policy import Board, Choice, Policy
from scheduler.types import Job, ModelDigest, NodeId
from simulator.engine import Engine
from simulator.node import SimNode

ALL: Final = "all"
"""Value of `d` for a comparison of all nodes."""

_RANKING_S: Final = 1.0
"""Age up to which a node's order of its peers is kept, in seconds: links are learned."""
_NAME: Final = re.compile(r"(\w+)\s*(?:\((.*)\))?")


class Fleet(Protocol):
    """What these policies see of a world."""

    engine: Engine
    nodes: dict[str, SimNode]


class OnTheWay:
    """Jobs that were placed and have not come in yet, by target.

    A job has come in when its target holds its key; it is lost from sight when its sender has ended the errand.
    """

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._placed: dict[NodeId, dict[bytes, tuple[float, NodeId, float]]] = {}
        self._seen: dict[NodeId, int] = {}

    def add(self, target: NodeId, *, key: bytes, sender: NodeId, service_s: float) -> None:
        """Note a job that leaves now, with its service time there."""
        self._placed.setdefault(target, {})[key] = (self._fleet.engine.now_s, sender, service_s)

    def look(self, target: NodeId) -> tuple[int, float]:
        """Return how many are on their way to a node, and their service times together in seconds."""
        placed = self._placed.get(target)
        if not placed:
            return 0, 0.0
        nodes, now_s = self._fleet.nodes, self._fleet.engine.now_s
        seen = newest = self._seen.get(target, 0)
        for handle, entry in reversed(nodes[target].jobs.items()):
            if handle <= seen:
                break
            newest = max(newest, handle)
            placed.pop(entry.job.key, None)
        self._seen[target] = newest
        for key in [
            key
            for key, (placed_s, sender, _) in placed.items()
            if placed_s < now_s and (target, key) not in nodes[sender].commands
        ]:
            del placed[key]
        return len(placed), sum([service_s for _, _, service_s in placed.values()])


class _Silent:
    """A policy that learns nothing: what it knows it sees."""

    promises_gain = False
    is_learning = False

    def observe(self, peer: Peer, *, actual_s: float, waiting_s: float, service_s: float, now_s: float) -> None:
        """Do nothing."""

    def hear(self, peer: Peer, *, now_s: float) -> None:
        """Do nothing."""


class _Ranking:
    """One node's peers by the round trip and service that each would take were it idle."""

    def __init__(self, peers: list[Peer], model: ModelDigest, *, turn: int, now_s: float) -> None:
        self.turn = turn
        self.made_s = now_s
        first = turn % len(peers) if peers else 0
        keyed = [(peer.link.rtt_s + peer.capabilities[model][1].mean_s, peer) for peer in peers[first:] + peers[:first]]
        keyed.sort(key=_first)
        self.idle_s = [idle_s for idle_s, _ in keyed]
        self.peers = [peer for _, peer in keyed]


def _first(keyed: tuple[float, Peer]) -> float:
    return keyed[0]


class Oracle(_Silent):
    """Least true finish.

    Parameters
    ----------
    fleet : Fleet
        The world.
    """

    name = "oracle"

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._way = OnTheWay(fleet)
        self._rankings: dict[tuple[NodeId, ModelDigest], _Ranking] = {}

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose as the module says; a job that has moved stays, for it came on the best of news."""
        here_s = board.here_s(job, model)
        if here_s is not None:
            # Jobs that others have sent here come before one that arrives now only if they land first; most do.
            here_s += self._way.look(board.node_id)[1] / board.config.queue.slots
        if not board.may_move or (job.hops and here_s is not None):
            return None if here_s is None else Choice(None, here_s, [(None, here_s)])
        best, best_s, best_service_s = self._best(job, model, board, float("inf") if here_s is None else here_s)
        if best is None:
            return None if here_s is None else Choice(None, here_s, [(None, here_s)])
        self._way.add(best.node_id, key=job.key, sender=board.node_id, service_s=best_service_s)
        looked: list[tuple[Peer | None, float]] = [] if here_s is None else [(None, here_s)]
        return Choice(best, best_s, [*looked, (best, best_s)])

    def _best(self, job: Job, model: ModelDigest, board: Board, best_s: float) -> tuple[Peer | None, float, float]:
        """Return the peer that ends the job first, if any does before a time, its finish and service in seconds.

        Peers are gone through by what they would take were they idle, so that the rest need not be looked at as soon
        as that is no better than the best found.
        """
        now_s, nodes = board.now_s, self._fleet.nodes
        best: Peer | None = None
        best_service_s = 0.0
        ranking = self._ranking(model, board)
        for idle_s, peer in zip(ranking.idle_s, ranking.peers, strict=True):
            net_s = (job.input_bytes + job.output_bytes) / peer.link.goodput_bytes_s
            if idle_s + net_s >= best_s:
                break
            node = nodes[peer.node_id]
            if not node.is_alive or not board.is_eligible(peer):
                continue
            finish_s, service_s = self._finish_s(peer, node, job, model, now_s)
            if finish_s < best_s:
                best, best_s, best_service_s = peer, finish_s, service_s
        return best, best_s, best_service_s

    def _ranking(self, model: ModelDigest, board: Board) -> "_Ranking":
        key = board.node_id, model
        found = self._rankings.get(key)
        if found is None or board.now_s - found.made_s > _RANKING_S:
            # Of equal peers each node tries others first: all would look at the same busy ones otherwise.
            turn = len(self._rankings) if found is None else found.turn
            found = self._rankings[key] = _Ranking(board.eligible(model), model, turn=turn, now_s=board.now_s)
        return found

    def _finish_s(self, peer: Peer, node: SimNode, job: Job, model: ModelDigest, now_s: float) -> tuple[float, float]:
        """Return the seconds until an answer, and the service time in it."""
        state = node.core.state_record(now_s)
        index, capability = peer.capabilities[model]
        service_s = capability.mean_s * state.slow_down
        link = peer.link
        finish_s = link.rtt_s + (job.input_bytes + job.output_bytes) / link.goodput_bytes_s + service_s
        if state.running_until_s > 0.0 or state.slots == 1:
            finish_s += state.backlog_s
        if not state.warm >> index & 1:
            finish_s += capability.load_s
        return finish_s + self._way.look(peer.node_id)[1] / state.slots, service_s


class ShortestQueue(_Silent):
    """Fewest jobs among nodes drawn alike, this one among them; ties go to the one drawn first.

    Parameters
    ----------
    fleet : Fleet
        The world.
    sample : int
        Nodes compared; 0 for all, ties drawn.
    period_s : float, default 0.0
        Age at which the shown numbers are renewed, for all nodes at once; 0 shows them as they are.
    """

    def __init__(self, fleet: Fleet, *, sample: int, period_s: float = 0.0) -> None:
        self.name = "bulletin" if period_s else "perfect_jsq"
        self._fleet = fleet
        self._sample = sample
        self._period_s = period_s
        self._way = OnTheWay(fleet)
        self._shown: dict[NodeId, int] = {}
        if period_s:
            fleet.engine.at(fleet.engine.now_s, self._renew)

    def choose(self, job: Job, model: ModelDigest, board: Board) -> Choice | None:
        """Choose as the class says; a job moves once."""
        here_s = board.here_s(job, model)
        if not board.may_move or (job.hops and here_s is not None):
            return None if here_s is None else Choice(None, here_s, [(None, here_s)])
        nodes: list[Peer | None] = [peer for peer in board.eligible(model) if self._fleet.nodes[peer.node_id].is_alive]
        if here_s is not None:
            nodes.append(None)
        if not nodes:
            return None
        drawn = nodes if not self._sample else board.rng.sample(nodes, min(self._sample, len(nodes)))
        lengths = [self._length(board.node_id if peer is None else peer.node_id) for peer in drawn]
        least = min(lengths)
        first = [peer for peer, length in zip(drawn, lengths, strict=True) if length == least]
        peer = first[0] if self._sample else board.rng.choice(first)
        if peer is None:
            assert here_s is not None, "this node was not among those drawn from"
            return Choice(None, here_s, [(None, here_s)])
        finish_s = board.finish_s(peer, job, model)
        if not self._period_s:
            self._way.add(peer.node_id, key=job.key, sender=board.node_id, service_s=0.0)
        return Choice(peer, finish_s, [(peer, finish_s)])

    def _length(self, name: NodeId) -> int:
        if self._period_s:
            return self._shown.get(name, 0)
        return _present(self._fleet.nodes[name]) + self._way.look(name)[0]

    def _renew(self) -> None:
        self._shown = {name: _present(node) for name, node in self._fleet.nodes.items()}
        engine = self._fleet.engine
        engine.at(engine.now_s + self._period_s, self._renew)


def _present(node: SimNode) -> int:
    """Return the jobs at a node: all it has taken and not passed on."""
    return len(node.jobs) - len(node.errands)


# ---------------------------------------------------------------- names


class OraclePolicyError(ValueError):
    """The name of such a policy has an argument that it does not take."""


def make(name: str, fleet: Fleet) -> Policy | None:
    """Make the policy of a name; one instance serves all cores of a world.

    Parameters
    ----------
    name : str
        `NAME` or `NAME(key=value, ...)`, as the module lists them.
    fleet : Fleet
        The world, with its engine and its (perhaps still empty) table of nodes.

    Returns
    -------
    Policy or None
        None when the name is none of these: then the daemon's registry knows it, or nobody.

    Raises
    ------
    OraclePolicyError
        For an argument that is unknown or out of range.
    """
    match = _NAME.fullmatch(name.strip())
    if match is None or match[1] not in _MAKERS:
        return None
    given = _arguments(match[1], match[2] or "")
    if match[1] == "oracle":
        return Oracle(fleet)
    sample = _sample(match[1], given.get("d", "2"))
    if match[1] == "perfect_jsq":
        return ShortestQueue(fleet, sample=sample)
    return ShortestQueue(fleet, sample=sample, period_s=_period_s(given.get("period", "2")))


_MAKERS: Final[Mapping[str, tuple[str, ...]]] = {"oracle": (), "perfect_jsq": ("d",), "bulletin": ("d", "period")}
"""Arguments by name."""


def names() -> list[str]:
    """Return the names of these policies, sorted."""
    return sorted(_MAKERS)


def is_known(name: str) -> bool:
    """Return whether a name, with or without arguments, is one of these."""
    return name.partition("(")[0].strip() in _MAKERS


def check(name: str) -> None:
    """Check a name that is known, with its arguments, without a world.

    Raises
    ------
    OraclePolicyError
        For one that does not end, or an argument that is unknown or out of range.
    """
    match = _NAME.fullmatch(name.strip())
    if match is None:
        raise OraclePolicyError(f"{name!r} is no policy; write NAME or NAME(key=value, ...)")
    given = _arguments(match[1], match[2] or "")
    _sample(match[1], given.get("d", "2"))
    _period_s(given.get("period", "2"))


def tune(base: CoreConfig, *, nodes: int) -> CoreConfig:
    """Return the configuration under which such a policy sees every node and alone decides.

    Parameters
    ----------
    base : CoreConfig
        Deadlines, shedding and queues stay as they are.
    nodes : int
        Size of the fleet.
    """
    replace = msgspec.structs.replace
    peers = replace(base.peers, active=max(nodes, base.peers.active), peers=max(nodes, base.peers.peers))
    return replace(
        base,
        peers=peers,
        window=replace(base.window, enabled=False),
        steal=replace(base.steal, enabled=False),
        estimate=replace(base.estimate, trust=False),
    )


def _arguments(name: str, text: str) -> dict[str, str]:
    """Read `key=value, ...`."""
    given = {}
    for part in [part.strip() for part in text.split(",") if part.strip()]:
        key, sign, value = [each.strip() for each in part.partition("=")]
        if not sign or key not in _MAKERS[name]:
            takes = ", ".join(_MAKERS[name]) or "none"
            raise OraclePolicyError(f"{name} has no argument {key!r}; it takes: {takes}")
        given[key] = value
    return given


def _sample(name: str, text: str) -> int:
    if text == ALL:
        return 0
    if not text.isdecimal() or not int(text):
        raise OraclePolicyError(f"{name}: d is {text!r}; it must be a whole number from 1 on, or {ALL}")
    return int(text)


def _period_s(text: str) -> float:
    try:
        period_s = float(text)
    except ValueError:
        period_s = 0.0
    if not 0.0 < period_s < float("inf"):
        raise OraclePolicyError(f"bulletin: period is {text!r}; it must be a number of seconds above 0")
    return period_s
