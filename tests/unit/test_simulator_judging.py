"""A check passes when its interval holds what is expected and is narrow enough to mean something."""

from simulator.judging import judge, judge_exact


def test_a_check_passes_near_its_value_and_fails_far_from_it():
    values = [9.8, 10.1, 10.0, 9.9, 10.2]
    assert judge("near", "kernel", expected=10.05, values=values).ok
    far = judge("far", "kernel", expected=12.0, values=values)
    assert not far.ok
    assert far.ci95[0] < far.got < far.ci95[1] < 12.0


def test_a_known_bias_is_allowed_for():
    values = [9.8, 10.1, 10.0, 9.9, 10.2]
    assert not judge("biased", "kernel", expected=11.0, values=values).ok
    assert judge("biased", "kernel", expected=11.0, values=values, bias=0.1).ok


def test_a_vague_check_does_not_pass():
    assert not judge("vague", "node", expected=10.0, values=[1.0, 20.0, 9.0, 11.0]).ok
    assert not judge("one value", "node", expected=10.0, values=[10.0]).ok


def test_what_is_exact_has_no_interval():
    assert judge_exact("same", "arithmetic", expected=2.0, got=2.0 + 1e-9, within=1e-6).ok
    found = judge_exact("other", "arithmetic", expected=2.0, got=2.1, within=1e-6)
    assert not found.ok
    assert found.ci95 is None
