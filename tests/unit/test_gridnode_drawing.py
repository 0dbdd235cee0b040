import io

import msgspec
import numpy as np
from PIL import Image

from gridnode.drawing import PALETTE, annotate, colour_of
from gridnode.results import Box, Classification, Detection, Result, Timings

TIMINGS = Timings(total_s=0, queue_s=0, transfer_s=0, service_s=0, client_s=0)
CAR = Detection(class_name="vehicle", class_index=0, score=0.91, box=Box(100, 100, 220, 180))
EMPTY = Result(
    key=bytes(24), model="m", model_digest="d", node="n", node_id="i", hops=0, timings=TIMINGS, image_size=(640, 360)
)


def result(**changes):
    return msgspec.structs.replace(EMPTY, **changes)


def test_a_frame_without_findings_stays_as_it_is():
    frame = np.full((360, 640, 3), 90, np.uint8)
    assert np.array_equal(np.asarray(annotate(frame, EMPTY)), frame)


def test_a_box_is_drawn_in_its_class_colour_on_a_copy():
    frame = np.full((360, 640, 3), 90, np.uint8)
    drawn = np.asarray(annotate(frame, result(detections=(CAR,))))
    assert drawn.shape == frame.shape
    assert tuple(drawn[140, 100]) == colour_of(0)
    assert tuple(drawn[300, 500]) == (90, 90, 90)
    assert (frame == 90).all()


def test_boxes_are_scaled_to_the_picture_drawn_on():
    drawn = np.asarray(annotate(Image.new("RGB", (1280, 720)), result(detections=(CAR,))))
    assert tuple(drawn[280, 200]) == colour_of(0)


def test_boxes_at_and_past_the_edges_are_drawn_too():
    boxes = [
        Box(0, 0, 5, 5),
        Box(-50, -50, 700, 400),
        Box(630, 350, 640, 360),
        Box(30, 30, 30, 30),
        Box(50, 50, 40, 40),
    ]
    found = tuple(msgspec.structs.replace(CAR, box=box, class_index=i) for i, box in enumerate(boxes))
    for size in ((640, 360), (8, 8), (1, 1)):
        assert annotate(Image.new("RGB", size), result(detections=found)).size == size


def test_all_pictures_that_can_be_sent_can_be_drawn_on(tmp_path):
    image = Image.new("L", (64, 36))
    image.save(tmp_path / "x.png")
    file = io.BytesIO()
    image.save(file, "PNG")
    for picture in (image, np.asarray(image), tmp_path / "x.png", str(tmp_path / "x.png"), file.getvalue()):
        drawn = annotate(picture, result(classes=(Classification(class_name="rain", class_index=0, score=0.5),)))
        assert (drawn.mode, drawn.size) == ("RGB", (64, 36))


def test_neighbouring_classes_have_different_colours():
    assert len({colour_of(index) for index in range(len(PALETTE))}) == len(PALETTE)
