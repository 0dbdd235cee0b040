"""The fast subset of the checks against theory; `gridnode simulate theory` runs all."""

import json

import pytest

from gridnode.cli.main import main
from simulator import checks, checks_kernel
from simulator.stations import Queues, Rule


@pytest.mark.slow
def test_the_fast_checks_against_theory_are_in_order(capsys):
    code = main(["simulate", "theory", "--fast", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [each["check"] for each in found if not each["ok"]] == []
    assert code == 0
    assert len(found) >= 35
    assert {"check", "expected", "got", "ci95", "ok"} <= set(found[0])


def test_a_failed_check_is_shown_and_ends_with_1(monkeypatch, capsys):
    """The network of theory with another transfer time than the simulator's."""
    case = checks.FLOW_CHECKS[0]
    wrong = case.__class__(
        name=case.name,
        links=case.links,
        flows=case.flows,
        model=case.model,
        expected_s=(1.0,),
        source=case.source,
    )
    monkeypatch.setattr(checks, "FLOW_CHECKS", (wrong,))
    assert main(["simulate", "theory", "--only", case.name]) == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert "1 failed" in shown


def test_no_check_of_a_name_is_wrong_usage(capsys):
    assert main(["simulate", "theory", "--only", "perpetuum mobile"]) == 2
    assert "no check has 'perpetuum mobile' in its name" in capsys.readouterr().err


def test_shared_links_one_check_per_transfer(capsys):
    assert main(["simulate", "theory", "--only", "flow", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 10


def test_a_rule_that_is_not_the_one_of_theory_is_found_out():
    """Random placement does not pass for the shortest of two."""

    class Careless(Rule):
        def pick(self, rng, shown):
            return int(rng.random() * len(shown))

    queues = Queues("7", rates_hz=[1.0] * 200, arrival_hz=140.0, rule=Careless(choices=2), warm_s=50.0)
    queues.engine.run(150.0)
    assert queues.mean_sojourn_s() > 1.5 * 1.614454


def test_the_slope_of_a_line_is_found():
    assert checks_kernel.drift_hz([(0.0, 1.0), (2.0, 5.0), (4.0, 9.0)]) == pytest.approx(2.0)
