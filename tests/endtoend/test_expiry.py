"""A real daemon whose signed state runs out while it serves: an alarm, nothing new, and all else goes on."""

import time
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gridnode.credentials import Credentials
from models.desk import DESK_LIFETIME_S, ReleaseDesk
from models.keys import load_key
from models.trust import TrustClient

pytestmark = pytest.mark.slow

LEFT_S = 10.0
"""Life of the signatures from the moment they are made: time for the daemon to start and get ready."""


def metric(daemon, name):
    address = daemon.ask()["metrics_address"]
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
        families = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
    return families[name].samples[0].value


def test_a_state_that_runs_out_raises_an_alarm_and_ends_nothing_until_the_desk_is_back(
    make_grid, tmp_path, wait_until, check_log
):
    grid = make_grid(tmp_path, days_ago=20.0)
    node = grid["n1"]
    signed_s = time.time() - DESK_LIFETIME_S + LEFT_S
    state = node.state
    grid_id = Credentials(state, clock=time.time).grid_id
    desk = ReleaseDesk(state.desk, load_key(state.desk_key), grid_id)
    desk.accept(state.inbox.read_bytes(), signed_s)
    state.inbox.unlink()
    TrustClient(state.trust, grid_id).refresh([desk.file], signed_s)
    key = Path(tmp_path / "desk.key")
    state.desk_key.rename(key)
    node.start().wait_ready()
    assert node.ask()["health"] == "ok"
    assert metric(node, "gridnode_trust_expired") == 0
    wait_until(lambda: node.ask()["trust_expired"])
    assert node.ask()["health"] == "trust expired"
    assert metric(node, "gridnode_trust_expired") == 1
    assert metric(node, "gridnode_trust_expires_timestamp_seconds") == pytest.approx(signed_s + DESK_LIFETIME_S, abs=2)
    node.ask("reload_trust")
    wait_until(lambda: "trust_expired" in node.log_text())
    assert "nothing new is installed, what runs goes on" in node.log_text()
    assert node.infer().node == "n1"
    assert node.stop() == 0
    key.rename(state.desk_key)
    node.start().wait_ready()
    wait_until(lambda: node.ask()["health"] == "ok")
    assert "state_signed" in node.log_text()
    check_log(node)
