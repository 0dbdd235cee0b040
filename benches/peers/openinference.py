"""The Open Inference Protocol v2 with its binary tensor extension, as a client of it writes and reads it.

A JSON head, whose length a header tells, and after it the tensors' bytes in order; a text or picture is a tensor of
datatype BYTES, whose every element stands behind its length in four bytes.
"""

import json
import struct

import numpy as np

from benches.peers.workloads import Requests, detections_array

LENGTH_HEADER = "Inference-Header-Content-Length"
DATATYPES = {"uint8": "UINT8", "float32": "FP32"}
DTYPES = {"UINT8": "uint8", "FP32": "<f4", "INT32": "<i4"}


def binary_request(requests: Requests, number: int) -> tuple[bytes, dict[str, str]]:
    """Return body and headers of a request."""
    workload, raw = requests.workload, requests.raw[number]
    if workload.kind == "detector":
        raw = struct.pack("<I", len(raw)) + raw
        described = {"name": "image", "shape": [1], "datatype": "BYTES"}
    else:
        described = {"name": "x", "shape": list(workload.shape), "datatype": DATATYPES[workload.dtype]}
    described["parameters"] = {"binary_data_size": len(raw)}
    head = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    return head + raw, {"Content-Type": "application/octet-stream", LENGTH_HEADER: str(len(head))}


def _outputs(body: bytes, head_bytes: int) -> dict[str, np.ndarray]:
    """Lay arrays over the outputs of an answer; those of texts are passed over."""
    found, start = {}, head_bytes
    for output in json.loads(body[:head_bytes])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        if output["datatype"] in DTYPES:
            part = memoryview(body)[start : start + size]
            found[output["name"]] = np.frombuffer(part, DTYPES[output["datatype"]]).reshape(output["shape"])
        start += size
    return found


def binary_tensor(body: bytes, head_bytes: int) -> np.ndarray:
    """Read the answer of a model with one output."""
    return _outputs(body, head_bytes)["y"]


def binary_detections(body: bytes, head_bytes: int) -> np.ndarray:
    """Read the answer of the detector."""
    found = _outputs(body, head_bytes)
    classes, scores = (found[name].reshape(-1, 1) for name in ("detection_classes", "detection_scores"))
    return detections_array(np.hstack([classes, scores, found["detection_boxes"].reshape(-1, 4)]))
