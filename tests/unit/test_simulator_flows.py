"""Bandwidth is shared max-min fairly, as by hand and by SimGrid."""

import itertools
import random
from math import inf

import pytest

from simulator.engine import Engine
from simulator.flowchecks import FLOW_CHECKS, FlowCase, WireCase, transfer_times_s
from simulator.flowmodels import CM02, IDEAL
from simulator.flows import Flows, Resource, fair_rates


@pytest.mark.parametrize("check", FLOW_CHECKS, ids=lambda check: check.name)
def test_a_case_takes_as_long_as_is_known(check):
    assert check.times_s() == pytest.approx(check.expected_s, abs=1e-6)


def test_the_round_trip_does_not_bias_the_shares():
    """With shares in inverse proportion to round trips the ends would be 9.75, 10.375 and 7.5 s."""
    links = {"left": WireCase(10e6, 1e-9), "right": WireCase(4e6, 1e-9)}
    flows = [FlowCase(80e6, ("left",)), FlowCase(20e6, ("left", "right")), FlowCase(20e6, ("right",))]
    assert transfer_times_s(links, flows, IDEAL) == pytest.approx([10.0, 10.0, 10.0], abs=1e-6)


def test_a_flow_speeds_up_when_another_ends_and_slows_down_when_one_begins():
    wire = {"wire": WireCase(1e6)}
    flows = [FlowCase(3e6, ("wire",)), FlowCase(1e6, ("wire",), start_s=1.0)]
    # 1 MB alone, 1 MB at half speed until 3.0, the last one alone
    assert transfer_times_s(wire, flows, IDEAL) == pytest.approx([4.0, 3.0])


def test_what_a_bounded_flow_leaves_goes_to_the_others():
    engine = Engine()
    flows, wire = Flows(engine), Resource(10.0)
    ends = {}
    for name, bound in (("slow", 1.0), ("a", inf), ("b", inf)):
        flows.start(9.0, ((wire, 1.0),), lambda name: ends.update({name: engine.now_s}), name, bound_bytes_s=bound)
    engine.run()
    assert ends == pytest.approx({"slow": 9.0, "a": 2.0, "b": 2.0})


def test_only_the_component_of_a_changed_flow_is_computed_anew(monkeypatch):
    import simulator.flows

    sizes = []
    monkeypatch.setattr(simulator.flows, "fair_rates", lambda flows: sizes.append(len(flows)) or fair_rates(flows))
    engine = Engine()
    flows = Flows(engine)
    wires = [Resource(1e6) for _ in range(50)]
    for wire in wires:
        flows.start(1e6, ((wire, 1.0),), int)
    assert sizes == []
    flows.start(1e6, ((wires[0], 1.0), (wires[1], 1.0)), int)
    assert sizes == [3]


def test_another_bandwidth_counts_from_then_on():
    engine = Engine()
    flows, wire = Flows(engine), Resource(1e6)
    ends = []
    flows.start(2e6, ((wire, 1.0),), lambda: ends.append(engine.now_s))
    engine.at(1.0, flows.change, wire, 0.5e6)
    engine.run()
    assert ends == pytest.approx([3.0])
    with pytest.raises(ValueError, match="above 0"):
        flows.change(wire, 0.0)


def make_flows(rng):
    """Draw a net of flows, and tie them to their resources."""
    wires = [Resource(rng.uniform(1.0, 10.0)) for _ in range(6)]
    found = []
    engine = Engine()
    network = Flows(engine)
    for _ in range(12):
        uses = tuple((wire, rng.choice([1.0, 1.05, 2.0])) for wire in rng.sample(wires, rng.randint(1, 3)))
        bound = rng.choice([inf, inf, rng.uniform(0.1, 2.0)])
        network.start(1e6, uses, int, bound_bytes_s=bound)
    for wire in wires:
        found += [flow for flow in wire.flows if flow not in found]
    return wires, found


@pytest.mark.parametrize("seed", range(20))
def test_shares_are_feasible_and_each_flow_has_a_bottleneck(seed):
    """Max-min: every flow is at its bound, or crosses a full resource where none is faster."""
    wires, flows = make_flows(random.Random(seed))
    rates = dict(fair_rates(flows))
    used = {wire: sum(weight * rates[flow] for flow, weight in wire.flows.items()) for wire in wires}
    assert all(used[wire] <= wire.bytes_per_s * (1 + 1e-9) for wire in wires)
    for flow in flows:
        full = [wire for wire, _ in flow.uses if used[wire] >= wire.bytes_per_s * (1 - 1e-9)]
        is_bound = rates[flow] >= flow.bound_bytes_s * (1 - 1e-9)
        assert is_bound or any(rates[flow] >= max(rates[other] for other in wire.flows) * (1 - 1e-9) for wire in full)


def test_bytes_are_neither_lost_nor_made():
    """A wire that is never idle moves its bandwidth, however its flows come and go."""
    rng = random.Random(7)
    sizes = [rng.uniform(1e3, 1e6) for _ in range(200)]
    starts = sorted(rng.uniform(0.0, 1.0) for _ in sizes)
    flows = [FlowCase(size, ("wire",), start_s=at_s) for size, at_s in zip(sizes, starts, strict=True)]
    ends = transfer_times_s({"wire": WireCase(1e6)}, flows, CM02)
    assert max(ends) == pytest.approx(starts[0] + sum(sizes) / 1e6, rel=1e-9)
    assert all(end >= at + size / 1e6 * (1 - 1e-9) for end, at, size in zip(ends, starts, sizes, strict=True))
    assert len(set(itertools.chain(ends))) == 200
