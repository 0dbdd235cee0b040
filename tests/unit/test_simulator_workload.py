"""Workloads have their rates, keep their order, and one source does not shift another."""

import itertools
import random

import pytest

from simulator.workload import Request, camera, merge, poisson


def request(client="c", **fields):
    return Request(entry="a", client=client, models=("m",), **fields)


def take(source, count):
    return list(itertools.islice(source, count))


def test_poisson_arrivals_have_mean_and_variance_of_their_rate():
    jobs = take(poisson(request(), rate_hz=50.0, rng=random.Random(1)), 10_000)
    gaps = [after.arrival_s - before.arrival_s for before, after in itertools.pairwise(jobs)]
    mean_s = sum(gaps) / len(gaps)
    assert mean_s == pytest.approx(0.02, abs=3 * 0.02 / len(gaps) ** 0.5)
    assert sum((gap - mean_s) ** 2 for gap in gaps) / len(gaps) == pytest.approx(0.02**2, rel=0.1)


def test_keys_are_unique_and_deadlines_follow_the_budget():
    sources = [poisson(request(name, budget_s=0.5), rate_hz=9.0, rng=random.Random(name)) for name in "xyz"]
    jobs = list(merge(sources, until_s=20.0))
    assert len({job.key for job in jobs}) == len(jobs)
    assert {len(job.key) for job in jobs} == {24}
    assert all(job.deadline_s == job.arrival_s + 0.5 for job in jobs)
    assert jobs == sorted(jobs, key=lambda job: job.arrival_s)
    assert jobs[-1].arrival_s < 20.0


def test_a_camera_is_periodic_and_its_frames_are_numbered():
    frames = take(camera(request("film", newest_wins=True), rate_hz=10.0, rng=random.Random(3), start_s=2.0), 5)
    assert [frame.frame for frame in frames] == [0, 1, 2, 3, 4]
    assert [frame.arrival_s - frames[0].arrival_s for frame in frames] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    assert 2.0 <= frames[0].arrival_s < 2.1
    assert {(frame.stream, frame.newest_wins) for frame in frames} == {("film", True)}


def test_jitter_keeps_the_frames_in_order():
    frames = take(camera(request(), rate_hz=10.0, rng=random.Random(3), jitter_s=0.099), 500)
    assert frames == sorted(frames, key=lambda frame: frame.arrival_s)


@pytest.mark.parametrize(
    "make",
    [
        lambda: request("a name that is far too long"),
        lambda: request(input_bytes=(2, 1)),
        lambda: request(budget_s=0.0),
        lambda: next(poisson(request(), rate_hz=0.0, rng=random.Random(1))),
        lambda: next(camera(request(), rate_hz=10.0, rng=random.Random(1), jitter_s=0.1)),
    ],
)
def test_workloads_without_a_meaning_are_refused(make):
    with pytest.raises(ValueError, match=r"longer than|smaller size|above 0|below the period"):
        make()
