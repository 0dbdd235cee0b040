"""From an encoded picture or a raw frame to the model's input tensor.

Owns Pillow: which formats are opened, the bounds that are checked before a pixel is decoded, orientation, colour
modes, resize and normalisation. Knows nothing of files, sockets or the runtime. A picture comes from outside, so
whatever is wrong with it is an ImageError, never an error of Pillow's own.

The order of the work keeps a frame cheap on a small board: JPEG is decoded at 1/2, 1/4 or 1/8 of its size where
the model's input is that much smaller, the resize comes before rotation and colour conversion, bytes stay bytes
until the one pass that writes the float tensor.
"""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from models.detection import Geometry, fit
from models.manifest import ImagePreprocessing
from models.tensors import BadInputError

ENCODED_MAX_BYTES = 32 << 20
"""Largest encoded picture. Cameras write below 20 MB; larger ones only cost memory."""

PIXELS_MAX = 64_000_000
"""Most pixels of a picture, checked before it is decoded: 192 MB once decoded, above any camera at the edge."""

FORMATS = ("JPEG", "PNG")
"""Formats that are opened. Each further decoder is more code that a stranger's bytes reach."""

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to set a stored picture upright, by its EXIF orientation (EXIF 2.3, tag 0x0112)."""

_SIDEWAYS = frozenset({5, 6, 7, 8})

# What Pillow raises for bytes that are no sound picture, found by reading its plugins and by mutating files.
# Warning: Pillow warns of corrupt metadata and huge sizes; where a program turns warnings into errors they land here.
_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    EOFError,
    LookupError,
    ArithmeticError,
    AttributeError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Warning,
)


class ImageError(BadInputError):
    """A picture that is no JPEG or PNG, is damaged, or exceeds a bound."""


def preprocess(
    picture: bytes | bytearray | memoryview | NDArray[np.uint8], preprocessing: ImagePreprocessing
) -> tuple[NDArray[np.float32], Geometry]:
    """Make the model's input from one picture.

    Parameters
    ----------
    picture : bytes-like or ndarray, shape (height, width, 3), uint8
        An encoded JPEG or PNG, or a decoded frame in RGB order.
    preprocessing : ImagePreprocessing
        Size, resize, normalisation, layout and colour order that the model wants.

    Returns
    -------
    tensor : ndarray, shape (1, 3, height, width) or (1, height, width, 3), float32
        ``(pixel - mean) * scale`` per channel; mean and scale are in the order of the model's channels.
    geometry : Geometry
        Maps boxes between the tensor and the upright picture at its full size.

    Raises
    ------
    ImageError
        The sender's fault: no JPEG or PNG, damaged, beyond a bound, or an array of another shape or type.
    """
    if isinstance(picture, np.ndarray):
        content, geometry = _fit_frame(picture, preprocessing)
    else:
        content, geometry = _fit_encoded(picture, preprocessing)
    return _normalise(content, geometry, preprocessing), geometry


def decode(data: bytes | bytearray | memoryview) -> NDArray[np.uint8]:
    """Decode a picture at its full size.

    Parameters
    ----------
    data : bytes-like
        An encoded JPEG or PNG.

    Returns
    -------
    ndarray, shape (height, width, 3), uint8
        RGB, upright, read-only; transparent parts are laid over white.

    Raises
    ------
    ImageError
        The sender's fault: no JPEG or PNG, damaged, or beyond a bound.
    """
    image, orientation = _open(data)
    try:
        upright = _turn(_to_rgb(image), orientation)
    except _FAULTS as error:
        raise ImageError(f"picture is damaged: {error}") from error
    return np.asarray(upright)


def _open(data: bytes | bytearray | memoryview) -> tuple[Image.Image, int]:
    """Read a picture's header, check its bounds, and return it undecoded with its EXIF orientation."""
    size_bytes = memoryview(data).nbytes
    if not 0 < size_bytes <= ENCODED_MAX_BYTES:
        raise ImageError(f"picture has {size_bytes} bytes, allowed are 1..{ENCODED_MAX_BYTES}")
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise ImageError(f"picture is neither {' nor '.join(FORMATS)}; convert it before sending") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"picture is above {PIXELS_MAX} pixels: {error}") from error
    except _FAULTS as error:
        raise ImageError(f"picture has a damaged header: {error}") from error
    if image.width * image.height > PIXELS_MAX:
        raise ImageError(f"picture is {image.width}x{image.height}, at most {PIXELS_MAX} pixels are decoded; shrink it")
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except _FAULTS:
        # A picture with damaged metadata is still a picture; it is taken as it was stored.
        orientation = 1
    return image, orientation if orientation in _TURNS else 1


def _fit_encoded(
    data: bytes | bytearray | memoryview, preprocessing: ImagePreprocessing
) -> tuple[NDArray[np.uint8], Geometry]:
    """Decode a picture, as small as the model allows, and resize it to its content size."""
    image, orientation = _open(data)
    sideways = orientation in _SIDEWAYS
    width, height = image.size
    geometry = fit(height, width, preprocessing) if sideways else fit(width, height, preprocessing)
    size = (geometry.content_width, geometry.content_height)
    stored = (size[1], size[0]) if sideways else size
    try:
        # The scaled decoder rounds the size up; the box it returns says where the picture's edge truly lies.
        drafted = image.draft(None, stored)
        box = (0.0, 0.0, float(width), float(height)) if drafted is None else drafted[1]
        content = _turn(_to_rgb(_resize(_to_bands(image), stored, box)), orientation)
    except _FAULTS as error:
        raise ImageError(f"picture is damaged: {error}") from error
    return np.asarray(content), geometry


def _fit_frame(frame: NDArray[Any], preprocessing: ImagePreprocessing) -> tuple[NDArray[np.uint8], Geometry]:
    """Check a decoded frame and resize it to its content size."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or 0 in frame.shape:
        raise ImageError(f"frame is {frame.dtype} of shape {frame.shape}, wanted is uint8 of (height, width, 3) in RGB")
    height, width = frame.shape[:2]
    if width * height > PIXELS_MAX:
        raise ImageError(f"frame is {width}x{height}, at most {PIXELS_MAX} pixels are taken; shrink it")
    geometry = fit(width, height, preprocessing)
    size = (geometry.content_width, geometry.content_height)
    if size == (width, height):
        return frame, geometry
    content = _resize(Image.fromarray(np.ascontiguousarray(frame)), size, (0.0, 0.0, float(width), float(height)))
    return np.asarray(content), geometry


def _resize(image: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float]) -> Image.Image:
    """Resize the part of a picture inside the box; large reductions go through a box filter first."""
    if size == image.size and box == (0.0, 0.0, float(size[0]), float(size[1])):
        return image
    return image.resize(size, Image.Resampling.BILINEAR, box=box, reducing_gap=2.0)


def _turn(image: Image.Image, orientation: int) -> Image.Image:
    """Set a picture upright."""
    return image if orientation == 1 else image.transpose(_TURNS[orientation])


def _to_bands(image: Image.Image) -> Image.Image:
    """Return the picture in a mode of 8-bit bands that a resize may blend: L, RGB, RGBA or CMYK."""
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 255 instead of scaling it, so the high byte is taken here.
        return Image.fromarray((np.asarray(image).astype(np.int64) >> 8).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("LA", "PA", "La", "RGBa"):
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB", "RGBA", "CMYK") else image.convert("RGB")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Return the picture in RGB, transparent parts over white, as a viewer would show it."""
    bands = _to_bands(image)
    if bands.mode == "RGBA":
        white = Image.new("RGBA", bands.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, bands).convert("RGB")
    return bands.convert("RGB")


def _normalise(
    content: NDArray[np.uint8], geometry: Geometry, preprocessing: ImagePreprocessing
) -> NDArray[np.float32]:
    """Write the resized picture and its border into a tensor, each channel by one pass over the bytes."""
    width, height = preprocessing.width, preprocessing.height
    mean = np.array(preprocessing.mean, np.float32)
    scale = np.array(preprocessing.scale, np.float32)
    padding = (np.float32(preprocessing.pad_value) - mean) * scale
    planes = np.empty((3, height, width), np.float32)
    rows = slice(geometry.pad_y, geometry.pad_y + geometry.content_height)
    columns = slice(geometry.pad_x, geometry.pad_x + geometry.content_width)
    for channel in range(3):
        plane = planes[channel]
        if plane[rows, columns].size < plane.size:
            plane.fill(padding[channel])
        source = content[..., channel if preprocessing.colour == "rgb" else 2 - channel]
        np.multiply(source, scale[channel], out=plane[rows, columns])
        if mean[channel]:
            plane[rows, columns] -= mean[channel] * scale[channel]
    if preprocessing.layout == "nhwc":
        return np.ascontiguousarray(planes.transpose(1, 2, 0))[np.newaxis]
    return planes[np.newaxis]
