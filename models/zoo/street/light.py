"""Light, weather and the camera's own faults, laid over a street drawn in plain white light.

All passes work on bytes; the light itself is kept at a coarse size and enlarged, which also makes shadows soft.
"""

import msgspec
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from models.zoo.street.figures import Colour
from models.zoo.street.scenery import COARSE, Street

# Sun's height as a share against the colour of the light on things, of the low sky and of the high sky.
_HOURS = np.array([0.0, 0.25, 0.5, 0.75, 1.0])
_AMBIENT = np.array([[0.3, 0.32, 0.42], [0.44, 0.41, 0.48], [0.8, 0.66, 0.58], [1.0, 0.94, 0.86], [1.04, 1.04, 1.02]])
_SKY_LOW = np.array([[0.1, 0.11, 0.18], [0.55, 0.36, 0.34], [1.0, 0.7, 0.48], [1.0, 0.95, 0.88], [1.0, 1.0, 1.0]])
_SKY_HIGH = np.array([[0.06, 0.07, 0.14], [0.24, 0.22, 0.36], [0.62, 0.56, 0.66], [0.92, 0.94, 1.0], [1.0, 1.0, 1.0]])

GRAIN_SIGMAS = (1.5, 3.0, 5.0, 8.0, 12.0)
"""Strengths of sensor noise that are kept ready, in grey levels."""


class Light(msgspec.Struct, frozen=True, kw_only=True):
    """Time of day and weather."""

    sun: float
    """0 at night, 0.5 at dusk, 1 at noon."""
    shadow: float = 0.0
    """Strength of cast shadows, 0 under clouds, 1 in full sun."""
    sun_x: float = 0.0
    """Length of shadows to the right per metre of height; below 0 to the left."""
    sun_z: float = 0.0
    """Length of shadows away from the camera per metre of height."""
    wet: bool = False
    """Whether the road mirrors lamps."""
    rain: float = 0.0
    """0..1."""
    gain: float = 1.0
    """Exposure of the camera."""

    @property
    def lamps(self) -> float:
        """Say how far lamps are turned on, 0..1."""
        return min(1.0, max(0.0, (0.62 - self.sun) / 0.25))


class Grain:
    """Sensor noise and rain drawn beforehand, so that a frame costs two additions.

    Parameters
    ----------
    rng : Generator
        Draws the noise.
    size : tuple of int
        Width and height of the frames, in pixels.
    """

    def __init__(self, rng: Generator, size: tuple[int, int]) -> None:
        width, height = size[0] + 64, size[1] + 64
        shared = rng.standard_normal((height, width, 1), dtype=np.float32)
        own = rng.standard_normal((height, width, 3), dtype=np.float32)
        base = 0.8 * shared + 0.6 * own
        self._size = size
        self._tiles = [Image.fromarray((128 + base * s).clip(0, 255).astype(np.uint8)) for s in GRAIN_SIGMAS]
        self._rain = [_rain(rng, (width, height)) for _ in range(4)]

    def add(self, frame: Image.Image, rng: Generator, sigma: float) -> Image.Image:
        """Return the frame with noise of about that many grey levels."""
        tile = self._tiles[int(np.argmin(np.abs(np.array(GRAIN_SIGMAS) - sigma)))]
        return ImageChops.add(frame, self._cut(tile, rng), 1, -128)

    def rain(self, frame: Image.Image, rng: Generator, strength: float) -> Image.Image:
        """Draw rain over the frame, in place, and return it."""
        mask = self._cut(self._rain[int(rng.integers(len(self._rain)))], rng)
        grey = int(120 + 90 * strength)
        frame.paste((grey, grey, grey + 6), (0, 0), mask.point([int(v * strength * 0.55) for v in range(256)]))
        return frame

    def _cut(self, tile: Image.Image, rng: Generator) -> Image.Image:
        """Cut a frame's size from a random place of a tile."""
        x, y = (int(value) for value in rng.integers(0, 64, 2))
        return tile.crop((x, y, x + self._size[0], y + self._size[1]))


def _rain(rng: Generator, size: tuple[int, int]) -> Image.Image:
    """Draw streaks of rain."""
    layer = Image.new("L", size)
    pen = ImageDraw.Draw(layer)
    slant = float(rng.normal(0, 0.1))
    for _ in range(size[0] * size[1] // 420):
        x, y = float(rng.uniform(0, size[0])), float(rng.uniform(-20, size[1]))
        length = float(rng.uniform(5, 22))
        pen.line((x, y, x + slant * length, y + length), fill=int(rng.integers(70, 220)))
    return layer


def _halo(colour: Colour, power: float) -> Image.Image:
    """Draw the glow around a lamp."""
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    strength = np.clip(1 - np.hypot(x, y), 0, 1) ** power
    return Image.fromarray((strength[..., None] * np.array(colour)).astype(np.uint8))


HALOS = {
    "head": _halo((255, 246, 220), 2.4),
    "tail": _halo((255, 44, 30), 2.2),
    "lamp": _halo((255, 214, 150), 3.0),
}


STREAKS = {kind: halo.point([value // 3 for value in range(256)] * 3) for kind, halo in HALOS.items()}


def base_light(street: Street, light: Light) -> NDArray[np.float32]:
    """Return the light on everything, without what moves.

    Parameters
    ----------
    street : Street
        Whose sky and lamps give light.
    light : Light
        Time of day and weather.

    Returns
    -------
    ndarray, shape (height / COARSE, width / COARSE, 3), float32
        Factors, 1 for white light.
    """
    rows, columns = street.sky.shape
    ambient, low, high = (
        np.array([np.interp(light.sun, _HOURS, table[:, channel]) for channel in range(3)], np.float32)
        for table in (_AMBIENT, _SKY_LOW, _SKY_HIGH)
    )
    horizon = max(1.0, street.camera.horizon_px / COARSE)
    share = np.clip(np.arange(rows, dtype=np.float32) / horizon, 0, 1)[:, None]
    sky = (high + (low - high) * share**1.5)[:, None]
    y, x = np.mgrid[-1 : 1 : complex(rows), -1 : 1 : complex(columns)].astype(np.float32)
    vignette = (1.0 - 0.16 * (x * x + y * y) * 0.7)[..., None]
    covered = street.sky[..., None]
    factors = ambient * (1 - covered) + sky * covered + street.lamplight * (light.lamps * (1 - 0.5 * ambient.mean()))
    result: NDArray[np.float32] = (factors * vignette * light.gain).astype(np.float32)
    return result


def glow(frame: Image.Image, kind: str, x: float, y: float, radius: float) -> None:
    """Add the glow of a lamp at a pixel, in place."""
    size = max(1, round(2 * radius))
    _add(frame, HALOS[kind].resize((size, size), Image.Resampling.BILINEAR), round(x - radius), round(y - radius))


def streak(frame: Image.Image, kind: str, x: float, y: float, radius: float, ground: Image.Image) -> None:
    """Add the image of a lamp in a wet road, in place, where the mask of the ground allows."""
    halo = STREAKS[kind].resize((max(1, round(2 * radius)), max(1, round(7 * radius))), Image.Resampling.BILINEAR)
    _add(frame, halo, round(x - radius), round(y), ground)


def _add(frame: Image.Image, light: Image.Image, left: int, top: int, mask: Image.Image | None = None) -> None:
    """Add a picture to a part of the frame, in place."""
    x0, y0 = max(0, left), max(0, top)
    x1, y1 = min(frame.width, left + light.width), min(frame.height, top + light.height)
    if x0 < x1 and y0 < y1:
        part = light.crop((x0 - left, y0 - top, x1 - left, y1 - top))
        area = (x0, y0, x1, y1)
        frame.paste(ImageChops.add(frame.crop(area), part), (x0, y0), mask.crop(area) if mask is not None else None)
