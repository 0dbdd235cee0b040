import pytest

from transport.files import StateFileError
from transport.gridtime import GridTime


def test_grid_time_is_the_later_of_clock_and_signed_time():
    now = [100.0]
    grid_time = GridTime(lambda: now[0])
    assert grid_time.now_s() == 100.0
    grid_time.observe(5000.0)
    assert grid_time.now_s() == 5000.0
    grid_time.observe(200.0)
    assert grid_time.now_s() == 5000.0
    now[0] = 6000.0
    assert grid_time.now_s() == 6000.0


def test_the_floor_survives_a_restart(tmp_path):
    path = tmp_path / "gridtime"
    first = GridTime.load(lambda: 0.0, path)
    first.observe(1_800_000_000.5)
    assert first.is_save_due
    first.save()
    assert not first.is_save_due
    assert GridTime.load(lambda: 0.0, path).now_s() == 1_800_000_000


def test_small_steps_do_not_wear_out_the_flash(tmp_path):
    grid_time = GridTime.load(lambda: 0.0, tmp_path / "gridtime")
    grid_time.observe(3599.0)
    assert not grid_time.is_save_due
    grid_time.observe(3600.0)
    assert grid_time.is_save_due


@pytest.mark.parametrize("content", [b"", b"noon", b"\xff\xfe", b"9" * 100])
def test_a_damaged_file_is_named(tmp_path, content):
    path = tmp_path / "gridtime"
    path.write_bytes(content)
    with pytest.raises(StateFileError, match="gridtime"):
        GridTime.load(lambda: 0.0, path)


def test_without_a_path_nothing_is_saved():
    grid_time = GridTime(lambda: 0.0)
    grid_time.observe(1e9)
    assert not grid_time.is_save_due
    grid_time.save()
