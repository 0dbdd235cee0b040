"""What programs get back by HTTP: results as the protocol writes them, and errors with the right status."""

import json
import struct

import numpy as np
import pytest

from gridnode.http.heads import HttpError
from gridnode.http.oip import ResponseParameters
from gridnode.http.requests import Wanted
from gridnode.http.responses import (
    JSON_TENSORS_MAX_BYTES,
    encode_response,
    error_of,
    error_reply,
    result_reply,
)
from models.bodies import ClassRecord, DetectionRecord, ResultBody
from models.tensors import BadInputError, InferenceError, TensorHeader
from scheduler.types import Reason

PARAMETERS = ResponseParameters(node="n1", node_id="12D3", hops=1, waiting_s=0.25, service_s=0.5, total_s=1.0)
Y = np.arange(4, dtype="<f4").reshape(1, 4)
Z = np.array([7], dtype="<i8")
RAW = ResultBody(
    tensors=(TensorHeader(name="y", dtype="float32", shape=(1, 4)), TensorHeader(name="z", dtype="int64", shape=(1,)))
)
PAYLOAD = bytearray(Y.tobytes() + bytes(48) + Z.tobytes())
SEEN = ResultBody(
    detections=(
        DetectionRecord(class_index=2, class_name="car", score=0.5, box=(1.0, 2.0, 3.0, 4.0)),
        DetectionRecord(class_index=0, class_name="Fußgänger", score=0.25, box=(0.0, 0.0, 1.0, 1.0)),
    ),
    image_width=640,
    image_height=480,
)
KINDS = ResultBody(classes=(ClassRecord(class_index=1, class_name="b", score=0.75),))


def write(body, *outputs, payload=b"", id=""):
    text, parts = encode_response(
        body,
        payload,
        Wanted(outputs=outputs, id=id),
        model_name="m",
        model_version="d" * 64,
        parameters=PARAMETERS,
    )
    return json.loads(text), parts


def test_a_response_says_who_answered_and_where_the_time_went():
    told, parts = write(RAW, ("z", False), payload=PAYLOAD, id="42")
    assert parts == []
    assert told == {
        "id": "42",
        "model_name": "m",
        "model_version": "d" * 64,
        "parameters": {
            "node": "n1", "node_id": "12D3", "hops": 1, "waiting_s": 0.25, "service_s": 0.5, "total_s": 1.0,
        },
        "outputs": [{"name": "z", "datatype": "INT64", "shape": [1], "data": [7]}],
    }  # fmt: skip


def test_a_job_that_stayed_says_so():
    text, _ = encode_response(
        RAW, PAYLOAD, Wanted(outputs=()), model_name="m", model_version="d",
        parameters=ResponseParameters(node="n", node_id="i", hops=0, waiting_s=0.0, service_s=0.0, total_s=0.0),
    )  # fmt: skip
    assert json.loads(text)["parameters"] == {
        "node": "n", "node_id": "i", "hops": 0, "waiting_s": 0.0, "service_s": 0.0, "total_s": 0.0,
    }  # fmt: skip


def test_binary_outputs_follow_in_the_order_of_the_wish_without_gaps():
    told, parts = write(RAW, ("z", True), ("y", True), payload=PAYLOAD)
    assert [one["parameters"]["binary_data_size"] for one in told["outputs"]] == [8, 16]
    assert b"".join(parts) == Z.tobytes() + Y.tobytes()
    PAYLOAD[0:4] = np.float32(9).tobytes()
    assert np.frombuffer(parts[1], "<f4")[0] == 9, "copied"
    PAYLOAD[0:4] = Y.tobytes()[:4]


def test_detections_are_tensors():
    wanted = [(name, False) for name in ("detection_boxes", "detection_scores", "detection_classes", "detection_names")]
    told, _ = write(SEEN, *wanted)
    boxes, scores, classes, names = told["outputs"]
    assert (boxes["shape"], boxes["data"]) == ([2, 4], [1, 2, 3, 4, 0, 0, 1, 1])
    assert (scores["shape"], scores["data"]) == ([2], [0.5, 0.25])
    assert (classes["datatype"], classes["data"]) == ("INT32", [2, 0])
    assert (names["datatype"], names["data"]) == ("BYTES", ["car", "Fußgänger"])
    assert (told["parameters"]["node"], PARAMETERS.image_width) == ("n1", 0)


def test_detections_in_binary():
    _, (boxes, classes, names) = write(
        SEEN, ("detection_boxes", True), ("detection_classes", True), ("detection_names", True)
    )
    assert struct.unpack("<8f", boxes) == (1, 2, 3, 4, 0, 0, 1, 1)
    assert struct.unpack("<2i", classes) == (2, 0)
    umlauts = "Fußgänger".encode()
    assert names == b"\3\0\0\0car" + len(umlauts).to_bytes(4, "little") + umlauts


def test_nothing_seen_is_an_empty_tensor():
    told, parts = write(ResultBody(), ("detection_boxes", True), ("class_scores", False))
    boxes, scores = told["outputs"]
    assert (boxes["shape"], boxes["parameters"]) == ([0, 4], {"binary_data_size": 0})
    assert (scores["shape"], scores["data"]) == ([0], [])
    assert parts == []


def test_the_best_classes_are_tensors():
    told, _ = write(KINDS, ("class_scores", False), ("class_ids", False), ("class_names", False))
    assert [one["data"] for one in told["outputs"]] == [[0.75], [1], ["b"]]


def test_a_models_own_output_goes_before_ours_of_that_name():
    body = ResultBody(tensors=(TensorHeader(name="class_scores", dtype="uint8", shape=(1,)),), classes=KINDS.classes)
    told, _ = write(body, ("class_scores", False), payload=b"\7")
    assert told["outputs"][0]["data"] == [7]


def test_an_emulated_answer_has_no_outputs():
    assert write(ResultBody(emulated=True), ("y", True))[0]["outputs"] == []


@pytest.mark.parametrize(
    ("body", "outputs", "payload", "error"),
    [
        (RAW, [("w", True)], PAYLOAD, InferenceError),
        (RAW, [("y", True)], PAYLOAD[:-1], InferenceError),
        (
            ResultBody(tensors=(TensorHeader(name="y", dtype="object", shape=(1,)),)),
            [("y", True)],
            b"1",
            InferenceError,
        ),
        (
            ResultBody(tensors=(TensorHeader(name="y", dtype="uint8", shape=(JSON_TENSORS_MAX_BYTES + 1,)),)),
            [("y", False)],
            bytes(JSON_TENSORS_MAX_BYTES + 1),
            BadInputError,
        ),
    ],
)
def test_answers_that_cannot_be_written(body, outputs, payload, error):
    with pytest.raises(InferenceError) as caught:
        write(body, *outputs, payload=payload)
    assert type(caught.value) is error


def test_a_result_with_binary_data_names_the_length_of_its_json():
    reply = result_reply(b"{}", [b"1234"])
    head = reply.head(keeps_alive=True)
    assert b"Content-Length: 6\r\n" in head
    assert b"Inference-Header-Content-Length: 2\r\n" in head
    assert b"Content-Type: application/octet-stream\r\n" in head
    assert b"Inference-Header" not in result_reply(b"{}", []).head(keeps_alive=True)


@pytest.mark.parametrize(
    ("reason", "estimate_s", "status", "retry_after_s"),
    [
        ("bad_input", None, 400, None),
        (Reason.UNKNOWN_MODEL, None, 503, 1),
        (Reason.QUEUE_FULL, 2.3, 429, 3),
        (Reason.QUEUE_FULL, 1e9, 429, 30),
        (Reason.NO_ROOM, None, 503, 1),
        (Reason.DRAINING, None, 503, 1),
        (Reason.DEADLINE, 2.0, 504, None),
        (Reason.EXPIRED, None, 504, None),
        (Reason.SUPERSEDED, None, 409, None),
        (Reason.MODEL_FAILED, None, 500, None),
        (Reason.POISON, None, 500, None),
        (Reason.LOST, None, 500, None),
    ],
)
def test_each_end_without_a_result_has_its_status(reason, estimate_s, status, retry_after_s):
    error = error_of(str(reason), "text", estimate_s)
    assert (error.status, error.retry_after_s, error.reason) == (status, retry_after_s, str(reason))
    reply = error_reply(error)
    assert json.loads(b"".join(reply.parts)) == {"error": "text"}
    assert (b"Retry-After: " in reply.head(keeps_alive=True)) == (retry_after_s is not None)
    assert b"Gridnode-Reason: " + str(reason).encode() + b"\r\n" in reply.head(keeps_alive=True)


def test_a_peers_words_do_not_get_into_a_head():
    head = error_reply(error_of("x\r\nSet-Cookie: a", "text")).head(keeps_alive=True)
    assert b"Set-Cookie" not in head
    assert head.startswith(b"HTTP/1.1 500 ")


def test_a_wrong_method_is_told_the_right_one():
    assert b"Allow: POST\r\n" in error_reply(HttpError(405, "", allowed="POST")).head(keeps_alive=True)
