import os

import pytest

from transport.files import StateFileError, create_exclusively, read_bounded, read_private, write_atomically


def test_a_file_is_replaced_whole_and_privately(tmp_path):
    path = tmp_path / "state"
    write_atomically(path, b"old")
    path.chmod(0o644)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["state"]


def test_a_failed_write_leaves_the_old_content_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "state"
    write_atomically(path, b"old")

    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StateFileError, match="free space"):
        write_atomically(path, b"new")
    with pytest.raises(StateFileError, match="free space"):
        create_exclusively(tmp_path / "other", b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["state"]


def test_what_is_missing_or_too_large_is_told_apart(tmp_path):
    path = tmp_path / "state"
    assert read_bounded(path, max_bytes=3) is None
    with pytest.raises(StateFileError, match="cannot read"):
        read_private(path, max_bytes=3)
    write_atomically(path, b"four")
    for read in (read_bounded, read_private):
        assert read(path, max_bytes=4) == b"four"
        with pytest.raises(StateFileError, match="more than 3 bytes"):
            read(path, max_bytes=3)
    with pytest.raises(StateFileError, match="cannot read"):
        read_bounded(tmp_path, max_bytes=3)
