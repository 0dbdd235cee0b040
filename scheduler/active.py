"""The active set: the few dozen peers that jobs are placed on, and drawing some of them per decision.

The set is drawn by speed and one member is exchanged every few seconds, so connections stay warm, a decision costs the
same in a grid of any size, and still every node is met in time. Within the set, peers are drawn in proportion to
their speed for the model at hand: uniform draws over unequal servers are not throughput-optimal (Hurtado-Lange and
Maguluri, arXiv:2004.00538).
"""

import math
import random
from bisect import bisect_right
from itertools import accumulate

from scheduler.config import CoreConfig
from scheduler.peer import Peer
from scheduler.types import ModelDigest
from scheduler.view import View

_FRESHNESS_FLOOR = 0.1
"""Share of its weight that a peer keeps however old its record is: age is no verdict."""

_TRIES_PER_DRAW = 8
"""Draws per wanted peer before the rest is taken in order: bounds the work when few may be taken."""


class Pool:
    """Peers that have one model, with their cumulative weights."""

    __slots__ = ("built_s", "cumulative", "least_s", "peers", "version")

    def __init__(
        self, peers: list[Peer], cumulative: list[float], *, least_s: float, built_s: float, version: int
    ) -> None:
        self.peers = peers
        self.cumulative = cumulative
        self.least_s = least_s
        """Shortest round trip and service of any of them, were it idle."""
        self.built_s = built_s
        self.version = version


class ActiveSet:
    """Peers that jobs are placed on.

    Parameters
    ----------
    view : View
        All peers.
    config : CoreConfig
        Size of the set, time between exchanges, age of weights.
    rng : random.Random
        Source of all draws.
    now_s : float
        Time of the start in seconds.
    """

    __slots__ = (
        "_clocks",
        "_config",
        "_members",
        "_pools",
        "_refresh_s",
        "_rng",
        "_seen_version",
        "_view",
        "next_exchange_s",
    )

    def __init__(self, view: View, config: CoreConfig, *, rng: random.Random, now_s: float) -> None:
        self._view = view
        self._config = config
        self._rng = rng
        self._members: dict[str, Peer] = {}
        self._pools: dict[ModelDigest, Pool] = {}
        self._seen_version = -1
        self._clocks: dict[str, float] = {}
        """When the clocks ring that the members are the first of; none while there is room for all."""
        self._refresh_s = config.peers.pool_refresh_s
        self.next_exchange_s = now_s + config.peers.replace_every_s

    def __len__(self) -> int:
        """Count the members that are still known. A gauge: unlike `members` it draws nobody new."""
        peers = self._view.peers
        return sum(1 for node_id, peer in self._members.items() if peers.get(node_id) is peer)

    def members(self) -> list[Peer]:
        """Return the members, in the order in which they came."""
        self._fill()
        return list(self._members.values())

    def exchange(self, now_s: float) -> None:
        """Replace one member, when there are others."""
        self.next_exchange_s = now_s + self._config.peers.replace_every_s
        self._fill()
        if len(self._view.listed) <= len(self._members) or len(self._members) < self._config.peers.active:
            return
        leaving = self._rng.choice(list(self._members))
        newcomer = self._draw_newcomers(1)
        if newcomer:
            del self._members[leaving]
            self._members[newcomer[0].node_id] = newcomer[0]
            self._clocks[newcomer[0].node_id] = self._clocks.pop(leaving, math.inf)
            self._pools.clear()

    def pool(self, model: ModelDigest, now_s: float) -> Pool:
        """Return the peers that have a model, with weights at most `pool_refresh_s` old."""
        pool = self._pools.get(model)
        if pool is not None and pool.version == self._view.version and now_s - pool.built_s <= self._refresh_s:
            return pool
        self._fill()
        holders = [peer for peer in self._members.values() if model in peer.capabilities]
        if len(holders) < self._config.placement.sample and len(self._view.listed) > len(self._members):
            holders += self._more_holders(model)
        period_s = self._view.expected_period_s()
        weights = [self._weight(peer, model, now_s, period_s) for peer in holders]
        least_s = min([_least_s(peer, model) for peer in holders], default=math.inf)
        pool = Pool(holders, list(accumulate(weights)), least_s=least_s, built_s=now_s, version=self._view.version)
        if len(self._pools) >= self._config.peers.table_entries:
            self._pools.clear()
        self._pools[model] = pool
        return pool

    def draw(self, pool: Pool, count: int, *, avoid: tuple[str, ...], now_s: float) -> list[Peer]:
        """Draw distinct peers that a job may go to, by weight.

        Parameters
        ----------
        pool : Pool
            Where from.
        count : int
            How many at most, >= 1.
        avoid : tuple of str
            Nodes the job must not go to.
        now_s : float
            Present time in seconds.

        Returns
        -------
        list of Peer
            Fewer than `count` when there are no more.
        """
        peers, cumulative = pool.peers, pool.cumulative
        found: list[Peer] = []
        total = cumulative[-1] if cumulative else 0.0
        if total <= 0.0:
            return found
        if len(peers) > count:
            draw = self._rng.random
            # What Peer.may_take says is spelled out here: it is asked for more often than anything else.
            for _ in range(_TRIES_PER_DRAW * count):
                index = bisect_right(cumulative, draw() * total)
                # Rounding may carry the product up to the total itself.
                peer = peers[index if index < len(peers) else -1]
                if (
                    peer.is_open
                    and peer.blocked_until_s <= now_s
                    and len(peer.shipments) < peer.window.size
                    and peer not in found
                    and peer.node_id not in avoid
                ):
                    found.append(peer)
                    if len(found) == count:
                        return found
        for peer in peers:
            if peer not in found and peer.node_id not in avoid and peer.may_take(now_s):
                found.append(peer)
                if len(found) == count:
                    break
        return found

    def draw_any(self, count: int) -> list[Peer]:
        """Draw up to `count` distinct peers of the whole view, all alike: victims of a steal."""
        listed = self._view.listed
        if len(listed) <= count:
            return list(listed)
        return self._rng.sample(listed, count)

    def _fill(self) -> None:
        if self._seen_version == self._view.version:
            return
        self._seen_version = self._view.version
        self._pools.clear()
        peers = self._view.peers
        for node_id in [each for each, peer in self._members.items() if peers.get(each) is not peer]:
            del self._members[node_id]
            self._clocks.pop(node_id, None)
        limit = self._config.peers.active
        if len(self._view.listed) <= limit:
            for peer in self._view.listed:
                self._members.setdefault(peer.node_id, peer)
            return
        self._sift(self._view.take_rated())
        if len(self._members) < limit:
            # Who comes in for one that left has no clock earlier than those it was too late for before.
            rings_s = max(self._clocks.values(), default=math.inf)
            for peer in self._draw_newcomers(limit - len(self._members)):
                self._members[peer.node_id] = peer
                self._clocks[peer.node_id] = rings_s

    def _sift(self, rated: list[Peer]) -> None:
        """Let those in whose clocks ring before those of members: so the set is a draw from all met so far.

        The first peers heard of are not the fastest, and all nodes hear of the same ones first. A grid that doubles
        costs each node as many exchanges as the set has members times ln 2, at most.
        """
        members, clocks = self._members, self._clocks
        for node_id in members:
            # It came in while there was room for all; its clock is set as soon as it is rated.
            clocks.setdefault(node_id, math.inf)
        for peer in rated:
            if self._view.peers.get(peer.node_id) is not peer or not peer.speed or not peer.is_reachable:
                continue
            rings_s = self._rng.expovariate(peer.speed)
            if peer.node_id in members:
                clocks[peer.node_id] = min(rings_s, clocks[peer.node_id])
            elif len(members) < self._config.peers.active:
                members[peer.node_id] = peer
                clocks[peer.node_id] = rings_s
            else:
                last = max(clocks, key=clocks.__getitem__)
                if rings_s < clocks[last]:
                    del members[last], clocks[last]
                    members[peer.node_id] = peer
                    clocks[peer.node_id] = rings_s

    def _draw_newcomers(self, count: int) -> list[Peer]:
        """Draw from all non-members by speed, without replacement.

        The peers whose exponential clocks ring first are such a draw (Efraimidis and Spirakis 2006, algorithm A-Res,
        with -log u in place of u).
        """
        draw = self._rng.expovariate
        members = self._members
        keyed = [
            (draw(peer.speed), place, peer)
            for place, peer in enumerate(self._view.listed)
            if peer.speed > 0 and peer.is_reachable and peer.node_id not in members
        ]
        keyed.sort(key=lambda each: each[:2])
        return [peer for _, _, peer in keyed[:count]]

    def _more_holders(self, model: ModelDigest) -> list[Peer]:
        """Find others that have a model which is rare in the set; a scan, so only when the weights are made anew."""
        members = self._members
        holders = [peer for peer in self._view.listed if model in peer.capabilities and peer.node_id not in members]
        limit = self._config.peers.active
        return holders if len(holders) <= limit else self._rng.sample(holders, limit)

    def _weight(self, peer: Peer, model: ModelDigest, now_s: float, period_s: float) -> float:
        state = peer.state
        service = peer.service(model)
        if state is None or service is None:
            return 0.0
        service_s = service.value_s * state.slow_down * peer.trust.factor(now_s)
        if model not in peer.warm_models:
            service_s += peer.capabilities[model][1].load_s
        periods = (now_s - peer.heard_s) / period_s
        limit = self._config.peers.fresh_periods
        freshness = 1.0 if periods <= limit else max(_FRESHNESS_FLOOR, limit / periods)
        return freshness * state.slots / max(service_s, 1e-6)


def _least_s(peer: Peer, model: ModelDigest) -> float:
    state, service = peer.state, peer.service(model)
    if state is None or service is None:
        return math.inf
    return peer.link.rtt_s + service.value_s * state.slow_down
