"""Intervals are those of the tables, and paired runs need fewer replications."""

import math
import random

import pytest

from simulator.statistics import batch_means, estimate, paired, quantile, ratio, t_quantile

TABLE = [
    # share, degrees, value: NIST/SEMATECH e-Handbook 1.3.6.7.2, digits beyond by the closed forms for 1 and 2 degrees
    (0.975, 1, 12.7062047364),
    (0.975, 2, 4.3026527297),
    (0.95, 10, 1.8124611228),
    (0.975, 9, 2.2621571628),
    (0.975, 30, 2.0422724563),
    (0.995, 5, 4.0321429836),
]


@pytest.mark.parametrize(("share", "degrees", "value"), TABLE)
def test_t_quantiles_are_those_of_the_tables(share, degrees, value):
    assert t_quantile(share, degrees) == pytest.approx(value, rel=1e-9)
    assert t_quantile(1 - share, degrees) == -t_quantile(share, degrees)


@pytest.mark.parametrize("share", [0.6, 0.9, 0.999, 1 - 1e-6])
def test_t_quantiles_of_one_and_two_degrees_have_closed_forms(share):
    assert t_quantile(share, 1) == pytest.approx(math.tan(math.pi * (share - 0.5)), rel=1e-8)
    assert t_quantile(share, 2) == pytest.approx((2 * share - 1) / math.sqrt(2 * share * (1 - share)), rel=1e-8)


@pytest.mark.parametrize(("share", "degrees"), [(0.0, 5), (1.0, 5), (0.5, 0)])
def test_a_quantile_that_does_not_exist_is_refused(share, degrees):
    with pytest.raises(ValueError, match="no t quantile"):
        t_quantile(share, degrees)


def test_an_interval_holds_the_mean_as_often_as_it_says():
    rng = random.Random("intervals")
    held = sum(estimate([rng.gauss(3.0, 2.0) for _ in range(6)]).holds(3.0) for _ in range(2_000))
    assert 0.935 < held / 2_000 < 0.965


def test_one_value_has_no_interval_and_none_has_no_mean():
    assert estimate([1.0]).half == math.inf
    assert math.isnan(estimate([]).mean)


def test_common_random_numbers_narrow_the_interval_of_the_difference():
    rng = random.Random("pairs")
    shared = [rng.gauss(10.0, 3.0) for _ in range(20)]
    first = [each + rng.gauss(0.5, 0.1) for each in shared]
    difference = paired(first, shared)
    assert difference.low > 0.4
    assert difference.half < 0.1 * estimate(first).half
    with pytest.raises(ValueError, match="cannot be paired"):
        paired([1.0], [])


def test_the_ratio_of_proportional_values_is_exact():
    found = ratio([2.0, 4.0, 9.0], [1.0, 2.0, 4.5])
    assert found.mean == 2.0
    assert found.half == pytest.approx(0.0, abs=1e-12)


def test_batch_means_of_dependent_values_are_wider_than_the_naive_interval():
    rng = random.Random("batches")
    values, now = [], 0.0
    for _ in range(20_000):
        now = 0.95 * now + rng.gauss(0.0, 1.0)
        values.append(now)
    assert batch_means(values).half > 3 * estimate(values).half
    assert batch_means(values).holds(0.0)
    with pytest.raises(ValueError, match="cannot make 20 batches"):
        batch_means(values[:5])


def test_quantiles_lie_between_neighbours():
    assert quantile([1.0, 2.0, 4.0], 0.75) == 3.0
    assert quantile([1.0, 2.0, 4.0], 1.0) == 4.0
    assert math.isnan(quantile([], 0.5))
