"""Tensors outside of the runtime: how requests, results and golden data are laid out as bytes. Pure.

Owns the request and result bodies, their bounds, the layout of tensors in a payload and in a golden shard, and the
check of a request against a manifest. Knows nothing of files, sockets, pictures' contents or the runtime.

A *body* is one MessagePack map, small, read by the two ends only; nodes in between pass it on unread. A *payload*
is raw bytes. Tensors lie in a payload in the order of their headers, each C-contiguous and little-endian at the
next multiple of ALIGNMENT_BYTES from the payload's start; there is no padding after the last one. A header alone
tells a tensor's bytes, so offsets never travel and cannot lie.

A golden shard is: length of the header as u32 little-endian, the header (a MessagePack array of tensor headers,
names prefixed ``in.`` or ``out.``), zeros up to a multiple of ALIGNMENT_BYTES, then a payload as above.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from models.manifest import DTYPES, Manifest, ModelError, TensorSpec

Buffer = bytes | bytearray | memoryview
Array = NDArray[Any]

BODY_MAX_BYTES: Final = 48 * 1024
"""Largest request or result body; it travels inside a frame header of at most 64 KiB."""

PAYLOAD_MAX_BYTES: Final = 64 * 1024 * 1024
"""Largest payload, in and out."""

TENSORS_MAX: Final = 64
"""Tensors of one body. Models at the edge have a handful; each costs up to 200 B of header."""

DETECTIONS_MAX: Final = 512
"""Detections of one result, and classes likewise; at about 90 B each they fit a body."""

GOLDEN_MAX_BYTES: Final = 256 * 1024 * 1024
"""Largest golden shard: it is read whole, on small boards too."""

ALIGNMENT_BYTES: Final = 64
"""Start of every tensor: a cache line, and what vector loads of any CPU we run on like."""

_GOLDEN_HEADER_MAX_BYTES: Final = 64 * 1024
_INPUT_PREFIX: Final = "in."
_OUTPUT_PREFIX: Final = "out."

Size = Annotated[int, Meta(ge=0, le=2**32)]
Name = Annotated[str, Meta(max_length=128)]
ClassName = Annotated[str, Meta(max_length=128)]


class InferenceError(ModelError):
    """A request ended without a result, and would on any other node: its input or the model is to blame."""


class BadInputError(InferenceError):
    """The request does not fit the model, or makes no sense. The sender's fault."""


class GoldenFormatError(ModelError):
    """A golden shard that does not hold what its layout promises. The publisher's fault."""


class TensorHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What the bytes of one tensor are."""

    name: Name
    dtype: Annotated[str, Meta(max_length=16)]
    """One of models.manifest.DTYPES."""
    shape: Annotated[tuple[Size, ...], Meta(max_length=8)]


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
_GOLDEN: Final = msgspec.msgpack.Decoder(Annotated[tuple[TensorHeader, ...], Meta(max_length=2 * TENSORS_MAX)])

# ---------------------------------------------------------------- bodies


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


# ---------------------------------------------------------------- layout


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the little-endian numpy type of that name; raises BadInputError for any other than DTYPES."""
    if name not in DTYPES:
        raise BadInputError(f"dtype {name!r} is unknown; use one of {', '.join(DTYPES)}")
    return np.dtype(name).newbyteorder("<")


def size_bytes(header: TensorHeader) -> int:
    """Return the bytes of a tensor's data; raises BadInputError for an unknown dtype."""
    return math.prod(header.shape) * numpy_dtype(header.dtype).itemsize


def layout(headers: Sequence[TensorHeader]) -> tuple[tuple[int, ...], int]:
    """Return where each tensor starts in a payload, and the payload's length.

    Parameters
    ----------
    headers : sequence of TensorHeader
        In the order of the payload.

    Returns
    -------
    offsets : tuple of int
        In bytes from the payload's start, each a multiple of ALIGNMENT_BYTES.
    total : int
        In bytes: the end of the last tensor, 0 for none.

    Raises
    ------
    BadInputError
        A dtype is unknown.

    Examples
    --------
    >>> layout([TensorHeader(name="a", dtype="uint8", shape=(3,)), TensorHeader(name="b", dtype="int64", shape=(2,))])
    ((0, 64), 80)
    """
    offsets: list[int] = []
    end = 0
    for header in headers:
        start = -(-end // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        offsets.append(start)
        end = start + size_bytes(header)
    return tuple(offsets), end


def views(headers: Sequence[TensorHeader], payload: Buffer) -> dict[str, Array]:
    """Look at a payload's tensors without copying them.

    Parameters
    ----------
    headers : sequence of TensorHeader
        Of all tensors in the payload, in order.
    payload : bytes-like
        Exactly as long as the headers say.

    Returns
    -------
    dict of str to ndarray
        Views into the payload, as writable as it is. Booleans are the exception: they are copied so that every
        byte is 0 or 1, since other values are undefined behaviour in compiled kernels.

    Raises
    ------
    BadInputError
        Unknown dtype, a name given twice, or the sizes do not add up.
    """
    offsets, total = layout(headers)
    view = memoryview(payload).cast("B")
    if view.nbytes != total:
        raise BadInputError(f"payload has {view.nbytes} bytes, its tensor headers add up to {total}; send both alike")
    tensors: dict[str, Array] = {}
    for header, start in zip(headers, offsets, strict=True):
        if header.name in tensors:
            raise BadInputError(f"tensor {header.name!r} is given twice; give each name once")
        flat = np.frombuffer(view[start : start + size_bytes(header)], dtype=np.uint8)
        typed = flat != 0 if header.dtype == "bool" else flat.view(numpy_dtype(header.dtype))
        try:
            tensors[header.name] = typed.reshape(header.shape)
        except ValueError as error:
            # Nothing to read, and yet more than numpy can count: a size of 0 beside enormous ones.
            raise BadInputError(f"tensor {header.name!r} has the impossible shape {header.shape}; fix it") from error
    return tensors


def describe(tensors: Mapping[str, Array]) -> tuple[TensorHeader, ...]:
    """Return the headers of arrays, in the mapping's order; raises BadInputError for a type outside DTYPES."""
    for name, array in tensors.items():
        if array.dtype.name not in DTYPES:
            raise BadInputError(f"tensor {name!r} is {array.dtype}, supported are {', '.join(DTYPES)}; cast it")
    return tuple(TensorHeader(name=n, dtype=a.dtype.name, shape=a.shape) for n, a in tensors.items())


def write(tensors: Mapping[str, Array], target: memoryview) -> tuple[TensorHeader, ...]:
    """Lay arrays out at the start of a writable buffer and return their headers.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        Of any strides and byte order; written C-contiguous and little-endian. Gaps keep what was there.
    target : memoryview
        Writable bytes, at least ``layout(describe(tensors))[1]`` of them.

    Raises
    ------
    BadInputError
        A type outside DTYPES, or the target is too small.
    """
    headers = describe(tensors)
    offsets, total = layout(headers)
    if total > target.nbytes:
        raise BadInputError(
            f"tensors take {total} bytes, there is room for {target.nbytes}; send fewer or smaller ones"
        )
    for header, start in zip(headers, offsets, strict=True):
        flat = np.frombuffer(target[start : start + size_bytes(header)], dtype=np.uint8)
        flat.view(numpy_dtype(header.dtype)).reshape(header.shape)[...] = tensors[header.name]
    return headers


def pack(tensors: Mapping[str, Array]) -> tuple[tuple[TensorHeader, ...], bytearray]:
    """Lay arrays out in a payload of their own; raises BadInputError as write does."""
    _, total = layout(describe(tensors))
    payload = bytearray(total)
    return write(tensors, memoryview(payload)), payload


# ---------------------------------------------------------------- checks


def check_request(manifest: Manifest, body: RequestBody, payload_bytes: int) -> None:
    """Check that a request fits a model, before anything is allocated or run for it.

    Parameters
    ----------
    manifest : Manifest
        Of the model that is to answer.
    body : RequestBody
        As decoded.
    payload_bytes : int
        Length of the payload that came with it, >= 0.

    Raises
    ------
    BadInputError
        The sender's fault: an input is missing, unknown, of another dtype or shape, sizes do not add up, or a
        picture goes to a model without pre-processing. The message says what was seen and what is wanted.
    """
    if payload_bytes > PAYLOAD_MAX_BYTES:
        raise BadInputError(f"payload has {payload_bytes} bytes, at most {PAYLOAD_MAX_BYTES} are accepted; shrink it")
    if body.kind == "tensors":
        _check_tensors(manifest, body, payload_bytes)
        return
    if body.tensors:
        raise BadInputError(f"request of kind {body.kind!r} names tensors; leave them out or use kind 'tensors'")
    _check_takes_pictures(manifest)
    if body.kind == "image" and payload_bytes == 0:
        raise BadInputError("request of kind 'image' has an empty payload; send an encoded JPEG or PNG")
    wanted = body.width * body.height * 3
    if body.kind == "array" and (wanted == 0 or wanted != payload_bytes):
        raise BadInputError(
            f"frame of {body.width}x{body.height} needs {wanted} bytes of RGB, the payload has {payload_bytes}; "
            "send uint8 of shape (height, width, 3) with its size"
        )


def _check_takes_pictures(manifest: Manifest) -> None:
    """Refuse a picture where the manifest does not say how it becomes all of the model's inputs."""
    if manifest.preprocessing is None:
        raise BadInputError(
            f"model {manifest.name!r} takes no pictures, its manifest has no pre-processing; send its inputs as "
            f"tensors: {_wanted(manifest.inputs)}"
        )
    others = [spec.name for spec in manifest.inputs if spec.name != manifest.preprocessing.input]
    if others:
        raise BadInputError(f"model {manifest.name!r} needs more than a picture: {', '.join(others)}; send tensors")


def _check_tensors(manifest: Manifest, body: RequestBody, payload_bytes: int) -> None:
    """Check headers against the manifest's inputs and the payload's length."""
    specs = {spec.name: spec for spec in manifest.inputs}
    seen: set[str] = set()
    for header in body.tensors:
        if header.name in seen:
            raise BadInputError(f"input {header.name!r} is given twice; give each input once")
        seen.add(header.name)
        if header.name not in specs:
            raise BadInputError(
                f"model {manifest.name!r} has no input {header.name!r}; it takes {_wanted(manifest.inputs)}"
            )
        _check_tensor(header, specs[header.name])
    missing = [spec for spec in manifest.inputs if spec.name not in seen]
    if missing:
        raise BadInputError(f"model {manifest.name!r} got no input {_wanted(missing)}; send it too")
    _, total = layout(body.tensors)
    if total != payload_bytes:
        raise BadInputError(
            f"payload has {payload_bytes} bytes, its tensor headers add up to {total} with each tensor at a "
            f"multiple of {ALIGNMENT_BYTES}; send both alike"
        )


def _check_tensor(header: TensorHeader, spec: TensorSpec) -> None:
    """Compare one header with the manifest."""
    if header.dtype != spec.dtype:
        raise BadInputError(f"input {header.name!r} is {header.dtype}, the model takes {spec.dtype}; cast it")
    fits = len(header.shape) == len(spec.shape) and all(
        seen >= 1 and wanted in (-1, seen) for seen, wanted in zip(header.shape, spec.shape, strict=False)
    )
    if not fits:
        raise BadInputError(
            f"input {header.name!r} has shape {header.shape}, the model takes {spec.shape} (-1: any size); reshape it"
        )


def _wanted(specs: Sequence[TensorSpec]) -> str:
    """List inputs for a message."""
    return ", ".join(f"{spec.name} {spec.dtype}{list(spec.shape)}" for spec in specs)


# ---------------------------------------------------------------- golden data


def encode_golden(inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> bytes:
    """Lay golden inputs and outputs out as a shard; raises GoldenFormatError for what does not fit one."""
    named = {_INPUT_PREFIX + name: array for name, array in inputs.items()}
    named |= {_OUTPUT_PREFIX + name: array for name, array in outputs.items()}
    try:
        headers, payload = pack(named)
    except BadInputError as error:
        raise GoldenFormatError(f"golden data cannot be laid out: {error}") from error
    head = _ENCODER.encode(headers)
    start = -(-(4 + len(head)) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    if start + len(payload) > GOLDEN_MAX_BYTES:
        raise GoldenFormatError(f"golden data takes {start + len(payload)} bytes, at most {GOLDEN_MAX_BYTES} fit")
    return (len(head).to_bytes(4, "little") + head).ljust(start, b"\0") + payload


def decode_golden(data: Buffer) -> tuple[dict[str, Array], dict[str, Array]]:
    """Read a golden shard.

    Parameters
    ----------
    data : bytes-like
        The whole shard.

    Returns
    -------
    inputs, outputs : dict of str to ndarray
        Views into the data, named as in the manifest.

    Raises
    ------
    GoldenFormatError
        The publisher's fault: truncated, too large, or not in the layout of this module.
    """
    view = memoryview(data).cast("B")
    if not 4 <= view.nbytes <= GOLDEN_MAX_BYTES:
        raise GoldenFormatError(f"golden shard has {view.nbytes} bytes, allowed are 4..{GOLDEN_MAX_BYTES}")
    head_bytes = int.from_bytes(view[:4], "little")
    start = -(-(4 + head_bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    if head_bytes > _GOLDEN_HEADER_MAX_BYTES or start > view.nbytes:
        raise GoldenFormatError(f"golden shard of {view.nbytes} bytes claims a header of {head_bytes}; publish it anew")
    try:
        named = views(_GOLDEN.decode(view[4 : 4 + head_bytes]), view[start:])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, BadInputError) as error:
        raise GoldenFormatError(f"golden shard is malformed: {error}; publish it anew") from error
    strangers = [name for name in named if not name.startswith((_INPUT_PREFIX, _OUTPUT_PREFIX))]
    if strangers:
        raise GoldenFormatError(f"golden shard holds {strangers[0]!r}, names start with in. or out.; publish it anew")
    inputs = {n.removeprefix(_INPUT_PREFIX): a for n, a in named.items() if n.startswith(_INPUT_PREFIX)}
    outputs = {n.removeprefix(_OUTPUT_PREFIX): a for n, a in named.items() if n.startswith(_OUTPUT_PREFIX)}
    return inputs, outputs
