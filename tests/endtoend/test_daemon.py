"""Real daemons: a node joins, fetches the model, works, is joined by others, and ends as it should."""

import functools
import signal
import socket
import stat
import subprocess
import sys
import time
import urllib.request

import numpy as np
import psutil
import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gridnode.client import Grid
from gridnode.errors import DrainingError, GridError
from gridnode.gridsetup import create_grid
from gridnode.joining import JoinError, join_grid
from gridnode.statedir import StateDirectory

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def pair(real_grid, wait_until):
    """Add a second daemon, slower than the first, that fetches the model from it."""
    real_grid.join("n2").start(share=0.3)
    real_grid["n2"].wait_ready()
    for name in ("n1", "n2"):
        real_grid[name].wait_peers(1)
    return real_grid


def test_a_joined_node_has_fetched_and_checked_the_model_from_its_peer(pair):
    [model] = pair["n2"].ask("models")["items"]
    assert (model["state"], model["fetched_bytes"]) == ("ready", model["size_bytes"])
    assert model["mean_ms"] > 0
    result = pair["n2"].infer()
    np.testing.assert_allclose(result.tensors["y"], pair.expected, rtol=1e-3, atol=1e-4)
    status = pair["n2"].ask()
    assert status["health"] == "ok"
    assert status["invariant_violations"] == 0


def test_a_burst_at_one_node_is_shared_and_answered_right(pair, model_input):
    with pair["n2"].client() as grid:
        handles = [grid.submit("tiny", {"x": model_input}, deadline_s=20.0, raw_outputs=True) for _ in range(60)]
        results = [handle.result() for handle in handles]
    for result in results:
        np.testing.assert_allclose(result.tensors["y"], pair.expected, rtol=1e-3, atol=1e-4)
    assert {result.node for result in results} == {"n1", "n2"}
    wait = [pair[name].ask() for name in ("n1", "n2")]
    assert [status["invariant_violations"] for status in wait] == [0, 0]


def test_keys_and_state_are_for_the_owner_alone(pair):
    for name in ("n1", "n2"):
        folder = pair[name].state.path
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in folder.rglob("*"):
            mode = stat.S_IMODE(path.stat().st_mode)
            if path.is_dir():
                assert not mode & 0o022, path
            elif path.suffix in (".key", ".pem"):
                assert mode == 0o600, path
            else:
                assert not mode & 0o022, path
        assert stat.S_IMODE(pair[name].socket.stat().st_mode) == 0o660
    for key in pair.owner.glob("*.pem"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600, key


def test_metrics_parse_and_health_is_good(pair):
    address = pair["n1"].ask()["metrics_address"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    assert families["gridnode_ready"].samples[0].value == 1
    assert families["gridnode_worker_memory_bytes"].samples[0].value > 1 << 20
    with urllib.request.urlopen(f"http://{address}/healthz", timeout=5) as answer:
        assert answer.status == 200


def test_a_second_daemon_on_the_same_state_is_refused_with_a_clear_message(pair):
    command = [sys.executable, "-P", "-m", "gridnode", "run", "--preset", "loopback"]
    second = subprocess.run(
        [*command, "--state-dir", str(pair["n1"].state.path)], capture_output=True, text=True, timeout=30, check=False
    )
    assert second.returncode != 0
    assert f"in use by another daemon (process {pair['n1'].process.pid})" in second.stderr
    assert "Traceback" not in second.stderr
    assert pair["n1"].is_alive()


def test_a_folder_without_a_node_is_refused_with_what_to_do(tmp_path):
    command = [sys.executable, "-P", "-m", "gridnode", "run", "--preset", "loopback", "--state-dir", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode != 0
    assert "gridnode join TOKEN" in run.stderr
    assert "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda token: token[:-2], "token"),
        (lambda token: token[:20] + ("A" if token[20] != "A" else "B") + token[21:], "token"),
        (lambda token: "gridnode", "token"),
        (lambda token: "", "token"),
        (lambda token: token * 2, "token"),
    ],
)
def test_a_garbled_token_is_refused(pair, tmp_path, spoil, complaint):
    token = spoil(pair.invite())
    with pytest.raises(JoinError, match=complaint):
        trio.run(functools.partial(join_grid, StateDirectory(tmp_path / "new"), token, name="x", clock=time.time))
    assert not (tmp_path / "new" / "grid.json").exists()


def test_a_spent_token_and_an_expired_one_are_refused(pair, tmp_path, wait_until):
    token = pair.invite()
    join = functools.partial(join_grid, token_text=token, clock=time.time)
    trio.run(functools.partial(join, StateDirectory(tmp_path / "one"), name="one"))
    with pytest.raises(JoinError):
        trio.run(functools.partial(join, StateDirectory(tmp_path / "two"), name="two"))
    began_s = time.time()
    expired = pair.invite('{"life_s": 1}')
    wait_until(lambda: time.time() > began_s + 1.1)
    with pytest.raises(JoinError):
        trio.run(functools.partial(join, StateDirectory(tmp_path / "three"), token_text=expired, name="three"))


def test_a_node_of_another_grid_with_our_addresses_gets_nothing(pair, tmp_path, wait_until):
    stranger = StateDirectory(tmp_path / "stranger")
    create_grid(stranger, tmp_path / "owner", "other", now_s=time.time())
    status = pair["n1"].ask()
    dial = f"{status['node']}@{status['control_address']}"
    log = (tmp_path / "log").open("w+b")
    with log, subprocess.Popen(
        [sys.executable, "-P", "-m", "gridnode", "run", "--preset", "loopback", "--state-dir", str(stranger.path),
         "--socket", str(tmp_path / "s.sock"), "--set", f'network.bootstrap=["{dial}"]', "--log-level", "debug"],
        stdout=log, stderr=log,
    ) as process:  # fmt: skip
        try:
            wait_until(lambda: b"dial_failed" in (tmp_path / "log").read_bytes())
            wait_until((tmp_path / "s.sock").exists)
            with Grid(str(tmp_path / "s.sock")) as grid:
                assert grid.peers()["items"] == []
            process.terminate()
            assert process.wait(20) == 0
        finally:
            process.kill()
    assert len(pair["n1"].ask("peers")["items"]) >= 1
    assert pair["n1"].is_alive()


def test_a_daemon_told_to_stop_drains_and_leaves_no_process(pair, wait_until, model_input):
    third = pair.join("n3")
    third.start().wait_ready()
    workers = third.workers()
    assert workers
    with third.client() as grid:
        handles = [grid.submit("tiny", {"x": model_input}, deadline_s=20.0) for _ in range(10)]
        wait_until(lambda: sum(third.ask()[name] for name in ("answered", "queue_length", "running", "away")) == 10)
        third.signal(signal.SIGTERM)
        for handle in handles:
            assert handle.result().classes
    assert third.process.wait(20) == 0
    assert not third.socket.exists()
    wait_until(
        lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers), 5.0
    )
    peers = wait_until(lambda: [peer for peer in pair["n1"].ask("peers")["items"] if peer["name"] == "n3"])
    assert wait_until(lambda: pair["n1"].ask("peers")["items"] and _status(pair["n1"], "n3") in ("left", "dead")), peers


def test_a_program_whose_only_daemon_shuts_down_is_told_at_once(pair, wait_until, model_input):
    only = pair.join("n7")
    only.start(share=0.2).wait_ready()
    with only.client() as grid:
        handles = [grid.submit("tiny", {"x": model_input}, deadline_s=20.0) for _ in range(10)]
        wait_until(lambda: sum(only.ask()[name] for name in ("answered", "queue_length", "running", "away")) == 10)
        only.signal(signal.SIGTERM)
        errors = [wait_until(functools.partial(_error_of, grid, model_input)) for _ in range(2)]
        assert [type(error) for error in errors] == [DrainingError, DrainingError]
        assert all(handle.result().classes for handle in handles)
        assert only.process.wait(20) == 0
        began_s = time.monotonic()
        with pytest.raises(DrainingError, match="submit later"):
            grid.infer("tiny", {"x": model_input}, deadline_s=30.0)
        assert time.monotonic() - began_s < 1.0
        only.start().wait_ready()
        assert grid.infer("tiny", {"x": model_input}, deadline_s=30.0).classes
    assert only.stop() == 0


def test_a_daemon_that_is_killed_takes_its_workers_with_it(pair, wait_until):
    fourth = pair.join("n4")
    fourth.start().wait_ready()
    workers = fourth.workers()
    assert workers
    fourth.kill()
    wait_until(
        lambda: not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers), 5.0
    )
    # It comes back on the same state, with a higher epoch and without measuring anew, and is heard.
    fourth.start().wait_ready()
    assert fourth.ask()["epoch"] == 2
    wait_until(lambda: _status(pair["n1"], "n4") == "alive")
    assert fourth.stop() == 0


def test_the_service_manager_is_told_of_start_life_and_stop(pair, tmp_path, wait_until):
    heard = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        fifth = pair.join("n5")
        fifth.start(environment={"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"})
        while heard.count("WATCHDOG=1") < 3:
            heard += manager.recv(4096).decode().split("\n")
        assert heard[0] == "READY=1"
        with Grid(str(fifth.socket)) as grid:
            assert grid.status()["name"] == "n5"
        fifth.signal(signal.SIGTERM)
        while "STOPPING=1" not in heard:
            heard += manager.recv(4096).decode().split("\n")
    assert fifth.process.wait(20) == 0


def test_a_second_signal_ends_a_drain_at_once(pair):
    sixth = pair.join("n6")
    sixth.start().wait_ready()
    sixth.signal(signal.SIGTERM)
    sixth.signal(signal.SIGINT)
    assert sixth.process.wait(10) in (0, 130)


def _error_of(grid, model_input):
    try:
        grid.infer("tiny", {"x": model_input}, deadline_s=30.0)
    except GridError as error:
        return error
    return None


def _status(daemon, name):
    return next(peer["status"] for peer in daemon.ask("peers")["items"] if peer["name"] == name)
