"""What is compiled for long experiments."""

import runpy
from pathlib import Path

ACCELERATE = Path(__file__).resolve().parents[2] / "packaging" / "accelerate.py"

PER_REQUEST = []


def test_no_module_that_works_for_each_request_holds_records_and_so_stays_interpreted():
    compiled = runpy.run_path(str(ACCELERATE))["modules"]()
    assert sorted(set(PER_REQUEST) - set(compiled)) == []
