"""Making a package of a publisher's ONNX file: manifest, shards, golden data.

Owns the publisher's side: model.toml, defaults from the graph itself (models.graphread), golden data from one run,
and the same check that every node will make before it loads the graph. Whoever runs the model comes in as a Run, so
that no runtime is imported here. For the publisher's tool only, never for the daemon. Knows nothing of keys; what it
returns is signed by models.owner.

``model.toml`` (or ``NAME.toml`` for ``NAME.onnx``) beside the graph overrides what was told from the graph, field by
field; tables are merged, and ``preprocessing = false`` takes one away:

    name = "street"
    rungs = ["street-small"]
    [postprocessing]
    class_names = ["vehicle", "pedestrian", "cyclist"]
"""

import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from models.golden import GoldenFormatError, encode_golden
from models.graphcheck import check_bytes
from models.graphread import GraphFacts, PackageError, read_graph
from models.manifest import (
    CHUNK_SIZE_BYTES,
    Golden,
    ImagePreprocessing,
    Manifest,
    ManifestError,
    Postprocessing,
    Requirements,
    TensorSpec,
    canonical_bytes,
    describe_shard,
    parse_manifest,
)
from models.ndarrays import Array

GRAPH_SHARD: Final = "graph.onnx"
GOLDEN_SHARD: Final = "golden.bin"
TOML_MAX_BYTES: Final = 1 << 20

RUNTIME_BYTES: Final = 96 << 20
"""A worker without a model: onnxruntime 1.31 and numpy took 46 MiB on x86-64, the rest is for our own code."""
_GRAPH_FACTOR: Final = 3
"""Memory per byte of graph: the file, its parsed form, the weights as the runtime repacks them. A guess on the safe
side, used only where nobody measured."""
_TENSOR_FACTOR: Final = 4
"""Memory per byte of input and output, for the activations in between. A guess too."""

_OVERRIDES: Final = {
    "name",
    "version",
    "description",
    "licence",
    "preprocessing",
    "postprocessing",
    "peak_memory_bytes",
    "requirements",
    "rungs",
    "golden",
}


class RunReport(msgspec.Struct, frozen=True):
    """What one run of a model gave."""

    outputs: Mapping[str, Array]
    peak_memory_bytes: int = 0
    """Largest resident memory of the process that ran it; 0 where it was not measured."""


Run = Callable[[Manifest, Path, Mapping[str, Array]], RunReport]
"""Runs a graph file once on these inputs. The manifest is the finished one but for golden data and memory."""


class Package(msgspec.Struct, frozen=True, kw_only=True):
    """A package ready to be signed and shared."""

    manifest: Manifest
    files: dict[str, Path | bytes]
    """Content of each shard, by its name."""
    notes: tuple[str, ...]
    """What was guessed, for the publisher to read."""


def build_package(
    source: Path,
    *,
    name: str | None = None,
    version: int | None = None,
    preprocessing: ImagePreprocessing | None = None,
    postprocessing: Postprocessing | None = None,
    rungs: tuple[str, ...] | None = None,
    peak_memory_bytes: int | None = None,
    requirements: Requirements | None = None,
    run: Run | None = None,
    golden_inputs: Mapping[str, Array] | None = None,
    seed: int = 0,
) -> Package:
    """Make a package of an ONNX file, or of a folder that holds one.

    Parameters
    ----------
    source : Path
        The file, or a folder with exactly one ``.onnx`` in it.
    name, version, preprocessing, postprocessing, rungs, peak_memory_bytes, requirements
        Manifest fields; None takes model.toml's, else what the graph tells. peak_memory_bytes is in bytes.
    run : callable, optional
        Runs the model once; gives golden outputs and the measured memory. Without it the package has no golden data,
        and memory is estimated from sizes.
    golden_inputs : mapping of str to ndarray, optional
        Inputs for that run; None draws them from the seed.
    seed : int
        Of the drawn inputs.

    Raises
    ------
    PackageError
        The publisher's fault: what is wrong with the file or model.toml, and what to change.
    """
    graph = _find_graph(source)
    facts = read_graph(graph)
    given = {
        "name": name,
        "version": version,
        "preprocessing": preprocessing,
        "postprocessing": postprocessing,
        "rungs": rungs,
        "peak_memory_bytes": peak_memory_bytes,
        "requirements": requirements,
    }
    fields = _merge(_defaults(graph, facts), _read_toml(graph))
    fields |= {key: msgspec.to_builtins(value) for key, value in given.items() if value is not None}
    tolerances = fields.pop("golden", {})
    fields["shards"] = [msgspec.to_builtins(describe_shard(GRAPH_SHARD, _pieces(graph)))]
    manifest = _convert(fields)
    verdict = check_bytes(graph.read_bytes(), manifest)
    if not verdict.accepted:
        raise PackageError(f"{graph} would be refused by every node: {verdict.reason}")
    files: dict[str, Path | bytes] = {GRAPH_SHARD: graph}
    notes = list(facts.notes)
    if run is not None:
        inputs = draw_inputs(manifest, seed) if golden_inputs is None else golden_inputs
        _check_tensors("input", manifest.inputs, inputs)
        report = run(manifest, graph, inputs)
        files[GOLDEN_SHARD] = _golden(manifest, inputs, report.outputs)
        fields |= _with_golden(fields, files[GOLDEN_SHARD], tolerances)
        if report.peak_memory_bytes and peak_memory_bytes is None:
            fields["peak_memory_bytes"] = report.peak_memory_bytes
        manifest = _convert(fields)
    else:
        notes.append("no golden data: nodes cannot tell whether they compute the model rightly")
    return Package(manifest=manifest, files=files, notes=tuple(notes))


def draw_inputs(manifest: Manifest, seed: int) -> dict[str, Array]:
    """Draw inputs for a golden run.

    Parameters
    ----------
    manifest : Manifest
        Names, types and shapes. Open sizes become 1, those of a picture the size that pre-processing makes.
    seed : int
        Of numpy's PCG64.

    Returns
    -------
    dict of str to ndarray
        Floating-point inputs are uniform in 0..1 as pictures are, bytes 0..255, other integers and booleans 0 or 1,
        which are valid as numbers, masks and indices alike.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    return {spec.name: _draw(generator, spec, _picture_shape(manifest, spec)) for spec in manifest.inputs}


# ---------------------------------------------------------------- inside


def _find_graph(source: Path) -> Path:
    """Return the ONNX file that is meant."""
    if not source.is_dir():
        return source
    graphs = sorted(source.glob("*.onnx"))
    if len(graphs) != 1:
        raise PackageError(f"folder {source} holds {len(graphs)} .onnx files, expected one; name the file instead")
    return graphs[0]


def _defaults(graph: Path, facts: GraphFacts) -> dict[str, object]:
    """Return the manifest's fields as the graph tells them, as plain dicts and lists."""
    name = re.sub(r"[^a-z0-9._-]+", "-", graph.stem.lower()).strip("-._")[:64]
    return {
        "name": name,
        "description": facts.description,
        "licence": facts.licence,
        "inputs": msgspec.to_builtins(facts.inputs),
        "outputs": msgspec.to_builtins(facts.outputs),
        "preprocessing": msgspec.to_builtins(facts.preprocessing),
        "postprocessing": msgspec.to_builtins(facts.postprocessing),
        "peak_memory_bytes": _estimate_memory(graph, facts),
        "graph": GRAPH_SHARD,
    }


def _estimate_memory(graph: Path, facts: GraphFacts) -> int:
    """Return the memory that a worker with this model probably takes, in bytes."""
    tensors = sum(math.prod(abs(size) for size in spec.shape) * 4 for spec in (*facts.inputs, *facts.outputs))
    return RUNTIME_BYTES + _GRAPH_FACTOR * graph.stat().st_size + _TENSOR_FACTOR * tensors


def _read_toml(graph: Path) -> dict[str, object]:
    """Return what model.toml says; nothing where there is none."""
    for path in (graph.with_suffix(".toml"), graph.with_name("model.toml")):
        if not path.exists():
            continue
        try:
            if path.stat().st_size > TOML_MAX_BYTES:
                raise PackageError(f"{path} is larger than {TOML_MAX_BYTES} bytes")
            fields: dict[str, object] = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise PackageError(f"{path} cannot be read: {error}") from error
        unknown = sorted(fields.keys() - _OVERRIDES)
        if unknown:
            raise PackageError(f"{path} sets {unknown[0]!r}; allowed are {', '.join(sorted(_OVERRIDES))}")
        return fields
    return {}


def _merge(fields: dict[str, object], over: Mapping[str, object]) -> dict[str, object]:
    """Lay one set of fields over another; tables are merged, false takes a table away."""
    merged = dict(fields)
    for key, value in over.items():
        present = merged.get(key)
        if value is False:
            merged[key] = None
        elif (
            isinstance(value, dict)
            and isinstance(present, dict)
            and value.get("kind", None)
            in (
                None,
                present.get("kind"),
            )
        ):
            merged[key] = present | value
        else:
            merged[key] = value
    return merged


def _convert(fields: Mapping[str, object]) -> Manifest:
    """Turn fields into a manifest as every node would read it."""
    try:
        return parse_manifest(canonical_bytes(msgspec.convert(fields, Manifest)))
    except (msgspec.ValidationError, ManifestError) as error:
        raise PackageError(f"the manifest makes no sense: {error}; correct it in model.toml") from error


def _pieces(path: Path) -> Iterator[bytes]:
    """Yield a file in chunks."""
    with path.open("rb") as file:
        while piece := file.read(CHUNK_SIZE_BYTES):
            yield piece


def _golden(manifest: Manifest, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> bytes:
    """Lay golden data out, after a look at whether they can serve."""
    _check_tensors("output", manifest.outputs, outputs)
    try:
        return encode_golden(
            {spec.name: inputs[spec.name] for spec in manifest.inputs},
            {spec.name: outputs[spec.name] for spec in manifest.outputs},
        )
    except GoldenFormatError as error:
        raise PackageError(f"golden data of {manifest.name!r} cannot be kept: {error}") from error


def _with_golden(fields: Mapping[str, object], data: Path | bytes, tolerances: object) -> dict[str, object]:
    """Return the fields that enter a golden shard into a manifest."""
    assert isinstance(data, bytes)
    pieces = (data[start : start + CHUNK_SIZE_BYTES] for start in range(0, len(data), CHUNK_SIZE_BYTES))
    shards = fields["shards"]
    assert isinstance(shards, list)
    golden = msgspec.to_builtins(Golden(shard=GOLDEN_SHARD))
    if isinstance(tolerances, dict):
        golden |= tolerances
    return {"golden": golden, "shards": [*shards, msgspec.to_builtins(describe_shard(GOLDEN_SHARD, pieces))]}


def _check_tensors(what: str, specs: tuple[TensorSpec, ...], tensors: Mapping[str, Array]) -> None:
    """Compare golden tensors with the manifest, and refuse numbers that no comparison can use."""
    for spec in specs:
        array = tensors.get(spec.name)
        if array is None:
            raise PackageError(f"golden run has no {what} {spec.name!r}; it has {', '.join(sorted(tensors)) or 'none'}")
        fits = len(array.shape) == len(spec.shape) and all(
            size in (-1, seen) for size, seen in zip(spec.shape, array.shape, strict=True)
        )
        if array.dtype.name != spec.dtype or not fits:
            raise PackageError(
                f"golden {what} {spec.name!r} is {array.dtype} of shape {array.shape}, the graph says {spec.dtype} of "
                f"{spec.shape} (-1: any)"
            )
        if not np.isfinite(array).all():
            raise PackageError(f"golden {what} {spec.name!r} holds NaN or infinity; give other golden inputs")


def _picture_shape(manifest: Manifest, spec: TensorSpec) -> tuple[int, ...]:
    """Return the shape to draw an input in."""
    shape = tuple(1 if size == -1 else size for size in spec.shape)
    picture = manifest.preprocessing
    if picture is None or picture.input != spec.name:
        return shape
    if picture.layout == "nchw":
        return (shape[0], shape[1], picture.height, picture.width)
    return (shape[0], picture.height, picture.width, shape[3])


def _draw(generator: np.random.Generator, spec: TensorSpec, shape: tuple[int, ...]) -> Array:
    """Draw one input."""
    if spec.dtype in ("float32", "float16"):
        return generator.random(shape, dtype=np.float32).astype(spec.dtype)
    top = 256 if spec.dtype == "uint8" else 2
    return generator.integers(0, top, shape).astype(spec.dtype)
