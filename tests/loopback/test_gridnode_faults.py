"""Faults drawn at random on whole grids: whatever happens, each job has one outcome and nothing is left behind."""

import random

import numpy as np
import pytest
import trio

from gridnode.errors import GridError
from gridnode.sandbox import SandboxDevice
from gridnode.sandboxload import Load
from transport.memory import Link

X = {"x": np.zeros(1000, np.uint8)}
DEVICES = {
    "a": SandboxDevice(cv=0.3),
    "b": SandboxDevice(speed=4, cv=0.3),
    "c": SandboxDevice(speed=2, slots=2, cv=0.3),
    "d": SandboxDevice(speed=3, cv=0.3),
}
"""Programs speak to a, and to c where a is gone; b and d may be killed."""


async def _kill(sandbox, rng):
    name = rng.choice("bd")
    await sandbox.kill(name)
    await trio.sleep(rng.uniform(0.2, 2.0))
    await sandbox.start(name)


async def _restart(sandbox, rng):
    name = rng.choice("bd")
    await sandbox.stop(name)
    await sandbox.start(name)


async def _pause(sandbox, rng):
    node = sandbox.nodes[rng.choice("bcd")].running.credentials.node
    sandbox.network.pause(node)
    await trio.sleep(rng.uniform(0.2, 4.0))
    sandbox.network.resume(node)


async def _part(sandbox, rng):
    nodes = [node.running.credentials.node for node in sandbox.nodes.values()]
    rng.shuffle(nodes)
    cut = rng.randint(1, 3)
    sandbox.network.partition(nodes[:cut], nodes[cut:])
    await trio.sleep(rng.uniform(0.2, 4.0))
    sandbox.network.heal()


async def _cancel_some(sandbox, rng):
    async with sandbox.program("a") as grid:
        handles = [await grid.submit("m", X, deadline_s=5.0) for _ in range(20)]
        await trio.sleep(rng.uniform(0.0, 0.3))
        for handle in rng.sample(handles, 12):
            handle.cancel()
        for handle in handles:
            try:
                await handle.result()
            except GridError:
                continue


async def _leave_early(sandbox, rng):
    async with sandbox.program("a") as grid:
        for _ in range(20):
            await grid.submit("m", X, deadline_s=5.0)
        await trio.sleep(rng.uniform(0.0, 0.3))


FAULTS = (_kill, _restart, _pause, _part, _cancel_some, _leave_early)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_each_job_has_one_outcome_whatever_happens(run_grid, seed):
    rng = random.Random(f"faults/{seed}")

    async def scenario(sandbox):
        async with sandbox.program("a", "c") as grid, sandbox.program("c", "a") as other:
            loads = [Load(grid), Load(other)]
            async with trio.open_nursery() as nursery:
                for load in loads:
                    nursery.start_soon(lambda load=load: load.send(300, every_s=0.05, deadline_s=3.0))
                for _ in range(6):
                    await trio.sleep(rng.uniform(0.3, 1.5))
                    await rng.choice(FAULTS)(sandbox, rng)
            for load in loads:
                assert load.outcomes == load.sent == 300
                assert not [error for error in load.errors if error[0] == "JobFailedError" and error[1] != "poison"]
                assert load.answered >= 200, load.errors
            assert not grid.late_answers
            assert not other.late_answers

    link = Link(delay_s=rng.choice((0.0005, 0.01)), jitter_s=rng.choice((0.0, 0.01)), gossip_loss=0.1)
    run_grid(scenario, devices=DEVICES, link=link, seed=f"faults/{seed}")
