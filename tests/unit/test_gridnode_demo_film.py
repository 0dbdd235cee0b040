"""The demo's films and its children: cached, damaged, killed."""

import os

import msgspec
import pytest
import trio
from PIL import Image

from gridnode.demo import children, film
from gridnode.demo.pictures import PictureError, write_pictures
from gridnode.demo.stage import SOCKET_PATH_MAX, StageError, socket_path


def test_a_film_is_drawn_once_and_then_read(tmp_path):
    async def main():
        first = await film.get_film("t", 2, tmp_path)
        [path] = tmp_path.glob("film-*.bin")
        written = path.stat().st_mtime_ns
        assert await film.get_film("t", 2, tmp_path) == first
        assert path.stat().st_mtime_ns == written
        return first

    drawn = trio.run(main)
    assert len(drawn.frames) == len(drawn.truth) == 2
    assert drawn.frames[0].startswith(b"\xff\xd8")
    assert drawn.truth[0]


def test_a_damaged_film_is_no_film(tmp_path):
    path = tmp_path / "film.bin"
    assert film.read_film(path) is None
    path.write_bytes(msgspec.msgpack.encode({"frames": 3}))
    assert film.read_film(path) is None


def test_the_name_of_a_film_tells_what_is_in_it():
    names = {film.film_name("a", 10), film.film_name("b", 10), film.film_name("a", 11)}
    assert len(names) == 3
    assert film.film_name("a", 10) in names


def test_the_cache_stays_small(tmp_path):
    for number in range(20):
        path = tmp_path / f"film-{number}.bin"
        path.touch()
        os.utime(path, (number, number))
    film._make_room(tmp_path)
    kept = {path.name for path in tmp_path.iterdir()}
    assert len(kept) == film.FILMS_KEPT - 1
    assert "film-19.bin" in kept


def test_a_cache_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(film.FilmError, match="XDG_CACHE_HOME"):
        film._make_room(tmp_path / "file" / "below")


def test_pictures_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PictureError, match="another folder"):
        write_pictures(tmp_path / "file" / "below", [], [])


def test_only_our_own_old_pictures_go(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "frame-03-fast.jpg")
    (tmp_path / "holiday.jpg").touch()
    assert write_pictures(tmp_path, [], []) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_socket_path_the_kernel_would_refuse_is_named(tmp_path):
    with pytest.raises(StageError, match="TMPDIR"):
        socket_path(tmp_path / ("x" * SOCKET_PATH_MAX), "fast")


def test_children_get_our_packages_and_none_of_our_settings(monkeypatch):
    monkeypatch.setenv("GRIDNODE_RUNTIME__CPU_SHARE", "0.5")
    environment = children.child_environment()
    assert not any(name.startswith("GRIDNODE_") for name in environment)
    assert os.path.isdir(os.path.join(environment["PYTHONPATH"].split(os.pathsep)[0], "gridnode"))


def make_daemon(folder):
    return children.Daemon("d", state_dir=folder, socket=folder / "d.sock", log=folder / "d.log", settings=())


def test_a_daemon_that_ends_by_itself_is_told_with_its_last_words(tmp_path):
    """It ends at once, because there is no node in the state directory."""

    async def main():
        daemon = make_daemon(tmp_path)
        daemon.start()
        with trio.fail_after(30):
            while daemon.is_running:  # noqa: ASYNC110 - another process tells nothing
                await trio.sleep(0.01)
        with pytest.raises(children.DaemonError, match="holds no node"):
            daemon.check()
        await daemon.stop()

    trio.run(main)


def test_a_killed_daemon_is_no_fault(tmp_path):
    async def main():
        daemon = make_daemon(tmp_path)
        daemon.start()
        daemon.kill()
        daemon.check()
        assert not daemon.is_running
        daemon.sweep()

    trio.run(main)
