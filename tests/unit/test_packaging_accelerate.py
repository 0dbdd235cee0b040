"""What is compiled for long experiments."""

import runpy
from pathlib import Path

ACCELERATE = Path(__file__).resolve().parents[2] / "packaging" / "accelerate.py"

PER_REQUEST = [
    "scheduler/core.py",
    "scheduler/intake.py",
    "scheduler/asking.py",
    "scheduler/placement.py",
    "scheduler/active.py",
    "scheduler/view.py",
    "scheduler/workbench.py",
    "scheduler/execution.py",
    "scheduler/outcomes.py",
    "scheduler/listening.py",
    "scheduler/ledger.py",
    "scheduler/jobs.py",
    "scheduler/queue.py",
    "scheduler/timers.py",
    "scheduler/estimate.py",
    "scheduler/advertise.py",
    "scheduler/policies/capd.py",
    "simulator/engine.py",
    "simulator/world.py",
    "simulator/client.py",
    "simulator/metrics.py",
    "simulator/node.py",
    "simulator/hands.py",
    "simulator/inbound.py",
    "simulator/errands.py",
    "simulator/conversation.py",
    "simulator/entries.py",
    "simulator/connection.py",
    "simulator/network.py",
    "simulator/ways.py",
    "simulator/flows.py",
    "simulator/machine.py",
    "simulator/draws.py",
    "simulator/gossip.py",
    "simulator/stations.py",
]


def test_no_module_that_works_for_each_request_holds_records_and_so_stays_interpreted():
    compiled = runpy.run_path(str(ACCELERATE))["modules"]()
    assert sorted(set(PER_REQUEST) - set(compiled)) == []
