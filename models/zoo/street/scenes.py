"""Street scenes drawn by chance: single ones to train on and to be measured by, and a film of one street.

Everything follows from the seed and the arguments; nothing is photographed. See stage for what counts as truth.
"""

import io
import math
from collections.abc import Iterator

import msgspec
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from models.average_precision import Truth
from models.zoo.street import scenery
from models.zoo.street.figures import Figure
from models.zoo.street.light import Grain, Light
from models.zoo.street.people import cyclist, pedestrian, person
from models.zoo.street.scenery import Street
from models.zoo.street.stage import CLASS_NAMES, Actor, Stage
from models.zoo.street.traffic import Traffic
from models.zoo.street.vehicles import vehicle

__all__ = ["CLASS_NAMES", "Truth", "random_scenes", "render_video"]

SCENES_PER_STREET = 4
NEAREST_M, FARTHEST_M = 5.0, 42.0
"""Depths between which objects stand, near ones more densely; at the far end a person has about 12 px of the input."""

FILM_CLEAR_M = 11.0
"""No street furniture stands nearer to a film's camera."""

FILM_DAY_S = 60.0
"""A film goes from afternoon through dusk into the night in this time, and back again, in seconds."""


def random_scenes(
    seed: int | str, count: int, *, size: tuple[int, int] = (640, 360)
) -> Iterator[tuple[NDArray[np.uint8], list[Truth]]]:
    """Draw unrelated scenes.

    Parameters
    ----------
    seed : int or str
        Equal seeds give equal scenes.
    count : int
        How many.
    size : tuple of int, default (640, 360)
        Width and height, in pixels.

    Yields
    ------
    frame : ndarray, shape (height, width, 3), uint8
        RGB.
    truth : list of Truth
        In pixels of the frame.
    """
    rng = _generator(seed)
    grain = Grain(rng, size)
    for number in range(count):
        if number % SCENES_PER_STREET == 0:
            fog = float(rng.uniform(0.2, 1.0)) if rng.random() < 0.2 else 0.0
            rain = float(rng.uniform(0.3, 1.0)) if rng.random() < 0.18 else 0.0
            stage = Stage(scenery.build(rng, size, fog=fog), grain)
        light = _random_light(rng, rain)
        actors = _random_actors(rng, stage.street, rain)
        noise = float(rng.uniform(1.0, 5.0)) + (1.0 - light.sun) * float(rng.uniform(0.0, 8.0))
        image, truth = stage.render(actors, light, rng, noise=noise)
        yield np.asarray(_spoil(rng, image)), truth


def render_video(
    *, seed: int | str, frames: int, fps: float, size: tuple[int, int] = (640, 360), quality: int = 85
) -> Iterator[tuple[bytes, list[Truth]]]:
    """Film one street: traffic in its lanes, people on the pavements, and a light that slowly changes.

    Parameters
    ----------
    seed : int or str
        Equal seeds give equal films.
    frames : int
        How many.
    fps : float
        Frames per second of the film's own time.
    size : tuple of int, default (640, 360)
        Width and height, in pixels.
    quality : int, default 85
        Of the JPEG, 1..95.

    Yields
    ------
    jpeg : bytes
        The frame.
    truth : list of Truth
        In pixels of the frame.
    """
    rng = _generator(seed)
    street = _film_street(rng, size)
    stage = Stage(street, Grain(rng, size))
    traffic = Traffic(rng, street)
    wet = bool(rng.random() < 0.5)
    for number in range(frames):
        time_s = number / fps
        light = _film_light(time_s, wet)
        noise = 1.5 + 4.5 * (1.0 - light.sun)
        image, truth = stage.render(traffic.at(time_s), light, rng, noise=noise)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        yield buffer.getvalue(), truth


def _generator(seed: int | str) -> Generator:
    """Return the source of chance that belongs to a seed."""
    return np.random.default_rng(list(f"street/{seed}".encode()))


def _random_light(rng: Generator, rain: float) -> Light:
    """Draw a time of day; a third of scenes are bright, a third at dusk, a third at night."""
    sun = float(rng.choice([rng.uniform(0.75, 1.0), rng.uniform(0.3, 0.75), rng.uniform(0.0, 0.3)]))
    sunny = rng.random() < 0.5 and not rain
    return Light(
        sun=sun,
        shadow=float(rng.uniform(0.4, 1.0)) * min(1.0, sun * 1.4) if sunny else 0.0,
        sun_x=float(rng.uniform(-1.8, 1.8)),
        sun_z=float(rng.uniform(-0.6, 1.2)),
        wet=bool(rain or rng.random() < 0.15),
        rain=rain,
        gain=float(rng.uniform(0.8, 1.3)),
    )


def _random_actors(rng: Generator, street: Street, rain: float) -> list[Actor]:
    """Put vehicles, pedestrians and cyclists where they may be, and some where they should not."""
    actors: list[Actor] = []
    taken: list[tuple[float, float, float]] = []

    def free(x: float, z: float, radius: float) -> bool:
        if any(math.hypot(x - a, z - b) < radius + r for a, b, r in taken):
            return False
        taken.append((x, z, radius))
        return True

    def add(name: str, figure: Figure, x: float, z: float, heading: float, *, lights: bool = True) -> None:
        radius = figure.length_m / 2 + 0.2 if name == "vehicle" else 0.45
        if z - figure.length_m / 2 > 2.5 and free(x, z, radius):
            actors.append(
                Actor(class_name=name, figure=figure, x_m=x, z_m=z, heading=heading % (2 * math.pi), lights=lights)
            )

    def depth() -> float:
        return float(np.exp(rng.uniform(math.log(NEAREST_M), math.log(FARTHEST_M))))

    for x in street.parking_m:
        z = float(rng.uniform(4, 12))
        while z < 70:
            if rng.random() < 0.4 and not _in_junction(street, z, 4.0):
                add("vehicle", vehicle(rng), x, z, math.copysign(math.pi / 2, x), lights=False)
            z += float(rng.uniform(5.5, 9.0))
    busy = float(rng.uniform(0.3, 1.0))
    for x, way in street.lanes:
        for _ in range(int(rng.integers(0, 2 + round(3 * busy)))):
            sway = float(rng.normal(0, 0.06))
            add("vehicle", vehicle(rng), x + float(rng.normal(0, 0.2)), depth() + 3, way * math.pi / 2 + sway)
    if street.junction_m is not None:
        middle = sum(street.junction_m) / 2
        for _ in range(int(rng.integers(0, 3))):
            way, x = int(rng.choice([-1, 1])), float(rng.uniform(-24, 24))
            name = str(rng.choice(["vehicle", "cyclist"], p=[0.6, 0.4]))
            figure = vehicle(rng) if name == "vehicle" else cyclist(person(rng), float(rng.uniform(0, 6.3)))
            add(name, figure, x, middle - way * 1.8, 0.0 if way > 0 else math.pi)
    for _ in range(int(rng.integers(1, 5))):
        side = int(rng.choice([-1, 1]))
        x = side * (street.road_half_m - float(rng.uniform(0.5, 3.6)))
        heading = side * math.pi / 2 + float(rng.normal(0, 0.15)) + (math.pi if rng.random() < 0.1 else 0.0)
        if rng.random() < 0.12:
            heading = float(rng.uniform(0, 2 * math.pi))
        add("cyclist", cyclist(person(rng), float(rng.uniform(0, 6.3))), x, depth(), heading)
    for _ in range(int(rng.integers(2, 11))):
        z, walking = depth(), rng.random() < 0.8
        if rng.random() < 0.75:
            side = int(rng.choice([-1, 1]))
            x = side * (street.road_half_m + float(rng.uniform(0.3, street.pavement_m - 0.2)))
            heading = float(rng.choice([-1, 1])) * math.pi / 2 + float(rng.normal(0, 0.25))
        else:
            x = float(rng.uniform(-street.road_half_m, street.road_half_m))
            heading = float(rng.choice([0.0, math.pi])) + float(rng.normal(0, 0.3))
        if not walking:
            heading = float(rng.uniform(0, 2 * math.pi))
        look = person(rng, umbrella_share=0.4 if rain else 0.02)
        add("pedestrian", pedestrian(look, float(rng.uniform(0, 6.3)) if walking else math.nan), x, z, heading)
        if rng.random() < 0.25:
            beside = pedestrian(person(rng), float(rng.uniform(0, 6.3)))
            add("pedestrian", beside, x + float(rng.uniform(-0.95, 0.95)), z + float(rng.uniform(-0.9, 0.9)), heading)
    return actors


def _in_junction(street: Street, z_m: float, margin_m: float) -> bool:
    """Say whether a depth lies in the crossing road."""
    return street.junction_m is not None and street.junction_m[0] - margin_m < z_m < street.junction_m[1] + margin_m


def _spoil(rng: Generator, image: Image.Image) -> Image.Image:
    """Do to a frame what cheap cameras do: blur, false colours, compression."""
    if rng.random() < 0.35:
        image = image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.3))))
    if rng.random() < 0.6:
        gains, gamma = rng.uniform(0.85, 1.15, 3), float(rng.uniform(0.8, 1.25))
        ramp = 255.0 * (np.arange(256) / 255.0) ** gamma
        image = image.point([int(min(255.0, value)) for gain in gains for value in ramp * gain])
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=int(rng.integers(25, 95)))
    return Image.open(buffer).convert("RGB")


def _film_street(rng: Generator, size: tuple[int, int]) -> Street:
    """Build streets until one suits a film: from above a pavement, a junction near, and a lens that shows people."""
    while True:
        street = scenery.build(rng, size)
        camera, junction = street.camera, street.junction_m
        if junction is None or junction[0] > 26.0 or camera.focal_px < max(size):
            continue
        if 3.0 < camera.height_m < 5.5 and abs(camera.x_m) > 2.0:
            # A tree in front of the lens would be all that the film shows.
            clear = tuple(thing for thing in street.things if thing.z_m > FILM_CLEAR_M)
            return msgspec.structs.replace(street, things=clear)


def _film_light(time_s: float, wet: bool) -> Light:
    """Return the light at a moment of a film."""
    sun = 0.5 + 0.5 * math.cos(2 * math.pi * time_s / (2 * FILM_DAY_S))
    # Steps of 1/64: the light stays put for a few frames, and so does what was worked out from it.
    sun = round((0.04 + 0.94 * sun) * 64) / 64
    return Light(sun=sun, shadow=max(0.0, sun - 0.35) * 1.2, sun_x=1.9 - 1.5 * sun, sun_z=0.5, wet=wet, gain=1.15)
