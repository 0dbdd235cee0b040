"""The bench of cameras at one node: its camera, its arithmetic, its tables."""

import doctest
import time

import pytest

from benches import cameras
from benches.camera_programs import Camera
from benches.peers.ways import PeerError


def stream(count, *, fps=10.0, age_s=0.05, backlog=0):
    """Make what a camera's program tells: a frame each tick, all answered after the same time."""
    return {
        "offered": count,
        "taken": count,
        "fates": {},
        "answers": [[number / fps, age_s, 0.01] for number in range(count)],
        "backlog": [backlog] * count,
        "cpu_s": 0.1,
        "pss_bytes": 10_000_000,
    }


def run_of(*streams, fps=10.0, mode="newest"):
    return {
        "mode": mode,
        "fps": fps,
        "seconds": 3.0,
        "cameras": list(streams),
        "cpu": {"daemon": 0.1, "worker": 0.5},
        "pss_mb": {"daemon": 50.0, "worker": 60.0},
    }


def test_examples_hold():
    assert doctest.testmod(cameras).failed == 0


def test_frames_that_a_camera_could_not_hand_over_are_its_backlog_and_age_from_their_tick():
    start_s = time.monotonic() - 1.0  # nobody asked for a second
    camera = Camera([b"a", b"b"], start_s=start_s, seconds=1.1, fps=100.0)
    first, second = (frame for frame, _ in zip(camera, range(2), strict=False))
    assert (first, second) == (b"a", b"b")
    assert camera.captured_s[:2] == pytest.approx([start_s, start_s + 0.01])
    assert 100 <= camera.backlog[0] <= 110
    assert camera.offered == 110


def test_a_camera_ends_with_its_time_whatever_still_waits():
    camera = Camera([b"a"], start_s=time.monotonic() - 2.0, seconds=1.0, fps=100.0)
    assert list(camera) == []


def test_goals_are_judged_round_by_round_and_figures_are_medians_of_rounds():
    rounds = [
        {"newest": cameras.figures(run_of(stream(30, age_s=age_s), stream(30, age_s=age_s)))}
        for age_s in (0.05, 0.06, 9.0)
    ]
    row = cameras.judge(rounds, {"cameras": 2, "in_flight": 4})["newest"]
    assert row["age_ms"]["p50"] == pytest.approx(60.0)
    assert row["goals"]["bounded"] == [True, True, False]
    assert row["goals"]["fair"] == [True, True, True]
    assert row["goals"]["bound_ms"] == pytest.approx([2 * 5 / 20 * 1e3 + 100.0] * 3)


def test_backlog_growth_and_an_unequal_share_miss_their_goals():
    slow, quick = stream(10, backlog=5), stream(30, backlog=5)
    quick["answers"][-10:] = [[at_s, age_s + 1.0, run_s] for at_s, age_s, run_s in quick["answers"][-10:]]
    row = cameras.figures(run_of(slow, quick))
    verdict = cameras.goals(row, {"cameras": 2, "in_flight": 4})
    assert [verdict[what] for what in ("no backlog", "fair", "does not grow")] == [False, False, False]


def test_tables_show_every_setting_and_stand_between_the_markers():
    kept = {"cameras": 1, "in_flight": 4}
    found = {"newest": cameras.figures(run_of(stream(30))), "all": cameras.figures(run_of(stream(0), mode="all"))}
    tables = cameras.all_tables({"figures": cameras.judge([found], kept)})
    assert [row[0] for row in tables[0].rows] == ["newest", "all"]
    assert all(len(row) == len(table.columns) for table in tables for row in table.rows)
    with pytest.raises(PeerError, match="needs a line"):
        cameras.between_markers("a page without markers", "figures")
