"""What a program gets back from the grid: detections, classes, tensors and where the time went.

Owns the public records. Knows nothing of sockets, keys or clocks. numpy is imported only where tensors are looked
at, Pillow only for drawing.
"""

import functools
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from gridnode.control import (
    DTYPE_BYTES,
    Buffer,
    JobDone,
    TensorHeader,
    decode_result,
    layout,
)
from gridnode.errors import ProtocolError

if TYPE_CHECKING:
    from types import ModuleType

    from numpy import dtype
    from numpy.typing import NDArray
    from PIL.Image import Image

    Array = NDArray[Any]

RANK_MAX: Final = 8
"""Dimensions of a tensor."""
REPEATED_MAX_BYTES: Final = 512
"""Longest result body that is remembered: with tensors only, or without any record, each is like the last."""
REPEATED_MAX: Final = 64
"""Result bodies remembered."""


# ---------------------------------------------------------------- records


class Box(NamedTuple):
    """A rectangle in pixels of the given frame; x to the right, y down, x0 < x1 and y0 < y1."""

    x0: float
    y0: float
    x1: float
    y1: float


class Detection(msgspec.Struct, frozen=True, kw_only=True):
    """One object found in the frame."""

    class_name: str
    class_index: int
    score: float
    """Confidence of the model, 0 to 1."""
    box: Box


class Classification(msgspec.Struct, frozen=True, kw_only=True):
    """One class the model sees in the frame."""

    class_name: str
    class_index: int
    score: float


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time went, in seconds."""

    total_s: float
    """In the grid, from the daemon's receipt to its answer."""
    queue_s: float
    transfer_s: float
    """Between nodes, both ways; 0 for a job that stayed on its device."""
    service_s: float
    """Execution of the model, with pre- and post-processing."""
    client_s: float
    """As the caller saw it, from submission to result."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one request."""

    key: bytes
    """Names the job in logs and for ``explain``."""
    model: str
    """The model, or the smaller rung, that answered."""
    model_digest: str
    node: str
    """Name of the node that executed."""
    node_id: str
    hops: int
    """Moves between nodes; 0 for a job that stayed on its device."""
    detections: tuple[Detection, ...] = ()
    """Sorted by falling score."""
    classes: tuple[Classification, ...] = ()
    image_size: tuple[int, int] = (0, 0)
    """Width and height of the frame that boxes refer to, in pixels; zeros where there was no picture."""
    timings: Timings
    truncated: bool = False
    """Whether the worst-scored records were left out to keep the answer within its bound."""
    emulated: bool = False
    """Whether a device profile answered instead of a model: there are no numbers in this result."""
    tensor_headers: tuple[TensorHeader, ...] = ()
    payload: Buffer = b""
    """The bytes behind ``tensors``."""

    @property
    def tensors(self) -> "dict[str, Array]":
        """The model's outputs by name, as views into ``payload``; empty unless ``raw_outputs`` was asked for."""
        return _views(self.tensor_headers, self.payload) if self.tensor_headers else {}

    def annotate(self, image: "Image | Array | Buffer | str | os.PathLike[str]") -> "Image":
        """Draw boxes and labels on a copy of the frame; see gridnode.drawing.annotate."""
        from gridnode.drawing import annotate

        return annotate(image, self)


# ---------------------------------------------------------------- answers


class _Content(NamedTuple):
    """A result body, read and checked."""

    detections: tuple[Detection, ...]
    classes: tuple[Classification, ...]
    image_size: tuple[int, int]
    truncated: bool
    emulated: bool
    headers: tuple[TensorHeader, ...]
    payload_bytes: int
    """What the headers add up to."""


def make_result(done: JobDone, payload: Buffer, *, client_s: float) -> Result:
    """Turn the daemon's answer into a result.

    Parameters
    ----------
    done : JobDone
        As received.
    payload : bytes-like
        Output tensors, laid out as the result body's headers say.
    client_s : float
        Time from submission to answer as the caller saw it, in seconds.

    Raises
    ------
    ProtocolError
        The body is malformed or does not fit the payload: the executing node's fault.
    """
    content = _read_again(done.body) if len(done.body) <= REPEATED_MAX_BYTES else _read(done.body)
    if content.payload_bytes != len(payload):
        total, have = content.payload_bytes, len(payload)
        raise ProtocolError(f"outputs add up to {total} bytes, the answer's payload has {have}")
    return Result(
        key=done.key,
        model=done.model,
        model_digest=done.model_digest,
        node=done.node_name,
        node_id=done.node,
        hops=done.hops,
        detections=content.detections,
        classes=content.classes,
        image_size=content.image_size,
        timings=Timings(
            total_s=done.total_s,
            queue_s=done.waiting_s,
            transfer_s=done.transfer_s,
            service_s=done.service_s,
            client_s=client_s,
        ),
        truncated=content.truncated,
        emulated=content.emulated,
        tensor_headers=content.headers,
        payload=payload,
    )


def _read(data: bytes) -> _Content:
    """Decode a result body, and check that its tensors are some before anyone looks for them."""
    body = decode_result(data)
    for header in body.tensors:
        if header.dtype not in DTYPE_BYTES or any(size < 0 for size in header.shape) or len(header.shape) > RANK_MAX:
            raise ProtocolError(f"output {header.name!r} of dtype {header.dtype!r}, shape {header.shape} is no tensor")
    return _Content(
        detections=tuple(
            Detection(class_name=d.class_name, class_index=d.class_index, score=d.score, box=Box(*d.box))
            for d in body.detections
        ),
        classes=tuple(
            Classification(class_name=c.class_name, class_index=c.class_index, score=c.score) for c in body.classes
        ),
        image_size=(body.image_width, body.image_height),
        truncated=body.truncated,
        emulated=body.emulated,
        headers=body.tensors,
        payload_bytes=layout(body.tensors)[1],
    )


_read_again = functools.lru_cache(maxsize=REPEATED_MAX)(_read)


def _views(headers: tuple[TensorHeader, ...], payload: Buffer) -> "dict[str, Array]":
    """Look at tensors in a payload without copying them."""
    ndarray = _numpy().ndarray
    return {name: ndarray(shape, dtype, payload, start) for name, dtype, shape, start in _places(headers)}


@functools.lru_cache(maxsize=REPEATED_MAX)
def _places(headers: tuple[TensorHeader, ...]) -> "tuple[tuple[str, dtype[Any], tuple[int, ...], int], ...]":
    """Return each tensor's name, type, shape and start in the payload."""
    numpy = _numpy()
    starts = layout(headers)[0]
    types = [numpy.dtype(header.dtype).newbyteorder("<") for header in headers]
    return tuple([(h.name, t, h.shape, start) for h, t, start in zip(headers, types, starts, strict=True)])


def _numpy() -> "ModuleType":
    """Import numpy, or say that it is missing and what for."""
    try:
        import numpy
    except ImportError as error:
        text = "a model's outputs are numpy arrays, and numpy is not installed; pip install numpy"
        raise ModuleNotFoundError(text, name="numpy") from error
    return numpy
