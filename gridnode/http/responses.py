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
from models.tensors import Buffer, InferenceError, layout, size_bytes
from scheduler.types import Reason

JSON_TENSOR_MAX_BYTES: Final = 1024 * 1024
"""Largest tensor written as JSON numbers: 260,000 floats, 5 MB of text in some 30 ms. Larger ones are sent as binary
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


def error_of(reason: str, message: str, estimate_s: float | None = None, *, status: int | None = None) -> HttpError:
    """Return the answer to a job that ended without a result.

    Parameters
    ----------
    reason : str
        A scheduler Reason, or bad_input.
    estimate_s : float, optional
        Best completion time known at a refusal, in seconds.
    status : int, optional
        Replaces the one that belongs to the reason.
    """
    status = status or _STATUS.get(reason, 500)
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
    InferenceError
        The answer lacks a wanted output, breaks its own layout, or holds what JSON cannot hold.
    """
    views = _views(body, payload)
    outputs: list[Output] = []
    parts: list[Buffer] = []
    for name, is_binary in () if body.emulated else wanted.outputs:
        data: Buffer
        if name in views:
            datatype, shape, data = views[name]
            values = () if is_binary else _as_numbers(name, datatype, views[name][2])
        elif (found := _derive(name, body)) is not None:
            datatype, shape, values = found
            data = pack_values(values, datatype=datatype) if is_binary else b""
        else:
            raise InferenceError(f"the model that answered, {model_name}, has no output {name!r}; ask without rungs")
        if is_binary:
            parts.append(data)
            place = BinarySize(binary_data_size=len(data))
            outputs.append(Output(name=name, datatype=datatype, shape=shape, parameters=place))
        else:
            outputs.append(Output(name=name, datatype=datatype, shape=shape, data=values))
    response = InferResponse(
        model_name=model_name,
        model_version=model_version,
        id=wanted.id,
        parameters=parameters,
        outputs=tuple(outputs),
    )
    return _ENCODER.encode(response), parts


def _views(body: ResultBody, payload: Buffer) -> dict[str, tuple[str, tuple[int, ...], memoryview]]:
    """Return datatype, shape and bytes of the raw outputs by name."""
    offsets, total = layout(body.tensors)
    if total != len(payload):
        raise InferenceError(f"outputs add up to {total} bytes, the answer's payload has {len(payload)}")
    view = memoryview(payload).cast("B")
    return {
        header.name: (DATATYPES[header.dtype], header.shape, view[start : start + size_bytes(header)])
        for header, start in zip(body.tensors, offsets, strict=True)
    }


def _as_numbers(name: str, datatype: str, data: memoryview) -> Sequence[object]:
    if len(data) > JSON_TENSOR_MAX_BYTES:
        raise InferenceError(
            f"output {name!r} has {len(data)} bytes, at most {JSON_TENSOR_MAX_BYTES} are written as JSON; ask for "
            "binary_data"
        )
    return unpack_numbers(data, datatype=datatype)


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
