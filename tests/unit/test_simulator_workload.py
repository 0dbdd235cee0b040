"""Arrivals have the rate and the burstiness that their law says."""

import random
from collections import Counter
from itertools import islice, pairwise, takewhile

import pytest

from simulator.engine import stream
from simulator.workload import (
    Camera,
    Draw,
    GammaRenewal,
    Mmpp,
    MovingHotSpot,
    Poisson,
    Replay,
    SquareWave,
    rates_hz,
    zipf,
)


def times_until(law, end_s, seed="7"):
    return list(takewhile(lambda at_s: at_s < end_s, law.times_s(stream(seed, "arrivals", "x"), 0.0)))


def idc(times, window_s, end_s):
    """Return variance over mean of the counts in windows."""
    counts = Counter(int(at_s / window_s) for at_s in times)
    values = [counts[number] for number in range(int(end_s / window_s))]
    mean = sum(values) / len(values)
    return sum((each - mean) ** 2 for each in values) / (len(values) - 1) / mean


@pytest.mark.parametrize(
    ("law", "rate_hz"),
    [
        (Poisson(5.0), 5.0),
        (Mmpp(burst_hz=15.0, calm_hz=2.5, burst_s=2.0, calm_s=8.0), 5.0),
        (SquareWave(burst_hz=15.0, calm_hz=2.5, burst_s=2.0, calm_s=8.0), 5.0),
        (GammaRenewal(5.0, 0.5), 5.0),
        (GammaRenewal(5.0, 4.0), 5.0),
        (Camera(5.0, 0.001), 5.0),
        (Camera(30.0, 0.001, on_s=5.0, off_s=20.0), 6.0),
    ],
)
def test_laws_have_their_rate_and_ascend(law, rate_hz):
    times = times_until(law, 16_000.0)
    assert len(times) / 16_000.0 == pytest.approx(rate_hz, rel=0.15)
    assert times == sorted(times)
    assert times[0] >= 0.0


def test_mmpp_has_the_dispersion_of_its_formula():
    law = Mmpp(burst_hz=15.0, calm_hz=2.5, burst_s=2.0, calm_s=8.0)
    assert law.mean_hz == pytest.approx(5.0)
    assert law.idc == pytest.approx(1 + 2 * 12.5**2 * 0.5 * 0.125 / (0.625**2 * (15 * 0.125 + 2.5 * 0.5)))
    measured = idc(times_until(law, 40_000.0), 100.0, 40_000.0)
    assert measured == pytest.approx(law.idc, rel=0.2)


@pytest.mark.parametrize("cv", [0.5, 1.0, 2.0, 4.0])
def test_gamma_renewals_have_their_variation_and_its_square_as_dispersion(cv):
    times = times_until(GammaRenewal(20.0, cv), 10_000.0)
    gaps = [b - a for a, b in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5
    assert deviation / mean == pytest.approx(cv, rel=0.03)
    assert idc(times, 50.0, 10_000.0) == pytest.approx(cv**2, rel=0.3)


def test_a_renewal_process_is_as_likely_to_begin_at_any_time():
    """The first arrival of 4,000 such processes: the mean of an equilibrium residual is (1 + cv^2) / 2 rates."""
    firsts = [next(GammaRenewal(1.0, 2.0).times_s(random.Random(f"7/{n}"), 0.0)) for n in range(4_000)]
    assert sum(firsts) / len(firsts) == pytest.approx(2.5, rel=0.1)


def test_rates_of_bursts_keep_the_mean():
    assert rates_hz(10.0, burst=5.0, burst_s=2.0, calm_s=8.0) == (50.0, 0.0)


def test_cameras_keep_their_period_and_phase():
    aligned = list(islice(Camera(10.0, is_aligned=True).times_s(random.Random("1"), 2.0), 3))
    assert aligned == pytest.approx([2.0, 2.1, 2.2])
    first, second = islice(Camera(10.0).times_s(random.Random("1"), 2.0), 2)
    assert 2.0 <= first < 2.1
    assert second - first == pytest.approx(0.1)


def test_a_camera_without_motion_is_silent():
    times = times_until(Camera(10.0, on_s=5.0, off_s=20.0), 1_000.0)
    gaps = [b - a for a, b in pairwise(times)]
    assert max(gaps) > 10.0
    assert all(gap == pytest.approx(round(gap * 10) / 10, abs=1e-6) for gap in gaps)


def test_a_recording_is_replayed_faster_and_thinned():
    law = Replay(recorded_s=tuple(float(n) for n in range(1000)), speed_up=2.0, keep=0.5)
    times = list(law.times_s(random.Random("1"), 10.0))
    assert 400 < len(times) < 600
    assert {(at_s - 10.0) * 2.0 % 1.0 for at_s in times} == {0.0}


def test_zipf_and_hot_spots_draw_with_their_shares():
    rng = random.Random("1")
    assert sum(zipf(10, 0.9)) == pytest.approx(1.0)
    drawn = Counter(Draw(zipf(4, 1.0))(rng) for _ in range(20_000))
    assert drawn[0] / drawn[3] == pytest.approx(4.0, rel=0.1)
    hot = MovingHotSpot(Draw(zipf(4, 0.0)), count=4, share=0.5, every_s=10.0)
    drawn = Counter(hot(rng, 25.0) for _ in range(20_000))
    assert drawn[2] / 20_000 == pytest.approx(0.625, rel=0.03)
    assert drawn[0] / 20_000 == pytest.approx(0.125, rel=0.1)
