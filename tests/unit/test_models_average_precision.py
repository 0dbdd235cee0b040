import pytest

from models.average_precision import Truth, mean_average_precision
from models.detection import Detection

HERE = (0.0, 0.0, 10.0, 10.0)
THERE = (20.0, 0.0, 30.0, 10.0)
NOWHERE = (50.0, 50.0, 60.0, 60.0)


def test_perfect_detections_score_one():
    result = mean_average_precision([[Detection("car", 0.9, HERE)]], [[Truth("car", HERE)]])
    assert result.mean == 1.0
    assert result.per_class == {"car": 1.0}


def test_no_detections_score_zero():
    assert mean_average_precision([[]], [[Truth("car", HERE)]]).mean == 0.0


def test_frames_without_truth_have_no_class_to_average():
    assert mean_average_precision([[Detection("car", 0.9, HERE)]], [[]]).per_class == {}


def test_false_alarm_ranked_first_halves_the_precision():
    found = [[Detection("car", 0.9, NOWHERE), Detection("car", 0.8, HERE)]]
    assert mean_average_precision(found, [[Truth("car", HERE)]]).mean == 0.5


def test_false_alarm_ranked_last_costs_nothing():
    found = [[Detection("car", 0.9, HERE), Detection("car", 0.8, NOWHERE)]]
    assert mean_average_precision(found, [[Truth("car", HERE)]]).mean == 1.0


def test_second_box_on_one_object_is_a_false_alarm():
    found = [[Detection("car", 0.9, HERE), Detection("car", 0.8, HERE), Detection("car", 0.7, THERE)]]
    truth = [[Truth("car", HERE), Truth("car", THERE)]]
    # hit, false alarm, hit: precision 1 up to recall 1/2, then 2/3 up to recall 1
    assert mean_average_precision(found, truth).mean == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


def test_precision_is_made_monotone_over_all_points():
    found = [[Detection("car", 0.9, HERE)], [Detection("car", 0.8, NOWHERE)], [Detection("car", 0.7, HERE)]]
    found += [[Detection("car", 0.6, HERE)]]
    truth = [[Truth("car", HERE)], [], [Truth("car", HERE)], [Truth("car", HERE)]]
    # hit, alarm, hit, hit: precisions 1, 2/3, 3/4 become 1, 3/4, 3/4
    assert mean_average_precision(found, truth).mean == pytest.approx((1 + 0.75 + 0.75) / 3)


def test_boxes_are_ranked_over_all_frames_not_within_one():
    found = [[Detection("car", 0.5, HERE)], [Detection("car", 0.9, NOWHERE)]]
    assert mean_average_precision(found, [[Truth("car", HERE)], []]).mean == 0.5


def test_overlap_below_the_threshold_is_no_hit():
    # 10 x 4 shared of a union of 160
    shifted = (0.0, 6.0, 10.0, 16.0)
    assert mean_average_precision([[Detection("car", 0.9, shifted)]], [[Truth("car", HERE)]]).mean == 0.0
    assert (
        mean_average_precision([[Detection("car", 0.9, shifted)]], [[Truth("car", HERE)]], iou_threshold=0.25).mean == 1
    )


def test_right_place_with_wrong_class_is_no_hit():
    assert mean_average_precision([[Detection("bus", 0.9, HERE)]], [[Truth("car", HERE)]]).mean == 0.0


def test_mean_weighs_classes_alike():
    found = [[Detection("car", 0.9, HERE), Detection("car", 0.9, THERE)]]
    truth = [[Truth("car", HERE), Truth("car", THERE), Truth("bus", NOWHERE)]]
    assert mean_average_precision(found, truth).mean == 0.5


def test_ignored_object_counts_neither_way():
    truth = [[Truth("car", HERE), Truth("car", THERE, ignore=True)]]
    assert mean_average_precision([[Detection("car", 0.5, HERE)]], truth).mean == 1.0
    found = [[Detection("car", 0.5, HERE), Detection("car", 0.9, THERE), Detection("car", 0.8, THERE)]]
    assert mean_average_precision(found, truth).mean == 1.0


def test_box_on_the_visible_part_of_an_ignored_object_is_forgiven():
    truth = [[Truth("car", HERE), Truth("car", THERE, ignore=True)]]
    found = [[Detection("car", 0.9, (20.0, 0.0, 23.0, 10.0)), Detection("car", 0.5, HERE)]]
    assert mean_average_precision(found, truth).mean == 1.0


def test_truth_goes_before_an_ignored_box_over_it():
    truth = [[Truth("car", HERE, ignore=True), Truth("car", HERE)]]
    assert mean_average_precision([[Detection("car", 0.5, HERE)]], truth).mean == 1.0


def test_frames_must_pair_up():
    with pytest.raises(ValueError, match="1 frames of detections do not fit 2"):
        mean_average_precision([[]], [[], []])
