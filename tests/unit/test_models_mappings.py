"""Programs' memory in a worker: both ends, without a worker."""

import fcntl
import mmap
import os
import threading
from pathlib import Path

import pytest

from models.mappings import LENT_MAX_BYTES, LOANS_MAX, MARGIN_BYTES, Loans, Mappings
from models.segments import SEGMENT_MAX_BYTES, Segment, SegmentRefusedError

SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def memory(size=8192, *, seals=SEALS, flags=os.MFD_ALLOW_SEALING, data=b""):
    descriptor = os.memfd_create("program", flags)
    os.ftruncate(descriptor, size)
    if data:
        os.pwrite(descriptor, data, 0)
    if seals:
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


@pytest.fixture
def segment():
    made = []

    def make(size=8192, **how):
        made.append(Segment(memory(size, **how), size))
        return made[-1]

    yield make
    for each in made:
        each.close()


class Far:
    """What the daemon told a worker."""

    def __init__(self):
        self.has = []
        self.is_full = False
        self.loans = Loans(lend=self.lend, end=self.end)

    def lend(self, segment):
        if not self.is_full:
            self.has.append(segment.number)
        return not self.is_full

    def end(self, number):
        if not self.is_full:
            self.has.remove(number)
        return not self.is_full


# ---------------------------------------------------------------- the daemon's end


def test_a_segment_is_lent_once_and_stays_until_its_program_leaves(segment):
    far, one = Far(), segment()
    assert far.loans.take(one, 100)
    assert far.loans.take(one, 8192 - MARGIN_BYTES)
    assert far.has == [one.number]
    far.loans.give_back(one.number)
    far.loans.give_back(one.number)
    assert far.has == [one.number]
    far.loans.forget(one.number)
    assert (far.has, far.loans.count) == ([], 0)
    far.loans.forget(one.number)


def test_a_run_in_flight_keeps_memory_whose_program_has_left_and_no_other_begins(segment):
    far, one = Far(), segment()
    far.loans.take(one, 100)
    far.loans.forget(one.number)
    assert far.has == [one.number]
    assert not far.loans.take(one, 100)
    far.loans.give_back(one.number)
    assert (far.has, far.loans.count) == ([], 0)


def test_a_payload_at_the_very_end_of_a_segment_is_not_lent(segment):
    far, one = Far(), segment()
    assert not far.loans.take(one, 8192 - MARGIN_BYTES + 1)
    assert far.has == []


def test_the_least_recently_used_segment_without_runs_makes_room(segment):
    far = Far()
    most = LENT_MAX_BYTES // SEGMENT_MAX_BYTES
    many = [segment(SEGMENT_MAX_BYTES) for _ in range(most + 2)]
    for each in many[:most]:
        assert far.loans.take(each, 100)
    for each in many[1:most]:
        far.loans.give_back(each.number)
    assert far.loans.take(many[1], 100)
    far.loans.give_back(many[1].number)
    assert far.loans.take(many[most], 100)
    assert many[2].number not in far.has, "the first is in use, the second was used since"
    assert len(far.has) == most
    for each in (many[1], *many[3:most]):
        assert far.loans.take(each, 100)
    assert not far.loans.take(many[-1], 100), "all are in use"
    assert not far.loans.take(many[2], 100)


def test_segments_are_counted_however_small_they_are(segment):
    far = Far()
    for _ in range(LOANS_MAX + 3):
        one = segment()
        assert far.loans.take(one, 100)
        far.loans.give_back(one.number)
    assert far.loans.count == len(far.has) == LOANS_MAX


def test_a_worker_that_hears_nothing_gets_nothing_and_loses_nothing(segment):
    far, one, other = Far(), segment(), segment()
    far.loans.take(one, 100)
    far.is_full = True
    assert not far.loans.take(other, 100)
    far.loans.forget(one.number)
    far.loans.give_back(one.number)
    assert (far.has, far.loans.count) == ([one.number], 1)
    far.is_full = False
    for _ in range(LOANS_MAX):
        each = segment()
        assert far.loans.take(each, 100)
    assert one.number not in far.has, "it went when its room was needed"


def test_a_segment_that_was_closed_or_could_not_be_mapped_is_not_lent_again(segment):
    far, one, other = Far(), segment(), segment()
    one.close()
    assert not far.loans.take(one, 100)
    far.loans.take(other, 100)
    far.loans.refuse(other.number)
    far.loans.give_back(other.number)
    assert far.has == []
    assert not far.loans.take(other, 100)


# ---------------------------------------------------------------- the worker's end


def test_memory_of_a_program_that_has_left_goes_with_the_last_payload_that_is_read(segment):
    one = segment(1 << 20, data=b"payload")
    payload = one.piece(0, 7)
    one.close()
    assert bytes(payload) == b"payload"
    before = mapped()
    del payload
    assert mapped() == before - 1, "whoever still knows the program keeps its memory"


def mapped():
    return Path("/proc/self/maps").read_text().count("memfd:program")


def test_what_is_mapped_is_the_programs_memory_and_cannot_be_written(segment):
    one = segment(data=b"before")
    mappings = Mappings()
    mappings.map(one.number, one.size_bytes, os.dup(one.descriptor))
    view = mappings.find(one.number)
    assert bytes(view[:6]) == b"before"
    assert view.readonly
    mappings.unmap(one.number)
    assert bytes(view[:6]) == b"before", "whoever reads it keeps it"


def test_a_workers_descriptor_of_a_programs_memory_cannot_write(segment):
    one = segment()
    with pytest.raises(OSError, match=r"Bad file descriptor|not permitted"):
        os.pwrite(one.descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        mmap.mmap(one.descriptor, one.size_bytes)


def huge():
    """Memory of huge pages, where this machine has a kind of them at all."""
    try:
        descriptor = os.memfd_create("program", os.MFD_ALLOW_SEALING | os.MFD_HUGETLB)
    except OSError:
        pytest.skip("this kernel has no huge pages")
    os.ftruncate(descriptor, 2 << 20)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)
    return descriptor


@pytest.mark.parametrize(
    ("make", "size_bytes"),
    [
        (lambda folder: memory(seals=0), 8192),
        (lambda folder: memory(seals=fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW), 8192),
        (lambda folder: memory(seals=fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL), 8192),
        (lambda folder: memory(), 4096),
        (lambda folder: memory(), 16384),
        (lambda folder: memory(), 0),
        (lambda folder: memory(SEGMENT_MAX_BYTES + 4096), SEGMENT_MAX_BYTES + 4096),
        (lambda folder: os.open(folder / "file", os.O_RDWR | os.O_CREAT), 8192),
        (lambda folder: os.open("/dev/zero", os.O_RDWR), 8192),
        (lambda folder: os.eventfd(0), 8192),
        (lambda folder: huge(), 2 << 20),
    ],
    ids=[
        "open",
        "not-for-good",
        "shrinks",
        "larger",
        "smaller",
        "empty",
        "too-large",
        "file",
        "device",
        "pipe",
        "huge",
    ],
)
def test_memory_that_could_make_its_reader_fault_is_refused_at_both_ends(make, size_bytes, tmp_path):
    (tmp_path / "file").write_bytes(bytes(8192))
    before = len(os.listdir("/proc/self/fd"))
    descriptor = make(tmp_path)
    taken = len(os.listdir("/proc/self/fd")) - before
    mappings = Mappings()
    mappings.map(1, size_bytes, os.dup(descriptor))
    assert mappings.find(1) is None
    with pytest.raises(SegmentRefusedError):
        Segment(descriptor, size_bytes)
    assert len(os.listdir("/proc/self/fd")) == before + taken - 1, "both took their descriptor over"


def test_sealed_memory_cannot_be_made_smaller():
    descriptor = memory()
    with pytest.raises(PermissionError):
        os.ftruncate(descriptor, 0)
    os.close(descriptor)


def test_a_run_that_is_ahead_of_its_mapping_waits_for_it(segment):
    one = segment(data=b"data")
    mappings = Mappings()
    found = []
    reader = threading.Thread(target=lambda: found.append(bytes(mappings.find(one.number)[:4])))
    reader.start()
    mappings.map(one.number, one.size_bytes, os.dup(one.descriptor))
    reader.join(5.0)
    assert found == [b"data"]


def test_a_mapping_that_never_comes_is_not_waited_for_long(monkeypatch):
    monkeypatch.setattr("models.mappings.MAP_WAIT_MAX_S", 0.01)
    assert Mappings().find(7) is None
