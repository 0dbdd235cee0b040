"""What an ONNX file says of itself: inputs, outputs, and how pictures go in and boxes come out where that can be told.

Owns reading a publisher's graph into manifest fields, and the conventions it knows: the metadata that Ultralytics
writes into its exports (``names``, ``imgsz``, ``task``), and the common YOLO output (1, 4 + classes, n). Whatever
cannot be told for sure is left out and said in a note; the publisher then writes it into model.toml.

For the publisher's tool only: onnx parses the file in this process. The daemon has models.admission for strangers'.
"""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from models.graphcheck import ELEMENT_TYPES, GRAPH_MAX_BYTES
from models.manifest import (
    ClassificationPostprocessing,
    DetectionPostprocessing,
    ImagePreprocessing,
    ModelError,
    Postprocessing,
    TensorSpec,
)

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

_CLASSES_MAX: Final = 4096
"""Most class names taken over; the largest sets in use have about 1200 to 1700."""
_PROPERTY_MAX_CHARACTERS: Final = 256 * 1024
_NAME_MAX_CHARACTERS: Final = 128


class PackageError(ModelError):
    """A file that no package can be made of. The publisher's fault; the message says what to change."""


class GraphFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a graph says of itself."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    preprocessing: ImagePreprocessing | None
    postprocessing: Postprocessing | None
    description: str
    licence: str
    notes: tuple[str, ...]
    """What was guessed or could not be told, for the publisher to read."""


def read_graph(path: Path) -> GraphFacts:
    """Read an ONNX file.

    Raises
    ------
    PackageError
        The publisher's fault: no such file, no ONNX, too large, or inputs and outputs that a manifest cannot name.
    """
    model = _parse(path)
    initialised = {tensor.name for tensor in model.graph.initializer}
    inputs = tuple(_spec("input", value) for value in model.graph.input if value.name not in initialised)
    outputs = tuple(_spec("output", value) for value in model.graph.output)
    if not inputs or not outputs:
        raise PackageError(
            f"{path} has {len(inputs)} inputs and {len(outputs)} outputs, at least one of each is needed"
        )
    properties = {entry.key: entry.value for entry in model.metadata_props}
    notes: list[str] = []
    postprocessing = _guess_postprocessing(outputs, properties, notes)
    preprocessing = _guess_preprocessing(inputs, properties, notes) if postprocessing or "imgsz" in properties else None
    if preprocessing is not None and isinstance(postprocessing, ClassificationPostprocessing):
        preprocessing = msgspec.structs.replace(preprocessing, resize="stretch")
    return GraphFacts(
        inputs=inputs,
        outputs=outputs,
        preprocessing=preprocessing,
        postprocessing=postprocessing,
        description=properties.get("description", "")[:1024],
        licence=properties.get("license", "")[:256],
        notes=tuple(notes),
    )


def _parse(path: Path) -> "ModelProto":
    """Parse a file as ONNX, without any data outside of it."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        size_bytes = path.stat().st_size
        if size_bytes > GRAPH_MAX_BYTES:
            raise PackageError(f"{path} has {size_bytes} bytes, at most {GRAPH_MAX_BYTES} fit an ONNX file")
        model = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise PackageError(f"{path} cannot be read: {error.strerror}") from error
    except (DecodeError, RecursionError, ValueError) as error:
        raise PackageError(f"{path} is no ONNX file: {error}; export the model as .onnx") from error
    # Many short files, the empty one first, are a sound protocol buffer without any field.
    if not model.ir_version or not model.graph.node:
        raise PackageError(f"{path} is no ONNX file: it holds no graph; export the model as .onnx")
    return model


def _spec(what: str, value: "ValueInfoProto") -> TensorSpec:
    """Turn an input or output into the manifest's form; sizes left open become -1."""
    tensor = value.type.tensor_type
    element = ELEMENT_TYPES.get(tensor.elem_type) if value.type.HasField("tensor_type") else None
    if element is None:
        allowed = ", ".join(ELEMENT_TYPES.values())
        raise PackageError(f"{what} {value.name!r} is no tensor of {allowed}; change the model's signature")
    if not tensor.HasField("shape"):
        raise PackageError(f"{what} {value.name!r} has no shape; run onnx.shape_inference or export it anew")
    # 0 is what some exporters write for a size they do not know.
    sizes = tuple(size.dim_value if size.dim_value > 0 else -1 for size in tensor.shape.dim)
    try:
        return TensorSpec(name=value.name, dtype=element, shape=sizes)
    except ValueError as error:
        raise PackageError(f"{what} {value.name!r}: {error}") from error


# ---------------------------------------------------------------- conventions


def _guess_preprocessing(
    inputs: Sequence[TensorSpec], properties: Mapping[str, str], notes: list[str]
) -> ImagePreprocessing | None:
    """Tell how a picture fills the only input, if it looks like one for pictures."""
    spec = inputs[0]
    if len(inputs) != 1 or len(spec.shape) != 4 or spec.dtype != "float32" or spec.shape[0] not in (1, -1):
        notes.append("inputs do not look like one picture; describe [preprocessing] in model.toml or send tensors")
        return None
    if spec.shape[1] == 3:
        layout, height, width = "nchw", spec.shape[2], spec.shape[3]
    elif spec.shape[3] == 3:
        layout, height, width = "nhwc", spec.shape[1], spec.shape[2]
    else:
        notes.append(f"input {spec.name!r} of shape {spec.shape} has no 3 channels; it gets no pre-processing")
        return None
    known = _sizes(properties.get("imgsz", ""))
    if known is not None:
        height, width = height if height > 0 else known[0], width if width > 0 else known[1]
    if height < 1 or width < 1:
        notes.append(f"size of input {spec.name!r} is open; write width and height under [preprocessing] in model.toml")
        return None
    notes.append(f"pictures: {layout}, {width}x{height}, RGB divided by 255 (as Ultralytics exports expect)")
    try:
        return msgspec.convert(
            {"input": spec.name, "width": width, "height": height, "layout": layout}, ImagePreprocessing
        )
    except msgspec.ValidationError as error:
        raise PackageError(f"input {spec.name!r}: {error}") from error


def _guess_postprocessing(
    outputs: Sequence[TensorSpec], properties: Mapping[str, str], notes: list[str]
) -> Postprocessing | None:
    """Tell what the first output means, if it follows a convention."""
    names, task = _class_names(properties.get("names", "")), properties.get("task", "")
    first = outputs[0]
    if task == "classify" and names and first.shape[1:] == (len(names),):
        notes.append(f"classification of {len(names)} classes, probabilities as they are")
        return ClassificationPostprocessing(
            output=first.name, class_names=names, softmax=False, top_k=min(5, len(names))
        )
    if task not in ("", "detect"):
        notes.append(f"task {task!r} has no post-processing here; clients get the raw outputs")
        return None
    classes = _detection_classes(first, names)
    if classes is None:
        if names or task:
            notes.append(
                f"output {first.name!r} of shape {first.shape} is not (1, 4 + {len(names) or 'classes'}, n); export "
                "without built-in NMS, or clients get the raw outputs"
            )
        return None
    if not names:
        names = tuple(f"class {number}" for number in range(classes))
        notes.append("class names are unknown; write class_names under [postprocessing] in model.toml")
    notes.append(f"detection of {classes} classes, boxes from output {first.name!r} of shape {first.shape}")
    return DetectionPostprocessing(output=first.name, class_names=names)


def _detection_classes(spec: TensorSpec, names: tuple[str, ...]) -> int | None:
    """Return how many classes a YOLO output has, None for any other output."""
    if spec.dtype not in ("float32", "float16") or len(spec.shape) != 3 or spec.shape[0] not in (1, -1):
        return None
    rows, columns = spec.shape[1:]
    if names:
        return len(names) if 4 + len(names) in (rows, columns) else None
    # Without names only a clear case counts: few rows, many candidates.
    return rows - 4 if 5 <= rows <= 4 + _CLASSES_MAX and (columns == -1 or columns >= 2 * rows) else None


def _class_names(text: str) -> tuple[str, ...]:
    """Read Ultralytics' names, a Python dict of number to name or a list; empty for anything else."""
    value = _literal(text)
    if isinstance(value, dict):
        if sorted(value, key=str) != sorted(range(len(value)), key=str):
            return ()
        value = [value[number] for number in range(len(value))]
    if not isinstance(value, list) or not 0 < len(value) <= _CLASSES_MAX:
        return ()
    return tuple(str(name)[:_NAME_MAX_CHARACTERS] for name in value)


def _sizes(text: str) -> tuple[int, int] | None:
    """Read Ultralytics' imgsz, height and width or one number for both."""
    value = _literal(text)
    if isinstance(value, int):
        value = [value, value]
    if isinstance(value, list) and len(value) == 2 and all(isinstance(size, int) and size > 0 for size in value):
        return value[0], value[1]
    return None


def _literal(text: str) -> object:
    """Read a Python literal, which is data and no code; None for anything else."""
    if len(text) > _PROPERTY_MAX_CHARACTERS:
        return None
    try:
        value: object = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return None
    return value
