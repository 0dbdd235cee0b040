"""Cars, vans, buses and lorries, and a trailer that is none of them.

A body is a side profile drawn through its width and narrowed above the waist, so that windscreen, bonnet and roof come
out as one polygon each.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import msgspec
from numpy.random import Generator

from models.zoo.street.figures import Builder, Colour, Figure, shade, vary

PAINT: tuple[Colour, ...] = (
    (225, 226, 226),
    (180, 182, 186),
    (110, 113, 118),
    (42, 44, 48),
    (24, 25, 28),
    (140, 28, 30),
    (36, 62, 118),
    (70, 110, 150),
    (46, 78, 58),
    (200, 186, 150),
    (214, 150, 40),
    (120, 74, 48),
)
GLASS: Colour = (58, 72, 86)
RUBBER: Colour = (26, 26, 28)
RIM: Colour = (140, 142, 146)
LAMP: Colour = (236, 236, 224)
TAIL: Colour = (176, 26, 24)
PLATE: Colour = (226, 226, 214)

Point = tuple[float, float, float]
Kind = Literal["hatchback", "saloon", "estate", "suv", "van", "pickup", "bus", "lorry"]
KINDS: tuple[tuple[Kind, float], ...] = (
    ("hatchback", 0.24),
    ("saloon", 0.2),
    ("estate", 0.12),
    ("suv", 0.16),
    ("van", 0.11),
    ("pickup", 0.04),
    ("bus", 0.05),
    ("lorry", 0.08),
)


class Shape(msgspec.Struct, frozen=True):
    """Side profile of a body, as shares of length and height, front first."""

    length_m: float
    width_m: float
    height_m: float
    waist: float
    """Height where the glass begins, as a share."""
    outline: tuple[tuple[float, float], ...]
    """Points (x, z) from the front's foot over the roof to the rear's foot; x is 0 at the front and 1 at the rear."""
    glass: tuple[int, ...]
    """Segments of the outline that are windscreens; segment i joins points i and i + 1."""
    windows: tuple[tuple[float, float], ...]
    """Side windows, each from and to a share of the length, cut by the roof line."""


_SHAPES: dict[str, Shape] = {
    "hatchback": Shape(
        4.0,
        1.75,
        1.48,
        0.6,
        (
            (0.0, 0.16),
            (0.0, 0.44),
            (0.03, 0.53),
            (0.26, 0.64),
            (0.42, 0.97),
            (0.6, 1.0),
            (0.88, 0.94),
            (0.97, 0.6),
            (1.0, 0.4),
            (1.0, 0.18),
        ),
        (3, 6),
        ((0.36, 0.58), (0.6, 0.84)),
    ),
    "saloon": Shape(
        4.6,
        1.8,
        1.44,
        0.62,
        (
            (0.0, 0.16),
            (0.0, 0.46),
            (0.03, 0.55),
            (0.28, 0.66),
            (0.43, 0.98),
            (0.56, 1.0),
            (0.7, 0.97),
            (0.84, 0.68),
            (0.98, 0.62),
            (1.0, 0.44),
            (1.0, 0.18),
        ),
        (3, 6),
        ((0.36, 0.54), (0.56, 0.76)),
    ),
    "estate": Shape(
        4.65,
        1.8,
        1.48,
        0.61,
        (
            (0.0, 0.16),
            (0.0, 0.46),
            (0.03, 0.54),
            (0.27, 0.65),
            (0.41, 0.97),
            (0.6, 1.0),
            (0.92, 0.94),
            (0.98, 0.6),
            (1.0, 0.42),
            (1.0, 0.18),
        ),
        (3, 6),
        ((0.35, 0.53), (0.55, 0.71), (0.73, 0.9)),
    ),
    "suv": Shape(
        4.5,
        1.88,
        1.72,
        0.6,
        (
            (0.0, 0.18),
            (0.0, 0.5),
            (0.04, 0.58),
            (0.25, 0.64),
            (0.38, 0.96),
            (0.6, 1.0),
            (0.92, 0.96),
            (0.98, 0.6),
            (1.0, 0.46),
            (1.0, 0.2),
        ),
        (3, 6),
        ((0.33, 0.53), (0.55, 0.73), (0.75, 0.9)),
    ),
    "van": Shape(
        5.2,
        1.95,
        2.2,
        0.5,
        (
            (0.0, 0.13),
            (0.0, 0.38),
            (0.03, 0.46),
            (0.12, 0.52),
            (0.24, 0.94),
            (0.3, 1.0),
            (0.97, 1.0),
            (0.99, 0.5),
            (1.0, 0.36),
            (1.0, 0.14),
        ),
        (3,),
        ((0.19, 0.33),),
    ),
    "pickup": Shape(
        5.2,
        1.9,
        1.75,
        0.6,
        (
            (0.0, 0.2),
            (0.0, 0.5),
            (0.03, 0.58),
            (0.24, 0.63),
            (0.35, 0.97),
            (0.45, 1.0),
            (0.58, 0.98),
            (0.61, 0.62),
            (1.0, 0.6),
            (1.0, 0.22),
        ),
        (3, 6),
        ((0.3, 0.44), (0.46, 0.57)),
    ),
    "bus": Shape(
        10.5,
        2.5,
        3.05,
        0.42,
        (
            (0.0, 0.1),
            (0.0, 0.3),
            (0.003, 0.36),
            (0.012, 0.92),
            (0.03, 1.0),
            (0.99, 1.0),
            (1.0, 0.9),
            (1.0, 0.45),
            (1.0, 0.12),
        ),
        (2, 6),
        ((0.02, 0.1), (0.13, 0.26), (0.28, 0.41), (0.43, 0.56), (0.58, 0.71), (0.73, 0.86), (0.88, 0.97)),
    ),
    "lorry": Shape(
        2.0,
        2.35,
        2.7,
        0.55,
        ((0.0, 0.15), (0.0, 0.45), (0.03, 0.55), (0.12, 0.95), (0.25, 1.0), (0.98, 1.0), (1.0, 0.2)),
        (2,),
        ((0.2, 0.75),),
    ),
}


def vehicle(rng: Generator) -> Figure:
    """Draw a vehicle: its kind, its paint, its proportions."""
    kinds = [kind for kind, _ in KINDS]
    kind = kinds[int(rng.choice(len(kinds), p=[share for _, share in KINDS]))]
    base = _SHAPES[kind]
    stretch = float(rng.uniform(0.94, 1.07))
    shape = msgspec.structs.replace(
        base, length_m=base.length_m * stretch, height_m=base.height_m * float(rng.uniform(0.96, 1.06))
    )
    paint = vary(rng, PAINT[int(rng.integers(len(PAINT)))], 14)
    if kind in ("van", "lorry") and rng.random() < 0.5:
        paint = vary(rng, PAINT[0], 10)
    if kind == "lorry":
        return _lorry(rng, shape, paint)
    made = Builder()
    _body(made, shape, paint, x_front_m=shape.length_m / 2)
    if kind == "bus":
        band = shade(vary(rng, (200, 160, 40), 60), 1.0)
        for side in (-1, 1):
            y = side * (shape.width_m / 2 + 0.01)
            l2, h = shape.length_m / 2, shape.height_m
            corners = [(-l2, y, 0.2 * h), (l2, y, 0.2 * h), (l2, y, 0.3 * h), (-l2, y, 0.3 * h)]
            made.polygon(corners, band, outward=(0, side, 0), layer=1)
    return _finish(made, shape.length_m, shape.width_m, shape.height_m, paint, wheel_m=0.5 if kind == "bus" else 0.34)


def trailer(rng: Generator) -> Figure:
    """Draw a parked box trailer: wheels and a drawbar, but no windows, lamps or engine. It is not a vehicle."""
    length, width, height = float(rng.uniform(2.0, 4.0)), float(rng.uniform(1.3, 2.0)), float(rng.uniform(0.9, 2.0))
    paint = vary(rng, ((196, 190, 176), (110, 124, 112), (150, 96, 60), (90, 94, 104))[int(rng.integers(4))], 20)
    made = Builder()
    made.block((-length / 2, length / 2), (-width / 2, width / 2), (0.5, 0.5 + height), paint)
    made.limb((length / 2, 0.0, 0.5), (length / 2 + 1.1, 0.0, 0.45), 0.05, (60, 60, 62))
    made.limb((length / 2 + 1.0, 0.0, 0.45), (length / 2 + 1.0, 0.0, 0.05), 0.04, (60, 60, 62))
    for side in (-1, 1):
        _wheel(made, 0.0, side * (width / 2 + 0.03), 0.3, side)
    return made.build(paint, (length, width, height + 0.5))


def _lorry(rng: Generator, cab: Shape, paint: Colour) -> Figure:
    """Build a cab with a box behind it."""
    cargo = float(rng.uniform(3.5, 6.5))
    length = cab.length_m + 0.25 + cargo
    tall = float(rng.uniform(2.9, 3.6))
    made = Builder()
    _body(made, cab, paint, x_front_m=length / 2)
    rear = -length / 2
    colour = vary(
        rng, ((232, 232, 228), (200, 204, 210), (60, 90, 140), (170, 60, 50), (90, 120, 90))[int(rng.integers(5))], 12
    )
    w = cab.width_m / 2 + 0.05
    made.block((rear, rear + cargo), (-w, w), (0.85, tall), colour)
    made.block((rear + 0.1, length / 2 - 0.4), (-w + 0.25, w - 0.25), (0.45, 0.85), (48, 48, 52))
    for side in (-1, 1):
        made.polygon(
            [
                (rear + cargo * a, side * (w + 0.01), tall * b)
                for a, b in ((0.2, 0.5), (0.8, 0.5), (0.8, 0.72), (0.2, 0.72))
            ],
            vary(rng, colour, 50),
            outward=(0, side, 0),
            layer=1,
        )
    return _finish(made, length, cab.width_m, tall, paint, wheel_m=0.48, tail_m=0.75)


def _body(made: Builder, shape: Shape, paint: Colour, *, x_front_m: float) -> None:
    """Add a body whose front is at the given x."""
    length, height = shape.length_m, shape.height_m

    def spot(x: float, z: float, side: float, out: float = 0.0) -> tuple[float, float, float]:
        narrow = 1.0 - 0.17 * max(0.0, z - shape.waist) / (1.0 - shape.waist) if length > 3 and height < 2 else 1.0
        return x_front_m - x * length, side * (shape.width_m / 2 * narrow + out), z * height

    outline = shape.outline
    for number, ((xa, za), (xb, zb)) in enumerate(pairwise(outline)):
        run, rise = (xb - xa) * length, (zb - za) * height
        size = math.hypot(run, rise) or 1.0
        # Walking from the front's foot over the roof to the rear, outward is to the left of the way.
        outward = (rise / size, 0.0, run / size)
        light = 0.86 + 0.3 * max(0.0, outward[2]) - 0.08 * (outward[0] < -0.5)
        corners = [spot(xa, za, -1), spot(xa, za, 1), spot(xb, zb, 1), spot(xb, zb, -1)]
        made.polygon(corners, shade(paint, light), outward=outward)
        if number in shape.glass:
            inner = [
                spot(xa + (xb - xa) * s, za + (zb - za) * s, side * 0.88)
                for s, side in ((0.08, -1), (0.08, 1), (0.92, 1), (0.92, -1))
            ]
            made.polygon(
                [(x + outward[0] * 0.02, y, z) for x, y, z in inner],
                shade(GLASS, light + 0.1),
                outward=outward,
                layer=1,
            )
    for side in (-1, 1):
        light = 1.0 if side < 0 else 0.78
        made.polygon([spot(x, z, side) for x, z in outline], shade(paint, light), outward=(0, side, 0))
        sill = [spot(x, z, side, 0.01) for x, z in ((0.02, 0.16), (0.98, 0.16), (0.98, 0.24), (0.02, 0.24))]
        made.polygon(sill, shade(paint, light * 0.55), outward=(0, side, 0), layer=1)
        for start, end in shape.windows:
            _window(made, shape, spot, start, end, side, shade(GLASS, 0.8 + 0.3 * light))


def _window(
    made: Builder, shape: Shape, spot: Callable[..., Point], start: float, end: float, side: int, colour: Colour
) -> None:
    """Add a side window between two shares of the length, as high as the roof allows."""
    low = shape.waist + 0.03

    def roof(x: float) -> float:
        for (xa, za), (xb, zb) in pairwise(shape.outline):
            if xa <= x <= xb and xb > xa and min(za, zb) >= shape.waist - 0.1:
                return za + (zb - za) * (x - xa) / (xb - xa)
        return 1.0

    tops = [(x, max(low, min(roof(x) - 0.06, 0.93))) for x in (start, (start + end) / 2, end)]
    corners = [(start, low), *tops, (end, low)]
    made.polygon([spot(x, z, side, 0.012) for x, z in corners], colour, outward=(0, side, 0), layer=1)


def _finish(
    made: Builder,
    length: float,
    width: float,
    height: float,
    paint: Colour,
    *,
    wheel_m: float,
    tail_m: float | None = None,
) -> Figure:
    """Add wheels, lamps and plates."""
    w2, front, rear = width / 2, length / 2, -length / 2
    for side in (-1, 1):
        for x in (front - 0.19 * min(length, 5.5), rear + 0.2 * min(length, 5.5)):
            _wheel(made, x, side * (w2 + 0.015), wheel_m, side)
    heads, tails = [], []
    z = 0.42 * min(height, 1.6)
    tail_z = tail_m if tail_m is not None else 0.52 * min(height, 1.7)
    for side in (-1, 1):
        a, b = side * 0.55 * w2, side * 0.95 * w2
        head = [(front + 0.02, a, z), (front + 0.02, b, z), (front - 0.02, b, z + 0.16), (front + 0.02, a, z + 0.13)]
        made.polygon(head, LAMP, outward=(1, 0, 0), layer=2)
        tail = [
            (rear - 0.02, side * 0.7 * w2, tail_z),
            (rear - 0.02, b, tail_z),
            (rear - 0.02, b, tail_z + 0.2),
            (rear - 0.02, side * 0.7 * w2, tail_z + 0.16),
        ]
        made.polygon(tail, TAIL, outward=(-1, 0, 0), layer=2)
        heads.append((front, side * 0.75 * w2, z + 0.07))
        tails.append((rear, side * 0.82 * w2, tail_z + 0.1))
    for x, out in ((front + 0.02, 1), (rear - 0.02, -1)):
        plate = [(x, -0.26, 0.42), (x, 0.26, 0.42), (x, 0.26, 0.54), (x, -0.26, 0.54)]
        made.polygon(plate, PLATE, outward=(out, 0, 0), layer=2)
        dark = [(x, -0.48 * w2, 0.28), (x, 0.48 * w2, 0.28), (x, 0.45 * w2, z + 0.05), (x, -0.45 * w2, z + 0.05)]
        if out > 0:
            made.polygon(dark, shade(paint, 0.35), outward=(out, 0, 0), layer=1)
    return made.build(paint, (length, width, height), headlights=tuple(heads), taillights=tuple(tails))


def _wheel(made: Builder, x: float, y: float, radius_m: float, side: int) -> None:
    """Add a wheel that is seen from its side."""
    for radius, colour, layer in ((radius_m, RUBBER, 2), (radius_m * 0.6, RIM, 3), (radius_m * 0.18, RUBBER, 4)):
        turns = [2 * math.pi * step / 14 for step in range(14)]
        corners = [(x + radius * math.cos(a), y, radius_m + radius * math.sin(a)) for a in turns]
        made.polygon(corners, colour, outward=(0, side, 0), layer=layer)
