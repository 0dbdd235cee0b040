"""Pedestrians and cyclists: how they look and how they move."""

import math
from typing import Literal

import msgspec
from numpy.random import Generator

from models.zoo.street.figures import Builder, Colour, Figure, shade, vary

SKIN: tuple[Colour, ...] = ((236, 200, 176), (214, 168, 136), (168, 118, 86), (116, 78, 56), (82, 56, 42))
CLOTH: tuple[Colour, ...] = (
    (38, 40, 46),
    (58, 60, 66),
    (30, 38, 68),
    (120, 122, 126),
    (190, 188, 182),
    (226, 224, 218),
    (150, 36, 40),
    (44, 84, 140),
    (52, 96, 60),
    (196, 150, 60),
    (112, 70, 50),
    (150, 90, 130),
    (230, 120, 40),
    (200, 220, 40),
)
HAIR: tuple[Colour, ...] = ((28, 24, 22), (60, 42, 30), (110, 80, 50), (170, 140, 90), (150, 150, 150))

WHEEL_RADIUS_M = 0.34


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """One person."""

    height_m: float
    girth: float
    """Width of body and limbs, 1 for an ordinary person."""
    skin: Colour
    hair: Colour
    top: Colour
    bottom: Colour
    shoes: Colour
    garment: Literal["trousers", "coat", "skirt"]
    luggage: Literal["none", "backpack", "bag"]
    hat: bool
    umbrella: Colour | None
    bicycle: Colour


def pick(rng: Generator, colours: tuple[Colour, ...], spread: int = 12) -> Colour:
    """Draw one of the colours and vary it."""
    return vary(rng, colours[int(rng.integers(len(colours)))], spread)


def person(rng: Generator, *, umbrella_share: float = 0.0) -> Look:
    """Draw a person's looks; the share of people under an umbrella depends on the weather, 0..1."""
    child = rng.random() < 0.12
    garment: Literal["trousers", "coat", "skirt"] = "trousers"
    if rng.random() < 0.35:
        garment = "coat" if rng.random() < 0.6 else "skirt"
    luggage: Literal["none", "backpack", "bag"] = "none"
    if rng.random() < 0.4:
        luggage = "backpack" if rng.random() < 0.5 else "bag"
    return Look(
        height_m=float(rng.uniform(1.05, 1.45) if child else rng.normal(1.72, 0.09)),
        girth=float(rng.uniform(0.85, 1.3)),
        skin=pick(rng, SKIN),
        hair=pick(rng, HAIR),
        top=pick(rng, CLOTH),
        bottom=pick(rng, CLOTH[:8]),
        shoes=pick(rng, CLOTH[:6]),
        garment=garment,
        luggage=luggage,
        hat=bool(rng.random() < 0.2),
        umbrella=pick(rng, CLOTH) if rng.random() < umbrella_share else None,
        bicycle=pick(rng, CLOTH),
    )


def pedestrian(look: Look, stride: float) -> Figure:
    """Build a walking or standing person.

    Parameters
    ----------
    look : Look
        The person.
    stride : float
        Phase of the walk, in radians; NaN for one who stands.

    Returns
    -------
    Figure
        Facing its x axis.
    """
    h, g = look.height_m, look.girth
    swing = 0.0 if math.isnan(stride) else math.sin(stride)
    made = Builder()
    for side, phase in ((-1.0, swing), (1.0, -swing)):
        lean = 0.5 * phase
        hip = (0.0, side * 0.05 * h, 0.5 * h)
        knee = (0.25 * h * math.sin(lean + 0.12), side * 0.055 * h, 0.5 * h - 0.25 * h * math.cos(lean))
        bend = lean - (0.55 * max(0.0, -phase) if phase < 0 else 0.05)
        foot = (knee[0] + 0.24 * h * math.sin(bend), knee[1], max(0.025 * h, knee[2] - 0.24 * h * math.cos(bend)))
        made.limb(hip, knee, 0.05 * h * g, look.bottom)
        made.limb(knee, foot, 0.038 * h * g, shade(look.bottom, 0.9))
        made.limb(foot, (foot[0] + 0.07 * h, foot[1], foot[2]), 0.024 * h, look.shoes)
        shoulder = (0.0, side * 0.105 * h * g, 0.8 * h)
        swung = -0.45 * phase
        elbow = (0.17 * h * math.sin(swung), side * 0.13 * h * g, 0.8 * h - 0.17 * h * math.cos(swung))
        hand = (elbow[0] + 0.15 * h * math.sin(swung + 0.35), elbow[1], elbow[2] - 0.15 * h * math.cos(swung + 0.35))
        if look.umbrella is not None and side > 0:
            elbow, hand = (0.08 * h, 0.1 * h, 0.66 * h), (0.14 * h, 0.05 * h, 0.76 * h)
        made.limb(shoulder, elbow, 0.034 * h * g, shade(look.top, 0.85))
        made.limb(elbow, hand, 0.028 * h * g, shade(look.top, 0.8))
        made.ball(hand, 0.026 * h, look.skin)
    low = {"trousers": 0.5, "coat": 0.34, "skirt": 0.5}[look.garment]
    made.limb(
        (0.0, 0.0, low * h), (0.0, 0.0, 0.74 * h), 0.088 * h * g, look.top, layer=1 if look.garment == "coat" else 0
    )
    made.limb((0.0, -0.075 * h * g, 0.785 * h), (0.0, 0.075 * h * g, 0.785 * h), 0.05 * h * g, look.top, layer=1)
    if look.garment == "skirt":
        made.limb((0.0, 0.0, 0.36 * h), (0.0, 0.0, 0.48 * h), 0.095 * h * g, shade(look.bottom, 1.2), layer=1)
    if look.luggage == "backpack":
        made.limb((-0.1 * h, 0.0, 0.6 * h), (-0.1 * h, 0.0, 0.74 * h), 0.075 * h, shade(look.bicycle, 0.8))
    elif look.luggage == "bag":
        made.limb((0.0, -0.16 * h * g, 0.36 * h), (0.04 * h, -0.16 * h * g, 0.42 * h), 0.055 * h, look.bicycle)
    made.limb((0.0, 0.0, 0.82 * h), (0.01 * h, 0.0, 0.88 * h), 0.03 * h, look.skin, layer=1)
    _head(made, look, (0.015 * h, 0.0, 0.93 * h), layer=2)
    if look.umbrella is not None:
        made.limb((0.12 * h, 0.04 * h, 0.72 * h), (0.06 * h, 0.02 * h, 1.2 * h), 0.012, (60, 60, 60), layer=2)
        rim = [(0.06 * h + 0.32 * math.cos(a), 0.5 * math.sin(a), 1.06 * h) for a in (0.0, 0.8, 1.57, 2.36, 3.14)]
        rim += [(0.06 * h + 0.32 * math.cos(a), 0.5 * math.sin(a), 1.06 * h) for a in (3.93, 4.71, 5.5)]
        for first, second in zip(rim, rim[1:] + rim[:1], strict=True):
            tint = shade(look.umbrella, 0.9 + 0.25 * (first[1] > 0))
            made.polygon([first, second, (0.06 * h, 0.0, 1.22 * h)], tint, layer=3)
    return made.build(look.top, (0.5, 0.5, h))


def cyclist(look: Look, pedal: float) -> Figure:
    """Build a person riding a bicycle.

    Parameters
    ----------
    look : Look
        The rider; the bicycle has the colour of the same name.
    pedal : float
        Angle of the crank, in radians.

    Returns
    -------
    Figure
        Riding along its x axis.
    """
    made = Builder()
    _bicycle(made, look.bicycle)
    g, lift = look.girth, 0.55 + 0.26 * look.height_m
    for side, turn in ((-1.0, pedal), (1.0, pedal + math.pi)):
        foot = (-0.02 + 0.16 * math.cos(turn), side * 0.1, 0.29 + 0.16 * math.sin(turn))
        hip = (-0.22, side * 0.09, lift - 0.06)
        middle = ((hip[0] + foot[0]) / 2 + 0.2, side * 0.1, (hip[2] + foot[2]) / 2 + 0.09)
        made.limb(hip, middle, 0.08 * g, look.bottom)
        made.limb(middle, foot, 0.06 * g, shade(look.bottom, 0.88))
        made.limb(foot, (foot[0] + 0.13, foot[1], foot[2]), 0.04, look.shoes)
        shoulder = (0.16, side * 0.17 * g, lift + 0.44)
        hand = (0.46, side * 0.25, 1.02)
        elbow = ((shoulder[0] + hand[0]) / 2 - 0.04, side * 0.26, (shoulder[2] + hand[2]) / 2 - 0.07)
        made.limb(shoulder, elbow, 0.055 * g, shade(look.top, 0.86))
        made.limb(elbow, hand, 0.045 * g, look.skin if look.garment == "skirt" else shade(look.top, 0.8))
    made.limb((-0.2, 0.0, lift), (0.12, 0.0, lift + 0.4), 0.14 * g, look.top)
    made.limb((0.14, -0.13 * g, lift + 0.44), (0.14, 0.13 * g, lift + 0.44), 0.075 * g, look.top)
    if look.luggage == "backpack":
        made.limb((-0.22, 0.0, lift + 0.22), (-0.06, 0.0, lift + 0.42), 0.12, shade(look.bicycle, 0.7))
    made.limb((0.18, 0.0, lift + 0.5), (0.22, 0.0, lift + 0.58), 0.05, look.skin, layer=1)
    _head(made, look, (0.26, 0.0, lift + 0.68), layer=2)
    return made.build(
        look.top,
        (1.75, 0.55, lift + 0.85),
        headlights=((0.6, 0.0, 0.85),),
        taillights=((-0.55, 0.0, 0.7),),
    )


def lone_bicycle(colour: Colour) -> Figure:
    """Build a bicycle without its rider, which is not a cyclist."""
    made = Builder()
    _bicycle(made, colour)
    return made.build(colour, (1.75, 0.5, 1.1))


def _bicycle(made: Builder, colour: Colour) -> None:
    """Add a bicycle."""
    r = WHEEL_RADIUS_M
    crank, seat, head = (-0.05, 0.0, 0.3), (-0.22, 0.0, 0.9), (0.38, 0.0, 0.9)
    for x in (-0.53, 0.53):
        made.ring((x, 0.0, r), r, (28, 28, 30), half_width_m=0.028)
        made.limb((x - 0.04, 0.0, r), (x + 0.04, 0.0, r), 0.03, (120, 120, 124))
    for start, end in ((crank, seat), (crank, head), (seat, head), (seat, (-0.53, 0.0, r)), (crank, (-0.53, 0.0, r))):
        made.limb(start, end, 0.024, colour)
    made.limb(head, (0.53, 0.0, r), 0.024, shade(colour, 0.8))
    made.limb(head, (0.42, 0.0, 1.03), 0.022, (70, 70, 72))
    made.limb((0.44, -0.27, 1.03), (0.44, 0.27, 1.03), 0.022, (50, 50, 52))
    made.limb((-0.32, 0.0, 0.95), (-0.12, 0.0, 0.95), 0.04, (30, 30, 30))


def _head(made: Builder, look: Look, centre: tuple[float, float, float], *, layer: int) -> None:
    """Add a head with its hair or hat."""
    x, y, z = centre
    h = min(look.height_m, 1.7)
    made.ball((x - 0.02 * h, y, z + 0.012 * h), 0.068 * h, look.bicycle if look.hat else look.hair, layer=layer)
    made.ball((x + 0.018 * h, y, z - 0.008 * h), 0.056 * h, look.skin, layer=layer)
    if look.hat:
        made.limb((x, y, z + 0.05 * h), (x + 0.05 * h, y, z + 0.045 * h), 0.026 * h, look.bicycle, layer=layer + 1)
