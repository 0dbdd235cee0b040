"""Names of policies with arguments, and what they make of a configuration."""

import random

import pytest

from scheduler import variants
from scheduler.config import CoreConfig
from scheduler.core import Core
from scheduler.variants import PolicyNameError, arguments, configure, make, names


def test_capd_is_the_default_configuration():
    assert configure(CoreConfig(), "capd") == CoreConfig()


@pytest.mark.parametrize("name", names())
def test_every_name_makes_a_core_and_stays_as_it_is(name):
    config = configure(CoreConfig(), name)
    assert configure(config, config.placement.policy) == config
    Core(config, node_id="a", epoch=1, rng=random.Random(1), now_s=0.0)
    assert make(name).name == name


@pytest.mark.parametrize("name", sorted(set(names()) - {"capd", "steal_only"}))
def test_baselines_are_plain(name):
    config = configure(CoreConfig(), name)
    switches = [config.estimate.trust, config.window.enabled, config.steal.enabled, config.offer.enabled]
    assert not any(switches)
    assert not config.placement.inflight_correction
    assert config.placement.piggyback == (name in ("c3", "prequal"))


def test_arguments_are_set_last():
    config = configure(CoreConfig(), " jsed ( d = 5, inflight=yes,piggyback=yes, weighted=no) ")
    assert config.placement.sample == 5
    assert config.placement.inflight_correction
    assert config.placement.piggyback
    assert not config.window.enabled


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("capd(steal=no)", "steal.enabled", False),
        ("capd(reversion=0)", "estimate.reversion_services", 0.0),
        ("capd(inflight=no)", "placement.inflight_correction", False),
        ("capd(piggyback=no)", "placement.piggyback", False),
        ("capd(window=no)", "window.enabled", False),
        ("capd(trust=no)", "estimate.trust", False),
        ("capd(offer=no)", "offer.enabled", False),
        ("capd(hysteresis=0)", "placement.hysteresis", 0.0),
        ("capd(reconsider=no)", "placement.receiver", "keeps"),
        ("capd(shed=no)", "placement.shedding", False),
        ("capd(slack=1)", "placement.slack", 1.0),
        ("capd(expire=no)", "placement.expire", False),
        ("capd(batch=1)", "queue.batch_jobs", 1),
        ("capd(hedge=.02)", "hedge.share", 0.02),
        ("capd(active=8)", "peers.active", 8),
        ("capd(wait_weight=0)", "placement.wait_weight", 0.0),
        ("capd(hops=1)", "placement.hop_limit", 1),
        ("capd(d=2)", "placement.sample", 2),
        ("max_spare(hops=1)", "placement.hop_limit", 1),
        ("max_spare", "placement.receiver", "redecides"),
    ],
)
def test_each_mechanism_has_a_switch(name, path, value):
    section, _, field = path.partition(".")
    assert getattr(getattr(configure(CoreConfig(), name), section), field) == value


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("capdd", "no policy is named 'capdd'; there are c3, capd"),
        ("jsq(d=0)", "jsq: d is '0'; it must be a whole number from 1 to 4096"),
        ("jsq(d=1.5)", "jsq: d is '1.5'; it must be a whole number"),
        ("jsq(d=many)", "jsq: d is 'many'"),
        ("jsq(d=nan)", "jsq: d is 'nan'"),
        ("capd(steal=maybe)", "capd: steal is 'maybe'; it must be yes or no"),
        ("capd(weighted=yes)", "capd has no argument 'weighted'; it takes key=value of active, batch, batch_wait, d"),
        ("capd(steal)", "capd has no argument 'steal'"),
        ("capd(d=1, d=2)", "capd: d is given twice"),
        ("capd(d=1", "neither NAME nor NAME"),
        ("", "neither NAME nor NAME"),
    ],
)
def test_errors_name_the_key_the_value_and_what_is_allowed(name, message):
    with pytest.raises(PolicyNameError) as caught:
        configure(CoreConfig(), name)
    assert message in str(caught.value)


def test_each_argument_sets_a_field_that_exists_or_goes_to_the_policy():
    base = CoreConfig()
    for name in names():
        for key, argument in arguments(name).items():
            assert argument.about
            if argument.path:
                section, _, field = argument.path.partition(".")
                assert hasattr(getattr(base, section), field)
            else:
                assert key in variants._OWN[name]
