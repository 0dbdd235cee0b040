"""Real daemons whose certificates are old, expired or revoked: who is renewed, by whom, and what it costs."""

import subprocess
import sys
import threading
import time
from collections import Counter

import pytest
import trio

from gridnode.credentials import Credentials
from gridnode.errors import GridError
from transport.admission import Credentials as HandshakeCredentials
from transport.base import DataAddress
from transport.dataplane import DataPlaneConfig, TlsDataPlane
from transport.tokens import parse_token
from transport.wire import PeerUnreachableError, Ping

pytestmark = pytest.mark.slow

DAY_S = 86_400.0
MADE_DAYS_AGO = 65.0
"""The first node's certificate expired 35 days ago and its desk's signatures 51; its intermediate has 25 left."""


def expiry(daemon):
    return daemon.ask()["certificate_expires_s"]


def seen(daemon, name):
    """Return how a daemon sees another one."""
    return next((peer for peer in daemon.ask("peers")["items"] if peer["name"] == name), None)


def doors_of(token):
    return tuple(f"{address.host}:{address.port}" for address in parse_token(token).addresses)


def test_the_admit_node_renews_itself_and_the_signed_state(real_grid, wait_until):
    first = real_grid["n1"]
    wait_until(lambda: first.ask()["health"] == "ok")
    status = first.ask()
    # With the intermediate: an admit node cannot give more time than it has.
    assert status["certificate_expires_s"] == pytest.approx(time.time() + 25 * DAY_S, abs=60)
    assert status["trust_expires_s"] == pytest.approx(time.time() + 14 * DAY_S, abs=60)
    assert "certificate_renewed" in first.log_text()
    assert "state_signed" in first.log_text()
    assert first.infer().node == "n1"


def test_a_node_renews_while_it_serves_and_loses_neither_a_job_nor_its_neighbour(real_grid, model_input, wait_until):
    issued_s = time.time() - 20 * DAY_S + 7.0  # due in 7 s
    node = real_grid.enrol("n2", issued_s=issued_s).start(share=0.3)
    node.wait_ready().wait_peers(1)
    assert expiry(node) == int(issued_s + 30 * DAY_S)
    outcomes, stop = Counter(), threading.Event()

    def program():
        with node.client() as grid:
            while not stop.is_set():
                handles = [grid.submit("tiny", {"x": model_input}, deadline_s=8.0) for _ in range(6)]
                for handle in handles:
                    try:
                        outcomes[handle.result().node] += 1
                    except GridError as error:
                        outcomes[repr(error)] += 1

    thread = threading.Thread(target=program)
    thread.start()
    try:
        wait_until(lambda: expiry(node) > time.time() + 24 * DAY_S)
        jobs = outcomes.total()
        wait_until(lambda: outcomes.total() > jobs + 60)
    finally:
        stop.set()
        thread.join()
    assert set(outcomes) == {"n1", "n2"}
    assert "neighbour_lost" not in node.log_text()
    assert "certificate_renewed" in node.log_text()
    wait_until(lambda: seen(real_grid["n1"], "n2")["certificate_expires_s"] == expiry(node))
    assert node.ask()["invariant_violations"] == 0
    # It is kept: the next life begins with it.
    assert Credentials(node.state, clock=time.time).certificate.not_after_s == expiry(node)


def test_an_expired_node_comes_back_through_the_join_door_and_has_no_other_way(real_grid, wait_until):
    first = real_grid["n1"]
    doors = doors_of(first.ask("invite", '{"life_s": 1.0}')["token"])
    node = real_grid.enrol("n3", issued_s=time.time() - 40 * DAY_S, doors=doors).start()
    wait_until(lambda: "door_did_not_renew" in node.log_text(), 15.0)
    assert "make an invite on an admit node" in node.log_text()
    status = node.ask()
    assert (status["health"], status["neighbours"]) == ("certificate expired", 0)
    assert node.ask("models")["items"] == []
    assert seen(first, "n3") is None
    trio.run(_is_refused_at_the_data_port, node, first)
    first.ask("invite")
    wait_until(lambda: node.ask()["health"] == "ok", 25.0)
    node.wait_ready()
    assert expiry(node) > time.time() + 24 * DAY_S
    assert seen(first, "n3")["status"] == "alive"


async def _is_refused_at_the_data_port(node, first):
    """Knock with the node's own key and certificate: not a byte comes back."""
    credentials = Credentials(node.state, clock=time.time)
    handshake = HandshakeCredentials(credentials.key, credentials.chain_pem, credentials.trust, epoch=1)
    plane = TlsDataPlane(handshake, DataPlaneConfig())
    status = await trio.to_thread.run_sync(first.ask)
    host, _, port = status["data_address"].rpartition(":")
    plane.set_address(status["node"], (DataAddress(host=host, port=int(port)),))
    with pytest.raises(PeerUnreachableError, match="instead of accepting our certificate"):
        async with plane.exchange(status["node"]) as exchange:
            await exchange.send(Ping(nonce=1))


def test_a_revoked_node_is_not_renewed_though_the_door_is_open(real_grid, wait_until):
    first = real_grid["n1"]
    doors = doors_of(first.ask("invite")["token"])
    node = real_grid.enrol("n4", issued_s=time.time() - 31 * DAY_S, doors=doors)
    before = node.state.certificate.read_bytes()
    first.ask("revoke", Credentials(node.state, clock=time.time).node)
    node.start()
    wait_until(lambda: "was revoked by the owner" in node.log_text(), 15.0)
    assert node.state.certificate.read_bytes() == before
    assert node.ask()["neighbours"] == 0
    assert seen(first, "n4") is None


def test_the_owner_gives_the_admit_node_new_power_while_it_runs(real_grid, wait_until):
    first = real_grid["n1"]
    assert "intermediate_ends" in first.log_text()
    command = [sys.executable, "-P", "-m", "gridnode", "grid", "renew", "--json"]
    words = ("--state-dir", first.state.path, "--owner-dir", real_grid.owner, "--socket", first.socket)
    run = subprocess.run([*command, *map(str, words)], capture_output=True, text=True, timeout=30, check=True)
    assert "admit_expires_s" in run.stdout
    wait_until(lambda: "intermediate_renewed" in first.log_text())
    wait_until(lambda: first.ask()["root_version"] == 2)
    newcomer = real_grid.join("n5")
    certificate = Credentials(newcomer.state, clock=time.time).certificate
    assert certificate.not_after_s == pytest.approx(time.time() + 30 * DAY_S, abs=60)
    assert newcomer.start().wait_ready().infer().node in ("n1", "n5", "n2", "n3")
