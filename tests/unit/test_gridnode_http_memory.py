"""Memory for bodies: one bound for all of them, and a part of it that workers read in place."""

import mmap
import os

import pytest

from gridnode.http.heads import HttpError
from gridnode.http.memory import BodyMemory
from gridnode.modelmemory import MODEL_BYTES, MODELS_MAX
from gridnode.segment import BLOCK_BYTES, SHARED_MIN_BYTES

BIG = 100_000


@pytest.fixture
def forgotten():
    return []


@pytest.fixture
def memory(forgotten):
    def forget(segment):
        forgotten.append(segment.number)
        segment.close()

    made = BodyMemory(forget, most_bytes=100 << 20)
    yield made
    made.close()


def as_workers_see_it(place, size):
    """Map a segment anew, as a worker does, and return what lies at a place."""
    with mmap.mmap(place.segment.descriptor, place.segment.size_bytes, prot=mmap.PROT_READ) as mapped:
        return mapped[place.offset : place.offset + size]


def test_the_bound_is_shared_and_given_back(memory):
    first, second = memory.hold(60 << 20), memory.hold(40 << 20)
    with pytest.raises(HttpError) as caught:
        memory.hold(1)
    assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
    first.release()
    first.release()
    assert memory.left_bytes == 60 << 20
    second.release()
    assert memory.left_bytes == 100 << 20


def test_workers_find_what_was_received(memory):
    holding = memory.hold(BIG)
    buffer = holding.buffer(BIG, model="m")
    buffer[:] = bytes(range(250)) * (BIG // 250)
    assert len(buffer) == BIG
    assert as_workers_see_it(holding.place, BIG) == bytes(buffer)


def test_workers_can_neither_cut_nor_change_it(memory):
    holding = memory.hold(BIG)
    holding.buffer(BIG, model="m")
    descriptor = holding.place.segment.descriptor
    with pytest.raises(OSError, match=r"Invalid argument|not permitted"):
        os.ftruncate(descriptor, 0)
    with pytest.raises(PermissionError):
        mmap.mmap(descriptor, MODEL_BYTES, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def test_models_do_not_share(memory):
    first, second = memory.hold(BIG), memory.hold(BIG)
    first.buffer(BIG, model="m")
    second.buffer(BIG, model="n")
    assert first.place.segment is not second.place.segment


def test_bodies_held_at_once_lie_apart_and_room_is_used_again(memory):
    first, second = memory.hold(BIG), memory.hold(BIG)
    first.buffer(BIG, model="m")
    second.buffer(BIG, model="m")
    assert abs(first.place.offset - second.place.offset) >= BIG
    assert first.place.offset % BLOCK_BYTES == second.place.offset % BLOCK_BYTES == 0
    offset = first.place.offset
    first.release()
    first.release()
    third = memory.hold(BIG)
    third.buffer(BIG, model="m")
    assert third.place.offset == offset


@pytest.mark.parametrize("size", [1, SHARED_MIN_BYTES - 1, MODEL_BYTES + 1])
def test_what_is_not_worth_it_or_does_not_fit_gets_a_buffer_of_its_own(memory, size):
    holding = memory.hold(size)
    assert len(holding.buffer(size, model="m")) == size
    assert holding.place is None
    holding.release()


def test_without_room_bodies_get_buffers_of_their_own(memory):
    holdings = [memory.hold(MODEL_BYTES // 2) for _ in range(3)]
    for holding in holdings:
        holding.buffer(MODEL_BYTES // 2, model="m")
    assert [holding.place is None for holding in holdings] == [False, False, True]


def test_models_beyond_the_bound_do_without(memory):
    holdings = [memory.hold(BIG) for _ in range(MODELS_MAX + 1)]
    for number, holding in enumerate(holdings):
        holding.buffer(BIG, model=f"m{number}")
    assert [holding.place is None for holding in holdings] == [False] * MODELS_MAX + [True]


def test_at_the_end_workers_let_go(memory, forgotten):
    holding = memory.hold(BIG)
    buffer = holding.buffer(BIG, model="m")
    number = holding.place.segment.number
    memory.close()
    assert forgotten == [number]
    buffer[:5] = b"still"  # who still reads it does not fault
    holding.release()
