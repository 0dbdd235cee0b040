"""Tensors outside of the runtime: how they are laid out as bytes in a payload. Pure.

Owns the headers of tensors, their layout and its bounds, and the errors of a request that cannot be answered. What a
request or a result says beside its tensors is models.bodies', whether it fits a model models.requestcheck's; the
numbers themselves are models.ndarrays', since numpy is of no use to a daemon that only passes them on. Knows nothing
of files, sockets, manifests or the runtime.

A *payload* is raw bytes. Tensors lie in it in the order of their headers, each C-contiguous and little-endian at the
next multiple of ALIGNMENT_BYTES from the payload's start; there is no padding after the last one. A header alone
tells a tensor's bytes, so offsets never travel and cannot lie.
"""

import math
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from models.manifest import DTYPES, ModelError

Buffer = bytes | bytearray | memoryview

PAYLOAD_MAX_BYTES: Final = 64 * 1024 * 1024
"""Largest payload, in and out."""

TENSORS_MAX: Final = 64
"""Tensors of one body. Models at the edge have a handful; each costs up to 200 B of header."""

ALIGNMENT_BYTES: Final = 64
"""Start of every tensor: a cache line, and what vector loads of any CPU we run on like."""

_ITEM_BYTES: Final = {"float32": 4, "float16": 2, "uint8": 1, "int8": 1, "int32": 4, "int64": 8, "bool": 1}
"""Bytes of one number; the names are those of models.manifest.DTYPES."""

Size = Annotated[int, Meta(ge=0, le=2**32)]
Name = Annotated[str, Meta(max_length=128)]


class InferenceError(ModelError):
    """A request ended without a result, and would on any other node: its input or the model is to blame."""


class BadInputError(InferenceError):
    """The request does not fit the model, or makes no sense. The sender's fault."""


class TensorHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What the bytes of one tensor are."""

    name: Name
    dtype: Annotated[str, Meta(max_length=16)]
    """One of models.manifest.DTYPES."""
    shape: Annotated[tuple[Size, ...], Meta(max_length=8)]


def size_bytes(header: TensorHeader) -> int:
    """Return the bytes of a tensor's data; raises BadInputError for an unknown dtype."""
    if header.dtype not in _ITEM_BYTES:
        raise BadInputError(f"dtype {header.dtype!r} is unknown; use one of {', '.join(DTYPES)}")
    return math.prod(header.shape) * _ITEM_BYTES[header.dtype]


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
