"""From a model's raw output to named boxes and classes.

Owns the decoding of the common YOLO export layout and of class scores, non-maximum suppression, and the geometry
that ties the model's input to the frame it came from. Knows nothing of pictures, files or the runtime: numbers in,
records out. Everything is bounded, because an output is only as good as the model that a stranger may have sent:
candidates by CANDIDATES_MAX, results by the manifest's max_detections.

Coordinates: x to the right, y down, in pixels; a pixel covers [i, i + 1), so a box over a whole frame is
(0, 0, width, height).
"""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.manifest import ClassificationPostprocessing, DetectionPostprocessing, ImagePreprocessing, ModelError

CANDIDATES_MAX = 1024
"""Best-scored candidates that enter suppression. A model that fires everywhere costs milliseconds, not seconds."""


class OutputError(ModelError):
    """A model's output that does not have the shape or type its manifest promises."""


class Geometry(msgspec.Struct, frozen=True, kw_only=True):
    """Where a frame lies in the model's input: ``x_input = x_frame * scale_x + pad_x``, likewise for y."""

    frame_width: int
    """Width of the upright frame, in pixels."""
    frame_height: int
    """Height of the upright frame, in pixels."""
    content_width: int
    """Width of the frame after the resize, in pixels of the input."""
    content_height: int
    """Height of the frame after the resize, in pixels of the input."""
    pad_x: int = 0
    """Columns of border left of the frame, in pixels of the input."""
    pad_y: int = 0
    """Rows of border above the frame, in pixels of the input."""

    @property
    def scale_x(self) -> float:
        """Input pixels per frame pixel along x."""
        return self.content_width / self.frame_width

    @property
    def scale_y(self) -> float:
        """Input pixels per frame pixel along y."""
        return self.content_height / self.frame_height


class Detection(msgspec.Struct, frozen=True):
    """One object found in a frame."""

    class_name: str
    score: float
    """As the model gave it, usually 0..1."""
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels of the frame, inside it, x0 < x1 and y0 < y1."""


class Classification(msgspec.Struct, frozen=True):
    """One class a model sees in a frame."""

    class_name: str
    score: float
    """Probability 0..1 where the manifest asks for softmax, else the raw output."""


def fit(frame_width: int, frame_height: int, preprocessing: ImagePreprocessing) -> Geometry:
    """Lay a frame into the model's input.

    Parameters
    ----------
    frame_width, frame_height : int
        Size of the upright frame, in pixels, >= 1.
    preprocessing : ImagePreprocessing
        Names the input's size and whether the frame keeps its proportions (letterbox) or fills it (stretch).

    Returns
    -------
    Geometry
        With whole pixels of content and border; the border's odd pixel goes right or below.

    Examples
    --------
    >>> geometry = fit(640, 360, ImagePreprocessing(input="images", width=320, height=320))
    >>> geometry.content_width, geometry.content_height, geometry.pad_x, geometry.pad_y
    (320, 180, 0, 70)
    """
    width, height = preprocessing.width, preprocessing.height
    if preprocessing.resize == "letterbox":
        scale = min(width / frame_width, height / frame_height)
        content_width = min(width, max(1, round(frame_width * scale)))
        content_height = min(height, max(1, round(frame_height * scale)))
    else:
        content_width, content_height = width, height
    return Geometry(
        frame_width=frame_width,
        frame_height=frame_height,
        content_width=content_width,
        content_height=content_height,
        pad_x=(width - content_width) // 2,
        pad_y=(height - content_height) // 2,
    )


def to_input(boxes: NDArray[Any], geometry: Geometry) -> NDArray[np.float64]:
    """Map boxes from frame pixels to input pixels.

    Parameters
    ----------
    boxes : ndarray, shape (n, 4)
        x0, y0, x1, y1 in pixels of the frame.

    Returns
    -------
    ndarray, shape (n, 4), float64
        The same boxes in pixels of the model's input.
    """
    scale = np.array([geometry.scale_x, geometry.scale_y] * 2)
    pad = np.array([geometry.pad_x, geometry.pad_y] * 2)
    mapped: NDArray[np.float64] = np.asarray(boxes, np.float64) * scale + pad
    return mapped


def to_frame(boxes: NDArray[Any], geometry: Geometry) -> NDArray[np.float64]:
    """Map boxes from input pixels to frame pixels and clip them to the frame.

    Parameters
    ----------
    boxes : ndarray, shape (n, 4)
        x0, y0, x1, y1 in pixels of the model's input.

    Returns
    -------
    ndarray, shape (n, 4), float64
        In pixels of the frame; a box beside the frame has no width or no height left.
    """
    scale = np.array([geometry.scale_x, geometry.scale_y] * 2)
    pad = np.array([geometry.pad_x, geometry.pad_y] * 2)
    bound = np.array([geometry.frame_width, geometry.frame_height] * 2, np.float64)
    mapped: NDArray[np.float64] = np.clip((np.asarray(boxes, np.float64) - pad) / scale, 0.0, bound)
    return mapped


def detect(output: NDArray[Any], postprocessing: DetectionPostprocessing, geometry: Geometry) -> list[Detection]:
    """Turn the common YOLO output into objects of the frame, best first.

    Parameters
    ----------
    output : ndarray, shape (1, 4 + classes, n), floating point
        Rows cx, cy, w, h in pixels of the model's input, then one score per class. The transposed layout
        (1, n, 4 + classes) is taken where only it fits the number of class names. Candidates with a value that is
        not finite, and those without area, are dropped.
    postprocessing : DetectionPostprocessing
        Class names, thresholds and the number of objects wanted.
    geometry : Geometry
        As returned by models.imaging.preprocess for this frame.

    Returns
    -------
    list of Detection
        At most max_detections, by falling score.

    Raises
    ------
    OutputError
        The model's fault: another shape or element type than its manifest promises.
    """
    rows = _rows(output, classes=len(postprocessing.class_names))
    scores, labels = rows[4:].max(axis=0), rows[4:].argmax(axis=0)
    # A NaN fails the comparison, so its candidate falls out here; infinities are left to _finite.
    chosen = np.flatnonzero(scores >= postprocessing.score_threshold)
    chosen = chosen[_is_usable(rows, chosen)]
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")[:CANDIDATES_MAX]]
    centre, size = rows[:2, chosen].T.astype(np.float64), rows[2:4, chosen].T.astype(np.float64)
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    kept = suppress(
        boxes, labels[chosen], iou_threshold=postprocessing.iou_threshold, limit=postprocessing.max_detections
    )
    found = []
    for index, box in zip(chosen[kept], to_frame(boxes[kept], geometry).tolist(), strict=True):
        if box[0] < box[2] and box[1] < box[3]:
            name = postprocessing.class_names[labels[index]]
            found.append(Detection(name, float(scores[index]), (box[0], box[1], box[2], box[3])))
    return found


def suppress(boxes: NDArray[np.float64], labels: NDArray[Any], *, iou_threshold: float, limit: int) -> NDArray[np.intp]:
    """Choose boxes greedily, best first, leaving out those that overlap a chosen one of their class.

    Parameters
    ----------
    boxes : ndarray, shape (n, 4), float64
        x0, y0, x1, y1 with x0 < x1 and y0 < y1, finite, by falling score.
    labels : ndarray, shape (n,), int
        Class of each box; boxes of different classes leave one another alone.
    iou_threshold : float
        Intersection over union above which the lower-scored box goes, 0..1.
    limit : int
        Most boxes to choose, >= 0.

    Returns
    -------
    ndarray, shape (m,), intp
        Indices of the chosen boxes, ascending, hence by falling score.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.arange(len(boxes))
    kept: list[int] = []
    while left.size and len(kept) < limit:
        best, left = int(left[0]), left[1:]
        kept.append(best)
        corner0 = np.maximum(boxes[left, :2], boxes[best, :2])
        corner1 = np.minimum(boxes[left, 2:], boxes[best, 2:])
        shared = np.prod(np.clip(corner1 - corner0, 0.0, None), axis=1)
        union = area[left] + area[best] - shared
        left = left[(shared <= iou_threshold * union) | (labels[left] != labels[best])]
    return np.array(kept, dtype=np.intp)


def classify(output: NDArray[Any], postprocessing: ClassificationPostprocessing) -> list[Classification]:
    """Name the best classes of a frame, best first.

    Parameters
    ----------
    output : ndarray, shape (1, classes), floating point
        Logits or scores. Values that are not finite are dropped and share no probability.
    postprocessing : ClassificationPostprocessing
        Class names, how many to return, and whether the output is logits.

    Returns
    -------
    list of Classification
        At most top_k, by falling score; equal scores in the order of the class names.

    Raises
    ------
    OutputError
        The model's fault: another shape or element type than its manifest promises.
    """
    names = postprocessing.class_names
    if output.shape != (1, len(names)) or not np.issubdtype(output.dtype, np.floating):
        raise OutputError(
            f"output {postprocessing.output!r} is {output.dtype} of shape {output.shape}, "
            f"{len(names)} class names need floats of shape (1, {len(names)})"
        )
    scores = output[0].astype(np.float64)
    usable = np.flatnonzero(np.isfinite(scores))
    scores = scores[usable]
    if postprocessing.softmax and scores.size:
        scores = np.exp(scores - scores.max())
        scores /= scores.sum()
    best = np.argsort(-scores, kind="stable")[: postprocessing.top_k]
    return [Classification(names[usable[index]], float(scores[index])) for index in best]


def _rows(output: NDArray[Any], *, classes: int) -> NDArray[Any]:
    """Return the output as rows of shape (4 + classes, n)."""
    wanted = 4 + classes
    if output.ndim == 3 and output.shape[0] == 1 and np.issubdtype(output.dtype, np.floating):
        if output.shape[1] == wanted:
            rows: NDArray[Any] = output[0]
            return rows
        if output.shape[2] == wanted:
            rows = output[0].T
            return rows
    raise OutputError(
        f"output is {output.dtype} of shape {output.shape}, {classes} class names need floats of shape "
        f"(1, {wanted}, n); export the model without its own suppression and name all its classes in the manifest"
    )


def _is_usable(rows: NDArray[Any], chosen: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Say which candidates have finite numbers and a box with an area."""
    candidates = rows[:, chosen]
    usable: NDArray[np.bool_] = np.isfinite(candidates).all(axis=0) & (candidates[2:4] > 0).all(axis=0)
    return usable
