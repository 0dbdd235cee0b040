"""The checks of `gridnode doctor` find what they look for."""

import fcntl
import os
import socket

from gridnode.cli import checks
from gridnode.config import load_config
from gridnode.gridsetup import create_grid
from gridnode.statedir import StateDirectory


def make_state(tmp_path):
    state = StateDirectory(tmp_path / "a")
    create_grid(state, tmp_path / "owner", "yard", now_s=1.8e9)
    return state


def verdicts(findings):
    return {finding.check: finding.verdict for finding in findings}


def test_a_clock_that_was_never_set_is_noticed():
    assert checks.check_clock(0.0).verdict == "warning"
    assert checks.check_clock(1.8e9).verdict == "good"


def test_a_fresh_node_is_good(tmp_path):
    state = make_state(tmp_path)
    found = verdicts(checks.check_state(state.path))
    assert found["state directory"] == found["key modes"] == "good"


def test_no_node_is_a_warning_with_the_way_to_one(tmp_path):
    [finding] = checks.check_state(tmp_path)
    assert finding.verdict == "warning"
    assert "gridnode join TOKEN" in finding.remedy


def test_a_key_that_others_can_read_is_bad(tmp_path):
    state = make_state(tmp_path)
    state.node_key.chmod(0o644)
    assert verdicts(checks.check_state(state.path))["key modes"] == "bad"


def test_a_running_daemon_is_told_by_its_lock(tmp_path):
    state = make_state(tmp_path)
    assert not checks.is_running(state.path)
    with (state.path / "lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert checks.is_running(state.path)


def test_a_port_in_use_is_bad_and_free_ones_are_not_looked_at():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        config = load_config(None, environment={}, flags={"preset": "loopback", "network": {"data": {"port": port}}})
        [finding] = checks.check_ports(config)
    assert (finding.check, finding.verdict) == ("port data", "bad")


def test_one_bootstrap_node_that_answers_is_enough(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        entries = ["12D@127.0.0.1:1", f"12D@127.0.0.1:{port}"]
        config = load_config(None, environment={}, flags={"network": {"bootstrap": entries}})
        [finding] = checks.check_bootstrap(config, tmp_path)
    assert finding.verdict == "good"
    [finding] = checks.check_bootstrap(config, tmp_path)
    assert finding.verdict == "warning"
    assert "firewall" in finding.remedy


def test_a_trace_needs_a_place_and_room(tmp_path):
    def found(path, **more):
        config = load_config(None, environment={}, flags={"trace": {"path": str(path)} | more})
        return list(checks.check_trace(config, tmp_path))

    assert found("") == []
    assert [each.verdict for each in found("jobs.trace")] == ["good"]
    assert [each.verdict for each in found("deep/er/jobs.trace")] == ["good"]
    (tmp_path / "notes").write_text("dear diary")
    [alien] = found("notes")
    assert (alien.verdict, "is no trace" in alien.seen) == ("bad", True)
    [blocked] = found("notes/jobs.trace")
    assert blocked.verdict == "bad"
    free = os.statvfs(tmp_path).f_bavail * os.statvfs(tmp_path).f_frsize
    if free < 1 << 30:
        assert [each.verdict for each in found("jobs.trace", max_bytes=1 << 30)] == ["warning"]
