"""The virtual clock makes calls in a definite order."""

import pytest

from simulator.engine import Engine, stream


def test_calls_are_made_in_order_of_time_and_then_of_asking():
    engine = Engine()
    made = []
    engine.at(2.0, made.append, "late")
    engine.at(1.0, made.append, "first")
    engine.at(1.0, made.append, "second")
    assert engine.run() == 3
    assert made == ["first", "second", "late"]
    assert engine.now_s == 2.0


def test_a_call_taken_back_is_not_made():
    engine = Engine()
    made = []
    number = engine.at(1.0, made.append, "never")
    engine.at(2.0, made.append, "once")
    engine.cancel(number)
    assert engine.run() == 1
    assert made == ["once"]


def test_many_calls_taken_back_leave_the_others():
    engine = Engine()
    made = []
    for number in [engine.at(1.0 + i, made.append, i) for i in range(10_000)][::2]:
        engine.cancel(number)
    assert engine.run(8_000.0) == 4_000
    assert engine.run() == 1_000
    assert made == list(range(1, 10_000, 2))


def test_the_clock_ends_where_it_was_told_to():
    engine = Engine(start_s=5.0)
    engine.at(9.0, pytest.fail, "too late")
    assert engine.run(8.0) == 0
    assert engine.now_s == 8.0


def test_the_past_cannot_be_planned():
    engine = Engine(start_s=5.0)
    with pytest.raises(AssertionError):
        engine.at(4.0, print)


def test_draws_of_one_entity_do_not_shift_anothers():
    before = stream("7", "arrivals", "a").random()
    stream("7", "arrivals", "b").random()
    assert stream("7", "arrivals", "a").random() == before
    assert stream("8", "arrivals", "a").random() != before
