"""Programs with many requests under way speak to the worker by lanes where nobody else could answer them."""

import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from pathlib import Path

import anyio
import numpy as np
import onnx
import pytest
import trio
from onnx import TensorProto
from onnx import helper as h

from gridnode.client import AsyncGrid
from gridnode.errors import DaemonUnreachableError, DrainingError, GridError
from gridnode.simulation.recorded import read_recording
from models.manifest import CHUNK_SIZE_BYTES, Manifest, TensorSpec, canonical_bytes, describe_shard
from models.owner import OwnerRepository

pytestmark = pytest.mark.slow

SLOTS = 2
SETTINGS = (f"scheduler.queue.slots={SLOTS}", f"runtime.threads={SLOTS}")
MANY = 400
"""Requests of a flood: with IN_FLIGHT of them under way the daemon has answered some 80 before it gives a ticket."""
IN_FLIGHT = 32
PROGRAM = """
import sys
from collections import deque
import numpy as np
from gridnode.client import Grid
frame = np.zeros((1, 3, 128, 128), dtype="f")
with Grid(sys.argv[1]) as grid:
    handles = deque()
    while True:
        while len(handles) < int(sys.argv[2]):
            handles.append(grid.submit("tiny", {"x": frame}))
        handles.popleft().result()
"""
WIDE = 10_000
"""Numbers that the model ``wide`` gives back: 40 kB."""


@pytest.fixture(scope="module")
def node(real_grid):
    return real_grid["n1"]


def submit(grid, frame, **options):
    return grid.submit("tiny", {"x": frame}, **{"deadline_s": 20.0, "raw_outputs": True} | options)


def check(result, expected):
    np.testing.assert_allclose(result.tensors["y"], expected, rtol=1e-3, atol=1e-4)


def flood(grid, frame, expected, count=MANY, *, in_flight=IN_FLIGHT, **options):
    """Have so many requests answered, so many at a time; returns their keys."""
    under_way, keys = deque(), []
    for number in range(count + in_flight):
        if number >= in_flight:
            handle = under_way.popleft()
            check(handle.result(30.0), expected)
            keys.append(handle.key)
        if number < count:
            under_way.append(submit(grid, frame, **options))
    return keys


async def flood_tasks(grid, frame, expected, count=MANY, *, tasks=IN_FLIGHT):
    """Have so many requests answered, each task waiting for its own."""
    rest = iter(range(count))

    async def ask():
        for _ in rest:
            result = await grid.infer("tiny", {"x": frame}, deadline_s=20.0, raw_outputs=True)
            check(result, expected)

    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(ask)


class Flooding(threading.Thread):
    """A program that floods the node until it is told to stop."""

    def __init__(self, node, frame, expected, *, in_flight=IN_FLIGHT):
        super().__init__()
        self.node, self.frame, self.expected, self.in_flight = node, frame, expected, in_flight
        self.is_over = threading.Event()
        self.answered, self.refused, self.faults, self.late = 0, 0, [], 0

    def run(self):
        under_way = deque()
        with self.node.client() as grid:
            try:
                while not self.is_over.is_set() or under_way:
                    while len(under_way) < self.in_flight and not self.is_over.is_set():
                        under_way.append(submit(grid, self.frame))
                    try:
                        check(under_way.popleft().result(30.0), self.expected)
                        self.answered += 1
                    except (DrainingError, DaemonUnreachableError):
                        self.refused += 1
                        self.is_over.set()
            except BaseException as error:
                self.faults.append(error)
            self.late = grid.late_answers

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *exc_info):
        self.is_over.set()
        self.join(60.0)
        assert not self.is_alive()
        if not any(exc_info):
            assert not self.faults, self.faults


def at_rest(node, wait_until):
    """Wait until nobody's memory is held here, and return what the worker holds then: threads and descriptors."""
    worker, daemon = worker_of(node), node.process
    wait_until(lambda: not memories(worker) and not memories(daemon) and not node.ask()["running"])
    return worker.num_threads(), worker.num_fds()


def worker_of(node):
    [worker] = [each for each in node.workers() if "models.worker" in " ".join(each.cmdline())]
    return worker


def memories(process):
    """Return how many programs' memories a process holds."""
    links = []
    for name in os.listdir(f"/proc/{process.pid}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            links.append(os.readlink(f"/proc/{process.pid}/fd/{name}"))
    return sum("gridnode-payloads" in link for link in links)


def is_no_more(held, rest):
    return all(now <= before for now, before in zip(held, rest, strict=True))


# ---------------------------------------------------------------- a flood goes by lanes


@pytest.mark.parametrize("in_flight", [4, IN_FLIGHT])
def test_most_of_a_flood_comes_by_lanes_and_all_is_accounted_for(node, real_grid, model_input, wait_until, in_flight):
    before = node.ask()
    with node.client() as grid:
        keys = flood(grid, model_input, real_grid.expected, in_flight=in_flight)
        assert len(set(keys)) == MANY
        wait_until(lambda: node.ask()["executed"] >= before["executed"] + MANY)
        assert grid.resubmissions == grid.late_answers == 0
        reasons = []
        for key in keys[-40:]:
            with contextlib.suppress(GridError):  # what the daemon decided is forgotten for what lanes tell later
                reasons.append(grid.explain(key)["items"][-1]["reason"])
        assert reasons.count("by a lane, on a ticket") > 10
    status = node.ask()
    assert status["executed"] - before["executed"] == status["answered"] - before["answered"] == MANY
    assert MANY / 2 < status["by_lane"] - before["by_lane"] < MANY
    assert status["ended"] == before["ended"]
    assert status["invariant_violations"] == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_flood_of_tasks_comes_by_lanes_too(node, real_grid, model_input, wait_until, backend):
    before = node.ask()

    async def main():
        async with AsyncGrid(str(node.socket)) as grid:
            await flood_tasks(grid, model_input, real_grid.expected)
            assert grid.resubmissions == grid.late_answers == 0

    anyio.run(main, backend=backend)
    wait_until(lambda: node.ask()["executed"] >= before["executed"] + MANY)
    status = node.ask()
    assert status["executed"] - before["executed"] == MANY
    assert status["by_lane"] - before["by_lane"] > MANY / 2


def test_a_flood_of_threads_comes_by_lanes_too(node, real_grid, model_input, wait_until):
    before, faults = node.ask(), []
    with node.client() as grid:

        def ask():
            try:
                for _ in range(MANY // 8):
                    check(grid.infer("tiny", {"x": model_input}, raw_outputs=True), real_grid.expected)
            except BaseException as error:
                faults.append(error)

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60.0)
        assert not faults
        assert grid.resubmissions == grid.late_answers == 0
    wait_until(lambda: node.ask()["executed"] >= before["executed"] + MANY)
    status = node.ask()
    assert status["executed"] - before["executed"] == MANY
    assert status["by_lane"] - before["by_lane"] > MANY / 2


def test_as_many_lanes_are_in_use_as_there_are_slots(node, real_grid, model_input, wait_until):
    threads, _ = at_rest(node, wait_until)
    seen = set()
    with Flooding(node, model_input, real_grid.expected) as program:
        wait_until(lambda: seen.add(node.ask()["lanes"]) or max(seen) == SLOTS)
        assert worker_of(node).num_threads() == threads + SLOTS
        wait_until(lambda: program.answered > MANY)
    assert max(seen) == SLOTS


def test_requests_with_little_time_and_of_other_kinds_are_answered_amid_a_flood(node, real_grid, model_input):
    with node.client() as grid:
        flood(grid, model_input, real_grid.expected, 60)
        rng = random.Random(7)
        kinds = [{"deadline_s": 20.0}, {"deadline_s": 0.9}, {"priority": 2}, {"tenant": "shop"}, {}]
        for _ in range(MANY // IN_FLIGHT):
            handles = [submit(grid, model_input, **rng.choice(kinds)) for _ in range(IN_FLIGHT // 2)]
            for handle in handles:
                check(handle.result(30.0), real_grid.expected)
        assert grid.late_answers == 0


def test_jobs_cancelled_in_a_flood_cost_the_others_nothing(node, real_grid, model_input, wait_until):
    with node.client() as grid:
        flood(grid, model_input, real_grid.expected, 60)
        handles = [submit(grid, model_input) for _ in range(3 * IN_FLIGHT)]
        cancelled = [handle for handle in handles[::3] if handle.cancel()]
        for handle in handles:
            if handle not in cancelled:
                check(handle.result(30.0), real_grid.expected)
        flood(grid, model_input, real_grid.expected, 60)
        assert grid.late_answers <= len(cancelled)
    wait_until(lambda: node.ask()["running"] == 0)


# ---------------------------------------------------------------- others than the one who floods


def test_another_program_is_answered_amid_a_flood_as_soon_as_a_run_ends(node, real_grid, model_input, wait_until):
    gaps, ended = [], node.ask()["ended"]
    with Flooding(node, model_input, real_grid.expected) as program, node.client() as other:
        for _ in range(9):
            start = node.ask()["by_lane"]
            wait_until(lambda start=start: node.ask()["by_lane"] > start + MANY)
            answered = program.answered
            check(other.infer("tiny", {"x": model_input}, deadline_s=10.0, raw_outputs=True), real_grid.expected)
            gaps.append(program.answered - answered)
        assert node.ask()["ended"] == ended
    # A run of each slot is in hand when it comes, and its answer, too; behind the flood 32 would be ahead of it.
    assert statistics.median(gaps) <= 4 * SLOTS, gaps
    assert max(gaps) < IN_FLIGHT, gaps


def test_two_floods_share_the_node(node, real_grid, model_input):
    before = node.ask()["executed"]
    with Flooding(node, model_input, real_grid.expected) as one, Flooding(node, model_input, real_grid.expected) as two:
        until_s = time.monotonic() + 30.0
        while min(one.answered, two.answered) < MANY / 2 and time.monotonic() < until_s:
            one.is_over.wait(0.02)
    assert min(one.answered, two.answered) >= MANY / 2
    assert one.late == two.late == 0
    assert node.ask()["executed"] - before <= one.answered + two.answered


# ---------------------------------------------------------------- ends


def test_a_program_that_leaves_in_a_flood_takes_all_that_is_its_own_with_it(node, real_grid, model_input, wait_until):
    rest = []
    for _ in range(4):
        with node.client() as grid:
            flood(grid, model_input, real_grid.expected, 80)
            handles = [submit(grid, model_input) for _ in range(IN_FLIGHT)]
        assert not all(handle._job.done for handle in handles), "some were under way"
        rest.append(at_rest(node, wait_until))
    wait_until(lambda: is_no_more(at_rest(node, wait_until), rest[0]))
    assert node.ask()["lanes"] == node.ask()["running"] == 0
    assert node.ask()["invariant_violations"] == 0


def test_a_program_killed_in_a_flood_leaves_nothing(node, real_grid, model_input, wait_until):
    command = [sys.executable, "-c", PROGRAM, str(node.socket), str(IN_FLIGHT)]
    rest = []
    for _ in range(2):
        start = node.ask()["by_lane"]
        with subprocess.Popen(command, cwd=Path(__file__).parents[2]) as program:
            try:
                wait_until(lambda start=start: node.ask()["by_lane"] > start + MANY)
            finally:
                program.kill()
        rest.append(at_rest(node, wait_until))
    wait_until(lambda: is_no_more(at_rest(node, wait_until), rest[0]))
    assert node.ask()["lanes"] == node.ask()["running"] == 0
    with node.client() as grid:
        flood(grid, model_input, real_grid.expected, 60)


def test_a_worker_that_is_killed_in_a_flood_costs_no_request(node, real_grid, model_input, wait_until):
    with Flooding(node, model_input, real_grid.expected) as program:
        for _ in range(3):
            start = node.ask()["by_lane"]
            wait_until(lambda start=start: node.ask()["by_lane"] > start + MANY or program.faults)
            os.kill(worker_of(node).pid, signal.SIGKILL)
        start = node.ask()["by_lane"]
        wait_until(lambda: node.ask()["by_lane"] > start + MANY or program.faults)
    assert program.refused == program.late == 0
    assert node.ask()["invariant_violations"] == 0


def test_a_worker_that_is_killed_costs_tasks_no_request(node, real_grid, model_input, wait_until):
    async def main():
        async with AsyncGrid(str(node.socket)) as grid, trio.open_nursery() as nursery:
            start = node.ask()["by_lane"]
            nursery.start_soon(flood_tasks, grid, model_input, real_grid.expected, 5 * MANY)
            await trio.to_thread.run_sync(wait_until, lambda: node.ask()["by_lane"] > start + MANY / 2)
            os.kill(worker_of(node).pid, signal.SIGKILL)
        assert grid.late_answers == grid.resubmissions == 0

    trio.run(main)
    assert node.ask()["invariant_violations"] == 0


def test_a_daemon_that_drains_in_a_flood_answers_or_gives_back_each_request(
    make_grid, tmp_path, model_input, wait_until, check_log
):
    grid = make_grid(tmp_path)
    node = grid["n1"].start(settings=(*SETTINGS, "trace.path=jobs.trace")).wait_ready()
    with Flooding(node, model_input, grid.expected) as program:
        wait_until(lambda: node.ask()["by_lane"] > MANY)
        assert node.stop() == 0
    assert program.refused <= IN_FLIGHT
    assert program.late == 0
    check_log(node)
    recording = read_recording(node.state.path / "jobs.trace")
    assert len(recording.jobs) >= program.answered, "what ran by lanes just before is told before the end"


def test_a_daemon_that_is_killed_in_a_flood_gets_all_again_when_it_is_back(
    make_grid, tmp_path, model_input, wait_until
):
    grid = make_grid(tmp_path)
    node = grid["n1"].start(settings=SETTINGS).wait_ready()
    with node.client() as program:
        flood(program, model_input, grid.expected, 100)
        handles = [submit(program, model_input, deadline_s=60.0) for _ in range(IN_FLIGHT)]
        node.kill()
        node.start(settings=SETTINGS).wait_ready()  # a program that does not wait for answers sends nothing meanwhile
        for handle in handles:
            check(handle.result(60.0), grid.expected)
        flood(program, model_input, grid.expected, 100)
        wait_until(lambda: node.ask()["by_lane"] > 0)
        assert 0 < program.resubmissions <= 2 * IN_FLIGHT


# ---------------------------------------------------------------- other nodes and models


def test_with_one_slot_one_lane_takes_the_flood(make_grid, tmp_path, model_input, wait_until):
    grid = make_grid(tmp_path)
    node = grid["n1"].start(settings=("runtime.threads=2",)).wait_ready()
    worker = worker_of(node)
    before, threads = node.ask(), worker.num_threads()
    with node.client() as program:
        flood(program, model_input, grid.expected, 2 * MANY, in_flight=IN_FLIGHT // 2)
        assert worker.num_threads() == threads + 1
        assert program.late_answers == program.resubmissions == 0
    wait_until(lambda: node.ask()["executed"] >= before["executed"] + 2 * MANY)
    status = node.ask()
    assert status["executed"] - before["executed"] == 2 * MANY
    assert status["by_lane"] > MANY


def add_wide_model(grid):
    """Publish a model that gives back WIDE numbers, as many as it took."""
    x = h.make_tensor_value_info("x", TensorProto.FLOAT, [1, WIDE])
    y = h.make_tensor_value_info("y", TensorProto.FLOAT, [1, WIDE])
    graph = h.make_graph([h.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)])
    model.ir_version = 9
    data = model.SerializeToString()
    onnx.checker.check_model(model)
    pieces = [data[start : start + CHUNK_SIZE_BYTES] for start in range(0, len(data), CHUNK_SIZE_BYTES)]
    shard = describe_shard("wide.onnx", pieces)
    manifest = Manifest(
        name="wide",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(1, WIDE)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(1, WIDE)),),
        peak_memory_bytes=64 << 20,
        graph="wide.onnx",
        shards=(shard,),
    )
    owner = OwnerRepository(grid.owner, grid.owner / "repository")
    owner.publish_model(canonical_bytes(manifest), time.time())
    (grid["n1"].state.incoming / shard.sha256).write_bytes(data)
    grid["n1"].state.inbox.write_bytes(owner.publication())


def test_large_answers_of_a_flood_find_room_though_the_program_is_slow_to_read(make_grid, tmp_path, wait_until):
    grid = make_grid(tmp_path)
    add_wide_model(grid)
    node = grid["n1"].start(settings=SETTINGS).wait_ready()
    wait_until(lambda: [model["state"] for model in node.ask("models")["items"]] == ["ready", "ready"])
    frame = np.arange(WIDE, dtype="f").reshape(1, WIDE)
    before = node.ask()
    with node.client() as program:
        asked = 0
        for is_slow in [False] * 20 + [True] * 10:
            handles = [program.submit("wide", {"x": frame + number}, raw_outputs=True) for number in range(IN_FLIGHT)]
            if is_slow:
                node.ask()  # the program does something else before it reads
            for number, handle in enumerate(handles):
                np.testing.assert_array_equal(handle.result(30.0).tensors["y"], -(frame + number))
            asked += IN_FLIGHT
        wait_until(lambda: node.ask()["executed"] >= before["executed"] + asked)
        assert program.late_answers == program.resubmissions == 0
    status = node.ask()
    assert status["executed"] - before["executed"] == asked, "none was run twice, for no lane has ended"
    assert status["by_lane"] > asked / 20
