"""How good a detector is: average precision over many frames.

Pure: records in, numbers out.

Notes
-----
Detections of a class are ranked by score over all frames and matched greedily, each to the still free truth box of
its frame that it overlaps most, as COCO does (Lin et al., "Microsoft COCO: Common Objects in Context", ECCV 2014;
pycocotools ``COCOeval.evaluateImg``). Intersection over union at or above the threshold makes a hit, anything else
a false alarm. Average precision is the area under the precision-recall curve after precision is made monotone,
taken at all its points as in PASCAL VOC since 2010 (Everingham et al., "The PASCAL Visual Object Classes (VOC)
Challenge", IJCV 88, 2010, section 4.2; development kit 2010, section 3.4.1), not at 11 or 101 samples.

Boxes to *ignore* follow COCO's crowds: a detection that hits no truth but lies in an ignored box of its class
counts neither way, the ignored box adds nothing to recall, and it may absorb any number of detections. The overlap
with an ignored box is measured against the detection's own area, so a box around the visible part of a hidden
object is forgiven.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.detection import Detection


class Truth(msgspec.Struct, frozen=True):
    """One object that is really in a frame."""

    class_name: str
    box: tuple[float, float, float, float]
    """x0, y0, x1, y1 in pixels of the frame."""
    ignore: bool = False
    """Whether the object is too hard to ask for: found or not, it counts neither way."""


class AveragePrecision(msgspec.Struct, frozen=True, kw_only=True):
    """Average precision of a detector at one overlap."""

    mean: float
    """Mean over the classes that have truth, 0..1; 0 where none has."""
    per_class: dict[str, float]
    """Average precision 0..1 of each class that has truth, in order of the names."""


def mean_average_precision(
    detections: Sequence[Sequence[Detection]], truths: Sequence[Sequence[Truth]], *, iou_threshold: float = 0.5
) -> AveragePrecision:
    """Measure detections against the truth.

    Parameters
    ----------
    detections : sequence of sequences of Detection
        What was found, one inner sequence per frame. Keep low scores in: they only add recall.
    truths : sequence of sequences of Truth
        What is there, for the same frames in the same order.
    iou_threshold : float, default 0.5
        Least intersection over union of a hit, 0..1.

    Returns
    -------
    AveragePrecision
        Classes without a counted truth box are left out, their false alarms too.
    """
    if len(detections) != len(truths):
        raise ValueError(f"{len(detections)} frames of detections do not fit {len(truths)} frames of truth")
    names = sorted({truth.class_name for frame in truths for truth in frame if not truth.ignore})
    per_class = {name: _class_precision(name, detections, truths, iou_threshold) for name in names}
    mean = sum(per_class.values()) / len(per_class) if per_class else 0.0
    return AveragePrecision(mean=mean, per_class=per_class)


def _class_precision(
    name: str, detections: Sequence[Sequence[Detection]], truths: Sequence[Sequence[Truth]], iou_threshold: float
) -> float:
    """Return the average precision of one class that has truth."""
    scores: list[float] = []
    hits: list[bool] = []
    wanted = 0
    for found, real in zip(detections, truths, strict=True):
        ranked = sorted((item for item in found if item.class_name == name), key=lambda item: -item.score)
        counted = [item.box for item in real if item.class_name == name and not item.ignore]
        ignored = [item.box for item in real if item.class_name == name and item.ignore]
        wanted += len(counted)
        for item, outcome in zip(ranked, _match(ranked, counted, ignored, iou_threshold), strict=True):
            if outcome is not None:
                scores.append(item.score)
                hits.append(outcome)
    order = np.argsort(-np.array(scores), kind="stable")
    return _area(np.array(hits, bool)[order], wanted)


def _match(
    ranked: Sequence[Detection],
    counted: Sequence[tuple[float, float, float, float]],
    ignored: Sequence[tuple[float, float, float, float]],
    iou_threshold: float,
) -> list[bool | None]:
    """Say of each detection of a frame and class whether it hits; None where it counts neither way."""
    boxes = np.array([item.box for item in ranked]).reshape(-1, 4)
    overlap = _overlap(boxes, np.array(counted).reshape(-1, 4), own_area=False)
    excuse = _overlap(boxes, np.array(ignored).reshape(-1, 4), own_area=True)
    outcomes: list[bool | None] = []
    for row, excuses in zip(overlap, excuse, strict=True):
        best = int(row.argmax()) if row.size else -1
        if best >= 0 and row[best] >= iou_threshold:
            overlap[:, best] = -1.0
            outcomes.append(True)
        else:
            outcomes.append(None if (excuses >= iou_threshold).any() else False)
    return outcomes


def _overlap(first: NDArray[np.float64], second: NDArray[np.float64], *, own_area: bool) -> NDArray[np.float64]:
    """Return the shared area of each pair over their union, or over the first box's own area; shape (n, m)."""
    corner0 = np.maximum(first[:, None, :2], second[None, :, :2])
    corner1 = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.clip(corner1 - corner0, 0.0, None).prod(axis=2)
    area_first = (first[:, 2:] - first[:, :2]).prod(axis=1)[:, None]
    area_second = (second[:, 2:] - second[:, :2]).prod(axis=1)[None]
    whole = area_first if own_area else area_first + area_second - shared
    ratio: NDArray[np.float64] = shared / np.maximum(whole, np.finfo(np.float64).tiny)
    return ratio


def _area(hits: NDArray[np.bool_], wanted: int) -> float:
    """Return the area under the monotone precision-recall curve of detections ranked best first."""
    found = np.cumsum(hits)
    precision = found / np.arange(1, len(hits) + 1)
    monotone = np.maximum.accumulate(precision[::-1])[::-1]
    return float(monotone[hits].sum() / wanted)
