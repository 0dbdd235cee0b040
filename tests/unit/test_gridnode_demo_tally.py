"""The demo's counting, planning and drawing, without any process."""

import io
import json

import msgspec
import pytest
from rich.console import Console

from gridnode.demo.pictures import choose
from gridnode.demo.plan import GRID_SHARE_MAX, OVERLOAD, make_plan
from gridnode.demo.screen import NodeView, View, live_view, summary_view
from gridnode.demo.tally import Answered, Frame, Summary, Tally, quantile_ms
from gridnode.results import Box, Detection, Result, Timings
from models.average_precision import Truth

FIELDS = [
    "frames_sent", "frames_answered", "frames_refused", "frames_lost", "deadline_misses", "p50_ms", "p99_ms", "map50",
    "offloaded", "stolen", "nodes",
]  # fmt: skip
TRUTH = [[[Truth("vehicle", (10.0, 10.0, 50.0, 50.0))], [Truth("vehicle", (20.0, 20.0, 60.0, 60.0))]]]


def make_answer(*, node="fast", place=0, at_s=1.0, took_s=0.1, box=(10.0, 10.0, 50.0, 50.0), model="street"):
    detection = Detection(class_name="vehicle", class_index=0, score=0.9, box=Box(*box))
    timings = Timings(total_s=took_s, queue_s=0.0, transfer_s=0.0, service_s=0.02, client_s=took_s)
    result = Result(
        key=b"\x01" * 24, model=model, model_digest="d", node=node, node_id=f"id-{node}", hops=1,
        detections=(detection,), image_size=(100, 100), timings=timings,
    )  # fmt: skip
    return Answered(frame=Frame(number=0, film=0, place=place), at_s=at_s, took_s=took_s, result=result)


def make_tally():
    """Five frames: two in time, one late, one refused, one without an outcome."""
    tally = Tally(deadline_s=1.0)
    for _ in range(5):
        tally.on_sent()
    tally.on_answered(make_answer(node="fast"))
    tally.on_answered(make_answer(node="slow", at_s=4.0))
    tally.on_answered(make_answer(node="fast", at_s=5.0, took_s=1.5))
    tally.on_refused("JobDeadlineError")
    return tally


def make_summary(tally):
    return tally.summary([("fast", "id-fast"), ("slow", "id-slow"), ("idle", "id-idle")], map50=0.9)


def test_every_frame_is_counted_once():
    summary = make_summary(make_tally())
    assert (summary.frames_sent, summary.frames_answered, summary.frames_refused, summary.frames_lost) == (5, 3, 1, 1)
    assert summary.deadline_misses == 3
    assert (summary.p50_ms, summary.p99_ms) == (100.0, 1500.0)


def test_the_summary_has_exactly_the_promised_fields():
    document = json.loads(msgspec.json.encode(make_summary(make_tally())))
    assert list(document) == FIELDS
    assert document["nodes"] == [
        {"name": "fast", "peer_id": "id-fast", "executed": 2, "service_ms": 20.0},
        {"name": "slow", "peer_id": "id-slow", "executed": 1, "service_ms": 20.0},
        {"name": "idle", "peer_id": "id-idle", "executed": 0, "service_ms": None},
    ]


def test_a_late_node_is_told_only_when_there_is_one():
    summary = make_tally().summary([], map50=None, joined_late_s=3.2)
    assert json.loads(msgspec.json.encode(summary))["joined_late_s"] == 3.2


def test_counters_of_a_killed_life_are_kept():
    tally = Tally(deadline_s=1.0)
    tally.on_counters("a", epoch=1, offloaded=3, stolen=1)
    tally.on_counters("a", epoch=1, offloaded=7, stolen=1)
    tally.on_counters("a", epoch=2, offloaded=2, stolen=0)
    tally.on_counters("b", epoch=1, offloaded=1, stolen=5)
    assert (tally.offloaded, tally.stolen) == (10, 6)
    assert tally.counters_of("a") == (9, 1)


def test_nodes_that_answered_are_known_by_name():
    assert make_tally().names() == {"id-fast": "fast", "id-slow": "slow"}


def test_old_answers_leave_the_live_numbers():
    tally = make_tally()
    assert [answered.at_s for answered in tally.recent(5.5)] == [4.0, 5.0]
    assert tally.first_answer_s("id-slow") == 4.0
    assert tally.first_answer_s("id-idle") is None


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50.0), (0.99, 99.0), (1.0, 100.0), (0.001, 1.0)])
def test_quantiles_are_exact_on_a_hundred(share, expected):
    assert quantile_ms([number / 1000 for number in range(1, 101)], share) == pytest.approx(expected)


def test_precision_is_measured_against_the_frame_that_was_sent():
    tally = Tally(deadline_s=1.0)
    tally.on_answered(make_answer(place=0))
    tally.on_answered(make_answer(place=1, box=(20.0, 20.0, 60.0, 60.0), model="street-small"))
    found = tally.precision(TRUTH)
    assert {model: round(ap.mean, 3) for model, ap in found.items()} == {"": 1.0, "street": 1.0, "street-small": 1.0}


def test_a_detection_on_another_frame_counts_as_wrong():
    tally = Tally(deadline_s=1.0)
    tally.on_answered(make_answer(place=1, box=(70.0, 70.0, 90.0, 90.0)))
    assert tally.precision(TRUTH)[""].mean == 0.0


def test_no_answers_have_no_precision():
    assert Tally(deadline_s=1.0).precision(TRUTH) == {}


def test_the_rate_is_too_much_for_the_entry_and_easy_for_all():
    plan = make_plan([0.08, 0.03, 0.012])
    assert plan.fps == pytest.approx(OVERLOAD / 0.08, abs=0.1)
    assert plan.fps < GRID_SHARE_MAX * plan.grid_fps


def test_a_grid_of_equals_is_not_flooded():
    plan = make_plan([0.1, 0.1, 0.1])
    assert plan.fps <= GRID_SHARE_MAX * plan.grid_fps + 0.1


def test_a_rate_that_was_asked_for_is_taken():
    assert make_plan([0.1], fps=3.0).fps == 3.0


def test_pictures_are_chosen_over_the_whole_time():
    answers = [make_answer(at_s=float(number)) for number in range(100)]
    chosen = [answered.at_s for answered in choose(answers, count=10)]
    assert chosen[0] == 0.0
    assert chosen[-1] == 99.0
    assert chosen == sorted(set(chosen))
    assert len(choose(answers[:3], count=10)) == 3


def draw(renderable, columns):
    stream = io.StringIO()
    Console(file=stream, width=columns, highlight=False).print(renderable)
    return stream.getvalue()


NODE_VIEW = NodeView(
    name="middle", role="entry", cpu_share=0.4, state="starting", load=0.73, executed=12_345, share=0.33, p50_ms=123.4,
    p99_ms=1234.5, offloaded=12_345, stolen=1234,
)  # fmt: skip
VIEW = View(
    elapsed_s=31.0, seconds=60.0, sent=12_345, answered=12_300, refused=12, open=33, in_time=0.987, p50_ms=35.0,
    p99_ms=130.0, nodes=(NODE_VIEW,), events=((30.0, "middle was killed with SIGKILL"),),
)  # fmt: skip


@pytest.mark.parametrize("columns", [80, 120])
def test_the_table_fits_and_shows_its_figures(columns):
    text = draw(live_view(VIEW, make_plan([0.1, 0.04, 0.015]), columns=columns), columns)
    assert max(len(line) for line in text.splitlines()) <= columns
    for figure in ("0:31 / 1:00", "98.7%", "middle entry", "starting", "1.23 s", "12345", "1234", "SIGKILL"):
        assert figure in text, figure
    assert "…" not in text


@pytest.mark.parametrize("columns", [80, 120])
def test_the_summary_fits_and_says_whether_anything_was_lost(columns):
    tally = make_tally()
    view = summary_view(
        make_summary(tally), tally.precision(TRUTH), refusals=dict(tally.refusals), pictures="/a/b", columns=columns
    )
    text = draw(view, columns)
    assert max(len(line) for line in text.splitlines()) <= columns
    assert "1 frames lost of 5" in text
    assert "1 JobDeadlineError" in text
    assert "/a/b" in text


def test_the_summary_of_nothing_can_be_drawn():
    summary = Summary(
        frames_sent=0, frames_answered=0, frames_refused=0, frames_lost=0, deadline_misses=0, p50_ms=None, p99_ms=None,
        map50=None, offloaded=0, stolen=0, nodes=(),
    )  # fmt: skip
    assert "0 frames lost" in draw(summary_view(summary, {}, refusals={}, pictures="", columns=80), 80)
