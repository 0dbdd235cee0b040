"""Whether an ONNX file is one that we are willing to hand to the runtime.

Owns the rules: only standard operators, no functions, no data outside of the file, bounded size and depth, inputs
and outputs as the manifest says. Parsing a stranger's file is a risk of its own, so the daemon never imports this
module: models.admission runs it as a confined process of a few hundred milliseconds,

    python -P -m models.graphcheck GRAPH MANIFEST

which prints one JSON object, ``{"accepted": true, "reason": ""}`` or ``{"accepted": false, "reason": "..."}``, and
exits with status 0 or 1. It also works by hand.

Why functions: a chain of 3000 of them crashes onnxruntime 1.31 while it loads, one of 2000 takes it ten seconds.
"""

import contextlib
import os
import resource
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from models import confine
from models.executor import ModelRefusedError
from models.manifest import Manifest, ManifestError, TensorSpec, parse_manifest

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto

GRAPH_MAX_BYTES: Final = (1 << 31) - 1
"""Largest graph file: what a protocol buffer can be."""
NODES_MAX: Final = 50_000
"""Operators of a graph, subgraphs included. Large language models have under 10,000."""
DEPTH_MAX: Final = 8
"""Graphs within graphs (If, Loop, Scan)."""
DOMAINS: Final = ("", "ai.onnx", "ai.onnx.ml")
"""Operator sets that are part of the ONNX standard and need no code from elsewhere."""
CHECK_CPU_S: Final = 60
"""Processor time of a check."""
CHECK_MEMORY_FACTOR: Final = 4
"""Memory of a check, as a multiple of the file, beside CHECK_MEMORY_BYTES: bytes, parsed form, checker's copy."""
CHECK_MEMORY_BYTES: Final = 512 * 1024 * 1024

ELEMENT_TYPES: Final = {1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16"}
"""Names of the element types that a manifest may use, by their ONNX number (TensorProto.DataType)."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What the check found."""

    accepted: bool
    reason: str = ""


def check_model(model: "ModelProto", manifest: Manifest) -> None:
    """Check a parsed model; raises ModelRefusedError with the first rule it breaks, the publisher's fault."""
    if model.functions:
        raise ModelRefusedError(f"graph defines {len(model.functions)} local functions; inline them before export")
    if model.training_info:
        raise ModelRefusedError("graph holds training information; export it for inference")
    foreign = sorted({entry.domain for entry in model.opset_import} - set(DOMAINS))
    if foreign:
        raise ModelRefusedError(f"graph needs operators of {foreign[0]!r}, allowed are those of ONNX itself")
    nodes = 0
    for graph, depth in _graphs(model.graph):
        nodes += len(graph.node)
        if nodes > NODES_MAX:
            raise ModelRefusedError(f"graph has more than {NODES_MAX} operators")
        if depth > DEPTH_MAX:
            raise ModelRefusedError(f"graph nests subgraphs more than {DEPTH_MAX} deep")
        _check_nodes(graph.node)
        _check_tensors(graph.initializer)
        _check_sparse(graph.sparse_initializer)
    initialised = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in initialised]
    _check_values("input", inputs, manifest.inputs)
    _check_values("output", model.graph.output, manifest.outputs)


def _graphs(root: "GraphProto") -> "Iterator[tuple[GraphProto, int]]":
    """Yield a graph and all graphs within, with their depth; without recursion, whatever the nesting."""
    open_graphs = [(root, 1)]
    while open_graphs:
        graph, depth = open_graphs.pop()
        yield graph, depth
        for attribute in _attributes(graph.node):
            if attribute.HasField("g"):
                open_graphs.append((attribute.g, depth + 1))
            open_graphs.extend((inner, depth + 1) for inner in attribute.graphs)


def _attributes(nodes: "Iterable[NodeProto]") -> "Iterator[AttributeProto]":
    for node in nodes:
        yield from node.attribute


def _check_nodes(nodes: "Iterable[NodeProto]") -> None:
    """Refuse custom operators, and tensors outside of the file in attributes."""
    for node in nodes:
        if node.domain not in DOMAINS:
            raise ModelRefusedError(f"operator {node.op_type!r} is of {node.domain!r}, which is not part of ONNX")
        for attribute in node.attribute:
            _check_tensors([attribute.t] if attribute.HasField("t") else [])
            _check_tensors(attribute.tensors)
            _check_sparse([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else [])
            _check_sparse(attribute.sparse_tensors)


def _check_tensors(tensors: "Iterable[TensorProto]") -> None:
    """Refuse data outside of the file."""
    for tensor in tensors:
        if tensor.data_location or tensor.external_data:
            raise ModelRefusedError(f"tensor {tensor.name!r} lies outside of the file; export it with its data")


def _check_sparse(tensors: "Iterable[SparseTensorProto]") -> None:
    for tensor in tensors:
        _check_tensors([tensor.values, tensor.indices])


def _check_values(what: str, values: "Iterable[ValueInfoProto]", specs: tuple[TensorSpec, ...]) -> None:
    """Compare inputs or outputs with the manifest's."""
    found = {value.name: value for value in values}
    wanted = {spec.name: spec for spec in specs}
    # A graph may give more than the manifest uses, but it cannot run on less than it takes.
    if wanted.keys() - found.keys() or (what == "input" and found.keys() != wanted.keys()):
        raise ModelRefusedError(f"graph has {what}s {sorted(found)}, the manifest says {sorted(wanted)}")
    for name, spec in wanted.items():
        _check_value(what, found[name], spec)


def _check_value(what: str, value: "ValueInfoProto", spec: TensorSpec) -> None:
    """Compare element type and shape; sizes that the graph leaves open fit any."""
    tensor = value.type.tensor_type
    element = ELEMENT_TYPES.get(tensor.elem_type, "unsupported") if value.type.HasField("tensor_type") else "no tensor"
    if element != spec.dtype:
        raise ModelRefusedError(f"{what} {spec.name!r} is {element} in the graph, {spec.dtype} in the manifest")
    if not tensor.HasField("shape"):
        return
    sizes = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    if len(sizes) != len(spec.shape) or any(
        -1 not in (seen, said) and seen != said for seen, said in zip(sizes, spec.shape, strict=True)
    ):
        raise ModelRefusedError(f"{what} {spec.name!r} has shape {sizes} in the graph, {spec.shape} in the manifest")


def check_bytes(graph: bytes, manifest: Manifest) -> Verdict:
    """Parse and check a graph; anything that onnx raises is a refusal too."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.ModelProto.FromString(graph)
        check_model(model, manifest)
        onnx.checker.check_model(graph)
    except ModelRefusedError as error:
        return Verdict(accepted=False, reason=str(error))
    except (DecodeError, onnx.checker.ValidationError, RecursionError, ValueError, MemoryError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        return Verdict(accepted=False, reason=f"graph is no sound ONNX: {words[0][:500]}")
    return Verdict(accepted=True)


def main() -> int:
    """Check the file named first against the manifest named second; see the module's text."""
    graph_path, manifest_path = sys.argv[1:3]
    try:
        manifest = parse_manifest(Path(manifest_path).read_bytes())
        if Path(graph_path).stat().st_size > GRAPH_MAX_BYTES:
            raise ModelRefusedError(f"graph is larger than {GRAPH_MAX_BYTES} bytes")
        graph = Path(graph_path).read_bytes()
    except (OSError, ManifestError, ModelRefusedError) as error:
        return _tell(Verdict(accepted=False, reason=str(error)))
    _confine(len(graph))
    return _tell(check_bytes(graph, manifest))


def _confine(graph_bytes: int) -> None:
    """Give up what a check does not need, before the first byte is parsed."""
    from models.worker import LIBRARY_PATHS, library_folders

    confine.isolate(parent=os.getppid(), readable=[*LIBRARY_PATHS, *library_folders()])
    import onnx
    import onnx.checker

    # The first check loads what later ones need; afterwards no file can be opened.
    with contextlib.suppress(onnx.checker.ValidationError):
        onnx.checker.check_model(onnx.ModelProto())
    resource.setrlimit(resource.RLIMIT_CPU, (CHECK_CPU_S, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    # The working folder becomes the root: the daemon starts us in an empty one.
    confine.seal(memory_bytes=CHECK_MEMORY_FACTOR * graph_bytes + CHECK_MEMORY_BYTES, empty_folder=str(Path.cwd()))


def _tell(verdict: Verdict) -> int:
    sys.stdout.write(msgspec.json.encode(verdict).decode("utf-8") + "\n")
    return 0 if verdict.accepted else 1


if __name__ == "__main__":
    sys.exit(main())
