"""The best fixed shares of several models: against the exact answer for one, and against chance."""

import random

import pytest

from simulator.bounds import NodeClass, OverloadError, static_split, zero_queue_of_models_s
from simulator.splitting import static_split_of_models_s

SLOW = {"count": 16, "service_s": 0.263, "cv2": 0.04}
FAST = {"count": 4, "service_s": 0.0113, "cv2": 0.04}


def fleet(load, *, slow=SLOW, fast=FAST, transfer_s=0.007):
    whole_hz = slow["count"] / slow["service_s"] + fast["count"] / fast["service_s"]
    each_hz = load * whole_hz / (slow["count"] + fast["count"])
    return [NodeClass(**kind, arrivals_hz=each_hz, transfer_s=transfer_s) for kind in (slow, fast)]


@pytest.mark.parametrize("load", [0.3, 0.7, 0.95])
def test_one_model_is_split_as_the_exact_answer_says(load):
    assert static_split_of_models_s({"m": fleet(load)}) == pytest.approx(static_split(fleet(load)).mean_s, rel=1e-4)


def test_one_model_under_two_names_is_one_model():
    halves = {name: fleet(0.35) for name in ("a", "b")}
    assert static_split_of_models_s(halves) == pytest.approx(static_split(fleet(0.7)).mean_s, rel=1e-3)


def test_models_go_where_they_are_served_best():
    # Each node type is good at one of two models: crosswise would be ten times as slow.
    a = [NodeClass(count=2, service_s=0.01, cv2=1.0, arrivals_hz=25.0), NodeClass(count=2, service_s=0.1, cv2=1.0)]
    b = [NodeClass(count=2, service_s=0.1, cv2=1.0), NodeClass(count=2, service_s=0.01, cv2=1.0, arrivals_hz=25.0)]
    assert static_split_of_models_s({"a": a, "b": b}) == pytest.approx(0.01 / (1 - 0.25), rel=1e-6)


def test_no_random_shares_are_better_and_no_bound_is_broken():
    light = fleet(0.4)
    heavy = fleet(0.3, slow=SLOW | {"service_s": 1.0}, fast=FAST | {"service_s": 0.05})
    found_s = static_split_of_models_s({"light": light, "heavy": heavy})
    assert found_s >= zero_queue_of_models_s({"light": light, "heavy": heavy})
    rng = random.Random(1)
    tried = 0
    while tried < 2000:
        spent = total_hz = 0.0
        shares = [rng.random(), rng.random()]
        for index in (0, 1):
            rates = []
            for share, classes in zip(shares, (light, heavy), strict=True):
                whole_hz = sum(each.count * each.arrivals_hz for each in classes)
                total_hz += whole_hz * (index == 0)
                rates.append((share if index == 0 else 1 - share) * whole_hz / classes[index].count)
            nodes = (light[index], heavy[index])
            load = sum(rate * node.service_s for rate, node in zip(rates, nodes, strict=True))
            if load >= 1.0:
                break
            square = sum(rate * node.service_s**2 * 1.04 for rate, node in zip(rates, nodes, strict=True))
            moved = sum(max(0.0, rate - node.arrivals_hz) * 0.007 for rate, node in zip(rates, nodes, strict=True))
            spent += nodes[0].count * (load + sum(rates) * square / (2 * (1 - load)) + moved)
        else:
            tried += 1
            assert found_s <= spent / total_hz * (1 + 1e-6)


def test_more_than_can_be_served_is_said():
    with pytest.raises(OverloadError, match="lower the load"):
        static_split_of_models_s({"a": fleet(0.7), "b": fleet(0.7)})
