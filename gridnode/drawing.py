"""Boxes, labels and colours on a picture. Owns how detections look; Pillow is needed, and imported on use only."""

import io
import os
from typing import TYPE_CHECKING, Any, Final

from gridnode.control import Buffer
from gridnode.results import Classification, Detection, Result

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont, ImageFont

    Picture = Image | NDArray[Any] | Buffer | str | os.PathLike[str]
    Font = FreeTypeFont | ImageFont

Colour = tuple[int, int, int]

PALETTE: Final[tuple[Colour, ...]] = (
    (0, 158, 227),
    (255, 138, 0),
    (46, 189, 89),
    (235, 64, 120),
    (150, 105, 240),
    (250, 200, 30),
    (0, 190, 180),
    (205, 110, 60),
)
"""One colour a class, told apart by hue and by lightness, readable on asphalt and on sky."""

_TEXT_HEIGHT: Final = 1 / 28
"""Label height as a part of the frame's height: 13 pixels at 640x360."""
_FILL: Final = 36
"""Opacity of a box's inside, of 255: shows which box is which where they overlap."""


def annotate(picture: "Picture", result: Result) -> "Image":
    """Draw a result on a copy of its frame.

    Parameters
    ----------
    picture : PIL image, ndarray, bytes-like or path
        The frame that was sent; another size is allowed, boxes are scaled to it.
    result : Result
        Of that frame.

    Returns
    -------
    PIL.Image.Image
        RGB, of the picture's size: a box and label for each detection, or the best classes in a corner.

    Raises
    ------
    ModuleNotFoundError
        Pillow is not installed.
    """
    image = open_picture(picture).convert("RGB")
    from PIL import Image, ImageDraw

    unit = max(1, round(min(image.size) / 240))
    font = _font(max(10, round(image.height * _TEXT_HEIGHT)))
    scale = _scale(image, result)
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    ranked = sorted(result.detections, key=lambda detection: detection.score)
    for detection in ranked:
        _draw_box(draw, detection, scale=scale, unit=unit)
    taken: list[tuple[float, float, float, float]] = []
    for detection in reversed(ranked):
        taken.append(_draw_label(draw, detection, scale=scale, unit=unit, font=font, taken=taken, size=image.size))
    _draw_classes(draw, result.classes[:3], unit=unit, font=font)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def open_picture(picture: "Picture") -> "Image":
    """Return anything that may be sent as a picture as an upright PIL image."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ModuleNotFoundError("drawing needs Pillow; pip install pillow", name="PIL") from error
    if isinstance(picture, Image.Image):
        return picture
    if isinstance(picture, str | os.PathLike):
        with Image.open(picture) as image:
            return ImageOps.exif_transpose(image)
    if isinstance(picture, bytes | bytearray | memoryview):
        return ImageOps.exif_transpose(Image.open(io.BytesIO(picture)))
    return Image.fromarray(picture)


def colour_of(class_index: int) -> Colour:
    """Return the colour of a class; classes far apart may share one."""
    return PALETTE[class_index % len(PALETTE)]


def _scale(image: "Image", result: Result) -> tuple[float, float]:
    """Return pixels of this picture per pixel of the frame the boxes refer to."""
    width, height = result.image_size
    return (image.width / width, image.height / height) if width and height else (1.0, 1.0)


def _draw_box(draw: "ImageDraw", detection: Detection, *, scale: tuple[float, float], unit: int) -> None:
    """Draw a translucent box with a dark rim outside its coloured one, so that it shows on any ground."""
    x0, y0, x1, y1 = _corners(detection, scale)
    colour = colour_of(detection.class_index)
    draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline=(0, 0, 0, 120), width=unit + 2)
    draw.rectangle((x0, y0, x1, y1), fill=(*colour, _FILL), outline=(*colour, 255), width=unit + 1)


def _draw_label(
    draw: "ImageDraw",
    detection: Detection,
    *,
    scale: tuple[float, float],
    unit: int,
    font: "Font",
    taken: list[tuple[float, float, float, float]],
    size: tuple[int, int],
) -> tuple[float, float, float, float]:
    """Write class and score above the box, below or inside it where there is no room; return the label's place."""
    text = f"{detection.class_name} {detection.score:.0%}"
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4 * unit + 2, bottom - top + 2 * unit + 2
    x0, y0, _, y1 = _corners(detection, scale)
    x = min(max(0.0, x0), max(0.0, size[0] - width))
    options = [y for y in (y0 - height, y1, y0, y1 - height) if 0 <= y <= size[1] - height] or [0.0]
    free = (y for y in options if not any(_overlap((x, y, x + width, y + height), other) for other in taken))
    y = next(free, options[0])
    colour = colour_of(detection.class_index)
    draw.rounded_rectangle((x, y, x + width, y + height), radius=unit + 1, fill=(*colour, 235))
    ink = (0, 0, 0, 255) if _is_light(colour) else (255, 255, 255, 255)
    draw.text((x + 2 * unit + 1 - left, y + unit + 1 - top), text, font=font, fill=ink)
    return (x, y, x + width, y + height)


def _draw_classes(draw: "ImageDraw", classes: tuple[Classification, ...], *, unit: int, font: "Font") -> None:
    """Write the best classes of a classified picture into its upper left corner."""
    y = 4.0 * unit
    for best in classes:
        text = f"{best.class_name} {best.score:.0%}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        box = (4.0 * unit, y, 4.0 * unit + right - left + 6 * unit, y + bottom - top + 4 * unit)
        draw.rounded_rectangle(box, radius=2 * unit, fill=(0, 0, 0, 170))
        draw.text((box[0] + 3 * unit - left, y + 2 * unit - top), text, font=font, fill=(255, 255, 255, 255))
        y = box[3] + 2 * unit


def _corners(detection: Detection, scale: tuple[float, float]) -> tuple[float, float, float, float]:
    """Return the box in pixels of the picture drawn on, in order even where a model mixes corners up."""
    x0, x1 = sorted((detection.box.x0 * scale[0], detection.box.x1 * scale[0]))
    y0, y1 = sorted((detection.box.y0 * scale[1], detection.box.y1 * scale[1]))
    return x0, y0, x1, y1


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Whether two rectangles share an area."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _is_light(colour: Colour) -> bool:
    """Whether black text reads better on a colour than white (Rec. 601 luma)."""
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140


def _font(size: int) -> "Font":
    """Return Pillow's own font, which every installation has."""
    from PIL import ImageFont

    return ImageFont.load_default(size)
