"""Scenarios say what they mean, and what is wrong in them with line, key, value and what is allowed."""

import pytest

from simulator.fleet import input_bytes, mean_s
from simulator.scenariotext import parse
from simulator.sources import CameraSource, PoissonSource
from simulator.values import ScenarioError
from simulator.wiring import access

TEXT = """name = "x"
duration_s = 20

[[models]]
name = "m"
mean_s = {pi = 0.1}
service = "constant"

[[nodes]]
device = "pi"
count = 3

[[sources]]
kind = "poisson"
rate_hz = 4.0
"""


def broken(old, new="", changes=None):
    assert old in TEXT
    with pytest.raises(ScenarioError) as caught:
        parse(TEXT.replace(old, new) if old else TEXT + new, changes)
    return str(caught.value)


def test_a_scenario_has_its_defaults():
    scenario = parse(TEXT)
    assert scenario.node_names == ("pi0", "pi1", "pi2")
    assert scenario.policy == "capd"
    assert scenario.core.explain is False
    assert isinstance(scenario.sources[0], PoissonSource)
    assert scenario.models_of(scenario.nodes[0]) == ("m",)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("count = 3", "count = 0", "11: nodes[0].count: 0; it must be a whole number at least 1 and at most 20000"),
        ("0.1", "-1", "6: models[0].mean_s.pi: -1; it must be a number above 0"),
        ("duration_s = 20", "duration_s = nan", "2: duration_s: nan; a number is needed"),
        ("rate_hz = 4.0", "load = 'x'", "15: sources[0].load: 'x'; it must be a number above 0"),
        ("rate_hz", "load = 1\nrate_hz", "16: sources[0].rate_hz: both are given; give either rate_hz or load"),
        ("rate_hz = 4.0", "", "13: sources[0].rate_hz: neither is given; give either rate_hz or load"),
        ("rate_hz", "models = ['q']\nrate_hz", "15: sources[0].models: no model is named 'q'; there are m"),
        ("", "[core.placement]\nslack = 3", "17: core.placement.slack: 3.0; it must be from 0.01 to 1.0"),
        ("duration_s = 20", "duration_s = ", "2: no valid TOML: Invalid value"),
        ("count = 3", "link = {loss = 1}", "11: nodes[0].link.loss: 1; it must be a number at least 0 and below 1"),
    ],
)
def test_an_error_names_line_key_value_and_what_is_allowed(old, new, message):
    assert broken(old, new) == f"line {message}"


def test_an_error_lists_the_choices():
    assert broken('"constant"', '"bad"').endswith(
        "'bad'; it must be one of constant, lognormal, gamma, erlang, exponential, empirical"
    )
    assert broken('"poisson"', '"pois"').startswith("line 14: sources[0].kind: 'pois'; it must be one of camera, gamma")
    assert broken("count", "cout").startswith("line 11: nodes[0].cout: no such key; did you mean count? There are ")
    assert broken("rate_hz = 4.0", "rate_hz = 4\nentries = 'q'").endswith(
        "'q' means no node; there are all, the groups pi, and patterns of node names"
    )


def test_a_key_in_a_table_of_its_own_is_found():
    assert broken("", "[sources.then]\nmodel = 'n'").startswith("line 17: sources[0].then.model: ")
    assert broken("", "[[faults]]\nkind = 'pause'\nnodes = 'pi1'").startswith("line 16: faults[0].for_s: missing")


def test_changes_go_over_the_text():
    changes = {"sources.*.rate_hz": 2, "nodes.pi.count": 5, "nodes.0.slots": 2, "core.steal.enabled": False, "seed": 7}
    scenario = parse(TEXT, changes)
    assert (scenario.nodes[0].count, scenario.nodes[0].slots, scenario.seed) == (5, 2, 7)
    assert not scenario.core.steal.enabled
    assert scenario.sources[0].rate_hz == 2


def test_a_wrong_change_names_no_line():
    assert broken("", "", {"nodes.0.count": 0}).startswith("nodes[0].count: 0; ")
    assert broken("", "", {"nodes.po.count": 1}) == (
        "'nodes.po.count' leads nowhere: there is no 'po' in it; there are 0 (pi), and *"
    )
    assert broken("", "", {"name.b": 1}) == "'name.b' is no key of a scenario: name is no table"
    assert broken("", "", {"nodez.b": 1}).startswith("nodez: no such key; did you mean nodes?")


def test_nodes_are_meant_by_group_name_or_pattern():
    text = TEXT.replace("count = 3", "count = 12").replace("pi = 0.1", "pi = 0.1, server = 0.01")
    scenario = parse(text + "[[nodes]]\ndevice = 'server'\nname = 'big'\n")
    assert scenario.select("big") == ("big",)
    assert scenario.select("server") == ("big",)
    assert scenario.select(("pi0*", "big")) == (*(f"pi0{number}" for number in range(10)), "big")
    assert len(scenario.select("all")) == 13


def test_what_a_scenario_leaves_open_is_looked_up():
    text = TEXT.replace('"pi"', '"pi4"').replace("mean_s = {pi = 0.1}", "profile = 'resnet50'\ncv = 0.0")
    scenario = parse(text + "[network]\nlink = 'wifi'\n")
    (model,) = scenario.models
    assert mean_s(scenario, scenario.nodes[0], model) == pytest.approx(0.2628)
    assert input_bytes(model) == 150_528
    assert access(scenario, scenario.nodes[0]).up_bytes_s == 50 * 125_000
    known = broken("mean_s = {pi = 0.1}", "profile = 'resnet50'")
    assert known.startswith(
        "line 4: models[0].mean_s: nothing for the device 'pi'; add it, or take one of pi-zero-2w, "
    )
    assert broken("count = 3", "link = 'wify'").startswith(
        "line 11: nodes[0].link: no link is named 'wify'; there are "
    )
    assert broken("count = 3", "medium = 'ap'").endswith("no channel is named 'ap'; network.media_mbit_s has none")


def test_cameras_take_frames_per_second_or_a_load():
    text = TEXT.replace('"poisson"', '"camera"').replace("rate_hz = 4.0", "count = 10\nfps = 5")
    source = parse(text).sources[0]
    assert isinstance(source, CameraSource)
    assert source.fps == 5
