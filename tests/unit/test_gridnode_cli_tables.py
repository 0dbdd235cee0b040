"""How records look: within the terminal's width, without control codes where there is no terminal."""

import io

import msgspec
import pytest
from rich.console import Console

from gridnode.cli.options import duration_s
from gridnode.cli.tables import decisions_view, models_table, peers_table, status_view
from gridnode.status import CandidateStatus, DecisionStatus, ModelStatus, NodeStatus, PeerStatus, WorkerStatus

NODE = "12D3KooWRxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxAbCdEfGh"
WORKER = WorkerStatus(
    model="street", digest="d" * 64, pid=4711, memory_bytes=123_456_789, runs=12_345, errors=1, restarts=2, running=1,
    waiting=3, cpu_share=0.15, confinement="no-new-privileges namespaces dies-with-parent",
    providers=("CPUExecutionProvider",),
)  # fmt: skip
STATUS = NodeStatus(
    node=NODE, name="crossing-north-east", version="0.1.0", grid_name="yard", grid_id="f" * 64, epoch=12,
    uptime_s=93_784.0, health="ok", draining=False, roles=("admit", "revoke", "serve", "submit"),
    certificate_expires_s=2_000_000.0, trust_expires_s=900_000.0, trust_expired=False, root_version=1,
    timestamp_version=1_795_223_972, control_address="192.168.178.123:4001", data_address="192.168.178.123:4002",
    metrics_address="127.0.0.1:9464", http_address="127.0.0.1:8000", socket="/run/gridnode/gridnode.sock",
    policy="capd", slots=2, cpu_share=1.0, threads=4, neighbours=8, peers_alive=120, isolated_s=None, queue_length=3,
    backlog_s=0.2, running=2, away=5, answered=123_456, executed=100_000, by_lane=9, lanes=2, offloaded=23_456,
    received=5, stolen=7, granted=9, late_answers=0, invariant_violations=0, ended={"deadline": 3}, p50_ms=12.3,
    p99_ms=123.4,
    service_ms=9.9, memory_bytes=130_000_000, memory_free_bytes=2_000_000_000, temperature_c=61.0, slow_down=1.2,
    workers=(WORKER,),
)  # fmt: skip
PEER = PeerStatus(
    node=NODE, name="crossing-south-west", status="alive", reachable=True, neighbour=True,
    address="192.168.178.124:4002", roles=("serve",), certificate_expires_s=2_000_000.0, backlog_s=0.123, slots=1,
    slow_down=1.0, memory_free_bytes=1_000_000_000, state_age_s=1.5, window=4.0, in_flight=3, rtt_ms=2.34,
)  # fmt: skip
STRANGER = PeerStatus(
    node=NODE, name="", status="alive", reachable=False, neighbour=False, address="", roles=(),
    certificate_expires_s=0.0,
)  # fmt: skip
MODEL = ModelStatus(
    name="street", digest="d" * 64, version=3, state="fetching", size_bytes=1_500_000, fetched_bytes=750_000,
    mean_ms=None, p95_ms=None, memory_bytes=80_000_000, rungs=("street-small",), problem="no peer has it",
)  # fmt: skip
DECISION = DecisionStatus(
    key="ab" * 24, at_s=3.0, chosen="fast", reason="arrived",
    candidates=(CandidateStatus(node=NODE, name="fast", predicted_ms=41.0, note="chosen"),),
)  # fmt: skip


def draw(renderable, columns, *, terminal=False):
    stream = io.StringIO()
    Console(file=stream, width=columns, force_terminal=terminal, highlight=False).print(renderable)
    return stream.getvalue()


@pytest.mark.parametrize("columns", [80, 120])
def test_nothing_is_wider_than_the_terminal(columns):
    for renderable in (
        status_view(STATUS, now_s=100_000.0),
        peers_table([PEER, STRANGER], columns=columns, now_s=100_000.0),
        models_table([MODEL], columns=columns),
        decisions_view([DECISION]),
    ):
        text = draw(renderable, columns)
        assert max(len(line) for line in text.splitlines()) <= columns
        assert "\x1b" not in text


@pytest.mark.parametrize("columns", [80, 120])
def test_figures_are_not_cut_off(columns):
    peers = draw(peers_table([PEER, STRANGER], columns=columns, now_s=100_000.0), columns)
    assert "crossing-south-west" in peers
    assert "unreachable" in peers
    assert "2.3 ms" in peers
    status = draw(status_view(STATUS, now_s=100_000.0), columns)
    assert "1 d 2 h" in status
    assert "3 deadline" in status
    assert "9 by lane" in " ".join(status.split())
    assert "2 lanes with tickets" in " ".join(status.split())


def test_no_color_is_respected(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    text = draw(status_view(STATUS, now_s=100_000.0), 80, terminal=True)
    assert not any(f"\x1b[{colour}" in text for colour in ("31", "32", "33", "1;31", "38"))


def test_expired_trust_stands_out():
    expired = draw(status_view(msgspec.structs.replace(STATUS, trust_expired=True), now_s=0.0), 80)
    assert "EXPIRED" in expired


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90.0), ("500ms", 0.5), ("30s", 30.0), ("15m", 900.0), ("1.5h", 5400.0)]
)
def test_durations_are_read(text, seconds):
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "1 week", "-5s", "0", "h", "1e3"])
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(Exception, match="no duration"):
        duration_s(text)
