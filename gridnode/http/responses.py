"""From a worker's answer to the bytes of an inference response, and from a bad end to its status. Pure."""

import math
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from gridnode.http.heads import HttpError, response_head
from gridnode.http.jsondata import pack_values, unpack_numbers
from gridnode.http.oip import (
    CLASS_OUTPUTS,
    DATATYPES,
    DETECTION_OUTPUTS,
    BinarySize,
    InferResponse,
    Output,
    ResponseParameters,
)
from gridnode.http.requests import Wanted
from models.bodies import ClassRecord, DetectionRecord, ResultBody
from models.tensors import BadInputError, Buffer, InferenceError, layout, size_bytes
from scheduler.types import Reason

JSON_TENSORS_MAX_BYTES: Final = 1024 * 1024
"""Most bytes of tensors written as JSON numbers: 260,000 floats, 5 MB of text in some 30 ms. More are sent as binary
data, or not at all."""

RETRY_MAX_S: Final = 30
"""Longest time told in Retry-After; queues are bounded in seconds."""

_ENCODER: Final = msgspec.json.Encoder()
_STATUS: Final[dict[str, int]] = {
    "bad_input": 400,
    Reason.UNKNOWN_MODEL: 503,
    Reason.QUEUE_FULL: 429,
    Reason.NO_ROOM: 503,
    Reason.DRAINING: 503,
    Reason.HOP_LIMIT: 503,
    Reason.ALREADY_VISITED: 503,
    Reason.SUPERSEDED: 409,
    Reason.CANCELLED: 409,
    Reason.DEADLINE: 504,
    Reason.EXPIRED: 504,
}
_NAMED: Final = frozenset({"bad_input", *(reason.value for reason in Reason)})


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, but for what the connection adds."""

    status: int = 200
    content_type: bytes = b"application/json"
    headers: bytes = b""
    """Further lines, each with its line end."""
    parts: tuple[Buffer, ...]
    """The body."""

    def head(self, *, keeps_alive: bool) -> bytes:
        """Return the head that goes before the parts."""
        return response_head(
            self.status,
            content_type=self.content_type,
            body_bytes=sum(map(len, self.parts)),
            headers=self.headers,
            keeps_alive=keeps_alive,
        )


def document_reply(document: object) -> Reply:
    """Return an answer that is a JSON document."""
    return Reply(parts=(_ENCODER.encode(document),))


def result_reply(text: bytes, parts: Sequence[Buffer]) -> Reply:
    """Return the answer to an inference: its JSON, and binary data where there are any."""
    if not parts:
        return Reply(parts=(text,))
    length = b"Inference-Header-Content-Length: %d\r\n" % len(text)
    return Reply(content_type=b"application/octet-stream", headers=length, parts=(text, *parts))


def error_reply(error: HttpError) -> Reply:
    """Return the answer that tells of an error, in the protocol's form."""
    headers = b""
    if error.retry_after_s is not None:
        headers += b"Retry-After: %d\r\n" % error.retry_after_s
    if error.reason:
        headers += b"Gridnode-Reason: %b\r\n" % error.reason.encode("ascii")
    if error.allowed:
        headers += b"Allow: %b\r\n" % error.allowed.encode("ascii")
    return Reply(status=error.status, headers=headers, parts=(_ENCODER.encode({"error": str(error)}),))


def error_of(reason: str, message: str, estimate_s: float | None = None) -> HttpError:
    """Return the answer to a job that ended without a result.

    Parameters
    ----------
    reason : str
        A scheduler Reason, or bad_input.
    estimate_s : float, optional
        Best completion time known at a refusal, in seconds.
    """
    status = _STATUS.get(reason, 500)
    if reason not in _NAMED:  # a peer's words, not fit for a header
        reason = ""
    retry_after_s = None
    if status in (429, 503):
        retry_after_s = min(RETRY_MAX_S, max(1, math.ceil(estimate_s or 1.0)))
    return HttpError(status, message, retry_after_s=retry_after_s, reason=reason)


def encode_response(
    body: ResultBody,
    payload: Buffer,
    wanted: Wanted,
    *,
    model_name: str,
    model_version: str,
    parameters: ResponseParameters,
) -> tuple[bytes, list[Buffer]]:
    """Write an inference response.

    Parameters
    ----------
    body : ResultBody
        As decoded.
    payload : bytes-like
        Raw outputs, as the body's headers say.

    Returns
    -------
    text : bytes
        The JSON.
    parts : list of bytes-like
        Binary data that follow it, views of the payload; empty where all is JSON.

    Raises
    ------
    BadInputError
        More is wanted as JSON than is written so. The program's fault.
    InferenceError
        The answer lacks a wanted output or breaks its own layout. The executing node's fault.
    """
    views = _views(body, payload)
    as_numbers = sum(len(views[name][2]) for name, is_binary in wanted.outputs if name in views and not is_binary)
    if as_numbers > JSON_TENSORS_MAX_BYTES:
        raise BadInputError(
            f"outputs of {as_numbers} bytes are wanted as JSON, at most {JSON_TENSORS_MAX_BYTES} are written so; ask "
            "for binary_data"
        )
    outputs: list[Output] = []
    parts: list[Buffer] = []
    for name, is_binary in () if body.emulated else wanted.outputs:
        output, data = _write(name, views, body, is_binary=is_binary)
        outputs.append(output)
        parts.append(data)
    response = InferResponse(
        model_name=model_name,
        model_version=model_version,
        id=wanted.id,
        parameters=parameters,
        outputs=tuple(outputs),
    )
    return _ENCODER.encode(response), [part for part in parts if len(part)]


View = tuple[str, tuple[int, ...], memoryview]
"""Datatype, shape and bytes of a raw output."""


def _views(body: ResultBody, payload: Buffer) -> dict[str, View]:
    """Find the raw outputs by name."""
    view = memoryview(payload).cast("B")
    try:
        offsets, total = layout(body.tensors)
        if total != len(view):
            raise InferenceError(f"outputs add up to {total} bytes, the answer's payload has {len(view)}")
        return {
            header.name: (DATATYPES[header.dtype], header.shape, view[start : start + size_bytes(header)])
            for header, start in zip(body.tensors, offsets, strict=True)
        }
    except BadInputError as error:
        raise InferenceError(f"an output cannot be read: {error}") from error


def _write(name: str, views: dict[str, View], body: ResultBody, *, is_binary: bool) -> tuple[Output, Buffer]:
    """Write one output; returns its bytes too, none where it is JSON."""
    if name in views:
        datatype, shape, view = views[name]
        if not is_binary:
            return Output(name=name, datatype=datatype, shape=shape, data=unpack_numbers(view, datatype=datatype)), b""
        return _binary(name, datatype, shape, view), view
    found = _derive(name, body)
    if found is None:
        raise InferenceError(f"the model that answered has no output {name!r}; ask without smaller variants")
    datatype, shape, values = found
    if not is_binary:
        return Output(name=name, datatype=datatype, shape=shape, data=values), b""
    data = pack_values(values, datatype=datatype)
    return _binary(name, datatype, shape, data), data


def _binary(name: str, datatype: str, shape: tuple[int, ...], data: Buffer) -> Output:
    return Output(name=name, datatype=datatype, shape=shape, parameters=BinarySize(binary_data_size=len(data)))


def _derive(name: str, body: ResultBody) -> tuple[str, tuple[int, ...], Sequence[object]] | None:
    """Return datatype, shape and values of an output that post-processing made; None for an unknown name."""
    if name in DETECTION_OUTPUTS:
        datatype, (_, *rest) = DETECTION_OUTPUTS[name]
        return datatype, (len(body.detections), *rest), _DETECTION_VALUES[name](body.detections)
    if name in CLASS_OUTPUTS:
        return CLASS_OUTPUTS[name][0], (len(body.classes),), _CLASS_VALUES[name](body.classes)
    return None


_DETECTION_VALUES: Final[dict[str, Callable[[Sequence[DetectionRecord]], list[object]]]] = {
    "detection_boxes": lambda records: [side for record in records for side in record.box],
    "detection_scores": lambda records: [record.score for record in records],
    "detection_classes": lambda records: [record.class_index for record in records],
    "detection_names": lambda records: [record.class_name for record in records],
}
_CLASS_VALUES: Final[dict[str, Callable[[Sequence[ClassRecord]], list[object]]]] = {
    "class_scores": lambda records: [record.score for record in records],
    "class_ids": lambda records: [record.class_index for record in records],
    "class_names": lambda records: [record.class_name for record in records],
}
