"""Draws have the mean and the variation that their distribution tells."""

import math
import random

import pytest

from simulator.distributions import (
    Constant,
    Empirical,
    Erlang,
    Exponential,
    Gamma,
    Hyperexponential,
    Lognormal,
    Quantiles,
    Uniform,
    lognormal_of_quantiles,
)

ALL = [
    Constant(0.2),
    Gamma(0.2, 0.5),
    Gamma(0.2, 2.0),
    Lognormal(0.2, 0.2),
    Lognormal(0.2, 1.0),
    Exponential(0.2),
    Erlang(0.2, 4),
    Hyperexponential(0.2, 2.0),
    Uniform(0.1, 0.3),
    Empirical((0.1, 0.1, 0.3, 0.9)),
    Quantiles(((0.0, 0.1), (0.5, 0.2), (0.99, 0.5), (1.0, 2.0))),
]
DRAWS = 20_000


@pytest.mark.parametrize("law", ALL, ids=repr)
def test_draws_have_the_mean_and_the_variation_that_are_told(law):
    rng = random.Random("distributions")
    draws = [law.draw_s(rng) for _ in range(DRAWS)]
    mean_s = math.fsum(draws) / DRAWS
    squares = [(draw - mean_s) ** 2 for draw in draws]
    variance = math.fsum(squares) / DRAWS
    assert min(draws) >= 0.0
    assert mean_s == pytest.approx(law.mean_s, abs=4 * math.sqrt(law.cv2 / DRAWS) * law.mean_s + 1e-12)
    error = math.sqrt(math.fsum([(square - variance) ** 2 for square in squares])) / DRAWS
    assert variance / mean_s**2 == pytest.approx(law.cv2, abs=5 * error / mean_s**2 + 0.02 * law.cv2 + 1e-12)


def test_an_erlang_of_one_stage_is_exponential():
    assert Erlang(0.2, 1).cv2 == Exponential(0.2).cv2


def test_a_lognormal_has_the_quantiles_it_was_made_of():
    law = lognormal_of_quantiles(median_s=0.005, p99_s=0.09)
    draws = sorted(law.draw_s(random.Random(f"{number}")) for number in range(5000))
    assert draws[2500] == pytest.approx(0.005, rel=0.05)
    assert draws[4950] == pytest.approx(0.09, rel=0.2)


def test_empirical_values_scale_to_a_mean_and_keep_their_shape():
    law = Empirical((0.1, 0.2, 0.6))
    assert law.scaled(3.0).mean_s == pytest.approx(3.0)
    assert law.scaled(3.0).cv2 == pytest.approx(law.cv2)


def test_quantiles_are_hit():
    law = Quantiles(((0.0, 1.0), (0.5, 2.0), (1.0, 10.0)))
    draws = sorted(law.draw_s(random.Random(f"{number}")) for number in range(4001))
    assert draws[0] >= 1.0
    assert draws[2000] == pytest.approx(2.0, rel=0.05)
    assert draws[-1] <= 10.0


@pytest.mark.parametrize(
    "make",
    [
        lambda: Gamma(0.0, 1.0),
        lambda: Lognormal(1.0, 0.0),
        lambda: Exponential(-1.0),
        lambda: Erlang(1.0, 0),
        lambda: Hyperexponential(1.0, 1.0),
        lambda: Uniform(2.0, 1.0),
        lambda: Empirical(()),
        lambda: Empirical((1.0, -1.0)),
        lambda: Quantiles(((0.0, 1.0), (0.9, 2.0))),
        lambda: Quantiles(((0.0, 2.0), (1.0, 1.0))),
        lambda: lognormal_of_quantiles(median_s=1.0, p99_s=1.0),
    ],
)
def test_values_without_a_meaning_are_refused(make):
    with pytest.raises(ValueError, match=r"must|needed|take"):
        make()


@pytest.mark.parametrize("cv", [0.05, 0.2, 3.0])
def test_lognormal_draws_are_those_of_the_standard_library_to_the_last_bit(cv):
    ours, theirs = random.Random("7"), random.Random("7")
    variance = math.log1p(cv**2)
    for _ in range(1000):
        drawn = theirs.lognormvariate(math.log(0.263) - variance / 2, math.sqrt(variance))
        assert Lognormal(0.263, cv).draw_s(ours) == drawn
    assert ours.random() == theirs.random()
