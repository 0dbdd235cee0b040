import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from models import imaging
from models.imaging import ImageError, decode, preprocess
from models.manifest import ImagePreprocessing

PLAIN = ImagePreprocessing(input="images", width=64, height=64, scale=(1.0, 1.0, 1.0))

# Four corners of different colours: whatever turns or shifts the picture shows.
CORNERS = np.zeros((40, 80, 3), np.uint8)
CORNERS[:20, :40], CORNERS[:20, 40:], CORNERS[20:, :40], CORNERS[20:, 40:] = (
    (250, 20, 20),
    (20, 250, 20),
    (20, 20, 250),
    (250, 250, 20),
)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """Make a PNG that claims a size and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 64)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def corners_of(picture: np.ndarray) -> list[list[int]]:
    height, width = picture.shape[:2]
    return [picture[y, x].tolist() for y in (height // 8, -height // 8) for x in (width // 8, -width // 8)]


def test_png_is_decoded_exactly():
    assert np.array_equal(decode(encode(Image.fromarray(CORNERS), "PNG")), CORNERS)


def test_jpeg_is_decoded_closely():
    decoded = decode(encode(Image.fromarray(CORNERS), "JPEG", quality=95))
    assert np.abs(np.array(corners_of(decoded)) - corners_of(CORNERS)).max() < 8


def test_letterbox_keeps_proportions_and_pads_with_grey():
    tensor, geometry = preprocess(CORNERS, PLAIN)
    assert tensor.shape == (1, 3, 64, 64)
    assert tensor.dtype == np.float32
    assert (geometry.content_width, geometry.content_height, geometry.pad_x, geometry.pad_y) == (64, 32, 0, 16)
    assert (tensor[0, :, :16] == 114).all()
    assert (tensor[0, :, 48:] == 114).all()
    assert tensor[0, :, 20, 5].tolist() == [250, 20, 20]


def test_stretch_fills_the_input():
    stretch = ImagePreprocessing(input="images", width=32, height=64, resize="stretch", scale=(1.0, 1.0, 1.0))
    tensor, geometry = preprocess(CORNERS, stretch)
    assert tensor.shape == (1, 3, 64, 32)
    assert (geometry.scale_x, geometry.scale_y) == (0.4, 1.6)
    assert tensor[0, :, 60, 30].tolist() == [250, 250, 20]


def test_pixels_are_normalised_per_channel():
    normal = ImagePreprocessing(
        input="images", width=80, height=80, mean=(100.0, 50.0, 0.0), scale=(0.5, 0.1, 2.0), pad_value=10
    )
    tensor, _ = preprocess(CORNERS, normal)
    assert tensor[0, :, 25, 5].tolist() == pytest.approx([75.0, -3.0, 40.0])
    assert tensor[0, :, 0, 0].tolist() == pytest.approx([-45.0, -4.0, 20.0])


def test_last_dimension_holds_the_channels_where_the_model_wants_so():
    last = ImagePreprocessing(input="images", width=80, height=40, layout="nhwc", scale=(1.0, 1.0, 1.0))
    tensor, _ = preprocess(CORNERS, last)
    assert np.array_equal(tensor[0], CORNERS)
    assert tensor.flags.c_contiguous


def test_blue_comes_first_where_the_model_wants_so():
    reverse = ImagePreprocessing(input="images", width=80, height=40, colour="bgr", scale=(1.0, 1.0, 1.0))
    assert preprocess(CORNERS, reverse)[0][0, :, 5, 5].tolist() == [20, 20, 250]


def test_frame_that_is_no_contiguous_array_is_taken():
    tensor, _ = preprocess(CORNERS[:, ::-1], PLAIN)
    assert tensor[0, :, 20, 5].tolist() == [20, 250, 20]


def test_large_jpeg_is_decoded_small_without_moving_anything():
    large = Image.fromarray(CORNERS).resize((1001, 501), Image.Resampling.NEAREST)
    data = encode(large, "JPEG", quality=95)
    (small, geometry), (whole, _) = preprocess(data, PLAIN), preprocess(decode(data), PLAIN)
    assert (geometry.frame_width, geometry.frame_height) == (1001, 501)
    assert np.abs(small - whole).max() < 16


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_picture_is_set_upright_by_its_exif_orientation(orientation, kind):
    # The turns that a viewer undoes: what a camera stores for an upright scene (EXIF 2.3, tag 0x0112).
    stored = {
        1: CORNERS,
        2: CORNERS[:, ::-1],
        3: CORNERS[::-1, ::-1],
        4: CORNERS[::-1],
        5: CORNERS.transpose(1, 0, 2),
        6: CORNERS[:, ::-1].transpose(1, 0, 2),
        7: CORNERS[::-1, ::-1].transpose(1, 0, 2),
        8: CORNERS[::-1].transpose(1, 0, 2),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(
        Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **{"quality": 98} if kind == "JPEG" else {}
    )
    tensor, geometry = preprocess(data, PLAIN)
    assert (geometry.frame_width, geometry.frame_height) == (80, 40)
    content = tensor[0, :, 16:48].transpose(1, 2, 0)
    assert np.abs(np.array(corners_of(content)) - corners_of(CORNERS)).max() < 10
    assert np.abs(np.array(corners_of(decode(data))).astype(int) - corners_of(CORNERS)).max() < 10


def test_unknown_orientation_leaves_the_picture_as_stored():
    exif = Image.Exif()
    exif[0x0112] = 99
    assert np.array_equal(decode(encode(Image.fromarray(CORNERS), "PNG", exif=exif)), CORNERS)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_leaves_the_picture_as_stored():
    data = encode(Image.fromarray(CORNERS), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    assert decode(data).shape == (40, 80, 3)


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "RGBA", "I;16", "CMYK"])
def test_pictures_of_other_modes_come_out_in_rgb(mode):
    grey = Image.fromarray(np.repeat([[0] * 8 + [255] * 8], 16, axis=0).astype(np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    else:
        image = grey.convert("RGB").convert(mode) if mode in ("P", "CMYK") else grey.convert(mode)
    assert image.mode == mode
    data = encode(image, "JPEG", quality=98) if mode == "CMYK" else encode(image, "PNG")
    decoded = decode(data)
    assert decoded.shape == (16, 16, 3)
    assert decoded[:, 0].max() <= 6
    assert decoded[:, 15].min() >= 249
    tensor, _ = preprocess(data, ImagePreprocessing(input="images", width=8, height=8, scale=(1.0, 1.0, 1.0)))
    assert tensor[0, :, :, 0].max() <= 6
    assert tensor[0, :, :, 7].min() >= 249


def test_16_bit_grey_is_scaled_not_clipped():
    image = Image.fromarray(np.full((4, 4), 0x4000, np.uint16))
    assert (decode(encode(image, "PNG")) == 0x40).all()


def test_transparent_parts_are_white():
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert (decode(encode(clear, "PNG")) == 255).all()
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([200, 0, 0])
    assert (decode(encode(palette, "PNG", transparency=0)) == 255).all()


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "WEBP", "PPM"])
def test_other_formats_are_refused(kind):
    with pytest.raises(ImageError, match="neither JPEG nor PNG"):
        preprocess(encode(Image.fromarray(CORNERS), kind), PLAIN)


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"\0" * 100])
def test_bytes_that_are_no_picture_are_refused(data):
    with pytest.raises(ImageError):
        preprocess(data, PLAIN)


def test_empty_picture_is_refused():
    with pytest.raises(ImageError, match="0 bytes"):
        preprocess(b"", PLAIN)


def test_picture_of_too_many_bytes_is_refused(monkeypatch):
    monkeypatch.setattr(imaging, "ENCODED_MAX_BYTES", 100)
    with pytest.raises(ImageError, match=r"allowed are 1\.\.100"):
        preprocess(encode(Image.fromarray(CORNERS), "PNG"), PLAIN)


@pytest.mark.parametrize("size", [(8001, 8000), (10_000, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_bomb_is_refused_by_its_header(size):
    with pytest.raises(ImageError, match="64000000 pixels"):
        preprocess(png_header(*size), PLAIN)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.5, 0.95])
def test_truncated_picture_is_refused(kind, share):
    noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), kind)
    with pytest.raises(ImageError, match="damaged"):
        preprocess(data[: int(len(data) * share)], PLAIN)
    with pytest.raises(ImageError, match="damaged"):
        decode(data[: int(len(data) * share)])


def test_extremely_long_picture_keeps_one_row():
    tensor, geometry = preprocess(np.full((1, 5000, 3), 9, np.uint8), PLAIN)
    assert geometry.content_height == 1
    assert tensor[0, :, geometry.pad_y, 30].tolist() == [9, 9, 9]


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.broadcast_to(np.uint8(0), (8001, 8000, 3)),
    ],
)
def test_frame_of_another_shape_type_or_size_is_refused(frame):
    with pytest.raises(ImageError, match="frame is"):
        preprocess(frame, PLAIN)


# --- pictures decoded at a part of their size


def landscape(width: int = 1280, height: int = 720) -> Image.Image:
    """Draw slopes, edges and fine texture, as a street has them."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    bars = 60 * (np.sin(x / 37) > 0.3) - 50 * (np.cos(y / 53) > 0.5)
    bands = [90 + 90 * x / width + bars, 60 + 120 * y / height + bars, 130 - bars]
    grain = np.random.default_rng(3).normal(0, 4, (height, width, 1))
    return Image.fromarray(np.clip(np.dstack(bands) + grain, 0, 255).astype(np.uint8))


def wanted(width: int, height: int, resize: str = "letterbox") -> ImagePreprocessing:
    return ImagePreprocessing(input="images", width=width, height=height, resize=resize, scale=(1.0, 1.0, 1.0))


@pytest.fixture
def decoded_sizes(monkeypatch):
    """Note the size at which each JPEG is decoded."""
    sizes = []
    load = JpegImageFile.load

    def noted(self):
        if not sizes or sizes[-1] != self.size:
            sizes.append(self.size)
        return load(self)

    monkeypatch.setattr(JpegImageFile, "load", noted)
    return sizes


@pytest.mark.parametrize(
    ("size", "target", "decoded"),
    [
        ((1280, 720), (320, 320), (320, 180)),  # a quarter is just what the input holds
        ((1280, 720), (640, 640), (640, 360)),
        ((1920, 1080), (320, 320), (480, 270)),  # an eighth would be too small
        ((1279, 719), (320, 320), (640, 360)),  # one pixel short of a quarter; odd sizes are rounded up
        ((2560, 1440), (320, 320), (320, 180)),
        ((3000, 1500), (160, 160), (375, 188)),  # an eighth is the least there is
        ((640, 360), (640, 640), (640, 360)),
        ((320, 180), (640, 640), (320, 180)),
    ],
)
def test_jpeg_is_decoded_as_small_as_the_input_allows_and_never_smaller(size, target, decoded, decoded_sizes):
    data = encode(Image.new("RGB", size, (90, 120, 60)), "JPEG")
    tensor, geometry = preprocess(data, wanted(*target))
    assert decoded_sizes == [decoded]
    assert tensor.shape == (1, 3, target[1], target[0])
    assert (geometry.frame_width, geometry.frame_height) == size


def test_stretched_picture_is_decoded_no_smaller_than_its_narrow_side_needs(decoded_sizes):
    preprocess(encode(landscape(), "JPEG"), wanted(160, 640, "stretch"))
    assert decoded_sizes == [(1280, 720)]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(1280, 720), (1001, 563)])
def test_jpeg_decoded_small_looks_as_one_decoded_whole(mode, options, size):
    data = encode(landscape(*size).convert(mode), "JPEG", quality=87, **options)
    (small, geometry), (whole, same) = preprocess(data, wanted(320, 320)), preprocess(decode(data), wanted(320, 320))
    assert geometry == same
    rows = slice(geometry.pad_y, geometry.pad_y + geometry.content_height)
    difference = np.abs(small - whole)[:, :, rows]
    # In levels of 255. Edges are a little sharper: the decoder averages less than the resize does.
    assert difference.mean() < 2.5
    assert np.quantile(difference, 0.99) < 24
    assert abs(float((small - whole)[:, :, rows].mean())) < 0.5


@pytest.mark.parametrize("orientation", range(1, 9))
def test_sideways_jpeg_is_decoded_small_and_its_boxes_refer_to_the_whole_upright_frame(orientation, decoded_sizes):
    stored = (1280, 720) if orientation < 5 else (720, 1280)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(landscape(*stored), "JPEG", quality=87, exif=exif)
    small, geometry = preprocess(data, wanted(320, 320))
    assert decoded_sizes == [(stored[0] // 4, stored[1] // 4)]
    assert (geometry.frame_width, geometry.frame_height) == (1280, 720)
    assert (geometry.scale_x, geometry.scale_y) == (0.25, 0.25)
    whole, _ = preprocess(decode(data), wanted(320, 320))
    assert np.abs(small - whole).mean() < 1.5


def test_png_is_resized_from_all_of_its_pixels():
    data = encode(landscape(), "PNG")
    (tensor, _), (whole, _) = preprocess(data, wanted(320, 320)), preprocess(decode(data), wanted(320, 320))
    assert np.array_equal(tensor, whole)


@pytest.mark.parametrize("options", [{}, {"progressive": True}])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.9])
def test_truncated_jpeg_is_refused_when_it_would_be_decoded_small(options, share):
    data = encode(landscape(), "JPEG", quality=87, **options)
    with pytest.raises(ImageError, match=r"damaged|neither"):
        preprocess(data[: int(len(data) * share)], wanted(320, 320))


def test_jpeg_of_too_many_pixels_is_refused_although_it_would_be_decoded_small(decoded_sizes):
    # Its header says 60,000 x 60,000; the smallest decoding would have 7,500 x 7,500.
    data = bytearray(encode(landscape(64, 64), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", 60_000, 60_000)
    with pytest.raises(ImageError, match="64000000 pixels"):
        preprocess(data, wanted(320, 320))
    assert decoded_sizes == []
