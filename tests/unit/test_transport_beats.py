"""Timers that need no exact moment ring at the same ones."""

import pytest

from transport.beats import next_beat_s


@pytest.mark.parametrize("period_s", [0.5, 1.0, 10.0])
@pytest.mark.parametrize("now_s", [0.0, 0.3, 17.5, 123456.789, 999999.5])
def test_the_next_beat_is_later_by_a_period_at_most(now_s, period_s):
    beat_s = next_beat_s(now_s, period_s)
    assert now_s < beat_s <= now_s + period_s
    assert beat_s % period_s == 0.0


def test_a_long_period_ends_with_a_short_one():
    shorts = set()
    now_s = 731000.2
    while now_s < 731060.0:
        now_s = next_beat_s(now_s, 1.0)
        shorts.add(now_s)
    assert {next_beat_s(731000.2 + 10.0 * i, 10.0) for i in range(5)} <= shorts
