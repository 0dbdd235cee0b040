import pytest

from gridnode.measurements import Measurements
from models.profile import Profile

PROFILE = Profile(mean_s=0.1, p95_s=0.2, memory_bytes=3, load_s=0.4, runs=5, providers=("CPU",))


def test_a_measurement_counts_for_the_same_model_on_the_same_set_up(tmp_path):
    path = tmp_path / "profiles.json"
    Measurements(path, "four threads").keep("a" * 64, PROFILE)
    Measurements(path, "two threads").keep("b" * 64, PROFILE)
    again = Measurements(path, "four threads")
    assert again.get("a" * 64) == PROFILE
    assert again.get("b" * 64) is None
    assert again.has_any("b" * 64)
    assert not again.has_any("c" * 64)


@pytest.mark.parametrize("data", [b"", b"[{}]", b"\xff", b"[" * 10_000])
def test_a_damaged_file_costs_measuring_anew(tmp_path, data):
    path = tmp_path / "profiles.json"
    path.write_bytes(data)
    damaged = Measurements(path, "four threads")
    assert damaged.get("a" * 64) is None
    damaged.keep("a" * 64, PROFILE)
    assert Measurements(path, "four threads").get("a" * 64) == PROFILE
