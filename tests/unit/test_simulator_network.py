"""Messages take the time that delay, jitter, loss and shared bandwidth say, and keep their order."""

import random

import pytest

from simulator.config import NetworkConfig
from simulator.devices import LINKS
from simulator.distributions import Constant
from simulator.engine import Engine
from simulator.flowmodels import CM02, IDEAL, LV08
from simulator.links import (
    TCP_SEGMENT_BYTES,
    TIMEOUT_MIN_S,
    Access,
    Link,
    access_of,
    halved,
    joined,
    repetition_s,
)
from simulator.network import Network


class Line:
    """A network that notes what arrives when."""

    def __init__(self, link=None, **config):
        self.engine = Engine()
        self.network = Network(self.engine, seed="7", link=link, config=NetworkConfig(**config))
        self.heard = []

    def way(self, source, target):
        return self.network.direction(source, target).lane()

    def note(self, what):
        self.heard.append((what, self.engine.now_s))

    def send(self, way, size_bytes, what):
        way.send(size_bytes, self.note, what)

    def run(self):
        self.engine.run()
        return dict(self.heard)


def test_a_plain_link_is_its_delay():
    line = Line(Link(delay_s=0.007))
    line.send(line.way("a", "b"), 10**9, "x")
    assert line.run() == {"x": 0.007}


def test_without_sharing_a_direction_sends_one_message_after_the_other():
    line = Line(Link(delay_s=0.01, bytes_per_s=1e6))
    for what in ("x", "y"):
        line.send(line.way("a", "b"), 500_000, what)
    line.send(line.way("b", "a"), 500_000, "back")
    assert line.run() == pytest.approx({"x": 0.51, "y": 1.01, "back": 0.51})


def test_connections_share_a_link_where_sharing_is_on():
    line = Line(Link(delay_s=0.01, bytes_per_s=1e6), sharing=CM02)
    line.send(line.way("a", "b"), 1_000_000, "x")
    line.send(line.way("a", "b"), 2_000_000, "y")
    assert line.run() == pytest.approx({"x": 2.01, "y": 3.01})


def test_the_factors_of_a_model_count_for_transfers():
    line = Line(Link(delay_s=0.01, bytes_per_s=125_000), sharing=LV08)
    line.send(line.way("a", "b"), 100_000, "x")
    # two directions of their own: acknowledgements do not take of the way there
    assert line.run()["x"] == pytest.approx(0.954842, abs=1e-6)


def test_an_uplink_and_a_downlink_are_shared_by_all_ways_over_them():
    line = Line(sharing=IDEAL)
    for name in "abc":
        line.network.attach(name, Access(latency_s=0.001, up_bytes_s=1e6, down_bytes_s=4e6))
    line.send(line.way("a", "b"), 1_000_000, "ab")
    line.send(line.way("a", "c"), 1_000_000, "ac")
    line.send(line.way("b", "c"), 1_000_000, "bc")
    assert line.run() == pytest.approx({"ab": 2.002, "ac": 2.002, "bc": 1.002})


def test_a_downlink_is_a_bottleneck_of_many_senders():
    line = Line(sharing=IDEAL)
    for name in "abcd":
        line.network.attach(name, Access(latency_s=0.0, up_bytes_s=1e6, down_bytes_s=1.5e6))
    for name in "abc":
        line.send(line.way(name, "d"), 500_000, name)
    assert line.run() == pytest.approx(dict.fromkeys("abc", 1.0))


def test_a_radio_channel_is_crossed_twice_by_what_stays_on_it():
    line = Line(sharing=IDEAL, media={"ap": 10e6})
    for name in "ab":
        line.network.attach(name, Access(latency_s=0.0, medium="ap"))
    line.network.attach("c", Access(latency_s=0.0))
    line.send(line.way("a", "b"), 5_000_000, "inside")
    assert line.run() == pytest.approx({"inside": 1.0})
    line.send(line.way("a", "c"), 5_000_000, "out")
    assert line.run()["out"] == pytest.approx(1.5)


def test_acknowledgements_take_of_the_way_back():
    line = Line(sharing=LV08)
    for name in "ab":
        line.network.attach(name, Access(latency_s=0.0, up_bytes_s=1e6, down_bytes_s=1e6))
    line.send(line.way("a", "b"), 970_000, "there")
    line.send(line.way("b", "a"), 970_000, "back")
    assert line.run() == pytest.approx({"there": 1.05, "back": 1.05})


def test_what_follows_on_a_connection_waits_and_others_do_not():
    line = Line(Link(delay_s=0.01, bytes_per_s=1e6), sharing=IDEAL)
    busy, other = line.way("a", "b"), line.way("a", "b")
    line.send(busy, 1_000_000, "payload")
    line.send(busy, 100, "cancel")
    line.send(other, 1_000, "question")
    heard = line.run()
    assert heard["payload"] == pytest.approx(1.01)
    assert heard["cancel"] == pytest.approx(1.0101)
    assert heard["question"] == pytest.approx(0.012), "at half of the bandwidth"


def test_a_small_message_is_no_flow():
    line = Line(Link(delay_s=0.01, bytes_per_s=1e6), sharing=IDEAL)
    way = line.way("a", "b")
    line.send(way, TCP_SEGMENT_BYTES, "small")
    line.engine.run()
    assert line.network.flows.begun == 0
    line.send(way, TCP_SEGMENT_BYTES + 1, "large")
    line.engine.run()
    assert line.network.flows.begun == 1


def test_a_link_without_a_rate_is_as_cheap_with_sharing():
    line = Line(Link(delay_s=0.01), sharing=LV08)
    assert line.network.direction("a", "b").is_plain
    line.send(line.way("a", "b"), 10**9, "x")
    assert line.run() == {"x": 0.01}


def test_a_rate_that_changes_counts_for_what_is_under_way():
    line = Line(sharing=IDEAL)
    line.network.attach("a", Access(latency_s=0.0, up_bytes_s=1e6))
    line.send(line.way("a", "b"), 2_000_000, "x")
    line.engine.at(1.0, line.network.attach, "a", Access(latency_s=0.0, up_bytes_s=0.25e6))
    assert line.run()["x"] == pytest.approx(5.0, rel=1e-3)


def test_messages_of_a_way_keep_their_order_whatever_the_jitter():
    line = Line(Link(delay_s=0.01, jitter=(LINKS["wifi"].jitter,), loss=0.2))
    way = line.way("a", "b")
    for number in range(200):
        line.engine.at(number * 0.01, line.send, way, 1000, number)
    line.engine.run()
    assert [what for what, _ in line.heard] == list(range(200))


def test_a_stall_holds_up_what_is_sent_meanwhile_once():
    line = Line(Link(delay_s=0.01, jitter=(Constant(0.5),), coherence_s=10.0))
    way = line.way("a", "b")
    for at_s in (0.0, 0.2, 0.6):
        line.engine.at(at_s, line.send, way, 100, at_s)
    assert line.run() == pytest.approx({0.0: 0.51, 0.2: 0.51, 0.6: 0.61})


def test_draws_of_one_way_do_not_shift_those_of_another():
    def times(extra):
        line = Line(Link(delay_s=0.01, jitter_s=0.02))
        if extra:
            line.send(line.way("a", "c"), 1, "extra")
        for number in range(5):
            line.engine.at(float(number), line.send, line.way("a", "b"), 1, number)
        heard = line.run()
        heard.pop("extra", None)
        return heard

    assert times(extra=True) == times(extra=False)


def mean_lateness_s(size_bytes, loss, rtt_s, count=20_000):
    rng = random.Random("loss")
    return sum(repetition_s(rng, size_bytes, loss=loss, rtt_s=rtt_s) for _ in range(count)) / count


def test_a_lost_small_message_waits_for_timeouts_that_double():
    """Each of k losses in a row: 200 ms, then 400, ...: the mean is p T sum of (2p)^k."""
    loss = 0.1
    expected_s = loss * TIMEOUT_MIN_S / (1 - 2 * loss)
    assert mean_lateness_s(100, loss, 0.01) == pytest.approx(expected_s, rel=0.1)


def test_a_loss_within_a_long_message_costs_a_round_trip():
    segments, loss, rtt_s = 100, 0.001, 0.05
    body = 1 - (1 - loss) ** (segments - 3)
    tail = 1 - (1 - loss) ** 3
    expected_s = body * rtt_s + tail * TIMEOUT_MIN_S
    assert mean_lateness_s(segments * TCP_SEGMENT_BYTES, loss, rtt_s) == pytest.approx(expected_s, rel=0.1)


def test_loss_bounds_a_long_transfer():
    """Mathis: MSS / RTT * sqrt(3 / 2p)."""
    link = Link(delay_s=0.05, loss=0.01, bytes_per_s=1e9)
    assert link.bound_bytes_s() == pytest.approx(1448 / 0.1 * 150**0.5)
    line = Line(link, sharing=IDEAL)
    line.send(line.way("a", "b"), 1_773_430, "x")
    assert line.run()["x"] >= 10.0


def test_two_halves_are_a_link():
    a, b = access_of(LINKS["wifi"]), access_of(LINKS["5g"])
    link = joined(a, b)
    assert link.delay_s == pytest.approx(0.0025 + 0.01667)
    assert link.bytes_per_s == a.up_bytes_s
    assert joined(b, a).bytes_per_s == b.up_bytes_s
    assert link.loss == pytest.approx(0.005995)
    assert len(link.jitter) == 2
    whole = Link(delay_s=0.01, bytes_per_s=5.0)
    assert joined(halved(whole), halved(whole)) == whole


def test_a_partition_holds_what_is_under_way_and_heals():
    for config in ({}, {"sharing": IDEAL}):
        line = Line(Link(delay_s=0.01, bytes_per_s=1e6), **config)
        way = line.way("a", "b")
        line.send(way, 100_000, "x")
        line.engine.at(0.05, line.network.partition, ["a"], ["b"])
        line.engine.at(5.0, line.network.heal)
        assert line.run()["x"] == pytest.approx(5.01)


def test_a_removed_node_sends_nothing_and_a_restored_one_does():
    line = Line(Link(delay_s=0.01))
    line.network.remove("a")
    line.send(line.way("a", "b"), 1, "lost")
    line.network.restore("a")
    line.send(line.way("a", "b"), 1, "sent")
    assert line.run() == {"sent": 0.01}


def test_traffic_is_counted_where_it_is_asked_for():
    line = Line(Link(), is_metered=True)
    assert line.network.direction("a", "b").is_limited, "sizes are computed"
    for size in (100, 200):
        line.send(line.way("a", "b"), size, size)
    line.run()
    assert line.network.traffic() == {"a": (2, 300)}


@pytest.mark.parametrize(
    "make",
    [
        lambda: Link(loss=1.0),
        lambda: Link(delay_s=-1.0),
        lambda: Link(bytes_per_s=0.0),
        lambda: Link(gossip_loss=2.0),
        lambda: Access(loss=-0.1),
        lambda: Access(up_bytes_s=0.0),
        lambda: Access(latency_s=-1.0),
    ],
)
def test_links_without_a_meaning_are_refused(make):
    with pytest.raises(ValueError, match=r"must|all from"):
        make()
