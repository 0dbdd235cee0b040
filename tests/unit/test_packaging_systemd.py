"""The systemd unit: good by systemd's own judgement where it is installed, and in step with the daemon."""

import shutil
import subprocess
from pathlib import Path

import pytest

from gridnode.config import NodeConfig, default_socket, default_state_dir
from models.confine import SYSCALLS

FOLDER = Path(__file__).parent.parent.parent / "packaging" / "systemd"
UNIT = FOLDER / "gridnode.service"
EXPOSURE_MAX = 18
"""Tenths, as --threshold takes them. Half of it is what workers need to confine themselves, the rest the network."""


def read(path):
    """Return (section, key, value) of each assignment."""
    section, found = "", []
    for line in path.read_text().splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.append((section, key, value))
    return found


def values(key):
    return [value for section, name, value in read(UNIT) if (section, name) == ("Service", key)]


def test_the_unit_notifies_watches_and_restarts():
    assert values("Type") == ["notify"]
    assert float(values("WatchdogSec")[0]) > 0
    assert values("Restart") == ["always"]
    assert values("ExecStart") == ["/opt/gridnode/bin/gridnode run"]


def test_a_stop_leaves_time_for_the_drain():
    assert float(values("TimeoutStopSec")[0]) > NodeConfig().drain_s


def test_the_daemon_finds_the_folders_that_the_unit_makes():
    state, run = values("StateDirectory")[0], values("RuntimeDirectory")[0]
    assert default_state_dir({"STATE_DIRECTORY": f"/var/lib/{state}"}) == Path("/var/lib/gridnode")
    assert default_socket({"RUNTIME_DIRECTORY": f"/run/{run}"}) == Path("/run/gridnode/gridnode.sock")


def test_psutil_can_read_the_load():
    assert values("ProcSubset") == []


def test_workers_may_confine_themselves():
    assert set(values("RestrictNamespaces")[0].split()) == {"user", "net", "mnt"}
    allowed = set(" ".join(v for v in values("SystemCallFilter") if not v.startswith(("~", "@"))).split())
    needed = {"seccomp", "landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self", "chroot", "capset"}
    assert needed <= allowed
    assert not allowed & (SYSCALLS.keys() - {"chroot"})


@pytest.mark.parametrize("example", sorted(FOLDER.glob("gridnode.service.d/*.example")), ids=lambda path: path.name)
def test_examples_set_keys_of_services_only(example):
    assert {section for section, _, _ in read(example)} == {"Service"}


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_finds_no_fault(tmp_path):
    unit = tmp_path / UNIT.name
    # verify looks for the program, which is not installed here.
    unit.write_text(UNIT.read_text().replace("/opt/gridnode/bin/gridnode", "/bin/true"))
    for command in (
        ["systemd-analyze", "verify", "--man=no", unit],
        ["systemd-analyze", "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", unit],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if "Unknown" in done.stderr and "option" in done.stderr:
            pytest.skip("this systemd is too old to judge a unit offline")
        assert done.returncode == 0, done.stdout[-500:] + done.stderr
        assert "gridnode.service" not in done.stderr, done.stderr
