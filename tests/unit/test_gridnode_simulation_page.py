"""Reports: charts without a library, one HTML file, tables."""

import csv
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise

import msgspec
import pytest

from gridnode.simulation import calibratepage, charts, page, planpage, plots, sweeppage, tables
from gridnode.simulation.calibration import Calibration, Costs, LoadReport, Share, Times
from gridnode.simulation.compare import compare
from gridnode.simulation.condense import ENDS_MAX, ROWS_MAX, busy_rows, flow_rows
from gridnode.simulation.load import SimulationInputError, load
from gridnode.simulation.numbers import interval
from gridnode.simulation.offload import offload_graph
from gridnode.simulation.plan import plan
from gridnode.simulation.recordedload import Observed
from gridnode.simulation.svg import Axis
from gridnode.simulation.sweep import sweep
from simulator.report import bounds_of
from simulator.runner import run
from simulator.statistics import Estimate

SHORT = {"duration_s": 4, "warm_up_s": 1}


class Balanced(HTMLParser):
    """Checks that what opens also closes, and notes what a page asks for."""

    VOID = ("meta", "link", "br", "img")

    def __init__(self):
        super().__init__()
        self.open = []
        self.asked = []

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self.asked += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_startendtag(self, tag, attributes):
        self.asked += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def judged(text):
    parser = Balanced()
    parser.feed(text)
    assert parser.open == []
    assert parser.asked == []
    assert "://" not in text
    assert "<script" not in text
    return text


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def pilot():
    return load("pilot", SHORT)


@pytest.fixture(scope="module")
def compared(pilot):
    return compare(pilot, ["capd", "weighted_random"], replications=2)


def test_a_run_makes_one_page_that_asks_for_nothing(pilot, tmp_path):
    result = run(pilot)
    written = page.write(result, tmp_path, bounds=bounds_of(pilot))
    text = judged((tmp_path / "report.html").read_text())
    assert written[0] == tmp_path / "report.html"
    assert "22.5 ms" in text  # the bound
    assert text.count("<svg") == 6
    assert "Little" in text


def test_policies_stand_side_by_side(compared, tmp_path):
    firsts = [runs[0] for runs in compared.results.values()]
    page.write(firsts, tmp_path, comparison=compared.comparison)
    text = judged((tmp_path / "report.html").read_text())
    assert text.count("<details") == 3
    assert "weighted_random" in text


def test_names_cannot_break_the_page(pilot):
    evil = msgspec.structs.replace(run(pilot), scenario="<b>&\"'", about="<script>", policy="</svg>")
    text = page.render([evil])
    assert "<script" not in text
    judged(text)


def test_a_run_without_jobs_makes_a_page_too(tmp_path):
    empty = load("pilot", SHORT | {"sources.0.start_s": 3.9999, "sources.0.load": 0.001})
    result = run(empty)
    text = judged(page.render([result]))
    assert "No job came in after the warm-up." in text
    assert "<svg" not in text


def test_a_folder_that_cannot_be_made_is_named(pilot, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SimulationInputError, match="file/x"):
        page.write(run(pilot), tmp_path / "file" / "x")


def test_many_nodes_become_bands_and_devices():
    result = run(load("pilot", SHORT | {"nodes.pi.count": 90, "sources.0.load": 0.1}))
    rows = busy_rows(result)
    assert len(rows.rows) <= ROWS_MAX
    assert "mean of" in rows.note
    flows, note = flow_rows(result)
    assert note
    assert len({entry for entry, _, _ in flows}) <= ENDS_MAX
    assert sum(jobs for *_, jobs in flows) == sum(flow.jobs for flow in result.flows)


def test_without_matplotlib_there_are_no_pictures(pilot, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert plots.write([run(pilot)], tmp_path) == []


def test_pictures_are_png(compared, tmp_path):
    pytest.importorskip("matplotlib")
    firsts = [runs[0] for runs in compared.results.values()]
    names = [path.name for path in plots.write(firsts, tmp_path, comparison=compared.comparison)]
    assert names == ["cdf.png", "utilisation.png", "backlog.png", "offload.png", "policies.png"]
    for name in names:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_daemon_does_not_import_what_draws():
    code = "import sys, gridnode.daemon; print({'matplotlib', 'distributed', 'simulator'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_comparison_is_written_as_tables(compared, tmp_path):
    tables.write_comparison(compared.comparison, tmp_path)
    rows = table(tmp_path / "policies.csv")
    assert {row["policy"] for row in rows} == {"capd", "weighted_random", "oracle"}
    assert json.loads((tmp_path / "comparison.json").read_text())["seeds"] == ["1.1", "1.2"]


def test_a_sweep_is_drawn_over_its_first_parameter(tmp_path):
    found = sweep("pilot", {"sources.0.load": [0.3, 0.5]}, changes=SHORT, policies=["capd", "random"], replications=2)
    sweeppage.write(found, tmp_path)
    judged((tmp_path / "report.html").read_text())
    tables.write_sweep(found, tmp_path)
    rows = table(tmp_path / "sweep.csv")
    assert [(row["sources.0.load"], row["policy"]) for row in rows] == [
        ("0.3", "capd"), ("0.3", "random"), ("0.5", "capd"), ("0.5", "random"),
    ]  # fmt: skip
    assert [name for name, _ in plots.sweep_lines(found, "mean_s")] == ["capd", "random"]


def calibration(stall_s):
    times = Times(mean_s=0.1, p50_s=0.09, p95_s=0.2)
    report = LoadReport(
        load=0.5, jobs=900, failed=3, daemon=times, simulator=times,
        difference=Times(mean_s=0.02, p50_s=0.0, p95_s=-0.3), noise=Times(mean_s=0.04, p50_s=0.05, p95_s=0.1),
        shares=(Share(node="<slow>", daemon=0.1, simulator=0.2), Share(node="fast", daemon=0.9, simulator=0.8)),
        moved_daemon=0.5, moved_simulator=0.4, cpu=0.3, lateness_s=0.001, stall_s=stall_s,
    )  # fmt: skip
    costs = Costs(socket_s=0.001, execution_s=0.002, move_s=0.003)
    loads = (report, msgspec.structs.replace(report, load=0.8))
    return Calibration(seconds=60.0, machine="x86_64", cores=2, costs=costs, loads=loads)


def test_a_calibration_makes_a_page_that_says_where_the_sides_differ(tmp_path):
    (path,) = calibratepage.write(calibration(stall_s=0.01), tmp_path)
    text = judged(path.read_text())
    assert text.count("<svg") == 3  # times over load, shares at either
    assert text.count("<b class=bad>-30.0 %</b>") == 2
    assert "+2.0 %" in text
    assert "<b class=bad>+2.0" not in text
    assert "stood still" not in text


def test_a_load_in_which_the_machine_stood_still_is_not_compared():
    assert calibratepage.render(calibration(stall_s=0.2)).count("stood still for 200 ms") == 2


def test_a_plan_makes_a_page_with_what_was_recorded_beside_it(tmp_path):
    scenario = load("pilot", {"duration_s": 8, "warm_up_s": 1, "sources.0.deadline_s": 0.2})
    found = plan(scenario, ["fast-2", "cameras-50%"], replications=2)
    (path,) = planpage.write(found, tmp_path)
    text = judged(path.read_text())
    assert text.count("<svg") == 2
    assert text.count("<b class=bad>+") == 1
    assert ">recorded<" not in text
    observed = Observed(
        jobs=1200, nodes=3, cameras=8, span_s=60.0, miss=0.25, refused=0.2, offloaded=0.5, mean_s=0.1, p50_s=0.1,
        p95_s=0.2, p99_s=math.nan,
    )  # fmt: skip
    recorded = msgspec.structs.replace(found, observed=observed, notes=("<assumed>",))
    text = judged(planpage.render(recorded))
    assert text.count(">recorded<") == 3  # in both charts and the table
    assert "25.0 %" in text
    assert "<li>&lt;assumed&gt;</li>" in text


def test_a_plan_without_a_miss_says_so(pilot):
    text = judged(planpage.render(plan(pilot, [], replications=1)))
    assert "No variant misses a deadline." in text
    assert text.count("<svg") == 1


def test_labels_of_an_axis_do_not_touch():
    text = charts.intervals([("a", 0.03, 0.1, 0.4)], label="")
    places = [float(each) for each in re.findall(r'<text x="([\d.]+)" y="[\d.]+" text-anchor="middle">\d+ ms', text)]
    assert len(places) > 4
    assert all(after - before > 45 for before, after in pairwise(places))


def test_measured_lines_have_dots_whiskers_and_ticks_at_the_values():
    text = charts.lines(
        [("a", [(0.3, 1.0, 0.1), (0.31, 2.0, 0.0), (0.9, 3.0, math.inf)])], x_label="", y_label="", is_measured=True
    )
    assert text.count("<circle") == 3
    assert text.count("whisker") == 1
    assert ">0.3<" in text
    assert ">0.31<" not in text, "its label would touch the one before"
    assert ">0.9<" in text


def test_pairs_are_on_one_axis():
    text = charts.pairs([("a", 0.0, 1.0), ("b", 1.0, 0.0)], label="", text=str)
    left, right = (float(each) for each in re.findall(r'<circle cx="([\d.]+)"', text))
    rings = [float(each) for each in re.findall(r'"ring" cx="([\d.]+)"', text)]
    assert rings == [right, left]
    assert charts.pairs([], label="", text=str) == ""


def test_a_sweep_of_words_is_drawn_in_rows():
    found = sweep("pilot", {"models.0.service": ["constant", "lognormal"]}, changes=SHORT, replications=2)
    text = judged(sweeppage.render(found))
    assert text.count("<svg") == 1
    assert ">constant, capd<" in text


def test_long_words_of_a_table_may_go_on_in_the_next_line():
    text = page.table(["a", "b"], [["x" * 30, "1"], ["x", "y" * 30]])
    assert text.count("long") == 1


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0.0, 1.0, False, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0.0, 30.0, False, [0.0, 10.0, 20.0, 30.0]),
        (0.01, 0.5, True, [0.01, 0.02, 0.05, 0.1, 0.2, 0.5]),
        (1e-4, 10.0, True, [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0]),
    ],
)
def test_ticks_are_round(low, high, log, ticks):
    assert Axis(low, high, 0, 100, log=log).ticks() == pytest.approx(ticks)


def test_an_axis_of_one_value_has_a_length():
    axis = Axis(5.0, 5.0, 0, 100)
    assert 0 <= axis(5.0) <= 100


def test_charts_of_nothing_are_empty():
    assert charts.lines([], x_label="", y_label="") == ""
    assert charts.lines([("a", [(math.nan, 1.0)])], x_label="", y_label="") == ""
    assert charts.heat_map([], start_s=0, step_s=1, high=1, unit="") == ""
    assert offload_graph([]) == ""
    assert charts.bar([("a", 0.0)]) == ""
    assert charts.intervals([("a", math.nan, math.nan, math.nan)], label="", marks=()) == ""


def test_a_heat_map_joins_equal_shades():
    text = charts.heat_map([("n", [0.0, 1.0, 1.0, 1.0, 0.0])], start_s=0, step_s=1, high=1, unit="")
    assert text.count('class="heat"') == 1 + charts.LEVELS  # the legend has one of each


def test_bands_of_the_offload_graph_are_in_proportion():
    text = offload_graph([("a", "a", 30), ("a", "b", 10)])
    heights = [float(each) for each in re.findall(r'<rect x="[\d.]+" y="[\d.]+" width="12" height="([\d.]+)"', text)]
    assert heights[1] == pytest.approx(3 * heights[2], rel=0.02)


@pytest.mark.parametrize(
    ("mean", "half", "text"),
    [(0.0, 0.0, "0 ms"), (2.5, 0.04, "2.500 ±0.040 s"), (math.nan, math.nan, "–"), (0.1, math.inf, "100 ms")],
)
def test_estimates_are_written_to_the_digit_that_is_known(mean, half, text):
    assert interval(Estimate(mean=mean, half=half, count=2)) == text
