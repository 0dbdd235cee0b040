import random

import numpy as np
import pytest
import trio
import trio.testing

from models import ndarrays
from models.bodies import RequestBody, decode_result, encode_request
from models.emulated import DeviceProfile, EmulatedExecutor, EmulatedModel
from models.executor import ModelNotLoadedError, ModelRefusedError, RunDeadlineError, RunOutcome, RunRequest
from models.manifest import Manifest, TensorSpec, describe_shard
from models.tensors import BadInputError

MANIFEST = Manifest(
    name="toy",
    inputs=(TensorSpec(name="x", dtype="float32", shape=(2,)),),
    outputs=(TensorSpec(name="y", dtype="float32", shape=(2,)),),
    peak_memory_bytes=1,
    graph="graph.onnx",
    shards=(describe_shard("graph.onnx", [b"x"]),),
)
HEADERS, PAYLOAD = ndarrays.pack({"x": np.zeros(2, np.float32)})
BODY = encode_request(RequestBody(kind="tensors", tensors=HEADERS))


def request(deadline_s=1000.0):
    return RunRequest(body=BODY, payload=PAYLOAD, deadline_s=trio.current_time() + deadline_s)


def virtual(use, *, slots=1, **model):
    """Run a test with a loaded model on a virtual clock."""

    async def main():
        device = DeviceProfile(models={"toy": EmulatedModel(**model)}, slots=slots)
        executor = EmulatedExecutor(device, random.Random(7))
        async with trio.open_nursery() as nursery:
            await nursery.start(executor.serve)
            await executor.load("d", MANIFEST, None)
            await use(executor)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_run_takes_the_service_time_and_says_that_it_is_emulated():
    async def use(executor):
        began_s = trio.current_time()
        [outcome] = await executor.run("d", [request()])
        assert trio.current_time() - began_s == pytest.approx(0.25)
        assert outcome.service_s == 0.25
        assert decode_result(outcome.body).emulated
        assert outcome.payload == b""

    virtual(use, mean_s=0.25, cv=0.0)


def test_runs_beyond_the_slots_wait():
    async def use(executor):
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(executor.run, "d", [request()])
            await trio.testing.wait_all_tasks_blocked()
            [entry] = executor.statistics()
            assert (entry.running, entry.waiting) == (2, 1)
        assert trio.current_time() - began_s == pytest.approx(2.0)

    virtual(use, mean_s=1.0, cv=0.0, slots=2)


def test_on_started_is_called_when_the_slot_is_taken():
    async def use(executor):
        started_s = []
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(executor.run, "d", [request()])
            await trio.testing.wait_all_tasks_blocked()
            await executor.run("d", [request(), request()], on_started=lambda: started_s.append(trio.current_time()))
        assert started_s == [pytest.approx(began_s + 1.0)]

    virtual(use, mean_s=1.0, cv=0.0)


def test_service_times_have_the_mean_and_variation_asked_for():
    async def use(executor):
        outcomes = await executor.run("d", [request(1e6)] * 2000)
        times_s = np.array([outcome.service_s for outcome in outcomes])
        assert times_s.mean() == pytest.approx(0.1, rel=0.05)
        assert times_s.std() / times_s.mean() == pytest.approx(0.5, rel=0.1)

    virtual(use, mean_s=0.1, cv=0.5)


def test_the_deadline_ends_a_run_and_frees_the_slot():
    async def use(executor):
        began_s = trio.current_time()
        late, good = await executor.run("d", [request(2.0), request(100.0)])
        assert isinstance(late, RunDeadlineError)
        assert isinstance(good, RunOutcome)
        assert trio.current_time() - began_s == pytest.approx(12.0)
        assert executor.statistics()[0].terminated == 1

    virtual(use, mean_s=10.0, cv=0.0)


def test_bad_input_is_refused_as_by_a_real_worker():
    async def use(executor):
        bad = RunRequest(body=BODY, payload=b"short", deadline_s=trio.current_time() + 1)
        [outcome] = await executor.run("d", [bad])
        assert isinstance(outcome, BadInputError)

    virtual(use, mean_s=0.1)


def test_loading_takes_the_load_time_and_a_second_load_waits_for_the_first():
    async def main():
        executor = EmulatedExecutor(
            DeviceProfile(models={}, default=EmulatedModel(mean_s=1, load_s=3)), random.Random(1)
        )
        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(executor.load, "d", MANIFEST, None)
            await trio.testing.wait_all_tasks_blocked()
            assert executor.loaded() == frozenset()
        assert trio.current_time() - began_s == pytest.approx(3.0)
        assert executor.loaded() == {"d"}

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_model_without_a_profile_is_refused_and_one_not_loaded_cannot_run():
    async def main():
        executor = EmulatedExecutor(DeviceProfile(models={}), random.Random(1))
        with pytest.raises(ModelRefusedError, match="no service time for model 'toy'"):
            await executor.load("d", MANIFEST, None)
        with pytest.raises(ModelNotLoadedError):
            await executor.run("d", [request()])

    trio.run(main)


def test_an_unloaded_model_is_gone():
    async def use(executor):
        await executor.unload("d")
        await executor.unload("d")
        assert executor.loaded() == frozenset()
        assert executor.statistics() == ()

    virtual(use, mean_s=0.1)
