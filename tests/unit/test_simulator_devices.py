"""Every figure of a device or a link has a source, or says that it is assumed."""

import msgspec
import pytest

from simulator.devices import DEVICES, LINKS, MODELS, Figure


def figures(record):
    """Yield each figure in a record, with its place."""
    for name in record.__struct_fields__:
        value = getattr(record, name)
        if isinstance(value, Figure):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", each) for key, each in value.items())


ALL = [
    (f"{kind}.{name}", record)
    for kind, table in (("device", DEVICES), ("link", LINKS), ("model", MODELS))
    for name, record in table.items()
]


@pytest.mark.parametrize(("name", "record"), ALL, ids=[name for name, _ in ALL])
def test_each_figure_has_a_source_or_is_marked(name, record):
    found = dict(figures(record))
    assert found
    for place, figure in found.items():
        assert bool(figure.source) != figure.assumed, f"{name}.{place}"
        assert figure.value >= 0.0


@pytest.mark.parametrize("name", LINKS)
def test_each_jitter_has_a_source_or_is_marked(name):
    link = LINKS[name]
    assert link.jitter is None or bool(link.jitter_source) != link.jitter_assumed
    assert link.up_bytes_s.value > 0
    assert 0.0 <= link.loss.value < 1.0
    assert link.latency_s == link.rtt_s.value / 2


@pytest.mark.parametrize("name", DEVICES)
def test_each_device_has_known_models_and_a_power_that_grows_with_work(name):
    device = DEVICES[name]
    assert set(device.service_s) <= set(MODELS)
    assert all(0.0005 < figure.value < 2.0 for figure in device.service_s.values()), "seconds, not milliseconds"
    assert device.idle_w is None or device.idle_w.value < device.busy_w.value
    assert device.load_s("resnet50") > 0.0
    assert device.warm_up.value >= 1.0


def test_the_skew_of_the_fleet_is_that_of_the_table():
    """ResNet50 on the boards over the fast x86: 23 times on a Pi 4, 52 on a Pi 3, 4.1 on a Pi 5."""
    base = DEVICES["i7-13700k"].service_s["resnet50"].value
    ratios = [DEVICES[name].service_s["resnet50"].value / base for name in ("pi4", "pi3", "pi5")]
    assert ratios == pytest.approx([23.3, 52.0, 4.1], rel=0.01)


def test_the_tables_cannot_be_changed():
    with pytest.raises(TypeError):
        DEVICES["x"] = DEVICES["pi4"]
    with pytest.raises(AttributeError):
        DEVICES["pi4"].about = "x"
    assert msgspec.structs.replace(DEVICES["pi4"], about="x").about == "x"
