"""Quick starts: a worker that waits for its model, and graphs that are known to have passed the check."""

import os
import random

import numpy as np
import onnx
import psutil
import pytest
import trio
from onnx import TensorProto, helper

from models import ndarrays
from models.admission import PassedGraphs, check_graph, open_graph
from models.bodies import RequestBody, decode_result, encode_request
from models.executor import ModelRefusedError, RunRequest
from models.manifest import Manifest, TensorSpec, describe_shard, model_digest
from models.runtime import Runtime, RuntimeConfig
from models.workerstart import Spare

pytestmark = pytest.mark.slow

LIMIT_S = 60.0


def write_model(folder, name="double", domain=""):
    """Write a model that doubles its input; returns path and manifest."""
    two = helper.make_tensor("two", TensorProto.FLOAT, [], [2.0])
    ends = [helper.make_tensor_value_info(end, TensorProto.FLOAT, [3]) for end in ("x", "y")]
    node = helper.make_node("Mul", ["x", "two"], ["y"], domain=domain)
    model = helper.make_model(
        helper.make_graph([node], name, ends[:1], ends[1:], initializer=[two]),
        opset_imports=[helper.make_opsetid("", 17)],
    )
    model.ir_version = 9
    onnx.save(model, folder / f"{name}.onnx")
    manifest = Manifest(
        name=name,
        inputs=(TensorSpec(name="x", dtype="float32", shape=(3,)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(3,)),),
        peak_memory_bytes=64 << 20,
        graph="graph.onnx",
        shards=(describe_shard("graph.onnx", [b"x"]),),
    )
    return folder / f"{name}.onnx", manifest


async def answer(runtime, manifest):
    headers, payload = ndarrays.pack({"x": np.float32([1, 2, 3])})
    body = encode_request(RequestBody(kind="tensors", tensors=headers))
    [outcome] = await runtime.run(
        model_digest(manifest), [RunRequest(body=body, payload=payload, deadline_s=trio.current_time() + LIMIT_S)]
    )
    return ndarrays.views(decode_result(outcome.body).tensors, outcome.payload)["y"].tolist()


def load(folder, names, **options):
    """Load models one after the other in a runtime; returns statistics of their workers by name."""
    found = {}

    async def main():
        runtime = Runtime(RuntimeConfig(), random.Random(1), **options)
        with trio.fail_after(LIMIT_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(runtime.serve)
                for name in names:
                    path, manifest = write_model(folder, name)
                    await runtime.load(model_digest(manifest), manifest, path)
                    assert await answer(runtime, manifest) == [2, 4, 6]
                found.update({entry.name: entry for entry in runtime.statistics()})
                nursery.cancel_scope.cancel()

    trio.run(main)
    return found


def children():
    return {child.pid for child in psutil.Process().children()}


def test_the_first_model_takes_the_spare_which_is_confined_like_any_other(tmp_path):
    before = len(os.listdir("/proc/self/fd"))
    spare = Spare(slots=1)
    [pid] = children()
    found = load(tmp_path, ["first", "second"], spare=spare)
    assert found["first"].pid == pid
    assert found["second"].pid != pid
    assert found["first"].confinement == found["second"].confinement != ""
    spare.close()
    assert children() == set()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("slots", "is_killed"), [(2, False), (1, True)])
def test_a_spare_that_does_not_fit_or_has_died_is_let_be(tmp_path, slots, is_killed):
    before = len(os.listdir("/proc/self/fd"))
    spare = Spare(slots=slots)
    [process] = psutil.Process().children()
    if is_killed:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert spare.take(slots=slots, accelerated=True) is None
    found = load(tmp_path, ["first"], spare=spare)["first"]
    assert (found.pid != process.pid, found.restarts) == (True, 0)
    spare.close()
    assert children() == set()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_graph_that_passed_passes_again_and_only_that(tmp_path):
    sound, manifest = write_model(tmp_path)
    foreign, _ = write_model(tmp_path, "foreign", domain="com.example")
    file = tmp_path / "graphs.json"

    def check(path, manifest, passed):
        graph = open_graph(path)
        try:
            trio.run(lambda: check_graph(graph, manifest, empty_folder=str(tmp_path), passed=passed))
            return passed.name(graph, manifest)
        finally:
            os.close(graph)

    def fresh():
        passed = PassedGraphs(file)
        passed.load()
        return passed

    passed = fresh()
    name = check(sound, manifest, passed)
    assert name in fresh()
    with pytest.raises(ModelRefusedError, match=r"com\.example"):
        check(foreign, manifest, passed)
    # A name in the file is believed without a check: it stands for these bytes, this manifest and these rules.
    graph = open_graph(foreign)
    passed.add(passed.name(graph, manifest))
    os.close(graph)
    check(foreign, manifest, fresh())
    other = Manifest(**{f: getattr(manifest, f) for f in manifest.__struct_fields__} | {"version": 2})
    with pytest.raises(ModelRefusedError, match=r"com\.example"):
        check(foreign, other, fresh())
    with foreign.open("ab") as bytes_of_it:
        bytes_of_it.write(b"\0")
    with pytest.raises(ModelRefusedError):
        check(foreign, manifest, fresh())


@pytest.mark.parametrize("content", [b"", b"\xff", b"{}", b"[1, 2]", b'["' + b"0" * 64])
def test_a_damaged_memory_of_graphs_counts_as_empty(tmp_path, content):
    (tmp_path / "graphs.json").write_bytes(content)
    passed = PassedGraphs(tmp_path / "graphs.json")
    passed.load()
    assert "0" * 64 not in passed
    passed.add("a" * 64)
    again = PassedGraphs(tmp_path / "graphs.json")
    again.load()
    assert "a" * 64 in again
