"""Whole nodes on a network in memory and a virtual clock: work spreads, survives faults, and leaves nothing behind."""

import msgspec
import numpy as np
import pytest
import trio

from gridnode.errors import (
    InvalidInputError,
    JobCancelledError,
    JobDeadlineError,
    JobRejectedError,
    UnknownModelError,
)
from gridnode.sandbox import SandboxDevice
from gridnode.sandboxload import Load
from transport.memory import Link

NO_STEALING = {"scheduler": {"steal": {"enabled": False}}}
X = {"x": np.zeros(1000, np.uint8)}


def test_work_offered_at_the_slowest_node_is_shared_by_speed(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            load = Load(grid)
            await load.send(300, every_s=0.02)
        assert load.answered == 300, load.errors
        assert load.nodes["fast"] > load.nodes["mid"] > load.nodes["slow"]

    run_grid(scenario)


def test_a_single_frame_goes_where_it_is_done_first(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            result = await grid.infer("m", X, deadline_s=2.0)
        assert (result.node, result.hops) == ("fast", 1)
        assert 0.025 <= result.timings.total_s < 0.05

    run_grid(scenario)


@pytest.mark.parametrize("victim", ["fast", "mid"])
def test_every_job_has_one_outcome_when_a_node_is_killed_under_load(run_grid, victim):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            load = Load(grid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: load.send(200, every_s=0.025))
                await trio.sleep(2.5)
                await sandbox.kill(victim)
            assert load.outcomes == load.sent == 200
            assert load.answered >= 190, load.errors
            assert not {name for name, _ in load.errors} - {"JobDeadlineError", "JobRejectedError"}
            assert grid.late_answers == 0

    run_grid(scenario)


def test_a_killed_entry_node_costs_no_job_of_a_client_that_knows_another(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow", "mid") as grid:
            load = Load(grid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: load.send(150, every_s=0.02, deadline_s=5.0))
                await trio.sleep(1.5)
                await sandbox.kill("slow")
            assert load.answered == load.sent == 150, load.errors

    run_grid(scenario)


def test_jobs_of_a_silent_node_are_placed_again_within_the_silence_bound(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            load = Load(grid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: load.send(150, every_s=0.025, deadline_s=4.0))
                await trio.sleep(1.0)
                sandbox.network.pause(sandbox.nodes["fast"].running.credentials.node)
            assert load.answered == load.sent, load.errors
            # Silence shows after 2 x 0.5 s without PROGRESS and its allowance; then the job is done anew.
            assert max(load.times_s) < 2.5
            # As soon as the node is back it is used again.
            sandbox.network.resume(sandbox.nodes["fast"].running.credentials.node)
            load = Load(grid)
            await sandbox.wait_until(lambda: _open_peers(sandbox, "slow") == 2, limit_s=30.0)
            await trio.sleep(5.0)
            await load.send(100, every_s=0.03)
            assert load.nodes["fast"] > 0

    run_grid(scenario)


def test_both_sides_of_a_partition_work_on_and_meet_again(run_grid):
    async def scenario(sandbox):
        ids = {name: node.running.credentials.node for name, node in sandbox.nodes.items()}
        async with sandbox.program("slow") as grid, sandbox.program("mid") as other:
            here, there = Load(grid), Load(other)
            sandbox.network.partition([ids["slow"]], [ids["fast"], ids["mid"]])
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: here.send(60, every_s=0.25, deadline_s=4.0))
                nursery.start_soon(lambda: there.send(60, every_s=0.25, deadline_s=4.0))
            assert here.answered == 60, here.errors
            assert there.answered == 60, there.errors
            assert set(here.nodes) == {"slow"}
            sandbox.network.heal()
            await sandbox.wait_until(
                lambda: all(_open_peers(sandbox, name) == 2 for name in sandbox.nodes), limit_s=20.0
            )
            here = Load(grid)
            await here.send(60, every_s=0.05)
            assert here.answered == 60
            assert here.nodes["fast"] > 20

    run_grid(scenario)


def test_a_draining_node_finishes_or_hands_over_what_it_has(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            load = Load(grid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: load.send(200, every_s=0.02))
                await trio.sleep(2.0)
                await sandbox.stop("fast")
            assert load.outcomes == 200
            assert load.answered >= 190, load.errors
        assert [peer.status for peer in sandbox.nodes["slow"].running.insight.peers() if peer.name == "fast"] == [
            "left"
        ]

    run_grid(scenario)


def test_a_draining_entry_node_sends_its_clients_on_and_answers_what_is_open(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow", "mid") as grid:
            load = Load(grid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: load.send(150, every_s=0.02))
                await trio.sleep(1.0)
                await sandbox.stop("slow")
            assert load.answered == 150, load.errors

    run_grid(scenario)


def test_an_idle_node_steals_from_one_that_got_a_burst(run_grid):
    """The burst is placed before the fast node comes, so that what it gets is stolen."""

    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            load = Load(grid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: load.send(40, deadline_s=30.0))
                await trio.sleep(0.1)
                await trio.to_thread.run_sync(sandbox.create, "late", SandboxDevice(speed=8))
                await sandbox.start("late", {})
            assert load.answered == 40, load.errors
            assert load.nodes["late"] >= 20
        late, slow = (sandbox.nodes[name].running.core.statistics() for name in ("late", "slow"))
        assert late.jobs_stolen >= 10
        assert slow.jobs_granted >= late.jobs_stolen

    long_queue = {"scheduler": {"queue": {"bound_s": 30.0}, "placement": {"default_deadline_s": 30.0}}}
    run_grid(scenario, devices={"slow": SandboxDevice()}, models_s={"m": 0.4}, flags=long_queue)


@pytest.mark.parametrize("wait_s", [0.0, 0.05, 0.3])
def test_jobs_that_end_while_they_are_handed_to_a_thief_leave_no_trace(run_grid, wait_s):
    """Large inputs on a slow link: the program goes, or cancels, while a grant is half sent."""

    async def scenario(sandbox):
        async with sandbox.program("slow") as grid, sandbox.program("slow") as other:
            large = {"x": np.zeros(3_000_000, np.uint8)}
            handles = [await (grid, other)[i % 2].submit("m", large, deadline_s=30.0) for i in range(16)]
            await trio.to_thread.run_sync(sandbox.create, "late", SandboxDevice(speed=8))
            await sandbox.start("late", {})
            await sandbox.wait_until(
                lambda: sandbox.nodes["slow"].running.core.statistics().jobs_granted > 0, limit_s=20.0
            )
            await trio.sleep(wait_s)
            for handle in handles[1::2]:
                handle.cancel()
        await sandbox.wait_until(lambda: not any(len(node.jobs) for node in sandbox.alive()), limit_s=15.0)
        assert len(sandbox.alive()) == 2
        assert {peer.status for peer in sandbox.nodes["slow"].running.insight.peers()} == {"alive"}

    long_queue = {"scheduler": {"queue": {"bound_s": 30.0}, "placement": {"default_deadline_s": 30.0}}}
    run_grid(
        scenario, devices={"slow": SandboxDevice()}, models_s={"m": 1.0}, flags=long_queue, link=Link(bytes_per_s=10e6)
    )


def test_a_node_added_under_load_takes_work_within_5_s(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            load = Load(grid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: load.send(400, every_s=0.05))
                await trio.sleep(3.0)
                await trio.to_thread.run_sync(sandbox.create, "new", SandboxDevice(speed=8))
                began_s = trio.current_time()
                await sandbox.start("new")
                await sandbox.wait_until(lambda: load.nodes["new"] > 0, limit_s=30.0)
                assert trio.current_time() - began_s < 5.0
            assert load.outcomes == 400

    run_grid(scenario, devices={"slow": SandboxDevice(), "mid": SandboxDevice(speed=2)})


def test_overload_is_refused_by_name_with_an_estimate_and_what_is_taken_is_in_time(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            load = Load(grid)
            await load.send(600, every_s=0.005, deadline_s=1.0)  # 200 per second against about 70
            assert load.outcomes == 600
            assert load.answered > 180
            assert max(load.times_s) < 1.05
            assert set(load.errors) <= {
                ("JobDeadlineError", "deadline"), ("JobDeadlineError", "expired"), ("JobRejectedError", "queue_full")
            }  # fmt: skip
            assert load.errors["JobDeadlineError", "expired"] <= 30, load.errors
            jobs = [await grid.submit("m", X, deadline_s=0.4) for _ in range(100)]
            estimates = [error.estimate_s for error in [await _error_of(job) for job in jobs] if error is not None]
            assert estimates
            assert all(estimate is None or estimate > 0 for estimate in estimates)
            assert any(estimate is not None for estimate in estimates)

    run_grid(scenario)


def test_a_cancel_stops_the_executor(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            job = await grid.submit("m", X, deadline_s=60.0)
            await sandbox.wait_until(
                lambda: sandbox.nodes["fast"].running.core.statistics().jobs_running == 1, limit_s=1
            )
            job.cancel()
            with pytest.raises(JobCancelledError):
                await job.result()
            await sandbox.wait_until(lambda: not sandbox.nodes["fast"].running.jobs, limit_s=0.5)
            assert sandbox.nodes["fast"].running.core.statistics().jobs_running == 0

    run_grid(scenario, models_s={"m": 2.0})


def test_a_program_that_goes_leaves_no_job_behind(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            for _ in range(12):
                await grid.submit("m", X, deadline_s=60.0)
            await sandbox.wait_until(lambda: all(len(node.jobs) for node in sandbox.alive()), limit_s=0.1)
        await sandbox.wait_until(lambda: not any(len(node.jobs) for node in sandbox.alive()), limit_s=1.0)

    run_grid(scenario, models_s={"m": 0.5})


def test_of_a_stream_the_newest_frame_wins(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:

            async def frames():
                for _ in range(60):
                    yield X
                    await trio.sleep(0.02)

            items = [
                item async for item in grid.stream(frames(), model="m", mode="newest", deadline_s=2.0, in_flight=8)
            ]
        done = [item for item in items if item.result is not None]
        assert len(items) <= 60
        assert 8 <= len(done) < 60
        assert [item.frame for item in items] == sorted(item.frame for item in items)
        assert done[-1].frame >= 58

    run_grid(scenario, devices={"slow": SandboxDevice()})


def test_two_programs_with_the_same_keys_both_get_their_answers(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as one, sandbox.program("slow") as two, sandbox.program("mid") as three:
            for grid in (two, three):
                grid._session._work.client = one._session.client
            loads = [Load(grid) for grid in (one, two, three)]
            async with trio.open_nursery() as nursery:
                for load in loads:
                    nursery.start_soon(lambda load=load: load.send(40, every_s=0.05))
            assert [load.answered for load in loads] == [40, 40, 40], [load.errors for load in loads]

    run_grid(scenario)


def test_bad_requests_are_named_and_cost_nothing(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            with pytest.raises(UnknownModelError, match="published are: m"):
                await grid.infer("nothing", X)
            with pytest.raises(JobDeadlineError, match="must be > 0"):
                await grid.submit("m", X, deadline_s=-1.0)
            for bad in ({"y": X["x"]}, {"x": np.zeros(10, np.float32)}, {"x": np.zeros((2, 2), np.uint8)}, {}):
                with pytest.raises(InvalidInputError):
                    await grid.infer("m", bad)
            assert (await grid.infer("m", X)).node == "fast"

    run_grid(scenario)


def test_a_peer_that_lies_about_its_load_loses_its_share(run_grid):
    """The liar says it is idle and takes 40 times as long as it measured."""

    async def scenario(sandbox):
        executor = sandbox.nodes["liar"].running._executor
        for model in executor._models.values():
            model.cost = msgspec.structs.replace(model.cost, mean_s=1.0)
        async with sandbox.program("slow") as grid:
            load = Load(grid)
            await load.send(300, every_s=0.1, deadline_s=3.0)
        assert load.answered >= 270, load.errors
        assert load.nodes["liar"] < 60

    devices = {"slow": SandboxDevice(), "mid": SandboxDevice(speed=2), "liar": SandboxDevice(speed=4)}
    run_grid(scenario, devices=devices)


def test_a_model_removed_is_refused_and_one_updated_is_used(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            assert (await grid.infer("m", X)).model == "m"
            before = {node.house.published()["m"][0] for node in sandbox.alive()}
            await trio.to_thread.run_sync(lambda: sandbox.publish("other", mean_s=0.05))
            sandbox.nodes["fast"].running.house.look()
            await sandbox.wait_until(lambda: all(_ready(node, "other") for node in sandbox.alive()), limit_s=30.0)
            assert (await grid.infer("other", X)).model == "other"
            assert {node.house.published()["m"][0] for node in sandbox.alive()} == before
            await trio.to_thread.run_sync(sandbox.remove, "other")
            sandbox.nodes["fast"].running.house.look()
            await sandbox.wait_until(
                lambda: all("other" not in node.house.published() for node in sandbox.alive()), limit_s=30.0
            )
            with pytest.raises(UnknownModelError):
                await grid.infer("other", X)
            assert (await grid.infer("m", X)).model == "m"

    run_grid(scenario)


def test_payloads_too_large_to_send_unasked_are_offered_first(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            load = Load(grid)
            await load.send(60, every_s=0.05, size_bytes=600_000)
        assert load.answered == 60, load.errors
        assert load.nodes["fast"] > load.nodes["slow"]

    run_grid(scenario, link=Link(delay_s=0.002, bytes_per_s=20e6))


def test_a_lossy_slow_link_with_jitter_costs_no_job(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            load = Load(grid)
            await load.send(150, every_s=0.04, size_bytes=20_000)
        assert load.answered == 150, load.errors

    run_grid(scenario, link=Link(delay_s=0.02, jitter_s=0.02, gossip_loss=0.3, bytes_per_s=2e6))


def test_a_queue_is_bounded_by_the_seconds_it_stands_for(run_grid):
    async def scenario(sandbox):
        async with sandbox.program("slow") as grid:
            load = Load(grid)
            await load.send(200, deadline_s=60.0)
            assert load.outcomes == 200
            assert 20 <= load.answered <= 25  # 2 s of 0.1 s, and what began meanwhile
            assert load.errors["JobRejectedError", "queue_full"] >= 175, load.errors

    run_grid(scenario, devices={"slow": SandboxDevice()})


async def _error_of(job):
    try:
        await job.result()
    except JobRejectedError as error:
        return error
    return None


def _open_peers(sandbox, name):
    return sum(peer.is_open for peer in sandbox.nodes[name].running.core.peers())


def _ready(node, model):
    return any(entry.manifest.name == model and entry.state == "ready" for entry in node.house.entries())


@pytest.mark.parametrize("jobs", [3, 10, 15])
def test_a_draining_entry_node_answers_all_it_has_taken(run_grid, jobs):
    async def scenario(sandbox):
        async with sandbox.program("mid") as grid:
            handles = [await grid.submit("m", X, deadline_s=20.0) for _ in range(jobs)]
            await sandbox.wait_until(lambda: len(sandbox.nodes["mid"].running.jobs) == jobs, limit_s=0.09)
            await sandbox.stop("mid")
            errors = [error for error in [await _error_of(handle) for handle in handles] if error is not None]
            assert not errors

    run_grid(scenario, models_s={"m": 0.4})
