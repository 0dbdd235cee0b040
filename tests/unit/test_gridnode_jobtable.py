"""The table of jobs at a node."""

from gridnode.jobtable import JobEntry, JobTable
from scheduler.types import Job


def job(number):
    return Job(key=bytes([number]) * 24, entry="n", input_bytes=3, arrival_s=0.0, deadline_s=1.0, models=("m",))


def test_a_job_is_there_until_its_one_outcome():
    table = JobTable()
    handles = [table.mint() for _ in range(3)]
    assert len(set(handles)) == 3
    for handle in handles:
        table.add(
            JobEntry(handle=handle, job=job(handle), body=b"", payload=(b"abc", memoryview(b"de")), responder=None)
        )
    assert len(table) == 3
    assert table.payload_bytes() == 15
    entry = table.get(handles[1])
    assert table.pop(handles[1]) is entry
    assert table.pop(handles[1]) is None
    assert table.get(handles[1]) is None
    assert (len(table), table.payload_bytes()) == (2, 10)


def test_handles_are_never_used_twice():
    table = JobTable()
    first = table.mint()
    table.pop(first)
    assert table.mint() != first


def test_keys_of_a_peer_are_those_it_waits_for_oldest_first():
    table = JobTable()
    for handle, (peer, key) in enumerate([("a", b"1"), ("b", b"2"), ("a", b"3"), ("a", b"4")], start=1):
        table.open_for(peer, handle, key)
    assert table.keys_of("a", 10) == (b"1", b"3", b"4")
    table.close_for("a", 1)
    assert table.keys_of("a", 1) == (b"3",)
    table.close_for("b", 2)
    assert table.keys_of("b", 10) == ()
