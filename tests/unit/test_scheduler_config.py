import msgspec
import pytest

from scheduler.config import (
    AdvertConfig,
    CoreConfig,
    EstimateConfig,
    OfferConfig,
    PeersConfig,
    PlacementConfig,
    QueueConfig,
    RetryConfig,
    StealConfig,
    WatchConfig,
    WindowConfig,
)


@pytest.mark.parametrize(
    ("record", "field", "value"),
    [
        (PlacementConfig, "sample", 0),
        (PlacementConfig, "hysteresis", 1.5),
        (PlacementConfig, "hop_limit", -1),
        (PlacementConfig, "slack", 0.0),
        (PeersConfig, "active", 0),
        (PeersConfig, "peers", 31),
        (EstimateConfig, "alpha", 0.0),
        (EstimateConfig, "trust_limit", 0.5),
        (WindowConfig, "decrease", 1.0),
        (QueueConfig, "bound_s", 0.0),
        (QueueConfig, "slots", 0),
        (QueueConfig, "receive_budget_bytes", -1),
        (OfferConfig, "rtts", 0.0),
        (WatchConfig, "missed", 0),
        (WatchConfig, "quarantine_limit_s", 0.5),
        (RetryConfig, "losses", 0),
        (RetryConfig, "ratio", -0.1),
        (StealConfig, "backoff_limit_s", 0.01),
        (AdvertConfig, "jitter", 0.95),
        (AdvertConfig, "burst", 0.5),
        (CoreConfig, "decisions", 0),
        (PlacementConfig, "default_deadline_s", float("nan")),
    ],
)
def test_values_without_a_meaning_are_refused_by_name(record, field, value):
    with pytest.raises(ValueError, match=rf"{record.__name__}\.{field} is"):
        record(**{field: value})


def test_a_queue_must_not_outlast_the_default_deadline():
    with pytest.raises(ValueError, match=r"queue\.bound_s is 9\.0"):
        CoreConfig(queue=QueueConfig(bound_s=9.0))
    CoreConfig(queue=QueueConfig(bound_s=float("inf")))


def test_unknown_fields_are_refused():
    with pytest.raises(msgspec.ValidationError, match="hysteresys"):
        msgspec.convert({"placement": {"hysteresys": 0.2}}, CoreConfig)


def test_every_field_has_a_docstring():
    import inspect

    import scheduler.config as module

    source = inspect.getsource(module)
    records = [each for each in vars(module).values() if isinstance(each, type) and issubclass(each, msgspec.Struct)]
    for record in records:
        lines = inspect.getsource(record).splitlines()
        for number, line in enumerate(lines):
            name = line.strip().split(":")[0]
            if name in record.__struct_fields__ and line.startswith("    ") and ": " in line and "=" in line:
                is_plain = record is module.CoreConfig and name not in ("explain", "decisions")
                assert is_plain or lines[number + 1].strip().startswith('"""'), f"{record.__name__}.{name}"
    assert source.count("forbid_unknown_fields=True") == len(records)
