"""From the bytes of an inference request to what a worker takes: body and payload. Pure.

Owns what the protocol says of a request. Whether it fits the model is judged where every way in has it judged
(gridnode.submissions); here only what must be known to lay tensors out is checked.
"""

import base64
import binascii
import math
from collections.abc import Sequence
from typing import Final

import msgspec

from gridnode.control import Submit
from gridnode.http.jsondata import encode_numbers, split_elements
from gridnode.http.oip import (
    BYTES,
    DTYPES,
    PICTURE_INPUT,
    PRIORITY_LOWEST,
    InferRequest,
    Input,
    RequestedOutput,
    RequestParameters,
    derived_outputs,
)
from models.bodies import RequestBody, encode_request
from models.manifest import Manifest
from models.tensors import ALIGNMENT_BYTES, PAYLOAD_MAX_BYTES, BadInputError, Buffer, TensorHeader, layout

JSON_MAX_BYTES: Final = 4 * 1024 * 1024
"""Largest JSON of a request: 190,000 numbers with 20 digits each. It is read in one go, in some 30 ms; more than that
comes as binary data."""

_PADDING: Final = bytes(ALIGNMENT_BYTES)
_DECODER: Final = msgspec.json.Decoder(InferRequest)


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """Which outputs a request wants, and how."""

    outputs: tuple[tuple[str, bool], ...]
    """Names, and whether each is to be binary."""
    id: str = ""

    @property
    def has_json(self) -> bool:
        """Whether any is to be written as JSON."""
        return not all(is_binary for _, is_binary in self.outputs)


class Inference(msgspec.Struct, frozen=True, kw_only=True):
    """A request, ready to become a job."""

    body: RequestBody
    parts: tuple[Buffer, ...]
    """The payload in pieces, views of what was received where it came as binary data."""
    payload_bytes: int
    parameters: RequestParameters
    rungs: bool
    wanted: Wanted

    def submit(self, key: bytes, model: str) -> Submit:
        """Return the request as the local socket would have brought it; raises BadInputError where it is too long."""
        given = self.parameters
        return Submit(
            key=key,
            model=model,
            rungs=self.rungs,
            budget_s=given.timeout * 1e-6 if given.timeout else None,
            priority=min(given.priority - 1, PRIORITY_LOWEST) if given.priority else 1,
            stream=given.stream,
            frame=given.frame,
            newest_wins=given.newest_wins,
            body=encode_request(self.body),
        )


def read_request(text: Buffer, binary: memoryview, manifest: Manifest) -> Inference:
    """Read an inference request.

    Parameters
    ----------
    text : bytes-like
        Its JSON.
    binary : memoryview
        The bytes behind it.
    manifest : Manifest
        Of the model asked for.

    Raises
    ------
    BadInputError
        The request makes no sense: the sender's fault.
    """
    try:
        request = _DECODER.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadInputError(f"request is no inference request: {error}") from error
    is_picture = any(given.datatype == BYTES for given in request.inputs)
    body, parts, payload_bytes = (_read_picture if is_picture else _read_tensors)(request.inputs, binary)
    return _conclude(
        manifest,
        body,
        parts,
        payload_bytes,
        parameters=request.parameters,
        requested=request.outputs,
        id=request.id,
    )


def read_raw(data: memoryview, manifest: Manifest) -> Inference:
    """Read a body that is the model's one input and nothing else; raises BadInputError."""
    if len(manifest.inputs) != 1:
        raise BadInputError(f"model {manifest.name!r} has {len(manifest.inputs)} inputs; name them in JSON")
    [spec] = manifest.inputs
    free = [size for size in spec.shape if size == -1]
    known = math.prod(size for size in spec.shape if size != -1)
    one = layout([TensorHeader(name=spec.name, dtype=spec.dtype, shape=(known,))])[1]
    if len(free) > 1:
        raise BadInputError(f"input {spec.name!r} has shape {spec.shape}, more than one size is free; name it in JSON")
    if free and len(data) % one:
        raise BadInputError(f"body has {len(data)} bytes, input {spec.name!r} of {spec.shape} takes multiples of {one}")
    shape = tuple(len(data) // one if size == -1 else size for size in spec.shape)
    header = TensorHeader(name=spec.name, dtype=spec.dtype, shape=shape)
    body = RequestBody(kind="tensors", tensors=(header,))
    return _conclude(
        manifest, body, (data,), len(data), parameters=RequestParameters(binary_data_output=True), requested=(), id=""
    )


def read_picture(data: memoryview, manifest: Manifest) -> Inference:
    """Read a body that is a picture and nothing else."""
    return _conclude(
        manifest,
        RequestBody(kind="image"),
        (data,),
        len(data),
        parameters=RequestParameters(),
        requested=(),
        id="",
    )


# ---------------------------------------------------------------- inputs


def _read_tensors(inputs: Sequence[Input], binary: memoryview) -> tuple[RequestBody, tuple[Buffer, ...], int]:
    """Lay tensors out as a payload, with gaps between them where alignment wants it."""
    headers: list[TensorHeader] = []
    parts: list[Buffer] = []
    end = start = 0
    for given in inputs:
        header, data, start = _read_tensor(given, binary, start)
        headers.append(header)
        if gap := -end % ALIGNMENT_BYTES:
            parts.append(_PADDING[:gap])
        parts.append(data)
        end += gap + len(data)
        if end > PAYLOAD_MAX_BYTES:
            raise BadInputError(f"inputs take {end} bytes, at most {PAYLOAD_MAX_BYTES} are accepted; send smaller ones")
    _check_end(binary, start)
    return RequestBody(kind="tensors", tensors=tuple(headers)), tuple(parts), end


def _read_tensor(given: Input, binary: memoryview, start: int) -> tuple[TensorHeader, Buffer, int]:
    """Return a tensor's header, its bytes, and where the binary data of the next begins."""
    dtype = DTYPES.get(given.datatype)
    if dtype is None:
        known = ", ".join((*DTYPES, BYTES))
        raise BadInputError(f"input {given.name!r} has datatype {given.datatype!r}, supported are {known}")
    header = TensorHeader(name=given.name, dtype=dtype, shape=given.shape)
    size = layout([header])[1]
    _check_place(given)
    if given.parameters.binary_data_size is None:
        # The shape is the sender's word: nothing is allocated by it, the numbers are counted.
        count = math.prod(given.shape)
        return header, encode_numbers(given.data, datatype=given.datatype, count=count, name=given.name), start
    if given.parameters.binary_data_size != size:
        raise BadInputError(
            f"input {given.name!r} has binary_data_size {given.parameters.binary_data_size}, {given.datatype} of "
            f"shape {given.shape} takes {size}; send both alike"
        )
    return header, _take(given, binary, start, size), start + size


def _read_picture(inputs: Sequence[Input], binary: memoryview) -> tuple[RequestBody, tuple[Buffer, ...], int]:
    """Take the one encoded picture out of a tensor of datatype BYTES."""
    given = inputs[0]
    if len(inputs) != 1 or given.name != PICTURE_INPUT or math.prod(given.shape) != 1:
        raise BadInputError(
            f"a picture is one input {PICTURE_INPUT!r} of datatype BYTES and shape [1]; seen: "
            + ", ".join(f"{one.name!r} {one.datatype} {list(one.shape)}" for one in inputs)
        )
    _check_place(given)
    if given.parameters.binary_data_size is None:
        picture: Buffer = _from_base64(given.data)
        _check_end(binary, 0)
    else:
        size = given.parameters.binary_data_size
        try:
            [picture] = split_elements(_take(given, binary, 0, size))
        except ValueError as error:
            raise BadInputError(f"input {given.name!r} is not one element behind its length: {error}") from error
        _check_end(binary, size)
    return RequestBody(kind="image"), (picture,), len(picture)


def _from_base64(data: msgspec.Raw) -> bytes:
    try:
        [text] = msgspec.json.decode(data, type=tuple[str])
        return base64.b64decode(text, validate=True)
    except (msgspec.MsgspecError, UnicodeDecodeError, binascii.Error, ValueError) as error:
        raise BadInputError(f"picture in JSON must be one text in base64: {error}; or send binary data") from error


def _check_place(given: Input) -> None:
    """Check that an input's data is in one place, and one that exists here."""
    if given.parameters.shared_memory_region is not None:
        raise BadInputError(f"input {given.name!r} is in shared memory, which this server does not take; send it")
    if bool(memoryview(given.data).nbytes) == (given.parameters.binary_data_size is not None):
        raise BadInputError(f"input {given.name!r} needs either data or binary_data_size")


def _take(given: Input, binary: memoryview, start: int, size: int) -> memoryview:
    if start + size > len(binary):
        raise BadInputError(
            f"input {given.name!r} needs {size} bytes of binary data, {max(0, len(binary) - start)} are left; is the "
            "header inference-header-content-length right?"
        )
    return binary[start : start + size]


def _check_end(binary: memoryview, end: int) -> None:
    if end != len(binary):
        raise BadInputError(f"request has {len(binary)} bytes of binary data, its inputs name {end}; send both alike")


# ---------------------------------------------------------------- outputs


def _conclude(
    manifest: Manifest,
    body: RequestBody,
    parts: tuple[Buffer, ...],
    payload_bytes: int,
    *,
    parameters: RequestParameters,
    requested: Sequence[RequestedOutput],
    id: str,
) -> Inference:
    """Settle which outputs are wanted, and with them what the worker must give."""
    derived = derived_outputs(manifest)
    own = {spec.name for spec in manifest.outputs}
    for output in requested:
        _check_output(output, manifest, own | derived.keys())
    if len({output.name for output in requested}) < len(requested):
        raise BadInputError("an output is wanted twice; name each once")
    if requested:
        is_raw = any(output.name in own for output in requested)
        outputs = [(output.name, _is_binary(output, parameters)) for output in requested]
    else:
        # Tensors in, tensors out; a picture in, what was seen on it out.
        is_raw = body.kind == "tensors" or not derived
        names = [spec.name for spec in manifest.outputs] if is_raw else list(derived)
        outputs = [(name, parameters.binary_data_output) for name in names]
    return Inference(
        body=msgspec.structs.replace(body, raw_outputs=is_raw, score_threshold=parameters.score_threshold),
        parts=parts,
        payload_bytes=payload_bytes,
        parameters=parameters,
        rungs=not is_raw if parameters.rungs is None else parameters.rungs,
        wanted=Wanted(outputs=tuple(outputs), id=id),
    )


def _is_binary(output: RequestedOutput, parameters: RequestParameters) -> bool:
    own = output.parameters.binary_data
    return parameters.binary_data_output if own is None else own


def _check_output(output: RequestedOutput, manifest: Manifest, known: set[str]) -> None:
    if output.name not in known:
        raise BadInputError(
            f"model {manifest.name!r} has no output {output.name!r}; it gives {', '.join(sorted(known))}"
        )
    if output.parameters.classification:
        raise BadInputError(f"output {output.name!r}: classification is not done here; ask for the class outputs")
    if output.parameters.shared_memory_region is not None:
        raise BadInputError(f"output {output.name!r}: results are not written to shared memory here; have them sent")
