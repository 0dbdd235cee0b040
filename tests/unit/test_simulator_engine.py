"""Calls are made in the order (due time, sequence), cancelled ones never, and streams do not depend on one another."""

import math

import pytest

from simulator.engine import Engine


def test_calls_come_in_order_of_time_and_then_of_asking():
    engine, seen = Engine(1), []
    for due_s, name in [(2.0, "c"), (1.0, "a"), (2.0, "d"), (1.0, "b")]:
        engine.at(due_s, lambda name=name: seen.append((engine.now_s, name)))
    engine.run()
    assert seen == [(1.0, "a"), (1.0, "b"), (2.0, "c"), (2.0, "d")]


def test_soon_comes_behind_what_is_due_now():
    engine, seen = Engine(1), []

    def first():
        engine.soon(lambda: seen.append("soon"))
        seen.append("first")

    engine.at(1.0, first)
    engine.at(1.0, lambda: seen.append("second"))
    engine.run()
    assert seen == ["first", "second", "soon"]


def test_what_was_due_before_now_is_made_now():
    engine, seen = Engine(1), []
    engine.at(3.0, lambda: engine.at(1.0, lambda: seen.append(engine.now_s)))
    engine.run()
    assert seen == [3.0]


def test_cancelled_timers_are_not_made_and_do_not_pile_up():
    engine, seen = Engine(1), []
    kept = engine.at(5.0, lambda: seen.append("kept"))
    for _ in range(20_000):
        engine.at(1000.0, lambda: seen.append("cancelled")).cancel()
    assert len(engine._heap) < 10_000
    engine.run()
    kept.cancel()
    assert seen == ["kept"]


def test_a_run_ends_at_its_time_or_when_stopped():
    engine, seen = Engine(1), []
    for due_s in (1.0, 2.0, 3.0):
        engine.at(due_s, lambda: seen.append(engine.now_s))
    engine.run(2.0)
    assert (seen, engine.now_s) == ([1.0, 2.0], 2.0)
    engine.run(2.5)
    assert (seen, engine.now_s) == ([1.0, 2.0], 2.5)
    engine.at(2.7, engine.stop)
    engine.run()
    assert engine.now_s == 2.7


def test_a_time_that_is_not_a_number_is_refused():
    with pytest.raises(ValueError, match="not a number"):
        Engine(1).at(math.nan, lambda: None)


def test_streams_belong_to_purpose_and_entity():
    def draw(seed, purpose, entity):
        return Engine(seed).stream(purpose, entity).random()

    assert draw(1, "core", "a") == draw(1, "core", "a")
    assert len({draw(1, "core", "a"), draw(2, "core", "a"), draw(1, "service", "a"), draw(1, "core", "b")}) == 4
