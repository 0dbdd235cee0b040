"""A street with its traffic: who stands where in one moment, the picture of it, and the truth about it.

Truth. An object's box is the tight box around those of its pixels that are seen. It is marked *ignore*, that is asked
of nobody, where its larger side is below SIDE_MIN_PX in the pixels of a model input whose longer side has INPUT_PX, or
where more than HIDDEN_MAX of it is hidden behind others or lies beyond the frame. An object of which nothing is seen
is left out. What hides what is counted by pixel, in the order of painting.
"""

import math

import msgspec
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw

from models.average_precision import Truth
from models.zoo.street import light as lighting
from models.zoo.street.figures import Figure, Sprite, draw, place
from models.zoo.street.light import Grain, Light
from models.zoo.street.scenery import COARSE, HAZE, Street

CLASS_NAMES = ("vehicle", "pedestrian", "cyclist")
SIDE_MIN_PX = 12.0
INPUT_PX = 320
HIDDEN_MAX = 0.6

SHADOW_MAX_M = 45.0
"""Depth beyond which nobody sees a cast shadow."""

LAMPS_MIN = 0.05
"""Lamps below this share are as good as off."""


class Actor(msgspec.Struct, frozen=True, kw_only=True):
    """One object in its place at one moment."""

    class_name: str
    """One of CLASS_NAMES."""
    figure: Figure
    x_m: float
    z_m: float
    heading: float
    lights: bool = True
    """Whether its lamps burn at night; those of parked vehicles do not."""


class Stage:
    """Draws the moments of one street.

    Parameters
    ----------
    street : Street
        The place; its furniture is drawn once, here.
    grain : Grain
        Noise and rain for frames of the street's size.
    """

    def __init__(self, street: Street, grain: Grain) -> None:
        self.street = street
        self._grain = grain
        things = [(thing.z_m, self._draw(thing.figure, thing.x_m, thing.z_m, thing.heading)) for thing in street.things]
        self._things = [(z, sprite) for z, sprite in sorted(things, key=lambda item: -item[0]) if sprite is not None]
        self._backdrop = street.backdrop.copy()
        for _, sprite in self._things:
            self._backdrop.paste(sprite.image, (sprite.left, sprite.top), sprite.image)
        self._parked_sprites: dict[int, tuple[Actor, Sprite | None]] = {}
        self._base: tuple[Light, Image.Image, Image.Image] | None = None

    def render(
        self, actors: list[Actor], light: Light, rng: Generator, *, noise: float
    ) -> tuple[Image.Image, list[Truth]]:
        """Draw one moment.

        Parameters
        ----------
        actors : list of Actor
            Everything that counts as an object, in any order.
        light : Light
            Time of day and weather.
        rng : Generator
            Draws noise and rain.
        noise : float
            Strength of the sensor's noise, in grey levels.

        Returns
        -------
        image : Image
            RGB, of the street's frame size.
        truth : list of Truth
            The objects, far ones first.
        """
        frame, owner = self._backdrop.copy(), np.zeros((self.street.camera.height, self.street.camera.width), np.uint8)
        frame.paste((0, 0, 0), (0, 0), self._shadows(light, actors))
        drawn = self._paint(frame, owner, actors)
        truth = [item for item in (self._truth(owner, *entry) for entry in drawn) if item is not None]
        frame = ImageChops.multiply(frame, self._light(light, actors))
        if light.lamps > LAMPS_MIN:
            self._glow(frame, light, actors, owner)
        if light.rain:
            frame = self._grain.rain(frame, rng, light.rain)
        return self._grain.add(frame, rng, noise), truth

    def _draw(self, figure: Figure, x_m: float, z_m: float, heading: float) -> Sprite | None:
        """Draw a figure in this street's air."""
        share = self.street.haze_share(z_m)
        return draw(figure, self.street.camera, x_m, z_m, heading, haze=HAZE, haze_share=share)

    def _paint(
        self, frame: Image.Image, owner: NDArray[np.uint8], actors: list[Actor]
    ) -> list[tuple[int, Actor, Sprite, int]]:
        """Paint actors far to near, and again the furniture in front of them; note whose each pixel is."""
        drawn: list[tuple[int, Actor, Sprite, int]] = []
        queue: list[tuple[float, int, Sprite]] = [(-z, 0, sprite) for z, sprite in self._things]
        for number, actor in enumerate(actors, 1):
            sprite = self._sprite(actor)
            if sprite is not None:
                queue.append((-actor.z_m, number, sprite))
        queue.sort(key=lambda item: item[:2])
        covered: list[tuple[int, int, int, int]] = []
        for depth, number, whole in queue:
            shown = self._between_walls(whole, -depth) if number else whole
            if shown is None:
                continue
            right, bottom = shown.left + shown.image.width, shown.top + shown.image.height
            if not number and not any(
                shown.left < x1 and x0 < right and shown.top < y1 and y0 < bottom for x0, y0, x1, y1 in covered
            ):
                continue
            frame.paste(shown.image, (shown.left, shown.top), shown.image)
            solid = whole.solid()
            columns = slice(shown.left - whole.left, right - whole.left)
            owner[shown.top : bottom, shown.left : right][solid[:, columns]] = number
            if number:
                covered.append((shown.left, shown.top, right, bottom))
                drawn.append((number, actors[number - 1], shown, int(np.count_nonzero(solid))))
        return drawn

    def _between_walls(self, sprite: Sprite, z_m: float) -> Sprite | None:
        """Cut off what the houses at the near corners of the junction hide."""
        walls = self.street.walls
        if walls is None or z_m < walls[0]:
            return sprite
        left, right = max(sprite.left, round(walls[1])), min(sprite.left + sprite.image.width, round(walls[2]))
        if left >= right:
            return None
        if (left, right) == (sprite.left, sprite.left + sprite.image.width):
            return sprite
        image = sprite.image.crop((left - sprite.left, 0, right - sprite.left, sprite.image.height))
        return Sprite(image=image, left=left, top=sprite.top, box=sprite.box)

    def _sprite(self, actor: Actor) -> Sprite | None:
        """Draw an actor; a parked one is drawn once, one behind the houses at the corners not at all."""
        walls, camera = self.street.walls, self.street.camera
        if walls is not None and actor.z_m >= walls[0]:
            scale = camera.focal_px / actor.z_m
            column, margin = camera.centre_px + (actor.x_m - camera.x_m) * scale, actor.figure.length_m * scale
            if not walls[1] - margin < column < walls[2] + margin:
                return None
        if actor.lights:
            return self._draw(actor.figure, actor.x_m, actor.z_m, actor.heading)
        key = id(actor.figure)
        if key not in self._parked_sprites:
            self._parked_sprites[key] = (actor, self._draw(actor.figure, actor.x_m, actor.z_m, actor.heading))
        return self._parked_sprites[key][1]

    def _truth(self, owner: NDArray[np.uint8], number: int, actor: Actor, sprite: Sprite, pixels: int) -> Truth | None:
        """Say where an actor is seen, and whether it is fair to ask for it."""
        part = owner[sprite.top : sprite.top + sprite.image.height, sprite.left : sprite.left + sprite.image.width]
        seen = part == number
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        if not rows.size:
            return None
        x0, y0 = sprite.left + int(columns[0]), sprite.top + int(rows[0])
        x1, y1 = sprite.left + int(columns[-1]) + 1, sprite.top + int(rows[-1]) + 1
        whole = (sprite.box[2] - sprite.box[0]) * (sprite.box[3] - sprite.box[1])
        camera = self.street.camera
        wide = min(sprite.box[2], camera.width) - max(sprite.box[0], 0.0)
        tall = min(sprite.box[3], camera.height) - max(sprite.box[1], 0.0)
        share = np.count_nonzero(seen) / pixels * max(0.0, wide) * max(0.0, tall) / whole
        side = max(x1 - x0, y1 - y0) * INPUT_PX / max(camera.width, camera.height)
        ignore = bool(side < SIDE_MIN_PX or share < 1.0 - HIDDEN_MAX)
        return Truth(actor.class_name, (float(x0), float(y0), float(x1), float(y1)), ignore)

    def _shadows(self, light: Light, actors: list[Actor]) -> Image.Image:
        """Return how dark the ground is under and beside the actors, as a mask of the frame's size."""
        camera, walls = self.street.camera, self.street.walls
        mask = Image.new("L", (camera.width // COARSE, camera.height // COARSE))
        pen = ImageDraw.Draw(mask)
        near = _feet(actors)
        offset = np.array([light.sun_x, 0.0, light.sun_z]) * 0.85
        far = near + offset * np.array([actor.figure.height_m for actor in actors])[:, None, None]
        flat = [(camera.project(feet.reshape(-1, 3)) / COARSE).reshape(-1, 4, 2) for feet in (near, far)]
        shown = [
            number
            for number, actor in enumerate(actors)
            if walls is None or actor.z_m < walls[0] or walls[1] < flat[0][number, :, 0].mean() * COARSE < walls[2]
        ]
        if light.shadow > 0.05:
            for number in shown:
                if actors[number].z_m < SHADOW_MAX_M:
                    hull = _hull([*flat[0][number].tolist(), *flat[1][number].tolist()])
                    pen.polygon(hull, fill=int(95 * light.shadow))
        for number in shown:
            pen.polygon(list(map(tuple, flat[0][number].tolist())), fill=120)
        return mask.resize((camera.width, camera.height), Image.Resampling.BILINEAR)

    def _light(self, light: Light, actors: list[Actor]) -> Image.Image:
        """Return the light of the frame's size, with the headlights of the actors."""
        size = (self.street.camera.width, self.street.camera.height)
        if self._base is None or self._base[0] != light:
            coarse = Image.fromarray((lighting.base_light(self.street, light) * 255).clip(0, 255).astype(np.uint8))
            self._base = (light, coarse, coarse.resize(size, Image.Resampling.BILINEAR))
        if light.lamps <= LAMPS_MIN:
            return self._base[2]
        image = self._base[1].copy()
        pen = ImageDraw.Draw(image, "RGBA")
        for actor in actors:
            if not actor.lights or actor.class_name != "vehicle":
                continue
            front, half = actor.figure.length_m / 2, actor.figure.width_m / 2
            for reach in (5.0, 9.0, 14.0):
                wide = half + 0.13 * reach
                cone = [(front, half, 0), (front, -half, 0), (front + reach, -wide, 0), (front + reach, wide, 0)]
                spots = place(np.array(cone, np.float64), actor.x_m, actor.z_m, actor.heading)
                if spots[:, 2].min() > 2.5:
                    lit = self.street.camera.project(spots) / COARSE
                    pen.polygon(list(map(tuple, lit.tolist())), fill=(255, 244, 214, int(33 * light.lamps)))
        return image.resize(size, Image.Resampling.BILINEAR)

    def _glow(self, frame: Image.Image, light: Light, actors: list[Actor], owner: NDArray[np.uint8]) -> None:
        """Add the lamps of street and traffic, those that nothing hides."""
        camera, walls = self.street.camera, self.street.walls
        ground = Image.fromarray((owner == 0).astype(np.uint8) * 255) if light.wet else None
        for (x, y), (_, _, z) in zip(camera.project(self.street.lamps), self.street.lamps, strict=True):
            lighting.glow(frame, "lamp", float(x), float(y), light.lamps * (4 + 0.5 * camera.focal_px / z))
        for number, actor in sorted(enumerate(actors, 1), key=lambda item: -item[1].z_m):
            if not actor.lights:
                continue
            towards = math.atan2(-actor.z_m, camera.x_m - actor.x_m)
            facing = math.cos(actor.heading - towards)
            for kind, spots in (("head", actor.figure.headlights), ("tail", actor.figure.taillights)):
                strength = facing if kind == "head" else -facing
                if not spots or strength < 0.1:
                    continue
                world = place(np.array(spots, np.float64), actor.x_m, actor.z_m, actor.heading)
                reach = (0.6 if kind == "head" else 0.34) * (0.35 if actor.class_name == "cyclist" else 1.0)
                for (x, y), (_, _, z) in zip(camera.project(world), world, strict=True):
                    column, row = int(x), int(y)
                    if not (0 <= column < camera.width and 0 <= row < camera.height) or z < 2.0:
                        continue
                    hidden = walls is not None and actor.z_m >= walls[0] and not walls[1] < x < walls[2]
                    if hidden or owner[row, column] not in (0, number):
                        continue
                    radius = light.lamps * strength * (2.5 + reach * camera.focal_px / z)
                    lighting.glow(frame, kind, float(x), float(y), radius)
                    if ground is not None:
                        lighting.streak(frame, kind, float(x), float(y), radius * 0.7, ground)


def _feet(actors: list[Actor]) -> NDArray[np.float64]:
    """Return the corners of the ground that each actor covers, shape (n, 4, 3), world metres."""
    corners = np.array([(1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0)]) * 0.53
    rows = [
        (a.figure.length_m, a.figure.width_m, a.x_m, a.z_m, math.cos(a.heading), math.sin(a.heading)) for a in actors
    ]
    length, width, x, z, cos, sin = np.array(rows).reshape(-1, 6).T[:, :, None]
    ahead, aside = corners[:, 0] * length, corners[:, 1] * width
    return np.stack([x + cos * ahead - sin * aside, np.zeros_like(ahead), z + sin * ahead + cos * aside], -1)


def _hull(points: list[list[float]]) -> list[tuple[float, float]]:
    """Return the convex hull of points in the plane (Andrew, Information Processing Letters 9, 1979)."""
    ordered = sorted((x, y) for x, y in points)
    hull: list[tuple[float, float]] = []
    for way in (ordered, ordered[::-1]):
        start = len(hull)
        for x, y in way:
            while len(hull) - start > 1:
                (ax, ay), (bx, by) = hull[-2:]
                if (bx - ax) * (y - ay) - (by - ay) * (x - ax) > 0:
                    break
                hull.pop()
            hull.append((x, y))
        hull.pop()
    return hull
