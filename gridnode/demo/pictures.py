"""The demo's pictures: a few dozen answers drawn on their frames, with a line that says who found them and how fast."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from gridnode.demo.film import Film
from gridnode.demo.tally import Answered
from gridnode.drawing import annotate
from gridnode.errors import GridError

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES_MAX: Final = 36
SHOWN_SCORE_MIN: Final = 0.35
"""Least likely detection drawn; the answers hold less likely ones too, to measure average precision."""
_BAR: Final = (18, 22, 28)
_INK: Final = (235, 238, 242)


class PictureError(GridError):
    """The pictures could not be written."""


def choose(answered: Sequence[Answered], count: int = PICTURES_MAX) -> list[Answered]:
    """Choose answers evenly over the demo's time."""
    ranked = sorted(answered, key=lambda item: item.at_s)
    if len(ranked) <= count:
        return ranked
    return [ranked[round(place * (len(ranked) - 1) / (count - 1))] for place in range(count)]


def write_pictures(folder: Path, answered: Sequence[Answered], films: Sequence[Film]) -> int:
    """Draw chosen answers into a folder, whose pictures of an earlier demo go; returns how many. Blocks for a second.

    Raises
    ------
    PictureError
        The folder cannot be written.
    """
    try:
        _clear(folder)
        chosen = choose(answered)
        for number, item in enumerate(chosen):
            _draw(item, films[item.frame.film].frames[item.frame.place]).save(
                folder / f"frame-{number:02d}-{item.result.node}.jpg", quality=88
            )
    except OSError as error:
        raise PictureError(f"pictures cannot be written to {folder}: {error}; choose another folder") from error
    return len(chosen)


def _clear(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("frame-[0-9][0-9]-*.jpg"):
        path.unlink()
    if shutil.disk_usage(folder).free < PICTURES_MAX * 200_000:
        raise OSError("no space left")


def _draw(item: Answered, jpeg: bytes) -> "Image":
    from PIL import Image, ImageDraw, ImageFont

    likely = tuple(d for d in item.result.detections if d.score >= SHOWN_SCORE_MIN)
    picture = annotate(jpeg, msgspec.structs.replace(item.result, detections=likely))
    font = ImageFont.load_default(13)
    whole = Image.new("RGB", (picture.width, picture.height + 24), _BAR)
    whole.paste(picture, (0, 0))
    draw = ImageDraw.Draw(whole)
    text = caption(item)
    draw.text((8, picture.height + 4), text, font=font, fill=_INK)
    return whole


def caption(item: Answered) -> str:
    """Say who answered, by which way and how fast."""
    hops = item.result.hops
    way = "entered here" if hops == 0 else f"{hops} hop" + ("s" if hops > 1 else "")
    return f"{item.result.node}   {way}   {item.took_s * 1e3:.0f} ms   {item.result.model}"
