"""What stands about in a street: lamps, trees, and odd things, many of the size of a person."""

import math

import msgspec
import numpy as np
from numpy.random import Generator

from models.zoo.street.figures import Builder, Figure, Floats, shade, vary
from models.zoo.street.people import CLOTH, lone_bicycle, pick
from models.zoo.street.vehicles import trailer


class Thing(msgspec.Struct, frozen=True):
    """A piece of street furniture in its place."""

    figure: Figure
    x_m: float
    z_m: float
    heading: float


def furnish(
    rng: Generator, road_half: float, pavement: float, junction: tuple[float, float] | None, parking: bool
) -> tuple[list[Thing], Floats]:
    """Set up lamps, trees and whatever else stands on pavements; much of it has the size of a person."""
    things: list[Thing] = []
    lamps: list[tuple[float, float, float]] = []

    def free(z: float) -> bool:
        return junction is None or not junction[0] - 1.0 < z < junction[1] + 1.0

    spacing = float(rng.uniform(18, 30))
    for side in (-1, 1):
        kerb = side * (road_half + 0.45)
        for z in np.arange(float(rng.uniform(7, 16)), 110, spacing):
            if free(z):
                things.append(Thing(_lamp(rng), kerb, float(z), 0.0 if side < 0 else math.pi))
                lamps.append((kerb - side * 1.6, 6.4, float(z)))
        z = float(rng.uniform(6, 14))
        trees = rng.random() < 0.6
        while z < 90:
            if free(z) and trees and rng.random() < 0.6:
                things.append(Thing(_tree(rng), side * (road_half + 0.9), z, float(rng.uniform(0, 6.28))))
            if free(z + 2):
                x = side * (road_half + float(rng.uniform(0.4, pavement - 0.3)))
                things.append(Thing(_oddment(rng), x, z + float(rng.uniform(1, 4)), float(rng.uniform(0, 6.28))))
            z += float(rng.uniform(4, 14))
        if parking and rng.random() < 0.3:
            z = float(rng.uniform(10, 40))
            if free(z):
                things.append(Thing(trailer(rng), side * (road_half - 1.15), z, side * math.pi / 2))
    return things, np.array(lamps).reshape(-1, 3)


def _lamp(rng: Generator) -> Figure:
    """Build a street lamp whose arm reaches along its x axis."""
    made, colour = Builder(), vary(rng, (84, 88, 90), 16)
    made.limb((0, 0, 0), (0, 0, 6.3), 0.07, colour)
    made.limb((0, 0, 6.3), (1.5, 0, 6.6), 0.045, colour)
    made.limb((1.35, 0, 6.52), (1.75, 0, 6.58), 0.09, (210, 210, 200))
    made.limb((0, 0, 0), (0, 0, 0.8), 0.11, shade(colour, 0.8))
    return made.build(colour, (1.8, 0.2, 6.6))


def _tree(rng: Generator) -> Figure:
    """Build a tree."""
    made, leaf = Builder(), vary(rng, (78, 112, 58) if rng.random() < 0.8 else (150, 108, 50), 22)
    tall, wide = float(rng.uniform(2.0, 3.4)), float(rng.uniform(0.8, 1.6))
    made.limb((0, 0, 0), (0, 0, tall), float(rng.uniform(0.08, 0.16)), (88, 70, 56))
    for _ in range(34):
        at = rng.normal(0.0, 0.42, 3) * wide
        light = 0.9 + 0.2 * float(at[2]) / wide + float(rng.uniform(-0.1, 0.1))
        centre = (float(at[0]), float(at[1]), tall + wide * 0.8 + float(at[2]))
        made.ball(centre, wide * float(rng.uniform(0.22, 0.42)), shade(leaf, light), layer=1)
    return made.build(leaf, (wide, wide, tall + 2 * wide))


def _oddment(rng: Generator) -> Figure:
    """Build a bin, post, sign, board, letter box, hydrant, shrub, signal or bicycle without its rider."""
    made, colour = Builder(), pick(rng, CLOTH, 24)
    grey = vary(rng, (96, 98, 100), 18)
    kind = int(rng.integers(10))
    if kind == 0:
        made.limb((0, 0, 0.35), (0, 0, 0.8), 0.3, shade(colour, 0.7))
        made.limb((0, 0, 0.9), (0, 0, 0.95), 0.26, shade(colour, 1.1), layer=1)
    elif kind == 1:
        made.limb((0, 0, 0), (0, 0, float(rng.uniform(0.8, 1.3))), float(rng.uniform(0.07, 0.16)), colour)
        made.ball((0, 0, 1.15), 0.14, shade(grey, 1.3), layer=1)
    elif kind == 2:
        made.limb((0, 0, 0), (0, 0, 2.4), 0.04, grey)
        disc = [(0.04, 0.34 * math.cos(a), 2.2 + 0.34 * math.sin(a)) for a in np.linspace(0, 6.28, 13)[:-1]]
        made.polygon(disc, colour, layer=1)
        made.polygon([(0.06, y * 0.6, 2.2 + (z - 2.2) * 0.6) for _, y, z in disc], (232, 232, 228), layer=2)
    elif kind == 3:
        made.polygon([(0.25, -0.35, 0), (0.25, 0.35, 0), (0, 0.35, 1.1), (0, -0.35, 1.1)], colour)
        made.polygon(
            [(0.2, -0.27, 0.25), (0.2, 0.27, 0.25), (0.03, 0.27, 1.0), (0.03, -0.27, 1.0)], (222, 220, 210), layer=1
        )
    elif kind == 4:
        made.block((-0.25, 0.25), (-0.3, 0.3), (0.4, 1.45), colour)
        made.limb((0, 0, 0), (0, 0, 0.4), 0.1, grey)
    elif kind == 5:
        made.limb((0, 0, 0), (0, 0, 0.65), 0.14, (176, 44, 38))
        made.limb((0, -0.18, 0.5), (0, 0.18, 0.5), 0.08, (176, 44, 38), layer=1)
        made.ball((0, 0, 0.75), 0.13, (176, 44, 38), layer=1)
    elif kind == 6:
        leaf = vary(rng, (70, 104, 56), 20)
        for _ in range(7):
            x, y, z = (float(v) for v in rng.normal(0, 0.2, 3))
            made.ball((x, y, 0.6 + z), 0.3, shade(leaf, 0.85 + 0.6 * z))
        made.block((-0.4, 0.4), (-0.4, 0.4), (0.0, 0.4), (140, 110, 90), layer=1)
    elif kind == 7:
        made.limb((0, 0, 0), (0, 0, 2.6), 0.06, (50, 54, 54))
        made.block((-0.12, 0.12), (-0.16, 0.16), (2.3, 3.2), (34, 36, 36), layer=1)
        for z, lamp in ((3.05, (210, 50, 40)), (2.75, (70, 60, 30)), (2.45, (30, 70, 40))):
            made.ball((0.13, 0, z), 0.09, lamp, layer=2)
    elif kind == 8:
        made.block((-0.5, 0.5), (-0.7, 0.7), (0.15, 1.25), shade(colour, 0.8))
        made.block((-0.52, 0.52), (-0.72, 0.72), (1.25, 1.35), shade(grey, 0.6), layer=1)
    else:
        return lone_bicycle(colour)
    return made.build(colour, (0.6, 0.6, 1.2))
