"""What follows from a request's body and its payload's length alone, kept for the next request like it. Pure.

Owns the reading and the checking of bodies, and the layout of raw outputs. A camera sends thousands of frames with one
and the same body; all that is not in the pixels is judged once. A plan serves only a body that is equal to the last
byte, so nothing passes that would not have passed the checks itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from models import ndarrays, tensors
from models.bodies import RequestBody, ResultBody, decode_request, encode_result
from models.detection import Geometry, fit
from models.manifest import ImagePreprocessing, Manifest
from models.ndarrays import Array
from models.requestcheck import check_request
from models.tensors import InferenceError, TensorHeader

PLANS_MAX: Final = 32
"""Plans of one generation; there are two. A model is asked in few ways at a time."""

BODY_KEPT_MAX_BYTES: Final = 4096
"""Longest body with a plan that is kept, so that strangers cannot fill the worker: two generations take less than a
megabyte."""

SIZES_MAX_BYTES: Final = 4096
"""Largest tensor that might hold sizes rather than what is computed with."""

_NUMBERS: Final = frozenset({"float32", "float16", "uint8", "int8"})


class Plan:
    """How one kind of request is answered."""

    __slots__ = ("_laid", "_pieces", "_steady", "geometry", "has_tensors", "is_raw", "payload_bytes", "request")

    def __init__(self, manifest: Manifest, request: RequestBody, payload_bytes: int) -> None:
        self.request = request
        self.payload_bytes = payload_bytes
        self.is_raw = request.raw_outputs or manifest.postprocessing is None
        self._pieces: tuple[ndarrays.Piece, ...] = ()
        self.geometry: Geometry | None = None
        """How the frame lies in the input, where the payload is tensors and there is a frame."""
        self._laid: tuple[list[tuple[Any, tuple[int, ...]]], RawLayout] | None = None
        self.has_tensors = request.kind == "tensors"
        """Whether the payload is the model's inputs, not a picture."""
        if self.has_tensors:
            self._pieces = ndarrays.pieces(request.tensors, payload_bytes)
            self.geometry = _frame(request, manifest.preprocessing)
        self._steady = tuple(_is_steady(header) for header in request.tensors)

    def feeds(self, payload: memoryview, *, is_shared: bool) -> dict[str, Array]:
        """Return the model's inputs, as views of the payload where that is safe.

        Parameters
        ----------
        payload : memoryview
            As long as the plan says.
        is_shared : bool
            Whether its program may change it at any time.
        """
        if not is_shared:
            return {piece.name: piece.view(payload) for piece in self._pieces}
        return {
            piece.name: piece.view(payload) if is_steady else piece.view(payload).copy()
            for piece, is_steady in zip(self._pieces, self._steady, strict=True)
        }

    def lay_out(self, outputs: Mapping[str, Array]) -> "RawLayout":
        """Return where raw outputs go, computed anew only where they differ in type or shape from the last ones."""
        kinds = [(value.dtype, value.shape) for value in outputs.values() if isinstance(value, np.ndarray)]
        if self._laid is None or self._laid[0] != kinds or len(kinds) != len(outputs):
            self._laid = (kinds, RawLayout(outputs, self.geometry))
        return self._laid[1]


class RawLayout:
    """Where a model's outputs lie in an answer's payload.

    Raises
    ------
    InferenceError
        An output is no tensor, or of a type that cannot be sent.
    """

    __slots__ = ("body", "headers", "pieces", "size_bytes")

    def __init__(self, outputs: Mapping[str, Array], geometry: Geometry | None) -> None:
        strange = [name for name, value in outputs.items() if not isinstance(value, np.ndarray)]
        if strange:
            raise InferenceError(f"output {strange[0]!r} is no tensor; export the model with tensor outputs only")
        try:
            self.headers: tuple[TensorHeader, ...] = ndarrays.describe(outputs)
            _, self.size_bytes = tensors.layout(self.headers)
            self.pieces = ndarrays.pieces(self.headers, self.size_bytes)
        except tensors.BadInputError as error:
            raise InferenceError(f"outputs cannot be sent: {error}") from error
        width, height = frame_size(geometry)
        self.body = encode_result(ResultBody(tensors=self.headers, image_width=width, image_height=height))
        """The whole result of a model without post-processing."""

    def write(self, outputs: Mapping[str, Array], target: memoryview) -> None:
        """Write outputs of these types and shapes to the start of a buffer; raises InferenceError for lack of room."""
        if self.size_bytes > target.nbytes:
            raise InferenceError(
                f"outputs cannot be sent: tensors take {self.size_bytes} bytes, there is room for {target.nbytes}; "
                "send fewer or smaller ones"
            )
        for piece, value in zip(self.pieces, outputs.values(), strict=True):
            np.ndarray(piece.shape, piece.dtype, target, piece.start)[...] = value


class Plans:
    """Plans of one model's requests, in two generations: whatever was not asked for during one is forgotten.

    Any thread may ask; what two do at once is done twice, at worst.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._young: dict[bytes, Plan] = {}
        self._old: dict[bytes, Plan] = {}

    def find(self, body: bytes, payload_bytes: int) -> Plan:
        """Return the plan of a request; raises BadInputError where it does not fit the model, the sender's fault."""
        plan = self._young.get(body)
        if plan is None:
            plan = self._old.get(body) or self._make(body, payload_bytes)
            self._keep(body, plan)
        if plan.payload_bytes != payload_bytes:
            # Pictures of one kind differ in length; for all else this refuses.
            check_request(self._manifest, plan.request, payload_bytes)
        return plan

    def _make(self, body: bytes, payload_bytes: int) -> Plan:
        request = decode_request(body)
        check_request(self._manifest, request, payload_bytes)
        return Plan(self._manifest, request, payload_bytes)

    def _keep(self, body: bytes, plan: Plan) -> None:
        if len(body) > BODY_KEPT_MAX_BYTES:
            return
        if len(self._young) >= PLANS_MAX:
            self._old, self._young = self._young, {}
        self._young[body] = plan


def frame_size(geometry: Geometry | None) -> tuple[int, int]:
    """Return width and height of the frame that boxes refer to, in pixels; zeros where there is none."""
    return (geometry.frame_width, geometry.frame_height) if geometry is not None else (0, 0)


def with_raw(result: ResultBody, layout: RawLayout) -> ResultBody:
    """Add raw outputs to a result."""
    return msgspec.structs.replace(result, tensors=layout.headers)


def _is_steady(header: TensorHeader) -> bool:
    """Tell whether an input may change while a model reads it: kernels check sizes and indices, then read them again.

    Indices are of 32 or 64 bits; sizes and factors of sizes may be fractions, but come in small tensors.
    """
    return header.dtype in _NUMBERS and tensors.size_bytes(header) > SIZES_MAX_BYTES


def _frame(request: RequestBody, preprocessing: ImagePreprocessing | None) -> Geometry | None:
    """Return how a frame lies in inputs that are given as tensors."""
    if preprocessing is None:
        return _whole_input(request.tensors)
    return fit(request.width or preprocessing.width, request.height or preprocessing.height, preprocessing)


def _whole_input(headers: Sequence[TensorHeader]) -> Geometry | None:
    """Take the one picture-shaped input as the frame, where a manifest does not tell of any."""
    for header in headers:
        shape = header.shape
        if len(shape) == 4 and 3 in (shape[1], shape[3]):
            height, width = shape[2:4] if shape[1] == 3 else shape[1:3]
            return Geometry(frame_width=width, frame_height=height, content_width=width, content_height=height)
    return None
