import pytest

from gridnode.errors import JobRejectedError
from gridnode.window import HELD_FACTOR, Window


def end(flight):
    flight.error = JobRejectedError("no")


def send(window):
    flight = window.take_to_send()
    assert flight is not None
    return flight


def test_all_makes_the_source_wait():
    window = Window(mode="all", in_flight=1)
    window.arrive("f0")
    first = send(window)
    assert window.can_arrive
    window.arrive("f1")
    assert not window.can_arrive
    assert window.take_to_send() is None
    end(first)
    assert window.can_send
    second = send(window)
    assert (first.frame, second.frame, second.image) == (0, 1, "f1")


def test_newest_replaces_the_waiting_frame():
    window = Window(mode="newest", in_flight=1)
    window.arrive("f0")
    first = send(window)
    for number in range(1, 1000):
        window.arrive(f"f{number}")
    end(first)
    last = send(window)
    assert last.frame == 999
    end(last)
    window.source_ended = True
    outcomes = []
    while not window.is_finished:
        assert window.has_outcome
        outcomes.append(window.take_outcome())
    assert outcomes == [first, *range(1, 999), last]


def test_skipped_frames_take_no_room():
    window = Window(mode="newest", in_flight=1)
    for _ in range(100_000):
        window.arrive("f")
    assert len(window._order) == 1


def test_outcomes_come_in_order_of_frames_and_hold_the_window_bounded():
    window = Window(mode="all", in_flight=2)
    window.arrive("slow")
    slow = send(window)
    held = 0
    while True:
        window.arrive("fast")
        flight = window.take_to_send()
        if flight is None:
            break
        end(flight)
        held += 1
    assert held == 2 * HELD_FACTOR - 1
    assert not window.has_outcome
    end(slow)
    assert window.take_outcome() is slow
    assert window.can_send


@pytest.mark.parametrize(("mode", "in_flight"), [("latest", 1), ("all", 0), ("all", 257)])
def test_wrong_arguments_are_refused(mode, in_flight):
    with pytest.raises(ValueError, match=r"mode|in_flight"):
        Window(mode=mode, in_flight=in_flight)
