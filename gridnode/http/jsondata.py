"""Tensors as JSON numbers: how a program that has no binary data writes them. Pure.

Numbers may be nested as the shape is, or lie flat in row-major order. FP16 has no JSON form in the protocol; numbers
are taken and rounded to it.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Final

import msgspec

from models.tensors import BadInputError, Buffer

RANK_MAX: Final = 8
"""Deepest nesting: the dimensions of a tensor."""

_FORMATS: Final = {
    "FP32": "f", "FP16": "e", "UINT8": "B", "INT8": "b", "INT32": "i", "INT64": "q", "BOOL": "?",
}  # fmt: skip
_DECODER: Final = msgspec.json.Decoder(list)


def encode_numbers(data: Buffer | msgspec.Raw, *, datatype: str, count: int, name: str) -> bytes:
    """Turn JSON numbers into the bytes of a tensor.

    Parameters
    ----------
    data : bytes-like
        A JSON array, nested or flat.
    datatype : str
        Of the protocol; BYTES is not among them.
    count : int
        Elements of the tensor's shape.
    name : str
        Of the input, for the message.

    Raises
    ------
    BadInputError
        It is no array of numbers, has another count, or a number does not fit the datatype: the sender's fault.
    """
    try:
        flat = _flatten(_DECODER.decode(data))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadInputError(f"input {name!r}: data is no array of numbers: {error}") from error
    except ValueError as error:
        raise BadInputError(f"input {name!r}: {error}") from error
    if len(flat) != count:
        raise BadInputError(f"input {name!r}: data has {len(flat)} numbers, its shape needs {count}; send both alike")
    kinds = set(map(type, flat))
    if not kinds <= ({bool} if datatype == "BOOL" else {int, float}):
        seen = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise BadInputError(
            f"input {name!r}: data of datatype {datatype} holds {seen}; send numbers, or true and false"
        )
    try:
        return struct.pack(f"<{count}{_FORMATS[datatype]}", *flat)
    except (struct.error, OverflowError) as error:
        raise BadInputError(f"input {name!r}: a number does not fit {datatype}: {error}") from error


def _flatten(values: list[object]) -> list[object]:
    """Return the numbers of nested arrays; all are nested equally deep where the count is right."""
    for _ in range(RANK_MAX):
        if not any(type(value) is list for value in values):
            return values
        if not all(type(value) is list for value in values):
            raise ValueError("data mixes numbers and arrays on one level; nest it as the shape is, or not at all")
        values = [inner for value in values if isinstance(value, list) for inner in value]
    raise ValueError(f"data is nested more than {RANK_MAX} deep")


def unpack_numbers(data: Buffer, *, datatype: str) -> Sequence[object]:
    """Return the numbers of a tensor, flat; its length must be a multiple of the datatype's."""
    letter = _FORMATS[datatype]
    return struct.unpack(f"<{len(data) // struct.calcsize('<' + letter)}{letter}", data)


def pack_values(values: Sequence[object], *, datatype: str) -> bytes:
    """Return values as binary data; texts, datatype BYTES, each behind its length as u32 little-endian."""
    if datatype != "BYTES":
        return struct.pack(f"<{len(values)}{_FORMATS[datatype]}", *values)
    texts = [str(value).encode() for value in values]
    return b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def split_elements(data: memoryview) -> Iterator[memoryview]:
    """Return the elements in binary data of datatype BYTES; raises ValueError where lengths do not add up."""
    start = 0
    while start < len(data):
        end = start + 4 + int.from_bytes(data[start : start + 4], "little")
        if start + 4 > len(data) or end > len(data):
            raise ValueError("an element's length reaches beyond the data; each element follows its length as u32")
        yield data[start + 4 : end]
        start = end
