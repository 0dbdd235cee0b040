import io

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.detection import fit, to_frame, to_input
from models.imaging import ImageError, preprocess
from models.manifest import ImagePreprocessing

sizes = st.integers(1, 5000)
targets = st.builds(
    ImagePreprocessing,
    input=st.just("images"),
    width=st.integers(1, 1280),
    height=st.integers(1, 1280),
    resize=st.sampled_from(["letterbox", "stretch"]),
)
fractions = st.floats(0, 1)


@given(sizes, sizes, targets, st.tuples(fractions, fractions, fractions, fractions))
def test_box_survives_the_way_to_the_input_and_back(width, height, preprocessing, parts):
    geometry = fit(width, height, preprocessing)
    x0, x1 = sorted((parts[0] * width, parts[1] * width))
    y0, y1 = sorted((parts[2] * height, parts[3] * height))
    box = np.array([[x0, y0, x1, y1]])
    assert np.allclose(to_frame(to_input(box, geometry), geometry), box, rtol=0, atol=1e-6)


@given(sizes, sizes, targets)
def test_frame_lies_inside_the_input(width, height, preprocessing):
    geometry = fit(width, height, preprocessing)
    x0, y0, x1, y1 = to_input(np.array([[0, 0, width, height]]), geometry)[0]
    assert 0 <= x0 < x1 <= preprocessing.width + 1e-6
    assert 0 <= y0 < y1 <= preprocessing.height + 1e-6


@given(sizes, sizes, targets)
def test_letterbox_keeps_proportions_to_the_pixel(width, height, preprocessing):
    geometry = fit(width, height, preprocessing)
    if preprocessing.resize == "letterbox":
        scale = min(preprocessing.width / width, preprocessing.height / height)
        assert abs(geometry.content_width - width * scale) < 1
        assert abs(geometry.content_height - height * scale) < 1


def _encoded(kind: str) -> bytes:
    ramp = np.arange(48 * 32 * 3, dtype=np.uint32).reshape(32, 48, 3).astype(np.uint8)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(ramp).save(buffer, kind, exif=exif)
    return buffer.getvalue()


@settings(max_examples=200)
@given(
    st.sampled_from([_encoded("JPEG"), _encoded("PNG")]),
    st.lists(st.tuples(st.integers(0, 4000), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4),
)
def test_damaged_pictures_are_decoded_or_refused_by_name(data, damage):
    broken = bytearray(data)
    for place, replacement in damage:
        start = place % len(broken)
        broken[start : start + len(replacement)] = replacement
    small = ImagePreprocessing(input="images", width=16, height=16)
    try:
        tensor, _ = preprocess(bytes(broken), small)
    except ImageError:
        return
    assert tensor.shape == (1, 3, 16, 16)
