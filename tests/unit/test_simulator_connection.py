"""Connections cost their handshakes, and the pool keeps its bounds."""

import pytest

from simulator.config import NetworkConfig
from simulator.connection import DAEMON_POOL, HANDSHAKE_BYTES, HANDSHAKE_CPU_S, Endpoint
from simulator.engine import Engine
from simulator.links import Link
from simulator.network import Network


class Errand:
    """Wants a connection, and notes what became of that."""

    def __init__(self, engine):
        self.engine = engine
        self.connection = None
        self.at_s = None
        self.broken_s = None
        self.unreachable_s = None

    def on_connected(self, connection):
        self.connection = connection
        connection.errand = self
        self.at_s = self.engine.now_s

    def on_unreachable(self):
        self.unreachable_s = self.engine.now_s

    def on_broken(self):
        self.broken_s = self.engine.now_s


class Pair:
    """Two or more endpoints."""

    def __init__(self, link=None, **config):
        self.engine = Engine()
        self.network = Network(self.engine, seed="7", link=link or Link(delay_s=0.01), config=NetworkConfig(**config))
        self.ends = {name: Endpoint(name, self.network) for name in "abcd"}

    def lease(self, target="b"):
        errand = Errand(self.engine)
        errand.pending = self.ends["a"].lease(self.ends[target], errand)
        return errand

    def put_back(self, errand):
        self.ends["a"].put_back(errand.connection)


def test_a_connection_takes_its_round_trips_and_then_none():
    pair = Pair()
    first = pair.lease()
    pair.engine.run(1.0)
    assert first.at_s == pytest.approx(0.06)
    pair.put_back(first)
    again = pair.lease()
    assert again.connection is first.connection
    assert again.at_s == 1.0


def test_a_handshake_costs_the_processors_of_both_sides():
    pair = Pair(connect_cpu_s=HANDSHAKE_CPU_S)
    taken = {"a": [], "b": []}
    for name, times in taken.items():
        pair.ends[name].burden = times.append
    errand = pair.lease()
    pair.engine.run(1.0)
    assert errand.at_s == pytest.approx(0.06 + 2 * HANDSHAKE_CPU_S)
    assert taken == {"a": [HANDSHAKE_CPU_S], "b": [HANDSHAKE_CPU_S]}


def test_the_bytes_of_a_handshake_take_their_time_on_a_narrow_link():
    rate = 10_000.0
    pair = Pair(Link(delay_s=0.01, bytes_per_s=rate), handshake_bytes=HANDSHAKE_BYTES)
    errand = pair.lease()
    pair.engine.run(5.0)
    assert errand.at_s == pytest.approx(0.06 + sum(map(sum, HANDSHAKE_BYTES)) / rate)


def test_whoever_finds_a_peers_bound_reached_waits_for_his_turn():
    pair = Pair(connections_per_peer=2)
    first, second, third = pair.lease(), pair.lease(), pair.lease()
    other = pair.lease("c")
    pair.engine.run(1.0)
    assert None not in (first.connection, second.connection, other.connection)
    assert third.connection is None
    pair.put_back(first)
    assert third.connection is first.connection
    assert third.at_s == 1.0


def test_a_connection_that_broke_makes_room():
    pair = Pair(connections_per_peer=1)
    first, second = pair.lease(), pair.lease()
    pair.engine.run(1.0)
    first.connection.close_asker()
    pair.engine.run(2.0)
    assert second.at_s == pytest.approx(1.06)


def test_one_who_gave_up_waiting_is_passed_over():
    pair = Pair(connections_per_peer=1)
    first, second, third = pair.lease(), pair.lease(), pair.lease()
    pair.engine.run(1.0)
    second.pending.cancel()
    pair.put_back(first)
    assert second.connection is None
    assert third.connection is first.connection


def test_the_connection_idle_longest_makes_room_for_another_peer():
    pair = Pair(connections_max=2, idle_s=60.0)
    to_b, to_c = pair.lease("b"), pair.lease("c")
    pair.engine.run(1.0)
    pair.put_back(to_c)
    pair.engine.run(2.0)
    pair.put_back(to_b)
    to_d = pair.lease("d")
    pair.engine.run(3.0)
    assert to_d.connection is not None
    assert pair.ends["a"].open_peers() == ("b", "d")


def test_an_idle_connection_is_closed_after_a_while_and_a_used_one_is_not():
    pair = Pair(idle_s=5.0)
    errand = pair.lease()
    pair.engine.run(1.0)
    pair.put_back(errand)
    pair.engine.run(4.0)
    again = pair.lease()
    pair.engine.run(7.0)
    assert pair.ends["a"].open_peers() == ("b",)
    pair.put_back(again)
    pair.engine.run(11.9)
    assert pair.ends["b"].open_peers() == ("a",)
    pair.engine.run(12.1)
    assert pair.ends["a"].open_peers() == pair.ends["b"].open_peers() == ()


def test_a_dead_peer_refuses_and_a_silent_one_lets_wait():
    pair = Pair(connections_per_peer=1, connect_timeout_s=2.0)
    pair.ends["b"].break_all()
    pair.network.pause("c")
    refused, silent = pair.lease("b"), pair.lease("c")
    behind = pair.lease("b")
    pair.engine.run(10.0)
    assert refused.unreachable_s == pytest.approx(0.06)
    assert silent.unreachable_s == pytest.approx(2.0)
    assert behind.unreachable_s == pytest.approx(0.12), "his turn came when the first was refused"


def test_closing_a_peer_tells_whoever_talks_to_it():
    pair = Pair()
    told = []
    busy, idle, other = pair.lease("b"), pair.lease("b"), pair.lease("c")
    pair.engine.run(1.0)
    pair.ends["b"].on_peer_closed = told.append
    pair.put_back(idle)
    pair.ends["a"].close_peer("b")
    assert (busy.broken_s, other.broken_s) == (1.0, None)
    assert pair.ends["a"].open_peers() == ("c",)


def test_a_peer_that_dies_is_told_of():
    pair = Pair()
    told = []
    pair.ends["a"].on_peer_closed = told.append
    busy, idle = pair.lease("b"), pair.lease("b")
    pair.engine.run(1.0)
    pair.put_back(idle)
    pair.ends["b"].break_all()
    pair.engine.run(2.0)
    assert told == ["b"]
    assert busy.broken_s == pytest.approx(1.01)


def test_the_daemons_pool_is_a_configuration():
    config = NetworkConfig(**DAEMON_POOL)
    assert config.connections_per_peer == 32
