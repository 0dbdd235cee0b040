import numpy as np
import pytest

from models.detection import CANDIDATES_MAX, Classification, Detection, OutputError, classify, detect, fit
from models.manifest import ClassificationPostprocessing, DetectionPostprocessing, ImagePreprocessing

SQUARE = ImagePreprocessing(input="images", width=320, height=320)
SAME = fit(320, 320, SQUARE)
TWO = DetectionPostprocessing(output="output0", class_names=("car", "person"))


def raw(*candidates: tuple[float, ...], dtype: type = np.float32) -> np.ndarray:
    """Make an output of shape (1, 6, n) from candidates cx, cy, w, h, score of car, score of person."""
    with np.errstate(over="ignore"):
        return np.array(candidates, dtype).reshape(-1, 6).T[np.newaxis]


def test_candidate_becomes_a_named_box():
    found = detect(raw((100, 80, 40, 20, 0.25, 0.75)), TWO, SAME)
    assert found == [Detection("person", 0.75, (80.0, 70.0, 120.0, 90.0))]


def test_scores_below_the_threshold_are_left_out():
    output = raw((100, 80, 40, 20, 0.24, 0.1), (200, 80, 40, 20, 0.25, 0.1))
    assert [item.score for item in detect(output, TWO, SAME)] == [0.25]


def test_results_come_best_first():
    output = raw((50, 50, 20, 20, 0.5, 0), (150, 50, 20, 20, 0.75, 0), (250, 50, 20, 20, 0, 0.625))
    assert [item.score for item in detect(output, TWO, SAME)] == [0.75, 0.625, 0.5]


def test_overlapping_boxes_of_one_class_are_suppressed():
    output = raw((100, 100, 40, 40, 0.5, 0), (102, 100, 40, 40, 0.75, 0), (200, 100, 40, 40, 0.5, 0))
    assert [item.box[0] for item in detect(output, TWO, SAME)] == [82.0, 180.0]


def test_overlapping_boxes_of_two_classes_both_stay():
    output = raw((100, 100, 40, 40, 0.5, 0), (102, 100, 40, 40, 0, 0.75))
    assert [item.class_name for item in detect(output, TWO, SAME)] == ["person", "car"]


def test_suppressed_box_does_not_suppress_others():
    # a hides b, b would hide c, a does not: c stays
    output = raw((100, 100, 40, 40, 0.9, 0), (112, 100, 40, 40, 0.8, 0), (124, 100, 40, 40, 0.7, 0))
    assert [item.box[0] for item in detect(output, TWO, SAME)] == [80.0, 104.0]


def test_number_of_detections_is_bounded():
    output = raw(*[(20 * i + 10, 10, 10, 10, 0.5, 0) for i in range(10)])
    few = DetectionPostprocessing(output="output0", class_names=("car", "person"), max_detections=3)
    assert len(detect(output, few, SAME)) == 3


def test_number_of_candidates_is_bounded():
    ramp = np.linspace(0.3, 0.9, CANDIDATES_MAX + 50, dtype=np.float32)
    output = np.zeros((1, 6, ramp.size), np.float32)
    output[0, 0], output[0, 1], output[0, 2:4], output[0, 4] = np.arange(ramp.size), 5, 0.5, ramp
    every = DetectionPostprocessing(output="output0", class_names=("car", "person"), max_detections=10**6)
    wide = fit(10_000, 320, ImagePreprocessing(input="images", width=8192, height=320, resize="stretch"))
    found = detect(output, every, wide)
    assert len(found) == CANDIDATES_MAX
    assert found[-1].score == pytest.approx(ramp[50])


def test_box_is_mapped_through_letterbox_to_the_frame():
    geometry = fit(640, 360, SQUARE)
    found = detect(raw((160, 160, 320, 180, 0.9, 0)), TWO, geometry)
    assert found[0].box == (0.0, 0.0, 640.0, 360.0)


def test_box_is_mapped_through_stretch_to_the_frame():
    geometry = fit(640, 160, ImagePreprocessing(input="images", width=320, height=320, resize="stretch"))
    assert detect(raw((160, 160, 160, 160, 0.9, 0)), TWO, geometry)[0].box == (160.0, 40.0, 480.0, 120.0)


def test_box_is_clipped_to_the_frame():
    assert detect(raw((0, 310, 40, 40, 0.9, 0)), TWO, SAME)[0].box == (0.0, 290.0, 20.0, 320.0)


def test_box_in_the_border_is_dropped():
    assert detect(raw((160, 20, 40, 40, 0.9, 0)), TWO, fit(640, 360, SQUARE)) == []


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", range(6))
def test_candidate_with_a_number_that_is_not_finite_is_dropped(bad, row):
    output = raw((100, 80, 40, 20, 0.5, 0.5), (200, 80, 40, 20, 0.5, 0.25))
    output[0, row, 0] = bad
    assert [item.box[0] for item in detect(output, TWO, SAME)] == [180.0]


def test_candidate_without_area_is_dropped():
    assert detect(raw((100, 80, 0, 20, 0.9, 0), (100, 80, 20, -1, 0.9, 0)), TWO, SAME) == []


def test_largest_floats_do_not_overflow():
    assert detect(raw((3e38, 3e38, 3e38, 3e38, 0.9, 0), (160, 160, 3e38, 3e38, 0.8, 0)), TWO, SAME)[0].box == (
        0.0,
        0.0,
        320.0,
        320.0,
    )


def test_half_precision_output_is_taken():
    assert detect(raw((100, 80, 40, 20, 0.25, 0.75), dtype=np.float16), TWO, SAME)[0].score == 0.75


def test_no_candidates_give_no_detections():
    assert detect(np.zeros((1, 6, 0), np.float32), TWO, SAME) == []


def test_transposed_output_is_taken_where_only_it_fits():
    output = raw((100, 80, 40, 20, 0.25, 0.75)).transpose(0, 2, 1)
    assert detect(output, TWO, SAME) == [Detection("person", 0.75, (80.0, 70.0, 120.0, 90.0))]


@pytest.mark.parametrize("shape", [(1, 7, 100), (1, 100, 85), (2, 6, 100), (6, 100), (1, 1, 6, 100)])
def test_output_of_another_shape_is_refused(shape):
    with pytest.raises(OutputError, match="2 class names need floats of shape"):
        detect(np.zeros(shape, np.float32), TWO, SAME)


def test_output_of_integers_is_refused():
    with pytest.raises(OutputError, match="int64"):
        detect(np.zeros((1, 6, 10), np.int64), TWO, SAME)


ANIMALS = ClassificationPostprocessing(output="scores", class_names=("cat", "dog", "owl"), top_k=2)


def test_logits_become_probabilities_of_the_best_classes():
    found = classify(np.log(np.array([[0.5, 0.125, 0.375]], np.float32)), ANIMALS)
    assert [item.class_name for item in found] == ["cat", "owl"]
    assert [item.score for item in found] == pytest.approx([0.5, 0.375])


def test_scores_without_softmax_are_passed_on():
    plain = ClassificationPostprocessing(output="scores", class_names=("cat", "dog"), softmax=False)
    assert classify(np.array([[0.25, 0.75]], np.float32), plain) == [
        Classification("dog", 0.75),
        Classification("cat", 0.25),
    ]


def test_large_logits_do_not_overflow():
    assert classify(np.array([[3e38, 0.0, -3e38]], np.float32), ANIMALS)[0] == Classification("cat", 1.0)


def test_class_scores_that_are_not_finite_are_dropped():
    found = classify(np.array([[np.nan, 1.0, np.inf]], np.float32), ANIMALS)
    assert found == [Classification("dog", 1.0)]
    assert classify(np.full((1, 3), np.nan, np.float32), ANIMALS) == []


@pytest.mark.parametrize("shape", [(3,), (1, 4), (2, 3)])
def test_class_scores_of_another_shape_are_refused(shape):
    with pytest.raises(OutputError, match="3 class names"):
        classify(np.zeros(shape, np.float32), ANIMALS)
