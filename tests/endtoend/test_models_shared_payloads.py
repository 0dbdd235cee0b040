"""Real workers that read payloads where programs put them."""

import fcntl
import io
import mmap
import os
import random
import signal
import threading
from pathlib import Path

import numpy as np
import pytest
import trio
from onnx import TensorProto
from onnx import helper as h
from PIL import Image

from models import ndarrays
from models.bodies import RequestBody, decode_result, encode_request
from models.executor import ModelChange, Place, RunOutcome, RunRequest, WorkerLostError
from models.manifest import (
    ClassificationPostprocessing,
    ImagePreprocessing,
    Manifest,
    TensorSpec,
    describe_shard,
    model_digest,
)
from models.mappings import MARGIN_BYTES
from models.runtime import Runtime, RuntimeConfig
from models.segments import SEGMENT_MAX_BYTES, Segment
from models.tensors import BadInputError

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0
"""No test waits so long; it only keeps a hang from lasting for ever."""


class Program:
    """Memory that a program shares: it writes, the daemon and workers read."""

    def __init__(self, size=1 << 20):
        descriptor = os.memfd_create("program", os.MFD_ALLOW_SEALING)
        os.ftruncate(descriptor, size)
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self.map = mmap.mmap(descriptor, size)
        self.segment = Segment(descriptor, size)

    def request(self, body, payload, *, offset=0, told=None):
        """Put a payload into the memory. What is told beside the place is what would be copied."""
        self.map[offset : offset + len(payload)] = bytes(payload)
        piece = self.segment.piece(offset, len(payload))
        return RunRequest(
            body=encode_request(body),
            payload=piece if told is None else told,
            deadline_s=trio.current_time() + PATIENCE_S,
            place=Place(self.segment, offset),
        )

    def tensors(self, *, offset=0, told=None, **arrays):
        headers, payload = ndarrays.pack(arrays)
        return self.request(RequestBody(kind="tensors", tensors=headers), payload, offset=offset, told=told)

    def close(self):
        self.segment.close()
        self.map.close()


def toy(folder, name, nodes, inputs, outputs, *, initialisers=(), **more):
    ends = [
        [h.make_tensor_value_info(n, getattr(TensorProto, e), [None if z < 0 else z for z in s]) for n, e, _, s in v]
        for v in (inputs, outputs)
    ]
    graph = h.make_graph(nodes, name, *ends, initializer=list(initialisers))
    data = h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=9).SerializeToString()
    path = Path(folder) / f"{name}.onnx"
    path.write_bytes(data)
    manifest = Manifest(
        name=name,
        inputs=tuple(TensorSpec(name=n, dtype=d, shape=tuple(s)) for n, _, d, s in inputs),
        outputs=tuple(TensorSpec(name=n, dtype=d, shape=tuple(s)) for n, _, d, s in outputs),
        peak_memory_bytes=100 << 20,
        graph="graph.onnx",
        shards=(describe_shard("graph.onnx", [data[:1]]),),
        **more,
    )
    return model_digest(manifest), manifest, path


def relu(folder):
    """Could be computed in place, if the runtime did such a thing to its caller's memory."""
    ends = [("x", "FLOAT", "float32", [-1])], [("y", "FLOAT", "float32", [-1])]
    return toy(folder, "relu", [h.make_node("Relu", ["x"], ["y"])], *ends)


def gather(folder):
    """Reads where its input says."""
    table = h.make_tensor("table", TensorProto.FLOAT, [1000], np.arange(1000, dtype=np.float32))
    ends = [("i", "INT64", "int64", [-1])], [("y", "FLOAT", "float32", [-1])]
    return toy(folder, "gather", [h.make_node("Gather", ["table", "i"], ["y"])], *ends, initialisers=[table])


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
    return toy(folder, "loop", nodes, inputs, [("y", "FLOAT", "float32", [64])], initialisers=[true])


def brightness(folder):
    nodes = [h.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0)]
    nodes += [h.make_node("Concat", ["mean", "mean"], ["two"], axis=0), h.make_node("Unsqueeze", ["two", "a"], ["y"])]
    axis = h.make_tensor("a", TensorProto.INT64, [1], [0])
    return toy(
        folder,
        "brightness",
        nodes,
        [("images", "FLOAT", "float32", [1, 3, 32, 32])],
        [("y", "FLOAT", "float32", [1, 2])],
        initialisers=[axis],
        preprocessing=ImagePreprocessing(input="images", width=32, height=32, resize="stretch"),
        postprocessing=ClassificationPostprocessing(output="y", class_names=("a", "b"), softmax=False),
    )


def with_runtime(use, model, **config):
    """Run a test with one model loaded."""
    digest, manifest, path = model

    async def main():
        runtime = Runtime(RuntimeConfig(**config), random.Random(1))
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(runtime.serve)
                await runtime.load(digest, manifest, path)

                async def run(request):
                    [outcome] = await runtime.run(digest, [request])
                    return outcome

                await use(runtime, run)
                nursery.cancel_scope.cancel()

    before = len(os.listdir("/proc/self/fd"))
    trio.run(main)
    assert len(os.listdir("/proc/self/fd")) == before


def outputs(outcome):
    assert isinstance(outcome, RunOutcome), outcome
    return ndarrays.views(decode_result(outcome.body).tensors, outcome.payload)


def mapped(runtime, name="program"):
    """Return how many pieces of programs' memory the worker has mapped."""
    [entry] = runtime.statistics()
    return Path(f"/proc/{entry.pid}/maps").read_text().count(f"/memfd:{name} ")


def test_a_worker_reads_a_payload_where_its_program_has_put_it(tmp_path):
    async def use(runtime, run):
        program = Program()
        x = np.linspace(-1, 1, 5000, dtype=np.float32)
        nothing = bytes(x.nbytes)
        for offset in (0, 64, 65536):
            # Were it copied, these zeros would be.
            outcome = await run(program.tensors(x=x, offset=offset, told=nothing))
            assert np.array_equal(outputs(outcome)["y"], np.maximum(x, 0))
            seen = np.frombuffer(program.map, np.float32, x.size, offset).copy()
            assert np.array_equal(seen, x), "the runtime does not write to it"
        assert mapped(runtime) == 1
        runtime.forget_segment(program.segment)
        while mapped(runtime):
            await trio.lowlevel.checkpoint()
        outcome = await run(program.tensors(x=x))
        assert np.array_equal(outputs(outcome)["y"], np.maximum(x, 0))
        program.close()

    with_runtime(use, relu(tmp_path))


def test_a_payload_at_the_end_of_its_memory_is_copied(tmp_path):
    async def use(runtime, run):
        program = Program(1 << 16)
        x = np.ones((1 << 14) - 16, np.float32)
        outcome = await run(program.tensors(x=x, offset=64))
        assert outputs(outcome)["y"].sum() == x.size
        assert mapped(runtime) == 0
        outcome = await run(program.tensors(x=x[: -MARGIN_BYTES // 4], offset=64))
        assert mapped(runtime) == 1
        program.close()

    with_runtime(use, relu(tmp_path))


def test_a_place_outside_of_the_memory_is_refused(tmp_path):
    async def use(runtime, run):
        program = Program()
        x = np.ones(5000, np.float32)
        for offset in (-64, 8):
            wrong = program.tensors(x=x, told=bytes(x.nbytes))
            wrong = RunRequest(
                body=wrong.body,
                payload=wrong.payload,
                deadline_s=wrong.deadline_s,
                place=Place(program.segment, offset),
            )
            outcome = await run(wrong)
            assert isinstance(outcome, BadInputError)
            assert "lies outside of its memory" in str(outcome)
        assert outputs(await run(program.tensors(x=x)))["y"].all()
        program.close()

    with_runtime(use, relu(tmp_path))


def test_more_programs_than_a_worker_can_have_take_turns(tmp_path):
    async def use(runtime, run):
        programs = [Program(SEGMENT_MAX_BYTES) for _ in range(10)]
        x = np.ones(5000, np.float32)
        for _ in range(2):
            for number, program in enumerate(programs):
                assert (outputs(await run(program.tensors(x=x * number)))["y"] == number).all()
                assert mapped(runtime) <= 8
        for program in programs:
            runtime.forget_segment(program.segment)
            program.close()
        while mapped(runtime):
            await trio.lowlevel.checkpoint()

    with_runtime(use, relu(tmp_path))


def test_a_new_worker_maps_anew(tmp_path):
    async def use(runtime, run):
        program = Program()
        x = np.ones(5000, np.float32)
        assert outputs(await run(program.tensors(x=x)))["y"].all()
        [entry] = runtime.statistics()
        os.kill(entry.pid, signal.SIGKILL)
        change = await runtime.changes().receive()
        assert isinstance(change, ModelChange)
        assert not change.usable
        assert outputs(await run(program.tensors(x=x)))["y"].all()
        assert mapped(runtime) == 1
        program.close()

    with_runtime(use, relu(tmp_path))


def test_memory_that_the_worker_cannot_map_is_copied_from_then_on(tmp_path, caplog):
    async def use(runtime, run):
        program = Program()
        x = np.ones(5000, np.float32)
        # As a worker would see it that has no addresses left: what comes to it is no memory.
        good, program.segment.descriptor = program.segment.descriptor, os.open("/dev/null", os.O_RDONLY)
        for _ in range(3):
            assert outputs(await run(program.tensors(x=x)))["y"].all()
        assert mapped(runtime) == 0
        assert runtime.statistics()[0].errors == 0
        assert [record.msg for record in caplog.records].count("segment_refused pid=%d reason=%r") == 1
        os.close(good)
        program.close()

    with_runtime(use, relu(tmp_path))


def test_a_program_that_leaves_while_its_run_goes_on_takes_nothing_from_it(tmp_path):
    async def use(runtime, run):
        program = Program()
        told, outcome = trio.open_memory_channel(1)
        [digest] = runtime.loaded()
        long = program.tensors(trips=np.array([20_000], np.int64), x=np.ones(64, np.float32))
        assert runtime.begin(digest, long, told.send_nowait) is not None
        runtime.forget_segment(program.segment)
        program.close()
        assert outputs(await outcome.receive())["y"][0] > 0
        while mapped(runtime):
            await trio.lowlevel.checkpoint()

    with_runtime(use, loop(tmp_path))


class Scribbler:
    """A program that changes its memory while it is read, as fast as it can."""

    def __init__(self, program, start, size, seed):
        self.program, self.place = program, slice(start, start + size)
        self.noise = np.random.default_rng(seed).bytes(size)
        self.zeros = bytes(size)
        self.is_over = False
        self.thread = threading.Thread(target=self.scribble)

    def scribble(self):
        while not self.is_over:
            self.program.map[self.place] = self.zeros
            self.program.map[self.place] = self.noise

    def __enter__(self):
        self.thread.start()

    def __exit__(self, *_):
        self.is_over = True
        self.thread.join()


def test_a_program_that_scribbles_over_numbers_gets_numbers(tmp_path):
    async def use(runtime, run):
        program = Program()
        request = program.tensors(x=np.zeros(200_000, np.float32))
        with Scribbler(program, 0, 800_000, 1):
            for _ in range(100):
                assert outputs(await run(request))["y"].size == 200_000
        assert runtime.statistics()[0].restarts == 0
        program.close()

    with_runtime(use, relu(tmp_path))


def test_a_program_that_scribbles_over_indices_harms_nobody(tmp_path):
    async def use(runtime, run):
        program = Program()
        good = program.tensors(i=np.zeros(20_000, np.int64))
        kinds = set()
        # The last ones, so that there is time between a look at them and their use.
        with Scribbler(program, 159_488, 512, 2):
            for _ in range(300):
                kinds.add(type(await run(good)))
        assert WorkerLostError not in kinds
        assert runtime.statistics()[0].restarts == 0
        outcome = await run(program.tensors(i=np.arange(1000)))
        assert outputs(outcome)["y"].tolist() == list(range(1000))
        program.close()

    with_runtime(use, gather(tmp_path))


def test_a_program_that_scribbles_over_its_picture_harms_nobody(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(3).integers(0, 256, (200, 300, 3), np.uint8)).save(file, "JPEG")
    picture = file.getvalue()

    async def use(runtime, run):
        program = Program()
        frame = program.request(RequestBody(kind="array", width=300, height=200), bytes(180_000))
        with Scribbler(program, 0, 180_000, 4):
            for _ in range(30):
                assert isinstance(await run(frame), RunOutcome)
        with Scribbler(program, 0, len(picture) // 2, 5):
            for _ in range(60):
                outcome = await run(program.request(RequestBody(kind="image"), picture))
                assert isinstance(outcome, RunOutcome | BadInputError), outcome
        assert runtime.statistics()[0].restarts == 0
        assert isinstance(await run(program.request(RequestBody(kind="image"), picture)), RunOutcome)
        program.close()

    with_runtime(use, brightness(tmp_path))
