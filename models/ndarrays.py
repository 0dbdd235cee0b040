"""numpy's view of a payload: arrays in, arrays out, without copying where that can be. Pure.

The layout is models.tensors'. For the two ends of a request, where numbers are looked at; the daemon in between
imports nothing from here, and so does without numpy.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.manifest import DTYPES
from models.tensors import BadInputError, Buffer, TensorHeader, layout, size_bytes

Array = NDArray[Any]


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the little-endian numpy type of that name; raises BadInputError for any other than DTYPES."""
    if name not in DTYPES:
        raise BadInputError(f"dtype {name!r} is unknown; use one of {', '.join(DTYPES)}")
    return np.dtype(name).newbyteorder("<")


class Piece(NamedTuple):
    """Where one tensor lies in a payload."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    """In bytes from the payload's start."""

    def view(self, payload: Buffer) -> Array:
        """Look at the tensor; booleans are copied, so that every byte is 0 or 1.

        Raises
        ------
        BadInputError
            Nothing to read, and yet more than numpy can count: a size of 0 beside enormous ones.
        """
        try:
            if self.dtype.kind != "b":
                return np.ndarray(self.shape, self.dtype, payload, self.start)
            bits: Array = np.ndarray(self.shape, np.uint8, payload, self.start) != 0
            return bits
        except ValueError as error:
            raise BadInputError(f"tensor {self.name!r} has the impossible shape {self.shape}; fix it") from error


def pieces(headers: Sequence[TensorHeader], payload_bytes: int) -> tuple[Piece, ...]:
    """Return where the tensors of a payload of that length lie; raises BadInputError as views does."""
    offsets, total = layout(headers)
    if payload_bytes != total:
        raise BadInputError(f"payload has {payload_bytes} bytes, its tensor headers add up to {total}; send both alike")
    seen: set[str] = set()
    for header in headers:
        if header.name in seen:
            raise BadInputError(f"tensor {header.name!r} is given twice; give each name once")
        seen.add(header.name)
    return tuple(Piece(h.name, h.shape, numpy_dtype(h.dtype), start) for h, start in zip(headers, offsets, strict=True))


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
    view = memoryview(payload).cast("B")
    return {piece.name: piece.view(view) for piece in pieces(headers, view.nbytes)}


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
