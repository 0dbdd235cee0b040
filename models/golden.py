"""Golden data: the inputs and right outputs that travel with a model, as one shard. Pure.

A golden shard is: length of the header as u32 little-endian, the header (a MessagePack array of tensor headers,
names prefixed ``in.`` or ``out.``), zeros up to a multiple of ALIGNMENT_BYTES, then a payload as in models.tensors.
Running a model on it is models.profile's business. numpy is imported only where arrays are asked for.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from models.manifest import ModelError
from models.tensors import ALIGNMENT_BYTES, TENSORS_MAX, BadInputError, Buffer, TensorHeader, layout, size_bytes

if TYPE_CHECKING:
    from models.ndarrays import Array

GOLDEN_MAX_BYTES: Final = 256 * 1024 * 1024
"""Largest golden shard: it is read whole, on small boards too."""

_HEADER_MAX_BYTES: Final = 64 * 1024
_INPUT_PREFIX: Final = "in."
_OUTPUT_PREFIX: Final = "out."

_ENCODER: Final = msgspec.msgpack.Encoder()
_HEADERS: Final = msgspec.msgpack.Decoder(Annotated[tuple[TensorHeader, ...], Meta(max_length=2 * TENSORS_MAX)])


class GoldenFormatError(ModelError):
    """A golden shard that does not hold what its layout promises. The publisher's fault."""


class GoldenMismatchError(ModelError):
    """The model's outputs differ from the golden ones. Its publisher's fault, or this machine computes wrongly."""


def encode_golden(inputs: "Mapping[str, Array]", outputs: "Mapping[str, Array]") -> bytes:
    """Lay golden inputs and outputs out as a shard; raises GoldenFormatError for what does not fit one."""
    from models.ndarrays import pack

    named = {_INPUT_PREFIX + name: array for name, array in inputs.items()}
    named |= {_OUTPUT_PREFIX + name: array for name, array in outputs.items()}
    try:
        headers, payload = pack(named)
    except BadInputError as error:
        raise GoldenFormatError(f"golden data cannot be laid out: {error}") from error
    shard = _join(headers, payload)
    if len(shard) > GOLDEN_MAX_BYTES:
        raise GoldenFormatError(f"golden data takes {len(shard)} bytes, at most {GOLDEN_MAX_BYTES} fit")
    return shard


def outputs_shard(headers: Sequence[TensorHeader], payload: Buffer) -> bytes:
    """Lay a result's raw outputs out as a golden shard without inputs."""
    return _join([msgspec.structs.replace(header, name=_OUTPUT_PREFIX + header.name) for header in headers], payload)


def _join(headers: Sequence[TensorHeader], payload: Buffer) -> bytes:
    head = _ENCODER.encode(headers)
    start = -(-(4 + len(head)) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return (len(head).to_bytes(4, "little") + head).ljust(start, b"\0") + payload


def golden_inputs(data: Buffer) -> tuple[tuple[TensorHeader, ...], bytearray]:
    """Return headers and payload of a request with the golden inputs; raises GoldenFormatError as decode_golden."""
    headers, payload = _split(data)
    offsets, _ = layout(headers)
    chosen = [(h, start) for h, start in zip(headers, offsets, strict=True) if h.name.startswith(_INPUT_PREFIX)]
    named = tuple(msgspec.structs.replace(h, name=h.name.removeprefix(_INPUT_PREFIX)) for h, _ in chosen)
    places, total = layout(named)
    request = bytearray(total)
    for (header, start), place in zip(chosen, places, strict=True):
        size = size_bytes(header)
        request[place : place + size] = payload[start : start + size]
    return named, request


def decode_golden(data: Buffer) -> "tuple[dict[str, Array], dict[str, Array]]":
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
    from models.ndarrays import views

    headers, payload = _split(data)
    try:
        named = views(headers, payload)
    except BadInputError as error:
        raise GoldenFormatError(f"golden shard is malformed: {error}; publish it anew") from error
    inputs = {n.removeprefix(_INPUT_PREFIX): a for n, a in named.items() if n.startswith(_INPUT_PREFIX)}
    outputs = {n.removeprefix(_OUTPUT_PREFIX): a for n, a in named.items() if n.startswith(_OUTPUT_PREFIX)}
    return inputs, outputs


def _split(data: Buffer) -> tuple[tuple[TensorHeader, ...], memoryview]:
    """Return a shard's headers and payload, checked but for what only numpy knows; raises GoldenFormatError."""
    view = memoryview(data).cast("B")
    if not 4 <= view.nbytes <= GOLDEN_MAX_BYTES:
        raise GoldenFormatError(f"golden shard has {view.nbytes} bytes, allowed are 4..{GOLDEN_MAX_BYTES}")
    head_bytes = int.from_bytes(view[:4], "little")
    start = -(-(4 + head_bytes) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    if head_bytes > _HEADER_MAX_BYTES or start > view.nbytes:
        raise GoldenFormatError(f"golden shard of {view.nbytes} bytes claims a header of {head_bytes}; publish it anew")
    try:
        headers = _HEADERS.decode(view[4 : 4 + head_bytes])
        _, total = layout(headers)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError, BadInputError) as error:
        raise GoldenFormatError(f"golden shard is malformed: {error}; publish it anew") from error
    if total != view.nbytes - start:
        raise GoldenFormatError(
            f"golden shard is malformed: its tensors add up to {total} bytes, it holds {view.nbytes - start}; publish "
            "it anew"
        )
    strangers = [h.name for h in headers if not h.name.startswith((_INPUT_PREFIX, _OUTPUT_PREFIX))]
    if strangers:
        raise GoldenFormatError(f"golden shard holds {strangers[0]!r}, names start with in. or out.; publish it anew")
    return headers, view[start:]
