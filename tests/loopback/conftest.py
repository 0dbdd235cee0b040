"""Whole grids on a virtual clock: a scenario runs, then the grid must be at rest with nothing left over."""

import pytest
import trio
import trio.testing

from gridnode.sandbox import SandboxDevice, open_sandbox

FAST_MID_SLOW = {"fast": SandboxDevice(speed=4), "mid": SandboxDevice(speed=2), "slow": SandboxDevice()}


@pytest.fixture
def run_grid(tmp_path):
    """Run a scenario on a fresh grid and check afterwards that no node kept anything of it.

    ``run_grid(scenario, devices=..., models_s=..., flags=..., link=..., seed=...)``; the scenario takes the sandbox.
    """

    def run(scenario, *, devices=FAST_MID_SLOW, models_s=None, **options):
        async def main():
            grid = open_sandbox(tmp_path, devices=devices, models_s=models_s or {"m": 0.1}, **options)
            async with grid as sandbox:
                await scenario(sandbox)
                await check_at_rest(sandbox)

        trio.run(main, clock=trio.testing.MockClock())

    return run


def leftovers(node):
    """Return what a node at rest must not have, by name."""
    core = node.core.statistics()
    held = {
        "jobs": len(node.jobs),
        "payload bytes": node.jobs.payload_bytes(),
        "queued": core.queue_length,
        "running": core.jobs_running,
        "away": core.jobs_away,
        "errands": node.inbound.outbound.errands,
        "questions": node.inbound.questions,
    }
    return {name: count for name, count in held.items() if count}


async def check_at_rest(sandbox):
    """Check that everything has come to its end: no job, lease, handle or errand anywhere, no promise broken."""
    try:
        await sandbox.wait_until(lambda: not any(leftovers(node) for node in sandbox.alive()), limit_s=15.0)
    except trio.TooSlowError:
        pytest.fail(f"left over: { ({node.name: leftovers(node) for node in sandbox.alive()}) }")
    for node in sandbox.alive():
        assert node.core.statistics().invariant_violations == 0, node.name
