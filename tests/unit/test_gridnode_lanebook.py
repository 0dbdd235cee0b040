"""The lanes of one connection: when there are to be more, and which of them a request goes by."""

import msgspec
import pytest

from gridnode.control import JobDone
from gridnode.jobs import Job, Options, Request
from gridnode.lanebook import PAUSE_AFTER_LANE, ROW_BEFORE_LANE, Row

OPTIONS = Options(priority=2, tenant="shop")
USUAL = JobDone(
    key=b"u" * 24,
    model="street",
    model_digest="d" * 64,
    node="n1",
    node_name="gate",
    hops=0,
    waiting_s=0.5,
    service_s=0.1,
    transfer_s=0.25,
    total_s=0.9,
    body=b"usual",
)


def key(number):
    return b"c" * 16 + number.to_bytes(8, "big")


def job(number=1, *, model="street", options=OPTIONS, deadline_s=None):
    request = Request(model=model, body=b"body", parts=(b"frame",), payload_bytes=5, options=options)
    return Job(key(number), request, opened_s=0.0, deadline_s=deadline_s)


# ---------------------------------------------------------------- when a lane is worth opening


def rows(count, *, row=None, model="street", options=OPTIONS, node="n1"):
    """Have so many requests answered, one after another; returns the row, and what it said of the last."""
    if row is None:
        row = Row()
        row.node = "n1"
    said = None
    for _ in range(count):
        row.note_request(job(model=model, options=options))
        said = row.note_answer(msgspec.structs.replace(USUAL, key=key(1), node=node))
    return row, said


def test_a_lane_is_opened_after_so_many_answers_to_requests_of_one_kind():
    row, said = rows(ROW_BEFORE_LANE - 1)
    assert said is None
    assert rows(1, row=row)[1] == ("street", OPTIONS)
    assert rows(1, row=row)[1] == ("street", OPTIONS), "it is said until one is there"


@pytest.mark.parametrize("other", [{"model": "other"}, {"options": Options()}])
def test_another_kind_begins_the_row_anew(other):
    row, _ = rows(ROW_BEFORE_LANE - 1)
    rows(1, row=row, **other)
    assert rows(ROW_BEFORE_LANE - 1, row=row)[1] is None
    assert rows(1, row=row)[1] == ("street", OPTIONS)


def test_a_peers_answers_count_like_the_daemons_own():
    assert rows(ROW_BEFORE_LANE - 1, node="n2")[1] is None
    assert rows(ROW_BEFORE_LANE, node="n2")[1] is not None


def test_answers_of_another_node_begin_the_row_anew():
    row, said = rows(ROW_BEFORE_LANE - 1, node="n2")
    assert said is None
    assert rows(ROW_BEFORE_LANE - 1, row=row)[1] is None
    assert rows(1, row=row)[1] is not None


def test_another_nodes_answers_do_not_shorten_a_pause():
    row = Row()
    row.count = -PAUSE_AFTER_LANE
    rows(1, row=row, node="n2")
    rows(1, row=row)
    assert row.count == 2 - PAUSE_AFTER_LANE


def test_streams_get_no_lane():
    options = Options(stream="gate")
    assert rows(3 * ROW_BEFORE_LANE, options=options)[1] is None


def test_a_pause_after_a_lane_of_no_use_counts_answers_of_all_kinds():
    row, _ = rows(ROW_BEFORE_LANE)
    row.count = -PAUSE_AFTER_LANE
    rows(PAUSE_AFTER_LANE // 2, row=row)
    rows(PAUSE_AFTER_LANE // 2, row=row, model="other")
    assert row.count == 0
    assert rows(ROW_BEFORE_LANE - 1, row=row, model="other")[1] is None
    assert rows(1, row=row, model="other")[1] == ("other", OPTIONS)
