import numpy as np
import pytest
import trio
import trio.testing

from models.emulated import DeviceProfile, EmulatedExecutor, EmulatedModel
from models.executor import ModelNotLoadedError
from models.golden import encode_golden
from models.manifest import Golden, Manifest, TensorSpec, describe_shard
from models.profile import GoldenMismatchError, ProfileError, check_golden, compare, profile

TOLERANCE = Golden(shard="golden.bin", rtol=0.1, atol=0.5)


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
    compare({"y": np.float32([11.4, -11.4])}, wanted, TOLERANCE)
    with pytest.raises(GoldenMismatchError, match=r"output 'y' differs from golden by up to 1\.6"):
        compare({"y": np.float32([11.6, -10.0])}, wanted, TOLERANCE)


def test_nan_equals_nan_and_nothing_else():
    compare({"y": np.float32([np.nan])}, {"y": np.float32([np.nan])}, TOLERANCE)
    with pytest.raises(GoldenMismatchError):
        compare({"y": np.float32([0.0])}, {"y": np.float32([np.nan])}, TOLERANCE)
    with pytest.raises(GoldenMismatchError):
        compare({"y": np.float32([np.inf])}, {"y": np.float32([1.0])}, TOLERANCE)


def test_small_integers_are_compared_without_wrapping_round():
    with pytest.raises(GoldenMismatchError, match="up to 255"):
        compare({"y": np.uint8([255])}, {"y": np.uint8([0])}, TOLERANCE)


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
        compare(found, {"y": np.float32([1, 2])}, TOLERANCE)


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
        manifest = make_manifest(golden=TOLERANCE)
        await executor.load("d", manifest, None)
        shard = encode_golden({"x": np.zeros(3, np.float32)}, {"y": np.zeros(2, np.float32)})
        with pytest.raises(ProfileError, match="shape"):
            await check_golden(executor, "d", manifest, shard)

    virtual(main)


def test_a_model_that_is_not_loaded_cannot_be_measured():
    async def main():
        with pytest.raises(ModelNotLoadedError):
            await profile(EmulatedExecutor(DeviceProfile(models={}), rng=None), "d", make_manifest(), None)

    virtual(main)
