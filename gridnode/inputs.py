"""What a program gives to the grid: pictures and tensors, turned into a request body and a payload.

Owns the reading of inputs and their checks that need no model. Knows nothing of sockets, keys or time. numpy and
Pillow are imported only where an input asks for them: a program that sends JPEG files needs neither.
"""

import functools
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from gridnode.control import (
    ALIGNMENT_BYTES,
    DTYPE_BYTES,
    PAYLOAD_MAX_BYTES,
    Buffer,
    RequestBody,
    TensorHeader,
    encode_body,
    layout,
)
from gridnode.errors import InvalidInputError

if TYPE_CHECKING:
    from numpy import dtype
    from numpy.typing import NDArray
    from PIL.Image import Image

    Array = NDArray[Any]
    Input = Array | Image | Buffer | str | os.PathLike[str] | Mapping[str, Array]

SIDE_MAX: Final = 65535
"""Pixels per side of a raw frame."""
TENSORS_MAX: Final = 64
NAME_MAX: Final = 128
RANK_MAX: Final = 8
FORMS_MAX: Final = 64
"""Encoded forms of inputs kept, of a few hundred bytes each: a program sends frames of few shapes, over and over."""
_PADDING: Final = bytes(ALIGNMENT_BYTES)
_JPEG: Final = b"\xff\xd8\xff"
_PNG: Final = b"\x89PNG\r\n\x1a\n"


class EncodedInput(msgspec.Struct, frozen=True, kw_only=True):
    """An input, ready to be sent."""

    body: bytes
    """A control.RequestBody, encoded."""
    parts: tuple[Buffer, ...]
    """The payload in pieces, views of the caller's data where possible."""
    payload_bytes: int


def encode_input(source: "Input", *, raw_outputs: bool = False, score_threshold: float | None = None) -> EncodedInput:
    """Turn what a caller has into a request body and a payload.

    Parameters
    ----------
    source : ndarray, PIL image, bytes-like, path, or mapping of str to ndarray
        A picture (uint8 array of shape (height, width, 3) in RGB order or (height, width) in grey; a PIL image; a
        JPEG or PNG as bytes; the path of a picture file) or the model's inputs by name. Contiguous arrays and
        bytes are not copied: leave them unchanged until the job ended. Reading a file blocks.
    raw_outputs : bool, default False
        Whether the model's output tensors are wanted too.
    score_threshold : float, optional
        Replaces the model's threshold for detections, 0 to 1.

    Raises
    ------
    InvalidInputError
        The input cannot be sent as it is; the message says what to change.
    TypeError
        The input is of no supported type.
    """
    if score_threshold is not None and not 0 <= score_threshold <= 1:
        raise InvalidInputError(f"score_threshold is {score_threshold}, allowed is 0 to 1")
    body, parts, payload_bytes = _encode(source)
    if payload_bytes > PAYLOAD_MAX_BYTES:
        raise InvalidInputError(
            f"input has {payload_bytes} bytes, at most {PAYLOAD_MAX_BYTES} can be sent; "
            "shrink the picture or send it as JPEG"
        )
    body_bytes = _body_bytes(body, raw_outputs, score_threshold)
    return EncodedInput(body=body_bytes, parts=parts, payload_bytes=payload_bytes)


@functools.lru_cache(maxsize=FORMS_MAX)
def _body_bytes(body: RequestBody, raw_outputs: bool, score_threshold: float | None) -> bytes:
    """Encode a body with what is wanted of the answer."""
    return encode_body(msgspec.structs.replace(body, raw_outputs=raw_outputs, score_threshold=score_threshold))


_Encoded = tuple[RequestBody, tuple[Buffer, ...], int]
"""What an input is, the pieces of its payload, views of the caller's data where possible, and its length in bytes."""


def _encode(source: "Input") -> _Encoded:
    """Choose the encoding by the input's type, without importing numpy or Pillow for it."""
    if isinstance(source, dict):
        return _encode_tensors(source)
    numpy, pillow = sys.modules.get("numpy"), sys.modules.get("PIL.Image")
    if numpy is not None and isinstance(source, numpy.ndarray):
        return _encode_array(source)
    if isinstance(source, bytes | bytearray | memoryview):
        return _encode_file(source, what="input")
    if isinstance(source, Mapping):
        return _encode_tensors(source)
    if isinstance(source, str | os.PathLike):
        return _encode_path(source)
    if pillow is not None and isinstance(source, pillow.Image):
        return _encode_image(source)
    raise TypeError(
        f"input is a {type(source).__module__}.{type(source).__qualname__}; give a uint8 numpy array of shape "
        "(height, width, 3), a PIL image, JPEG or PNG bytes, a path, or a dict of input name to numpy array"
    )


def _encode_array(array: "Array") -> _Encoded:
    """Encode one raw frame: uint8, RGB or grey."""
    import numpy

    if array.dtype != numpy.uint8:
        raise InvalidInputError(
            f"array is {array.dtype} of shape {array.shape}, a frame is uint8 of shape (height, width, 3); to send a "
            "model's input as it is, pass a dict of its name to the array: {'images': array}"
        )
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        raise InvalidInputError(
            f"array has shape {array.shape}, a frame has (height, width, 3) in RGB order or (height, width) in grey; "
            "drop an alpha channel with frame[..., :3], or pass a dict of input names to arrays"
        )
    height, width = array.shape[:2]
    _check_size(width, height)
    if array.shape[2] == 1:
        array = numpy.repeat(array, 3, axis=2)
    return _frame(numpy.ascontiguousarray(array).data.cast("B"), width=width, height=height)


def _encode_image(image: "Image") -> _Encoded:
    """Encode a PIL image as a raw frame; it need not come from a file."""
    _check_size(image.width, image.height)
    try:
        pixels = (image if image.mode == "RGB" else image.convert("RGB")).tobytes()
    except (OSError, SyntaxError, ValueError) as error:
        raise InvalidInputError(f"picture cannot be decoded: {error}; check the file it comes from") from error
    return _frame(pixels, width=image.width, height=image.height)


def _frame(pixels: Buffer, *, width: int, height: int) -> _Encoded:
    """Return the encoded form of width x height RGB pixels."""
    return RequestBody(kind="array", width=width, height=height), (pixels,), len(pixels)


def _check_size(width: int, height: int) -> None:
    """Refuse a frame without pixels, or with more than can be sent."""
    if not (1 <= width <= SIDE_MAX and 1 <= height <= SIDE_MAX):
        raise InvalidInputError(f"picture has {width}x{height} pixels, allowed are 1 to {SIDE_MAX} a side")
    if width * height * 3 > PAYLOAD_MAX_BYTES:
        raise InvalidInputError(
            f"picture has {width}x{height} pixels, {width * height * 3} bytes; at most {PAYLOAD_MAX_BYTES} can be "
            "sent; shrink it, or send it as JPEG"
        )


def _encode_file(data: Buffer, *, what: str) -> _Encoded:
    """Encode a JPEG or PNG as it is, told by its first bytes."""
    view = memoryview(data)
    if not view.c_contiguous:
        raise InvalidInputError(f"{what} is a memoryview with gaps; pass bytes(view)")
    view = view.cast("B") if view.nbytes else memoryview(b"")
    if not is_picture_file(view):
        raise InvalidInputError(
            f"{what} has {view.nbytes} bytes starting with {bytes(view[:8])!r}, which is neither JPEG nor PNG; "
            "open other formats with PIL.Image.open and pass the image, or pass raw pixels as a numpy array"
        )
    return RequestBody(kind="image"), (view,), view.nbytes


def is_picture_file(data: Buffer) -> bool:
    """Tell by its first bytes whether data is a JPEG or PNG.

    Examples
    --------
    >>> is_picture_file(bytes.fromhex("ffd8ffe0")), is_picture_file(b"GIF89a")
    (True, False)
    """
    start = bytes(data[:8])
    return start.startswith((_JPEG, _PNG))


def _encode_path(path: "str | os.PathLike[str]") -> _Encoded:
    """Encode a picture file: JPEG and PNG as they are, other formats through Pillow."""
    try:
        with open(path, "rb") as file:
            if (size := os.fstat(file.fileno()).st_size) > PAYLOAD_MAX_BYTES:
                raise InvalidInputError(f"{path} has {size} bytes, at most {PAYLOAD_MAX_BYTES} can be sent; shrink it")
            data = file.read(PAYLOAD_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InvalidInputError(f"picture {path} cannot be read: {reason}; check the path") from error
    if is_picture_file(data):
        return _encode_file(data, what=str(path))
    return _encode_image(_open_image(data, path))


def _open_image(data: bytes, path: "str | os.PathLike[str]") -> "Image":
    """Open a picture of another format than JPEG and PNG."""
    import io

    try:
        import PIL.Image
    except ImportError:
        raise InvalidInputError(
            f"{path} is neither JPEG nor PNG, and Pillow, which reads other formats, is not installed; "
            "pip install pillow, or convert the file"
        ) from None
    try:
        image = PIL.Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise InvalidInputError(f"{path} is not a picture: {error}; check the file") from error
    return image


def _encode_tensors(tensors: "Mapping[str, Array]") -> _Encoded:
    """Encode a model's inputs, each at a multiple of ALIGNMENT_BYTES."""
    numpy = sys.modules.get("numpy")
    for name, array in tensors.items():
        if numpy is None or not isinstance(array, numpy.ndarray):
            kind = type(array).__qualname__
            raise TypeError(f"input {name!r} is a {kind}; pass a numpy array (numpy.asarray makes one)")
    form = _form_of(tuple([(name, array.dtype, array.shape) for name, array in tensors.items()]))
    asarray = sys.modules["numpy"].asarray
    parts: list[Buffer] = []
    for array, dtype, gap in zip(tensors.values(), form.dtypes, form.gaps, strict=True):
        if gap:
            parts.append(_PADDING[:gap])
        if array.nbytes:
            parts.append(asarray(array, dtype=dtype, order="C").data.cast("B"))
    return form.body, tuple(parts), form.payload_bytes


class _Form(NamedTuple):
    """What tensors of certain names, types and shapes have in common."""

    body: RequestBody
    dtypes: "tuple[dtype[Any], ...]"
    """As they travel: little-endian."""
    gaps: tuple[int, ...]
    """Bytes of padding before each."""
    payload_bytes: int


@functools.lru_cache(maxsize=FORMS_MAX)
def _form_of(tensors: "tuple[tuple[str, dtype[Any], tuple[int, ...]], ...]") -> _Form:
    """Check names, types and shapes, and lay their tensors out."""
    if not 1 <= len(tensors) <= TENSORS_MAX:
        raise InvalidInputError(f"dict holds {len(tensors)} tensors, allowed are 1 to {TENSORS_MAX}; name all inputs")
    headers = tuple([_header_of(name, dtype, shape) for name, dtype, shape in tensors])
    starts, payload_bytes = layout(headers)
    ends = [0, *(start + layout((header,))[1] for start, header in zip(starts, headers, strict=True))]
    return _Form(
        body=RequestBody(kind="tensors", tensors=headers),
        dtypes=tuple([dtype.newbyteorder("<") for _, dtype, _ in tensors]),
        gaps=tuple([start - end for start, end in zip(starts, ends, strict=False)]),
        payload_bytes=payload_bytes,
    )


def _header_of(name: object, dtype: "dtype[Any]", shape: tuple[int, ...]) -> TensorHeader:
    """Check one tensor and describe it."""
    if not isinstance(name, str) or not 1 <= len(name) <= NAME_MAX:
        raise InvalidInputError(f"{name!r} is no name of an input; a name is text of 1 to {NAME_MAX} characters")
    if dtype.name not in DTYPE_BYTES:
        raise InvalidInputError(f"input {name!r} is {dtype}, supported are {', '.join(DTYPE_BYTES)}; cast it")
    if len(shape) > RANK_MAX:
        raise InvalidInputError(f"input {name!r} has {len(shape)} dimensions, at most {RANK_MAX} are allowed")
    return TensorHeader(name=name, dtype=dtype.name, shape=shape)
