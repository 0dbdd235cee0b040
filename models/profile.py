"""What a model costs on this node, and whether it is right here at all: golden check and service-time measurement.

Owns the comparison of golden outputs and the statistics. Works on any models.executor.Executor; knows nothing of
processes. The daemon turns a Profile into the capability it advertises.
"""

import io
from collections.abc import Mapping
from typing import Final

import msgspec
import numpy as np
import trio

from models import ndarrays, tensors
from models.bodies import RequestBody, decode_result, encode_request
from models.executor import Executor, RunOutcome, RunRequest
from models.golden import decode_golden
from models.manifest import Golden, Manifest, ModelError
from models.ndarrays import Array

RUNS: Final = 20
"""Most measured runs; the 95th percentile of 20 is the second largest."""
RUNS_MIN: Final = 3
"""Runs measured even where the time is over."""
WARM_UP_RUNS: Final = 2
"""Runs not measured: first touches of memory and caches, beyond those of the worker's own first run."""
MEASURE_MAX_S: Final = 0.5
"""Time after which no further run is begun. The first estimate need only be near: every job corrects it, and a node
that measures does not serve."""
RUN_MAX_S: Final = 60.0
"""Longest single run; slower models are of no use to a grid with deadlines in seconds."""
FRAME_SIZE: Final = (1280, 720)
"""Pixels of the picture that models with pre-processing are measured on: what most cameras send."""


class GoldenMismatchError(ModelError):
    """The model's outputs differ from the golden ones. Its publisher's fault, or this machine computes wrongly."""


class ProfileError(ModelError):
    """A model that could not be measured, because runs failed or took too long."""


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """What one model costs on this node, alone."""

    mean_s: float
    """Mean service time."""
    p95_s: float
    load_s: float
    """Time from cold to ready."""
    memory_bytes: int
    """Largest resident memory of its worker."""
    runs: int
    """Runs that were measured."""
    providers: tuple[str, ...]


async def profile(executor: Executor, digest: str, manifest: Manifest, golden: bytes | None) -> Profile:
    """Check a loaded model against its golden data, then measure it.

    Parameters
    ----------
    executor : Executor
        Has the model loaded.
    digest, manifest : str, Manifest
        Of the model.
    golden : bytes or None
        Content of the golden shard; None where the manifest has none.

    Raises
    ------
    GoldenMismatchError, GoldenFormatError
        The package is to blame, or this machine.
    ProfileError
        A run failed or took too long.
    WorkerLostError, ModelNotLoadedError
        As Executor.run raises them.
    """
    inputs = None
    if golden is not None and manifest.golden is not None:
        inputs = await check_golden(executor, digest, manifest, golden)
    request, payload = await trio.to_thread.run_sync(_sample, manifest, inputs)
    times_s = await _measure(executor, digest, manifest, request, payload)
    found = next(entry for entry in executor.statistics() if entry.digest == digest)
    return Profile(
        mean_s=float(np.mean(times_s)),
        p95_s=float(np.quantile(times_s, 0.95)),
        load_s=found.load_s,
        memory_bytes=found.memory_bytes_peak,
        runs=len(times_s),
        providers=found.providers,
    )


async def check_golden(executor: Executor, digest: str, manifest: Manifest, golden: bytes) -> dict[str, Array]:
    """Run the golden inputs and compare; returns those inputs. Parameters and errors are those of profile().

    An emulated result holds no numbers and passes unseen.
    """
    assert manifest.golden is not None
    inputs, wanted = decode_golden(golden)
    headers, payload = await trio.to_thread.run_sync(ndarrays.pack, inputs)
    body = encode_request(RequestBody(kind="tensors", tensors=headers, raw_outputs=True))
    outcome = await _run(executor, digest, manifest, body, payload)
    result = decode_result(outcome.body)
    if not result.emulated:
        found = ndarrays.views(result.tensors, outcome.payload)
        await trio.to_thread.run_sync(compare, found, wanted, manifest.golden)
    return inputs


def compare(found: Mapping[str, Array], wanted: Mapping[str, Array], golden: Golden) -> None:
    """Compare outputs with golden ones; takes milliseconds per million numbers.

    Parameters
    ----------
    found, wanted : mapping of str to ndarray
        Outputs by name; those found may be more than are wanted.
    golden : Golden
        Tolerances: ``|found - wanted| <= atol + rtol * |wanted|``.

    Raises
    ------
    GoldenMismatchError
        An output is missing, or differs in type, shape or value; NaN equals NaN.
    """
    for name, right in wanted.items():
        if name not in found:
            raise GoldenMismatchError(f"golden output {name!r} is not among the model's: {', '.join(found)}")
        got = found[name]
        if got.dtype != right.dtype or got.shape != right.shape:
            raise GoldenMismatchError(
                f"output {name!r} is {got.dtype}{list(got.shape)}, golden is {right.dtype}{list(right.shape)}"
            )
        wide_got, wide_right = got.astype(np.float64), right.astype(np.float64)
        if not np.allclose(wide_got, wide_right, rtol=golden.rtol, atol=golden.atol, equal_nan=True):
            with np.errstate(invalid="ignore"):
                worst = float(np.max(np.abs(wide_got - wide_right)))
            raise GoldenMismatchError(
                f"output {name!r} differs from golden by up to {worst:.4g}, allowed are atol {golden.atol:g} and "
                f"rtol {golden.rtol:g}; check the package, and this machine's providers"
            )


async def _measure(
    executor: Executor, digest: str, manifest: Manifest, body: bytes, payload: tensors.Buffer
) -> list[float]:
    """Return service times in seconds."""
    times_s: list[float] = []
    enough_at_s = trio.current_time() + MEASURE_MAX_S
    for number in range(WARM_UP_RUNS + RUNS):
        outcome = await _run(executor, digest, manifest, body, payload)
        if number >= WARM_UP_RUNS:
            times_s.append(outcome.service_s)
        if len(times_s) >= RUNS_MIN and trio.current_time() > enough_at_s:
            break
    return times_s


async def _run(executor: Executor, digest: str, manifest: Manifest, body: bytes, payload: tensors.Buffer) -> RunOutcome:
    """Run one request that must succeed."""
    request = RunRequest(body=body, payload=payload, deadline_s=trio.current_time() + RUN_MAX_S)
    [outcome] = await executor.run(digest, [request])
    if not isinstance(outcome, RunOutcome):
        raise ProfileError(f"model {manifest.name!r} fails on a sound input: {outcome}") from outcome
    return outcome


def _sample(manifest: Manifest, inputs: Mapping[str, Array] | None) -> tuple[bytes, tensors.Buffer]:
    """Make the request to measure: a picture where the model takes pictures, else golden inputs or zeros.

    Blocks for tens of milliseconds.
    """
    if manifest.preprocessing is not None and len(manifest.inputs) == 1:
        return encode_request(RequestBody(kind="image")), _picture()
    if inputs is None:
        inputs = {s.name: np.zeros([max(1, size) for size in s.shape], s.dtype) for s in manifest.inputs}
    headers, payload = ndarrays.pack(inputs)
    return encode_request(RequestBody(kind="tensors", tensors=headers)), payload


def _picture() -> bytes:
    """Draw a JPEG with the detail of a street, about 150 kB."""
    # Pillow is a heavy import, and this is the only place in the daemon that needs it.
    from PIL import Image

    width, height = FRAME_SIZE
    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(coarse).resize(FRAME_SIZE, Image.Resampling.BILINEAR).save(encoded, "JPEG", quality=85)
    return encoded.getvalue()
