"""What a program gets back from the grid: detections, classes, tensors and where the time went.

Owns the public records. Knows nothing of sockets, keys or clocks. numpy is imported only where tensors are looked
at, Pillow only for drawing.
"""

import math
import os
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from gridnode.control import (
    DTYPE_BYTES,
    Buffer,
    JobDone,
    ResultBody,
    TensorHeader,
    decode_result,
    layout,
)
from gridnode.errors import ProtocolError

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray
    from PIL.Image import Image

    Array = NDArray[Any]

RANK_MAX: Final = 8
"""Dimensions of a tensor."""


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
    body = decode_result(done.body)
    _check_layout(body, payload)
    return Result(
        key=done.key,
        model=done.model,
        model_digest=done.model_digest,
        node=done.node_name,
        node_id=done.node,
        hops=done.hops,
        detections=tuple(
            Detection(class_name=d.class_name, class_index=d.class_index, score=d.score, box=Box(*d.box))
            for d in body.detections
        ),
        classes=tuple(
            Classification(class_name=c.class_name, class_index=c.class_index, score=c.score) for c in body.classes
        ),
        image_size=(body.image_width, body.image_height),
        timings=Timings(
            total_s=done.total_s,
            queue_s=done.waiting_s,
            transfer_s=done.transfer_s,
            service_s=done.service_s,
            client_s=client_s,
        ),
        truncated=body.truncated,
        emulated=body.emulated,
        tensor_headers=body.tensors,
        payload=payload,
    )


def _check_layout(body: ResultBody, payload: Buffer) -> None:
    """Compare the headers of output tensors with the payload before anyone looks into it."""
    for header in body.tensors:
        if header.dtype not in DTYPE_BYTES or any(size < 0 for size in header.shape) or len(header.shape) > RANK_MAX:
            raise ProtocolError(f"output {header.name!r} of dtype {header.dtype!r}, shape {header.shape} is no tensor")
    total = layout(body.tensors)[1]
    if total != len(payload):
        raise ProtocolError(f"outputs add up to {total} bytes, the answer's payload has {len(payload)}")


def _views(headers: tuple[TensorHeader, ...], payload: Buffer) -> "dict[str, Array]":
    """Look at tensors in a payload without copying them."""
    numpy = _numpy()
    tensors: dict[str, Array] = {}
    for header, start in zip(headers, layout(headers)[0], strict=True):
        dtype = numpy.dtype(header.dtype).newbyteorder("<")
        flat = numpy.frombuffer(payload, dtype=dtype, count=math.prod(header.shape), offset=start)
        tensors[header.name] = flat.reshape(header.shape)
    return tensors


def _numpy() -> "ModuleType":
    """Import numpy, or say that it is missing and what for."""
    try:
        import numpy
    except ImportError as error:
        text = "a model's outputs are numpy arrays, and numpy is not installed; pip install numpy"
        raise ModuleNotFoundError(text, name="numpy") from error
    return numpy
