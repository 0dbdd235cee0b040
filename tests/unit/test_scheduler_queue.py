import pytest

from scheduler.queue import LocalQueue, Streams, Waiting
from scheduler.types import SchedulerError


def waiting(handle, *, deadline_s=1.0, priority=1, service_s=0.1, model="m"):
    return Waiting(handle=handle, model=model, service_s=service_s, priority=priority, deadline_s=deadline_s)


def test_the_earliest_deadline_is_served_first():
    """Liu and Layland 1973, section 7: earliest deadline first."""
    queue = LocalQueue()
    for handle, deadline_s in [(1, 3.0), (2, 1.0), (3, 2.0)]:
        queue.insert(waiting(handle, deadline_s=deadline_s))
    assert [queue.pop_first().handle for _ in range(3)] == [2, 3, 1]


def test_a_smaller_priority_goes_before_any_deadline():
    queue = LocalQueue()
    queue.insert(waiting(1, deadline_s=1.0, priority=1))
    queue.insert(waiting(2, deadline_s=9.0, priority=0))
    assert queue.pop_first().handle == 2


def test_a_job_that_has_the_place_of_another_is_served_in_its_turn():
    queue = LocalQueue()
    queue.insert(waiting(1, deadline_s=2.0))
    queue.insert(Waiting(handle=2, model="m", service_s=0.1, priority=1, deadline_s=3.0, turn_s=1.0))
    assert queue.ahead_s(priority=1, deadline_s=1.5) == 0.1
    assert queue.pop_first().handle == 2


def test_equal_jobs_are_served_in_order_of_arrival():
    queue = LocalQueue()
    for handle in (5, 3, 4):
        queue.insert(waiting(handle))
    assert [each.handle for each in queue.from_front(9)] == [5, 3, 4]


def test_a_newcomer_waits_for_those_with_deadlines_up_to_its_own():
    queue = LocalQueue()
    queue.insert(waiting(1, deadline_s=1.0, service_s=0.1))
    queue.insert(waiting(2, deadline_s=2.0, service_s=0.2))
    queue.insert(waiting(3, deadline_s=3.0, service_s=0.4))
    assert queue.ahead_s(priority=1, deadline_s=2.0) == pytest.approx(0.3)
    assert queue.ahead_s(priority=0, deadline_s=9.0) == 0.0
    assert queue.ahead_s(priority=2, deadline_s=0.0) == pytest.approx(0.7)


def test_a_handle_waits_once():
    queue = LocalQueue()
    queue.insert(waiting(1))
    with pytest.raises(SchedulerError, match="job 1 waits already"):
        queue.insert(waiting(1))


def test_an_empty_queue_has_nothing():
    queue = LocalQueue()
    assert queue.first() is None
    assert queue.last() is None
    assert queue.remove(1) is None
    assert queue.ahead_s(priority=1, deadline_s=1.0) == 0.0
    with pytest.raises(IndexError, match="empty"):
        queue.pop_first()


def test_ends_and_membership():
    queue = LocalQueue()
    for handle in (1, 2, 3):
        queue.insert(waiting(handle, deadline_s=float(handle)))
    assert queue.first().handle == 1
    assert queue.last().handle == 3
    assert 2 in queue
    queue.remove(2)
    assert 2 not in queue
    assert len(queue) == 2


def test_the_sum_has_no_rounding_residue():
    queue = LocalQueue()
    for handle in range(1000):
        queue.insert(waiting(handle, service_s=0.1))
    for handle in range(1000):
        queue.remove(handle)
    assert queue.total_s == 0.0


def test_streams_know_older_and_newer_frames():
    streams = Streams()
    streams.add(client="c", stream="door", frame=4, handle=40)
    streams.add(client="c", stream="door", frame=2, handle=20)
    streams.add(client="d", stream="door", frame=1, handle=11)
    assert streams.older(client="c", stream="door", frame=5) == [20, 40]
    assert streams.older(client="c", stream="door", frame=4) == [20]
    assert streams.newer(client="c", stream="door", frame=3)
    assert not streams.newer(client="c", stream="door", frame=4)
    assert not streams.newer(client="x", stream="door", frame=0)
    streams.discard(client="c", stream="door", frame=4, handle=40)
    streams.discard(client="c", stream="door", frame=9, handle=90)
    streams.discard(client="c", stream="door", frame=2, handle=20)
    assert streams.older(client="c", stream="door", frame=5) == []
