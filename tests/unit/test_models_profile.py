import functools
import hashlib
import io

import numpy as np
import pytest
import trio
import trio.testing
from PIL import Image

from models import appraisal, child, ndarrays
from models.appraisal import compare
from models.bodies import ResultBody, decode_request, encode_result
from models.child import ChildError
from models.emulated import DeviceProfile, EmulatedExecutor, EmulatedModel
from models.executor import ModelNotLoadedError, RunOutcome
from models.golden import GoldenMismatchError, encode_golden, outputs_shard
from models.manifest import Golden, Manifest, TensorSpec, describe_shard
from models.profile import ProfileError, check_golden, profile, quantile

TOLERANCE = {"rtol": 0.1, "atol": 0.5}


def make_manifest(golden=None):
    return Manifest(
        name="toy",
        inputs=(TensorSpec(name="x", dtype="float32", shape=(2,)),),
        outputs=(TensorSpec(name="y", dtype="float32", shape=(2,)),),
        peak_memory_bytes=1,
        graph="graph.onnx",
        golden=golden,
        shards=(describe_shard("graph.onnx", [b"x"]), describe_shard("golden.bin", [b"y"])),
    )


def virtual(main):
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_values_within_atol_plus_rtol_pass_and_beyond_do_not():
    wanted = {"y": np.float32([10.0, -10.0])}
    compare({"y": np.float32([11.4, -11.4])}, wanted, **TOLERANCE)
    with pytest.raises(GoldenMismatchError, match=r"output 'y' differs from golden by up to 1\.6"):
        compare({"y": np.float32([11.6, -10.0])}, wanted, **TOLERANCE)


def test_nan_equals_nan_and_nothing_else():
    compare({"y": np.float32([np.nan])}, {"y": np.float32([np.nan])}, **TOLERANCE)
    with pytest.raises(GoldenMismatchError):
        compare({"y": np.float32([0.0])}, {"y": np.float32([np.nan])}, **TOLERANCE)
    with pytest.raises(GoldenMismatchError):
        compare({"y": np.float32([np.inf])}, {"y": np.float32([1.0])}, **TOLERANCE)


def test_small_integers_are_compared_without_wrapping_round():
    with pytest.raises(GoldenMismatchError, match="up to 255"):
        compare({"y": np.uint8([255])}, {"y": np.uint8([0])}, **TOLERANCE)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "golden output 'y' is not among"),
        ({"y": np.float16([1, 2])}, r"output 'y' is float16\[2\], golden is float32\[2\]"),
        ({"y": np.float32([[1, 2]])}, r"float32\[1, 2\], golden is float32\[2\]"),
    ],
)
def test_outputs_of_another_kind_are_named(found, message):
    with pytest.raises(GoldenMismatchError, match=message):
        compare(found, {"y": np.float32([1, 2])}, **TOLERANCE)


def test_a_profile_holds_the_measured_mean_and_costs():
    async def main():
        device = DeviceProfile(models={"toy": EmulatedModel(mean_s=0.02, cv=0.0, load_s=1.5, memory_bytes=99)})
        executor = EmulatedExecutor(device, rng=None)
        manifest = make_manifest()
        await executor.load("d", manifest, None)
        found = await profile(executor, "d", manifest, None)
        assert (found.mean_s, found.p95_s) == (pytest.approx(0.02), pytest.approx(0.02))
        assert (found.load_s, found.memory_bytes, found.runs) == (1.5, 99, 20)

    virtual(main)


@pytest.mark.parametrize(("mean_s", "runs"), [(0.04, 11), (9.0, 3)])
def test_a_slow_model_is_measured_with_fewer_runs(mean_s, runs):
    async def main():
        executor = EmulatedExecutor(DeviceProfile(models={"toy": EmulatedModel(mean_s=mean_s, cv=0.0)}), rng=None)
        manifest = make_manifest()
        await executor.load("d", manifest, None)
        assert (await profile(executor, "d", manifest, None)).runs == runs

    virtual(main)


def test_a_model_slower_than_any_deadline_is_not_measured():
    async def main():
        executor = EmulatedExecutor(DeviceProfile(models={"toy": EmulatedModel(mean_s=61.0, cv=0.0)}), rng=None)
        manifest = make_manifest()
        await executor.load("d", manifest, None)
        with pytest.raises(ProfileError, match="deadline"):
            await profile(executor, "d", manifest, None)

    virtual(main)


def test_golden_inputs_that_do_not_fit_the_model_are_a_failed_profile():
    async def main():
        executor = EmulatedExecutor(DeviceProfile(models={"toy": EmulatedModel(mean_s=0.1, cv=0.0)}), rng=None)
        manifest = make_manifest(golden=Golden(shard="golden.bin"))
        await executor.load("d", manifest, None)
        shard = encode_golden({"x": np.zeros(3, np.float32)}, {"y": np.zeros(2, np.float32)})
        with pytest.raises(ProfileError, match="shape"):
            await check_golden(executor, "d", manifest, shard)

    virtual(main)


class Answering:
    """An executor that gives the same raw outputs to everything."""

    def __init__(self, **outputs):
        self.headers, self.payload = ndarrays.pack(outputs)
        self.requests = []

    async def run(self, digest, requests, *, on_started=None):
        self.requests += requests
        body = encode_result(ResultBody(tensors=self.headers))
        return [RunOutcome(body=body, payload=memoryview(self.payload), service_s=0.01)]


GOLDEN = encode_golden({"x": np.float32([1, 2])}, {"y": np.float32([10, -10])})


def check(executor, **options):
    manifest = make_manifest(golden=Golden(shard="golden.bin", **TOLERANCE))
    return trio.run(functools.partial(check_golden, executor, "d", manifest, GOLDEN, **options))


def test_golden_outputs_are_compared_once_and_known_by_their_bytes_afterwards():
    executor = Answering(y=np.float32([10.5, -10.0]), other=np.zeros(3, np.uint8))
    sha256 = check(executor)
    assert len(sha256) == 64
    assert decode_request(executor.requests[0].body).raw_outputs
    assert np.frombuffer(executor.requests[0].payload, np.float32).tolist() == [1, 2]
    assert check(executor, known=sha256) == sha256
    within = check(Answering(y=np.float32([10.6, -10.0])), known=sha256)
    assert within not in ("", sha256)


def test_outputs_that_are_neither_known_nor_near_are_refused_whatever_was_known():
    wrong = Answering(y=np.float32([20.0, -10.0]))
    with pytest.raises(GoldenMismatchError, match="output 'y' differs from golden by up to 10"):
        check(wrong, known="0" * 64)
    # What was found right is not compared again: only our own state directory says so.
    sha256 = hashlib.sha256(outputs_shard(wrong.headers, wrong.payload)).hexdigest()
    assert check(wrong, known=sha256) == sha256


def test_a_comparison_that_fails_itself_is_no_verdict():
    with pytest.raises(ChildError, match="status 1: golden shard has 0 bytes"):
        child.ask("models.appraisal", ["compare", "0.1", "0.1"], bytes(8), limit_s=30)
    with pytest.raises(ChildError, match="did not come to its end"):
        child.ask("models.appraisal", ["picture"], b"", limit_s=0.001)


def test_the_picture_that_models_are_measured_on_is_of_a_camera_s_size():
    with Image.open(io.BytesIO(appraisal.picture())) as found:
        assert (found.format, found.size) == ("JPEG", (1280, 720))


def test_quantiles_are_those_of_numpy():
    values = [3.0, 1.0, 4.0, 1.5, 9.0]
    assert quantile(values, 0.95) == pytest.approx(np.quantile(values, 0.95))
    assert quantile([2.0], 0.95) == 2.0


def test_a_model_that_is_not_loaded_cannot_be_measured():
    async def main():
        with pytest.raises(ModelNotLoadedError):
            await profile(EmulatedExecutor(DeviceProfile(models={}), rng=None), "d", make_manifest(), None)

    virtual(main)
