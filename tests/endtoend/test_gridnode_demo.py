"""The demo itself, short: nothing is lost, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 180.0
"""Longest wait for a demo, or for its processes to be gone; on two busy cores it takes about 40 s."""
FIELDS = [
    "frames_sent", "frames_answered", "frames_refused", "frames_lost", "deadline_misses", "p50_ms", "p99_ms", "map50",
    "offloaded", "stolen", "nodes",
]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """One film for all demos here."""
    return tmp_path_factory.mktemp("cache")


def start(cache, *arguments):
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("GRIDNODE_")}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "gridnode", "demo", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=inherited | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)},
    )


def left_over(folder):
    """Return the processes that know a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if str(folder) in " ".join(process.cmdline()) and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            continue
    return [process for process in found if "gridnode run" in " ".join(process.cmdline())]


def wait_gone(processes):
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not alive, [process.cmdline() for process in alive]


@pytest.mark.parametrize("victim", ["middle", "entry"])
def test_no_frame_is_lost_when_a_node_is_killed(cache, tmp_path, victim):
    pictures = tmp_path / "pictures"
    demo = start(cache, "--seconds", 12, "--json", "--kill", victim, "--annotate", pictures)
    with demo:
        out, err = demo.communicate(timeout=PATIENCE_S)
    assert demo.returncode == 0, err
    assert out.count("\n") == 1
    summary = json.loads(out)
    assert list(summary) == FIELDS
    assert summary["frames_lost"] == 0
    assert summary["frames_sent"] == summary["frames_answered"] + summary["frames_refused"] > 0
    assert summary["frames_answered"] > 0.5 * summary["frames_sent"], err
    assert [node["name"] for node in summary["nodes"]] == ["slow", "middle", "fast"]
    assert sum(node["executed"] for node in summary["nodes"]) == summary["frames_answered"]
    assert all(node["executed"] for node in summary["nodes"]), summary
    assert summary["offloaded"] > 0
    assert 0 < summary["map50"] <= 1
    assert "was killed with SIGKILL" in err
    assert all(f"{name} is ready" in err for name in ("slow", "middle", "fast")), err
    assert "Traceback" not in err
    assert "\x1b" not in err
    assert len(list(pictures.glob("frame-*.jpg"))) >= 24


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_outlives_an_interrupted_demo(cache, tmp_path, number):
    folder = tmp_path / "d"
    demo = start(cache, "--seconds", 60, "--keep", folder)
    try:
        until_s = time.monotonic() + PATIENCE_S
        while len(daemons := left_over(folder)) < 3 and time.monotonic() < until_s:
            assert demo.poll() is None, demo.stderr.read()
            time.sleep(0.05)
        assert len(daemons) == 3
        family = [child for daemon in daemons for child in daemon.children(recursive=True)]
        demo.send_signal(number)
        _, err = demo.communicate(timeout=PATIENCE_S)
    finally:
        demo.kill()
    assert demo.returncode == (-number if number == signal.SIGKILL else 130), err
    assert "Traceback" not in err
    wait_gone(daemons + family)
