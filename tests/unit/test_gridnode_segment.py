import errno
import fcntl
import mmap
import os

import pytest

from gridnode import segment
from gridnode.control import SEGMENT_MAX_BYTES
from gridnode.segment import BLOCK_BYTES, Segment
from models.segments import check_memory

KEYS = [bytes([number]) * 24 for number in range(8)]


class Reader:
    """Keeps the memory it is handed."""

    def __init__(self):
        self.descriptor = -1

    def __call__(self, descriptor):
        self.descriptor = os.dup(descriptor)

    def read(self, start, size_bytes):
        return os.pread(self.descriptor, size_bytes, start)


@pytest.fixture
def reader():
    reader = Reader()
    yield reader
    if reader.descriptor >= 0:
        os.close(reader.descriptor)


@pytest.fixture
def memory(reader):
    memory = Segment(reader)
    yield memory
    memory.close()


def test_payloads_lie_where_they_are_said_to(memory, reader):
    first = memory.put(KEYS[0], (b"abc", b"", memoryview(b"defg")), 7)
    second = memory.put(KEYS[1], (bytearray(b"h" * BLOCK_BYTES),), BLOCK_BYTES)
    assert reader.read(first, 7) == b"abcdefg"
    assert reader.read(second, BLOCK_BYTES) == b"h" * BLOCK_BYTES
    assert abs(first - second) >= BLOCK_BYTES


def test_a_block_is_used_again_once_it_is_released(memory):
    place = memory.put(KEYS[0], (b"a" * 9000,), 9000)
    other = memory.put(KEYS[1], (b"b" * 9000,), 9000)
    assert other != place
    memory.release(KEYS[0])
    memory.release(KEYS[0])
    memory.release(KEYS[7])
    assert memory.put(KEYS[2], (b"c" * 9000,), 9000) == place


def test_what_does_not_fit_has_no_place_until_room_is_made(memory):
    whole = bytes(SEGMENT_MAX_BYTES)
    assert memory.put(KEYS[0], (b"a",), 1) is not None
    assert memory.put(KEYS[1], (whole,), len(whole)) is None
    memory.release(KEYS[1])
    memory.release(KEYS[0])
    assert memory.put(KEYS[1], (whole,), len(whole)) == 0


def test_the_memory_is_sealed_as_its_readers_insist_and_they_cannot_write(memory, reader):
    check_memory(reader.descriptor, SEGMENT_MAX_BYTES)
    with pytest.raises(OSError, match="not permitted"):
        os.ftruncate(reader.descriptor, 1)
    with pytest.raises(OSError, match="not permitted"):
        mmap.mmap(reader.descriptor, SEGMENT_MAX_BYTES)
    with mmap.mmap(reader.descriptor, SEGMENT_MAX_BYTES, prot=mmap.PROT_READ) as view:
        place = memory.put(KEYS[0], (b"seen",), 4)
        assert view[place : place + 4] == b"seen"


def test_a_kernel_without_the_newest_seal_gives_the_others(reader, monkeypatch):
    add_seals = fcntl.fcntl

    def old(descriptor, command, argument=0):
        if command == fcntl.F_ADD_SEALS and argument & segment._SEAL_FUTURE_WRITE:
            raise OSError(errno.EINVAL, "Invalid argument")
        return add_seals(descriptor, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", old)
    memory = Segment(reader)
    check_memory(reader.descriptor, SEGMENT_MAX_BYTES)
    memory.close()


def test_no_descriptor_stays_behind():
    def refuse(descriptor):
        raise BrokenPipeError

    before = os.listdir("/proc/self/fd")
    with pytest.raises(BrokenPipeError):
        Segment(refuse)
    Segment(lambda descriptor: None).close()
    assert os.listdir("/proc/self/fd") == before
