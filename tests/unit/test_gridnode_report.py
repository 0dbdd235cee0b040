"""Counters, quantiles, and text that a strict OpenMetrics parser takes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gridnode.jobtable import Answer
from gridnode.report import Histogram, MetricsText, Report, quantile
from scheduler.types import Job


def job(arrival_s):
    return Job(key=bytes(24), entry="n", input_bytes=0, arrival_s=arrival_s, deadline_s=99.0, models=("m",))


def answer(service_s):
    return Answer(model="m", node="n", hops=0, waiting_s=0.0, service_s=service_s, body=b"", payload=b"")


def test_answers_are_counted_by_where_they_were_made():
    report = Report()
    report.answered(job(0.0), answer(0.2), own=True, now_s=0.5)
    report.answered(job(1.0), answer(0.9), own=False, now_s=2.5)
    report.ended("deadline")
    report.ended("deadline")
    snapshot = report.snapshot()
    assert (snapshot.answered, snapshot.executed, snapshot.offloaded) == (2, 1, 1)
    assert snapshot.ended == {"deadline": 2}
    assert snapshot.service_s_mean == pytest.approx(0.2)
    assert (snapshot.p50_s, snapshot.p99_s) == (1.5, 1.5)


def test_answers_by_lanes_are_counted_by_where_they_were_made():
    report = Report()
    report.ran_by_lane(0.25)
    report.ran_by_lane(0.5, transfer_s=1.0, own=False)
    snapshot = report.snapshot()
    assert (snapshot.answered, snapshot.by_lane, snapshot.executed, snapshot.offloaded) == (2, 2, 1, 1)
    assert (report.service.count, snapshot.service_s_mean) == (1, 0.25), "of runs here"
    assert (report.sojourn.sum, report.sojourn.count) == (1.75, 2)
    assert snapshot.p99_s == 1.5


def test_without_answers_there_are_no_quantiles():
    snapshot = Report().snapshot()
    assert (snapshot.p50_s, snapshot.p99_s, snapshot.service_s_mean) == (None, None, None)


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 1))
def test_a_quantile_is_one_of_the_values_and_grows_with_its_share(values, share):
    ordered = sorted(values)
    assert quantile(ordered, share) in ordered
    assert quantile(ordered, share) >= quantile(ordered, share / 2)


@given(st.lists(st.floats(0, 100, allow_subnormal=False)))
def test_a_histogram_counts_every_value_once(values):
    histogram = Histogram()
    for value in values:
        histogram.observe(value)
    assert histogram.count == len(values)
    text = MetricsText()
    text.histogram("gridnode_test_seconds", "Test.", histogram)
    [family] = text_string_to_metric_families(text.render())
    counts = {sample.labels.get("le"): sample.value for sample in family.samples if sample.name.endswith("_bucket")}
    assert counts["+Inf"] == len(values)
    assert counts["1.0"] == sum(value <= 1.0 for value in values)


@given(st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=50))
def test_labels_may_hold_anything(value):
    text = MetricsText()
    text.gauge("gridnode_test", 'Help with "quotes" and \\.', [((("model", value), ("b", "c")), 1.5)])
    [family] = text_string_to_metric_families(text.render())
    assert family.samples[0].labels == {"model": value, "b": "c"}
    assert family.samples[0].value == 1.5
