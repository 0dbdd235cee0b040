"""Golden data: the inputs and right outputs that travel with a model, as one shard. Pure.

A golden shard is: length of the header as u32 little-endian, the header (a MessagePack array of tensor headers,
names prefixed ``in.`` or ``out.``), zeros up to a multiple of ALIGNMENT_BYTES, then a payload as in models.tensors.
Running a model on it is models.profile's business.
"""

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from models.manifest import ModelError
from models.ndarrays import Array, pack, views
from models.tensors import ALIGNMENT_BYTES, TENSORS_MAX, BadInputError, Buffer, TensorHeader

GOLDEN_MAX_BYTES: Final = 256 * 1024 * 1024
"""Largest golden shard: it is read whole, on small boards too."""

_HEADER_MAX_BYTES: Final = 64 * 1024
_INPUT_PREFIX: Final = "in."
_OUTPUT_PREFIX: Final = "out."

_ENCODER: Final = msgspec.msgpack.Encoder()
_HEADERS: Final = msgspec.msgpack.Decoder(Annotated[tuple[TensorHeader, ...], Meta(max_length=2 * TENSORS_MAX)])


class GoldenFormatError(ModelError):
    """A golden shard that does not hold what its layout promises. The publisher's fault."""


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
    if head_bytes > _HEADER_MAX_BYTES or start > view.nbytes:
        raise GoldenFormatError(f"golden shard of {view.nbytes} bytes claims a header of {head_bytes}; publish it anew")
    try:
        named = views(_HEADERS.decode(view[4 : 4 + head_bytes]), view[start:])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, BadInputError) as error:
        raise GoldenFormatError(f"golden shard is malformed: {error}; publish it anew") from error
    strangers = [name for name in named if not name.startswith((_INPUT_PREFIX, _OUTPUT_PREFIX))]
    if strangers:
        raise GoldenFormatError(f"golden shard holds {strangers[0]!r}, names start with in. or out.; publish it anew")
    inputs = {n.removeprefix(_INPUT_PREFIX): a for n, a in named.items() if n.startswith(_INPUT_PREFIX)}
    outputs = {n.removeprefix(_OUTPUT_PREFIX): a for n, a in named.items() if n.startswith(_OUTPUT_PREFIX)}
    return inputs, outputs
