"""What a model costs on this node, and whether it is right here at all: golden check and service-time measurement.

Owns the golden run and the statistics; outputs are compared in a process of their own (models.appraisal), so that the
daemon does without numpy. Outputs that were found right here once are known again by their digest. Works on any
models.executor.Executor. The daemon turns a Profile into the capability it advertises.
"""

import hashlib
from functools import cache
from typing import Final

import msgspec
import trio

from models import child
from models.bodies import RequestBody, decode_result, encode_request
from models.executor import Executor, RunOutcome, RunRequest
from models.golden import GoldenMismatchError, golden_inputs, outputs_shard
from models.manifest import Manifest, ModelError
from models.tensors import Buffer, TensorHeader, layout

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
APPRAISAL_MAX_S: Final = 120.0
"""Longest comparison or drawing: a quarter of a second on a desktop, two on a small board."""


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
    outputs_sha256: str = ""
    """Of the golden outputs that were found right; empty where there are none."""


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
    ProfileError, ChildError
        A run failed or took too long.
    WorkerLostError, ModelNotLoadedError
        As Executor.run raises them.
    """
    outputs_sha256 = ""
    if golden is not None and manifest.golden is not None:
        outputs_sha256 = await check_golden(executor, digest, manifest, golden)
    request, payload = await trio.to_thread.run_sync(_sample, manifest, golden)
    times_s = await _measure(executor, digest, manifest, request, payload)
    found = next(entry for entry in executor.statistics() if entry.digest == digest)
    return Profile(
        mean_s=sum(times_s) / len(times_s),
        p95_s=quantile(times_s, 0.95),
        load_s=found.load_s,
        memory_bytes=found.memory_bytes_peak,
        runs=len(times_s),
        providers=found.providers,
        outputs_sha256=outputs_sha256,
    )


async def check_golden(executor: Executor, digest: str, manifest: Manifest, golden: bytes, *, known: str = "") -> str:
    """Run the golden inputs and compare.

    An emulated result holds no numbers and passes unseen.

    Parameters
    ----------
    known : str, optional
        Digest of outputs that a comparison of this very model found right before: the same bytes are right again.
        Other parameters, and errors, are those of profile().

    Returns
    -------
    str
        Digest of the outputs, all of which are right.
    """
    headers, payload = await trio.to_thread.run_sync(golden_inputs, golden)
    body = encode_request(RequestBody(kind="tensors", tensors=headers, raw_outputs=True))
    outcome = await _run(executor, digest, manifest, body, payload)
    result = decode_result(outcome.body)
    if result.emulated:
        return ""
    return await trio.to_thread.run_sync(_judge, manifest, golden, result.tensors, outcome.payload, known)


def _judge(manifest: Manifest, golden: bytes, headers: tuple[TensorHeader, ...], payload: Buffer, known: str) -> str:
    """Compare outputs with golden ones, in another process; returns their digest. Blocks."""
    found = outputs_shard(headers, payload)
    sha256 = hashlib.sha256(found).hexdigest()
    if sha256 == known:
        return sha256
    assert manifest.golden is not None
    tolerances = f"{manifest.golden.rtol!r}", f"{manifest.golden.atol!r}"
    given = len(golden).to_bytes(8, "little") + golden + found
    answer = child.ask("models.appraisal", ["compare", *tolerances], given, limit_s=APPRAISAL_MAX_S)
    problem = msgspec.json.decode(answer, type=_Comparison).problem
    if problem:
        raise GoldenMismatchError(problem)
    return sha256


class _Comparison(msgspec.Struct, frozen=True):
    """As models.appraisal prints it."""

    problem: str


def quantile(values: list[float], share: float) -> float:
    """Return a quantile by linear interpolation between order statistics (Hyndman and Fan 1996, type 7).

    Examples
    --------
    >>> quantile([4.0, 1.0, 2.0, 3.0], 0.5)
    2.5
    """
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


async def _measure(executor: Executor, digest: str, manifest: Manifest, body: bytes, payload: Buffer) -> list[float]:
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


async def _run(executor: Executor, digest: str, manifest: Manifest, body: bytes, payload: Buffer) -> RunOutcome:
    """Run one request that must succeed."""
    request = RunRequest(body=body, payload=payload, deadline_s=trio.current_time() + RUN_MAX_S)
    [outcome] = await executor.run(digest, [request])
    if not isinstance(outcome, RunOutcome):
        raise ProfileError(f"model {manifest.name!r} fails on a sound input: {outcome}") from outcome
    return outcome


def _sample(manifest: Manifest, golden: bytes | None) -> tuple[bytes, Buffer]:
    """Make the request to measure: a picture where the model takes pictures, else golden inputs or zeros. Blocks."""
    if manifest.preprocessing is not None and len(manifest.inputs) == 1:
        return encode_request(RequestBody(kind="image")), _picture()
    if golden is not None and manifest.golden is not None:
        headers, payload = golden_inputs(golden)
    else:
        specs = manifest.inputs
        headers = tuple(
            TensorHeader(name=s.name, dtype=s.dtype, shape=tuple(max(1, n) for n in s.shape)) for s in specs
        )
        payload = bytearray(layout(headers)[1])
    return encode_request(RequestBody(kind="tensors", tensors=headers)), payload


@cache
def _picture() -> bytes:
    """Return a JPEG with the detail of a street, about 150 kB; drawn once."""
    return child.ask("models.appraisal", ["picture"], b"", limit_s=APPRAISAL_MAX_S)
