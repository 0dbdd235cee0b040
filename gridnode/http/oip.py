"""Records of the Open Inference Protocol v2 as spoken here, and how its names stand for ours. Pure.

Source: the Open Inference Protocol (KServe, "V2"), its binary tensor data extension and Triton's schedule policy
extension. Parameters that are not known here are passed over, as the protocol wants it.
"""

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from models.manifest import (
    ClassificationPostprocessing,
    DetectionPostprocessing,
    Manifest,
    TensorSpec,
)
from models.tensors import TENSORS_MAX

DATATYPES: Final = {
    "float32": "FP32",
    "float16": "FP16",
    "uint8": "UINT8",
    "int8": "INT8",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
"""Datatype of the protocol by our dtype."""
DTYPES: Final = {datatype: dtype for dtype, datatype in DATATYPES.items()}
BYTES: Final = "BYTES"
"""The protocol's datatype of texts, and of pictures here."""

PICTURE_INPUT: Final = "image"
"""Name of the one input, datatype BYTES, shape [1], that holds a JPEG or PNG."""

DETECTION_OUTPUTS: Final = {
    "detection_boxes": ("FP32", (-1, 4)),
    "detection_scores": ("FP32", (-1,)),
    "detection_classes": ("INT32", (-1,)),
    "detection_names": (BYTES, (-1,)),
}
"""What detections are as tensors, by falling score; boxes are x0, y0, x1, y1 in pixels of the given frame."""
CLASS_OUTPUTS: Final = {"class_scores": ("FP32", (-1,)), "class_ids": ("INT32", (-1,)), "class_names": (BYTES, (-1,))}
"""What the best classes are as tensors, by falling score."""

ID_MAX_CHARS: Final = 256
"""Longest id of a request; it is echoed."""
PRIORITY_LOWEST: Final = 3
BUDGET_MAX_US: Final = 10**12
"""Longest timeout, in microseconds: what the local socket takes too."""

Name = Annotated[str, Meta(max_length=128)]
Size = Annotated[int, Meta(ge=0, le=2**32)]
Shape = Annotated[tuple[Size, ...], Meta(max_length=8)]


class InputParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of an input."""

    binary_data_size: Annotated[int, Meta(ge=0)] | None = None
    shared_memory_region: str | None = None


class Input(msgspec.Struct, frozen=True, kw_only=True):
    """An input tensor."""

    name: Name
    shape: Shape
    datatype: Annotated[str, Meta(max_length=16)]
    parameters: InputParameters = InputParameters()
    data: msgspec.Raw = msgspec.Raw()
    """As written; empty where there is none."""


class OutputParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of a wanted output."""

    binary_data: bool | None = None
    classification: int = 0
    shared_memory_region: str | None = None


class RequestedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A wanted output."""

    name: Name
    parameters: OutputParameters = OutputParameters()


class RequestParameters(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of a request; those below ``timeout`` are ours."""

    binary_data_output: bool = False
    priority: Annotated[int, Meta(ge=0)] = 0
    """1 first; 0 for the default. Ours are 0 to 3."""
    timeout: Annotated[int, Meta(ge=0, le=BUDGET_MAX_US)] = 0
    """Microseconds until the answer is worth nothing; 0 for the daemon's default."""
    stream: Name = ""
    frame: Annotated[int, Meta(ge=0)] = 0
    newest_wins: bool = False
    rungs: bool | None = None
    """Whether a smaller variant of the model may answer."""
    score_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The JSON of an inference request."""

    id: Annotated[str, Meta(max_length=ID_MAX_CHARS)] = ""
    parameters: RequestParameters = RequestParameters()
    inputs: Annotated[tuple[Input, ...], Meta(min_length=1, max_length=TENSORS_MAX)]
    outputs: Annotated[tuple[RequestedOutput, ...], Meta(max_length=TENSORS_MAX)] = ()


class BinarySize(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of an output that follows as bytes."""

    binary_data_size: int


class Output(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An output tensor."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: BinarySize | None = None
    data: Sequence[object] | None = None
    """Flat, in row-major order."""


class ResponseParameters(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What gridnode says of an answer beside its tensors."""

    node: str
    """Name of the node that executed."""
    node_id: str
    hops: int = -1
    waiting_s: float = -1.0
    service_s: float = -1.0
    total_s: float = -1.0
    """In the grid, from the whole request to its answer."""
    image_width: int = 0
    image_height: int = 0
    truncated: bool = False
    emulated: bool = False


class InferResponse(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The JSON of an inference response."""

    model_name: str
    model_version: str
    id: str = ""
    parameters: ResponseParameters
    outputs: tuple[Output, ...]


class TensorMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output of a model."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class PictureMetadata(msgspec.Struct, frozen=True, kw_only=True):
    """What a model takes and gives where the input is a picture."""

    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]


class ModelMetadata(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a model takes and gives."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    picture: PictureMetadata | None = None


def derived_outputs(manifest: Manifest) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return datatype and shape of the outputs that post-processing makes, by name."""
    match manifest.postprocessing:
        case DetectionPostprocessing():
            return dict(DETECTION_OUTPUTS)
        case ClassificationPostprocessing():
            return dict(CLASS_OUTPUTS)
        case _:
            return {}


def describe_model(manifest: Manifest, digest: str) -> ModelMetadata:
    """Return a model's metadata."""
    inputs, outputs = _describe(manifest.inputs), _describe(manifest.outputs)
    picture = None
    if manifest.preprocessing is not None:
        derived = [
            TensorMetadata(name=name, datatype=datatype, shape=shape)
            for name, (datatype, shape) in derived_outputs(manifest).items()
        ]
        image = TensorMetadata(name=PICTURE_INPUT, datatype=BYTES, shape=(1,))
        picture = PictureMetadata(inputs=(image,), outputs=tuple(derived) or outputs)
    return ModelMetadata(
        name=manifest.name,
        versions=(digest,),
        platform="onnxruntime_onnx",
        inputs=inputs,
        outputs=outputs,
        picture=picture,
    )


def _describe(specs: tuple[TensorSpec, ...]) -> tuple[TensorMetadata, ...]:
    return tuple(TensorMetadata(name=spec.name, datatype=DATATYPES[spec.dtype], shape=spec.shape) for spec in specs)
