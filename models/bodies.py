"""What a request and a result say: records, bounds, encoding and decoding. Pure.

A *body* is one MessagePack map, small, read by the two ends only; nodes in between pass it on unread. Tensors and
pictures are not in it: they follow as the payload, laid out by models.tensors. docs/wire.md describes every field.
"""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from models.tensors import TENSORS_MAX, BadInputError, Buffer, InferenceError, TensorHeader

BODY_MAX_BYTES: Final = 48 * 1024
"""Largest request or result body; it travels inside a frame header of at most 64 KiB."""

DETECTIONS_MAX: Final = 512
"""Detections of one result, and classes likewise; at about 90 B each they fit a body."""

ClassName = Annotated[str, Meta(max_length=128)]


class RequestBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a request's payload is and what is wanted of it."""

    kind: Literal["tensors", "image", "array"]
    """tensors: the model's inputs as they are. image: one encoded JPEG or PNG. array: one decoded frame, uint8 of
    shape (height, width, 3) in RGB order. Pictures need a model whose manifest has pre-processing."""
    tensors: Annotated[tuple[TensorHeader, ...], Meta(max_length=TENSORS_MAX)] = ()
    """Headers of the inputs; kind tensors only."""
    width: Annotated[int, Meta(ge=0, le=65535)] = 0
    """Pixels per row; kind array only. Frame size also scales boxes of a tensors request, where it is given."""
    height: Annotated[int, Meta(ge=0, le=65535)] = 0
    raw_outputs: bool = False
    """Whether the model's outputs are wanted as tensors beside detections or classes. A model without
    post-processing gives them anyway."""
    score_threshold: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Replaces the manifest's threshold for detections."""


class DetectionRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One object found in the frame."""

    class_index: Annotated[int, Meta(ge=0)]
    class_name: ClassName
    score: float
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels of the given frame, upright."""


class ClassRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One class the model sees in the frame."""

    class_index: Annotated[int, Meta(ge=0)]
    class_name: ClassName
    score: float


class ResultBody(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What came out. Lists are sorted by falling score."""

    detections: Annotated[tuple[DetectionRecord, ...], Meta(max_length=DETECTIONS_MAX)] = ()
    classes: Annotated[tuple[ClassRecord, ...], Meta(max_length=DETECTIONS_MAX)] = ()
    tensors: Annotated[tuple[TensorHeader, ...], Meta(max_length=TENSORS_MAX)] = ()
    """Headers of the outputs in the payload."""
    image_width: Annotated[int, Meta(ge=0)] = 0
    """Size of the upright frame that boxes refer to, in pixels; 0 where there was no picture."""
    image_height: Annotated[int, Meta(ge=0)] = 0
    truncated: bool = False
    """Whether the worst-scored records were left out to keep the body within its bound."""
    emulated: bool = False
    """Whether a device profile answered instead of a model: there are no numbers in this result."""


_ENCODER: Final = msgspec.msgpack.Encoder()
_REQUEST: Final = msgspec.msgpack.Decoder(RequestBody)
_RESULT: Final = msgspec.msgpack.Decoder(ResultBody)


def encode_request(body: RequestBody) -> bytes:
    """Encode a request body; raises BadInputError where it exceeds BODY_MAX_BYTES."""
    data = _ENCODER.encode(body)
    if len(data) > BODY_MAX_BYTES:
        raise BadInputError(f"request body has {len(data)} bytes, at most {BODY_MAX_BYTES} fit; use shorter names")
    return data


def decode_request(data: Buffer) -> RequestBody:
    """Decode a request body; raises BadInputError, the sender's fault."""
    if len(data) > BODY_MAX_BYTES:
        raise BadInputError(f"request body has {len(data)} bytes, at most {BODY_MAX_BYTES} are accepted")
    try:
        return _REQUEST.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadInputError(f"request body is malformed: {error}; see docs/wire.md for its fields") from error


def encode_result(body: ResultBody) -> bytes:
    """Encode a result body; where it exceeds a bound the worst-scored records go and truncated is set."""
    if max(len(body.detections), len(body.classes)) > DETECTIONS_MAX:
        body = _shorten(body, keep=DETECTIONS_MAX)
    data = _ENCODER.encode(body)
    while len(data) > BODY_MAX_BYTES and (keep := max(len(body.detections), len(body.classes)) // 2):
        body = _shorten(body, keep=keep)
        data = _ENCODER.encode(body)
    if len(data) > BODY_MAX_BYTES:
        raise InferenceError(f"result body has {len(data)} bytes, at most {BODY_MAX_BYTES} fit; shorten class names")
    return data


def decode_result(data: Buffer) -> ResultBody:
    """Decode a result body; raises InferenceError: whoever made it broke the format."""
    if len(data) > BODY_MAX_BYTES:
        raise InferenceError(f"result body has {len(data)} bytes, at most {BODY_MAX_BYTES} are accepted")
    try:
        return _RESULT.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InferenceError(f"result body is malformed: {error}") from error


def _shorten(body: ResultBody, *, keep: int) -> ResultBody:
    """Keep the best records of both lists."""
    return msgspec.structs.replace(body, detections=body.detections[:keep], classes=body.classes[:keep], truncated=True)
