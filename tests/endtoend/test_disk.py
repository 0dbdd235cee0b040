"""Real daemons on disks that are full, read-only or damaged. Disks are mounts in namespaces of the daemons' own."""

import os
import shutil
import subprocess
import sys
import time

import pytest

from gridnode.simulation.recorded import read_recording

pytestmark = pytest.mark.slow

HOLD = 'cd "$2" && mount -t tmpfs -o mode=700,size="$1" tmpfs "$0" && cp -a . "$0" && echo up && exec sleep 600'
"""Shell: a disk of size $1 at $0 with what is in $2, for as long as this lives."""


class Disk:
    """A small disk at a path, in a mount namespace of its own: without privileges, seen by those in it alone."""

    def __init__(self, path, size, content):
        self._path = path
        words = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", HOLD, path, size, content)
        self._holder = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.is_there = self._holder.stdout.readline() == b"up\n"
        enter = ("nsenter", "--user", "--mount", "--preserve-credentials", "--target", self._holder.pid)
        self.enter = tuple(map(str, enter))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._holder.kill()
        self._holder.communicate()

    def run(self, *words, check=True):
        """Run a command that sees the disk; returns what it printed."""
        command = [*self.enter, *map(str, words)]
        return subprocess.run(command, check=check, capture_output=True, timeout=20).stdout

    def remount(self, options):
        self.run("mount", "-o", f"remount,{options}", self._path)

    def fill(self):
        self.run("sh", "-c", 'cat /dev/zero > "$0/filler"', self._path, check=False)

    def sums(self):
        """Return the digests of all files."""
        return self.run(
            "sh", "-c", 'cd "$0" && find . -type f ! -name filler ! -name lock | sort | xargs sha256sum', self._path
        )


def can_mount():
    if shutil.which("unshare") is None or shutil.which("nsenter") is None:
        return False
    with Disk("/mnt", "64k", "/mnt") as disk:
        return disk.is_there


needs_mounts = pytest.mark.skipif(not can_mount(), reason="this system lets nobody make a namespace with mounts")


def model_of(daemon):
    [model] = daemon.ask("models")["items"]
    return model


def work(daemon, model_input, *, rounds=8, at_once=6):
    """Let a program have jobs done, a few at a time; returns the nodes that did them."""
    nodes = set()
    with daemon.client() as grid:
        for _ in range(rounds):
            handles = [grid.submit("tiny", {"x": model_input}, deadline_s=15.0) for _ in range(at_once)]
            nodes |= {handle.result().node for handle in handles}
    return nodes


@needs_mounts
def test_a_full_disk_keeps_a_model_away_until_there_is_room_and_nothing_else(real_grid, model_input, wait_until):
    node = real_grid.join("n2")
    node.state.store.mkdir()
    with Disk(node.state.store, "128k", node.state.store) as disk:
        node.start(under=disk.enter)
        wait_until(lambda: "full" in model_of(node)["problem"])
        model = model_of(node)
        assert model["state"] == "missing"
        assert "free some space" in model["problem"]
        assert "model_not_ready" in node.log_text()
        node.wait_peers(1)
        real_grid["n1"].wait_peers(1)
        # It hands its programs' work on, and gets none of the others'.
        assert work(node, model_input, at_once=1) == {"n1"}
        assert work(real_grid["n1"], model_input) == {"n1"}
        disk.remount("size=16m")
        node.wait_ready()
        wait_until(lambda: "n2" in work(node, model_input))
        assert node.stop() == 0


@needs_mounts
def test_a_state_directory_that_cannot_be_written_ends_no_work_and_loses_nothing(real_grid, model_input, wait_until):
    first, node = real_grid["n1"], real_grid.join("n3")
    with Disk(node.state.path, "4m", node.state.path) as disk:
        node.start(share=0.3, under=disk.enter).wait_ready().wait_peers(1)
        disk.fill()
        before = disk.sums()
        # The owner signs anew: the daemon cannot keep that, and goes on with what it has.
        owner = ("--owner-dir", real_grid.owner, "--state-dir", first.state.path, "--socket", first.socket)
        renew = [sys.executable, "-P", "-m", "gridnode", "grid", "renew", *map(str, owner)]
        subprocess.run(renew, check=True, capture_output=True, timeout=30)
        wait_until(lambda: "trust_not_refreshed" in node.log_text())
        assert "No space left on device" in node.log_text()
        assert len(work(node, model_input)) > 1
        assert node.ask()["health"] == "ok"
        # A stop is a stop, and says what could not be kept.
        assert node.stop() == 0
        assert "address_book_not_saved" in node.log_text()
        # A start is refused in a sentence, and everything is as it was.
        node.start(under=disk.enter)
        assert node.process.wait(20) == 1
        assert "No space left on device; check owner and free space" in node.log_text()
        assert disk.sums() == before
        disk.remount("ro")
        node.start(under=disk.enter)
        assert node.process.wait(20) == 1
        assert "cannot be used: Read-only file system" in node.log_text()
        # With the disk repaired the node is whole: same identity, next epoch, and the news.
        disk.remount("rw,size=16m")
        node.start(share=0.3, under=disk.enter).wait_ready()
        assert node.ask()["epoch"] == 2
        wait_until(lambda: node.ask()["root_version"] == 2)
        assert node.stop() == 0


@needs_mounts
def test_a_trace_that_cannot_be_written_is_an_alarm_and_no_work_is_lost(real_grid, model_input, wait_until, tmp_path):
    node, folder = real_grid.join("n5"), tmp_path / "disk"
    folder.mkdir()
    path = folder / "jobs.trace"
    with Disk(folder, "256k", folder) as disk:
        node.start(under=disk.enter, settings=(f"trace.path={path}",)).wait_ready().wait_peers(1)
        work(node, model_input, rounds=2)
        wait_until(lambda: b"answered" in disk.run("cat", path))
        disk.fill()
        wait_until(lambda: work(node, model_input) and "trace_failed" in node.log_text())
        assert "No space left on device" in node.log_text()
        assert node.ask()["health"] == "ok"
        assert node.stop() == 0
        assert node.log_text().count("trace_failed") == 1
        # What half of the last write left was taken back.
        copy = tmp_path / "copy.trace"
        copy.write_bytes(disk.run("cat", path))
        found = read_recording(copy)
        assert (len(found.jobs) > 0, found.cut_bytes) == (True, 0)
        disk.remount("ro")
        node.start(under=disk.enter, settings=(f"trace.path={path}",)).wait_ready()
        assert work(node, model_input)
        wait_until(lambda: "Read-only file system" in node.log_text())
        assert node.stop() == 0


def test_damaged_files_that_can_be_had_again_are(real_grid, model_input, wait_until):
    node = real_grid.join("n4").start()
    node.wait_ready().wait_peers(1)
    assert node.stop() == 0
    state = node.state
    for path in (state.addresses, state.cards, state.grid_time, state.profiles, state.path / "epoch"):
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] + b"\xff{")
    shards = sorted(path for path in (state.store / "shards").iterdir() if path.suffix != ".json")
    for number, path in enumerate(shards):
        path.chmod(0o600)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data[:100] if number else data)
    newest = sorted(state.trust.glob("state-*.bin"))[-1]
    newest.write_bytes(newest.read_bytes()[:-10])
    for target in (state.trust / "targets").iterdir():
        target.write_bytes(b"")
    # The boot counter is one of them. Others remember a card of this life: the daemon asks to be started anew, once.
    node.start()
    assert node.process.wait(20) == 75
    node.start().wait_ready()
    text = node.log_text()
    for event in ("address_book_damaged", "cards_damaged", "grid_time_damaged", "profiles_damaged"):
        assert event in text, event
    node.wait_peers(1)
    assert node.infer().node in ("n1", "n4")
    assert model_of(node)["fetched_bytes"] == model_of(node)["size_bytes"]
    assert work(real_grid["n1"], model_input)


@pytest.mark.parametrize("name", ["node.key", "node.crt", "ca.crt", "grid.json", "revocations.bin"])
def test_damaged_files_that_cannot_be_had_again_are_named_and_kept(real_grid, tmp_path, name):
    folder = tmp_path / "state"
    shutil.copytree(real_grid["n1"].state.path, folder)
    damaged = folder / name
    damaged.write_bytes(b"\xff{ garbage")
    os.chmod(damaged, 0o600)
    command = [sys.executable, "-P", "-m", "gridnode", "run", "--preset", "loopback", "--state-dir", str(folder)]
    began_s = time.monotonic()
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode != 0
    assert time.monotonic() - began_s < 15.0
    assert name in run.stderr or {"node.key": "key", "node.crt": "certificate", "ca.crt": "CA"}.get(name) in run.stderr
    assert "Traceback" not in run.stderr
    assert damaged.read_bytes() == b"\xff{ garbage"
