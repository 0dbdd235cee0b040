"""A grid over months: what has an end is renewed in time by itself, and what happens where it is not."""

import functools
import logging

import pytest
import trio
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from gridnode.gridsetup import renew_intermediate
from gridnode.renewal import renew_grid
from gridnode.sandbox import SandboxDevice
from gridnode.sandboxload import Load

pytestmark = pytest.mark.slow

DAY_S = 86_400.0
SETTLE_S = 75.0
"""After machines slept: long enough for every node to look at its certificate and for news."""
ADMIT_AND_TWO = {"admit": SandboxDevice(speed=2), "b": SandboxDevice(), "c": SandboxDevice()}
ADMIT_AND_ONE = {"admit": SandboxDevice(), "b": SandboxDevice()}


def status_of(sandbox, name):
    return sandbox.nodes[name].running.insight.status()


def states(sandbox, name):
    return {model.name: (model.state, model.problem) for model in sandbox.nodes[name].running.insight.models()}


def metric(sandbox, name, family):
    text = sandbox.nodes[name].running.insight.metrics()
    families = {found.name: found for found in text_string_to_metric_families(text)}
    return families[family].samples[0].value


def knows(sandbox, name):
    return sum(peer.is_open for peer in sandbox.nodes[name].running.core.peers())


async def pass_days(sandbox, days):
    sandbox.sleep_all(days * DAY_S)
    await trio.sleep(SETTLE_S)


async def work(sandbox, *, entry="b", jobs=30):
    """Let a program have jobs done, more than its node can do alone; returns who did them."""
    async with sandbox.program(entry) as grid:
        load = Load(grid)
        await load.send(jobs, every_s=0.04, deadline_s=4.0)
    assert load.answered == jobs, load.errors
    return load.nodes


def test_a_grid_left_alone_for_months_but_for_two_renewals_by_its_owner_never_stops(run_grid):
    """Leaves live 30 days, timestamps 14, intermediates 90. Whatever the age of each, work is shared."""

    async def scenario(sandbox):
        expiries = {name: {status_of(sandbox, name).certificate_expires_s} for name in sandbox.nodes}
        versions = set()
        admit = sandbox.nodes["admit"].state
        for day in range(6, 127, 6):
            if day % 60 == 0:
                renew = functools.partial(renew_grid, admit, sandbox.owner, clock=sandbox.now_s)
                await trio.to_thread.run_sync(renew)
                sandbox.nodes["admit"].running.house.look()
            await pass_days(sandbox, 6)
            assert len(await work(sandbox, jobs=12)) > 1
            for name in sandbox.nodes:
                status = status_of(sandbox, name)
                assert status.health == "ok", (day, name)
                assert knows(sandbox, name) == 1
                # A certificate is never older than 2/3 of its life and one sleep.
                assert status.certificate_expires_s > sandbox.now_s() + 3 * DAY_S
                expiries[name].add(status.certificate_expires_s)
                versions.add((status.root_version, status.timestamp_version))
        assert all(len(seen) > 4 for seen in expiries.values())
        assert max(versions)[0] == 3
        assert len(versions) > 8

    run_grid(scenario, devices=ADMIT_AND_ONE)


def test_when_the_owner_never_renews_each_node_says_so_and_serves_its_own_programs(run_grid, caplog):
    async def scenario(sandbox):
        with caplog.at_level(logging.ERROR, "gridnode.admit"):
            for _ in range(12):
                await pass_days(sandbox, 8)
        assert "intermediate_ends" in caplog.text
        assert "gridnode grid renew" in caplog.text
        for name in ("admit", "b"):
            assert status_of(sandbox, name).health == "certificate expired"
            assert knows(sandbox, name) == 0
            assert set(await work(sandbox, entry=name, jobs=5)) == {name}
        # The owner comes back: the admit node is itself again at once. Others need its door, which is no part of a
        # network in memory (transport.door).
        renew = functools.partial(
            renew_intermediate, sandbox.nodes["admit"].state, sandbox.owner, now_s=sandbox.now_s()
        )
        await trio.to_thread.run_sync(renew)
        await sandbox.wait_until(lambda: status_of(sandbox, "admit").health == "ok", limit_s=90.0)

    run_grid(scenario, devices=ADMIT_AND_ONE)


def test_a_node_that_slept_past_two_thirds_of_its_certificate_renews_it_without_losing_a_job(run_grid):
    async def scenario(sandbox):
        before = {name: status_of(sandbox, name).certificate_expires_s for name in sandbox.nodes}
        async with sandbox.program("b") as grid, trio.open_nursery() as nursery:
            load = Load(grid)
            nursery.start_soon(functools.partial(load.send, 1800, every_s=0.05, deadline_s=4.0))
            await trio.sleep(5.0)
            sandbox.sleep_all(21 * DAY_S)
            await sandbox.wait_until(
                lambda: all(status_of(sandbox, name).certificate_expires_s > before[name] for name in before),
                limit_s=80.0,
            )
        assert load.answered == load.sent == 1800, load.errors
        assert load.nodes["admit"] > 100
        # Each knows the others' new certificates.
        for name in sandbox.nodes:
            seen = sandbox.nodes[name].running.insight.peers()
            assert {peer.certificate_expires_s > sandbox.now_s() + 29 * DAY_S for peer in seen} == {True}

    run_grid(scenario, devices=ADMIT_AND_ONE)


def test_a_revoked_node_is_not_renewed(run_grid):
    async def scenario(sandbox):
        await sandbox.nodes["admit"].running.insight.answer("revoke", "b")
        before = status_of(sandbox, "b").certificate_expires_s
        for _ in range(4):
            await pass_days(sandbox, 7)
        assert status_of(sandbox, "b").certificate_expires_s == before
        assert status_of(sandbox, "c").certificate_expires_s > before
        await pass_days(sandbox, 7)
        assert status_of(sandbox, "b").health == "certificate expired"

    run_grid(scenario, devices=ADMIT_AND_TWO)


def test_while_signed_state_is_out_of_date_nothing_new_is_installed_and_all_else_goes_on(run_grid, caplog):
    """The one desk is gone for weeks; its node still admits and renews. Then the desk comes back."""

    async def scenario(sandbox):
        admit = sandbox.nodes["admit"]
        await trio.to_thread.run_sync(functools.partial(sandbox.publish, "later", mean_s=0.05))
        await sandbox.stop("c")
        await sandbox.start("c", {"runtime": {"models": ["m"]}})
        admit.running.house.look()
        await sandbox.wait_until(lambda: states(sandbox, "b").get("later", ("",))[0] == "ready", limit_s=20.0)
        await sandbox.wait_until(lambda: states(sandbox, "c").get("later", ("",))[0] == "unwanted", limit_s=20.0)
        desk_key = admit.state.desk_key.read_bytes()
        await sandbox.stop("admit")
        admit.state.desk_key.unlink()
        await sandbox.start("admit")
        with caplog.at_level(logging.ERROR, "gridnode.trust"):
            await pass_days(sandbox, 8)
            assert status_of(sandbox, "b").health == "ok"
            assert metric(sandbox, "b", "gridnode_trust_expired") == 0
            await pass_days(sandbox, 8)
        assert caplog.text.count("trust_expired") == 3
        for name in sandbox.nodes:
            assert status_of(sandbox, name).health == "trust expired"
            assert metric(sandbox, name, "gridnode_trust_expired") == 1
            assert metric(sandbox, name, "gridnode_trust_expires_timestamp_seconds") < sandbox.now_s()
        # What is activated serves, after a restart too; what c never ran is not installed, though its bytes are near.
        assert len(await work(sandbox, jobs=60)) > 1
        await sandbox.stop("c")
        await sandbox.start("c")
        await sandbox.wait_until(lambda: states(sandbox, "c")["m"][0] == "ready", limit_s=20.0)
        await trio.sleep(10.0)
        state, problem = states(sandbox, "c")["later"]
        assert state == "missing"
        assert "time of the signed state is over" in problem
        assert len(sandbox.nodes["c"].running.house.capabilities()) == 1
        # Certificates are renewed, and a newcomer is let in; it installs nothing.
        expires_s = status_of(sandbox, "b").certificate_expires_s
        await pass_days(sandbox, 6)
        assert status_of(sandbox, "b").certificate_expires_s > expires_s
        await trio.to_thread.run_sync(sandbox.create, "d", SandboxDevice())
        await sandbox.start("d")
        await sandbox.wait_until(lambda: knows(sandbox, "d") == 3, limit_s=20.0)
        assert states(sandbox, "d") == {}
        # The desk is back: it signs anew by itself, everything that waited is installed.
        await sandbox.stop("admit")
        admit.state.desk_key.write_bytes(desk_key)
        admit.state.desk_key.chmod(0o600)
        await sandbox.start("admit")
        for name in ("c", "d"):
            await sandbox.wait_until(
                lambda name=name: states(sandbox, name).get("later", ("",))[0] == "ready", limit_s=150.0
            )
        assert all(status_of(sandbox, name).health == "ok" for name in sandbox.nodes)

    run_grid(scenario, devices=ADMIT_AND_TWO)
