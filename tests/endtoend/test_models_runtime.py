import contextlib
import functools
import io
import os
import random
import select
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import trio
import trio.testing
from onnx import TensorProto
from onnx import helper as h
from PIL import Image

from models import ndarrays
from models.bodies import RequestBody, decode_result, encode_request
from models.cpushare import processor_s
from models.executor import (
    ModelChange,
    ModelNotLoadedError,
    ModelRefusedError,
    RunDeadlineError,
    RunOutcome,
    RunRequest,
    WorkerLostError,
)
from models.golden import GoldenMismatchError, encode_golden
from models.manifest import (
    DetectionPostprocessing,
    Golden,
    ImagePreprocessing,
    Manifest,
    TensorSpec,
    describe_shard,
    model_digest,
)
from models.profile import profile
from models.runtime import Runtime, RuntimeConfig
from models.tensors import BadInputError, InferenceError

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0
"""No test waits so long; it only keeps a hang from lasting for ever."""


class Toy:
    """A tiny model on disk."""

    def __init__(self, folder, name, nodes, inputs, outputs, *, initialisers=(), functions=(), opsets=(), **manifest):
        ends = [
            [
                h.make_tensor_value_info(n, getattr(TensorProto, e), [None if z < 0 else z for z in s])
                for n, e, _, s in v
            ]
            for v in (inputs, outputs)
        ]
        graph = h.make_graph(nodes, name, *ends, initializer=list(initialisers))
        model = h.make_model(
            graph, opset_imports=[h.make_opsetid("", 17), *opsets], ir_version=9, functions=list(functions)
        )
        data = model.SerializeToString()
        self.path = Path(folder) / f"{name}.onnx"
        self.path.write_bytes(data)
        self.manifest = Manifest(
            name=name,
            inputs=tuple(TensorSpec(name=n, dtype=d, shape=tuple(s)) for n, _, d, s in inputs),
            outputs=tuple(TensorSpec(name=n, dtype=d, shape=tuple(s)) for n, _, d, s in outputs),
            peak_memory_bytes=100 << 20,
            graph="graph.onnx",
            shards=(describe_shard("graph.onnx", [data[:1]]),),
            **manifest,
        )
        self.digest = model_digest(self.manifest)


def double(folder):
    two = h.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    nodes = [h.make_node("Mul", ["x", "two"], ["y"])]
    ends = [("x", "FLOAT", "float32", [-1])], [("y", "FLOAT", "float32", [-1])]
    return Toy(folder, "double", nodes, *ends, initialisers=[two])


def loop(folder):
    """x = tanh(x) as often as trips says: as long a run as one likes."""
    body = h.make_graph(
        [h.make_node("Identity", ["go"], ["go_on"]), h.make_node("Tanh", ["a"], ["b"])],
        "body",
        [
            h.make_tensor_value_info("i", TensorProto.INT64, []),
            h.make_tensor_value_info("go", TensorProto.BOOL, []),
            h.make_tensor_value_info("a", TensorProto.FLOAT, [64]),
        ],
        [
            h.make_tensor_value_info("go_on", TensorProto.BOOL, []),
            h.make_tensor_value_info("b", TensorProto.FLOAT, [64]),
        ],
    )
    true = h.make_tensor("true", TensorProto.BOOL, [], [True])
    nodes = [h.make_node("Loop", ["trips", "true", "x"], ["y"], body=body)]
    inputs = [("trips", "INT64", "int64", [1]), ("x", "FLOAT", "float32", [64])]
    return Toy(folder, "loop", nodes, inputs, [("y", "FLOAT", "float32", [64])], initialisers=[true])


def bomb(folder):
    """Reserves as many bytes as asked for."""
    nodes = [h.make_node("ConstantOfShape", ["shape"], ["big"]), h.make_node("ReduceMax", ["big"], ["y"], keepdims=0)]
    return Toy(folder, "bomb", nodes, [("shape", "INT64", "int64", [1])], [("y", "FLOAT", "float32", [])])


def detector(folder):
    """Finds one object at a fixed place in any picture, and lets the mean brightness through."""
    rows = np.zeros((1, 6, 2), np.float32)
    rows[0, :, 0] = [16, 8, 8, 4, 0.9, 0.1]
    rows[0, :, 1] = [4, 4, 2, 2, 0.1, 0.3]
    fixed = h.make_tensor("fixed", TensorProto.FLOAT, rows.shape, rows.flatten())
    nodes = [
        h.make_node("Identity", ["fixed"], ["boxes"]),
        h.make_node("ReduceMean", ["images"], ["mean"], keepdims=0),
    ]
    return Toy(
        folder,
        "detector",
        nodes,
        [("images", "FLOAT", "float32", [1, 3, 32, 32])],
        [("boxes", "FLOAT", "float32", [1, 6, 2]), ("mean", "FLOAT", "float32", [])],
        initialisers=[fixed],
        preprocessing=ImagePreprocessing(input="images", width=32, height=32, resize="stretch"),
        postprocessing=DetectionPostprocessing(output="boxes", class_names=("vehicle", "cyclist")),
    )


def request(deadline_s=PATIENCE_S, *, raw_outputs=False, **arrays):
    headers, payload = ndarrays.pack(arrays)
    body = RequestBody(kind="tensors", tensors=headers, raw_outputs=raw_outputs)
    return RunRequest(body=encode_request(body), payload=payload, deadline_s=trio.current_time() + deadline_s)


def picture_request(payload, body=None):
    body = encode_request(body or RequestBody(kind="image"))
    return RunRequest(body=body, payload=payload, deadline_s=trio.current_time() + PATIENCE_S)


def trips(count, deadline_s=PATIENCE_S):
    return request(deadline_s, trips=np.array([count], np.int64), x=np.ones(64, np.float32))


def outputs(outcome):
    assert isinstance(outcome, RunOutcome), outcome
    return ndarrays.views(decode_result(outcome.body).tensors, outcome.payload)


def jpeg(width=64, height=32, level=128):
    file = io.BytesIO()
    Image.new("RGB", (width, height), (level, level, level)).save(file, "JPEG")
    return file.getvalue()


def with_runtime(use, **config):
    """Run a test inside a runtime, and see that it leaves neither processes nor descriptors behind."""

    async def main():
        runtime = Runtime(RuntimeConfig(**config), random.Random(1))
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(runtime.serve)
                await use(runtime)
                nursery.cancel_scope.cancel()

    before = len(os.listdir("/proc/self/fd"))
    trio.run(main)
    assert psutil.Process().children(recursive=True) == []
    assert len(os.listdir("/proc/self/fd")) == before


async def loaded(runtime, toy):
    await runtime.load(toy.digest, toy.manifest, toy.path)
    return functools.partial(runtime.run, toy.digest)


async def wait_running(runtime):
    while not any(entry.running for entry in runtime.statistics()):
        await trio.lowlevel.checkpoint()


def test_tensors_go_in_and_out(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, double(tmp_path))
        first, second = await run([request(x=np.float32([1, 2, 3])), request(x=np.float32([5]))])
        assert outputs(first)["y"].tolist() == [2, 4, 6]
        assert outputs(second)["y"].tolist() == [10]
        assert 0 < first.service_s < PATIENCE_S

    with_runtime(use)


def test_payloads_of_many_megabytes_pass_and_their_pages_are_given_back(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, double(tmp_path))
        x = np.arange(15 << 20, dtype=np.float32)
        [outcome] = await run([request(x=x)])
        assert (outputs(outcome)["y"] == 2 * x).all()
        [outcome] = await run([request(x=np.ones((16 << 20) + 1, np.float32))])
        assert isinstance(outcome, BadInputError)

    with_runtime(use)


def test_a_picture_becomes_detections_in_its_own_pixels(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, detector(tmp_path))
        [outcome] = await run([picture_request(jpeg(64, 32))])
        result = decode_result(outcome.body)
        assert [(d.class_index, d.class_name) for d in result.detections] == [(0, "vehicle"), (1, "cyclist")]
        assert result.detections[0].box == (24.0, 6.0, 40.0, 10.0)
        assert (result.image_width, result.image_height) == (64, 32)
        assert result.tensors == ()
        assert outcome.payload == b""

    with_runtime(use)


def test_a_frame_given_as_an_array_answers_with_raw_outputs_and_its_own_threshold(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, detector(tmp_path))
        frame = np.full((16, 48, 3), 255, np.uint8)
        body = RequestBody(kind="array", width=48, height=16, raw_outputs=True, score_threshold=0.5)
        [outcome] = await run([picture_request(frame.tobytes(), body)])
        assert outputs(outcome)["mean"] == pytest.approx(1.0)
        assert outputs(outcome)["boxes"].shape == (1, 6, 2)
        assert [d.class_name for d in decode_result(outcome.body).detections] == ["vehicle"]

    with_runtime(use)


def test_bad_input_costs_one_request_and_names_its_fault(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, double(tmp_path))
        detect = await loaded(runtime, detector(tmp_path))
        [wrong_name] = await run([request(z=np.float32([1]))])
        [wrong_dtype] = await run([request(x=np.float16([1]))])
        [wrong_shape] = await run([request(x=np.float32([[1]]))])
        garbage = RunRequest(body=b"\xc1garbage", payload=b"", deadline_s=trio.current_time() + PATIENCE_S)
        [no_body] = await run([garbage])
        [no_picture] = await run([picture_request(jpeg())])
        [truncated] = await detect([picture_request(jpeg(640, 480)[:-300])])
        [no_jpeg] = await detect([picture_request(b"GIF89a" + bytes(100))])
        seen = [wrong_name, wrong_dtype, wrong_shape, no_body, no_picture, truncated, no_jpeg]
        assert [type(error) for error in seen] == [BadInputError] * len(seen)
        assert "no input 'z'" in str(wrong_name)
        assert "float16, the model takes float32" in str(wrong_dtype)
        assert "(1, 1), the model takes (-1,)" in str(wrong_shape)
        assert "body is malformed" in str(no_body)
        assert "takes no pictures" in str(no_picture)
        assert "picture is damaged" in str(truncated)
        assert "neither JPEG nor PNG" in str(no_jpeg)
        [good] = await run([request(x=np.float32([4]))])
        assert outputs(good)["y"].tolist() == [8]
        assert {entry.restarts for entry in runtime.statistics()} == {0}

    with_runtime(use)


def test_an_error_in_a_batch_leaves_the_others_alone(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, double(tmp_path))
        good, bad, other = await run(
            [request(x=np.float32([1])), request(z=np.float32([1])), request(x=np.float32([2]))]
        )
        assert isinstance(bad, BadInputError)
        assert [outputs(good)["y"][0], outputs(other)["y"][0]] == [2, 4]

    with_runtime(use)


def test_an_endless_run_is_terminated_at_its_deadline_and_the_worker_lives_on(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, loop(tmp_path))
        [entry] = runtime.statistics()
        started_s = trio.current_time()
        [outcome] = await run([trips(2**60, deadline_s=0.3)])
        assert isinstance(outcome, RunDeadlineError)
        assert 0.3 <= trio.current_time() - started_s < 1.0
        [after] = await run([trips(1)])
        assert outputs(after)["y"][0] == pytest.approx(np.tanh(1.0))
        [now] = runtime.statistics()
        assert (now.pid, now.terminated, now.restarts) == (entry.pid, 1, 0)

    with_runtime(use)


def test_a_worker_that_keeps_a_run_beyond_its_grace_is_killed_and_replaced(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, loop(tmp_path))
        [entry] = runtime.statistics()
        os.kill(entry.pid, signal.SIGSTOP)
        began_s = trio.current_time()
        [outcome] = await run([trips(1, deadline_s=0.1)])
        assert isinstance(outcome, RunDeadlineError)
        assert trio.current_time() - began_s < 1.0
        change = await runtime.changes().receive()
        assert not change.usable
        assert trio.current_time() - began_s >= 2.0
        [after] = await run([trips(1)])
        assert isinstance(after, RunOutcome)
        assert runtime.statistics()[0].restarts == 1

    with_runtime(use)


def test_a_deadline_that_is_past_costs_no_run(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, double(tmp_path))
        [outcome] = await run([request(-1.0, x=np.float32([1]))])
        assert isinstance(outcome, RunDeadlineError)

    with_runtime(use)


def test_a_cancelled_run_frees_its_slot(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, loop(tmp_path))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, [trips(2**60)])
            await wait_running(runtime)
            nursery.cancel_scope.cancel()
        [after] = await run([trips(1)])
        assert isinstance(after, RunOutcome)

    with_runtime(use)


def test_a_run_begun_in_one_call_is_told_in_another(tmp_path):
    async def use(runtime):
        toy = loop(tmp_path)
        await loaded(runtime, toy)
        tell, told = trio.open_memory_channel(10)

        async def begin(wanted):
            while (stop := runtime.begin(toy.digest, wanted, tell.send_nowait)) is None:
                await trio.lowlevel.checkpoint()
            return stop

        assert runtime.begin("f" * 64, trips(1), tell.send_nowait) is None
        assert runtime.begin(toy.digest, trips(1, deadline_s=-1.0), tell.send_nowait) is None
        stop = await begin(trips(1))
        assert runtime.begin(toy.digest, trips(1), tell.send_nowait) is None, "there is one slot"
        assert outputs(await told.receive())["y"][0] == pytest.approx(np.tanh(1.0))
        stop()  # too late to do anything

        await begin(trips(2**60, deadline_s=0.2))
        assert isinstance(await told.receive(), RunDeadlineError)

        stop = await begin(trips(2**60))
        stop()
        await begin(trips(2**60))
        [entry] = runtime.statistics()
        os.kill(entry.pid, signal.SIGKILL)
        assert isinstance(await told.receive(), WorkerLostError)
        assert runtime.begin(toy.digest, trips(1), tell.send_nowait) is None, "it is started anew"

    with_runtime(use)


def test_waiting_runs_are_served_in_turn_and_a_deadline_counts_while_waiting(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, loop(tmp_path))
        order = []

        async def one(number, count, deadline_s):
            [outcome] = await run([trips(count, deadline_s)])
            order.append((number, type(outcome)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one, 0, 2**60, 0.4)
            await wait_running(runtime)
            nursery.start_soon(one, 1, 1, 0.1)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(one, 2, 1, PATIENCE_S)
        assert order == [(1, RunDeadlineError), (0, RunDeadlineError), (2, RunOutcome)]

    with_runtime(use)


def test_two_slots_run_at_once(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, loop(tmp_path))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, [trips(2**60)])
            await wait_running(runtime)
            [outcome] = await run([trips(1)])
            assert isinstance(outcome, RunOutcome)
            nursery.cancel_scope.cancel()

    with_runtime(use, slots=2)


def wide(folder):
    """As loop, of any width: wide operators are shared by threads, narrow ones are not."""
    ends = [h.make_tensor_value_info(name, TensorProto.FLOAT, [None]) for name in ("a", "b")]
    count = [
        h.make_tensor_value_info("i", TensorProto.INT64, []),
        h.make_tensor_value_info("go", TensorProto.BOOL, []),
    ]
    nodes = [h.make_node("Identity", ["go"], ["go_on"]), h.make_node("Tanh", ["a"], ["b"])]
    go_on = h.make_tensor_value_info("go_on", TensorProto.BOOL, [])
    body = h.make_graph(nodes, "body", [*count, ends[0]], [go_on, ends[1]])
    true = h.make_tensor("true", TensorProto.BOOL, [], [True])
    nodes = [h.make_node("Loop", ["trips", "true", "x"], ["y"], body=body)]
    inputs = [("trips", "INT64", "int64", [1]), ("x", "FLOAT", "float32", [-1])]
    return Toy(folder, "wide", nodes, inputs, [("y", "FLOAT", "float32", [-1])], initialisers=[true])


def spent_ns(pid):
    """Return the processor time of each thread of a process."""
    spent = {}
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            spent[task.name] = int((task / "schedstat").read_text().split()[0])
    return spent


def test_a_run_alone_has_all_threads_and_runs_that_go_at_once_share_them(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, wide(tmp_path))
        [entry] = runtime.statistics()
        short = request(trips=np.array([1]), x=np.ones(8, np.float32))
        await run([short])
        # Two answer, one obeys, one helps.
        assert len(spent_ns(entry.pid)) == 4

        async def busy():
            """Return the threads that had to do with a few wide runs."""
            before = spent_ns(entry.pid)
            long = request(trips=np.array([30], np.int64), x=np.ones(1 << 18, np.float32))
            for outcome in await run([long] * 5):
                assert isinstance(outcome, RunOutcome)
            return {thread for thread, spent in spent_ns(entry.pid).items() if spent != before[thread]}

        alone = await busy()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, [request(trips=np.array([2**60]), x=np.ones(8, np.float32))])
            began = sum(spent_ns(entry.pid).values())
            while sum(spent_ns(entry.pid).values()) < began + 20e6:
                await trio.lowlevel.checkpoint()
            await run([short])
            while len(spent_ns(entry.pid)) > 4:  # a fifth prepares for runs that go at once
                await trio.lowlevel.checkpoint()
            at_once = await busy()
            nursery.cancel_scope.cancel()
        assert len(at_once) <= 2
        assert alone - at_once
        while any(entry.running for entry in runtime.statistics()):
            await trio.lowlevel.checkpoint()
        assert await busy() - at_once

    with_runtime(use, slots=2, threads=2)


def test_a_killed_worker_loses_its_run_and_the_next_run_waits_for_a_new_one(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, loop(tmp_path))
        [entry] = runtime.statistics()
        async with trio.open_nursery() as nursery:

            async def lose():
                with pytest.raises(WorkerLostError, match=r"worker of model 'loop' was lost: it ended by SIGKILL"):
                    await run([trips(2**60)])

            nursery.start_soon(lose)
            await wait_running(runtime)
            os.kill(entry.pid, signal.SIGKILL)
        assert runtime.loaded() == frozenset()
        [outcome] = await run([trips(1)])
        assert isinstance(outcome, RunOutcome)
        [now] = runtime.statistics()
        assert now.restarts == 1
        assert now.pid != entry.pid
        changes = runtime.changes()
        assert not changes.receive_nowait().usable
        assert changes.receive_nowait().usable

    with_runtime(use)


def test_a_run_that_only_waited_for_a_slot_is_taken_to_the_next_worker(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, loop(tmp_path))
        [entry] = runtime.statistics()
        outcomes = []

        async def hold():
            with pytest.raises(WorkerLostError):
                await run([trips(2**60)])

        async def wait():
            outcomes.extend(await run([trips(1), trips(1)]))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold)
            await wait_running(runtime)
            nursery.start_soon(wait)
            while not runtime.statistics()[0].waiting:
                await trio.lowlevel.checkpoint()
            os.kill(entry.pid, signal.SIGKILL)
        assert [type(outcome) for outcome in outcomes] == [RunOutcome, RunOutcome]

    with_runtime(use)


def test_a_model_whose_workers_keep_dying_is_given_up(tmp_path):
    async def use(runtime):
        toy = double(tmp_path)
        await loaded(runtime, toy)
        changes = runtime.changes()
        told = []
        for _ in range(2):
            os.kill(runtime.statistics()[0].pid, signal.SIGKILL)
            told.append(await changes.receive())
            if not told[-1].given_up:
                told.append(await changes.receive())
        assert [(change.usable, change.given_up) for change in told] == [(False, False), (True, False), (False, True)]
        assert all(isinstance(change, ModelChange) and change.digest == toy.digest for change in told)
        with pytest.raises(ModelNotLoadedError):
            await runtime.run(toy.digest, [request(x=np.float32([1]))])
        await runtime.load(toy.digest, toy.manifest, toy.path)
        assert runtime.loaded() == {toy.digest}

    with_runtime(use, restarts_max=1)


def test_a_memory_bomb_is_a_clean_error_and_the_daemon_does_not_grow(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, bomb(tmp_path))
        before = psutil.Process().memory_info().rss
        [outcome] = await run([request(shape=np.array([6 << 30], np.int64))])
        assert isinstance(outcome, InferenceError)
        assert not isinstance(outcome, BadInputError)
        assert psutil.Process().memory_info().rss - before < 16 << 20
        [after] = await run([request(shape=np.array([10], np.int64))])
        assert outputs(after)["y"] == 0

    with_runtime(use)


def test_a_chain_of_3000_functions_is_refused_without_harm(tmp_path):
    # As the runtime it would crash: models.graphcheck never lets it that far.
    opsets = [h.make_opsetid("", 17), h.make_opsetid("local", 1)]
    functions = [
        h.make_function(
            "local", f"F{i}", ["a"], ["b"], [h.make_node(f"F{i + 1}", ["a"], ["b"], domain="local")], opsets
        )
        for i in range(3000)
    ]
    functions.append(h.make_function("local", "F3000", ["a"], ["b"], [h.make_node("Relu", ["a"], ["b"])], opsets))
    ends = [("x", "FLOAT", "float32", [1])], [("y", "FLOAT", "float32", [1])]
    nodes = [h.make_node("F0", ["x"], ["y"], domain="local")]
    toy = Toy(tmp_path, "chain", nodes, *ends, functions=functions, opsets=opsets[1:])

    async def use(runtime):
        with pytest.raises(ModelRefusedError, match="3001 local functions"):
            await runtime.load(toy.digest, toy.manifest, toy.path)
        assert runtime.statistics() == ()

    with_runtime(use)


def test_a_graph_that_is_no_graph_is_refused(tmp_path):
    toy = double(tmp_path)
    toy.path.write_bytes(os.urandom(10_000))

    async def use(runtime):
        with pytest.raises(ModelRefusedError, match="model 'double' is refused: graph is no sound ONNX"):
            await runtime.load(toy.digest, toy.manifest, toy.path)

    with_runtime(use)


def test_a_graph_that_the_runtime_does_not_take_is_refused(tmp_path):
    # Sound by the checker, which infers no shapes, yet no kernel adds these.
    w = h.make_tensor("w", TensorProto.FLOAT, [3], [1.0] * 3)
    nodes = [h.make_node("Add", ["x", "w"], ["y"])]
    ends = [("x", "FLOAT", "float32", [2])], [("y", "FLOAT", "float32", [2])]
    toy = Toy(tmp_path, "clash", nodes, *ends, initialisers=[w])

    async def use(runtime):
        with pytest.raises(ModelRefusedError, match="model 'clash' does not load"):
            await runtime.load(toy.digest, toy.manifest, toy.path)
        assert runtime.statistics() == ()

    with_runtime(use)


def test_a_model_for_other_hardware_is_refused(tmp_path):
    toy = double(tmp_path)

    async def use(runtime):
        with pytest.raises(ModelRefusedError, match="needs one of CPUExecutionProvider, this node has Cuda"):
            await runtime.load(toy.digest, toy.manifest, toy.path)

    with_runtime(use, providers=("Cuda",))


def test_an_unloaded_model_ends_its_runs_and_its_process(tmp_path):
    async def use(runtime):
        toy = loop(tmp_path)
        run = await loaded(runtime, toy)
        pid = runtime.statistics()[0].pid
        async with trio.open_nursery() as nursery:

            async def lose():
                with pytest.raises(WorkerLostError, match="it was unloaded"):
                    await run([trips(2**60)])

            nursery.start_soon(lose)
            await wait_running(runtime)
            await runtime.unload(toy.digest)
        assert not psutil.pid_exists(pid)
        with pytest.raises(ModelNotLoadedError):
            await run([trips(1)])

    with_runtime(use)


def test_two_loads_of_one_model_share_a_worker(tmp_path):
    async def use(runtime):
        toy = double(tmp_path)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(loaded, runtime, toy)
        assert len(runtime.statistics()) == 1

    with_runtime(use)


def test_a_cancelled_load_leaves_nothing(tmp_path):
    async def use(runtime):
        toy = double(tmp_path)
        with trio.move_on_after(0.2):
            await loaded(runtime, toy)
        await runtime.unload(toy.digest)
        assert runtime.loaded() == frozenset()

    with_runtime(use)


def test_statistics_tell_what_a_worker_takes_and_how_it_is_confined(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, double(tmp_path))
        await run([request(x=np.float32([1]))])
        [entry] = runtime.statistics()
        assert 10 << 20 < entry.memory_bytes < 400 << 20
        assert entry.memory_bytes_peak >= entry.memory_bytes
        assert (entry.runs, entry.errors, entry.name) == (1, 0, "double")
        assert {"no-new-privileges", "dies-with-parent", "memory-limit"} <= set(entry.confinement.split())
        assert entry.load_s > 0

    with_runtime(use)


def test_golden_data_decides_whether_a_model_is_right_and_the_profile_says_what_it_costs(tmp_path):
    async def use(runtime):
        toy = double(tmp_path)
        manifest = Manifest(
            **{name: getattr(toy.manifest, name) for name in ("name", "inputs", "outputs", "graph", "shards")},
            peak_memory_bytes=toy.manifest.peak_memory_bytes,
            golden=Golden(shard="graph.onnx", rtol=0.01, atol=0.0),
        )
        await runtime.load(toy.digest, manifest, toy.path)
        x = {"x": np.float32([1, 2])}
        found = await profile(runtime, toy.digest, manifest, encode_golden(x, {"y": np.float32([2, 4.03])}))
        assert 0 < found.mean_s <= found.p95_s < 1
        assert found.memory_bytes > 10 << 20
        assert found.providers == ("CPUExecutionProvider",)
        wrong = encode_golden(x, {"y": np.float32([2, 4.1])})
        with pytest.raises(GoldenMismatchError, match=r"output 'y' differs from golden by up to 0\.1"):
            await profile(runtime, toy.digest, manifest, wrong)
        detect = detector(tmp_path)
        await loaded(runtime, detect)
        assert (await profile(runtime, detect.digest, detect.manifest, None)).runs >= 3

    with_runtime(use)


def test_a_limited_worker_uses_its_share_of_the_processor_and_is_slow_not_dead(tmp_path):
    async def use(runtime):
        run = await loaded(runtime, loop(tmp_path))
        pid = runtime.statistics()[0].pid
        used_s, began_s = processor_s(pid), trio.current_time()
        [outcome] = await run([trips(2**60, deadline_s=1.5)])
        assert isinstance(outcome, RunDeadlineError)
        share = (processor_s(pid) - used_s) / (trio.current_time() - began_s)
        assert 0.2 < share < 0.4
        [after] = await run([trips(1)])
        assert isinstance(after, RunOutcome)
        assert runtime.statistics()[0].restarts == 0

    with_runtime(use, cpu_share=0.3)


def test_a_worker_dies_with_its_daemon(tmp_path):
    double(tmp_path)
    daemon = subprocess.Popen(
        [sys.executable, __file__, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    with daemon:
        worker = psutil.Process(int(daemon.stdout.readline()))
        end = os.pidfd_open(worker.pid)
        # A worker that is stopped, as by a limit on its processor share, dies as well.
        worker.suspend()
        daemon.kill()
        # The descriptor becomes readable when the process has ended, whoever waits for it.
        assert select.select([end], [], [], PATIENCE_S)[0]
        os.close(end)


async def serve_for_ever(folder):
    runtime = Runtime(RuntimeConfig(), random.Random(1))
    async with trio.open_nursery() as nursery:
        await nursery.start(runtime.serve)
        await loaded(runtime, double(folder))
        sys.stdout.write(f"{runtime.statistics()[0].pid}\n")
        sys.stdout.flush()
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(serve_for_ever, sys.argv[1])
