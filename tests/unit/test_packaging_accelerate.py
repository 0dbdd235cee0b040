"""What is compiled for long experiments."""

import runpy
from pathlib import Path

import pytest

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


def test_nothing_is_compiled_that_would_then_do_something_else():
    accelerate = runpy.run_path(str(ACCELERATE))
    root = ACCELERATE.parents[1]
    found = {name: accelerate["traps"]((root / name).read_text()) for name in accelerate["modules"]()}
    assert {name: traps for name, traps in found.items() if traps} == {}


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("RETRY_S: Final = (1.0, 60.0)", [1]),
        ("SLOW = 0.1\nMIXED: Final = (SLOW,) * 16 + (0.2,) * 4", [2]),
        ("RETRY_S: Final[tuple[float, ...]] = (1.0, 60.0)", []),
        ("NAMES: Final = ('a', 'b')", []),
        ("RETRY_S = (1.0, 60.0)", []),
    ],
)
def test_a_constant_tuple_of_floats_is_no_constant_when_compiled(source, lines):
    traps = runpy.run_path(str(ACCELERATE))["traps"](source)
    assert [int(trap.partition(":")[0]) for trap in traps] == lines


@pytest.mark.parametrize(("second", "count"), [("ValueError as error", 1), ("ValueError as wrong", 0)])
def test_two_kinds_of_errors_need_two_names_when_compiled(second, count):
    body = ["def read():", " try:", "  go()", " except OSError as error:", "  pass", f" except {second}:", "  pass"]
    assert len(runpy.run_path(str(ACCELERATE))["traps"]("\n".join(body))) == count
